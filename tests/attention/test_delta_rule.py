"""The delta rule as a memory: what it recalls, when it overshoots, how exact its chunks are. See test_recurrences.py."""

import jax
import numpy as np
import oracle
import pytest
from test_recurrences import VARIANTS, recurrence

from attention.delta_rule import _unit_lower_inverse, delta_rule_attention

H, HV = 5, 7


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounding(got, want, ulps=32):
    np.testing.assert_allclose(got, want, rtol=0, atol=ulps * oracle.ULP * np.abs(want).max())


def test_recalls_the_last_value_of_each_key():
    """Orthonormal keys, each written several times with beta = 1: asked again, each gives what was written last."""
    basis = np.linalg.qr(normal(H, H))[0].astype(np.float32)
    written = np.array([0, 3, 1, 0, 2, 4, 3, 3, 1, 0, 2])
    key, value = basis[written][:, None], normal(11, 1, HV, seed=1)
    ones = np.ones([11, 1], np.float32)
    out, state = delta_rule_attention(key, key, value, ones, scale=1.0, chunk_size=4, return_state=True)
    rounding(out, value)  # each token finds its own value
    last = [np.flatnonzero(written == i)[-1] for i in range(H)]
    rounding(basis @ np.asarray(state[0]), value[last, 0])


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5, 2.5])
def test_along_its_key_the_state_shrinks_by_one_minus_beta_k2(strength):
    """Beyond 2 it grows."""
    key = normal(1, 1, H)
    beta = np.float32(strength) / (key**2).sum(-1)
    state = normal(1, H, HV, seed=1)
    settings = dict(initial_state=state, return_state=True)
    _, after = delta_rule_attention(key, key, np.zeros([1, 1, HV], np.float32), beta, **settings)
    before, after = key[0, 0] @ state[0], key[0, 0] @ np.asarray(after[0])
    np.testing.assert_allclose(after, (1 - strength) * before, rtol=0, atol=16 * oracle.ULP * np.abs(before).max())


def test_no_decay_is_log_decay_zero():
    query, key, value = (normal(11, 3, width, seed=width) for width in (H, H, HV))
    beta = np.full([11, 3], 0.3, np.float32)
    plain = delta_rule_attention(query, key, value, beta, chunk_size=4)
    rounding(delta_rule_attention(query, key, value, beta, log_decay=0 * beta, chunk_size=4), plain, ulps=2)
    rounding(delta_rule_attention(query, key, value, beta[:, :1], chunk_size=4), plain, ulps=2)  # sizes of 1


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.9])
def test_a_chunk_of_equal_keys_stays_exact(beta):
    """The hardest system: a power series for its inverse would add numbers near 2^60 to reach numbers near 1."""
    length, chunk_size = 128, 64
    key = np.broadcast_to(normal(1, 1, H), (1, length, 1, H))
    key = key / np.linalg.norm(key, axis=-1, keepdims=True)
    query, value = normal(1, length, 1, H, seed=1), normal(1, length, 1, HV, seed=2)
    arrays = [query, key, value, np.full([1, length, 1], beta, np.float32)]
    out = jax.jit(delta_rule_attention)(*arrays)
    exact, _ = recurrence(VARIANTS["delta"], oracle.as_float64(arrays), np.zeros([1, 1, H, HV]))
    # The corrections of a chunk, near the output in size, are added up with either sign (beta > 1).
    np.testing.assert_allclose(out, exact, rtol=0, atol=2 * chunk_size * oracle.ULP * np.abs(exact).max())


@pytest.mark.parametrize("size", [1, 2, 8])
def test_unit_lower_inverse(size):
    matrix, change = normal(2, size, size), normal(2, size, size, seed=1)

    def inverse(matrix, change):
        matrix = np.tril(matrix, -1) + np.eye(size, dtype=matrix.dtype)
        inverse = np.linalg.inv(matrix)
        return inverse, -inverse @ np.tril(change, -1) @ inverse

    got = jax.jit(lambda *a: jax.jvp(_unit_lower_inverse, a[:1], a[1:]))(matrix, change)
    oracle.assert_exact(got, inverse, matrix, change)
