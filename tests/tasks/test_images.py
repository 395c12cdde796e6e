"""Images: an order that shows each once an epoch, batches that repeat anywhere, judgement and baselines by hand."""

import hashlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import images
from tasks.image_files import Images
from tasks.images import Corpus


def data_config(**changes):
    fields = {"name": "digits", "path": "", "dir": "", "image_size": 0}
    training = {"crop": 0, "flip": False, "mixup": 0.0, "label_smoothing": 0.0}
    return ConfigDict({**fields, **training, **changes})


def corpus_of(count=23, size=5, channels=3, classes=4, **training):
    """Random images; the first pixel's first channel tells which image it is."""
    rng = np.random.default_rng(0)
    parts = []
    for rows in (count, 11):
        pixels = rng.integers(0, 256, (rows, size, size, channels), dtype=np.uint8)
        pixels[:, 0, 0, 0] = np.arange(rows)
        parts.append(Images(pixels, (np.arange(rows) % classes).astype(np.int32)))
    off = {"crop": 0, "flip": False, "mixup": 0.0, "label_smoothing": 0.0}
    names = tuple(f"class{i}" for i in range(classes))
    return Corpus(names, *parts, *images._mean_and_std(parts[0].pixels), **off | training, sha256="")


def fingerprint(examples):
    digest = hashlib.sha256()
    for name in sorted(examples):
        digest.update(name.encode() + examples[name].tobytes())
    return digest.hexdigest()


ALL = {"crop": 1, "flip": True, "mixup": 0.3, "label_smoothing": 0.1}


class TestBatch:
    def shown(self, corpus, batches, batch_size, seed=0):
        """Which training images the first batches show, in order."""
        pixels = [images.batch(corpus, seed, step, batch_size, 5)["images"] for step in range(batches)]
        first = np.concatenate(pixels)[:, 0, 0, 0]
        return (first * 255 * corpus.std[0] + corpus.mean[0] * 255).round().astype(int).tolist()

    def test_every_epoch_shows_each_image_once_in_its_own_order(self):
        rows = self.shown(corpus_of(), batches=23, batch_size=6)  # 138 = 6 epochs of 23
        epochs = [tuple(rows[start : start + 23]) for start in range(0, 138, 23)]
        assert all(sorted(epoch) == list(range(23)) for epoch in epochs) and len(set(epochs)) == 6

    def test_a_batch_larger_than_the_data_holds_several_epochs(self):
        rows = self.shown(corpus_of(), batches=1, batch_size=60)
        assert sorted(rows[:23]) == sorted(rows[23:46]) == list(range(23)) and len(set(rows[46:])) == 14

    def test_seeds_differ_and_batches_repeat_in_any_order(self):
        corpus = corpus_of(**ALL)
        draw = lambda seed, step: fingerprint(images.batch(corpus, seed, step, 6, 5))  # noqa: E731
        forwards = {(seed, step): draw(seed, step) for seed in range(2) for step in range(8)}
        images._order.cache_clear()  # as after a stop
        assert all(draw(*key) == forwards[key] for key in reversed(forwards)) and len(set(forwards.values())) == 16

    def test_same_bytes_in_another_process(self):
        code = (
            "from tests.tasks.test_images import *;"
            "print(fingerprint(images.batch(images.load(data_config(**ALL)), 3, 100, 32, 8)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == fingerprint(images.batch(images.load(data_config(**ALL)), 3, 100, 32, 8))

    def test_what_is_off_changes_nothing(self):
        corpus = corpus_of()
        found = images.batch(corpus, 0, 0, 23, 5)
        order = np.argsort(self.shown(corpus, 1, 23))
        want = (corpus.train.pixels / 255.0 - corpus.mean) / corpus.std
        np.testing.assert_allclose(found["images"][order], want, atol=1e-5)
        np.testing.assert_allclose(found["images"].mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(found["images"].std((0, 1, 2)), 1, rtol=1e-5)
        assert found["targets"][order].tolist() == np.eye(4)[corpus.train.labels].tolist()
        assert found["labels"][order].tolist() == corpus.train.labels.tolist()

    @pytest.mark.parametrize("size", [5, 8])
    def test_with_everything_shapes_and_sums_stay(self, size):
        found = images.batch(corpus_of(**ALL), 0, 0, 13, size)
        assert found["images"].shape == (13, size, size, 3) and found["images"].dtype == np.float32
        assert found["targets"].shape == (13, 4) and found["labels"].shape == (13,)
        np.testing.assert_allclose(found["targets"].sum(1), 1, rtol=1e-6)
        assert (found["targets"] > 0).all()


@pytest.mark.parametrize("size", [5, 9])
def test_the_judgement_is_not_augmented(size):
    corpus = corpus_of(**ALL)
    found, owners = images.validation(corpus, size)
    plain, _ = images.validation(corpus_of(), size)
    assert found["images"].shape == (11, size, size, 3) and owners.tolist() == list(range(11))
    np.testing.assert_array_equal(found["images"], plain["images"])
    assert found["targets"].tolist() == np.eye(4)[corpus.validation.labels].tolist()


def test_score_is_cross_entropy_against_soft_targets_and_right_answers():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float32)) + 3
    examples = {"images": np.zeros((2, 4, 4, 1)), "targets": np.array([[0, 0, 1], [0, 0.5, 0.5]]), "labels": [2, 1]}
    rngs = []
    model = lambda pixels, rng: rngs.append(rng) or jnp.asarray(logits)  # noqa: E731
    loss, count, right, weight = images.score(model, {k: jnp.asarray(v) for k, v in examples.items()}, rng="key")
    np.testing.assert_allclose(loss, [np.log(4), -(np.log(0.75) + np.log(0.125)) / 2], rtol=1e-6)
    assert count.tolist() == weight.tolist() == [1, 1] and right.tolist() == [0, 1] and rngs == ["key"]


class TestBaselines:
    def test_on_digits(self):
        found = images.describe(images.load(data_config()), 8)
        assert found["train_images"] == 1415 and found["channels"] == 1 and found["image_size"] == 8
        rates = found["baselines"]
        assert 0.1 < rates["majority"] < 0.11 and 0.84 < rates["nearest mean"] < rates["linear"] < 0.9

    def test_against_plain_formulas(self):
        corpus = corpus_of(count=60)
        x, y = ((part.pixels / 255.0 - corpus.mean) / corpus.std for part in (corpus.train, corpus.validation))
        x, y = x.reshape(60, -1), y.reshape(11, -1)
        labels, truth = corpus.train.labels, corpus.validation.labels
        means = np.stack([x[labels == c].mean(0) for c in range(4)])
        nearest = np.square(y[:, None] - means).sum(-1).argmin(1)
        # Ridge is least squares with one more row, sqrt(weight), for each feature.
        x, y = (np.append(z, np.ones((len(z), 1)), 1) for z in (x, y))
        more = np.sqrt(images.RIDGE * 60) * np.eye(x.shape[1])
        weights = np.linalg.lstsq(np.append(x, more, 0), np.append(np.eye(4)[labels], 0 * more[:, :4], 0), rcond=None)[
            0
        ]
        found = images.baselines(corpus, 5)
        assert found["nearest mean"] == np.mean(nearest == truth)
        assert found["linear"] == np.mean((y @ weights).argmax(1) == truth)

    def test_chunks_do_not_matter(self, monkeypatch):
        whole = images.baselines(corpus_of(), 5)
        monkeypatch.setattr(images, "CHUNK", 7)
        assert images.baselines(corpus_of(), 5) == whole


class FirstPixel:
    """Scores three classes by the first three pixels; every patch pays `paid` to the class token and the first patch."""

    special, class_token = 1, "yes"

    def __init__(self, paid=(0.0, 1.0), **structure):
        self.paid = jnp.array(paid)
        vars(self).update(structure)

    def __call__(self, pixels, rng=None):
        return 2.0 * pixels[:, 0, :3, 0]

    def attention_maps(self, pixels):
        return [jnp.zeros((len(pixels), 2, 10, 10)).at[..., :2].set(self.paid)]


def test_pictures_show_an_image_a_class_and_where_the_model_looks():
    corpus = corpus_of(classes=10)
    found = images.pictures(FirstPixel(), corpus, 6)
    assert found["images"].shape == (8, 6, 6, 3) and 0 <= found["images"].min() <= found["images"].max() <= 1
    assert found["labels"].tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert found["maps"].shape == (8, 3, 3)
    np.testing.assert_allclose(found["maps"][:, 0, 0], 1, rtol=1e-6)
    pixels = (np.asarray(found["images"]) - corpus.mean) / corpus.std
    np.testing.assert_array_equal(found["answers"], pixels[:, 0, :3, 0].argmax(1))
    share = np.exp(2 * pixels[:, 0, :3, 0])
    np.testing.assert_allclose(found["confidence"], share.max(1) / share.sum(1), rtol=1e-4)


@pytest.mark.parametrize("paid, shares", [((-0.3, 1.3), 0), ((0.2, 0.7), 0), ((np.nan, 1), 0), ((-1e-6, 1 + 1e-6), 1)])
def test_weights_that_are_no_shares_give_no_map(paid, shares):
    found = images.pictures(FirstPixel(paid), corpus_of(classes=10), 6)
    assert ("maps" in found) == shares and found["answers"].shape == found["confidence"].shape == (8,)


def test_the_model_says_how_its_maps_belong_together():
    """6 special tokens and a grid of 2 x 2; two maps a residual, of which the first passes on what the second reads."""
    model = FirstPixel((0.0, 0.0), special=6, class_token=None, maps_per_residual=2)
    to_first = jnp.zeros((10, 10)).at[:, 6].set(1)
    model.attention_maps = lambda pixels: [
        jnp.broadcast_to(m, (len(pixels), 1, 10, 10)) for m in (to_first, jnp.eye(10))
    ]
    found = images.pictures(model, corpus_of(classes=10), 6)
    np.testing.assert_allclose(found["maps"][0], [[5 / 8, 1 / 8], [1 / 8, 1 / 8]], rtol=1e-6)


def test_the_data_decide_sizes():
    corpus = images.load(data_config(image_size=12))
    ends = {"model.channels": 1, "model.num_classes": 10, "model.head": "classes"}
    assert images.fields(corpus) == {"data.image_size": 12} | ends
    assert images.fields(images.load(data_config()))["data.image_size"] == 8 and images.tokens(8) == 64


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "text"}, "config.data.name='text': unknown, want one of digits, mnist, fashion-mnist, cifar-10, c"),
        ({"name": "path"}, "config.data.path='': want a folder that holds one folder a class"),
        ({"path": "nowhere"}, "config.data.path='nowhere': want a folder that holds one folder a class"),
        ({"path": "tests"}, "config.data.image_size=0: a folder's images have many sizes; write --config.data.image_"),
        ({"name": "mnist", "path": "x"}, "config.data.path='x': mnist does not read it"),
        ({"dir": "x"}, "config.data.dir='x': digits does not read it"),
        ({"path": "x", "dir": "y"}, "config.data.dir='y': path does not read it"),
        (
            {"name": "cifar-10"},
            "config.data.dir is empty, want the folder that holds cifar-10-binary.tar.gz of cifar-10",
        ),
        (
            {"name": "mnist", "dir": "x"},
            "x/mnist/train-images-idx3-ubyte.gz is missing, and so is x/train-images-idx3-",
        ),
        ({"crop": 8}, "config.data.crop=8: want less than the image_size of 8"),
    ],
)
def test_wrong_config_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as caught:
        images.load(data_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
