"""Trees that were predicted before are read, others and damaged ones are predicted anew."""

import numpy as np
import pytest

from tasks import parser, predicted_trees

TRAIN = [
    (np.array([1, 2]), np.array([-1, 0])),
    (np.array([3]), np.array([-1])),
    (np.array([2, 2, 1]), np.arange(3) - 1),
]
JUDGED = [(np.array([4, 1]), np.array([1, -1]))]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """One for each time the parser is trained; its trees are chains, whose last word has a head by the number of it."""
    made = []

    def jackknife(train, owners, judged, vocabulary):
        made.append(len(made))
        return [
            [np.append(np.arange(len(x) - 1) - 1, len(made)).astype(np.int32) for x, _ in p] for p in (train, judged)
        ]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(parser, "jackknife", jackknife)
    return made


def heads(train=TRAIN, owners=(0, 1, 2), judged=JUDGED, vocabulary=5):
    return [[tree.tolist() for tree in part] for part in predicted_trees.jackknife(train, owners, judged, vocabulary)]


def test_the_second_time_nothing_is_trained(calls, tmp_path):
    first = heads()
    assert first == [[[-1, 1], [1], [-1, 0, 1]], [[-1, 1]]] and heads() == first and len(calls) == 1
    assert len(list((tmp_path / "attention-atlas" / "trees").iterdir())) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"train": [(np.array([1, 4]), TRAIN[0][1]), *TRAIN[1:]]},
        {"train": [(TRAIN[0][0], np.array([1, -1])), *TRAIN[1:]]},
        {"owners": (0, 0, 2)},
        {"judged": [(np.array([4, 2]), JUDGED[0][1])]},
        {"train": TRAIN[:2], "owners": (0, 1), "judged": [TRAIN[2], *JUDGED]},
        {"vocabulary": 6},
    ],
)
def test_what_the_trees_depend_on_is_trained_anew(calls, changes):
    heads()
    heads(**changes)
    assert len(calls) == 2


def test_another_parser_is_trained_anew(calls, tmp_path, monkeypatch):
    heads()
    (tmp_path / "parser.py").write_text("STEPS = 3")
    monkeypatch.setattr(parser, "__file__", str(tmp_path / "parser.py"))
    heads()
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: b""])
def test_a_damaged_file_is_told_and_written_anew(calls, tmp_path, capsys, damage):
    heads()
    [path] = (tmp_path / "attention-atlas" / "trees").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    second = heads()
    assert capsys.readouterr().err == f"{path} is damaged: parsing again\n"
    assert heads() == second and len(calls) == 2


def test_a_folder_that_takes_no_file_costs_a_line(calls, tmp_path, capsys):
    (tmp_path / "attention-atlas").write_text("a file where the folder should be")
    assert heads()[1] == [[-1, 1]] and len(calls) == 1
    assert "the predicted trees cannot be kept there" in capsys.readouterr().err
