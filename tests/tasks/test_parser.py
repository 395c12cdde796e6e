"""The parser: the best tree is the best of all trees, it learns a small grammar, and parses what it never saw."""

import itertools

import numpy as np
import pytest

from tasks import parser

VOCABULARY = 7
DOG, CAT, THE, OLD, SEES, HEARS, OFTEN = range(VOCABULARY)


def is_tree(heads):
    """Whether there is one root and every word's way up ends at it."""
    if sum(head == -1 for head in heads) != 1:
        return False
    for node in range(len(heads)):
        for _ in range(len(heads)):
            node = heads[node] if node >= 0 else -1
        if node >= 0:
            return False
    return True


def brute_force(scores):
    """The best sum over all trees, by trying every choice of heads."""
    count = len(scores)
    trees = (heads for heads in itertools.product(range(-1, count), repeat=count) if is_tree(heads))
    return max(sum(scores[i, head + 1] for i, head in enumerate(heads)) for heads in trees)


def sentence(rng):
    """(tokens, heads) of a made-up language: the noun heads its words, the verb heads both nouns, "often" the verb."""
    tokens, heads, nouns = [], [], []
    for _ in range(2):
        words = [THE] + [OLD] * rng.integers(0, 3)
        noun = len(tokens) + len(words)
        tokens += [*words, rng.choice([DOG, CAT])]
        heads += [noun] * len(words) + [None]
        nouns.append(noun)
        if len(nouns) == 1:
            verb = len(tokens)
            tokens.append(rng.choice([SEES, HEARS]))
            heads.append(-1)
            if rng.integers(2):
                tokens.append(OFTEN)
                heads.append(verb)
    heads = [verb if head is None else head for head in heads]
    return np.array(tokens, np.int32), np.array(heads, np.int32)


def treebank(count, seed=0):
    rng = np.random.default_rng(seed)
    return [sentence(rng) for _ in range(count)]


@pytest.fixture(scope="module", autouse=True)
def small():
    """A parser small enough for tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WIDTH": 16,
            "ARC": 8,
            "LAYERS": 2,
            "TOKENS": 128,
            "PARSED": 256,
            "STEPS": 120,
            "LENGTHS": (16,),
        }.items():
            patch.setattr(parser, name, value)
        yield


class TestBestTree:
    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_no_tree_is_better(self, count):
        rng = np.random.default_rng(count)
        for _ in range(60 if count < 5 else 12):
            scores = rng.normal(size=(count, count + 1))
            heads = parser.best_tree(scores)
            assert is_tree(heads.tolist())
            np.testing.assert_allclose(sum(scores[range(count), heads + 1]), brute_force(scores), rtol=1e-9)

    def test_circles_inside_circles(self):
        """Words that head one another in pairs, and pairs that do: two contractions on top of one another."""
        scores = np.full((4, 5), -50.0)
        for word, head, score in ((0, 1, 9), (1, 0, 9), (2, 3, 9), (3, 2, 9), (0, 2, 5), (3, 1, 6), (1, -1, 1)):
            scores[word, head + 1] = score
        heads = parser.best_tree(scores)
        assert is_tree(heads.tolist())
        assert sum(scores[range(4), heads + 1]) == brute_force(scores) == 1 + 9 + 6 + 9

    def test_one_root_also_where_several_would_score_more(self):
        scores = np.zeros((3, 4))
        scores[:, 0] = 100
        assert (parser.best_tree(scores) == -1).sum() == 1

    def test_a_long_sentence(self):
        scores = np.random.default_rng(0).normal(size=(160, 161))
        assert is_tree(parser.best_tree(scores).tolist())


class TestFit:
    def test_learns_a_grammar_and_finds_the_trees_of_other_sentences(self):
        parameters = parser.fit(treebank(60), VOCABULARY, steps=120)
        others = treebank(20, seed=1)
        found = parser.parse(parameters, [tokens for tokens, _ in others])
        right = np.concatenate([tree == heads for tree, (_, heads) in zip(found, others, strict=True)])
        assert right.mean() > 0.95
        assert all(is_tree(tree.tolist()) for tree in found)

    def test_a_sentence_is_parsed_alike_in_whatever_company(self):
        parameters = parser.fit(treebank(8), VOCABULARY, steps=3)
        tokens = [tokens for tokens, _ in treebank(20, seed=1)]
        together = parser.parse(parameters, tokens)
        assert all(
            (parser.parse(parameters, [each])[0] == tree).all()
            for each, tree in zip(tokens[:3], together[:3], strict=True)
        )

    def test_sentences_too_long_to_train_on_are_parsed(self):
        parameters = parser.fit(treebank(8), VOCABULARY, steps=1)
        assert is_tree(parser.parse(parameters, [np.zeros(37, np.int32)])[0].tolist())

    def test_only_long_sentences_are_told(self):
        with pytest.raises(ValueError, match="no sentence of at most 16 words to learn from"):
            parser.fit([(np.zeros(17, np.int32), np.arange(17) - 1)], VOCABULARY)


class TestJackknife:
    def test_no_sentence_is_parsed_by_a_parser_that_saw_it(self, monkeypatch):
        """A parser that knows its sentences by heart knows none of those it is given."""
        seen = {}

        def fit(sentences, vocabulary, advance, **settings):
            seen[len(seen)] = {tokens.tobytes() for tokens, _ in sentences}
            return len(seen) - 1

        def parse(parser, sentences):
            assert not seen[parser] & {tokens.tobytes() for tokens in sentences}
            return [np.full(len(tokens), parser) for tokens in sentences]

        monkeypatch.setattr(parser, "fit", fit)
        monkeypatch.setattr(parser, "parse", parse)
        rows = [(np.array([owner, row]), np.array([-1, 0])) for row, owner in enumerate([0, 0, 1, 2, 2, 3])]
        trees, judged = parser.jackknife(rows, [0, 0, 1, 2, 2, 3], [(np.array([9]), np.array([-1]))], 10)
        assert [tree[0] for tree in trees] == [1, 1, 0, 1, 1, 0]
        assert [tree.tolist() for tree in judged] == [[0]]

    def test_same_trees_every_time(self, monkeypatch):
        monkeypatch.setattr(parser, "STEPS", 5)
        rows = treebank(12)
        one, two = (parser.jackknife(rows, np.arange(12), rows[:3], VOCABULARY) for _ in range(2))
        for trees, others in zip(one, two, strict=True):
            assert all((tree == other).all() for tree, other in zip(trees, others, strict=True))

    def test_one_sentence_has_no_other_half(self):
        with pytest.raises(ValueError, match="tree='predicted' wants two or more training sentences"):
            parser.jackknife(treebank(1), [0], [], VOCABULARY)
