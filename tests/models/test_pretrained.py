"""Models of transformers, loaded from the folders it writes: whole-model goldens, and what is wrong with a folder."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import pretrained

FOLDERS = Path(__file__).parents[1] / "goldens" / "hf"


def golden(name, case="io"):
    """(images [B, height, width, channels], the peer's outputs by name)."""
    arrays = np.load(FOLDERS / name / f"{case}.npz")
    images = jnp.asarray(np.moveaxis(arrays["in.pixel_values"], 1, -1))
    return images, {key.removeprefix("out."): arrays[key] for key in arrays if key.startswith("out.")}


def assert_near(ours, wanted):
    """Within 32 roundings of the largest number; the peer's own float32 logits are up to 5 from its float64 ones.

    Version 2 of Swin is at 20: ours divides by the sums of rows after the product with the values, the peer before it,
    and at scores of up to 100 the two round differently.
    """
    atol = 32 * np.finfo(np.float32).eps * np.abs(wanted).max()
    np.testing.assert_allclose(np.reshape(ours, wanted.shape), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_swin(name):
    """The peer counts patch merging to the stage before it; its last hidden state is the one before the norm.

    `swinv2` was made for this test: 12 x 12, 6 x 6 and 3 x 3 patches and windows of 6, moved in the first stage.
    """
    images, wanted = golden(name)
    model = pretrained.load(FOLDERS / name)

    @jax.jit
    def run(model, images):
        first, *stages = model.features(images)
        merged = [merge(x) for merge, x in zip(model.merges, stages, strict=False)]
        return model(images), [first, *merged, stages[-1]]

    logits, hidden = run(model, images)
    assert_near(logits, wanted["logits"])
    for i, x in enumerate(hidden):
        assert_near(x, wanted[f"hidden_{i}"])


def test_vit():
    """Hidden states are those of all tokens, before the last norm; ours of the patches, without the class token."""
    images, wanted = golden("vit")
    model = pretrained.load(FOLDERS / "vit")
    assert_near(model(images), wanted["logits"])
    for i, ours in enumerate(model.features(images)):
        assert_near(ours.reshape(len(ours), -1, ours.shape[-1]), wanted[f"hidden_{i}"][:, 1:])


def test_vit_at_another_resolution():
    """24 x 48 pixels for weights of 32 x 32: transformers with interpolate_pos_encoding=True, made for this test."""
    images, wanted = golden("vit", "resized")
    assert_near(pretrained.load(FOLDERS / "vit")(images), wanted["logits"])


@pytest.fixture
def folder(tmp_path):
    """Returns a function: changes of a Swin's config and tensors -> a folder with them."""

    def build(settings=(), tensors=()):
        path = Path(shutil.copytree(FOLDERS / "swin", tmp_path / "swin"))
        config = json.loads((path / "config.json").read_text()) | dict(settings)
        (path / "config.json").write_text(json.dumps(config))
        changed = load_file(path / "model.safetensors") | dict(tensors)
        save_file({k: v for k, v in changed.items() if v is not None}, path / "model.safetensors")
        return path

    return build


def test_buffers_of_older_files_are_passed_over(folder):
    name = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    pretrained.load(folder(tensors={name: np.zeros((16, 16), int)}))


@pytest.mark.parametrize(
    "settings, tensors, message",
    [
        ({"model_type": "resnet"}, {}, "model_type 'resnet' is unknown; known are"),
        ({"hidden_act": "relu"}, {}, "config.json: hidden_act = 'relu' is not supported; 'gelu' is"),
        ({"qkv_bias": False}, {}, "config.json: qkv_bias = False is not supported; True is"),
        (
            {"pretrained_window_sizes": [8, 8]},
            {},
            "config.json: pretrained_window_sizes other than 0 are not supported",
        ),
        ({}, {"swin.layernorm.bias": None}, "model.safetensors: missing swin.layernorm.bias"),
        (
            {},
            {"swin.pooler.weight": np.zeros(3)},
            "model.safetensors: swin.pooler.weight belong to no parameter of this",
        ),
        (
            {},
            {"swin.layernorm.bias": np.zeros(33, np.float32)},
            "model.safetensors: swin.layernorm.bias has shape [33], the config wants [32]",
        ),
    ],
)
def test_refusals(folder, settings, tensors, message):
    with pytest.raises(ValueError) as error:
        pretrained.load(folder(settings, tensors))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_its_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        pretrained.load(tmp_path)
