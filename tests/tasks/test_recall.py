"""Recall: rows that repeat, sides that share no row, kinds that take turns, and a score of the asked tokens alone."""

import dataclasses
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import mqar
from experiment import settings
from tasks import associative, copying, recall, recall_rows
from tasks.recall_rows import held_out

OWN = {
    "mqar": {"num_pairs": 3, "power": 0.01, "filler": "zero"},
    "induction": {},
    "copying": {"num_symbols": 4},
    "selective_copying": {"num_symbols": 4},
    "duplication": {},
}


def data_config(name="mqar", **changes):
    own = {"num_pairs": 0, "num_symbols": 0, "power": 1.0, "filler": ""}
    for each in name.split(","):
        own |= OWN.get(each.strip(), {})
    size = {"name": name, "length": 17, "vocabulary": 23, "validation_examples": 101}
    return ConfigDict(size | own | changes)


def corpus_of(name="mqar", **changes):
    return recall.load(data_config(name, **changes))


def lines_of(examples):
    return {row.tobytes() for row in examples["tokens"]}


@pytest.mark.parametrize("name", OWN)
class TestEveryKind:
    def test_shapes_and_what_is_asked(self, name):
        corpus = corpus_of(name)
        for examples, rows in ((recall.batch(corpus, 0, 0, 7, 17), 7), (recall.validation(corpus, 17)[0], 101)):
            assert {field: (array.shape, array.dtype) for field, array in examples.items()} == {
                "tokens": ((rows, 17), np.int32), "targets": ((rows, 17), np.int32)
            }  # fmt: skip
            assert examples["tokens"].min() >= 0 and examples["tokens"].max() < 23
            assert examples["targets"].min() == -1 and ((examples["targets"] >= 0).sum(1) > 0).all()

    def test_no_row_is_on_both_sides(self, name):
        """Not by luck: with a few tokens there are only some rows, and both sides see nearly all of theirs."""
        own = {"mqar": {"num_pairs": 1}, "copying": {"num_symbols": 2}, "selective_copying": {"num_symbols": 2}}
        vocabulary = 40 if name in ("mqar", "duplication") else 9
        corpus = corpus_of(name, validation_examples=1000, length=5, vocabulary=vocabulary, **own.get(name, {}))
        train, held = recall.batch(corpus, 0, 0, 1000, 5), recall.validation(corpus, 5)[0]
        assert not lines_of(train) & lines_of(held) and min(len(lines_of(train)), len(lines_of(held))) >= 16
        assert not held_out(train["tokens"]).any() and held_out(held["tokens"]).all()

    def test_batches_repeat_by_seed_and_step(self, name):
        corpus = corpus_of(name)
        draws = [
            recall.batch(corpus, seed, step, 9, 17)["tokens"].tobytes()
            for seed in (0, 1) for step in (0, 1) for _ in range(2)
        ]  # fmt: skip
        assert draws[::2] == draws[1::2] and len(set(draws)) == 4

    @pytest.mark.parametrize("length", [16, 50, 129])
    def test_is_judged_at_any_length(self, name, length):
        corpus = corpus_of(name)
        examples, owners = recall.validation(corpus, length)
        assert examples["tokens"].shape == (101, length) and owners.tolist() == list(range(101))
        np.testing.assert_array_equal(recall.validation(corpus, length)[0]["tokens"], examples["tokens"])
        few = dataclasses.replace(corpus, validation_examples=13)
        assert recall.validation(few, length)[0]["tokens"].shape == (13, length)

    def test_lengths_and_vocabularies_that_are_too_small(self, name):
        kind, data = recall.KINDS[name], data_config(name)
        least, smallest = kind.least(data), kind.tokens(data)
        corpus = corpus_of(name, vocabulary=64)
        assert recall.validation(corpus, max(least, 6))[0]["tokens"].shape == (101, max(least, 6))
        message = f"config.data.length={least - 1}: {name} wants at least {least}"
        with pytest.raises(ValueError, match=message):
            recall.validation(corpus, least - 1)
        with pytest.raises(ValueError, match=message):
            corpus_of(name, length=least - 1)
        if smallest > 2:
            with pytest.raises(ValueError, match=f"vocabulary={smallest - 1}: {name} wants at least {smallest} tokens"):
                corpus_of(name, vocabulary=smallest - 1)

    def test_describes_itself(self, name):
        corpus = corpus_of(name)
        found = recall.describe(corpus, 50)
        assert found["kinds"] == [name] and found["validation_examples"] == 101
        assert found["asked_tokens"] == (recall.validation(corpus, 50)[0]["targets"] >= 0).sum()
        assert found["baselines"] == recall.KINDS[name].baselines(data_config(name), 50)
        assert all(0 < value < 1 for value in found["baselines"].values())
        assert found["sha256"] == corpus.sha256 == corpus_of(name).sha256 != corpus_of(name, length=18).sha256
        assert recall.fields(corpus) == {}

    def test_groups(self, name):
        corpus = corpus_of(name)
        found = recall.groups(corpus, 17)
        if name != "induction":
            assert found == {}
            return
        labels, index = found["depth"]
        places = (recall.validation(corpus, 17)[0]["tokens"] == 0).argmax(1)
        assert labels[0] == "0-10 %" and labels[9] == "90-100 %" and len(labels) == 10
        assert index.tolist() == [min(9, int(10 * np.float32(place / 14))) for place in places]


def test_kinds_take_turns_over_the_steps():
    corpus = corpus_of("induction, copying,duplication", length=16)
    assert corpus.kinds == ("induction", "copying", "duplication")

    def kind_of(row):
        return "induction" if row[-1] == 0 else "copying" if row[4:13] == [0] * 8 + [1] else "duplication"

    rows = np.concatenate([recall.batch(corpus, 0, step, 4, 16)["tokens"] for step in range(3)])
    assert [kind_of(row.tolist()) for row in rows] == list(corpus.kinds) * 4
    labels, index = recall.groups(corpus, 16)["kind"]
    assert labels == list(corpus.kinds) and index.tolist() == [row % 3 for row in range(101)]
    judged = recall.validation(corpus, 16)[0]["tokens"].tolist()
    assert [kind_of(row) for row in judged] == [labels[kind] for kind in index]
    bins = recall.groups(corpus, 16)["depth"][1]
    assert ((bins >= 0) == (index == 0)).all()
    found = recall.describe(corpus, 16)
    asked = (recall.validation(corpus, 16)[0]["targets"] >= 0).sum(1)
    assert [asked[index == kind][0] for kind in range(3)] == [1, 4, 7]
    best = {name: max(values.values()) for name, values in found["baselines_by_kind"].items()}
    mean = sum(best[labels[kind]] * count for kind, count in zip(index, asked, strict=True)) / asked.sum()
    assert list(best) == labels and found["baselines"] == {"best guess of each kind": pytest.approx(mean)}
    one = recall.batch(corpus, 0, 0, 1, 16)["tokens"]  # a batch with fewer rows than kinds
    assert kind_of(one[0].tolist()) == "induction"


def every_kind():
    """A corpus of each kind, long enough for it."""
    for name in recall.KINDS:
        own = {"vocabulary": 128, "length": 101} | ({"filler": "random"} if name == "mqar" else {})
        yield recall.load(data_config(name, **own))


def test_no_kind_has_a_row_on_both_sides_and_training_draws_it_anew():
    for corpus in every_kind():
        train = [lines_of(recall.batch(corpus, seed, 0, 200, 101)) for seed in (0, 1)]
        held = lines_of(recall.validation(corpus, 101)[0])
        assert not held & (train[0] | train[1]) and train[0] != train[1]
        assert min(len(held) / 101, len(train[0]) / 200) > 0.9


def test_a_process_of_its_own_draws_the_same_rows_of_every_kind():
    program = "from tests.tasks.test_recall import every_kind; print(*(corpus.sha256 for corpus in every_kind()))"
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [corpus.sha256 for corpus in every_kind()]


class TestScore:
    def test_counts_asked_tokens_alone(self):
        examples, _ = recall.validation(corpus_of(), 17)
        table = np.random.default_rng(0).normal(size=(23, 23)).astype(np.float32)
        asked_with = []

        def model(tokens, rng):
            asked_with.append(rng)
            return jnp.asarray(table)[tokens]

        loss, count, right, weight = recall.score(model, examples)
        assert asked_with == [None]  # one pass
        wanted = np.zeros((3, 101))
        for row, (tokens, targets) in enumerate(zip(examples["tokens"], examples["targets"], strict=True)):
            for token, target in zip(tokens, targets, strict=True):
                if target >= 0:
                    scores = table[token].astype(np.float64)
                    nats = np.log(np.exp(scores).sum()) - scores[target]
                    wanted[:, row] += nats, 1, scores.argmax() == target
        np.testing.assert_allclose(loss, wanted[0], rtol=1e-5)
        assert count.tolist() == weight.tolist() == wanted[1].tolist() == [3] * 101
        assert right.tolist() == wanted[2].tolist()
        assert loss.dtype == count.dtype == right.dtype == weight.dtype == jnp.float32
        assert recall.exact(model, examples).tolist() == (wanted[2] == 3).tolist()

    def test_details_are_whole_answers(self, monkeypatch):
        corpus = corpus_of("copying")
        examples, _ = recall.validation(corpus, 17)
        answers = jnp.asarray(examples["targets"])

        def told(answers, tokens, rng):
            """Right everywhere but at the last place of rows whose first token is odd."""
            found = (tokens[:, None, :] == jnp.asarray(examples["tokens"])).all(-1).argmax(1)
            wrong = (tokens[:, :1] % 2 == 1) & (jnp.arange(17) == 16)
            return jax.nn.one_hot(jnp.where(wrong, 0, answers[found]), 23)

        model = jax.tree_util.Partial(told, answers)
        wanted = float((examples["tokens"][:, 0] % 2 == 0).mean())
        assert recall.details(model, corpus, 17) == {"whole answers right": pytest.approx(wanted)}
        monkeypatch.setattr(recall, "PART", 17 * 8)  # parts of 8 rows, the last one filled up
        assert recall.details(model, corpus, 17) == {"whole answers right": pytest.approx(wanted)}

    def test_one_asked_token_is_its_own_whole(self):
        assert recall.details(None, corpus_of("induction"), 17) == {}


@pytest.mark.parametrize("name, changes, message", [
    ("sorting", {}, "config.data.name='sorting': 'sorting' is unknown, want some of mqar, induction, copying"),
    ("mqar,", {}, "config.data.name='mqar,': '' is unknown"),
    ("mqar,mqar", {}, "config.data.name='mqar,mqar': want each kind once"),
    ("induction", {"num_pairs": 4}, "config.data.num_pairs=4: induction does not read it; write 0"),
    ("mqar", {"num_symbols": 4}, "config.data.num_symbols=4: mqar does not read it; write 0"),
    ("copying", {"power": 0.01}, "config.data.power=0.01: copying does not read it; write 1.0"),
    ("duplication", {"filler": "zero"}, "config.data.filler='zero': duplication does not read it; write ''"),
    ("mqar", {"num_pairs": 0}, "config.data.num_pairs=0: mqar wants at least 1"),
    ("induction,copying", {"num_symbols": 0}, "config.data.num_symbols=0: copying wants at least 1"),
    ("mqar", {"filler": ""}, "config.data.filler='': mqar wants a word"),
    ("mqar", {"filler": "noise"}, "config.data.filler='noise': unknown to mqar"),
    ("mqar", {"num_pairs": 5}, "config.data.length=17: mqar wants at least 20 with config.data.num_pairs=5"),
    ("mqar", {"vocabulary": 7}, "config.data.vocabulary=7: mqar wants at least 8 tokens"),
    ("copying", {"num_symbols": 9}, "config.data.length=17: copying wants at least 18 with config.data.num_symbols=9"),
    ("induction", {"length": 3, "vocabulary": 5}, "config.data.length=3: too few different rows of induction"),
])  # fmt: skip
def test_refuses_what_it_would_not_read_or_cannot_draw(name, changes, message):
    with pytest.raises(ValueError, match=message):
        corpus_of(name, **changes)


@pytest.mark.parametrize("power", [0.0, 4.5, float("inf"), float("nan")])
def test_refuses_a_power_that_no_slot_can_have(power):
    config = mqar.get_config()
    config.data.power = power
    with pytest.raises(settings.SettingsError, match=f"config.data.power={power}: want float, above 0 and at most 4"):
        settings.check(config)


def test_the_largest_power_is_honoured_in_long_rows():
    data = data_config(length=1 << 16, num_pairs=2, power=4.0)
    _, targets, _ = recall.KINDS["mqar"].draw(np.random.default_rng(0), 300, 1 << 16, data)
    places = np.nonzero(targets >= 0)[1] / (1 << 16)
    assert abs(places.mean() - 4 / 5) < 5 * places.std() / 600**0.5  # the mean of a density 4 x^3


def test_one_kind_of_several_may_read_a_field():
    assert corpus_of("mqar,copying").data.num_symbols == 4 and corpus_of("mqar", power=1.0).data.power == 1.0


def test_a_side_without_rows_is_no_endless_search(monkeypatch):
    corpus = corpus_of("duplication")
    monkeypatch.setattr(recall_rows, "held_out", lambda tokens: np.zeros(len(tokens), bool))
    assert recall.batch(corpus, 0, 0, 5, 4)["tokens"].shape == (5, 4)
    with pytest.raises(ValueError, match="config.data.length=4: too few different rows of duplication"):
        recall.validation(corpus, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name, own", [
    ("mqar", {"num_pairs": 64, "vocabulary": 8192, "filler": "random"}),
    ("mqar", {"num_pairs": 256, "vocabulary": 8192}),
    ("induction", {"vocabulary": 16}),
    ("copying", {"num_symbols": 10, "vocabulary": 10}),
    ("selective_copying", {"num_symbols": 16, "vocabulary": 18}),
    ("duplication", {"vocabulary": 128}),
])  # fmt: skip
def test_two_thousand_rows_a_second(name, own):
    """Of training batches with T = 1024, on one core, in CPU time; a third of that is enough on a machine at work."""
    corpus = corpus_of(name, length=1024, **own)
    recall.batch(corpus, 0, 0, 64, 1024)
    start, steps = time.process_time(), 16
    for step in range(steps):
        recall.batch(corpus, 0, step, 64, 1024)
    rate = 64 * steps / (time.process_time() - start)
    print(f"{name} {own}: {rate:,.0f} rows a second")
    assert rate >= 2000 / 3


def test_has_the_kinds_of_its_families():
    assert list(associative.KINDS | copying.KINDS) == list(OWN)
    assert set(recall.KINDS) >= set(OWN)
