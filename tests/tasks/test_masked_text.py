"""Masked text: how much is hidden and how, questions that repeat, bits of exactly the hidden bytes."""

import math

import numpy as np
import pytest

from tasks import masked_text, text


@pytest.fixture(scope="module")
def corpus():
    pieces = {name: np.frombuffer(name.encode() * 20, np.uint8) for name in ("abc", "vwxyz")}
    return text.Corpus(np.arange(256, dtype=np.uint8).repeat(3), pieces, "")


class TestCorrupt:
    def corrupted(self, rows=400, length=40, sizes=None):
        windows = np.random.default_rng(1).integers(0, 256, (rows, length), np.uint8)
        sizes = np.full(rows, length) if sizes is None else sizes
        return windows, masked_text.corrupt(windows, sizes, np.random.default_rng(2))

    def test_asks_for_fifteen_percent_of_the_real_bytes_of_each_row(self):
        sizes = np.array([40, 20, 7, 1])
        _, found = self.corrupted(4, 40, sizes)
        assert found["chosen"].sum(1).tolist() == [6, 3, 1, 1]
        assert not found["chosen"][np.arange(40) >= sizes[:, None]].any()

    def test_what_is_not_asked_for_stays_and_targets_are_the_truth(self):
        windows, found = self.corrupted()
        np.testing.assert_array_equal(found["tokens"][~found["chosen"]], windows[~found["chosen"]])
        np.testing.assert_array_equal(found["targets"], windows)

    def test_eighty_percent_hidden_ten_random_ten_kept(self):
        windows, found = self.corrupted()
        seen, truth = found["tokens"][found["chosen"]], windows[found["chosen"]]
        n = len(seen)
        hidden, kept = (seen == masked_text.MASK).sum(), (seen == truth).sum()
        for count, share in ((hidden, 0.8), (kept, 0.1 + 0.1 / 256), (n - hidden - kept, 0.1 * 255 / 256)):
            assert abs(count - share * n) < 4 * math.sqrt(n * share * (1 - share))  # four standard deviations

    def test_every_place_is_asked_for_alike(self):
        _, found = self.corrupted(rows=4000)
        expected = 4000 * 6 / 40
        assert (abs(found["chosen"].sum(0) - expected) < 5 * math.sqrt(expected)).all()


class TestQuestions:
    def test_batches_repeat_by_seed_and_step(self, corpus):
        draws = [
            masked_text.batch(corpus, seed, step, 5, 9) for seed in range(2) for step in range(2) for _ in range(2)
        ]
        assert all(
            (one[name] == two[name]).all() for one, two in zip(draws[::2], draws[1::2], strict=True) for name in one
        )
        assert (
            len({draw["targets"].tobytes() for draw in draws}) == len({draw["tokens"].tobytes() for draw in draws}) == 4
        )
        assert draws[0]["tokens"].shape == (5, 9)

    def test_the_bytes_are_those_of_the_text_task(self, corpus):
        drawn = masked_text.batch(corpus, 3, 4, 5, 9)["targets"]
        np.testing.assert_array_equal(drawn, text.batch(corpus, 3, 4, 5, 8)["tokens"])

    @pytest.mark.parametrize("length", [1, 7, 200])
    def test_judgement_has_every_byte_once_and_asks_the_same_each_time(self, corpus, length):
        examples, owners = masked_text.validation(corpus, length)
        real = np.arange(length) < examples["sizes"][:, None]
        for i, piece in enumerate(corpus.validation.values()):
            assert examples["targets"][owners == i][real[owners == i]].tolist() == piece.tolist()
        np.testing.assert_array_equal(masked_text.validation(corpus, length)[0]["chosen"], examples["chosen"])


def test_score_counts_the_chosen_bytes_and_hides_padding(corpus):
    examples, _ = masked_text.validation(corpus, 7)
    table = np.random.default_rng(0).normal(size=(257, 257)).astype(np.float32)
    masks = []

    def model(tokens, key_mask, rng):
        masks.append(np.asarray(key_mask))
        return table[tokens]

    loss, count, bits, weight = masked_text.score(model, examples)
    logits = table[examples["tokens"]].astype(np.float64)
    nats = (
        np.log(np.exp(logits).sum(-1))
        - np.take_along_axis(logits, examples["targets"][..., None].astype(int), -1)[..., 0]
    )
    np.testing.assert_allclose(loss, (nats * examples["chosen"]).sum(1), rtol=1e-5)
    np.testing.assert_allclose(bits, np.asarray(loss) / math.log(2), rtol=1e-6)
    assert count.tolist() == weight.tolist() == examples["chosen"].sum(1).tolist()
    assert masks[0].sum(1).tolist() == examples["sizes"].tolist()


def test_bigram_baseline_by_hand(monkeypatch):
    # Training "aab". Validation "aab" with the b to guess: after an a where the model sees it, unknown where it does not.
    a, b, alpha = 97, 98, text.ALPHA
    corpus = text.Corpus(np.array([a, a, b], np.uint8), {}, "")
    seen = np.array([[a, a, masked_text.MASK], [a, masked_text.MASK, masked_text.MASK]], np.int16)
    chosen = np.array([[False, False, True]] * 2)
    examples = {"tokens": seen, "targets": np.array([[a, a, b]] * 2, np.uint8), "chosen": chosen}
    monkeypatch.setattr(masked_text, "validation", lambda *_: (examples, None))
    unigram = -math.log2((1 + alpha) / (3 + 256 * alpha))
    after_a = -math.log2((1 + alpha) / (2 + 256 * alpha))
    found = masked_text.baselines(corpus, 3)
    assert found == {
        "uniform": 8.0,
        "unigram": pytest.approx(unigram),
        "bigram": pytest.approx((after_a + unigram) / 2),
    }
