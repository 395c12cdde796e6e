"""Classification: no document on both sides, windows that cover, published formats, baselines by hand."""

import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import classification
from tasks.classification import Corpus, Documents


def data_config(**changes):
    fields = {"name": "python_packages", "path": "", "dir": "", "length": 16, "validation_bytes": 10**6}
    return ConfigDict({**fields, **changes})


def corpus_of(train, validation, whole=False, validation_bytes=10**6):
    """A corpus of two classes from lists of (label, bytes)."""
    parts = [
        Documents.of([content for _, content in part], [label for label, _ in part]) for part in (train, validation)
    ]
    return Corpus(("no", "yes"), *parts, whole, validation_bytes, "")


def contents(documents):
    return [documents.text[a:b].tobytes() for a, b in zip(documents.edges[:-1], documents.edges[1:], strict=True)]


@pytest.fixture
def folder(tmp_path):
    """Two classes of twenty files each, a hidden file, an empty one, and a copy within and across classes."""
    for name in ("ham", "spam"):
        (tmp_path / name / "inner").mkdir(parents=True)
        for i in range(20):
            (tmp_path / name / ("inner" * (i % 2)) / f"{i}.txt").write_bytes(f"<{name}{i}>".encode() * 9)
        (tmp_path / name / "copy.txt").write_bytes(b"<ham3>" * 9)
        (tmp_path / name / ".hidden").write_bytes(b"secret")
        (tmp_path / name / "empty").write_bytes(b"")
    return tmp_path


class TestOwnFolder:
    def test_each_document_is_on_one_side_once_and_a_fifth_is_held_out(self, folder):
        corpus = classification.load(data_config(path=str(folder)))
        assert corpus.classes == ("ham", "spam")
        train, held = contents(corpus.train), contents(corpus.validation)
        assert sorted(train + held) == sorted(f"<{name}{i}>".encode() * 9 for name in corpus.classes for i in range(20))
        assert len(held) == 8
        for documents in (corpus.train, corpus.validation):
            names = [corpus.classes[label].encode() for label in documents.labels]
            assert all(
                content.startswith(b"<" + name) for content, name in zip(contents(documents), names, strict=True)
            )

    def test_same_in_another_process_and_another_after_a_change(self, folder):
        before = classification.load(data_config(path=str(folder))).sha256
        code = (
            "import sys; from tests.tasks.test_classification import data_config, classification;"
            "print(classification.load(data_config(path=sys.argv[1])).sha256)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == before
        (folder / "ham" / "0.txt").write_bytes(b"changed")
        assert classification.load(data_config(path=str(folder))).sha256 != before


def test_default_is_six_packages_with_equal_shares_and_nothing_on_both_sides():
    corpus = classification.load(data_config(length=256))
    assert len(corpus.classes) == classification.PACKAGES and "email" in corpus.classes
    for documents in (corpus.train, corpus.validation):
        sizes = np.bincount(documents.labels, np.diff(documents.edges))
        assert sizes.min() > 0.8 * sizes.max() and len(sizes) == classification.PACKAGES
    assert not set(contents(corpus.train)) & set(contents(corpus.validation))
    found = classification.describe(corpus, 256)
    assert found["validation_examples"] > 500 and found["classes"] == list(corpus.classes)
    assert 0.15 < found["baselines"]["majority"] < 0.2 < found["baselines"]["naive Bayes"] < 0.9


class TestImdb:
    def reviews(self):
        return {
            f"aclImdb/{half}/{name}/{i}_{rating}.txt": f"{half} {name} {i}".encode()
            for half in ("train", "test")
            for name, rating in (("neg", 2), ("pos", 9))
            for i in range(3)
        }

    def unpacked(self, root):
        for name, content in self.reviews().items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        (root / "aclImdb" / "train" / "unsup").mkdir()
        (root / "aclImdb" / "train" / "unsup" / "0_0.txt").write_bytes(b"no label")

    def packed(self, root):
        (root / "imdb").mkdir()
        with tarfile.open(root / "imdb" / "aclImdb_v1.tar.gz", "w:gz") as archive:
            for name, content in {
                **self.reviews(),
                "aclImdb/README": b"read",
                "aclImdb/train/unsup/0_0.txt": b"x",
            }.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    @pytest.mark.parametrize("layout", ["unpacked", "packed"])
    def test_published_halves_in_either_form(self, tmp_path, monkeypatch, layout):
        monkeypatch.setattr(classification, "REVIEWS", 3)
        getattr(self, layout)(tmp_path)
        corpus = classification.load(data_config(name="imdb", dir=str(tmp_path)))
        assert corpus.classes == ("neg", "pos") and corpus.whole
        for half, documents in (("train", corpus.train), ("test", corpus.validation)):
            assert sorted(contents(documents)) == sorted(x for name, x in self.reviews().items() if half in name)
            assert all(
                f" {corpus.classes[label]} ".encode() in x
                for x, label in zip(contents(documents), documents.labels, strict=True)
            )

    @pytest.mark.parametrize("kept", [0.5, 0.0])
    def test_a_torn_archive_is_refused(self, tmp_path, kept):
        self.packed(tmp_path)
        path = tmp_path / "imdb" / "aclImdb_v1.tar.gz"
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(ValueError, match="aclImdb_v1.tar.gz does not read"):
            classification.load(data_config(name="imdb", dir=str(tmp_path)))

    def test_an_incomplete_folder_is_refused(self, tmp_path):
        self.unpacked(tmp_path)
        with pytest.raises(
            ValueError, match="aclImdb/train/neg holds 3 reviews, want 12500; get the Large Movie Review"
        ):
            classification.load(data_config(name="imdb", dir=str(tmp_path)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "text"}, "config.data.name='text': unknown, want one of python_packages, path, imdb"),
        ({"path": "nowhere"}, "config.data.path='nowhere': want a folder that holds one folder a class"),
        ({"name": "path"}, "config.data.path='': want a folder that holds one folder a class"),
        ({"name": "imdb"}, "config.data.dir is empty, want the folder that holds the Large Movie Review Dataset"),
        (
            {"name": "imdb", "dir": "nowhere"},
            "nowhere/aclImdb is missing, and so is nowhere/aclImdb_v1.tar.gz; get the L",
        ),
        ({"name": "imdb", "dir": "x", "path": "y"}, "config.data.path='y': imdb does not read it"),
        ({"dir": "x"}, "config.data.dir='x': python_packages does not read it"),
    ],
)
def test_wrong_config_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as caught:
        classification.load(data_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "classes, message", [(("one",), "1 folders in it"), (("one", "two"), "class 'one' has 1 files that")]
)
def test_too_few_classes_or_files_are_refused(tmp_path, classes, message):
    for name in classes:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode())
    with pytest.raises(ValueError, match=message):
        classification.load(data_config(path=str(tmp_path)))


class TestExamples:
    CORPUS = [(0, bytes(range(0, 23))), (1, bytes(range(30, 34))), (1, bytes(range(40, 61)))]

    def rows(self, **changes):
        examples, owners = classification.validation(corpus_of(self.CORPUS, self.CORPUS, **changes), 7)
        rows = [row[:size].tolist() for row, size in zip(examples["tokens"], examples["sizes"], strict=True)]
        assert all((row[size:] == 0).all() for row, size in zip(examples["tokens"], examples["sizes"], strict=True))
        return rows, examples["labels"].tolist(), owners.tolist()

    def test_windows_follow_one_another_and_a_short_rest_is_left_out(self):
        rows, labels, owners = self.rows()
        starts = [0, 7, 14, 30, 40, 47, 54]  # 23 = 3 * 7 + 2, and 2 bytes are less than half a window
        assert rows == [list(range(start, start + (4 if start == 30 else 7))) for start in starts]
        assert labels == [0, 0, 0, 1, 1, 1, 1] and owners == [0, 0, 0, 1, 2, 2, 2]

    def test_a_whole_document_is_one_example(self):
        rows, labels, owners = self.rows(whole=True)
        assert rows == [list(range(7)), list(range(30, 34)), list(range(40, 47))]
        assert labels == [0, 1, 1] and owners == [0, 1, 2]

    def test_a_limit_spreads_over_the_documents(self):
        rows, labels, owners = self.rows(validation_bytes=14)
        assert [row[0] for row in rows] == [0, 30] and (labels, owners) == ([0, 1], [0, 1])

    def test_batches_repeat_and_reach_every_window(self):
        corpus = corpus_of(self.CORPUS, self.CORPUS)
        draw = lambda seed, step: classification.batch(corpus, seed, step, 5, 7)  # noqa: E731
        assert {name: x.tolist() for name, x in draw(1, 2).items()} == {
            name: x.tolist() for name, x in draw(1, 2).items()
        }
        firsts = {row[0] for step in range(30) for row in draw(0, step)["tokens"].tolist()}
        assert firsts == {0, 7, 14, 30, 40, 47, 54}
        assert len({draw(seed, step)["tokens"].tobytes() for seed in range(3) for step in range(3)}) == 9


def test_score_is_cross_entropy_and_right_answers():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float32))
    masks = []
    model = lambda tokens, key_mask, rng: masks.append(key_mask) or logits  # noqa: E731
    examples = {"tokens": np.zeros((2, 5), np.uint8), "sizes": np.array([5, 2]), "labels": np.array([2, 1])}
    loss, count, right, weight = classification.score(model, examples)
    np.testing.assert_allclose(loss, [np.log(4), -np.log(0.75)], rtol=1e-6)
    assert right.tolist() == [0, 1] and count.tolist() == weight.tolist() == [1, 1]
    assert np.asarray(masks[0]).sum(1).tolist() == [5, 2]


def test_baselines_by_hand():
    # Class 1 has twice the windows of class 0, and the bytes tell the classes apart in one of the two questions.
    train = [(0, b"aaaaaaab"), (1, b"bbbbbbba"), (1, b"bbbbbbba")]
    found = classification.baselines(
        corpus_of(train, [(0, b"aaaaaaaa"), (0, b"bbbbbbbb"), (1, b"bbabbbbb"), (1, b"babbabba")]), 8
    )
    assert found == {"majority": 0.5, "naive Bayes": 0.75}
