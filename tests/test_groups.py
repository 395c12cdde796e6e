"""Groups of validation rows: from a task's labels to comparison.json and groups.csv, by pieces or by seeds."""

import csv

import numpy as np
import pytest

import eval as evaluation
import train
from experiment import groups
from experiment.estimate import ratio
from experiment.records import read_json
from tasks import text
from tests.test_train import TINY

OWNERS = np.array([0, 0, 1, 1, 3])
ROWS = np.array([1, 1, 1, 1, 2]), np.array([1.0, 0.0, 1.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0, 2.0])
GROUPED = {"distance": (["1", "2", "never"], np.array([0, 1, 0, -1, 1]))}


def test_a_group_holds_its_rows_by_piece():
    one, two, never = groups.sums(ROWS, OWNERS, GROUPED)["distance"]
    assert one == {"label": "1", "count": 2, "amounts": [1.0, 1.0], "sizes": [1.0, 1.0]}
    assert two == {"label": "2", "count": 3, "amounts": [0.0, 1.0], "sizes": [1.0, 2.0]}
    assert never == {"label": "never", "count": 0, "amounts": [], "sizes": []}


def test_one_seed_has_the_spread_over_the_pieces_in_the_group():
    found = {"groups": groups.sums(ROWS, OWNERS, GROUPED)}
    one, two, never = groups.compare([found], "files")["distance"]
    mean, stderr = ratio([0.0, 1.0], [1.0, 2.0])
    assert two == {"label": "2", "mean": mean, "stderr": stderr, "stderr_over": "files", "size": 3}
    assert (one["mean"], one["stderr"]) == (1.0, 0.0)
    assert never == {"label": "never", "mean": None, "stderr": None, "stderr_over": "files", "size": 0}


def test_several_seeds_have_the_spread_over_seeds():
    found = []
    for right in (0.0, 1.0, 2.0):
        rows = ROWS[0], np.array([1.0, 0.0, 1.0, 1.0, right]), ROWS[2]
        found.append({"groups": groups.sums(rows, OWNERS, GROUPED)})
    _, two, never = groups.compare(found, "files")["distance"]
    means = [0.0, 1 / 3, 2 / 3]
    assert two["mean"] == pytest.approx(1 / 3) and two["stderr"] == pytest.approx(np.std(means, ddof=1) / 3**0.5)
    assert two["stderr_over"] == "seeds" and two["size"] == 3 and never["mean"] is None


def test_columns_are_averaged_like_the_quality():
    amounts, sizes = np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([[2.0, 0.0], [2.0, 4.0]])
    found = groups.sums((np.array([2, 6]), amounts, sizes), np.array([0, 1]), {"all": (["x"], np.zeros(2, int))})
    assert groups.compare([{"groups": found}], "images")["all"][0]["mean"] == pytest.approx((3 / 4 + 1 / 4) / 2)


def test_a_variant_that_failed_has_no_groups():
    assert groups.compare([], "files") == {}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A finished run of a text task that knows even and odd windows, and one number more."""
    root = tmp_path_factory.mktemp("groups")
    (root / "story.txt").write_bytes("".join(f"{n} bottles of beer on the wall.\n" for n in range(300)).encode())
    rows = lambda corpus, length: len(text.validation(corpus, length)[1])  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            text, "groups", lambda *sized: {"window": (["even", "odd"], np.arange(rows(*sized)) % 2)}, raising=False
        )
        patch.setattr(text, "details", lambda model, *sized: {"rows": np.float32(rows(*sized))}, raising=False)
        patch.setattr("experiment.report.write_report", lambda *_: None)
        flags = [f"--config.data.path={root / 'story.txt'}", f"--workdir={root / 'run'}", "--config.only=full"]
        assert train.main(["train.py", *TINY, *flags]) == 0
        yield root / "run"


def test_groups_of_a_run_add_up_to_its_quality(grouped):
    result, table = read_json(grouped / "full" / "seed0" / "result.json"), read_json(grouped / "comparison.json")
    even, odd = result["groups"]["window"]
    assert sum(even["sizes"]) + sum(odd["sizes"]) == sum(result["sizes"])
    assert sum(even["amounts"]) + sum(odd["amounts"]) == pytest.approx(sum(result["amounts"]))
    cells = table["variants"][0]["groups"]["window"]
    assert [cell["label"] for cell in cells] == ["even", "odd"]
    for cell, of in zip(cells, (even, odd), strict=True):
        assert (cell["mean"], cell["stderr"]) == ratio(of["amounts"], of["sizes"])
        assert cell["size"] == of["count"] and cell["stderr_over"] == "files"


def test_csv_holds_every_cell_in_full_precision(grouped):
    with open(grouped / "groups.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = read_json(grouped / "comparison.json")["variants"][0]["groups"]["window"]
    assert [(row["name"], row["group"], row["label"]) for row in rows] == [
        ("full", "window", "even"),
        ("full", "window", "odd"),
    ]
    assert [float(row["mean"]) for row in rows] == [cell["mean"] for cell in cells]


def test_details_reach_the_comparison(grouped):
    result, table = read_json(grouped / "full" / "seed0" / "result.json"), read_json(grouped / "comparison.json")
    rows = result["details"]["rows"]
    assert rows > 1 and table["variants"][0]["details"] == {"rows": {"mean": rows, "stderr": None, "values": [rows]}}


def test_eval_repeats_the_groups_and_takes_those_of_another_length(grouped):
    stored = read_json(grouped / "comparison.json")["variants"][0]["groups"]
    assert evaluation.main(["eval.py", f"--workdir={grouped}"]) == 0
    assert read_json(grouped / "evaluation_T13.json")["variants"][0]["groups"] == stored
    assert evaluation.main(["eval.py", f"--workdir={grouped}", "--length=29"]) == 0
    assert read_json(grouped / "evaluation_T29.json")["variants"][0]["groups"] != stored
