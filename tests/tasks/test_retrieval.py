"""Retrieval: published files line by line, pairs that keep their promise, baselines by hand, refusals in one line."""

import collections
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import classification, retrieval
from tasks.pair_files import Pairs, examples_of, read_tsv


def data_config(**changes):
    fields = {"name": "python_files", "path": "", "dir": "", "length": 64, "validation_bytes": 2 * 64 * 500}
    return ConfigDict({**fields, **changes})


def pairs_of(rows):
    """`Pairs` from a list of (label, first, second)."""
    contents = [text for _, *texts in rows for text in texts]
    owners = np.arange(len(contents)).reshape(-1, 2)
    edges = np.cumsum([0, *map(len, contents)])
    labels = np.array([label for label, *_ in rows], np.int32)
    return Pairs(np.frombuffer(b"".join(contents), np.uint8), edges, owners, 0 * owners, labels)


def texts(examples):
    """(label, first, second) of each row, without padding, which must be zeros."""
    found = []
    for i, label in enumerate(examples["labels"].tolist()):
        row = [label]
        for name in ("first", "second"):
            size = examples[f"{name}_sizes"][i]
            assert (examples[name][i, size:] == 0).all()
            row.append(examples[name][i, :size].tobytes())
        found.append(tuple(row))
    return found


LINES = {
    "train": b'1.0\tA1\tB1\ta "paper\'s text\tanother, quoted"\n0.0\tA1\tC1\ta "paper\'s text\tsomething else\n',
    "eval": b"1\tD1\tE1\tlooked at\ton the way\r\n0\tD2\tE2\tp\tq\n",
    "test": b"0\tF1\tG1\tjudged\tat the end\n1.0\tF1\tH1\tjudged\tw\xc3\xa4hrend\n0\tF2\tH1\tx\ty",
}
ROWS = {
    "train": [(1, b"a \"paper's text", b'another, quoted"'), (0, b"a \"paper's text", b"something else")],
    "eval": [(1, b"looked at", b"on the way"), (0, b"p", b"q")],
    "test": [(0, b"judged", b"at the end"), (1, b"judged", "während".encode()), (0, b"x", b"y")],
}


@pytest.fixture
def folder(tmp_path):
    for part, content in LINES.items():
        (tmp_path / f"new_aan_pairs.{part}.tsv").write_bytes(content)
    return tmp_path


class TestFiles:
    @pytest.mark.parametrize("place", ["", "aan", "lra_release/lra_release/tsv_data"])
    def test_the_published_files_in_order(self, folder, tmp_path, place):
        if place:
            (tmp_path / "data" / place).mkdir(parents=True)
            for path in folder.glob("*.tsv"):
                path.rename(tmp_path / "data" / place / path.name)
        corpus = retrieval.load(data_config(name="aan", dir=str(tmp_path / "data" if place else folder)))
        for part, name in (("train", "train"), ("development", "eval"), ("validation", "test")):
            pairs = getattr(corpus, part)
            assert texts(examples_of(pairs, np.arange(len(pairs.labels)), 64)) == ROWS[name]
        assert len(corpus.train.edges) - 1 == 3  # the first text is there once
        examples, owners = retrieval.validation(corpus, 64)
        assert texts(examples) == ROWS["test"] and owners.tolist() == [0, 0, 1]
        assert texts(retrieval.development(corpus, 64)[0]) == ROWS["eval"]
        assert corpus.classes == ("unrelated", "related") and retrieval.fields(corpus) == {"model.num_classes": 2}

    def test_a_folder_of_the_users_own_gives_the_same(self, folder):
        wanted = retrieval.load(data_config(name="aan", dir=str(folder))).sha256
        for part in LINES:
            (folder / f"new_aan_pairs.{part}.tsv").rename(folder / f"{part}.tsv")
        assert retrieval.load(data_config(path=str(folder))).sha256 == wanted
        (folder / "test.tsv").write_bytes(LINES["test"].replace(b"judged", b"Judged"))
        assert retrieval.load(data_config(path=str(folder))).sha256 != wanted

    def test_long_texts_are_cut_where_the_published_pipeline_cuts(self, tmp_path):
        (tmp_path / "x.tsv").write_bytes(b"1\ta\tb\t" + b"x" * 10_001 + b"\ty\n")
        assert read_tsv(tmp_path / "x.tsv").edges.tolist() == [0, 10_000, 10_001]

    @pytest.mark.parametrize(
        "line, message",
        [
            (b"1\ta\tb\tonly", "line 3: want label, id1, id2, text1, text2 with tabs between them, found 4 fields"),
            (b"1\ta\tb\tx\ty\tz", "line 3: want label, id1, id2, text1, text2 with tabs between them, found 6 fields"),
            (b"", "line 3: want label, id1, id2, text1, text2 with tabs between them, found 1 fields"),
            (b"2\ta\tb\tx\ty", "line 3: want a label of 0 or 1, found '2'"),
            (b"\xff\ta\tb\tx\ty", "line 3: want a label of 0 or 1, found"),
            (b"1\ta\tb\tx\t", "line 3: text2 is empty, want some text"),
        ],
    )
    def test_a_bad_line_is_named(self, folder, line, message):
        path = folder / "new_aan_pairs.train.tsv"
        path.write_bytes(LINES["train"] + line + b"\n" + LINES["train"])
        with pytest.raises(ValueError) as caught:
            retrieval.load(data_config(name="aan", dir=str(folder)))
        assert f"{path}, {message}" in str(caught.value) and "\n" not in str(caught.value)

    def test_what_is_missing_is_named(self, folder, tmp_path):
        (folder / "new_aan_pairs.eval.tsv").unlink()
        with pytest.raises(ValueError, match=r"new_aan_pairs.eval.tsv is missing; get new_aan_pairs.\{train,eval,test"):
            retrieval.load(data_config(name="aan", dir=str(folder)))
        with pytest.raises(ValueError, match="0 files end in eval.tsv, want one"):
            retrieval.load(data_config(path=str(folder)))
        (folder / "my.eval.tsv").write_bytes(b"")
        with pytest.raises(ValueError, match="my.eval.tsv: no line in it, want one a pair"):
            retrieval.load(data_config(path=str(folder)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "text"}, "config.data.name='text': unknown, want one of python_files, python_packages, path, aan"),
        ({"path": "nowhere"}, "config.data.path='nowhere': want a folder that holds train.tsv, eval.tsv and test.tsv"),
        ({"name": "path"}, "config.data.path='': want a folder that holds train.tsv, eval.tsv and test.tsv"),
        ({"name": "aan"}, "config.data.dir is empty, want the folder that holds new_aan_pairs.{train,eval,test}.tsv"),
        ({"name": "aan", "dir": "nowhere"}, "nowhere/new_aan_pairs.train.tsv is missing; get new_aan_pairs.{train"),
        ({"name": "aan", "dir": "x", "length": 10_001}, "config.data.length=10001: want at most 10000, what is read"),
        ({"name": "aan", "dir": "x", "path": "y"}, "config.data.path='y': aan does not read it"),
        ({"dir": "x"}, "config.data.dir='x': python_files does not read it"),
        ({"length": 10**7}, "config.data.length=10000000: too few files of Python's own library are twice as long"),
    ],
)
def test_wrong_config_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as caught:
        retrieval.load(data_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def files():
    return retrieval.load(data_config())


def contents(pairs):
    return [pairs.text[a:b].tobytes() for a, b in zip(pairs.edges[:-1], pairs.edges[1:], strict=True)]


class TestPythonFiles:
    def test_no_file_is_in_two_parts(self, files):
        parts = [set(contents(part)) for part in (files.train, files.development, files.validation)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        sizes = [len(part) for part in parts]
        assert 0.1 < sizes[2] / sum(sizes) < 0.3 and 0.01 < sizes[1] / sum(sizes) < 0.12

    def test_half_of_the_pairs_are_of_one_file_and_do_not_overlap(self, files):
        for pairs in (files.train, files.development, files.validation):
            same = pairs.owners[:, 0] == pairs.owners[:, 1]
            assert (same == pairs.labels).all() and same.mean() == 0.5
            assert (np.abs(pairs.starts[same, 0] - pairs.starts[same, 1]) >= 64).all()
            sizes = np.diff(pairs.edges)
            assert (pairs.starts >= 0).all() and (pairs.starts + 64 <= sizes[pairs.owners]).all()

    def test_one_text_alone_tells_nothing(self, files):
        """Each file is as often on either side, under either label."""
        pairs, count = files.train, len(files.train.edges) - 1
        for column in (0, 1):
            for label in (0, 1):
                drawn = np.bincount(pairs.owners[pairs.labels == label, column], minlength=count)
                expected = retrieval.PAIRS / 2 / count
                assert abs((drawn - expected) ** 2 / expected).sum() < count + 6 * math.sqrt(2 * count)  # chi squared
        order = pairs.starts[:, 0] < pairs.starts[:, 1]
        assert abs(order[pairs.labels == 1].mean() - 0.5) < 0.02

    def test_every_text_is_full_and_from_the_file(self, files):
        examples = retrieval.batch(files, 0, 0, 50, 64)
        every = b"\0".join(contents(files.train))
        assert all(len(first) == len(second) == 64 for _, first, second in texts(examples))
        assert all(first in every and second in every for _, first, second in texts(examples))

    def test_batches_repeat_and_differ(self, files):
        draw = lambda seed, step: texts(retrieval.batch(files, seed, step, 20, 64))  # noqa: E731
        drawn = {(seed, step): draw(seed, step) for seed in range(3) for step in range(3)}
        assert all(draw(*key) == drawn[key] for key in reversed(drawn))
        assert len({str(rows) for rows in drawn.values()}) == 9

    def test_same_in_another_process(self, files):
        code = (
            "from tests.tasks.test_retrieval import data_config, retrieval; c = retrieval.load(data_config());"
            "print(c.sha256, retrieval.batch(c, 3, 5, 7, 64)['first'].sum())"
        )
        environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
        program = [sys.executable, "-c", code]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [files.sha256, str(retrieval.batch(files, 3, 5, 7, 64)["first"].sum())]

    def test_a_limit_spreads_over_the_pairs(self, files):
        examples, owners = retrieval.validation(files, 640)
        assert len(owners) == 50 and examples["first"].shape == (50, 640) and owners.max() + 1 == len(set(owners))
        examples, owners = retrieval.validation(files, 64)
        assert len(owners) == 500 and examples["labels"].sum() == 250
        assert retrieval.tokens(64) == 128

    def test_description(self, files):
        found = retrieval.describe(files, 64)
        assert found["validation_examples"] == 500 and found["train_pairs"] == 65_536
        assert found["baselines"]["majority"] == 0.5 and 0.52 < found["baselines"]["trigrams"] < 0.75


def test_pairs_of_packages_are_of_two_files_and_keep_their_label():
    corpus = retrieval.load(data_config(name="python_packages"))
    classes, *halves = classification.SOURCES["python_packages"](data_config())
    package = {}
    for documents in halves:
        for i, label in enumerate(documents.labels):
            package[documents.text[documents.edges[i] : documents.edges[i + 1]].tobytes()] = classes[label]
    held = set(contents(corpus.validation))
    for pairs in (corpus.train, corpus.development, corpus.validation):
        names = np.array([package[content] for content in contents(pairs)])
        first, second = names[pairs.owners].T
        assert ((first == second) == pairs.labels).all() and pairs.labels.mean() == 0.5
        assert pairs is corpus.validation or not held & set(contents(pairs))
    assert (corpus.train.owners[:, 0] != corpus.train.owners[:, 1]).all()


class TestScore:
    def test_cross_entropy_right_answers_and_masks(self):
        logits, given = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]])), {}
        model = lambda **arrays: given.update(arrays) or logits  # noqa: E731
        rows = [(1, b"abc", b"de"), (0, b"f", b"ghij"), (1, b"k", b"l")]
        examples = {name: jnp.asarray(x) for name, x in examples_of(pairs_of(rows), np.arange(3), 4).items()}
        loss, count, right, weight = retrieval.score(model, examples, rng="key")
        np.testing.assert_allclose(loss, -np.log([0.75, 0.5, 0.1]), rtol=1e-6)
        assert right.tolist() == [1, 1, 0] and count.tolist() == weight.tolist() == [1, 1, 1]
        assert given["first_mask"].sum(1).tolist() == [3, 1, 1] and given["second_mask"].sum(1).tolist() == [2, 4, 1]
        assert given["first"].dtype == jnp.int32 and given["rng"] == "key"


class TestBaselines:
    def test_cosine_of_logarithms_by_hand(self):
        rows = [(0, b"abcabcabc", b"xabcab"), (0, b"abcd", b"efgh"), (0, b"ab", b"abc"), (1, b"aaaa", b"aaaa")]
        wanted = []
        for _, *both in rows:
            counts = [collections.Counter(text[i : i + 3] for i in range(len(text) - 2)) for text in both]
            logs = [{gram: math.log(1 + n) for gram, n in each.items()} for each in counts]
            norms = [math.sqrt(sum(x * x for x in each.values())) for each in logs]
            dot = sum(x * logs[1].get(gram, 0) for gram, x in logs[0].items())
            wanted.append(dot / (norms[0] * norms[1]) if all(norms) else 0)
        found = retrieval.cosines(examples_of(pairs_of(rows), np.arange(4), 9))
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        assert found[1] == found[2] == 0 and found[3] == pytest.approx(1)

    def test_the_threshold_is_the_best_of_all(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            values, labels = rng.integers(0, 7, 11) / 7, rng.integers(0, 2, 11)
            right = lambda cut: ((values > cut) == labels).sum()  # noqa: B023, E731
            found = retrieval.best_threshold(values, labels)
            assert right(found) == max(right(cut) for cut in np.arange(-1, 10) / 7 - 0.01)

    def test_accuracies_by_hand(self):
        train = pairs_of([(1, b"abcabc", b"bcabca"), (0, b"uvwxyz", b"lmnopq"), (0, b"abcdef", b"uvwxyz")])
        judged = pairs_of(
            [(1, b"lmlmlm", b"lmlmlm"), (0, b"ababab", b"bababa"), (0, b"abcdef", b"ghijkl"), (1, b"abc", b"z")]
        )
        corpus = retrieval.Corpus(("no", "yes"), train, train, judged, 10**6, "")
        assert retrieval.baselines(corpus, 6) == {"majority": 0.5, "trigrams": 0.5}
