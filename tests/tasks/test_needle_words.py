"""Counting words: an independent count finds every answer, the published numbers of repeats, no-skill levels."""

from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import needle_words, recall
from tests.tasks.test_needles import config

KINDS = needle_words.KINDS


def drawn(name, length, rows=100, seed=0, vocabulary=256):
    return KINDS[name].draw(np.random.default_rng(seed), rows, length, ConfigDict({"vocabulary": vocabulary}))


def text_of(rows, name):
    """(words of the text, answers) of each row, after a look at how the end is written."""
    asked = {"cwe": 10, "fwe": 3}[name]
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist(), strict=True):
        assert tokens[-asked] == 0 and tokens.count(0) == 1 and max(targets[:-asked]) == -1
        assert tokens[len(tokens) - asked + 1 :] == targets[-asked:-1]
        yield tokens[:-asked], targets[-asked:]


@pytest.mark.parametrize(
    "vocabulary, length", [(256, 71), (256, 200), (256, 513), (256, 1024), (2000, 1024), (72, 200), (256, 4096)]
)
def test_counting_finds_the_common_words_in_their_order(vocabulary, length):
    rows = drawn("cwe", length, rows=30, vocabulary=vocabulary)
    assert rows.tokens.shape == (30, length) and rows.tokens.max() < vocabulary and np.isnan(rows.depth).all()
    for text, answers in text_of(rows, "cwe"):
        counts = Counter(text)
        ten = {word for word, _ in counts.most_common(10)}
        assert answers == [word for word in dict.fromkeys(text) if word in ten]
        common = {counts[word] for word in ten}
        others = Counter(counts[word] for word in counts if word not in ten)
        assert len(common) == 1 and min(common) > max(others)
        ratio = 10 if length >= 4096 else 6
        if len(others) > 1:  # what was left over
            assert others.pop(min(others)) == 1
        assert min(common) == ratio * max(others)


@pytest.mark.parametrize("vocabulary, length, common, other", [
    (256, 256, 6, 1), (2000, 1024, 6, 1), (4000, 4096, 30, 3), (12_000, 8192, 30, 3),
    (256, 1024, 24, 4),  # 10 words 24 times, 244 words for the other 774: one must come four times
    (256, 4096, 120, 12),
])  # fmt: skip
def test_common_words_repeat_as_published_where_the_vocabulary_has_the_words(vocabulary, length, common, other):
    for text, _ in text_of(drawn("cwe", length, rows=2, vocabulary=vocabulary), "cwe"):
        counts = sorted(Counter(text).values(), reverse=True)
        assert counts[:11] == [common] * 10 + [other]


@pytest.mark.parametrize("vocabulary, length", [(256, 56), (256, 57), (256, 301), (256, 1024), (6, 90), (20, 4096)])
def test_counting_finds_the_frequent_words_by_their_frequency(vocabulary, length):
    rows = drawn("fwe", length, rows=30, vocabulary=vocabulary)
    assert rows.tokens.shape == (30, length) and rows.tokens.max() < vocabulary and np.isnan(rows.depth).all()
    size = length - 3
    zipf = [int(size / (k**2 * sum(n**-2.0 for n in range(1, 100_000)))) for k in range(2, vocabulary)]
    for text, answers in text_of(rows, "fwe"):
        counts = Counter(text)
        del counts[1]
        assert [word for word, _ in counts.most_common(3)] == answers
        assert sorted(counts.values(), reverse=True) == [n for n in zipf[: vocabulary - 2] if n]
        assert len(set(sorted(counts.values())[-4:])) == 4  # the order is sure


@pytest.mark.parametrize("name, least", [("cwe", 71), ("fwe", 56)])
def test_shortest_length_fits_and_one_below_is_refused(name, least):
    data = ConfigDict({"vocabulary": 256})
    assert KINDS[name].least(data) == least and (drawn(name, least).targets >= 0).any()
    with pytest.raises(ValueError, match=f"config.data.length={least - 1}: {name} wants at least {least}"):
        recall.load(config(name, length=least - 1))
    smallest = {"cwe": 72, "fwe": 6}[name]
    assert KINDS[name].tokens(data) == smallest
    with pytest.raises(ValueError, match=f"config.data.vocabulary={smallest - 1}: {name} wants at least {smallest}"):
        recall.load(config(name, length=90, vocabulary=smallest - 1))


def test_fewer_words_could_not_be_told_apart():
    """At any length from the least on ranks 2 to 5 differ, and one below there are not four of them that do."""
    for length in [*range(56, 3000), 2**15, 2**17]:
        counts = needle_words._frequent_repeats(ConfigDict({"vocabulary": 256}), length)[1:5]
        assert len(set(counts)) == 4 and sum(counts) < length
    assert len(set(needle_words._frequent_repeats(ConfigDict({"vocabulary": 256}), 55)[1:5])) < 4


@pytest.mark.parametrize("name, length", [("cwe", 200), ("fwe", 200)])
def test_guessing_gets_what_the_baselines_say(name, length):
    rng, right = np.random.default_rng(1), []
    found = KINDS[name].baselines(ConfigDict({"vocabulary": 256}), length)
    for text, answers in text_of(drawn(name, length, rows=3000), name):
        words = [word for word in text if word > 1]
        count, kinds = len(answers), sorted(set(words))
        left = rng.permutation(answers)
        guesses = [rng.integers(2, 256, count), rng.choice(kinds, count), rng.choice(words, count)]
        row = [np.mean(guess == np.array(answers)) for guess in guesses]
        if name == "fwe":
            row.append(np.mean(np.array(answers) == Counter(words).most_common(1)[0][0]))
        row.append(np.mean([left[~np.isin(left, answers[:i])][0] == answers[i] for i in range(count)]))
        right.append(row)
    right = np.array(right)
    assert (np.abs(right.mean(0) - list(found.values())) < 5 * right.std(0) / 3000**0.5 + 1e-6).all()


@pytest.mark.parametrize("name", KINDS)
def test_every_word_is_as_likely_and_rows_repeat(name):
    rows = drawn(name, 100, rows=5000)
    answers = rows.targets[rows.targets >= 0]
    counts = np.bincount(answers, minlength=256)[2:]
    assert (
        counts.sum() == len(answers) and (np.abs(counts - len(answers) / 254) < 5 * (len(answers) / 254) ** 0.5).all()
    )
    assert rows.tokens.tobytes() == drawn(name, 100, rows=5000).tokens.tobytes()
    assert rows.tokens.tobytes() != drawn(name, 100, rows=5000, seed=1).tokens.tobytes()


@pytest.mark.parametrize("vocabulary", [72, 73, 100, 111, 112, 256])
def test_common_words_fill_every_length(vocabulary):
    data = ConfigDict({"vocabulary": vocabulary})
    for length in [*range(71, 2000), *range(4000, 6000), 2**15]:
        repeats = needle_words._common_repeats(data, length)
        assert sum(repeats) == length - 10 and len(repeats) <= vocabulary - 2
        assert len(set(repeats[:10])) == 1 and repeats[0] > max(repeats[10:]) and min(repeats) > 0
