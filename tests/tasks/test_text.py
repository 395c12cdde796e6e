"""Text: splits that share nothing, batches that repeat, windows that count every byte once, baselines by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import text


def data_config(**changes):
    fields = {"name": "python_stdlib", "path": "", "dir": "", "length": 7, "validation_bytes": 1000}
    return ConfigDict({**fields, **changes})


def corpus_of(train, **validation):
    pieces = {name: np.frombuffer(piece, np.uint8) for name, piece in validation.items()}
    return text.Corpus(np.frombuffer(train, np.uint8), pieces, "")


@pytest.fixture
def folder(tmp_path):
    """Fifty files of distinct text, one hidden file, one hidden folder and one copy."""
    for i in range(50):
        path = tmp_path / f"part{i % 3}" / f"file{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"<{i}>".encode() * 11)
    (tmp_path / ".hidden").write_bytes(b"secret" * 10)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "object").write_bytes(b"secret" * 10)
    (tmp_path / "copy.txt").write_bytes(b"<7>" * 11)
    return tmp_path


class TestSplit:
    def test_validation_files_are_never_trained_on(self, folder):
        corpus = text.load(data_config(path=str(folder), validation_bytes=100_000))
        stream = corpus.train.tobytes()
        assert 1 <= len(corpus.validation) <= 15
        for name, piece in corpus.validation.items():
            assert (folder / name).read_bytes() == piece.tobytes()
            assert piece.tobytes() not in stream

    def test_every_visible_file_is_used_once(self, folder):
        corpus = text.load(data_config(path=str(folder), validation_bytes=100_000))
        used = [*corpus.train.tobytes().split(b"\n"), *(piece.tobytes() for piece in corpus.validation.values())]
        assert sorted(used) == sorted(f"<{i}>".encode() * 11 for i in range(50))

    def test_a_new_file_moves_no_other(self, folder):
        before = set(text.load(data_config(path=str(folder))).validation)
        (folder / "new.txt").write_bytes(b"something else")
        assert before <= set(text.load(data_config(path=str(folder))).validation)

    def test_single_file_holds_out_the_last_tenth(self, tmp_path):
        content = bytes(range(200)) * 8
        (tmp_path / "one.bin").write_bytes(content)
        corpus = text.load(data_config(path=str(tmp_path / "one.bin")))
        assert corpus.train.tobytes() == content[:1440]
        assert b"".join(piece.tobytes() for piece in corpus.validation.values()) == content[1440:]
        assert len(corpus.validation) == text.SEGMENTS

    def test_folder_with_one_file_is_split_like_the_file(self, tmp_path):
        (tmp_path / "one.bin").write_bytes(bytes(range(200)) * 8)
        alone = text.load(data_config(path=str(tmp_path / "one.bin")))
        assert text.load(data_config(path=str(tmp_path))).sha256 == alone.sha256

    def test_default_is_python_source_without_tests(self):
        corpus = text.load(data_config(validation_bytes=3000))
        assert corpus.train.size > 1_000_000
        assert all(name.endswith(".py") and "test" not in name.split("/") for name in corpus.validation)
        assert sum(piece.size for piece in corpus.validation.values()) <= 3000

    def test_no_piece_outweighs_its_share(self, folder):
        (folder / "part0" / "large.txt").write_bytes(b"0123456789" * 1000)
        corpus = text.load(data_config(path=str(folder), validation_bytes=120))
        share = 120 // len(corpus.validation)
        assert sum(piece.size for piece in corpus.validation.values()) <= 120
        assert max(piece.size for piece in corpus.validation.values()) <= max(share, 120 // 3)


class TestPublished:
    def test_altered_file_is_refused(self, tmp_path):
        (tmp_path / "tinyshakespeare").mkdir()
        (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(b"First Citizen")
        with pytest.raises(ValueError, match="input.txt is not the published file: sha256 .* want 86c4e6aa"):
            text.load(data_config(name="tinyshakespeare", dir=str(tmp_path)))

    def test_accepted_by_their_digest(self, tmp_path, monkeypatch):
        import hashlib

        (tmp_path / "wikitext-2").mkdir()
        files = {"train.txt": b"= A title =\n" * 50, "valid.txt": b"some <unk> text\n" * 16}
        for name, content in files.items():
            (tmp_path / "wikitext-2" / name).write_bytes(content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        monkeypatch.setattr(text, "WIKITEXT", digests)
        corpus = text.load(data_config(name="wikitext-2", dir=str(tmp_path)))
        assert corpus.train.tobytes() == files["train.txt"]
        assert b"".join(piece.tobytes() for piece in corpus.validation.values()) == files["valid.txt"]

    @pytest.mark.parametrize("name, file", [("tinyshakespeare", "input.txt"), ("wikitext-2", "train.txt")])
    def test_missing_file_is_named_with_its_source(self, tmp_path, name, file):
        with pytest.raises(ValueError, match=rf"{tmp_path}/{name}/{file} is missing; it is (data/tiny|WikiText-2)"):
            text.load(data_config(name=name, dir=str(tmp_path)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "wikitext"}, "config.data.name='wikitext': unknown, want one of python_stdlib"),
        ({"path": "nowhere"}, "config.data.path='nowhere': no such file or folder"),
        ({"name": "path"}, "config.data.path is empty"),
        ({"name": "tinyshakespeare"}, "config.data.dir is empty"),
        ({"name": "tinyshakespeare", "path": "x"}, "tinyshakespeare does not read it"),
        ({"dir": "x"}, "python_stdlib does not read it"),
        ({"length": 10**9}, "want more than config.data.length=1000000000"),
    ],
)
def test_wrong_config_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as caught:
        text.load(data_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"a", b"ab" * 3])
def test_too_little_text_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="training text|holds no visible file"):
        text.load(data_config(path=str(tmp_path)))


class TestBatch:
    def test_windows_come_from_the_stream(self):
        corpus = corpus_of(bytes(range(100)))
        examples = text.batch(corpus, seed=3, step=5, batch_size=11, length=7)
        tokens = examples["tokens"]
        assert tokens.shape == (11, 8) and tokens.dtype == np.uint8 and (examples["sizes"] == 7).all()
        assert (np.diff(tokens.astype(int), axis=1) == 1).all()

    def test_every_place_is_reached(self):
        corpus = corpus_of(bytes(range(11)))
        starts = {int(row[0]) for step in range(50) for row in text.batch(corpus, 0, step, 5, length=7)["tokens"]}
        assert starts == {0, 1, 2, 3}

    def test_seed_and_step_both_matter(self):
        corpus = corpus_of(bytes(range(256)) * 9)
        draws = {text.batch(corpus, seed, step, 5, 7)["tokens"].tobytes() for seed in range(3) for step in range(3)}
        assert len(draws) == 9

    def test_same_in_another_process(self):
        code = (
            "import numpy as np; from tasks import text;"
            "c = text.Corpus(np.arange(256, dtype=np.uint8), {}, '');"
            "print(text.batch(c, 17, 4, 3, 5)['tokens'].tolist())"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert other.strip() == str(text.batch(corpus_of(bytes(range(256))), 17, 4, 3, 5)["tokens"].tolist())


def windows(pieces):
    """Tokens [windows, 8], which of the last 7 count, and owners."""
    examples, owners = text.validation(text.Corpus(None, pieces, ""), 7)
    return examples["tokens"], np.arange(7) < examples["sizes"][:, None], owners


class TestWindows:
    @pytest.mark.parametrize("sizes", [(2,), (8,), (9,), (15, 2, 31), (3, 7, 8)])
    def test_every_byte_but_the_first_is_predicted_once(self, sizes):
        pieces = {str(i): np.arange(i * 40, i * 40 + size, dtype=np.uint8) for i, size in enumerate(sizes)}
        tokens, counted, owners = windows(pieces)
        for i, piece in enumerate(pieces.values()):
            predicted = tokens[owners == i][:, 1:][counted[owners == i]]
            assert predicted.tolist() == piece[1:].tolist()

    def test_context_goes_on_from_the_byte_before(self):
        tokens, counted, _ = windows({"a": np.arange(20, dtype=np.uint8)})
        assert (np.diff(tokens.astype(int), axis=1) == 1)[counted].all()


class TestBaselines:
    def test_by_hand(self):
        # Training "aab": a twice, b once; pairs aa, ab. Validation "ab" predicts one b, after an a.
        found = text.baselines(corpus_of(b"aab", piece=b"ab"))
        alpha = text.ALPHA
        assert found["uniform"] == 8.0
        assert found["unigram"] == pytest.approx(-math.log2((1 + alpha) / (3 + 256 * alpha)))
        assert found["bigram"] == pytest.approx(-math.log2((1 + alpha) / (2 + 256 * alpha)))

    def test_averages_over_bytes_of_all_pieces(self):
        one, two = (text.baselines(corpus_of(b"abcab" * 9, piece=piece))["bigram"] for piece in (b"abc", b"bcabab"))
        both = text.baselines(corpus_of(b"abcab" * 9, first=b"abc", second=b"bcabab"))["bigram"]
        assert both == pytest.approx((2 * one + 5 * two) / 7)

    def test_probabilities_of_all_bytes_sum_to_one(self):
        pieces = {str(b): bytes([97, b]) for b in range(256)}
        bits = [text.baselines(corpus_of(b"abacus", **{name: piece}))["bigram"] for name, piece in pieces.items()]
        assert sum(2.0**-b for b in bits) == pytest.approx(1.0)


def test_cross_entropy_is_nats_of_the_target():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]], np.float32))
    found = text.cross_entropy(logits, np.array([[1, 2]]))
    np.testing.assert_allclose(found, [[math.log(4), math.log(8)]], rtol=1e-6)


def test_score_sums_what_counts_and_asks_for_the_next_byte():
    table = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    model = lambda tokens, rng: table[tokens]  # noqa: E731  scores of the next byte depend on this one
    tokens = np.random.default_rng(1).integers(0, 256, (3, 8), np.uint8)
    loss, count, bits, weight = text.score(model, {"tokens": tokens, "sizes": np.array([7, 2, 0], np.int32)})
    nats = np.log(np.exp(table).sum(1))[tokens[:, :-1]] - table[tokens[:, :-1], tokens[:, 1:]]
    np.testing.assert_allclose(loss, [nats[0].sum(), nats[1, :2].sum(), 0], rtol=1e-5)
    np.testing.assert_allclose(bits, loss / np.log(2), rtol=1e-6)
    assert count.tolist() == weight.tolist() == [7, 2, 0]
