"""Every function works under JAX's strict flags, with arguments of fewer axes and of narrow integer types."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention.biases import T5, ALiBi
from attention.masks import Global, Prefix, Window

T, N, K, H = 13, 4, 2, 6
REAL = np.arange(T) < 9
IDS = np.sort(np.arange(T) % 3).astype(np.uint8)
BIAS = ALiBi(attention.alibi_slopes(N))
PACKED = {"query_segment_ids": IDS, "key_segment_ids": IDS}
CASES = {
    "lengths": (attention.dot_product_attention, {"key_value_seq_lengths": np.array([3, 9], np.uint32)}),
    "bias": (attention.dot_product_attention, {"bias": [jnp.ones((T, T)), BIAS], "key_mask": REAL}),
    "t5": (attention.dot_product_attention, {"bias": T5(jnp.ones((8, N), jnp.bfloat16)), "is_causal": True}),
    "masks": (attention.dot_product_attention, {"mask": Global(jnp.array([1], jnp.uint32)) | Prefix(3) | Window(1, 1)}),
    "dropout": (attention.dot_product_attention, {"dropout_rate": 0.2, "rng": jax.random.key(0), **PACKED}),
    "longformer": (
        attention.longformer_attention,
        {"window": 2, "global_positions": np.array([1, 3], np.uint8), "key_mask": REAL, "bias": BIAS},
    ),
    "strided": (attention.sparse_transformer_attention, {"stride": 4, "key_mask": REAL, **PACKED}),
    "fixed": (attention.sparse_transformer_attention, {"stride": 4, "pattern": "fixed", "bias": BIAS}),
    "bigbird": (attention.bigbird_attention, {"block_size": 3, "num_random_blocks": 0, "key_mask": REAL}),
    "linear": (attention.linear_attention, {"causal": True, "key_mask": REAL, **PACKED}),
    "rotary": (lambda query, key, value: attention.apply_rotary(query, np.arange(T, dtype=np.uint8)), {}),
    "merge": (lambda query, key, value: attention.merge([query] * 2, [jnp.zeros((2, T, N))] * 2)[0], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_strict_flags_change_nothing(case, dtype):
    function, arguments = CASES[case]
    query = jax.random.normal(jax.random.key(1), (2, T, N, H), dtype)
    key = value = query[:, :, :K]

    def total(query, key, value):
        return function(query, key, value, **arguments).astype(jnp.float32).sum()

    plain = jax.grad(total, argnums=(0, 1, 2))(query, key, value)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        strict = jax.grad(total, argnums=(0, 1, 2))(query, key, value)
    chex.assert_trees_all_equal_shapes_and_dtypes(plain, strict, (query, key, value))
    chex.assert_trees_all_equal(plain, strict)


@pytest.mark.parametrize(
    "implementation", ["blockwise", *(pytest.param(name, marks=pytest.mark.slow) for name in ("reference", "linear"))]
)
def test_nan_in_padded_queries_stays_in_their_rows(implementation):
    x = jax.random.normal(jax.random.key(2), (1, T, N, H))
    broken = jnp.where(REAL[:, None, None], x, jnp.nan)

    def attend(x):
        if implementation == "linear":
            return attention.linear_attention(x, x, x, key_mask=REAL)
        return attention.dot_product_attention(x, x, x, key_mask=REAL, implementation=implementation)

    def real_rows(x):
        return (attend(x)[:, REAL] ** 2).sum()

    wanted, got = (jax.value_and_grad(real_rows)(x) for x in (x, broken))
    assert np.isnan(attend(broken)[:, ~REAL]).all()
    np.testing.assert_allclose(wanted[0], got[0], rtol=1e-6)
    np.testing.assert_allclose(wanted[1][:, REAL], got[1][:, REAL], rtol=0, atol=1e-6 * np.abs(wanted[1]).max())
    assert (got[1][:, ~REAL] == 0).all()
