"""Needle classification: one class in each row, both sides apart, and what a window can reach, by its influence."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import needle_classification as shipped
from experiment import settings
from models.transformer import Encoder
from tasks import needle_classification as task


def data_config(**changes):
    return ConfigDict({"name": "needle", "length": 32, "vocabulary": 64, "validation_examples": 300} | changes)


@pytest.fixture(scope="module")
def corpus():
    return task.load(data_config())


def drawn(corpus, seed=0, step=0, length=32, rows=400):
    return task.batch(corpus, seed, step, rows, length)


@pytest.mark.parametrize("length", [3, 4, 32, 257])
def test_what_follows_the_needle_is_the_class(corpus, length):
    for examples in (drawn(corpus, length=length), task.validation(corpus, length)[0]):
        assert examples["tokens"].dtype == np.int32 and examples["tokens"].shape[1] == length
        assert (examples["sizes"] == length).all()
        for tokens, label in zip(examples["tokens"].tolist(), examples["labels"].tolist(), strict=True):
            assert tokens.count(0) == 1 and tokens[tokens.index(0) + 1] == label + 1 and 0 <= label < 10
            assert sum(token <= 10 for token in tokens) == 2 and max(tokens) < 64


def test_places_classes_and_noise_are_uniform(corpus):
    examples = drawn(corpus, rows=40_000)
    noise = examples["tokens"][examples["tokens"] > 10] - 11
    for found, total in ((examples["labels"], 10), (task.distances(examples["tokens"]) - 2, 31), (noise, 53)):
        counts, expected = np.bincount(found, minlength=total), len(found) / total
        assert len(counts) == total and (np.abs(counts - expected) < 5 * expected**0.5).all()  # five deviations


@pytest.mark.parametrize("length", [3, 32])
def test_no_row_is_on_both_sides_and_batches_repeat(corpus, length):
    train, held = drawn(corpus, length=length)["tokens"], task.validation(corpus, length)[0]["tokens"]
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in held}
    draws = [drawn(corpus, seed, step, length)["tokens"].tobytes() for seed in (0, 1) for step in (0, 1) for _ in "ab"]
    assert draws[::2] == draws[1::2] and len(set(draws)) == 4


def test_same_in_another_process(corpus):
    code = "from tests.tasks.test_needle_classification import *; print(task.load(data_config()).sha256)"
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == corpus.sha256 != task.load(data_config(length=33)).sha256


def test_describes_itself(corpus):
    labels = task.validation(corpus, 32)[0]["labels"].tolist()
    assert task.describe(corpus, 32) == {
        "pieces": "rows", "sha256": corpus.sha256, "classes": 10, "validation_examples": 300, "held_out_share": 0.5,
        "baselines": {"any class": 0.1, "majority": max(labels.count(label) for label in range(10)) / 300},
    }  # fmt: skip
    assert task.fields(corpus) == {"model.num_classes": 10}
    assert task.validation(corpus, 32)[1].tolist() == list(range(300))


@pytest.mark.parametrize("length", [3, 8, 32, 257])
def test_groups_hold_every_place_once(corpus, length):
    labels, index = task.groups(corpus, length)["distance"]
    ranges = [tuple(map(int, label.split("-"))) for label in labels]
    assert [place for low, high in ranges for place in range(low, high + 1)] == list(range(2, length + 1))
    tokens = task.validation(corpus, length)[0]["tokens"].tolist()
    for row, group in zip(tokens, index, strict=True):
        assert ranges[group][0] <= row.index(0) + 2 <= ranges[group][1]


@pytest.mark.parametrize("changes, message", [
    ({"name": "hay"}, "config.data.name='hay': unknown, want needle"),
    ({"vocabulary": 12}, "config.data.vocabulary=12: want at least 13"),
    ({"length": 2}, "config.data.length=2: want at least 3"),
    ({"length": 3, "vocabulary": 13}, "config.data.length=3: 4 different rows of a class with vocabulary=13, want at least 32"),
])  # fmt: skip
def test_refuses_what_it_cannot_draw(changes, message):
    with pytest.raises(ValueError, match=message):
        task.load(data_config(**changes))


@pytest.mark.parametrize("label, window, depth", [("window", 3, 2), ("window", 2, 3), ("longformer", 3, 2)])
def test_what_is_out_of_reach_has_no_influence(label, window, depth, length=13):
    """Changes one token after the other: a window carries the first window * depth to the vector before the row."""
    config = ConfigDict(settings.variants(shipped.get_config())[label].model)
    config.update({"width": 16, "mlp_width": 16, "depth": depth, "num_classes": 10})
    config.attention.window = window
    model = Encoder(config, length=length, rngs=nnx.Rngs(0))
    tokens = np.full((length + 1, length), 20, np.int32)
    tokens[np.arange(length), np.arange(length)] = 21
    logits = np.asarray(model(jax.numpy.asarray(tokens)))
    reached = (logits[:-1] != logits[-1]).any(1)
    wanted = length if label == "longformer" else window * depth
    assert reached.tolist() == [place < wanted for place in range(length)]
    if label == "window":
        assert task.reach(length, window, depth) == pytest.approx(reached[1:].mean())  # the class is never the first


@pytest.mark.parametrize("length, window, depth", [(32, 0, 2), (32, 1, 1), (32, 5, 2), (32, 40, 1)])
def test_reach_is_a_count_of_places(corpus, length, window, depth):
    share = task.reach(length, window, depth)
    assert share == sum(2 <= place <= window * depth for place in range(2, length + 1)) / (length - 1)
    found = (task.distances(drawn(corpus, rows=20_000)["tokens"]) <= window * depth).mean()
    assert abs(found - share) < 5 * (max(share * (1 - share), 1e-4) / 20_000) ** 0.5
