"""Combining attention over disjoint sets of keys."""

import functools
import operator

import jax
import jax.numpy as jnp

from .tile import plain_promotion


@plain_promotion
def merge(outputs, residuals):
    """Attention over a union of disjoint key sets, from the attention over each.

        out = sum_r exp(lse_r - lse) out_r,   lse = log sum_r exp(lse_r)

    Exact in exact arithmetic: the normalisers of softmax add (used by FlashAttention, arXiv:2205.14135, section 3.1,
    and ring attention, arXiv:2310.01889). Time and memory O(parts * T).

    Args:
      outputs: sequence of `[..., T, N, Hv]`, or one array stacked on axis 0.
      residuals: sequence of log-sum-exps `[..., T, N]` or one stacked array; -inf where a part holds no key.

    Returns:
      (output, residual); rows without any key are 0 and -inf.

    Raises:
      ValueError: no parts, or parts that do not fit one another.

    >>> out = jnp.ones((2, 3, 1, 4))  # two parts, T = 3
    >>> merge(out, jnp.zeros((2, 3, 1)))[0].shape
    (3, 1, 4)
    """
    if len(outputs) != len(residuals) or not len(outputs):
        raise ValueError(
            f"outputs, residuals: wanted the same number, at least 1, got {len(outputs)}, {len(residuals)}"
        )
    for out, residual in zip(outputs, residuals, strict=True):
        if out.shape != outputs[0].shape or residual.shape != out.shape[:-1]:
            raise ValueError(
                f"outputs, residuals: wanted [..., T, N, Hv] = {outputs[0].shape} and [..., T, N] in every part, got "
                f"{out.shape} and {residual.shape}"
            )
    # Part by part, not stacked: stacking would copy every output, and its gradient.
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, residuals))
    top = jnp.where(top == -jnp.inf, 0, top)
    weights = [jnp.exp(residual - top) for residual in residuals]
    total = functools.reduce(operator.add, weights)
    empty = total == 0
    seen = jnp.where(empty, 1, total)
    parts = [_part(out, (weight / seen)[..., None]) for out, weight in zip(outputs, weights, strict=True)]
    out = functools.reduce(operator.add, parts)
    return out.astype(outputs[0].dtype), jnp.where(empty, -jnp.inf, top + jnp.log(seen))


def _part(out, weight):
    return jnp.where(weight == 0, 0, out.astype(weight.dtype)) * weight  # a part without keys may hold anything
