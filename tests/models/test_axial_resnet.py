"""Axial-ResNet: its blocks against the paper's formulas, batch norm's statistics, sizes of images, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from experiment.optimizers import is_matrix
from models.axial import AxialResNet, Block
from models.vision_config import SIZES, check

FIELDS = {
    "name": "axial",
    "channels": 1,
    "num_classes": 5,
    "patch_size": 1,
    "dropout": 0.0,
    "drop_path": 0.0,
    "norm_epsilon": 1e-5,
    "dtype": "float32",
    "remat": False,
    "stem": "patch",
    "width": 4,
    "depths": (1,),
    "num_heads": 2,
    "head": "classes",
    "head_width": 0,
}
EPS = np.finfo(np.float32).eps
ROWS, COLUMNS = 3, 5


def config(*, position_sensitive=1, span=0, **changes):
    attention = {"name": "axial", "position_sensitive": position_sensitive, "span": span}
    return ConfigDict(FIELDS | {"attention": attention} | changes)


def stirred(module, size=0.5):
    """`module` with random numbers for all parameters and statistics: its scales of 0 would hide faults."""
    leaves, structure = jax.tree.flatten(module)
    rng = np.random.default_rng(0)
    variances = [path[-2].name == "var" for path, _ in jax.tree_util.tree_leaves_with_path(module)]
    new = [
        jnp.asarray(rng.normal(size=x.shape) ** 2 + 0.5 if positive else x + size * rng.normal(size=x.shape), x.dtype)
        for x, positive in zip(leaves, variances, strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def pure(module, kind):
    return nnx.to_pure_dict(nnx.state(module, kind))


@jax.jit
def run(module, x, rng=None):
    """(what a model or a block gives, its statistics afterwards)."""
    out = module(x, 0.0, rng) if isinstance(module, Block) else module(x, rng=rng)
    return out, pure(module, nnx.BatchStat)


def images(rows, columns, batch=2):
    return jax.random.normal(jax.random.key(rows), (batch, rows, columns, 1))


class Oracle:
    """The formulas of a block, in float64 NumPy, position by position. `statistics` collects what batch norms use."""

    def __init__(self, block, training):
        self.block, self.training, self.statistics = block, training, {}

    def norm(self, path, x):
        """Batch norm over all but the last axis; NaN marks pairs out of reach."""
        layer = self.block
        for name in path:
            layer = layer[name] if isinstance(name, int) else getattr(layer, name)
        mean, var = (np.asarray(each[...], np.float64) for each in (layer.mean, layer.var))
        if self.training:
            flat = x.reshape(-1, x.shape[-1])
            batch = np.nanmean(flat, 0), np.nanvar(flat, 0)
            self.statistics[path] = [0.9 * old + 0.1 * new for old, new in zip((mean, var), batch, strict=True)]
            mean, var = batch
        return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])

    def lines(self, name, x, reach):
        """One layer on `x [..., T, C]`: (output, weights [..., N, T, T])."""
        layer, T = getattr(self.block, name), x.shape[-2]
        N = layer.query.shape[1]
        q, k, v = (
            self.norm(
                (name, f"{kind}_norm"), x @ np.asarray(getattr(layer, kind), np.float64).reshape(x.shape[-1], -1)
            ).reshape(*x.shape[:-1], N, -1)  # ... T N H
            for kind in ("query", "key", "value")
        )
        tables = [np.asarray(getattr(layer, f"{kind}_table")[...], np.float64) for kind in ("query", "key", "value")]
        middle = len(tables[0]) // 2
        terms = np.full((3, *x.shape[:-2], T, T, N), np.nan)
        for o in range(T):
            for p in range(max(0, o - reach), min(T, o + reach + 1)):
                rq, rk, _ = (table[p - o + middle] for table in tables)
                terms[0, ..., o, p, :] = (q[..., o, :, :] * k[..., p, :, :]).sum(-1)
                terms[1, ..., o, p, :] = q[..., o, :, :] @ rq
                terms[2, ..., o, p, :] = k[..., p, :, :] @ rk
        scores = sum(self.norm((name, "score_norms", i), term) for i, term in enumerate(terms))
        scores = np.where(np.isnan(scores), -np.inf, scores)
        weights = np.exp(scores - scores.max(-2, keepdims=True))
        weights /= weights.sum(-2, keepdims=True)
        content, place = np.zeros_like(v), np.zeros_like(v)
        for o in range(T):
            for p in range(max(0, o - reach), min(T, o + reach + 1)):
                w = weights[..., o, p, :, None]
                content[..., o, :, :] += w * v[..., p, :, :]
                place[..., o, :, :] += w * tables[2][p - o + middle]
        out = sum(self.norm((name, "out_norms", i), term.reshape(x.shape)) for i, term in enumerate((content, place)))
        return out, np.moveaxis(weights, -1, -3)

    def __call__(self, x, reach):
        block, relu = self.block, lambda x: np.maximum(x, 0)
        matrix = lambda name: np.asarray(getattr(block, name), np.float64)  # noqa: E731
        y = relu(self.norm(("into_norm",), x @ matrix("into")))
        y, down = self.lines("height", y.swapaxes(1, 2), reach)
        y, along = self.lines("width", y.swapaxes(1, 2), reach)
        s = block.stride
        cells = [
            [y[:, i : i + s, j : j + s].mean((1, 2)) for j in range(0, y.shape[2], s)] for i in range(0, y.shape[1], s)
        ]
        y = relu(np.stack([np.stack(row, 1) for row in cells], 1))
        y = self.norm(("out_norm",), y @ matrix("out"))
        if block.shortcuts:
            x = self.norm(("shortcut_norm",), x[:, ::s, ::s] @ matrix("shortcut"))
        return relu(x + y), (down, along)


@pytest.mark.parametrize(
    "training, span, length, reach, stride, width_in",
    [
        pytest.param(True, 0, 5, 4, 2, 3, id="tables of the training size, cut for the height"),
        pytest.param(False, 0, 3, 2, 1, 16, id="lines longer than the tables, and x as the shortcut"),
        pytest.param(True, 3, 7, 1, 2, 3, id="span"),
    ],
)
def test_block_equals_the_formulas(training, span, length, reach, stride, width_in):
    block = stirred(Block(config(span=span), width_in, 8, length, stride, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, ROWS, COLUMNS, width_in))
    (out, maps), statistics = run(block, x, jax.random.key(1) if training else None)
    oracle = Oracle(block, training)
    wanted, wanted_maps = oracle(np.asarray(x, np.float64), reach)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=500 * EPS * wanted.max())
    for got, weights in zip(maps, wanted_maps, strict=True):
        np.testing.assert_allclose(got, weights, rtol=0, atol=500 * EPS)  # scores up to 40 round to 40 EPS each
    assert out.shape == (2, -(-ROWS // stride), -(-COLUMNS // stride), 16) and (wanted > 0).mean() > 0.2
    before = pure(block, nnx.BatchStat)
    if not training:
        jax.tree.map(np.testing.assert_array_equal, statistics, before)
    assert len(oracle.statistics) == training * (1 + 2 * 8 + 1 + block.shortcuts)
    for path, (mean, var) in oracle.statistics.items():
        got = statistics
        for name in path:
            got = got[name]
        np.testing.assert_allclose(got["mean"], mean, rtol=0, atol=100 * EPS * max(1, abs(mean).max()))
        np.testing.assert_allclose(got["var"], var, rtol=100 * EPS)


def test_content_alone_sees_a_set():
    """Without vectors for distances a layer's output moves with its pixels, with them it does not."""
    x = jax.random.normal(jax.random.key(0), (2, ROWS, COLUMNS, 8))
    for sensitive in (0, 1):
        layer = stirred(Block(config(position_sensitive=sensitive), 3, 8, 5, 1, rngs=nnx.Rngs(0))).width
        attend = jax.jit(lambda layer, x: layer(x, False)[0])
        moved, still = attend(layer, x[:, :, ::-1]), attend(layer, x)[:, :, ::-1]
        assert np.allclose(moved, still, rtol=0, atol=1e-5) == (not sensitive)
        assert (layer.query_table is None) == (not sensitive)
        assert len(layer.score_norms) == (3 if sensitive else 1) and len(layer.out_norms) == (2 if sensitive else 1)


def test_receptive_field():
    """The height layer alone reaches its column, one block every pixel; with a span of 3, a square of 3 x 3."""
    x = jax.random.normal(jax.random.key(0), (1, 5, 7, 4))
    for span in (0, 3):
        stage = stirred(AxialResNet(config(span=span), length=7, rngs=nnx.Rngs(0)), 0.1).stages[0]

        def after_block(x, stage=stage):
            return stage(x, None)[0, 2, 3].sum()

        def after_height(x, stage=stage):
            return stage.first.height((x @ stage.first.into[...]).swapaxes(1, 2), False)[0][0, 3, 2].sum()

        reached, column = (np.asarray(jax.jit(jax.grad(f))(x) != 0).any((0, -1)) for f in (after_block, after_height))
        rows, columns = (slice(None), slice(None)) if span == 0 else (slice(1, 4), slice(2, 5))
        assert reached[rows, columns].all() and reached.sum() == reached[rows, columns].size
        assert column[rows, 3].all() and column.sum() == column[rows, 3].size


SIZES_OF_IMAGES = [
    (5, 7),
    (1, 1),
    pytest.param((6, 6), marks=pytest.mark.slow),
    pytest.param((9, 2), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("size", SIZES_OF_IMAGES, ids=str)
def test_any_size(size):
    """Trained on 6 x 6; features, logits, maps; rows of maps are distributions over the line, as far as distances go."""
    model = AxialResNet(config(depths=(1, 1)), length=6, rngs=nnx.Rngs(0))
    x = images(*size)
    logits, maps = jax.jit(lambda model, x: (model(x), model.attention_maps(x)))(model, x)
    assert logits.shape == (2, 5) and np.isfinite(logits).all()
    half = tuple(-(-side // 2) for side in size)
    features = jax.eval_shape(lambda model: model.features(x), model)
    assert [each.shape for each in features] == [(2, *size, 4), (2, *size, 16), (2, *half, 32)]
    h, w = size
    row, column = np.divmod(np.arange(h * w), w)
    down, along = abs(row - row[:, None]), abs(column - column[:, None])
    seen = [(along == 0) & (down <= 5), (down == 0) & (along <= 5)] * 2
    for weights, line in zip(maps, seen, strict=True):
        assert weights.shape == (2, 2, h * w, h * w) and weights.dtype == jnp.float32
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=10 * EPS)
        assert ((weights > 0) == line).all()


def test_maps_are_the_weights_of_the_call():
    """A pixel's map is what the blocks of the call pay for it; those of a loop come in order."""
    model = stirred(AxialResNet(config(depths=(3,)), length=3, rngs=nnx.Rngs(0)))

    @jax.jit
    def both(model, x):
        y, weights = model.stem(x, False), []
        for block in model.stages[0].each():
            y, each = block(y, 0.0, None)
            assert len(each) == model.maps_per_residual
            weights += each
        return weights, y, model.attention_maps(x), model.features(x)[-1]

    weights, by_hand, maps, y = both(model, images(ROWS, COLUMNS))
    for i, (each, whole) in enumerate(zip(weights, maps, strict=True)):
        whole = whole.reshape(2, 2, ROWS, COLUMNS, ROWS, COLUMNS)
        line = whole[1, :, :, 4, :, 4] if i % 2 == 0 else whole[1, :, 2, :, 2]
        np.testing.assert_array_equal(line, each[1, 4 if i % 2 == 0 else 2])
    np.testing.assert_allclose(by_hand, y, rtol=0, atol=100 * EPS * y.max())


def trained(x, rng, depths, **changes):
    """(loss, statistics, gradients) of a training step's call, and the statistics before."""
    model = stirred(AxialResNet(config(depths=depths, **changes), length=6, rngs=nnx.Rngs(0)))
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, statistics = nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

    @jax.jit
    def step(params, statistics):
        def loss(params):
            model = nnx.merge(graph, params, statistics)
            return jnp.mean(model(x, rng=rng) ** 2), pure(model, nnx.BatchStat)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, new), gradient = step(params, statistics)
    return loss, new, gradient, statistics


@pytest.mark.slow
def test_training_step():
    """Everything learns but what cancels, and every statistic moves, in the loop too.

    A shift cancels before a product and a batch norm, before a softmax, and, for values, before weights of sum 1 and a
    batch norm.
    """
    _, new, gradient, old = trained(images(5, 6), jax.random.key(1), (2,))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        name = jax.tree_util.keystr(path)
        shifts = ("['score_norms']", "['value_norm']", "['height']['out_norms']", "['stem']")
        cancels = name.endswith("['bias']") and any(part in name for part in shifts)
        rows = np.asarray(leaf).reshape(len(leaf) if "blocks" in name else 1, -1)
        assert cancels or (abs(rows).max(-1) > 1e-6).all(), path
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert (a != b).all()


@pytest.mark.slow
def test_remat_changes_no_number():
    """To the bit where this was written; another compiler may fuse what it recomputes in another order."""
    arguments = images(5, 6), jax.random.key(1), (1, 2)
    got, wanted = trained(*arguments, remat=True), trained(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=100 * EPS * max(1e-3, abs(b).max()))


def test_dropout_of_a_block_is_a_function_of_the_key():
    block = stirred(Block(config(dropout=0.3), 16, 8, 5, 1, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, ROWS, COLUMNS, 16))
    first, second, other = (run(block, x, jax.random.key(seed))[0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any(-1).mean() > 0.9


@pytest.mark.slow
def test_noise_is_a_function_of_the_key():
    model = stirred(AxialResNet(config(depths=(2,), drop_path=0.5, dropout=0.3), length=6, rngs=nnx.Rngs(0)))
    x, rng = images(4, 4, batch=3), jax.random.key(1)
    first, second, other = (run(model, x, each)[0] for each in (rng, rng, jax.random.key(2)))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any(-1).all()


def test_one_example_in_evaluation_is_the_batch():
    """Running averages make an image's logits its own; batch statistics do not."""
    model = stirred(AxialResNet(config(), length=6, rngs=nnx.Rngs(0)))
    x = images(4, 4, batch=3)
    alone = jnp.concatenate([run(model, x[i : i + 1])[0] for i in range(3)])
    np.testing.assert_allclose(run(model, x)[0], alone, rtol=0, atol=100 * EPS * abs(alone).max())


@pytest.mark.slow
def test_bfloat16_keeps_statistics_in_float32():
    wide, narrow = (
        stirred(AxialResNet(config(dtype=dtype), length=6, rngs=nnx.Rngs(0))) for dtype in ("float32", "bfloat16")
    )
    (wanted, _), (got, statistics) = (run(model, images(5, 4), jax.random.key(0)) for model in (wide, narrow))
    # Roundings of 2^-9 at some sixteen operations one after the other, from the stem to the mean; up to 4.3 were seen.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=16 * 2**-9 * abs(wanted).max())
    mean = statistics["stages"][0]["first"]["into_norm"]["mean"]
    assert (mean != mean.astype(jnp.bfloat16)).any()


def test_bfloat16_dtypes():
    """Features are narrow, logits and statistics wide."""
    x, rng = images(5, 4), jax.random.key(0)

    def call():
        model = AxialResNet(config(dtype="bfloat16", depths=(1, 2)), length=6, rngs=nnx.Rngs(0))
        return model(x, rng=rng), pure(model, nnx.BatchStat), model.features(x)

    logits, statistics, features = jax.eval_shape(call)
    assert {each.dtype for each in jax.tree.leaves((logits, statistics))} == {jnp.dtype("float32")}
    assert {each.dtype for each in features} == {jnp.dtype("bfloat16")}


def test_pixels():
    model = AxialResNet(config(depths=(1, 1), head="pixels", head_width=7), length=6, rngs=nnx.Rngs(0))
    x = images(5, 7)
    logits, _ = run(model, x)
    assert logits.shape == (2, 5, 7, 5) and logits.dtype == jnp.float32 and np.isfinite(logits).all()
    with pytest.raises(ValueError, match=r"images: wanted \[B, height, width, 1\], got shape \[5, 7, 1\]"):
        model(x[0])


def test_conv_stem():
    """A quarter of the side, rounded up; each cell of it sees 11 x 11 pixels."""
    model = stirred(AxialResNet(config(stem="conv", patch_size=0), length=24, rngs=nnx.Rngs(0)))
    stem = jax.jit(lambda x: model.stem(x, False))
    assert stem(images(24, 24)).shape == (2, 6, 6, 4) and stem(images(25, 3)).shape == (2, 7, 1, 4)
    assert len(model.stages[0].first.height.query_table) == 2 * 6 - 1
    x = images(24, 24)
    seen = jnp.zeros(24)
    for i in range(24):
        seen = seen.at[i].set((stem(x.at[:, i].add(9.0)) != stem(x))[:, 3].any())
    assert np.flatnonzero(seen).tolist() == list(range(4 * 3 - 5, 4 * 3 + 6))


def test_what_a_size_costs():
    """The formula of a model with one block in each of two stages; the published sizes take longer to build."""

    def layer(C, side, N=2):  # H: channels of a head's values; queries and keys have half of them
        H, pairs = C // N, 2 * side - 1
        projections, tables = 2 * C * C // 2 + C * C, pairs * (2 * (H // 2) + H)
        return projections + tables + 2 * (2 * C // 2 + C) + 2 * 3 * N + 2 * 2 * C

    def block(C_in, C, side):
        into, out, shortcut = C_in * C + 2 * C, 2 * C * C + 4 * C, 2 * C_in * C + 4 * C
        return into + 2 * layer(C, side) + out + shortcut

    model = nnx.eval_shape(lambda: AxialResNet(config(depths=(1, 1)), length=6, rngs=nnx.Rngs(0)))
    wanted = (4 + 4) + block(4, 8, 6) + block(16, 16, 6) + (32 * 5 + 5)  # stem, stages, classifier
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == wanted


# The authors' code: axial26s, axial50s, axial50m, axial50l of github.com/csrhddlam/axial-deeplab, counted by hand.
@pytest.mark.parametrize(
    "size, count",
    [
        pytest.param("S26", 5_944_936, marks=pytest.mark.slow),
        pytest.param("S", 11_586_216, marks=pytest.mark.slow),
        pytest.param("M", 25_179_400, marks=pytest.mark.slow),
        pytest.param("L", 43_973_480, marks=pytest.mark.slow),
    ],
)
def test_number_of_parameters(size, count):
    size = config(channels=3, num_classes=1000, patch_size=0, **SIZES["axial"][size])
    model = nnx.eval_shape(lambda: AxialResNet(size, length=224, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


def test_what_decays():
    model = nnx.eval_shape(lambda: AxialResNet(config(depths=(1, 2)), length=6, rngs=nnx.Rngs(0)))
    params = pure(model, nnx.Param)
    decays = {
        jax.tree_util.keystr(path): decay for path, decay in jax.tree_util.tree_leaves_with_path(is_matrix(params))
    }
    matrices = ("'query']", "'key']", "'value']", "'into']", "'out']", "'shortcut']", "'embedding']", "'classes']")
    assert {name for name, decay in decays.items() if decay} == {name for name in decays if name.endswith(matrices)}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"span": 4}, "model.attention.span: wanted 0"),
        ({"position_sensitive": 2}, "model.attention.position_sensitive: wanted an integer from 0 to 1"),
        ({"attention": {"name": "full"}}, "model.attention.name: "),
        ({"stem": "pool"}, "model.stem: got 'pool'; write one of conv, patch"),
        ({"stem": "conv"}, "model.patch_size: the conv stem cuts no patches, got 1; write 0"),
        ({"width": 5}, "model.width: wanted a multiple of num_heads = 2, got 5"),
        ({"depths": ()}, "model.depths: wanted a positive integer for each stage"),
        ({"head": "pixels"}, "model.head_width: wanted at least 1, got 0"),
        ({"num_heads": 0}, "model.num_heads: wanted at least 1, got 0"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        check(config(**changes), 8)
    assert "\n" not in str(error.value)


def test_sizes_are_configs():
    for size in SIZES["axial"].values():
        check(config(**({"patch_size": 0} | size)), 32)
    with pytest.raises(ValueError, match="model.num_classes: 0 stands for what the data have"):
        AxialResNet(config(num_classes=0), length=8, rngs=nnx.Rngs(0))
