"""Sparse functions against the oracle under their materialised patterns, and what their tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle

from attention import alibi_slopes
from attention.biases import ALiBi, SoftCap

N = 6
RNG = np.random.default_rng(0)
BLOCKWISE = {"implementation": "blockwise"}
VECTORS = ("key_mask", "query_segment_ids", "key_segment_ids")


def grids(T):
    return np.arange(T)[:, None], np.arange(T)


def restrict(allowed, causal=False, key_mask=None, query_segment_ids=None, key_segment_ids=None):
    """The pattern `[..., N or 1, T, T]` and everything else that hides keys."""
    i, j = grids(allowed.shape[-1])
    if causal:
        allowed = allowed & (j <= i)
    if key_mask is not None:
        allowed = allowed & np.asarray(key_mask)[..., None, None, :]
    if query_segment_ids is not None:
        same = np.asarray(query_segment_ids)[..., None] == np.asarray(key_segment_ids)[..., None, :]
        allowed = allowed & (same & (np.asarray(query_segment_ids) >= 0)[..., None])[..., None, :, :]
    return allowed


def alibi(T):
    i, j = grids(T)
    return -np.asarray(alibi_slopes(N))[:, None, None] * abs(i - j)


def packed(T, lead=(2,)):
    """Two documents and padding behind them."""
    ids = np.zeros((*lead, T), np.int32)
    ids[..., T // 3 :] = 1
    ids[..., T - T // 5 :] = -1
    return {"query_segment_ids": ids, "key_segment_ids": ids}


def padding(T):
    return RNG.random((2, T)) < 0.7


def assert_dense(fn, pattern, T, given, *, causal, K=3, lead=(2,), **data):
    """`fn(query, key, value, **given)` against the oracle, values and gradients.

    `pattern [..., N or 1, T, T]` is True where a key counts, or how often it counts. `data` are further arguments, which
    are traced.
    """
    *arrays, d_out, _ = oracle.inputs(T, None, N, K, lead=lead)
    vectors = {name: given[name] for name in VECTORS if name in given}
    allowed = restrict(pattern > 0, causal, **vectors)
    allowed = np.broadcast_to(allowed, (*lead, N, T, T))
    real = np.broadcast_to(given.get("key_mask", np.ones(T, bool)), (*lead, T))[..., None, None]
    d_out = np.where(real, d_out, 0)  # rows of masked tokens are unspecified
    changes = given.get("bias")
    settings = dict(scale=given.get("scale"), softcap=2.0 if isinstance(changes, SoftCap) else None)
    bias = alibi(T) if isinstance(changes, ALiBi) else changes if isinstance(changes, np.ndarray) else 0.0
    bias = bias + np.log(np.maximum(pattern, 1))
    rest = {name: x for name, x in given.items() if name not in vectors}
    traced = vectors | data

    def attend(query, key, value, *more):
        return fn(query, key, value, **rest, **dict(zip(traced, more, strict=True)))

    out, gradients = oracle.value_and_vjp(attend, arrays, d_out, *traced.values())
    seen = np.moveaxis(allowed.any(-1), -2, -1)[..., None]
    assert not np.asarray(out)[np.broadcast_to(~seen & real, out.shape)].any()

    def wanted(query, key, value, d_out):
        out = oracle.attention(query, key, value, bias, allowed, **settings)[0]
        return np.where(real, out, 0), oracle.gradients(query, key, value, bias, d_out, 0.0, allowed, **settings)[:3]

    oracle.assert_exact((np.where(real, out, 0), gradients), wanted, *arrays, d_out)


@functools.partial(jax.jit, static_argnums=(0, 1))
def weights(fn, T, key=None):
    """The weights `[N, T, T]` of `fn`, as attention over one-hot values with equal scores; dropped by `key`."""
    zero = jnp.zeros((T, N, 1))
    value = jnp.broadcast_to(jnp.eye(T)[:, None], (T, N, T))
    return jnp.moveaxis(fn(zero, zero, value, **({} if key is None else {"rng": key, "dropout_rate": 0.4})), 1, 0)


def assert_dropout(fn):
    """Weights are zeroed or grown by 1 / 0.6, independently of each other, the same each time for one key."""
    drop = functools.partial(weights, fn, 31)
    whole, dropped = np.asarray(drop()), np.asarray(drop(jax.random.key(0)))
    live = whole > 0
    assert not dropped[~live].any()
    kept = dropped[live] > 0
    np.testing.assert_allclose(dropped[live][kept], whole[live][kept] / 0.6, rtol=16 * oracle.ULP)
    assert abs(kept.mean() - 0.6) < 4 * np.sqrt(0.24 / kept.size)
    np.testing.assert_array_equal(drop(jax.random.key(0)), dropped)
    other = np.asarray(drop(jax.random.key(1)))[live] > 0
    assert abs((other & kept).mean() - 0.36) < 5 * np.sqrt(0.36 * 0.64 / kept.size)


def project(x, weight, bias, num_heads):
    """A golden case's linear layer and its split into heads, `[B, T, E] -> [B, T, N, H]`."""
    return (x @ weight.T + bias).reshape(*x.shape[:-1], num_heads, -1)
