"""Local attention: blocks of tokens that see themselves and their neighbours."""

from __future__ import annotations

import jax.numpy as jnp

from .biases import Bias
from .checks import check_dropout, check_int, check_self_attention, check_vector, quiet_padding
from .dot_product import dot_product_attention
from .masks import Blocks, Causal, Full, Window
from .tile import plain_promotion


@plain_promotion
def local_attention(
    query,
    key,
    value,
    *,
    window: int,
    causal: bool = False,
    look_backward: int = 1,
    look_forward: int | None = None,
    exact_window: bool = False,
    circular: bool = False,
    key_mask=None,
    query_segment_ids=None,
    key_segment_ids=None,
    bias: Bias | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
    implementation: str | None = None,
):
    """Attention among blocks of `window` tokens: each sees itself, the blocks just before it and those just behind.

        block(i) = floor(i / window)
        out_i = softmax over {j : -look_backward <= block(j) - block(i) <= look_forward}

    The block-local form of Image Transformer (Parmar et al. 2018, arXiv:1802.05751, section 3.3) and Routing
    Transformer (Roy et al. 2020, arXiv:2003.05997), with the arguments of the local-attention package. A query sees
    between look_backward * window and (look_backward + 1) * window - 1 tokens to its left; `exact_window` cuts that to
    the same number for all, as `Window` and Longformer have it. `circular` is the local attention of Reformer's authors
    (trax): the block before the first is the last.

    Where there are fewer blocks than a circular query looks at, it reaches some of them several times round, and their
    keys count as often, as in transformers' Reformer. Without `circular` no key counts twice.

    Time O(T window (1 + look_backward + look_forward)), memory O(T). Any T: the last block is cut.

    Args:
      query: `[..., T, N, H]`. This is self-attention: S = T.
      key: `[..., T, K, H]`.
      value: `[..., T, K, Hv]`.
      window: tokens a block.
      causal: hide keys after the query.
      look_backward: blocks before its own that a query sees.
      look_forward: blocks behind its own; None = 0 if causal, else 1.
      exact_window: hide keys more than look_backward * window before the query or look_forward * window behind it.
      circular: the blocks form a ring.
      key_mask: bool `[..., T]`, True = real token. Rows of masked tokens are unspecified.
      query_segment_ids: int `[..., T]`, packed documents; negative = padding.
      key_segment_ids: int `[..., T]`.
      bias: float array `[..., N, T, T]`, `Bias`, function or list, as in `dot_product_attention`.
      scale: None = H ** -0.5.
      dropout_rate: dropout on the weights.
      rng: a `jax.random.key`, wanted with dropout.
      implementation: of the exact attention underneath.

    Returns:
      `[..., T, N, Hv]` in query's dtype.

    Raises:
      ValueError: arguments that do not fit, named.
      NotImplementedError: `exact_window` together with `circular`.

    >>> x = jnp.ones((1, 16, 2, 4))
    >>> local_attention(x, x, x, window=4, causal=True).shape
    (1, 16, 2, 4)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    check_self_attention(query, key, value)
    check_dropout(dropout_rate, rng)
    *lead, T, _, _ = query.shape
    if look_forward is None:
        look_forward = 0 if causal else 1
    check_int("window", window, 1)
    check_int("look_backward", look_backward, 0)
    check_int("look_forward", look_forward, 0)
    if causal and look_forward and not circular:
        raise ValueError(
            f"look_forward: wanted 0 with causal=True, got {look_forward}; blocks behind are hidden anyway"
        )
    if exact_window and circular:
        raise NotImplementedError("exact_window: distances do not go round a ring; use it with circular=False")

    pattern = Blocks(window, -look_backward, look_forward)
    if exact_window:
        pattern &= Window(window * look_backward, window * look_forward)
    if circular:
        blocks = -(-T // window)
        pattern = _ring(pattern, blocks)
        if look_backward + look_forward >= blocks > 1:
            given = [] if bias is None else bias if isinstance(bias, (list, tuple)) else [bias]
            bias = [*given, _count_repeats(window, look_backward, look_forward, blocks)]
    key_mask = check_vector("key_mask", key_mask, lead, T, dtype=bool)
    query = quiet_padding(query, key_mask)
    return dot_product_attention(
        query, key, value, bias, pattern & Causal() if causal else pattern,
        key_mask=key_mask, query_segment_ids=query_segment_ids, key_segment_ids=key_segment_ids,
        scale=scale, dropout_rate=dropout_rate, rng=rng, implementation=implementation,
    )  # fmt: skip


def _ring(pattern, blocks):
    """`pattern` on a ring of `blocks`: what reaches past one end comes in from the other."""
    size, first, last = pattern.size, pattern.first, pattern.last
    if last - first + 1 >= blocks:
        return Full()
    return pattern | Blocks(size, first + blocks, last + blocks) | Blocks(size, first - blocks, last - blocks)


def _count_repeats(size, backward, forward, blocks):
    """A bias by which each key counts as often as going round the ring reaches its block."""

    def change(score, query_position, key_position, head):
        step = key_position // size - query_position // size
        # The numbers from -backward to forward that equal step modulo blocks.
        times = (forward - step) // blocks + (backward + step) // blocks + 1
        return score + jnp.log(times.astype(score.dtype))

    return change
