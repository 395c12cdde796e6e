"""Retention and gated linear attention: the forms they are equal to, defaults, refusals. See test_recurrences.py too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention.gated_linear import gated_linear_attention, retention
from attention.linear import linear_attention

T, N, K = 11, 6, 3
*ARRAYS, D_OUT, _ = oracle.inputs(T, None, N, K)
GAMMA = np.array([0.5, 0.9, 1.0, 0.99, 0.7, 0.2], np.float32)


def rounding(got, want, ulps=32):
    np.testing.assert_allclose(got, want, rtol=0, atol=ulps * oracle.ULP * np.abs(want).max())


def parallel(query, key, value, decay):
    """The paper's equation 5, all pairs at once: (scale Q K^T * D) V."""
    key, value = (np.repeat(x, N // K, axis=-2) for x in (key, value))
    distance = np.arange(T)[:, None] - np.arange(T)
    weight = np.where(distance >= 0, decay[:, None, None] ** np.maximum(distance, 0), 0)
    scores = np.einsum("bihn,bjhn->bhij", query, key) * query.dtype.type(query.shape[-1] ** -0.5)
    return np.einsum("bhij,bjhv->bihv", scores * weight, value)


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_retention_is_its_parallel_form(chunk_size):
    out = retention(*ARRAYS, decay=GAMMA, chunk_size=chunk_size)
    oracle.assert_exact(out, parallel, *ARRAYS, GAMMA)
    default = np.array([1 - 2 ** -(5 + h) for h in range(N)], np.float32)
    oracle.assert_exact(retention(*ARRAYS, chunk_size=chunk_size), parallel, *ARRAYS, default)


def test_gradient_of_the_decay():
    def loss(decay):
        return (retention(*ARRAYS, decay=decay, chunk_size=4) * D_OUT).sum()

    def by_hand(query, key, value, decay, d_out):
        step = 1j * decay.dtype.type(2.0**-60)
        out = [parallel(query, key, value, decay + step * np.eye(N, dtype=decay.dtype)[h]) for h in range(N)]
        return np.stack([(x.imag * d_out).sum() for x in out]) / step.imag

    oracle.assert_exact(jax.jit(jax.grad(loss))(GAMMA), by_hand, *ARRAYS, GAMMA, D_OUT)


def test_one_number_per_head_is_the_same_number_per_feature():
    per_head = -np.exp(np.random.default_rng(2).standard_normal((2, T, K))).astype(np.float32)
    per_feature = np.repeat(per_head[..., None], 5, axis=-1)
    one = gated_linear_attention(*ARRAYS, per_head, chunk_size=4)
    rounding(gated_linear_attention(*ARRAYS, per_feature, chunk_size=4), one)
    rounding(gated_linear_attention(*ARRAYS, per_head[..., None], chunk_size=4), one)  # sizes of 1 are broadcast


def test_retention_is_a_constant_gate():
    key, value = (np.repeat(x, N // K, axis=-2) for x in ARRAYS[1:])
    gate = np.log(GAMMA)[None, None]
    rounding(gated_linear_attention(ARRAYS[0], key, value, gate, chunk_size=4), retention(*ARRAYS, decay=GAMMA))


def test_no_decay_is_unnormalised_linear_attention():
    settings = dict(causal=True, normalize=False, chunk_size=4, feature_map=lambda x: x)
    plain = linear_attention(*ARRAYS, **settings)
    for decay in (np.zeros((1, 1, K)), np.zeros((1, 1, 1, 5))):
        rounding(gated_linear_attention(*ARRAYS, decay.astype(np.float32), scale=1.0, chunk_size=4), plain)
    rounding(retention(*ARRAYS, decay=np.ones(N), scale=1.0), plain)


def test_masked_positions_count_for_retention_only():
    """Two documents' worth of the same tokens, one with a gap: the gap fades retention, and nothing else."""
    gap = np.arange(T) == 5
    short = [np.delete(x, 5, axis=1) for x in ARRAYS]
    gate = -np.exp(np.random.default_rng(2).standard_normal((2, T, K, 5))).astype(np.float32)
    out = gated_linear_attention(*ARRAYS, gate, key_mask=~gap, chunk_size=4)
    rounding(out[:, ~gap], gated_linear_attention(*short, np.delete(gate, 5, axis=1), chunk_size=4))
    out = retention(*ARRAYS, decay=GAMMA, key_mask=~gap)
    masked = [ARRAYS[0], ARRAYS[1] * ~gap[:, None, None], ARRAYS[2]]
    rounding(out[:, ~gap], retention(*masked, decay=GAMMA)[:, ~gap])
    assert (np.abs(out[:, ~gap] - retention(*short, decay=GAMMA))[:, 5:].max((1, 3)) > 0.01)[:, GAMMA < 0.9].all()


def test_long_sequences_under_strong_decay_stay_exact():
    """A thousand tokens, gates from 1 - 1e-4 to e^-20: float32 loses no more than the recurrence itself does."""
    length, H = 1000, 5
    rng = np.random.default_rng(5)
    query, key, value = rng.standard_normal((3, length, 1, H)).astype(np.float32)
    gate = -(10 ** rng.uniform(-4, 1.3, (length, 1, H))).astype(np.float32)

    def naive(query, key, value, gate):
        state, out = 0, []
        for t in range(length):
            state = state * np.exp(gate[t, 0, :, None]) + key[t, 0, :, None] * value[t, 0]
            out.append(query[t, 0] @ state * query.dtype.type(H**-0.5))
        return np.stack(out)[:, None]

    for arrays in ((query, key, value, gate), (query, key, value, gate[..., :1])):
        given = arrays if arrays[3].shape[-1] == H else (*arrays[:3], arrays[3][..., 0])
        oracle.assert_exact(jax.jit(gated_linear_attention)(*given), naive, *arrays)


@pytest.mark.parametrize(
    "decay, message",
    [
        (GAMMA[:3], r"decay: wanted one float per query head, \[6\], got float32 \[3\]"),
        (np.ones(N, int), "decay: wanted one float per query head"),
        (np.log(GAMMA), r"decay: wanted gamma in \(0, 1\], got .*; logarithms go to gated_linear_attention"),
        (GAMMA * 2, r"decay: wanted gamma in \(0, 1\]"),
    ],
)
def test_wrong_decays(decay, message):
    for call in (retention, jax.jit(functools.partial(retention, decay=decay))):
        with pytest.raises(ValueError, match=message):
            call(*ARRAYS) if call is not retention else call(*ARRAYS, decay=decay)


def test_decay_may_be_a_jax_array():
    rounding(retention(*ARRAYS, decay=jnp.asarray(GAMMA)), retention(*ARRAYS, decay=GAMMA), ulps=1)
