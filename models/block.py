"""One layer of a stack: what its attention and its MLP add to the residual stream, and what all layers are given."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention.checks import split_rng
from models.layers import MLP, Attention, dropout, norm_of, one_for_all


class Block(nnx.Module):
    """One pre-norm layer, of a decoder or an encoder.

        x = x + mix(x);   x = x + feed(x)
        mix(x) = a = attention(norm(x)), and with cross-attention a + cross(norm(x + a));   feed(x) = mlp(norm(x))

    Norms in front of the branches keep gradients even at the start (Xiong et al. 2020, arXiv:2002.04745). Dropout acts
    on what each branch adds. `models.stack.Stack` does the adding, on one stream or on two.

    Args:
      config: the model's config; with a field `cross_attention` the layer reads a memory, too.
      length: the training length, of the memory as well.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs):
        def attention(field):
            return Attention(config, length=length, rngs=rngs, field=field, owner=not one_for_all(config[field]))

        self.rate = config.dropout
        self.attention_norm = norm_of(config, rngs)
        self.attention = attention("attention")
        self.crosses = "cross_attention" in config
        if self.crosses:
            self.cross_norm = norm_of(config, rngs)
            self.cross = attention("cross_attention")
        self.mlp_norm = norm_of(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def mix(self, x, rng, context):
        """What the attentions add to `x [B, T, width]`.

        Args:
          x: [B, T, width].
          rng: the training step's key, None in evaluation.
          context: a `Context`.
        """
        attention_rng, dropout_rng, cross_rng, cross_dropout_rng = split_rng(rng, 4)
        attended = self.attention(
            self.attention_norm(x),
            rotate=context.rotate,
            bias=context.bias,
            key_mask=context.key_mask,
            segment_ids=context.segment_ids,
            grid=context.grid,
            shared=context.shared.get("attention"),
            rng=attention_rng,
        )
        added = dropout(attended, self.rate, dropout_rng)
        if self.crosses:
            attended = self.cross(
                self.cross_norm(x + added),
                memory=context.memory,
                key_mask=context.memory_mask,
                shared=context.shared.get("cross_attention"),
                rng=cross_rng,
            )
            added += dropout(attended, self.rate, cross_dropout_rng)
        return added

    def step(self, x, state, context):
        """What attention adds to new tokens `x [B, t, width]` behind those of `state`; returns (added, new state)."""
        shared = context.shared.get("attention")
        x = self.attention_norm(x)
        return self.attention.step(x, state, rotate=context.rotate, bias=context.bias, shared=shared)

    def weights(self, x, context):
        """How much of each token every token of `x [B, T, width]` takes, [B, N, T, T] float32."""
        shared = context.shared.get("attention")
        return self.attention.weights(self.attention_norm(x), rotate=context.rotate, grid=context.grid, shared=shared)

    def feed(self, x, rng, context=None):
        """What the MLP adds to `x [B, T, width]`."""
        return dropout(self.mlp(self.mlp_norm(x)), self.rate, rng)


class Context(NamedTuple):
    """What every layer of a stack is given alike, a pytree.

    Args:
      shared: field -> `learned_arrays` that the layers share.
      rotate: `[B, T, heads, H] -> same` for queries and keys, a `jax.tree_util.Partial`; None for no rotation.
      bias: an `attention.biases.Bias` on the scores of self-attention, or None.
      key_mask: [B, T] bool, True = real token.
      segment_ids: [B, T] int, documents of a packed row.
      memory: [B, S, width], what the encoder made.
      memory_mask: [B, S] bool, True = real token.
      grid: the `Grid` of an image's tokens, None for text.
    """

    shared: Mapping
    rotate: Any = None
    bias: Any = None
    key_mask: Any = None
    segment_ids: Any = None
    memory: Any = None
    memory_mask: Any = None
    grid: Any = None


def drop_path(x, rate, rng):
    """Leaves out what a branch adds, for a whole example at a time: x / (1 - rate) with probability 1 - rate, else 0.

    Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382; per example as Larsson et al. 2017,
    arXiv:1605.07648, and divided while training, so that evaluation takes x as it is.

    Args:
      x: [B, ...].
      rate: 0 <= rate < 1, a number or a traced scalar.
      rng: the training step's typed key, or None to leave `x` as it is.

    Returns:
      As `x`.

    >>> drop_path(jnp.ones((2, 3)), 0.5, None).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if rng is None or isinstance(rate, (int, float)) and rate == 0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, (len(x),) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def drop_path_rates(config, depth):
    """The rates of `depth` blocks, rising linearly from 0 to `config.drop_path` (Huang et al. 2016, section 3.2)."""
    return tuple(config.drop_path * i / max(depth - 1, 1) for i in range(depth))
