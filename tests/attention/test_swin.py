"""Shifted windows: dense attention by hand, published layers, what padding and the shift hide, cost, Swin v2's parts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from golden import assert_matches, load

from attention import dot_product_attention
from attention.swin import (
    fit_window,
    shifted_window_attention,
    window_attention,
    window_merge,
    window_partition,
    window_regions,
)
from attention.swin_bias import (
    cosine_queries_and_keys,
    log_spaced_coordinates,
    relative_position_bias,
    relative_position_index,
)

N, K, H, HV = 6, 3, 5, 7


def pair(x):
    return x if isinstance(x, tuple) else (x, x)


def grids(grid, lead=(2,), N=N, K=K, seed=0):
    """Query, key, value and the cotangent of the output, `[..., rows, columns, heads, width]`."""
    arrays = oracle.inputs(math.prod(grid), None, N, K, H, HV, lead, seed)[:4]
    return [x.reshape(*lead, *grid, *x.shape[-2:]) for x in arrays]


def flat(x):
    """[..., rows, columns, N, H] as a sequence of pixels."""
    return x.reshape(*x.shape[:-4], -1, *x.shape[-2:])


def dense(grid, window, shift):
    """By looking at every pair of pixels: bool [T, T], who meets whom, and int [T, T, 2], their places in the window."""
    pixels = np.indices(grid).reshape(2, -1).T
    window, shift = np.array(pair(window)), np.array(pair(shift))
    number, place = (pixels - shift) // window, (pixels - shift) % window
    place = place[:, 0] * window[1] + place[:, 1]
    return (number[:, None] == number).all(-1), np.stack(np.broadcast_arrays(place[:, None], place), -1)


CASES = {  # grid, window, shift, leading dimensions
    "one_pixel": ((1, 1), 1, 0, (2,)),
    "one_pixel_in_a_window": ((1, 1), 4, 2, (2,)),
    "divides": ((4, 8), 4, 2, (2,)),
    "no_shift": ((5, 7), 4, 0, (2,)),
    "shift_1": ((5, 7), 4, 1, (2,)),
    "shift_2": ((5, 7), 4, 2, ()),
    "shift_3": ((5, 7), 4, 3, (2, 3)),
    "pairs": ((6, 9), (2, 5), (1, 3), (2,)),
    "one_way": ((7, 3), (3, 4), (0, 2), (2,)),
    "one_row": ((1, 11), (1, 3), (0, 1), (2,)),
    "smaller_than_window": ((3, 5), 7, 3, (2,)),
    "windows_of_one": ((3, 2), 1, 0, (1,)),
}


MASKED = ["one_pixel", "divides", "no_shift", "shift_3", "pairs", "smaller_than_window"]


@pytest.mark.parametrize("case, masked", [(case, False) for case in CASES] + [(case, True) for case in MASKED])
def test_equals_dense_attention(case, masked):
    """Values and gradients, those of the bias too, in one softmax over all pixels that share window and region."""
    grid, window, shift, lead = CASES[case]
    *arrays, d_out = grids(grid, lead)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal((N, *[math.prod(pair(window))] * 2)).astype(np.float32)
    real = rng.random((*lead, *grid)) < (0.5 if masked else 2)
    allowed, places = dense(grid, window, shift)
    allowed = allowed & real.reshape(*lead, 1, 1, -1)

    def attend(*given):
        key_mask = real if masked else None
        return shifted_window_attention(*given[:3], window=window, shift=shift, bias=given[3], key_mask=key_mask)

    def by_hand(query, key, value, bias, d_out):
        query, key, value, d_out = (flat(x) for x in (query, key, value, d_out))
        spread = bias[:, places[..., 0], places[..., 1]]
        out, _ = oracle.attention(query, key, value, spread, allowed)
        *gradients, d_spread = oracle.gradients(query, key, value, spread, d_out, allowed=allowed)
        d_bias = np.zeros_like(bias)
        np.add.at(d_bias, (slice(None), places[..., 0], places[..., 1]), oracle.sum_to(d_spread, spread.shape))
        return out, *gradients, d_bias

    out, (*gradients, d_bias) = oracle.value_and_vjp(attend, (*arrays, bias), d_out)
    oracle.assert_exact((flat(out), *map(flat, gradients), d_bias), by_hand, *arrays, bias, d_out)


def test_the_unrolled_picture():
    """Written out for 5 pixels in a row, windows of 3, shift 1: {0} {1 2 3} {4}, and no bias or scale."""
    value = jnp.arange(1.0, 6).reshape(1, 5, 1, 1)
    zeros = jnp.zeros((1, 5, 1, 1))
    out = shifted_window_attention(zeros, zeros, value, window=(1, 3), shift=(0, 1))
    np.testing.assert_allclose(out.ravel(), [1, 3, 3, 3, 5], rtol=1e-6)


@pytest.mark.parametrize("grid", [(8, 8), (7, 10), (3, 5)])
def test_the_pieces_make_the_whole(grid):
    """Sequence attention on the cut grid, with the regions as segments, is the same thing."""
    *arrays, _ = grids(grid)
    settings = dict(window=(4, 3), shift=(1, 2))
    ids = jnp.asarray(window_regions(grid, **settings))

    @jax.jit
    def in_pieces(*arrays):
        cut = [window_partition(x, **settings) for x in arrays]
        attended = dot_product_attention(*cut, query_segment_ids=ids, key_segment_ids=ids)
        return window_merge(attended, grid, **settings)

    got = in_pieces(*arrays)
    want = jax.jit(functools.partial(shifted_window_attention, **settings))(*arrays)
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP)


@pytest.mark.parametrize("poisoned", [False, True], ids=["zero_padding", "nan_padding"])
def test_windows_cut_before(poisoned):
    """What windows give is what the grid gives, gradients too, whatever stands in the padding."""
    query, key, value, d_out = grids((5, 7))
    settings, bias = (
        dict(window=(4, 3), shift=(1, 2)),
        jnp.asarray(np.random.default_rng(6).standard_normal((N, 12, 12))),
    )
    real = np.random.default_rng(7).random((2, 5, 7)) < 0.7
    regions = window_regions((5, 7), **settings)
    padding = jnp.where(regions < 0, jnp.nan if poisoned else 0, 0)[..., None, None].astype(np.float32)

    def in_windows(query, key, value, bias):
        cut = [window_partition(x, **settings) + padding for x in (query, key, value)]
        key_mask = window_partition(real[..., None, None], **settings)[..., 0, 0]
        attended = window_attention(*cut, bias=bias, regions=regions, key_mask=key_mask, scale=0.4)
        return window_merge(attended, (5, 7), **settings)

    def on_the_grid(query, key, value, bias):
        return shifted_window_attention(query, key, value, bias=bias, key_mask=real, scale=0.4, **settings)

    d_out = np.where(real[..., None, None], d_out, 0)  # rows of masked pixels are unspecified
    runs = [oracle.value_and_vjp(fn, (query, key, value, bias), d_out) for fn in (in_windows, on_the_grid)]
    for got, want in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP * np.abs(want).max())


def test_windows_by_themselves():
    """Regions of any numbers, other ones in every window, beside the formula; without them all pixels meet."""
    arrays = oracle.inputs(5, None, N, K, H, HV, (2, 3), 0)[:3]
    regions = np.array([[0, 0, 0, 0, 0], [1, 0, 1, 7, 0], [3, 3, -1, 3, -1]])
    allowed = (regions[:, :, None] == regions[:, None]) & (regions >= 0)[:, None]
    out = jax.jit(functools.partial(window_attention, regions=regions))(*arrays)
    np.testing.assert_allclose(out, oracle.attention(*arrays, 0.0, allowed[:, None])[0], rtol=0, atol=64 * oracle.ULP)
    assert not np.asarray(out)[:, 2, [2, 4]].any()
    whole = jax.jit(window_attention)(*arrays)
    np.testing.assert_allclose(whole, oracle.attention(*arrays, 0.0, True)[0], rtol=0, atol=64 * oracle.ULP)


@pytest.mark.parametrize("case", CASES)
def test_regions_are_windows_of_the_unrolled_grid(case):
    """Every pixel is in one window, once; two share window and region exactly where they do on the unrolled grid."""
    grid, window, shift, _ = CASES[case]
    size = math.prod(grid)
    regions = window_regions(grid, window, shift)
    numbers = window_partition(np.arange(1, size + 1).reshape(*grid, 1, 1), window, shift)[..., 0, 0]
    assert regions.shape == numbers.shape == (len(numbers), math.prod(pair(window)))
    np.testing.assert_array_equal(regions < 0, numbers == 0)
    together = np.zeros((size, size), int)
    for pixels, labels in zip(np.asarray(numbers), regions, strict=True):
        for label in set(labels) - {-1}:
            members = pixels[labels == label] - 1
            together[np.ix_(members, members)] += 1
    np.testing.assert_array_equal(together, dense(grid, window, shift)[0])


def test_information_crosses_windows_only_by_the_shift():
    """Where the output of one layer, or of two, at the first pixel reads from."""
    x = jnp.asarray(np.random.default_rng(2).standard_normal((8, 8, 1, 4)), jnp.float32)

    def reach(*shifts):
        def corner(x):
            for shift in shifts:
                x = shifted_window_attention(x, x, x, window=4, shift=shift)
            return x[0, 0].sum()

        return np.asarray(jnp.abs(jax.jit(jax.grad(corner))(x)).sum((-1, -2)) > 0)

    own = np.indices((8, 8)).max(0) < 4
    np.testing.assert_array_equal(reach(0, 0), own)
    # The first pixel's own shifted window holds 2 x 2 pixels, so it looks across on the second step back.
    np.testing.assert_array_equal(reach(2, 0), np.indices((8, 8)).max(0) < 6)


LAYERS = ["swin_layer", "swin_layer_shifted", "swin_layer_nondivisible", "swin_layer_shifted_nondivisible"]


def project(x, weights, name, heads):
    y = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return y.reshape(*x.shape[:-1], heads, -1)


def attention_of(x, weights, prefix, heads, **settings):
    """The published attention block on a grid [B, rows, columns, C]."""
    w = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    bias = relative_position_bias(w["relative_position_bias.relative_position_bias_table"], settings["window"])
    arrays = [project(x, w, f"{name}_proj", heads) for name in "qkv"]
    out = shifted_window_attention(*arrays, bias=bias, **settings)
    return project(out.reshape(x.shape), w, "o_proj", 1)[..., 0, :]


def layer_norm(x, weights, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


@pytest.mark.parametrize("case", LAYERS)
def test_published_layers(case):
    """Whole layers. There zero padding takes part, so it is added before the projections, whose bias it then carries."""
    arrays, meta = load(case)
    attrs = meta["attrs"]
    grid, window = (attrs["height"], attrs["width"]), attrs["window"]
    ends = [(0, 0), *((0, -side % window) for side in grid), (0, 0)]

    def layer(x, *weights):
        w = dict(zip(names, weights, strict=True))
        x = x.reshape(x.shape[0], *grid, -1)
        padded = jnp.pad(layer_norm(x, w, "layernorm_before"), ends)
        attended = attention_of(padded, w, "attention.", attrs["heads"], window=window, shift=attrs["shift"])
        x = x + attended[:, : grid[0], : grid[1]]
        hidden = jax.nn.gelu(project(layer_norm(x, w, "layernorm_after"), w, "mlp.fc1", 1), approximate=False)
        x = x + project(hidden[..., 0, :], w, "mlp.fc2", 1)[..., 0, :]
        return x.reshape(x.shape[0], math.prod(grid), -1)

    check_published(layer, arrays, meta, names := weight_names(arrays))
    np.testing.assert_array_equal(relative_position_index(window), arrays["aux.relative_position_index"])


def test_published_window_attention():
    """Windows cut beforehand, each of the four with a mask of its own, which joins the bias under vmap."""
    arrays, meta = load("swin_window_attention")
    window, heads = meta["attrs"]["window"], meta["attrs"]["heads"]
    table = "relative_position_bias.relative_position_bias_table"

    def attend(x, *weights):
        w = dict(zip(names, weights, strict=True))
        grid = x.reshape(2, 4, window, window, -1)
        query, key, value = (project(grid, w, f"{name}_proj", heads) for name in "qkv")
        bias = relative_position_bias(w[table], window) + arrays["aux.mask"][:, None]
        by_window = jax.vmap(
            lambda q, k, v, b: shifted_window_attention(q, k, v, window=window, bias=b), (1, 1, 1, 0), 1
        )
        return project(by_window(query, key, value, bias).reshape(x.shape), w, "o_proj", 1)[..., 0, :]

    check_published(attend, arrays, meta, names := weight_names(arrays))
    index = arrays["b.relative_position_bias.relative_position_index"]
    np.testing.assert_array_equal(relative_position_index(window).ravel(), index)


def weight_names(arrays):
    return [name.removeprefix("w.") for name in arrays if name.startswith("w.")]


def check_published(fn, arrays, meta, names):
    given = [arrays["in.x"], *(arrays[f"w.{name}"] for name in names)]
    gradients = [arrays["grad.in.x"], *(arrays[f"grad.w.{name}"] for name in names)]
    terms = {name: name.replace("k_proj.bias", "k_proj.weight") for name in names}  # a softmax cancels a key's bias
    sizes = [gradients[0], *(arrays[f"grad.w.{terms[name]}"] for name in names)]
    assert_matches(fn, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"], sizes)


SHIFTED = functools.partial(shifted_window_attention, window=4, shift=1)
ARRAYS = grids((5, 7))
REAL = np.random.default_rng(3).random((2, 5, 7)) < 0.6


@functools.cache
def program(**settings):
    @jax.jit
    def run(query, key, value, d_out, key_mask):
        fn = functools.partial(SHIFTED, key_mask=key_mask, **settings)
        out, pullback = jax.vjp(fn, query, key, value)
        return out, *pullback(d_out)

    return run


def test_masked_pixels_have_no_influence():
    """Not on values, not on gradients, bit for bit, whatever their queries, keys and values hold."""
    real = REAL[..., None, None]
    query, key, value, d_out = ARRAYS
    d_out = np.where(real, d_out, 0)  # rows of masked pixels are unspecified
    expected = program()(query, key, value, d_out, REAL)
    assert not any(np.where(real, 0, x).any() for x in expected[2:])
    for fill in (np.nan, np.inf, 3.0):
        changed = [np.where(real, x, np.float32(fill)) for x in (query, key, value)]
        for got, want in zip(program()(*changed, d_out, REAL), expected, strict=True):
            np.testing.assert_array_equal(np.where(real, got, 0), np.where(real, want, 0))
    moved = program()(query, key, np.where(real, value + 1, value), d_out, REAL)
    assert (np.asarray(moved[0]) != expected[0])[REAL].all()


def test_windows_with_nothing_to_attend_are_zero():
    empty = np.ones((2, 5, 7), bool)
    empty[1] = False
    empty[0, 1:5, 1:5] = False  # one window of the shifted grid
    hidden = ~empty
    expected = program()(*ARRAYS, np.ones_like(empty))
    for got, want in zip(program()(*ARRAYS, empty), expected, strict=True):
        assert not np.asarray(got)[hidden].any()
        np.testing.assert_array_equal(np.asarray(got)[empty], np.asarray(want)[empty])


def test_a_bias_may_hide():
    """Minus infinity hides a pair, and all pairs of a row: exactly 0, and no NaN in any gradient."""
    query, key, value, d_out = ARRAYS
    bias = np.zeros((N, 16, 16), np.float32)
    bias[:, :, 5] = bias[1] = -np.inf
    out, gradients = oracle.value_and_vjp(lambda *a: SHIFTED(*a[:3], bias=a[3]), (query, key, value, bias), d_out)
    assert not out[..., 1, :].any() and not gradients[0][..., 1, :].any()
    assert all(np.isfinite(x).all() for x in gradients)
    seen = np.asarray(window_partition(gradients[2], 4, 1))
    assert not seen[:, :, 5].any() and seen[:, :, 6].any()


def test_transforms():
    """vmap equals the batch dimension, remat the plain gradient, and forward mode the reverse."""
    query, key, value, d_out = ARRAYS
    attend = functools.partial(SHIFTED, scale=jnp.float32(0.3))
    out, gradients = oracle.value_and_vjp(attend, (query, key, value), d_out)
    again = oracle.value_and_vjp(jax.checkpoint(jax.vmap(attend)), (query, key, value), d_out)
    for got, want in zip(jax.tree.leaves(again), jax.tree.leaves((out, gradients)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP * np.abs(want).max())
    _, tangent = jax.jit(lambda *a: jax.jvp(attend, a, a))(query, key, value)
    products = [np.vdot(g, x) for g, x in zip(gradients, (query, key, value), strict=True)]
    np.testing.assert_allclose(np.vdot(tangent, d_out), sum(products), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_computed_in_float32(dtype):
    arrays = [jnp.asarray(x, dtype) for x in ARRAYS[:3]]
    bias = jnp.asarray(np.random.default_rng(4).standard_normal((N, 16, 16)), jnp.float32)
    attend = jax.jit(SHIFTED)
    out = attend(*arrays, bias=bias)
    exact = attend(*(x.astype(jnp.float32) for x in arrays), bias=bias)
    assert out.dtype == dtype
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(exact.astype(dtype), np.float32))


def test_no_image():
    query, key, value, _ = (x[:0] for x in ARRAYS)
    assert SHIFTED(query, key, value).shape == (0, 5, 7, N, HV)


def test_dropout():
    """Weights fall out at the rate, differently in every window and head, and the mean stays."""
    zeros, ones = jnp.zeros((3, 8, 8, 2, 4)), jnp.ones((3, 8, 8, 2, 1))
    drop = jax.jit(lambda rng: shifted_window_attention(zeros, zeros, ones, window=4, dropout_rate=0.25, rng=rng))
    out = drop(jax.random.key(0))
    kept = np.asarray(out) * 16 * 0.75
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-4)
    assert abs(kept.mean() / 16 - 0.75) < 5 * (0.25 * 0.75 / (16 * kept.size)) ** 0.5
    by_window = np.asarray(window_partition(out, 4)).reshape(12, 16, 2)
    patterns = {by_window[w, :, n].tobytes() for w in range(12) for n in range(2)}
    assert len(patterns) == 24
    np.testing.assert_array_equal(out, drop(jax.random.key(0)))
    assert (out != drop(jax.random.key(1))).any()


GRID = jnp.zeros((2, 4, 4, 6, 5))
REFUSALS = {
    "flat": (dict(query=GRID[0, 0]), "query: wanted"),
    "one_head_axis_short": (
        dict(key=jnp.zeros((2, 4, 4, 4, 5)), value=jnp.zeros((2, 4, 4, 4, 5))),
        "divides query's 6",
    ),
    "other_grid": (dict(key=jnp.zeros((2, 5, 4, 6, 5)), value=jnp.zeros((2, 5, 4, 6, 5))), "key: wanted"),
    "no_rows": (dict(query=GRID[:, :0], key=GRID[:, :0], value=GRID[:, :0]), "at least one row"),
    "no_window": (dict(window=0), "window: wanted an int >= 1, got 0"),
    "float_window": (dict(window=4.0), "window: wanted an int"),
    "bool_window": (dict(window=True), "window: wanted an int"),
    "three_windows": (dict(window=(2, 2, 2)), "window: wanted an int or a pair"),
    "shift_is_window": (dict(shift=3), r"shift: wanted less than the window 3, got 3"),
    "one_shift_is_window": (dict(window=(3, 2), shift=(1, 2)), "shift: wanted less than the window"),
    "negative_shift": (dict(shift=-1), "shift: wanted an int >= 0"),
    "bias_of_the_grid": (dict(bias=jnp.zeros((6, 16, 16))), r"bias: wanted .*\(6, 9, 9\)"),
    "int_bias": (dict(bias=jnp.zeros((6, 9, 9), int)), "bias: wanted a float array"),
    "bias_function": (dict(bias=lambda *a: 0), "bias: wanted a float array"),
    "flat_mask": (dict(key_mask=jnp.ones((2, 16), bool)), "key_mask: wanted"),
    "float_mask": (dict(key_mask=jnp.ones((2, 4, 4))), "key_mask: wanted bools"),
    "no_rng": (dict(dropout_rate=0.1), "rng: wanted"),
    "rate": (dict(dropout_rate=1.0), "dropout_rate: wanted"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    changed, message = REFUSALS[case]
    given = dict(query=GRID, key=GRID, value=GRID, window=3) | changed
    with pytest.raises(ValueError, match=message):
        shifted_window_attention(**given)


WINDOWS = jnp.zeros((2, 4, 9, 6, 5))
WINDOW_REFUSALS = {
    "flat": (dict(query=WINDOWS[0, 0]), "query: wanted .*windows, M"),
    "other_windows": (dict(key=jnp.zeros((2, 3, 9, 6, 5)), value=jnp.zeros((2, 3, 9, 6, 5))), "key: wanted"),
    "bias_of_the_grid": (dict(bias=jnp.zeros((6, 36, 36))), r"bias: wanted .*\(6, 9, 9\)"),
    "flat_regions": (dict(regions=np.zeros(36, int)), r"regions: wanted ints \[4, 9\], got .*\[36\]"),
    "float_regions": (dict(regions=np.zeros((4, 9))), "regions: wanted ints"),
    "mask_of_the_grid": (dict(key_mask=jnp.ones((2, 6, 6), bool)), "key_mask: wanted"),
    "float_mask": (dict(key_mask=jnp.ones((2, 4, 9))), "key_mask: wanted bools"),
    "no_rng": (dict(dropout_rate=0.1), "rng: wanted"),
}


@pytest.mark.parametrize("case", WINDOW_REFUSALS)
def test_refusals_of_windows(case):
    changed, message = WINDOW_REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        window_attention(**dict(query=WINDOWS, key=WINDOWS, value=WINDOWS) | changed)


def test_traced_regions():
    with pytest.raises(ValueError, match="regions: wanted an array known"):
        jax.jit(lambda regions: window_attention(WINDOWS, WINDOWS, WINDOWS, regions=regions))(np.zeros((4, 9), int))


@pytest.mark.parametrize("name", ["causal", "mask", "query_segment_ids"])
def test_unknown_arguments(name):
    with pytest.raises(TypeError, match=name):
        SHIFTED(GRID, GRID, GRID, **{name: None})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: window_merge(jnp.zeros((3, 9, 1, 1)), (4, 4), 3), r"windows: wanted .*\(4, 9\)"),
        (lambda: window_merge(jnp.ones((4, 4, 1)), (4, 4), 2), "windows: wanted"),
        (lambda: window_merge(jnp.ones((4, 4, 1, 1)), 4, 2), "grid: wanted a pair"),
        (lambda: window_partition(jnp.ones((4, 4, 1)), 2), "x: wanted"),
        (lambda: fit_window((0, 8), 4), "grid: wanted"),
        (lambda: relative_position_bias(jnp.zeros((49, 2)), 3), "table: wanted .25, N"),
        (lambda: relative_position_bias(jnp.zeros((25, 2)), (2, 4), table_window=3), "table_window: wanted at least"),
        (lambda: cosine_queries_and_keys(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3)), "logit_scale: wanted"),
        (lambda: cosine_queries_and_keys(jnp.ones((2, 3)), jnp.ones((2, 2)), jnp.ones(2)), "key: wanted"),
        (lambda: log_spaced_coordinates(4, 0), "pretrained_window: wanted"),
    ],
)
def test_refusals_of_the_pieces(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def cost(rows, columns, differentiate):
    """(FLOPs, temporary bytes) of the compiled program, shifted, padded and with a bias."""

    def attend(query, key, value, bias):
        return shifted_window_attention(query, key, value, window=7, shift=3, bias=bias)

    def with_gradient(d_out, *arrays):
        out, pullback = jax.vjp(attend, *arrays)
        return out, pullback(d_out)

    shapes = [(rows, columns, 2, 16)] * (3 + differentiate) + [(2, 49, 49)]
    fn = jax.jit(with_gradient if differentiate else attend)
    compiled = fn.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_cost_is_linear_in_pixels(differentiate):
    flops, temporary = np.array([cost(*grid, differentiate) for grid in ((55, 55), (55, 111), (111, 111))]).T
    pixels = np.array([56 * 56, 56 * 112, 112 * 112])  # with the padding
    for amounts in (flops, temporary):
        assert abs(np.polyfit(np.log(pixels), np.log(amounts), 1)[0] - 1) < 0.05
    # The products of scores and values, and of the gradient twice as many; the softmax weighs a little beside them.
    products = (2 + 4 * differentiate) * 2 * 2 * 49 * 16
    assert products <= flops[-1] / pixels[-1] <= 1.15 * products


def test_index_and_bias():
    """The formula, pair by pair; a smaller window reads the middle of the table."""
    window, larger = (2, 3), (4, 5)
    table = np.arange(7 * 9 * 2).reshape(63, 2)
    got = relative_position_bias(jnp.asarray(table), window, table_window=larger)
    pixels = np.indices(window).reshape(2, -1).T
    for i, (row, column) in enumerate(pixels):
        for j, (key_row, key_column) in enumerate(pixels):
            np.testing.assert_array_equal(got[:, i, j], table[(row - key_row + 3) * 9 + column - key_column + 4])
    full = np.asarray(relative_position_bias(jnp.asarray(table), larger)).reshape(2, 4, 5, 4, 5)
    np.testing.assert_array_equal(got, full[:, :2, :3, :2, :3].reshape(2, 6, 6))


def test_fit_window():
    """By the shorter side, for both."""
    assert fit_window((14, 28), 7, 3) == fit_window((28, 14), 7, 3) == (7, 3)
    assert fit_window((7, 28), 7, 3) == (7, 0)
    assert fit_window((28, 5), 7, 3) == (5, 0)
    assert fit_window((8, 28), 7) == (7, 0)
    for wrong in ({"window": (7, 7)}, {"window": 0}, {"window": 7, "shift": 7}, {"window": 7, "shift": (3, 3)}):
        with pytest.raises(ValueError, match="^(window|shift): wanted"):
            fit_window((14, 14), **wrong)


@pytest.mark.parametrize("window, pretrained", [(4, None), ((2, 5), None), (6, 4), (1, None)])
def test_log_spaced_coordinates(window, pretrained):
    """Step by step from the formula, in the order of the table's rows."""
    got = log_spaced_coordinates(window, pretrained)
    sides, units = pair(window), pair(window if pretrained is None else pretrained)
    steps = [(row, column) for row in range(1 - sides[0], sides[0]) for column in range(1 - sides[1], sides[1])]
    want = [[math.copysign(math.log(1 + abs(8 * s / max(u - 1, 1)), 8), s) for s, u in zip(step, units, strict=True)] for step in steps]  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=0)
    assert got.dtype == np.float32
    if pretrained is None:
        assert np.abs(got).max() == pytest.approx(math.log(9, 8) if window != 1 else 0)


def test_cosine_scores():
    """Against the formula, values and gradients; the logit scale is cut at log 100."""
    query, key, value, d_out = ARRAYS
    logit_scale = np.log(np.array([0.5, 1, 10, 50, 99, 1000], np.float32))

    def attend(query, key, value, logit_scale):
        return SHIFTED(*cosine_queries_and_keys(query, key, logit_scale), value, scale=1.0)

    allowed, _ = dense((5, 7), 4, 1)

    def by_hand(query, key, value, logit_scale):
        query, key, value = (flat(x) for x in (query, key, value))
        norms = [np.sqrt((x * x).sum(-1, keepdims=True)) for x in (query, key)]
        unit = query / norms[0] * np.minimum(np.exp(logit_scale), 100)[:, None], key / norms[1]
        return oracle.attention(*unit, value, 0.0, allowed, scale=1.0)[0]

    given = query, key, value, logit_scale
    out, gradients = oracle.value_and_vjp(attend, given, d_out)
    oracle.assert_exact(flat(out), by_hand, *given)
    assert gradients[3][-1] == 0 and (gradients[3][:-1] != 0).all()
    exact, rng = oracle.as_float64(given), np.random.default_rng(5)
    for i, gradient in enumerate(gradients):
        along = rng.standard_normal(gradient.shape) * (given[i] < math.log(999) if i == 3 else 1)
        sides = [[x + step * along if i == j else x for j, x in enumerate(exact)] for step in (-1e-6, 1e-6)]
        behind, ahead = (by_hand(*side) for side in sides)
        slope = np.vdot(ahead - behind, flat(d_out)) / 2e-6
        room = 64 * oracle.ULP * np.linalg.norm(gradient) * np.linalg.norm(along)
        np.testing.assert_allclose(np.vdot(gradient, along), slope, rtol=0, atol=room)


def test_cosine_of_zero_and_narrow_vectors():
    zeros = jnp.zeros((3, 2, 4), jnp.bfloat16)
    query, key = cosine_queries_and_keys(zeros, zeros + 2, jnp.zeros(2))
    assert query.dtype == key.dtype == jnp.bfloat16 and not query.any()
    np.testing.assert_array_equal(np.asarray(key, np.float32), 0.5)
    slope = jax.jit(jax.grad(lambda x: cosine_queries_and_keys(x, x, jnp.zeros(2))[0].sum()))(jnp.zeros((3, 2, 4)))
    assert np.isfinite(slope).all()


class TestHiddenPairs:
    """What stands at pairs that may not meet has no influence, whatever it is: a bias of NaN or inf, a score of inf."""

    @pytest.mark.parametrize("poison", [jnp.nan, pytest.param(jnp.inf, marks=pytest.mark.slow)])
    def test_bias_of_padding_regions_and_masked_keys(self, poison):
        x = jax.random.normal(jax.random.key(0), (1, 2, 2, 1, 3))
        zeros = jnp.zeros((1, 9, 9))
        padding = np.array([2, 5, 6, 7, 8])  # of a 2 x 2 image in a window of 3
        spoilt = zeros.at[:, padding].set(poison).at[:, :, padding].set(poison)

        def loss(bias, x, **settings):
            return (shifted_window_attention(x, x, x, bias=bias, **settings) ** 2).sum()

        for bias, clean, settings in (
            (spoilt, zeros, {"window": 3}),
            (jnp.where(jnp.eye(4, dtype=bool), 0.0, poison)[None], jnp.zeros((1, 4, 4)), {"window": 2, "shift": 1}),
            (
                jnp.zeros((1, 4, 4)).at[:, :, 3].set(poison),
                jnp.zeros((1, 4, 4)),
                {"window": 2, "key_mask": jnp.array([[[True, True], [True, False]]])},
            ),
        ):
            found, expected = (jax.value_and_grad(loss, argnums=(0, 1))(b, x, **settings) for b in (bias, clean))
            jax.tree.map(np.testing.assert_array_equal, found, expected)

    def test_score_that_overflows(self):
        query = jnp.ones((1, 2, 2, 1, 2)).at[0, 0, 0].set(1e20)
        key = jnp.ones((1, 2, 2, 1, 2)).at[0, 1, 1].set(1e20)
        out = shifted_window_attention(query, key, jnp.ones_like(query), window=2, shift=1)
        np.testing.assert_array_equal(out, 1.0)
