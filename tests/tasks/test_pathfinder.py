"""Pathfinder: pictures as rows of pixels, a judgement nobody trained on, and rules that follow no contour."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import pathfinder
from tasks.contours import draw

LENGTH = 576


def data_config(**changes):
    fields = {"name": "pathfinder", "length": LENGTH, "contour_length": 5, "num_distractors": 3}
    return ConfigDict(fields | {"validation_examples": 300} | changes)


@pytest.fixture(scope="module")
def corpus():
    return pathfinder.load(data_config())


class Model:
    """Scores "joined" by how much ink there is; attends to everything alike."""

    before = 0

    def __call__(self, tokens, rng=None):
        ink = (tokens > 0).mean(-1)
        return jnp.stack([0.1 - ink, ink - 0.1], -1)

    def attention_maps(self, tokens):
        size = tokens.shape[1]
        return [jnp.full((len(tokens), 2, size, size), 1 / size)]


def test_a_batch_repeats_by_seed_and_step_and_is_balanced(corpus):
    draws = [pathfinder.batch(corpus, *at, 21, LENGTH) for at in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert draws[0]["tokens"].shape == (21, LENGTH) and draws[0]["tokens"].dtype == np.uint8
    assert draws[0]["labels"].shape == (21,) and draws[0]["labels"].dtype == np.int32
    assert [abs(2 * each["labels"].sum() - 21) for each in draws] == [1, 1, 1, 1]
    rows = [each["tokens"].tobytes() for each in draws]
    assert rows[0] == rows[1] and len(set(rows)) == 3


def test_the_pixels_are_those_of_the_generator_row_by_row(corpus):
    drawing = draw(np.random.Generator(np.random.Philox(key=[2, 5])), 3, 24, 5, 3)
    examples = pathfinder.batch(corpus, 2, 5, 3, LENGTH)
    np.testing.assert_array_equal(examples["tokens"][:, 24:48], drawing.images[:, 1])
    np.testing.assert_array_equal(examples["labels"], drawing.labels)


def test_another_process_draws_the_same(corpus):
    program = (
        "from ml_collections import ConfigDict; from tasks import pathfinder;"
        f"print(pathfinder.load(ConfigDict({data_config().to_dict()})).sha256)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == corpus.sha256


@pytest.mark.parametrize("field, value", [("contour_length", 4), ("num_distractors", 2), ("validation_examples", 299)])
def test_other_settings_have_another_fingerprint(corpus, field, value):
    assert pathfinder.load(data_config(**{field: value})).sha256 != corpus.sha256


def test_no_picture_is_on_both_sides_or_comes_twice(corpus):
    held, owners = pathfinder.validation(corpus, LENGTH)
    assert owners.tolist() == list(range(300)) and held["labels"].sum() == 150
    train = [pathfinder.batch(corpus, seed, step, 100, LENGTH)["tokens"] for seed in (0, 1) for step in range(5)]
    seen = [row.tobytes() for rows in train for row in rows]
    judged = [row.tobytes() for row in held["tokens"]]
    assert len({*seen, *judged}) == len(seen) + len(judged) == 1300


@pytest.mark.parametrize("length", [400, 1024])
def test_judges_at_other_lengths(corpus, length):
    examples, owners = pathfinder.validation(corpus, length)
    assert examples["tokens"].shape == (300, length) and len(owners) == 300


def test_describes_itself_and_beats_chance_at_the_dots(corpus):
    told = pathfinder.describe(corpus, LENGTH)
    assert told["sha256"] == corpus.sha256 and told["side"] == 24 and told["classes"] == ["apart", "joined"]
    assert told["validation_examples"] == 300 and pathfinder.fields(corpus) == {"model.num_classes": 2}
    found = told["baselines"]
    assert found["majority"] == 0.5 and found["paddles at the dots"] > 0.8
    assert 0.5 < found["distance of the dots"] < found["paddles at the dots"]


def test_the_baselines_are_those_of_the_nearest_pictures(corpus):
    """Distances of the dots by hand, and a vote one picture at a time."""
    drawing = draw(np.random.Generator(np.random.Philox(key=[0, 0])), pathfinder.FITTED, 24, 5, 3)
    judged = draw(np.random.Generator(np.random.Philox(key=[0, 0], counter=[0, 0, 0, 1])), 300, 24, 5, 3)
    known, asked = (np.hypot(*(each.dots[:, 0] - each.dots[:, 1]).T) for each in (drawing, judged))
    right = []
    for distance, label in zip(asked, judged.labels, strict=True):
        nearest = np.argsort(abs(known - distance))[: pathfinder.NEIGHBOURS]
        right.append((drawing.labels[nearest].mean() > 0.5) == label)
    found = pathfinder.baselines(corpus, LENGTH)["distance of the dots"]
    assert abs(found - np.mean(right)) < 0.02  # neighbours as far as another one within rounding


def test_groups_by_distance_and_by_answer(corpus):
    found = pathfinder.groups(corpus, LENGTH)
    judged = draw(np.random.Generator(np.random.Philox(key=[0, 0], counter=[0, 0, 0, 1])), 300, 24, 5, 3)
    distance = np.hypot(*(judged.dots[:, 0] - judged.dots[:, 1]).T) / 24
    labels, index = found["distance of the dots"]
    assert labels == ["below 0.25 of the side", "0.25 to 0.5", "0.5 or more"]
    np.testing.assert_array_equal(index, (distance >= 0.25).astype(int) + (distance >= 0.5))
    assert found["dots"][0] == ["apart", "joined"]
    np.testing.assert_array_equal(found["dots"][1], judged.labels)


def test_scores_classes(corpus):
    examples, _ = pathfinder.validation(corpus, LENGTH)
    loss, count, right, weight = pathfinder.score(Model(), examples)
    ink = (examples["tokens"] > 0).mean(1)
    logits = np.stack([0.1 - ink, ink - 0.1], 1)
    truth = logits[np.arange(300), examples["labels"]]
    np.testing.assert_allclose(loss, np.log(np.exp(logits).sum(1)) - truth, rtol=1e-5)
    np.testing.assert_array_equal(right, (ink > 0.1) == examples["labels"])
    assert count.tolist() == weight.tolist() == [1] * 300


def test_pictures_of_both_classes(corpus):
    found = pathfinder.pictures(Model(), corpus, LENGTH)
    assert found["images"].shape == (8, 24, 24, 1) and found["images"].max() == 1
    assert sorted(found["labels"].tolist()) == [0] * 4 + [1] * 4
    ink = (found["images"] > 0).mean((1, 2, 3))
    np.testing.assert_array_equal(found["answers"], ink > 0.1)
    np.testing.assert_allclose(found["confidence"], jax.nn.sigmoid(2 * abs(ink - 0.1)), rtol=1e-5)
    np.testing.assert_allclose(found["maps"], np.full((8, 24, 24), 1 / LENGTH), rtol=1e-4)


def test_pictures_without_maps(corpus, monkeypatch):
    """Where weights are no shares, and where there would be too many."""

    class Signed(Model):
        def attention_maps(self, tokens):
            return [-each for each in super().attention_maps(tokens)]

    assert "maps" not in pathfinder.pictures(Signed(), corpus, LENGTH)
    monkeypatch.setattr(pathfinder, "MAPPED", LENGTH - 1)
    assert "maps" not in pathfinder.pictures(Model(), corpus, LENGTH)


@pytest.mark.parametrize("changes, message", [
    ({"name": "path_x"}, "config.data.name='path_x': unknown, want pathfinder"),
    ({"length": 1000}, "config.data.length=1000: want the square of 16 or more, such as 961"),
    ({"length": 100}, "config.data.length=100: want the square of 16 or more, such as 256"),
    ({"contour_length": 200}, "config.data.contour_length=200: want 2 to 127 paddles"),
    ({"contour_length": 100}, "config.data.contour_length=100: no two contours of 100 paddles find room on 24 x 24"),
])  # fmt: skip
def test_refuses_what_it_cannot_draw(changes, message):
    with pytest.raises(ValueError, match=message):
        pathfinder.load(data_config(**changes))
