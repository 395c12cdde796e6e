"""Biases against dense NumPy arrays: values, gradients to their tables, order, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention import alibi_slopes, dot_product_attention, t5_bucket
from attention.biases import T5, ALiBi, Relative, ScoreFunction, SoftCap, by_distance
from attention.masks import Causal
from attention.tile import Tile

T, S, N = 11, 13, 3
IMPLEMENTATIONS = {"reference": {}, "blockwise": {"block_sizes": (4, 5)}}
RNG = np.random.default_rng(0)
INPUTS = oracle.inputs(T, S, N=N, K=1)  # query, key, value, and the cotangents of both results
DISTANCE = np.arange(S) - np.arange(T)[:, None]
TABLES = {
    "alibi": np.asarray(alibi_slopes(N)),
    "t5": RNG.standard_normal((8, N), np.float32),
    "t5_both": RNG.standard_normal((8, N), np.float32),
    "relative": RNG.standard_normal((7, N), np.float32),
    "function": RNG.standard_normal(N).astype(np.float32),
}
BIASES = {
    "alibi": ALiBi,
    "t5": functools.partial(T5, max_distance=9),
    "t5_both": functools.partial(T5, bidirectional=True, max_distance=9),
    "relative": Relative,
    "function": lambda w: lambda score, q, k, head: score + w[head] * jnp.cos(q - k),  # the traced w is captured
}


def features(name, distance):
    """What the bias is linear in: `[..., T, S, rows, N, N]`, so that bias = features . table, per head."""
    if name == "alibi":
        return -np.abs(distance)[..., None, None, None] * np.eye(N)
    if name == "function":
        return np.cos(distance)[..., None, None, None] * np.eye(N)
    rows = len(TABLES[name])
    if name == "relative":
        row = np.clip(distance, -(rows // 2), rows // 2) + rows // 2
    else:
        row = np.asarray(t5_bucket(distance, bidirectional=name == "t5_both", num_buckets=rows, max_distance=9))
    return (row[..., None] == np.arange(rows))[..., None, None] * np.eye(N)


def dense(name, table, distance=DISTANCE):
    """The bias as an array `[..., N, T, S]`, in the table's precision."""
    table = table.reshape(-1, N)
    bias = np.einsum("rn,...rnm->...m", table, features(name, distance))
    return np.moveaxis(bias, -1, -3).astype(table.dtype)


def to_table(name, d_bias, distance=DISTANCE):
    """The gradient of `dense`, summed over the batch."""
    grid = features(name, distance)
    grid = np.broadcast_to(grid, (len(d_bias), *grid.shape[-5:]))
    return np.einsum("bmts,btsrnm->rn", d_bias, grid).reshape(TABLES[name].shape)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", BIASES)
def test_values_and_gradients(name, implementation):
    *arrays, d_out, d_lse = INPUTS
    arrays.append(TABLES[name])
    given = {"implementation": implementation, "return_residual": True, **IMPLEMENTATIONS[implementation]}

    def attend(query, key, value, table):
        return dot_product_attention(query, key, value, BIASES[name](table), is_causal=True, **given)

    results = oracle.value_and_vjp(attend, arrays, (d_out, d_lse))

    def wanted(query, key, value, table, d_out, d_lse):
        bias, causal = dense(name, table), DISTANCE <= 0
        *to_inputs, d_bias = oracle.gradients(query, key, value, bias, d_out, d_lse, causal)
        return oracle.attention(query, key, value, bias, causal), (*to_inputs, to_table(name, d_bias))

    oracle.assert_exact(results, wanted, *arrays, d_out, d_lse)


@pytest.mark.parametrize("name", BIASES)
def test_any_tile_is_a_part_of_the_dense_bias(name):
    whole = dense(name, TABLES[name])
    bias = BIASES[name](jnp.asarray(TABLES[name]))
    bias = ScoreFunction(bias) if callable(bias) else bias
    for row, rows, column, columns, head, heads in ((0, T, 0, S, 0, N), (3, 4, 6, 7, 1, 2), (10, 1, 0, 5, 2, 1), (2, 5, 12, 1, 0, 1)):  # fmt: skip
        score = jnp.ones((heads, rows, columns))
        part = whole[head : head + heads, row : row + rows, column : column + columns]
        tile = Tile(row, rows, column, columns, head, heads)
        np.testing.assert_allclose(bias.apply(score, tile), 1 + part, rtol=0, atol=4 * oracle.ULP * np.abs(whole).max())


@pytest.mark.parametrize("name", BIASES)
def test_positions_steer_biases(name):
    """Every batch entry has positions of its own; a window of blocks sees the right part of them."""
    *arrays, d_out, d_lse = INPUTS
    arrays.append(TABLES[name])
    query_positions, key_positions = RNG.integers(0, 20, (2, T)), RNG.integers(0, 20, (2, S))
    distance = key_positions[:, None, :] - query_positions[..., None]

    def attend(query, key, value, table):
        given = dict(query_positions=query_positions, key_positions=key_positions, return_residual=True)
        bias = BIASES[name](table)
        return dot_product_attention(query, key, value, bias, implementation="blockwise", block_sizes=(4, 5), **given)

    results = oracle.value_and_vjp(attend, arrays, (d_out, d_lse))

    def wanted(query, key, value, table, d_out, d_lse):
        bias = dense(name, table, distance)
        *to_inputs, d_bias = oracle.gradients(query, key, value, bias, d_out, d_lse)
        return oracle.attention(query, key, value, bias), (*to_inputs, to_table(name, d_bias, distance))

    oracle.assert_exact(results, wanted, *arrays, d_out, d_lse)


def test_by_distance_is_the_direct_lookup():
    table = jnp.asarray(RNG.standard_normal((60, N), np.float32))

    def lookup(distance):
        return table[distance + 30]

    for row, rows, column, columns in ((0, 11, 0, 13), (7, 4, 2, 9), (0, 1, 5, 6), (20, 8, 3, 1), (4, 1, 4, 1)):
        tile = Tile(row, rows, column, columns, 0, N)
        distance = np.arange(column, column + columns) - np.arange(row, row + rows)[:, None]
        expected = np.moveaxis(np.asarray(lookup(distance)), -1, 0)
        np.testing.assert_array_equal(by_distance(lookup, tile), expected)
        at = dict(query_positions=jnp.arange(40), key_positions=jnp.arange(40))
        np.testing.assert_array_equal(by_distance(lookup, tile._replace(**at)), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_list_is_applied_in_its_order(implementation):
    *arrays, d_out, d_lse = INPUTS
    table = 3 * TABLES["relative"]
    array = RNG.standard_normal((N, T, 1)).astype(np.float32)
    given = {"implementation": implementation, **IMPLEMENTATIONS[implementation]}
    score = np.einsum("btnh,bsnh->bnts", arrays[0], np.repeat(arrays[1], N, -2)) * arrays[0].shape[-1] ** -0.5

    def out(bias, **more):
        return dot_product_attention(*arrays, bias, **given, **more)

    def cap(x, c):
        return c * np.tanh(x / c)

    relative = dense("relative", table)
    double = lambda score, q, k, head: 2 * score  # noqa: E731
    cases = [
        ([array, Relative(table), SoftCap(1.5)], {}, cap(score + array + relative, 1.5)),
        ([array, SoftCap(1.5), Relative(table)], {}, cap(score + array, 1.5) + relative),
        ([SoftCap(0.5), double, Relative(table)], {}, 2 * cap(score, 0.5) + relative),
        ([array, lambda score, q, k, head: jnp.cos(q - k)], {}, np.broadcast_to(np.cos(DISTANCE), score.shape)),
        ((double, SoftCap(0.5)), {"softcap": 1.5}, cap(2 * cap(score, 1.5), 0.5)),
        ([array], {"softcap": 1.5}, cap(score, 1.5) + array),
    ]
    for bias, more, changed in cases:
        # The oracle sees the changed scores as a bias on scores of zero.
        zero = np.zeros_like(arrays[0])
        oracle.assert_exact(
            out(bias, **more), lambda q, k, v, b: oracle.attention(q, k, v, b)[0], zero, *arrays[1:], changed
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_captured_integers_and_transforms(implementation):
    """A function may capture traced integers, such as document ids, under jit, vmap, grad and remat together."""
    *arrays, _, _ = INPUTS
    given = {"implementation": implementation, **IMPLEMENTATIONS[implementation]}
    ids, weights = RNG.integers(0, 3, (2, 20)), RNG.standard_normal(2).astype(np.float32)

    def loss(query, key, value, ids, weight):
        def bias(score, q, k, head):
            return score + jnp.where(ids[q] == ids[k], weight, 0)

        return (dot_product_attention(query, key, value, bias, **given) ** 2).sum()

    fn = jax.value_and_grad(jax.checkpoint(loss), (0, 1, 2, 4))
    results = jax.jit(jax.vmap(fn))(*arrays, ids, weights)

    def wanted(query, key, value, weight):
        same = ids[:, :T, None] == ids[:, None, :S]
        bias = (same * weight[:, None, None])[:, None]
        out, _ = oracle.attention(query, key, value, bias)
        *to_inputs, d_bias = oracle.gradients(query, key, value, bias, 2 * out)
        return (out**2).sum((1, 2, 3)), (*to_inputs, (d_bias * same[:, None]).sum((1, 2, 3)))

    oracle.assert_exact(results, wanted, *arrays, weights)


def test_half_precision_tables_lose_nothing_in_the_sum():
    """The gradient of a bfloat16 table is summed in float32 and rounded once: 600 ones are 600, not 256."""
    table = jnp.zeros((3, 1), jnp.bfloat16)
    tile = Tile(0, 30, 0, 40, 0, 1)
    for bias in (Relative(table), T5(jnp.zeros((2, 1), jnp.bfloat16), max_distance=9)):
        gradient = jax.grad(lambda b, tile=tile: b.apply(jnp.zeros((1, 30, 40)), tile).sum())(bias)
        assert float(gradient.table.astype(jnp.float32).sum()) == pytest.approx(1200, rel=2**-8)


def test_float64_tables_beside_float32_inputs():
    *arrays, d_out, _ = INPUTS
    with jax.enable_x64(True):
        more = [jnp.asarray(TABLES["relative"], jnp.float64), jnp.ones((1, T, S))]

        def attend(query, key, value, table, array):
            given = {"implementation": "blockwise", **IMPLEMENTATIONS["blockwise"]}
            return dot_product_attention(query, key, value, [array, Relative(table)], **given)

        out, gradients = oracle.value_and_vjp(attend, (*arrays, *more), d_out)
    assert [x.dtype for x in (out, *gradients)] == [np.float32] * 4 + [np.float64] * 2

    def wanted(*arrays):
        return to_table("relative", oracle.gradients(*arrays[:3], dense("relative", arrays[3]), *arrays[4:])[3])

    oracle.assert_exact(gradients[3], wanted, *arrays, TABLES["relative"], d_out)


def attend(bias=None, **more):
    return dot_product_attention(*INPUTS[:3], bias, **more)


@pytest.mark.parametrize(
    "bias, message",
    [
        (ALiBi(np.ones(N + 1)), r"ALiBi.slopes: wanted \[N\] with N = 3 query heads, got shape \(4,\)"),
        (ALiBi(np.ones((N, 1))), r"ALiBi.slopes: wanted \[N\]"),
        (ALiBi([0.5, 0.25, 0.125]), r"ALiBi.slopes: wanted an array, got list"),
        (T5(np.ones((8, N + 1))), r"T5.table: wanted \[rows, N\] with N = 3 query heads, got shape \(8, 4\)"),
        (T5(np.ones((7, N)), bidirectional=True), r"num_buckets: wanted an even number >= 4, got 7"),
        (T5(np.ones((1, N))), r"num_buckets: wanted >= 2, got 1"),
        (T5(np.ones((8, N)), max_distance=4), r"max_distance: wanted more than the 4 exact buckets, got 4"),
        (Relative(np.ones((4, N))), r"Relative.table: wanted an odd number of rows 2L - 1, got 4"),
        (Relative(np.ones(5)), r"Relative.table: wanted \[rows, N\]"),
        (SoftCap(0.0), r"SoftCap.cap: wanted a positive number, got 0.0"),
        (np.ones((T, S), int), r"bias: wanted a float array, got dtype int"),
        (np.ones((T, S), bool), r"bias: wanted a float array, got dtype bool \(a bool array is a mask\)"),
        (np.ones((T, S + 1)), r"bias: wanted a shape that broadcasts to \(2, 3, 11, 13\), got \(11, 14\)"),
        ([SoftCap(2.0), np.ones((T, S))], r"bias: an array is added first, so in a list it must stand first"),
        ([np.ones((T, S)), np.ones((T, S))], r"bias: an array is added first"),
        (lambda s, q, k, h: s[None, None, None], r"bias: wanted a function that keeps the score's shape"),
        ("alibi", r"bias: wanted a float array, a Bias or a function, got str"),
        (Causal(), r"bias: wanted a float array, a Bias or a function, got Causal"),
    ],
)  # fmt: skip
def test_refusals(bias, message):
    for implementation in IMPLEMENTATIONS:
        with pytest.raises(ValueError, match=message):
            attend(bias, implementation=implementation)


def test_refusals_of_the_helpers():
    with pytest.raises(ValueError, match="num_heads: wanted at least 1, got 0"):
        alibi_slopes(0)
    with pytest.raises(ValueError, match="softcap: wanted a positive number or None, got -1"):
        attend(softcap=-1.0)
