"""Swin: published sizes, what a window lets through, stacked blocks, stochastic depth, versions 1 and 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from experiment import optimizers
from models.block import drop_path, drop_path_rates
from models.config import check
from models.swin import PatchMerging, Stage, Swin
from models.vision import PatchEmbedding
from models.vision_config import preset

EPS = np.finfo(np.float32).eps
ATTENTION = {"name": "shifted_window", "window": 4, "shift": 1, "relative_bias": 1}


def config(attention=(), **changes):
    fields = {"channels": 3, "num_classes": 5, "patch_size": 1, "width": 8, "depths": (1, 1), "num_heads": (2, 2)}
    return preset("swin", "tiny", **fields | {"mlp_ratio": 2.0, "attention": ATTENTION | dict(attention)} | changes)


class Built:
    """A model whose parameters are all random, so that each of them counts; called as one compiled program."""

    def __init__(self, config, length=8):
        self.graph, state = nnx.split(Swin(config, length=length, rngs=nnx.Rngs(0)))
        leaves, tree = jax.tree.flatten(state)
        noise = np.random.default_rng(0)
        leaves = [jnp.asarray(x + 0.3 * noise.standard_normal(x.shape), jnp.float32) for x in leaves]
        self.state = jax.tree.unflatten(tree, leaves)
        self.call = jax.jit(lambda state, x, rng=None: nnx.merge(self.graph, state)(x, rng=rng))

    def run(self, fn, *args):
        """`fn(model, *args)`."""
        return jax.jit(lambda state, *args: fn(nnx.merge(self.graph, state), *args))(self.state, *args)


def images(rows=8, columns=8, batch=2, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, rows, columns, 3))


@pytest.mark.parametrize("size, count", [("T", 28_288_354), ("S", 49_606_258), ("B", 87_768_224), ("L", 196_532_476)])
def test_published_numbers_of_parameters(size, count):
    published = preset("swin", size, channels=3, num_classes=1000)
    state = nnx.state(nnx.eval_shape(lambda: Swin(published, length=224, rngs=nnx.Rngs(0))))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state)) == count


@pytest.mark.parametrize("shift", [0, 1])
def test_only_the_shift_lets_information_cross_windows(shift):
    """Token (3, 3) lies in the middle of a moved window, (0, 0) in the corner: nothing leads it round to the far side."""

    def reached(model, x):
        tokens = lambda x: model.features(x)[1][0, jnp.array([0, 3]), jnp.array([0, 3])]  # noqa: E731
        return jnp.abs(jax.jacrev(tokens)(x)).max((1, 2, 5)) > 0

    one = Built(config(attention={"shift": shift}, depths=(2,), num_heads=(2,)))
    for token, side in zip(one.run(reached, images(batch=1)), (4, 8 if shift else 4), strict=True):
        assert token[:side, :side].all() and token.sum() == side**2


def test_padding_of_windows_has_no_influence():
    """Without a shift the windows that lie inside a larger image know nothing of its ragged edge."""
    large, features = images(10, 9), lambda model, x: model.features(x)[1]  # noqa: E731
    model = Built(config(attention={"shift": 0}, depths=(1,), num_heads=(2,)))
    whole, part = model.run(features, large), model.run(features, large[:, :8, :8])
    np.testing.assert_allclose(whole[:, :8, :8], part, atol=20 * EPS * np.abs(part).max())


@pytest.mark.parametrize("version", [1, 2])
def test_blocks_in_a_loop_are_blocks_one_by_one(version):
    """Depth 3: a pair and one left over."""

    def one_by_one(model, x):
        x = model.embed(x, None)
        for i, window_and_shift in enumerate([(4, 0), (4, 2), (4, 0)]):
            x = model.stages[0].block(i)(x, None, 0.0, *window_and_shift)
        return model.head(model.norm(x).mean((1, 2)))

    model = Built(config(version=version, depths=(3,), num_heads=(2,)))
    ours, wanted = model.run(lambda model, x: (model(x), one_by_one(model, x)), images())
    np.testing.assert_allclose(ours, wanted, atol=50 * EPS * np.abs(wanted).max())


def gradient(**changes):
    model = Built(config(depths=(2,), num_heads=(2,), **changes))
    return jax.jit(jax.grad(lambda state: jnp.mean(model.call(state, images()) ** 2)))(model.state)


@pytest.mark.parametrize("version", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_parameter_learns(version):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(version=version)):
        if "key_bias" not in (name := jax.tree_util.keystr(path)):  # adds one number to all scores of a query
            assert (np.abs(leaf).reshape(2 if "blocks" in name else 1, -1).max(-1) > 0).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_recomputation_changes_no_number(version):
    for a, b in zip(*(jax.tree.leaves(gradient(version=version, remat=remat)) for remat in (True, False)), strict=True):
        np.testing.assert_allclose(a, b, atol=100 * EPS * max(np.abs(b).max(), 1e-3))


def test_the_program_does_not_grow_with_depth():
    def size(depth):
        graph, state = nnx.split(nnx.eval_shape(lambda: Swin(config(depths=(depth, 1)), length=8, rngs=nnx.Rngs(0))))
        run = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
        return len(run.lower(state, images()).as_text().splitlines())

    assert size(18) == size(6)


@pytest.mark.parametrize("version", [1, 2])
def test_attention_maps_are_the_weights(version):
    """Weights times values are what attention gives, in both blocks of the first stage."""

    def compare(model, x):
        maps, x, pairs = model.attention_maps(x), model.embed(x, None), []
        for i, window_and_shift in enumerate([(4, 0), (4, 2)]):
            block = model.stages[0].block(i)
            query, key, value = block.attention.heads(block.before(x))
            attended = block.attention.attend(query, key, value, *window_and_shift)
            flat = lambda heads: heads.reshape(2, 63, 2, 4)  # noqa: E731
            pairs.append((flat(attended), jnp.einsum("bnts,bsnh->btnh", maps[i], flat(value))))
            x = block(x, None, 0.0, *window_and_shift)
        return maps, pairs

    maps, pairs = Built(config(version=version, depths=(2, 1))).run(compare, images(9, 7))
    assert [m.shape for m in maps] == [(2, 2, 63, 63), (2, 2, 63, 63), (2, 2, 20, 20)]
    for weights in maps:
        np.testing.assert_allclose(weights.sum(-1), 1, atol=10 * EPS)
    for attended, wanted in pairs:
        np.testing.assert_allclose(attended, wanted, atol=20 * EPS * np.abs(wanted).max())


@pytest.mark.parametrize("version", [1, 2])
def test_a_grid_smaller_than_the_window_is_one_window(version):
    """Training decides the table; a smaller image uses the biases of the distances that it has."""
    built = Built(config(attention={"window": 7}, version=version, depths=(2,), num_heads=(2,)))
    stage = nnx.merge(built.graph, built.state).stages[0]
    assert stage.window_and_shift(1, images(8, 8)) == (7, 3)
    assert stage.window_and_shift(1, images(7, 8)) == (7, 0)
    assert stage.window_and_shift(1, images(5, 3)) == (3, 0)
    small, large = built.run(lambda model: [model.stages[0].block(0).attention.position(w) for w in (3, 7)])
    places = [(row, column) for row in range(7) for column in range(7)]
    kept = np.array([i for i, place in enumerate(places) if max(place) < 3])
    np.testing.assert_allclose(small, large[:, kept][:, :, kept], atol=20 * EPS * 16)


def test_the_window_of_a_stage_is_no_larger_than_its_training_grid():
    model = Swin(config(attention={"window": 7}), length=8, rngs=nnx.Rngs(0))
    assert [stage.window for stage in model.stages] == [7, 4]
    assert model.stages[1].blocks.attention.position.relative_bias.shape == (1, 7 * 7, 2)


@pytest.mark.parametrize("rows, columns", [(1, 1), (29, 31)])
def test_any_size_of_image(rows, columns):
    model = Built(config(patch_size=2))
    logits = model.call(model.state, images(rows, columns))
    assert logits.shape == (2, 5) and np.isfinite(logits).all()
    features = jax.eval_shape(nnx.merge(model.graph, model.state).features, images(rows, columns))
    h, w = -(-rows // 2), -(-columns // 2)
    assert [x.shape for x in features] == [(2, h, w, 8), (2, h, w, 8), (2, -(-h // 2), -(-w // 2), 16)]


def test_a_class_for_every_pixel():
    model = Built(config(patch_size=2, head="pixels", head_width=6))
    assert "norm" not in model.state  # nothing reads it
    logits = model.call(model.state, images(9, 7))
    assert logits.shape == (2, 9, 7, 5) and logits.dtype == jnp.float32
    assert np.ptp(logits, (1, 2)).min() > 0.01


def test_bfloat16_stays_near_float32():
    wide, narrow = (
        Built(config(dtype=dtype, drop_path=0.3, depths=(2,), num_heads=(2,))) for dtype in ("float32", "bfloat16")
    )
    wanted, ours = (model.call(model.state, images(), jax.random.key(0)) for model in (wide, narrow))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, wanted, atol=0.05 * np.abs(wanted).max())


def test_version_2_starts_as_the_identity():
    model = Swin(config(version=2), length=8, rngs=nnx.Rngs(0))
    embedding, first, _ = jax.jit(model.features)(images())
    np.testing.assert_array_equal(embedding, first)


def test_options_leave_out_parameters():
    count = lambda **attention: len(  # noqa: E731
        jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: Swin(config(**attention), length=8, rngs=nnx.Rngs(0)))))
    )
    assert count(attention={"relative_bias": 0}) == count() - 2  # a table in each stage
    assert count(attention={"shift": 0}) == count()


def test_stochastic_depth_leaves_out_branches_of_whole_examples():
    """Each example gets the identity or twice the branch, of the attention and of the MLP, at a rate of a half."""
    two = config(drop_path=0.5, depths=(2, 1))
    stage = Stage(two, 0, grid=8, rngs=nnx.Rngs(0))
    assert stage.rates == (0.0, 0.25)
    block = stage.block(0)
    x = jax.random.normal(jax.random.key(0), (32, 4, 4, 8))

    @jax.jit
    def compare(block, x):
        mix = 2 * block.attention(block.attention_norm(x), 4, 0, None)
        feed = lambda x: 2 * block.mlp(block.mlp_norm(x))  # noqa: E731
        choices = jnp.stack([x, x + mix, x + feed(x), x + mix + feed(x + mix)])
        return jnp.abs(choices - block(x, jax.random.key(1), 0.5, 4, 0)).max((2, 3, 4))

    errors = compare(block, x)
    assert errors.min(0).max() < 1e-5
    assert set(np.asarray(errors.argmin(0))) == {0, 1, 2, 3}


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_masks_are_drawn_for_stochastic_depth_only(rate):
    model = nnx.eval_shape(lambda: Swin(config(drop_path=rate, depths=(2, 1)), length=8, rngs=nnx.Rngs(0)))
    program = str(jax.make_jaxpr(lambda model, x, rng: model(x, rng=rng))(model, images(), jax.random.key(0)))
    assert ("random_bits" in program) == (rate > 0)


def test_drop_path_keeps_the_mean():
    kept = drop_path(jnp.ones((4096, 2)), 0.25, jax.random.key(0))
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)} and (kept[:, 0] == kept[:, 1]).all()
    assert abs(kept.mean() - 1) < 4 * (0.25 / 0.75 / 4096) ** 0.5
    assert drop_path_rates(ConfigDict({"drop_path": 0.3}), 4) == pytest.approx((0, 0.1, 0.2, 0.3))


def test_dropout_is_a_function_of_the_key():
    model = Built(config(dropout=0.1, attention_dropout=0.1, drop_path=0.1, depths=(1,), num_heads=(2,)))
    one, again, other = (model.call(model.state, images(), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


def test_patches_are_a_strided_convolution():
    embedding = PatchEmbedding(config(patch_size=3), length=8, rngs=nnx.Rngs(0))
    embedding.bias[...] = jnp.arange(8.0)
    x = images(8, 5)
    kernel = embedding.embedding[...].reshape(3, 3, 3, 8)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    wanted = jax.lax.conv_general_dilated(padded, kernel, (3, 3), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(embedding(x), wanted + jnp.arange(8.0), atol=50 * EPS)


@pytest.mark.parametrize("version", [1, 2])
def test_merging_reads_a_square_column_by_column(version):
    merge = PatchMerging(2, config(version=version), rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 3, 2, 2)))
    x = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
    weights = np.asarray(merge.reduction[...])

    def norm(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    for row in range(2):
        square = np.concatenate([x[0, 2 * row + r, c] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))])
        wanted = norm(square @ weights) if version == 2 else norm(square) @ weights
        np.testing.assert_allclose(merge(jnp.asarray(x))[0, row, 0], wanted, atol=2e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_weight_decay_and_muon_take_matrices_only(version):
    params = nnx.state(nnx.eval_shape(lambda: Swin(config(version=version), length=8, rngs=nnx.Rngs(0))), nnx.Param)

    def names(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, MuonDimensionNumbers))
        return {optimizers._names(path)[-1] for path, chosen in leaves if chosen}

    blocks = {"query", "key", "value", "out", "into"}
    assert names(optimizers.is_matrix(params)) == blocks | {"reduction", "embedding", "classes"}
    assert names(optimizers._dimension_numbers(params)) == blocks | {"reduction"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 3}, "model.version: wanted 1 or 2, got 3; write 1"),
        ({"depths": ()}, "model.depths: wanted a positive integer for each stage, got (); write (2, 2)"),
        ({"depths": (2, 0)}, "model.depths: wanted a positive integer for each stage, got (2, 0); write (2, 2)"),
        ({"num_heads": (2,)}, "model.num_heads: wanted one for each of the 2 stages in depths, got (2,)"),
        ({"num_heads": (2, 3)}, "model.num_heads: stage 1 has a width of 16, no multiple of 3; change one"),
        ({"mlp_ratio": 0.0}, "model.mlp_ratio: wanted at least 1 / width, got 0.0; write 4.0"),
        ({"head_width": 7}, "model.head_width: got 7, but head='classes' has none; write 0"),
        ({"head": "pixels"}, "model.head_width: wanted at least 1, got 0"),
        ({"attention": {"name": "full"}}, "model.attention.name: this model has 'shifted_window' only, got 'full'"),
        (
            {"attention": ATTENTION | {"window": 0}},
            "model.attention.window: wanted an integer from 1 to 2147483647, got 0; write 7",
        ),
        (
            {"attention": ATTENTION | {"stride": 2}},
            "model.attention.stride: 'shifted_window' has no such setting; it takes window, shift, relative_bias",
        ),
        ({"channels": 0}, "model.channels: 0 stands for what the data have, and none were read; write the number"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError) as error:
        Swin(config(**changes), length=8, rngs=nnx.Rngs(0))
    assert str(error.value) == message


def test_a_config_whose_classes_the_data_know_passes():
    check(config(channels=0, num_classes=0), 8)


@pytest.mark.parametrize(
    "x, message",
    [
        (jnp.zeros((8, 8, 3)), "images: wanted [B, height, width, 3], got shape [8, 8, 3]"),
        (jnp.zeros((2, 8, 8, 1)), "images: wanted [B, height, width, 3], got shape [2, 8, 8, 1]"),
        (jnp.zeros((2, 8, 8, 3), jnp.uint8), "images: wanted floats, got uint8; divide pixels by 255.0"),
    ],
)
def test_images_of_another_kind_are_refused(x, message):
    model = Swin(config(), length=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError) as error:
        model(x)
    assert str(error.value) == message
