"""Pixels: shades by exact arithmetic, rows line by line, batches that repeat anywhere, refusals in one line."""

import os
import subprocess
import sys
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks import image_files, images, pixels
from tasks.image_files import Images


def data_config(**changes):
    return ConfigDict({"name": "digits", "path": "", "dir": "", "length": 64, **changes})


class TestGrey:
    def test_the_weighed_sum_of_colours_rounded_down(self):
        colours = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
        weights = Fraction("0.2989"), Fraction("0.5870"), Fraction("0.1140")
        wanted = [
            int(Fraction("255.5") * sum(w * int(x) for w, x in zip(weights, colour, strict=True)) / 255)
            for colour in colours.reshape(-1, 3)
        ]
        assert pixels.grey(colours).ravel().tolist() == wanted and pixels.grey(colours).dtype == np.uint8

    def test_the_published_float32_is_within_one_shade_and_nearly_always_equal(self):
        colours = np.random.default_rng(1).integers(0, 256, (100, 10, 100, 3), dtype=np.uint8)
        unit = colours.astype(np.float32) * np.float32(1 / 255)
        shades = (unit @ np.float32([0.2989, 0.5870, 0.1140]) * np.float32(255.5)).astype(np.uint8)
        off = pixels.grey(colours).astype(int) - shades
        assert np.abs(off).max() <= 1 and (off != 0).mean() < 1e-4

    def test_grey_stays_grey(self):
        shades = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        assert (pixels.grey(shades) == shades[..., 0]).all()
        assert (pixels.grey(shades.repeat(3, -1)) == shades[..., 0]).all()

    def test_chunks_do_not_matter(self, monkeypatch):
        colours = np.random.default_rng(2).integers(0, 256, (23, 2, 3, 3), dtype=np.uint8)
        whole = pixels.grey(colours)
        monkeypatch.setattr(pixels, "CHUNK", 7)
        assert (pixels.grey(colours) == whole).all()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Files of CIFAR-10's format with four images each, taken for the published ones."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(image_files, "CIFAR_MD5", {})
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    records = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records[name] = rng.integers(0, 256, (4, 1 + 3072), dtype=np.uint8)
        records[name][:, 0] = [0, 3, 7, 9]
        (folder / name).write_bytes(records[name].tobytes())
    return tmp_path, records


def test_cifar_is_read_in_grey_line_by_line(cifar):
    folder, records = cifar
    corpus = pixels.load(data_config(name="cifar-10", dir=str(folder), length=1024))
    assert len(corpus.train.labels) == 20 and len(corpus.classes) == 10
    examples, owners = pixels.validation(corpus, 1024)
    colours = records["test_batch.bin"][:, 1:].reshape(4, 3, 1024).astype(np.int64)  # planes of 32 lines each
    wanted = (colours * np.array([2989, 5870, 1140])[:, None]).sum(1) * 2555 // (2550 * 10_000)
    assert examples["tokens"].dtype == np.uint8 and (examples["tokens"] == wanted).all()
    assert examples["labels"].tolist() == [0, 3, 7, 9] and owners.tolist() == [0, 1, 2, 3]


def test_a_folder_is_resized_to_the_length(tmp_path):
    from PIL import Image

    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (20, 14), (i, i, 10 * i + 100 * (name == "light"))).save(tmp_path / name / f"{i}.png")
    corpus = pixels.load(data_config(path=str(tmp_path), length=49))
    assert corpus.image_size == 7 and corpus.classes == ("dark", "light")
    assert pixels.batch(corpus, 0, 0, 3, 49)["tokens"].shape == (3, 49)


class TestDigits:
    def test_examples_are_the_images_of_the_other_task(self):
        corpus = pixels.load(data_config())
        other = image_files.SOURCES["digits"](None)
        examples, owners = pixels.validation(corpus, 64)
        assert (examples["tokens"] == other[2].pixels.reshape(-1, 64)).all() and len(owners) == 382
        assert (examples["labels"] == other[2].labels).all() and (owners == np.arange(382)).all()

    def test_baselines_are_those_of_the_other_task(self):
        found = pixels.describe(pixels.load(data_config()), 64)
        fields = {"image_size": 8, "crop": 0, "flip": False, "mixup": 0.0, "label_smoothing": 0.0}
        other = images.load(ConfigDict({"name": "digits", "path": "", "dir": "", **fields}))
        assert found["baselines"] == images.baselines(other, 8)
        assert found["baselines"]["majority"] < 0.12 < 0.8 < found["baselines"]["linear"]
        assert found["train_images"] == 1415 and found["classes"] == list("0123456789")

    def test_batches_repeat_reach_every_image_and_stay_in_training(self):
        corpus = pixels.load(data_config())
        draw = lambda seed, step: pixels.batch(corpus, seed, step, 100, 64)  # noqa: E731
        keys = [(seed, step) for seed in range(2) for step in range(3)]
        assert len({draw(*key)["tokens"].tobytes() for key in keys}) == 6
        assert all((draw(*key)["labels"] == draw(*key)["labels"]).all() for key in keys)
        known = {(row.tobytes(), label) for row, label in zip(corpus.train.pixels, corpus.train.labels, strict=True)}
        seen = [draw(0, step) for step in range(150)]
        seen = {(row.tobytes(), label) for x in seen for row, label in zip(x["tokens"], x["labels"], strict=True)}
        assert seen == known

    def test_no_image_is_on_both_sides(self):
        corpus = pixels.load(data_config())
        train, held = ({row.tobytes() for row in part.pixels} for part in (corpus.train, corpus.validation))
        assert not train & held and (len(train), len(held)) == (1415, 382)

    def test_same_in_another_process(self):
        code = (
            "from tests.tasks.test_pixels import data_config, pixels; c = pixels.load(data_config());"
            "print(c.sha256, pixels.batch(c, 3, 5, 7, 64)['tokens'].sum())"
        )
        environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
        program = [sys.executable, "-c", code]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
        corpus = pixels.load(data_config())
        assert done.stdout.split() == [corpus.sha256, str(pixels.batch(corpus, 3, 5, 7, 64)["tokens"].sum())]


def test_score_is_cross_entropy_and_right_answers():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]))
    given = []
    model = lambda tokens, rng: given.append((tokens.dtype, rng)) or logits  # noqa: E731
    examples = {"tokens": jnp.zeros((2, 9), jnp.uint8), "labels": jnp.array([2, 1])}
    loss, count, right, weight = pixels.score(model, examples, rng="key")
    np.testing.assert_allclose(loss, [np.log(4), -np.log(0.75)], rtol=1e-6)
    assert right.tolist() == [0, 1] and count.tolist() == weight.tolist() == [1, 1]
    assert given == [(jnp.int32, "key")]


class FirstPixel:
    """An encoder that scores three classes by the first three shades; its tokens look at the first `looked` places."""

    def __init__(self, pool):
        self.config = ConfigDict({"pool": pool})
        self.seen = []

    def __call__(self, tokens, rng=None):
        return tokens[:, :3] / 100.0

    def attention_maps(self, tokens):
        count = tokens.shape[1] + (self.config.pool == "cls")
        last = jnp.zeros((len(tokens), 1, count, count)).at[..., -1].set(1.0)  # of the last pixel alone
        return [last]


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_pictures_show_images_answers_and_where_it_looks(pool):
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 256, (30, 6, 6, 1), dtype=np.uint8)
    halves = [Images(shades[:20], np.arange(20) % 4), Images(shades[20:], np.arange(10) % 4)]
    corpus = images.corpus_of(tuple("abcd"), *halves, 0, False, 0.0, 0.0)
    found = pixels.pictures(FirstPixel(pool), corpus, 36)
    assert found["labels"].tolist() == [0, 1, 2, 3] and found["images"].shape == (4, 6, 6, 1)
    tokens = np.round(np.asarray(found["images"]) * 255).reshape(4, 36)  # the very shades come back
    assert (tokens == shades[20:24].reshape(4, 36)).all()
    assert found["answers"].tolist() == tokens[:, :3].argmax(1).tolist()
    assert found["maps"].shape == (4, 6, 6) and (found["maps"].reshape(4, 36).argmax(1) == 35).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "text"}, "config.data.name='text': unknown, want one of digits, mnist, fashion-mnist, cifar-10, c"),
        ({"length": 60}, "config.data.length=60: want rows times columns of a square, 49 or 64"),
        ({"length": 256}, "the images of digits have 8 x 8 pixels; write --config.data.length=64"),
        ({"dir": "x"}, "config.data.dir='x': digits does not read it"),
        ({"path": "x", "dir": "y"}, "config.data.dir='y': path does not read it"),
        ({"name": "cifar-10", "path": "x"}, "config.data.path='x': cifar-10 does not read it"),
        ({"name": "cifar-10"}, "config.data.dir is empty, want the folder that holds cifar-10-binary.tar.gz"),
        ({"path": "nowhere"}, "config.data.path='nowhere': want a folder that holds one folder a class"),
    ],
)
def test_wrong_config_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError) as caught:
        pixels.load(data_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_another_length_is_refused():
    corpus = pixels.load(data_config())
    for call in (lambda: pixels.batch(corpus, 0, 0, 1, 81), lambda: pixels.validation(corpus, 81)):
        with pytest.raises(ValueError, match="length=81: images of 8 x 8 have 64 pixels"):
            call()
