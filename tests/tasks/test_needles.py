"""Needles: an independent reader finds every answer in the tokens alone; places, lengths, repetition, no-skill levels."""

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import needles, recall
from tasks.recall_rows import different, held_out

NAMES = [*needles.SETTINGS, "vt"]
SIZES = {  # tokens of a key, of a value, keys asked for, values of each: from the published settings, not from the code
    "passkey": (0, 5, 1, 1), "niah_single_1": (1, 1, 1, 1), "niah_single_2": (1, 1, 1, 1), "niah_single_3": (1, 4, 1, 1),
    "niah_multikey_1": (1, 1, 1, 1), "niah_multikey_2": (1, 1, 1, 1), "niah_multikey_3": (4, 4, 1, 1),
    "niah_multivalue": (1, 1, 1, 4), "niah_multiquery": (1, 1, 4, 1),
}  # fmt: skip
DATA = ConfigDict({"vocabulary": 256})


def drawn(name, length, rows=200, seed=0, vocabulary=256):
    data = ConfigDict({"vocabulary": vocabulary})
    return needles.KINDS[name].draw(np.random.default_rng(seed), rows, length, data)


def read(name, tokens):
    """Answers, their first places and the number of needles of one row, found as a human would."""
    key_size, value_size, _, values = SIZES[name]
    question = len(tokens) - 1 - tokens[::-1].index(1)
    haystack, asked = tokens[:question], tokens[question + 1 : tokens.index(2, question)]
    table, places, count = {}, {}, 0
    for place, token in enumerate(haystack):
        if token == 0:
            key = tuple(haystack[place + 1 : place + 1 + key_size])
            table.setdefault(key, []).append(haystack[place + 1 + key_size : place + 1 + key_size + value_size])
            places[key] = place
            count += 1
    queries = [tuple(asked[i : i + key_size]) for i in range(0, len(asked), key_size)] if key_size else [()]
    for query in queries:
        assert len(table[query]) == values  # no other needle has this key
    answer = [token for query in queries for value in table[query] for token in value]
    return answer, places[queries[0]], count, question


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("vocabulary, length", [(256, 64), (256, 65), (64, 131)])
def test_the_tokens_alone_give_every_answer(name, vocabulary, length):
    rows = drawn(name, length, vocabulary=vocabulary)
    assert rows.tokens.shape == rows.targets.shape == (200, length)
    assert rows.tokens.dtype == rows.targets.dtype == np.int32 and rows.depth.dtype == np.float32
    assert 0 <= rows.tokens.min() and rows.tokens.max() < vocabulary
    key_size, value_size, queries, values = SIZES[name]
    for tokens, targets, depth in zip(rows.tokens.tolist(), rows.targets.tolist(), rows.depth, strict=True):
        answer, place, count, question = read(name, tokens)
        asked = [target for target in targets if target >= 0]
        assert asked == answer and targets[-len(asked) :] == asked and len(asked) == queries * values * value_size
        assert tokens[length - len(asked) + 1 :] == asked[:-1] and tokens[length - len(asked)] == 2
        assert count == {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}.get(
            name, question // (1 + key_size + value_size) if name in ("niah_multikey_2", "niah_multikey_3") else 1
        )
        if queries * values > 1:
            assert np.isnan(depth) and len(set(asked)) == 4
        elif count > 4:
            size = 1 + key_size + value_size
            assert depth == pytest.approx(place / size / (count - 1))
        else:
            assert depth == pytest.approx(place / (question - 1 - key_size - value_size))


@pytest.mark.parametrize("length", [22, 57, 64])
def test_following_the_chain_gives_every_variable(length):
    rows = drawn("vt", length)
    assert np.isnan(rows.depth).all()
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist(), strict=True):
        question = tokens.index(1)
        source_of = {tokens[i + 1]: tokens[i + 2] for i in range(question) if tokens[i] == 0}
        place_of = {tokens[i + 1]: i for i in range(question) if tokens[i] == 0}
        asked, found = tokens[question + 1], []
        for variable in source_of:  # follows each variable back to its value
            value, hops = variable, 0
            while value in source_of:
                value, hops = source_of[value], hops + 1
            assert value == asked
            found.append((hops, variable))
        answer = [variable for _, variable in sorted(found)]
        assert [hops for hops, _ in sorted(found)] == [1, 2, 3, 4, 5] and targets[-5:] == answer
        assert max(targets[:-5]) == -1 and tokens[-5:] == [2, *answer[:-1]]
        assert sorted(answer, key=place_of.get) == answer  # defined before use


@pytest.mark.parametrize("name, repeats", [
    ("passkey", True), ("niah_single_1", True), ("vt", True), ("niah_single_2", False), ("niah_multikey_1", False)
])  # fmt: skip
def test_noise_repeats_five_tokens_or_is_random(name, repeats):
    rows = drawn(name, 256, rows=50)
    noise = rows.tokens >= 171  # three marks, 84 keys, 84 values
    assert len(np.unique(rows.tokens[noise])) == (5 if repeats else 85)
    if repeats:
        places = np.broadcast_to(np.arange(256), noise.shape)
        np.testing.assert_array_equal(rows.tokens[noise] - 171, places[noise] % 5)
    assert (~noise).sum(1).max() <= 5 * 3 + 7  # nothing but needles and the question holds marks, keys and values


@pytest.mark.parametrize("name", ["passkey", "niah_single_2", "niah_multikey_2"])
def test_depth_is_uniform_with_both_ends(name):
    depth = drawn(name, 66, rows=20_000).depth
    counts = np.unique(depth, return_counts=True)[1]
    places = {"passkey": 66 - 6 - 6 + 1, "niah_single_2": 66 - 3 - 3 + 1, "niah_multikey_2": 21}[name]
    assert len(counts) == places and depth.min() == 0 and depth.max() == 1
    assert (np.abs(counts - 20_000 / places) < 5 * (20_000 / places) ** 0.5).all()  # five deviations


def test_several_needles_lie_in_all_ways_alike():
    """4 needles of 3 tokens in 15: 7 choose 3, 35 ways."""
    tokens = drawn("niah_multivalue", 15 + 6, rows=20_000).tokens[:, :15]
    ways, counts = np.unique(tokens == 0, axis=0, return_counts=True)
    assert len(ways) == 35 and (np.abs(counts - 20_000 / 35) < 5 * (20_000 / 35) ** 0.5).all()


@pytest.mark.parametrize("name", ["passkey", "niah_single_3", "niah_multikey_1", "niah_multikey_3"])
def test_every_value_is_as_likely(name):
    answers = drawn(name, 64, rows=20_000).targets
    counts = np.bincount(answers[answers >= 0], minlength=171)[87:]
    expected = (answers >= 0).sum() / 84
    assert counts.sum() == (answers >= 0).sum() and (np.abs(counts - expected) < 5 * expected**0.5).all()


@pytest.mark.parametrize("name", NAMES)
def test_shortest_length_fits_and_one_below_is_refused(name):
    kind, least = needles.KINDS[name], needles.KINDS[name].least(DATA)
    want = {"passkey": 12, "niah_single_1": 6, "niah_single_2": 6, "niah_single_3": 12, "niah_multikey_1": 15,
            "niah_multikey_2": 6, "niah_multikey_3": 18, "niah_multivalue": 18, "niah_multiquery": 21, "vt": 22}  # fmt: skip
    assert least == want[name] and (kind.draw(np.random.default_rng(0), 3, least, DATA).targets >= 0).any(1).all()
    with pytest.raises(ValueError, match=f"config.data.length={least - 1}: {name} wants at least {least}"):
        recall.load(config(name, length=least - 1))
    smallest = kind.tokens(DATA)
    assert kind.draw(np.random.default_rng(0), 50, 64, ConfigDict({"vocabulary": smallest})).tokens.max() < smallest
    with pytest.raises(ValueError, match=f"config.data.vocabulary={smallest - 1}: {name} wants at least {smallest}"):
        recall.load(config(name, vocabulary=smallest - 1))


@pytest.mark.parametrize("name", NAMES)
def test_guessing_gets_what_the_baselines_say(name):
    rows, rng = drawn(name, 96, rows=4000), np.random.default_rng(1)
    found = needles.KINDS[name].baselines(DATA, 96)
    first, last = (3, 87) if name == "vt" else (87, 171)
    asked = rows.targets >= 0
    guesses = {next(iter(found)): rng.integers(first, last, rows.targets.shape)}
    if len(found) > 1:
        one, fresh, answers = [], [], asked[0].sum()
        for tokens, targets in zip(rows.tokens, rows.targets, strict=True):
            question = len(tokens) - 1 - tokens[::-1].tolist().index(1)
            shown = tokens[:question]
            shown = shown[(shown >= first) & (shown < last)]
            shown = np.unique(shown) if name == "vt" else shown
            one.append(rng.choice(shown, len(targets)))
            fresh.append(np.full(len(targets), -1))
            left = shown.tolist()
            for place in np.flatnonzero(targets >= 0):
                fresh[-1][place] = rng.choice(left)
                left.remove(targets[place])
        what = "variables" if name == "vt" else "values"
        guesses[f"one of the row's {what}"] = np.stack(one)
        if answers > 1:
            guesses[f"one of the row's {what} not yet told"] = np.stack(fresh)
    assert guesses.keys() == found.keys()
    for what, guess in guesses.items():
        right = (guess == rows.targets)[asked].reshape(4000, -1).mean(1)
        assert abs(right.mean() - found[what]) < 5 * right.std() / 4000**0.5 + 1e-3


def fingerprint():
    return hashlib.sha256(b"".join(drawn(name, 64).tokens.tobytes() for name in NAMES)).hexdigest()


def test_rows_repeat_in_another_process():
    code = "from tests.tasks.test_needles import fingerprint; print(fingerprint())"
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == fingerprint()
    assert drawn("passkey", 64).tokens.tobytes() != drawn("passkey", 64, seed=1).tokens.tobytes()


def test_held_out_is_half_of_the_rows_and_looks_at_all_of_them():
    tokens = np.zeros((4096, 512), np.int32)
    tokens[np.arange(4096), np.arange(4096) % 512] = 1 + np.arange(4096) // 512
    side = held_out(tokens)
    assert abs(side.mean() - 0.5) < 0.04 and abs((side[1:] == side[:-1]).mean() - 0.5) < 0.04
    np.testing.assert_array_equal(held_out(tokens[::-1].astype(np.int64))[::-1], side)


def test_different_numbers_in_every_order():
    orders, counts = np.unique(different(np.random.default_rng(0), 12_000, 4, 2), axis=0, return_counts=True)
    assert len(orders) == 12 and (orders[:, 0] != orders[:, 1]).all() and (np.abs(counts - 1000) < 5 * 1000**0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", needles.KINDS)
def test_two_thousand_rows_a_second(name):
    """With a margin of three for a busy machine; the side of each row is chosen, too."""
    corpus = recall.load(config(name, length=1024))
    start = time.process_time()
    recall.batch(corpus, seed=0, step=0, batch_size=1000, length=1024)
    assert 1000 / (time.process_time() - start) > 2000 / 3


def config(name, length=64, vocabulary=256):
    return ConfigDict(
        {"name": name, "length": length, "vocabulary": vocabulary, "num_pairs": 0, "num_symbols": 0, "power": 1.0,
         "filler": "", "validation_examples": 16}
    )  # fmt: skip
