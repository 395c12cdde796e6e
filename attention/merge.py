"""Combining attention over disjoint sets of keys."""

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
    dtype = outputs[0].dtype
    residuals = jnp.stack(list(residuals))
    outputs = jnp.stack(list(outputs)).astype(residuals.dtype)
    top = jax.lax.stop_gradient(residuals.max(0))
    top = jnp.where(top == -jnp.inf, 0, top)
    weight = jnp.exp(residuals - top)
    total = weight.sum(0)
    empty = total == 0
    seen = jnp.where(empty, 1, total)
    weight = (weight / seen)[..., None]
    out = (jnp.where(weight == 0, 0, outputs) * weight).sum(0)  # a part without keys may hold anything
    return out.astype(dtype), jnp.where(empty, -jnp.inf, top + jnp.log(seen))
