"""ListOps: values by another solver, trees as likely as the original's recursion draws them, no tree on both sides."""

import os
import random
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import listops
from tasks.listops import OPERATIONS, trees, written

PUBLISHED = {"length": 2000, "min_length": 500, "max_depth": 10, "max_args": 10}
MINI = {"length": 100, "min_length": 20, "max_depth": 5, "max_args": 5}


def data_config(**changes):
    return ConfigDict({"name": "listops", "validation_examples": 200, **MINI, **changes})


@pytest.fixture(scope="module")
def corpus():
    return listops.load(data_config())


def drawn(corpus, seed=0, step=0, length=100, rows=300):
    return listops.batch(corpus, seed, step, rows, length)


def parsed(text):
    """Nested lists, [operation, argument, ...], from the text form."""
    stack = [[]]
    for word in text.split():
        if word.startswith("["):
            stack.append([word[1:]])
        elif word == "]":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(int(word))
    (tree,) = stack.pop()
    assert not stack
    return tree


def solved(tree):
    if isinstance(tree, int):
        return tree
    operation, *rest = tree
    values = [solved(each) for each in rest]
    return {"MIN": min, "MAX": max, "MED": lambda x: int(statistics.median(x)), "SM": lambda x: sum(x) % 10}[operation](
        values
    )


def height(tree):
    """Levels of a tree, that of the digits included."""
    return 1 if isinstance(tree, int) else 1 + max(map(height, tree[1:]))


def original(rng, depth, max_depth, max_args):
    """(tree, tokens) as Tay et al. draw it, one node after the other; depth is 1 at the root."""
    if depth == max_depth or rng.random() > 0.25:
        return rng.randrange(10), 1
    parts = [original(rng, depth + 1, max_depth, max_args) for _ in range(rng.randint(2, max_args))]
    return [rng.choice(["MIN", "MAX", "MED", "SM"]), *(tree for tree, _ in parts)], 2 + sum(size for _, size in parts)


def originals(count, length, min_length, max_depth, max_args):
    """`count` of them that are kept."""
    rng, kept = random.Random(1), []
    while len(kept) < count:
        tree, size = original(rng, 1, max_depth, max_args)
        if min_length < size < length:
            kept.append((tree, size))
    return kept


def length_shares(length, min_length, max_depth, max_args):
    """How likely a tree has each length, 0 for those that are not kept: exact, by sums over lengths of arguments."""
    digit = np.eye(1, length, 1)[0]
    shares = digit
    for _ in range(max_depth - 1):
        together, operation = shares, np.zeros(length)
        for _ in range(2, max_args + 1):
            together = np.convolve(together, shares)[:length]
            operation[2:] += together[:-2] / (max_args - 1)
        shares = 0.75 * digit + 0.25 * operation
    return np.where(np.arange(length) > min_length, shares, 0)


def sampled(settings, draws):
    """Trees that are kept of so many draws."""
    bounds = [settings[name] for name in ("min_length", "length", "max_depth", "max_args")]
    parts = [trees(np.random.default_rng(i), 6000, *bounds) for i in range(draws // 6000)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def shape_of(tree):
    """[arguments of operations], [operations], [digits] in a tree."""
    if isinstance(tree, int):
        return [], [], [tree]
    parts = [shape_of(each) for each in tree[1:]]
    arguments, operations, digits = (sum(lists, []) for lists in zip(*parts, strict=True))
    return [len(parts), *arguments], [tree[0], *operations], digits


def told(kept):
    """Numbers of each of some (tree, tokens), as rows: one row a kind of number."""
    rows = []
    for tree, size in kept:
        arguments, operations, digits = shape_of(tree)
        names = [operations.count(name) / len(operations) for name in OPERATIONS]
        rows.append([size, size**2, height(tree), np.mean(arguments), np.mean(digits), len(tree), solved(tree), *names])
    return np.array(rows, float).T


class TestTrees:
    @pytest.mark.parametrize(
        "settings, rows",
        [(MINI, 300), (PUBLISHED, 60), ({"length": 9, "min_length": 1, "max_depth": 2, "max_args": 6}, 200)],
    )
    def test_values_bounds_and_form(self, settings, rows):
        corpus = listops.load(data_config(**settings, validation_examples=3))
        examples = listops.batch(corpus, 1, 2, rows, settings["length"])
        assert examples["tokens"].shape == (rows, settings["length"]) and examples["tokens"].dtype == np.uint8
        for row, size, label in zip(*(examples[name] for name in ("tokens", "sizes", "labels")), strict=True):
            tree = parsed(written(row))
            assert solved(tree) == label
            assert (row[:size] > 0).all() and (row[size:] == 0).all()
            assert settings["min_length"] < size < settings["length"] and height(tree) <= settings["max_depth"]
            assert 2 <= min(shape_of(tree)[0]) and max(shape_of(tree)[0]) <= settings["max_args"]

    def test_every_tree_of_the_smallest_kind_is_equally_likely(self):
        """Two arguments and one level below the root: an operation, two digits, 400 trees."""
        found = trees(np.random.default_rng(0), 200_000, 3, 5, max_depth=2, max_args=2)["tokens"][:, :4]
        kinds, counts = np.unique(found, axis=0, return_counts=True)
        assert len(kinds) == 400 and (kinds[:, 3] == listops.CLOSE).all()
        assert (np.abs(counts - 125) < 5 * 125**0.5).all()  # five deviations

    @pytest.mark.parametrize("settings, draws", [(MINI, 60_000), (PUBLISHED, 30_000)])
    def test_lengths_are_as_likely_as_computed(self, settings, draws):
        sizes = sampled(settings, draws)["sizes"]
        shares = length_shares(**settings)
        kept = shares.sum()
        assert abs(len(sizes) / draws - kept) < 4 * (kept * (1 - kept) / draws) ** 0.5
        ends = np.searchsorted(shares.cumsum() / kept, np.arange(1, 10) / 10)  # tenths
        counts = np.bincount(np.searchsorted(ends, sizes), minlength=10)
        wanted = np.bincount(np.searchsorted(ends, np.arange(len(shares))), shares, minlength=10) / kept * len(sizes)
        assert ((counts - wanted) ** 2 / wanted).sum() < 27.9  # one in a thousand for 9 degrees of freedom

    @pytest.mark.parametrize("settings", [MINI, pytest.param(PUBLISHED, marks=pytest.mark.slow)])
    def test_as_likely_as_one_node_after_the_other(self, settings):
        """Means of what there is to say of a tree, each within four standard errors of the recursion's."""
        found = sampled(settings, 60_000)
        ours = [(parsed(written(row)), size) for row, size in zip(found["tokens"], found["sizes"], strict=True)][:3000]
        for mine, theirs in zip(told(ours), told(originals(3000, **settings)), strict=True):
            error = (np.var(mine) / len(mine) + np.var(theirs) / len(theirs)) ** 0.5
            assert abs(np.mean(mine) - np.mean(theirs)) <= 4 * error


@pytest.mark.slow
class TestPublished:
    """What the settings of Tay et al. give."""

    def test_ends_are_twice_as_frequent(self):
        """8.28 % of the draws are kept, with 1,035 tokens in the mean; 0 and 9 are 17 % of the answers each."""
        shares = length_shares(**PUBLISHED)
        assert shares.sum() == pytest.approx(0.0828, abs=5e-5)
        assert shares @ np.arange(2000) / shares.sum() == pytest.approx(1035, abs=0.5)
        labels = np.bincount(sampled(PUBLISHED, 96_000)["labels"])
        labels = labels / labels.sum()
        assert labels[[0, 9]] == pytest.approx([0.169, 0.168], abs=0.01) and labels[1:9].max() < 0.11

    def test_baselines(self):
        """17 % for the most frequent answer, 36 % under the same root, 48 % at depth one."""
        corpus = listops.load(data_config(**PUBLISHED, validation_examples=8000))
        found = listops.describe(corpus, 2000)["baselines"]
        assert found == pytest.approx({"majority": 0.175, "root operator": 0.3645, "depth one": 0.482}, abs=0.017)

    def test_a_core_draws_more_than_two_thousand_a_second(self):
        corpus = listops.load(data_config(**PUBLISHED))
        begin = time.process_time()
        listops.batch(corpus, 0, 0, 1000, 2000)
        assert time.process_time() - begin < 0.5


def test_labels_of_small_trees_are_nearly_uniform(corpus):
    shares = np.bincount(drawn(corpus, rows=20_000)["labels"]) / 20_000
    assert shares.min() > 0.08 and shares.max() < 0.13


def test_batches_repeat_by_seed_and_step(corpus):
    draws = [drawn(corpus, seed, step)["tokens"].tobytes() for seed in (0, 1) for step in (0, 1) for _ in range(2)]
    assert draws[::2] == draws[1::2] and len(set(draws)) == 4


def test_same_in_another_process(corpus):
    code = "from tests.tasks.test_listops import data_config, listops;print(listops.load(data_config()).sha256)"
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == corpus.sha256
    assert listops.load(data_config(max_args=4)).sha256 != corpus.sha256


def test_no_tree_is_on_both_sides():
    """Not by luck: of the smallest kind there are 400, and both sides see all of theirs, at whatever length."""
    corpus = listops.load(data_config(length=5, min_length=1, max_depth=2, max_args=2, validation_examples=4000))
    sides = [
        {row[:4].tobytes() for row in rows}
        for rows in (drawn(corpus, length=5, rows=8000)["tokens"], listops.validation(corpus, 5)[0]["tokens"])
    ]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) == 400 and 50 < len(sides[1]) < 150
    longer = {row[:4].tobytes() for row in listops.validation(corpus, 6)[0]["tokens"]}
    assert longer == sides[1]


def test_the_judgement_is_the_same_each_time_and_goes_to_other_lengths(corpus):
    for length, least in ((100, 20), (50, 10), (7, 1), (150, 30)):
        first, owners = listops.validation(corpus, length)
        assert first["tokens"].shape == (200, length) and owners.tolist() == list(range(200))
        assert first["sizes"].min() > least and first["sizes"].max() < length
        np.testing.assert_array_equal(listops.validation(corpus, length)[0]["tokens"], first["tokens"])


def test_groups_by_hand(corpus):
    examples, _ = listops.validation(corpus, 100)
    found = {name: [labels[i] for i in index] for name, (labels, index) in listops.groups(corpus, 100).items()}
    texts = [parsed(written(row)) for row in examples["tokens"]]
    assert found["depth of the tree"] == [str(height(tree) - 1) for tree in texts]
    assert found["root operator"] == [tree[0] for tree in texts]
    for label, size in zip(found["length"], examples["sizes"], strict=True):
        low, high = map(int, label.split(" to "))
        assert low <= size <= high
    assert len(set(found["length"])) == 4


class TestBaselines:
    def test_depth_one_applies_the_root_to_its_own_digits(self, corpus):
        tokens = drawn(corpus)["tokens"]
        for row, answer in zip(tokens, listops.depth_one(tokens), strict=True):
            operation, *rest = parsed(written(row))
            own = [each for each in rest if isinstance(each, int)]
            assert answer == (solved([operation, *own]) if own else -1)

    def test_as_counted_by_hand(self, corpus):
        examples, _ = listops.validation(corpus, 100)
        seen = drawn(corpus, rows=listops.FITTED)
        best = lambda labels: np.bincount(labels).argmax()  # noqa: E731
        of_root = {root: best(seen["labels"][seen["tokens"][:, 0] == root]) for root in OPERATIONS.values()}
        by_root = np.array([of_root[root] for root in examples["tokens"][:, 0]])
        shallow = listops.depth_one(examples["tokens"])
        answers = best(seen["labels"]), by_root, np.where(shallow == -1, by_root, shallow)
        wanted = [np.mean(answer == examples["labels"]) for answer in answers]
        assert list(listops.baselines(corpus, 100).values()) == pytest.approx(wanted)
        assert wanted[0] < wanted[1] < wanted[2]


def test_describes_itself(corpus):
    found = listops.describe(corpus, 100)
    assert found["sha256"] == corpus.sha256 and found["validation_examples"] == 200
    assert 20 < found["validation_mean_length"] < 100
    assert list(found["baselines"]) == ["majority", "root operator", "depth one"]
    assert listops.fields(corpus) == {"model.num_classes": 10} and listops.tokens(100) == 100


@pytest.mark.parametrize("changes, message", [
    ({"name": "lists"}, "config.data.name='lists': unknown, want listops"),
    ({"max_depth": 1}, "config.data.max_depth=1: want at least 2, a root that has arguments"),
    ({"min_length": 0}, "config.data.min_length=0: want at least 1, a root that has arguments"),
    ({"min_length": 40, "max_depth": 3}, "not one tree in 10,000 has more than 40 and fewer than 100 tokens with max_depth=3, max_args=5"),
    ({"min_length": 99}, "not one tree in 10,000 has more than 99 and fewer than 100 tokens with max_depth=5, max_args=5"),
])  # fmt: skip
def test_refuses_in_one_line_what_cannot_be(changes, message):
    with pytest.raises(ValueError) as caught:
        listops.load(data_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_lengths_may_have_no_tree(corpus):
    with pytest.raises(ValueError, match="has more than 400 and fewer than 2000 tokens"):
        listops.validation(corpus, 2000)
