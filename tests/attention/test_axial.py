"""Axial attention: published numbers, masked dense attention over the flattened grid, receptive fields, cost, any axis."""

import functools
from typing import NamedTuple

import golden
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention import (
    along_axis,
    axial_attention,
    axial_positions,
    delta_rule_attention,
    dot_product_attention,
    gated_linear_attention,
    linear_attention,
    longformer_attention,
    lsh_attention,
    performer_attention,
    performer_projection,
    position_sensitive_scores,
    position_sensitive_values,
)
from attention.masks import Dense, Full, Window

B, N, K, H, HV = 2, 4, 2, 3, 5
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def grid_arrays(spatial, K=K):
    """query, key, value on a grid."""
    return normal(B, *spatial, N, H), normal(B, *spatial, K, H), normal(B, *spatial, K, HV)


# Other people's numbers.


def torch_layer(arrays, prefix, heads=2):
    """The package's self-attention along an axis: what it calls to_q, to_kv and to_out around ours."""
    query, key_value, out, bias = (
        arrays[f"{prefix}.{name}"] for name in ("to_q.weight", "to_kv.weight", "to_out.weight", "to_out.bias")
    )

    def layer(x, axis):
        projected = x @ query.T, *jnp.split(x @ key_value.T, 2, axis=-1)
        projected = (y.reshape(*y.shape[:-1], heads, -1) for y in projected)
        return axial_attention(*projected, axis=axis).reshape(x.shape) @ out.T + bias

    return layer


@pytest.mark.parametrize("case", ["2d_sum", "2d_sequential", "2d_channels_first", "3d_sum"])
def test_published_values_and_gradients(case):
    arrays, meta = golden.load(f"axial_{case}")
    names = ["in.x", *(name for name in arrays if name.startswith("w."))]

    def module(*given):
        w = dict(zip(names, given, strict=True))
        x = w["in.x"]
        x = jnp.moveaxis(x, 1, -1) if "channels_first" in case else x
        axes = range(1, x.ndim - 1)
        layers = [functools.partial(torch_layer(w, f"w.axial_attentions.{axis - 1}.fn"), axis=axis) for axis in axes]
        if "sequential" in case:
            return functools.reduce(lambda x, layer: layer(x), layers, x)
        out = sum(layer(x) for layer in layers)
        return jnp.moveaxis(out, -1, 1) if "channels_first" in case else out

    given, gradients = ([arrays[prefix + name] for name in names] for prefix in ("", "grad."))
    golden.assert_matches(module, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"])


def test_published_positions():
    arrays, meta = golden.load("axial_positional_embedding")
    names = "in.x", "w.param_0", "w.param_1"

    def module(x, rows, columns):
        return x + jnp.moveaxis(axial_positions(rows[0, :, :, 0].T, columns[0, :, 0].T), -1, 0)

    given, gradients = ([arrays[prefix + name] for name in names] for prefix in ("", "grad."))
    golden.assert_matches(module, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"])


# The definition.


class Case(NamedTuple):
    """What `axial_attention` is asked for; `rows` of each table, 0 = no such table."""

    spatial: tuple
    axis: int
    rows: tuple = (0, 0, 0)
    span: int | None = None
    causal: bool = False
    masked: bool = False
    scale: float | None = None


CASES = {
    "columns": Case((3, 5), 1, (5, 5, 5)),
    "rows_masked": Case((3, 5), 2, (9, 9, 9), masked=True, scale=1.0),
    "negative_axis_causal": Case((4, 3), -3, (5, 9, 7), causal=True),
    "3d": Case((2, 4, 3), -4, (7, 0, 0), masked=True),
    "3d_first": Case((3, 2, 2), 1, (0, 5, 0)),
    "1d_span_beyond_the_line": Case((5,), 1, (0, 0, 9), span=11),
    "one_position": Case((1, 2), 1, (1, 1, 1)),
    "span_within_the_line": Case((7, 2), 1, (5, 13, 5), span=5, masked=True),
    "span_in_blocks": Case((11, 2), 1, (3, 5, 21), span=3),
    "span_in_blocks_causal": Case((2, 15), 2, (3, 3, 3), span=3, causal=True, masked=True),
    "span_of_one": Case((4, 2), 1, (1, 1, 1), span=1, masked=True),
    "no_tables": Case((2, 3, 7), -3, span=3, causal=True, masked=True),
}


def setup(case):
    """The arrays that get gradients, by name, the key mask and the cotangent, which leaves masked rows out."""
    q, k, v = grid_arrays(case.spatial)
    arrays = {"query": q, "key": k, "value": v}
    widths = zip(("query_table", "key_table", "value_table"), case.rows, (H, H, HV), strict=True)
    arrays |= {name: normal(rows, width) for name, rows, width in widths if rows}
    key_mask = RNG.random((B, *case.spatial)) < 0.7 if case.masked else np.ones((B, *case.spatial), bool)
    return arrays, key_mask, normal(B, *case.spatial, N, HV) * key_mask[..., None, None]


def dense(case, key_mask, d_out, names, *arrays):
    """Masked dense attention over the pixels of the flattened grid, each on a line of its own; gradients by hand."""
    given = dict(zip(names, arrays, strict=True))
    axis = case.axis % given["query"].ndim - 1
    place = np.stack(np.unravel_index(np.arange(np.prod(case.spatial)), case.spatial), -1)
    step = place[None] - place[:, None]  # from each query to each key
    distance, others = step[..., axis], np.delete(step, axis, -1)
    allowed = (others == 0).all(-1) & (abs(distance) <= (case.span or 99) // 2) & ~(case.causal & (distance > 0))
    query, key, value = (given[name].reshape(B, len(place), -1, given[name].shape[-1]) for name in names[:3])
    key, value = (np.repeat(x, N // K, axis=2) for x in (key, value))
    dtype = query.dtype.type
    scale = dtype(H**-0.5 if case.scale is None else case.scale)

    def row(table):
        return np.clip(distance + len(table) // 2, 0, len(table) - 1)

    def vectors(name, like):
        """[T, S, width], 0 without the table."""
        table = given.get(name, np.zeros((1, like.shape[-1]), dtype))
        return table[row(table)]

    of_query, of_key, of_value = (
        vectors(name, x) for name, x in (("query_table", query), ("key_table", key), ("value_table", value))
    )
    # q_o . (k_p + r^q) + k_p . r^k, and w_op (v_p + r^v)
    moved_key, moved_value = key[:, None] + of_query[None, :, :, None], value[:, None] + of_value[None, :, :, None]
    score = np.einsum("btnh,btsnh->bnts", query, moved_key) + np.einsum("bsnh,tsh->bnts", key, of_key)
    weight, *_ = oracle._weights(
        np.ones((B, 1, N, 1), dtype), np.zeros((B, 1, N, 1), dtype), score * scale,
        allowed & key_mask.reshape(B, 1, 1, -1), dtype(1), None,
    )  # fmt: skip
    out = np.einsum("bnts,btsnh->btnh", weight, moved_value)

    d_out = d_out.reshape(out.shape).astype(dtype)
    d_weight = np.einsum("btnh,btsnh->bnts", d_out, moved_value)
    d_score = weight * (d_weight - (weight * d_weight).sum(-1, keepdims=True)) * scale
    d_key = np.einsum("bnts,btnh->bsnh", d_score, query) + np.einsum("bnts,tsh->bsnh", d_score, of_key)
    gradients = {
        "query": np.einsum("bnts,btsnh->btnh", d_score, moved_key),
        "key": d_key.reshape(*d_key.shape[:2], K, -1, H).sum(3),
        "value": np.einsum("bnts,btnh->bsnh", weight, d_out).reshape(*d_key.shape[:2], K, -1, HV).sum(3),
    }
    of_pairs = {
        "query_table": np.einsum("bnts,btnh->tsh", d_score, query),
        "key_table": np.einsum("bnts,bsnh->tsh", d_score, key),
        "value_table": np.einsum("bnts,btnh->tsh", weight, d_out),
    }
    for name in names[3:]:
        gradients[name] = np.zeros_like(given[name])
        np.add.at(gradients[name], row(given[name]), of_pairs[name])
    return out.reshape(B, *case.spatial, N, HV), *(gradients[name].reshape(given[name].shape) for name in names)


@functools.partial(jax.jit, static_argnames=("fn", "names"))
def with_gradients(fn, names, d_out, *arrays):
    out, pullback = jax.vjp(lambda *a: fn(**dict(zip(names, a, strict=True))), *arrays)
    return out, *pullback(d_out)


@pytest.mark.parametrize("name", CASES)
def test_equals_masked_dense_attention(name):
    """Values and gradients, those of the tables too."""
    case = CASES[name]
    arrays, key_mask, d_out = setup(case)
    settings = dict(axis=case.axis, span=case.span, causal=case.causal, scale=case.scale)
    attend = functools.partial(axial_attention, key_mask=key_mask if case.masked else None, **settings)
    out, *gradients = with_gradients(attend, tuple(arrays), d_out, *arrays.values())
    real = key_mask[..., None, None]  # rows of masked pixels are unspecified

    def definition(*given):
        out, *gradients = dense(case, key_mask, d_out, tuple(arrays), *given)
        return out * real, *gradients

    oracle.assert_exact((out * real, *gradients), definition, *arrays.values())


def test_masked_pixels_may_hold_anything():
    """Bit for bit, with all tables, in blocks and in whole lines; a line with nothing to see is exactly 0."""
    for span in (None, 3):
        q, k, v = grid_arrays((7, 2))
        tables = dict(query_table=normal(13, H), key_table=normal(13, H), value_table=normal(13, HV))
        key_mask = RNG.random((B, 7, 2)) < 0.6
        key_mask[0, :, 1] = False
        attend = functools.partial(axial_attention, axis=1, span=span, key_mask=key_mask, **tables)
        d_out = normal(B, 7, 2, N, HV) * key_mask[..., None, None]
        want, got = (
            with_gradients(
                attend, ("query", "key", "value"), d_out,
                *(np.where(key_mask[..., None, None], x, np.float32(fill)) for x in (q, k, v)),
            )
            for fill in (0.5, np.nan)
        )  # fmt: skip
        assert not want[0][0, :, 1].any()
        for x, y in zip(want, got, strict=True):
            np.testing.assert_array_equal(x[key_mask], y[key_mask])
            assert np.isfinite(np.asarray(y)[key_mask]).all()


def test_masks_broadcast_over_batch_and_lines():
    q, k, v = grid_arrays((3, 4))
    key_mask = np.array([True, False, True, True])
    wide = np.broadcast_to(key_mask, (B, 3, 4))
    attend = jax.jit(functools.partial(axial_attention, axis=1))
    got, want = (attend(q, k, v, key_mask=mask) for mask in (key_mask, wide))
    np.testing.assert_array_equal(got[wide], want[wide])


def test_half_precision_rounds_the_output_once():
    """With float32 tables beside it, as a model keeps its parameters."""
    half = [jnp.asarray(x, jnp.bfloat16) for x in grid_arrays((5, 2))]
    attend = functools.partial(axial_attention, axis=1, query_table=normal(9, H), value_table=normal(9, HV))
    out, exact = attend(*half), attend(*(x.astype(np.float32) for x in half))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2.0**-8, atol=64 * oracle.ULP)


def test_dropout_of_weights_drops_their_distances_too():
    """The mean over draws is the output without; in blocks, so that no two of them may draw alike."""
    q, k, v = grid_arrays((9, 1))
    attend = functools.partial(axial_attention, q, k, v, axis=1, span=3, value_table=normal(3, HV))
    draws = jax.jit(jax.vmap(lambda rng: attend(dropout_rate=0.5, rng=rng)))(jax.random.split(jax.random.key(0), 400))
    error = np.abs(draws.mean(0) - attend())
    assert (error < 6 * draws.std(0) / 20 + 1e-5).all()
    one = np.asarray(attend(dropout_rate=0.5, rng=jax.random.key(1)))
    kept = axial_attention(jnp.zeros_like(q), k, jnp.ones_like(v), axis=1, span=3, key_table=jnp.zeros((3, H)),
                           dropout_rate=0.5, rng=jax.random.key(1))  # fmt: skip
    assert not one[(np.asarray(kept) == 0).all(-1)].any()  # all three keys were dropped, and their vectors with them
    assert len({row.tobytes() for row in np.asarray(kept)[..., 0].reshape(-1, N)}) > 4


def test_terms_add_up_to_axial_deeplab():
    """With norms that do nothing between them the pieces are the function, at the paper's scale of 1."""
    q, k, v = (x[:, 0] for x in grid_arrays((1, 5), K=N))
    tables = normal(9, H), normal(9, H), normal(9, HV)
    weights = jax.nn.softmax(sum(position_sensitive_scores(q, k, *tables[:2])), axis=-1)
    out = sum(position_sensitive_values(weights, v, tables[2]))
    named = dict(zip(("query_table", "key_table", "value_table"), tables, strict=True))
    want = axial_attention(*(x[:, None] for x in (q, k, v)), axis=2, scale=1.0, **named)
    np.testing.assert_allclose(out, want[:, 0], rtol=0, atol=1e-6)
    _, by_query, by_key = position_sensitive_scores(q, k)
    assert by_query is by_key is position_sensitive_values(weights, v)[1] is None


# What a pixel can see.


def seen(attend, spatial, pixel):
    """Which pixels of the input the output at `pixel` depends on, by its gradient."""
    x = normal(1, *spatial, 1, H)
    gradient = jax.jit(jax.grad(lambda x: attend(x)[(0, *pixel)].sum()))(x)
    return np.abs(gradient[0]).sum((-2, -1)) > 0


def layer(x, **settings):
    return axial_attention(x, x, x, **settings)


def test_one_layer_sees_a_row_and_a_column_and_two_see_everything():
    rows, columns = np.indices((5, 6))
    cross = (rows == 2) | (columns == 3)
    both = seen(lambda x: layer(x, axis=1) + layer(x, axis=2), (5, 6), (2, 3))
    np.testing.assert_array_equal(both, cross)
    assert seen(lambda x: layer(layer(x, axis=1), axis=2), (5, 6), (2, 3)).all()
    assert seen(lambda x: layer(layer(layer(x, axis=1), axis=2), axis=3), (3, 4, 2), (2, 1, 0)).all()


def test_a_span_limits_what_is_seen():
    table = normal(5, H)
    for tables in ({}, {"query_table": table}):
        near = seen(functools.partial(layer, axis=2, span=5, **tables), (2, 13), (1, 6))
        np.testing.assert_array_equal(near[1], abs(np.arange(13) - 6) <= 2)
        assert not near[0].any()


# Cost.


def flops(attend, rows, columns, differentiate):
    x = jax.ShapeDtypeStruct((1, rows, columns, 1, 8), jnp.float32)
    fn = jax.grad(lambda *a: attend(*a).sum(), (0, 1, 2)) if differentiate else attend
    return jax.jit(fn).lower(x, x, x).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("tables", [False, True])
def test_flops_are_rows_columns_times_rows_plus_columns(tables, differentiate):
    """Of a call along each axis, from the compiled program; products of queries and keys, and of weights and values."""

    def attend(*arrays):
        return sum(
            axial_attention(*arrays, axis=axis, value_table=jnp.ones((127, 8)) if tables else None) for axis in (1, 2)
        )

    sizes = [(16, 16), (16, 64), (64, 32)]
    amounts = np.array([flops(attend, *size, differentiate) / (np.prod(size) * sum(size)) for size in sizes])
    products = 2 * 2 * 8 * (3 if differentiate else 1)
    assert (0.95 * products <= amounts).all() and (amounts < 4 * products).all()
    np.testing.assert_allclose(amounts, amounts[-1], rtol=0.25)


@pytest.mark.parametrize("differentiate", [False, True])
def test_flops_with_a_span_do_not_grow_with_the_line(differentiate):
    table = jnp.ones((7, 8))
    attend = functools.partial(axial_attention, axis=2, query_table=table, key_table=table, value_table=table, span=7)
    amounts = [flops(attend, 2, columns, differentiate) / columns for columns in (70, 140, 560)]
    np.testing.assert_allclose(amounts, amounts[-1], rtol=0.1)  # the last block and the padding


# Any other variant along an axis.

GATES = -RNG.random((B, 5, 3, K, H)).astype(np.float32)
BETA = RNG.random((B, 5, 3, K)).astype(np.float32)
REAL = RNG.random((B, 5, 3)) < 0.8
VARIANTS = {
    "dot_product": (dot_product_attention, {"mask": Window(1, 1)}, {"key_mask": REAL}),
    "longformer": (longformer_attention, {"window": 1, "global_positions": [1]}, {"key_mask": REAL}),
    "linear": (linear_attention, {"causal": True}, {"key_mask": REAL}),
    "lsh": (lsh_attention, {"num_hashes": 2, "bucket_size": 2, "rng": jax.random.key(3)}, {"key_mask": REAL}),
    "performer": (performer_attention, {"projection": performer_projection(jax.random.key(1), 8, H)}, {}),
    "gated_linear": (gated_linear_attention, {"chunk_size": 4}, {"log_decay": GATES}),
    "delta_rule": (delta_rule_attention, {"chunk_size": 4}, {"beta": BETA, "key_mask": REAL}),
}


def line(x, axis, i):
    """Line i along `axis` of an array on a grid with two spatial axes."""
    return jnp.take(x, i, axis=3 - axis)


@pytest.mark.parametrize(
    "name, axis",
    [*(pytest.param(name, 1, marks=pytest.mark.slow) for name in VARIANTS), ("linear", 2), ("delta_rule", -3)],
)
def test_along_axis_equals_a_loop_over_lines(name, axis):
    """Arrays by token (masks, gates) come along; what is fixed by a partial is for all lines."""
    function, settings, by_token = VARIANTS[name]
    function = functools.partial(function, **settings)
    arrays = grid_arrays((5, 3))
    if name == "lsh":
        arrays = arrays[0], normal(B, 5, 3, N, HV)
    out = jax.jit(along_axis(function, axis))(*arrays, **by_token)
    alone, axis = jax.jit(function), axis % 5
    for i in range((3, 5)[axis - 1]):
        want = alone(*(line(x, axis, i) for x in arrays), **{key: line(x, axis, i) for key, x in by_token.items()})
        real = line(by_token.get("key_mask", np.ones_like(REAL)), axis, i)
        np.testing.assert_allclose(line(out, axis, i)[real], want[real], rtol=0, atol=2e-6)


def test_along_axis_moves_what_a_partial_fixes_too():
    arrays = grid_arrays((5, 3))
    got, want = (
        jax.jit(along_axis(functools.partial(dot_product_attention, key_mask=REAL), 1))(*arrays),
        jax.jit(along_axis(dot_product_attention, 1))(*arrays, key_mask=REAL),
    )
    np.testing.assert_array_equal(got, want)


def test_lines_of_another_length_as_keys():
    """Cross-attention along an axis, where the function has it."""
    q, (_, k, v) = grid_arrays((5, 3))[0], grid_arrays((4, 3))
    out = jax.jit(along_axis(dot_product_attention, 1))(q, k, v)
    want = jax.jit(dot_product_attention)(q[:, :, 2], k[:, :, 2], v[:, :, 2])
    np.testing.assert_allclose(out[:, :, 2], want, rtol=0, atol=1e-6)


Q, KEY, V = grid_arrays((5, 3))
WRONG = {
    "axis_batch": (dict(axis=0), "axis: wanted a spatial one, 1 to 2 or -4 to -3, got 0"),
    "axis_heads": (dict(axis=3), "axis: wanted a spatial one"),
    "axis_width": (dict(axis=-1), "axis: wanted a spatial one"),
    "axis_batch_from_the_end": (dict(axis=-5), "axis: wanted a spatial one"),
    "no_grid": (dict(query=Q[0, 0]), r"query: wanted \[B, \*spatial, N, H\]"),
    "key_rank": (dict(key=KEY[0, 0, 0]), "key: wanted one entry a token"),
    "key_grid": (dict(key=KEY[:, :4], value=V[:, :4]), r"key: wanted query's length 5 \(self-attention\), got 4"),
    "key_mask": (dict(key_mask=np.ones((B, 5, 4), bool)), "key_mask: wanted shape"),
    "key_mask_dtype": (dict(key_mask=np.ones((B, 5, 3))), "key_mask: wanted bools"),
    "even_span": (dict(span=4), "span: wanted an odd number"),
    "no_span": (dict(span=0), "span: wanted an int >= 1, got 0"),
    "table_width": (dict(query_table=np.ones((9, 4))), r"query_table: wanted \[2L - 1, 3\], got shape \(9, 4\)"),
    "even_table": (dict(value_table=np.ones((10, HV))), r"value_table: wanted \[2L - 1, 5\]"),
    "short_table": (dict(key_table=np.ones((7, H))), "key_table: wanted at least 9 rows.* got 7; .* span=7"),
    "short_for_the_span": (dict(key_table=np.ones((3, H)), span=5), "key_table: wanted at least 5 rows"),
    "dropout": (dict(dropout_rate=0.5), "rng: wanted a jax.random.key"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(wrong):
    changes, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        axial_attention(**dict(query=Q, key=KEY, value=V, axis=1) | changes)


def test_pieces_refuse_short_tables():
    q, k, v = Q[:, 0], KEY[:, 0], V[:, 0]
    with pytest.raises(ValueError, match="query_table: wanted at least 5 rows"):
        position_sensitive_scores(q, k, np.ones((3, H)))
    with pytest.raises(ValueError, match=r"value_table: wanted \[2L - 1, 5\]"):
        position_sensitive_values(np.ones((B, N, 3, 3), np.float32), v, np.ones((5, H)))


def test_positions_refuse_other_shapes():
    for tables in ((), (np.ones((3, 4)), np.ones((5, 1))), (np.ones(4),)):
        with pytest.raises(ValueError, match=r"tables: wanted \[length, E\]"):
            axial_positions(*tables)


def test_along_axis_refuses_what_a_grid_has_no_place_for():
    with pytest.raises(ValueError, match="function: wanted query, key, value, ... by these names, got q, k, v"):
        along_axis(lambda q, k, v: v, 1)
    with pytest.raises(ValueError, match="function: wanted query, key, value"):
        along_axis(lambda query, *rest: query, 1)
    with pytest.raises(NotImplementedError, match="return_residual: on a grid"):
        along_axis(functools.partial(dot_product_attention, return_residual=True), 1)(Q, KEY, V)
    with pytest.raises(TypeError, match="windows"):
        along_axis(linear_attention, 1)(Q, KEY, V, windows=3)
    array = np.ones((B, 5, 1, 3, 3), bool)
    for setting in ({"mask": array}, {"mask": Full() & Dense(array)}, {"bias": [array * 1.0]}):
        with pytest.raises(NotImplementedError, match="all lines share one"):
            along_axis(dot_product_attention, 2)(Q, KEY, V, **setting)
