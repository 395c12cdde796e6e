"""A bias by distance in a graph against the same numbers as an array: values, gradients, batch entries, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention import biases, dot_product_attention, sparse_transformer_attention
from attention.biases import EachCut, GraphDistance, HeadSlice
from attention.sparse_transformer import sparse_pattern
from attention.tile import Tile

T, S, N, ROWS = 11, 13, 3, 5
IMPLEMENTATIONS = {"reference": {}, "blockwise": {"block_sizes": (4, 5)}}
RNG = np.random.default_rng(0)
INPUTS = oracle.inputs(T, S, N=N, K=1)  # query, key, value, and the cotangents of both results
DISTANCE = {"each": RNG.integers(0, ROWS, (2, T, S)), "shared": RNG.integers(0, ROWS, (T, S))}
TABLE = RNG.standard_normal((ROWS, N), np.float32)


def dense(table, distance):
    return np.moveaxis(table[distance], -1, -3)


def to_table(d_bias, distance):
    """The gradient of `dense`, summed over the batch."""
    distance = np.broadcast_to(distance, (len(d_bias), T, S))
    return np.stack([np.where(distance[:, None] == row, d_bias, 0).sum((0, 2, 3)) for row in range(ROWS)])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("entries", DISTANCE)
def test_values_and_gradients(entries, implementation):
    *arrays, d_out, d_lse = INPUTS
    distance = DISTANCE[entries]

    def attend(query, key, value, table):
        bias = GraphDistance(table, jnp.asarray(distance))
        given = {"implementation": implementation, "return_residual": True, **IMPLEMENTATIONS[implementation]}
        return dot_product_attention(query, key, value, bias, **given)

    def wanted(query, key, value, table, d_out, d_lse):
        bias = dense(table, distance)
        *to_inputs, d_bias = oracle.gradients(query, key, value, bias, d_out, d_lse)
        return oracle.attention(query, key, value, bias), (*to_inputs, to_table(d_bias, distance))

    results = oracle.value_and_vjp(attend, (*arrays, TABLE), (d_out, d_lse))
    oracle.assert_exact(results, wanted, *arrays, TABLE, d_out, d_lse)


def test_any_tile_is_a_part_of_the_dense_bias():
    distance = DISTANCE["each"]
    whole, bias = dense(TABLE, distance), GraphDistance(jnp.asarray(TABLE), jnp.asarray(distance))
    for entry, row, rows, column, columns, head, heads in ((0, 0, T, 0, S, 0, N), (1, 3, 4, 6, 7, 1, 2), (1, 10, 1, 0, 5, 2, 1)):  # fmt: skip
        part = whole[entry, head : head + heads, row : row + rows, column : column + columns]
        tile = Tile(row, rows, column, columns, head, heads, entry)
        got = bias.apply(jnp.zeros((heads, rows, columns)), tile)
        np.testing.assert_array_equal(got, part)
        at = {"query_positions": jnp.arange(row, row + rows), "key_positions": jnp.arange(column, column + columns)}
        np.testing.assert_array_equal(bias.apply(jnp.zeros((heads, rows, columns)), tile._replace(**at)), part)
        later = HeadSlice(bias, head, N)
        np.testing.assert_array_equal(later.apply(jnp.zeros((heads, rows, columns)), tile._replace(head=0)), part)
        cut = EachCut(bias, 3)  # entries 0 to 2 are parts of entry 0, those from 3 on of entry 1
        np.testing.assert_array_equal(
            cut.apply(jnp.zeros((heads, rows, columns)), tile._replace(batch=3 * entry + 2)), part
        )


def test_vmap_over_graphs_is_a_batch_of_them():
    *arrays, _, _ = INPUTS
    distance = jnp.asarray(DISTANCE["each"])

    def attend(query, key, value, distance):
        return dot_product_attention(query, key, value, [biases.SoftCap(2.0), GraphDistance(TABLE, distance)])

    np.testing.assert_allclose(
        jax.jit(jax.vmap(attend))(*arrays, distance), jax.jit(attend)(*arrays, distance), atol=8 * oracle.ULP
    )


@pytest.mark.parametrize("pattern", [
    {"pattern": "strided", "stride": 4}, {"pattern": "fixed", "stride": 4, "summary": 1}
])  # fmt: skip
@pytest.mark.parametrize("heads", ["merged", "split"])
def test_the_sparse_form_keeps_batch_entries_apart(pattern, heads):
    """It takes rows and columns of every text as batch entries of their own."""
    query, key, value = (RNG.standard_normal((2, S, 2, 3), np.float32) for _ in range(3))
    distance = RNG.integers(0, ROWS, (2, S, S))
    table = TABLE[:, :2]

    def sparse(table):
        bias = GraphDistance(table, jnp.asarray(distance))
        return sparse_transformer_attention(query, key, value, heads=heads, causal=False, bias=bias, **pattern)

    def wanted(table):
        mask = sparse_pattern(**pattern, heads=heads, causal=False, num_heads=2).dense(S, S)
        bias = jnp.moveaxis(table[distance], -1, -3)
        return dot_product_attention(query, key, value, bias, mask, implementation="reference")

    results = (jax.tree.leaves(oracle.value_and_vjp(f, (table,), query)) for f in (sparse, wanted))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP * np.abs(want).max())


@pytest.mark.parametrize("table, distance, message", [
    (TABLE[:, :2], DISTANCE["each"], r"GraphDistance.table: wanted \[rows, N\] with N = 3 query heads"),
    (TABLE, DISTANCE["each"][None], r"GraphDistance.distance: wanted integers \[T, S\] or \[B, T, S\], got int"),
    (TABLE, DISTANCE["each"] * 1.0, "GraphDistance.distance: wanted integers"),
])  # fmt: skip
def test_refuses(table, distance, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention(*INPUTS[:3], GraphDistance(table, distance))
