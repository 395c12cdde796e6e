"""Softmax attention from its definition, in NumPy: what every exact variant is held to, values and gradients."""

import functools

import jax
import numpy as np

ULP = 2.0**-23


def attention(query, key, value, bias=0.0, allowed=True, *, scale=None, softcap=None):
    """Output `[..., T, N, Hv]` and log-sum-exp `[..., T, N]`, in the precision of the arguments."""
    weight, lse, _ = _weights(query, key, bias, allowed, scale, softcap)
    return np.einsum("...nts,...snv->...tnv", weight, _spread(value, query)), np.swapaxes(lse, -1, -2)


def gradients(query, key, value, bias, d_out, d_lse=0.0, allowed=True, *, scale=None, softcap=None):
    """Gradients of sum(out * d_out) + sum(lse * d_lse) by hand: query, key, value, and `[..., N, T, S]` for the bias."""
    weight, _, slope = _weights(query, key, bias, allowed, scale, softcap)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = np.einsum("...nts,...snv->...tnv", weight, _spread(value, query))
    d_weight = np.einsum("...tnv,...snv->...nts", d_out, _spread(value, query))
    delta = np.swapaxes((d_out * out).sum(-1) - d_lse, -1, -2)[..., None]
    d_bias = weight * (d_weight - delta)
    d_score = d_bias * slope * query.dtype.type(scale)
    return (
        np.einsum("...nts,...snh->...tnh", d_score, _spread(key, query)),
        _gather(np.einsum("...nts,...tnh->...snh", d_score, query), key),
        _gather(np.einsum("...nts,...tnv->...snv", weight, d_out), value),
        d_bias,
    )


def _weights(query, key, bias, allowed, scale, softcap):
    """Weights `[..., N, T, S]`, log-sum-exps `[..., N, T]`, and the slope of the soft cap."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    score = np.einsum("...tnh,...snh->...nts", query, _spread(key, query)) * query.dtype.type(scale)
    slope = 1
    if softcap is not None:
        bent = np.tanh(score / query.dtype.type(softcap))
        score, slope = query.dtype.type(softcap) * bent, 1 - bent * bent
    score = np.where(allowed, score + np.asarray(bias, query.dtype), -np.inf)
    top = score.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    weight = np.exp(score - top)
    total = weight.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    return weight / np.where(total == 0, 1, total), lse, slope


def _spread(x, query):
    """Each key head once a query head."""
    return np.repeat(x, query.shape[-2] // x.shape[-2], axis=-2)


def _gather(x, like):
    """The gradient of `_spread`."""
    return x.reshape(*x.shape[:-2], like.shape[-2], -1, x.shape[-1]).sum(-2)


def sum_to(x, shape):
    """The gradient of broadcasting `shape` to x's."""
    x = x.reshape(-1, *x.shape[x.ndim - len(shape) :]).sum(0)
    return x.sum(tuple(a for a, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def inputs(T, S=None, N=6, K=3, H=5, Hv=7, lead=(2,), seed=0):
    """Query, key, value, the cotangent of the output and that of the log-sum-exp, float32."""
    rng = np.random.default_rng(seed)
    shapes = ((T, N, H), (S or T, K, H), (S or T, K, Hv), (T, N, Hv), (T, N))
    return [rng.standard_normal((*lead, *shape), np.float32) for shape in shapes]


@functools.partial(jax.jit, static_argnums=0)
def value_and_vjp(fn, arrays, cotangent, *rest):
    """`fn(*arrays, *rest)` and the gradients with respect to `arrays` of its sum with the cotangent."""
    out, pullback = jax.vjp(lambda *a: fn(*a, *rest), *arrays)
    return out, pullback(cotangent)


def assert_exact(got, fn, *arrays, rounded_to=None):
    """`got` is as close to `fn` in float64 as float32 arithmetic brings it.

    The error allowed is 8 times what `fn` itself makes in float32 at its worst element, and 2 units of the largest
    number, since an element may be lucky in `fn` and not in ours. A result `rounded_to` a narrower dtype may be half a
    unit of that further off.
    """
    got, exact, low = (jax.tree.leaves(x) for x in (got, fn(*as_float64(arrays)), fn(*as_float32(arrays))))
    for ours, want, rough in zip(got, exact, low, strict=True):
        ours, finite = np.asarray(ours, np.float64), np.isfinite(want)
        assert ours.shape == want.shape
        largest = np.abs(want[finite]).max(initial=0)
        atol = 8 * np.abs(rough[finite] - want[finite]).max(initial=0) + 2 * ULP * largest
        rtol = 0 if rounded_to is None else float(jax.numpy.finfo(rounded_to).eps) / 2
        np.testing.assert_allclose(ours, want, rtol=rtol, atol=atol)


def as_float64(arrays):
    return [np.asarray(x, np.float64) for x in arrays]


def as_float32(arrays):
    return [np.asarray(x, np.float32) for x in arrays]
