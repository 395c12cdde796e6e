"""Scenes: labels against another way to draw, colours that tell nothing, and the mean IoU by hand."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import scenes
from tasks.scenes import CLASSES

SIZE = 23


def data_config(**changes):
    fields = {"name": "scenes", "image_size": SIZE, "num_shapes": 4, "noise": 0.05, "validation_images": 37}
    return ConfigDict(fields | changes)


@pytest.fixture(scope="module")
def corpus():
    return scenes.load(data_config())


def in_polygon(corners, x, y):
    """A point is inside a convex polygon if it is on the same side of all its edges."""
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for (ax, ay), (bx, by) in edges]
    return np.all(np.sign(sides) == np.sign(sides[0]), axis=0)


def regular(corners, first):
    angles = first + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def outline(label, shape):
    """Inside, as float64 bool [SIZE, SIZE], from the corners of a shape or its distances."""
    y, x = (np.indices((SIZE, SIZE)) + 0.5) / SIZE
    distance = np.hypot(x - shape["x"], y - shape["y"]) / shape["radius"]
    turn = np.array([[shape["cos"], -shape["sin"]], [shape["sin"], shape["cos"]]], np.float64)
    place = lambda corners: corners @ turn.T * shape["radius"] + (shape["x"], shape["y"])  # noqa: E731
    bar = lambda a, b: place(np.array([(a, b), (-a, b), (-a, -b), (a, -b)]))  # noqa: E731
    return {
        "disc": lambda: distance <= 1,
        "ring": lambda: (distance <= 1) & (distance >= 0.5),
        "square": lambda: in_polygon(place(regular(4, np.pi / 4)), x, y),
        "triangle": lambda: in_polygon(place(regular(3, -np.pi / 2)), x, y),
        "cross": lambda: in_polygon(bar(0.95, 0.25), x, y) | in_polygon(bar(0.25, 0.95), x, y),
    }[CLASSES[label]]()


def test_labels_and_colours_are_the_uppermost_shape_s(corpus):
    still = scenes.load(data_config(noise=0.0))
    layout = scenes.layouts(np.random.default_rng(5), 60, 4)
    found = scenes.draw(np.random.default_rng(5), still, 60, SIZE)
    for row in range(60):
        labels, colors = np.zeros((SIZE, SIZE), int), np.tile(layout["canvas"][row], (SIZE, SIZE, 1))
        for i, label in enumerate(layout["labels"][row]):
            if label:
                place = ("x", "y", "radius", "cos", "sin")
                inside = outline(label, {name: np.float64(layout[name][row, i]) for name in place})
                labels[inside], colors[inside] = label, layout["colors"][row, i]
        np.testing.assert_array_equal(found["labels"][row], labels)
        np.testing.assert_allclose(found["images"][row] * scenes.STD + 0.5, colors, atol=1e-6)
    assert len(np.unique(found["labels"])) == len(CLASSES)


def test_every_class_is_as_likely_and_colours_are_uniform_and_off_the_canvas():
    layout = scenes.layouts(np.random.default_rng(0), 6000, 3)
    labels = layout["labels"]
    assert np.abs(np.bincount((labels > 0).sum(1), minlength=4)[1:] - 2000).max() < 5 * (6000 * 2 / 9) ** 0.5
    counts = np.bincount(labels.ravel())[1:]
    assert np.abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5
    apart = np.abs(layout["colors"] - layout["canvas"][:, None])
    assert apart.min() >= 0.2499 and apart.max() <= 0.7501
    for label in range(1, len(CLASSES)):
        colors = layout["colors"][labels == label]
        for channel in colors.T:
            steps = np.bincount((channel * 5).astype(int), minlength=5)
            assert np.abs(steps - len(channel) / 5).max() < 5 * (len(channel) / 5) ** 0.5


def test_a_pixel_s_colour_tells_no_more_than_nothing(corpus):
    found = scenes.describe(corpus, SIZE)
    labels = scenes.validation(corpus, SIZE)[0]["labels"]
    assert found["baselines"]["canvas"] == pytest.approx((labels == 0).mean() / len(CLASSES))
    assert abs(found["baselines"]["color"] - found["baselines"]["canvas"]) < 0.01
    assert found["classes"] == list(CLASSES) and found["validation_images"] == 37


def test_noise_is_as_large_as_asked_for():
    draw = lambda noise: scenes.batch(scenes.load(data_config(noise=noise)), 0, 0, 50, SIZE)["images"]  # noqa: E731
    off = (draw(0.2) - draw(0.0)) * scenes.STD
    assert abs(off.std() - 0.2) < 0.002 and abs(off.mean()) < 0.005


class TestDraws:
    def test_batches_repeat_by_seed_and_step(self, corpus):
        draw = lambda *key: scenes.batch(corpus, *key, 5, SIZE)["images"].tobytes()  # noqa: E731
        draws = [draw(seed, step) for seed in (0, 1) for step in (0, 1) for _ in range(2)]
        assert draws[::2] == draws[1::2] and len(set(draws)) == 4

    def test_no_scene_of_the_judgement_is_trained_on(self, corpus):
        held = scenes.validation(corpus, SIZE)[0]["images"]
        assert held.shape == (37, SIZE, SIZE, 3) and held.dtype == np.float32
        train = [scenes.batch(corpus, 0, step, 37, SIZE)["images"] for step in range(3)]
        assert not {row.tobytes() for row in held} & {row.tobytes() for part in train for row in part}

    def test_same_in_another_process(self, corpus):
        code = "from tests.tasks.test_scenes import *; print(scenes.load(data_config()).sha256)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == corpus.sha256
        assert scenes.load(data_config(num_shapes=5)).sha256 != corpus.sha256

    @pytest.mark.parametrize("changed", ["colors", "canvas"])
    def test_other_colours_are_other_data(self, corpus, monkeypatch, changed):
        layouts = scenes.layouts

        def moved(*args, by):
            found = layouts(*args)
            return found | {changed: found[changed] * np.float32(by)}

        monkeypatch.setattr(scenes, "layouts", lambda *args: moved(*args, by=1.01))
        assert scenes.load(data_config()).sha256 != corpus.sha256
        monkeypatch.setattr(scenes, "layouts", lambda *args: moved(*args, by=1 - 2**-24))  # the last bit
        assert scenes.load(data_config()).sha256 == corpus.sha256

    def test_another_length_shows_the_same_shapes(self, corpus):
        small, large = (scenes.validation(corpus, length)[0]["labels"] for length in (SIZE, 3 * SIZE))
        np.testing.assert_array_equal(large[:, 1::3, 1::3], small)  # every third pixel's middle is the same point


class TestScore:
    def test_by_hand(self):
        labels = np.array([[[0, 1], [1, 2]]], np.uint8)
        answers = np.array([[[0, 1], [2, 2]]])
        logits = np.log(np.where(np.eye(len(CLASSES))[answers], 0.5, 0.1))
        model = lambda pixels, rng: jnp.asarray(logits)  # noqa: E731
        loss, count, both, either = scenes.score(model, {"images": None, "labels": jnp.asarray(labels)})
        np.testing.assert_allclose(loss, [-3 * np.log(0.5) - np.log(0.1)], rtol=1e-6)
        assert count.tolist() == [4]
        assert both.tolist() == [[1, 1, 1, 0, 0, 0]] and either.tolist() == [[1, 2, 2, 0, 0, 0]]

    def test_mean_iou_adds_up_scenes_before_it_divides(self):
        labels, answers = np.random.default_rng(0).integers(0, len(CLASSES), (2, 7, 5, 5))
        want = []
        for label in range(len(CLASSES)):
            both = sum(((a == label) & (b == label)).sum() for a, b in zip(labels, answers, strict=True))
            either = sum(((a == label) | (b == label)).sum() for a, b in zip(labels, answers, strict=True))
            want.append(both / either)
        assert scenes._mean_iou(labels, answers) == pytest.approx(np.mean(want), rel=1e-12)

    def test_baselines_of_scenes_without_some_class_are_numbers(self):
        few = scenes.load(data_config(num_shapes=1, validation_images=2))  # two scenes hold two of the five shapes
        assert all(0 < value < 1 for value in scenes.baselines(few, SIZE).values())


def test_pictures_show_scenes_and_answers(corpus):
    model = lambda pixels, rng=None: jnp.stack([pixels[..., 0], pixels[..., 1]], -1)  # noqa: E731
    found = scenes.pictures(model, corpus, SIZE)
    examples = scenes.validation(corpus, SIZE)[0]
    assert found["images"].shape == (6, SIZE, SIZE, 3) and 0 <= found["images"].min() <= found["images"].max() <= 1
    np.testing.assert_array_equal(found["labels"], examples["labels"][:6])
    np.testing.assert_array_equal(found["answers"], examples["images"][:6, ..., 1] > examples["images"][:6, ..., 0])


def test_the_data_decide_the_model_s_ends(corpus):
    assert scenes.fields(corpus) == {"model.channels": 3, "model.num_classes": 6, "model.head": "pixels"}
    assert scenes.tokens(SIZE) == SIZE**2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "digits"}, "config.data.name='digits': unknown, want scenes"),
        ({"image_size": 0}, "config.data.image_size=0: scenes can have any size; write --config.data.image_size=32"),
    ],
)
def test_wrong_config_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as caught:
        scenes.load(data_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
