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
        mix(x) = a = attention(norm(x));   feed(x) = mlp(norm(x))

    With a graph a + graph(norm(x + a)) is mixed in, with a memory likewise a + cross(norm(x + a)).

    Norms in front of the branches keep gradients even at the start (Xiong et al. 2020, arXiv:2002.04745). Dropout acts
    on what each branch adds. `models.stack.Stack` does the adding, on one stream or on two.

    Args:
      config: the model's config; with a field `cross_attention` the layer reads a memory, too, with a
        `graph_attention` that is not empty a graph.
      length: the training length, of the memory as well.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs):
        def attention(field):
            return Attention(config, length=length, rngs=rngs, field=field, owner=not one_for_all(config[field]))

        self.rate = config.dropout
        self.attention_norm = norm_of(config, rngs)
        self.attention = attention("attention")
        self.reads_graph = bool("graph_attention" in config and config.graph_attention)
        if self.reads_graph:
            self.graph_norm = norm_of(config, rngs)
            self.graph = attention("graph_attention")
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
        attention_rng, dropout_rng, cross_rng, cross_dropout_rng, *graph_rngs = split_rng(rng, 4 + 2 * self.reads_graph)
        attended = self.attention(
            self.attention_norm(x), shared=context.shared.get("attention"), rng=attention_rng, **context.to_self()
        )
        added = dropout(attended, self.rate, dropout_rng)
        if self.reads_graph:
            graph_rng, graph_dropout_rng = graph_rngs
            attended = self.graph(self.graph_norm(x + added), rng=graph_rng, **context.to_graph())
            added += dropout(attended, self.rate, graph_dropout_rng)
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
        """How much of each token every token of `x [B, T, width]` takes, [B, N, T, T] float32.

        With a graph [B, 2 N, T, T]: behind the heads of self-attention those of graph attention.
        """
        given = context.to_self() | {"shared": context.shared.get("attention")}
        normed = self.attention_norm(x)
        weights = self.attention.weights(normed, **given)
        if not self.reads_graph:
            return weights
        normed = self.graph_norm(x + self.attention(normed, **given))
        return jnp.concatenate([weights, self.graph.weights(normed, **context.to_graph())], axis=1)

    def feed(self, x, rng, context=None):
        """What the MLP adds to `x [B, T, width]`."""
        return dropout(self.mlp(self.mlp_norm(x)), self.rate, rng)


class Context(NamedTuple):
    """What every layer of a stack is given alike, a pytree.

    Args:
      shared: field -> `learned_arrays` that the layers share.
      rotate: `[B, T, heads, H] -> same` for queries and keys, a `jax.tree_util.Partial`; None for no rotation.
      bias: what changes the scores of self-attention, one `attention.biases.Bias` or several, or None.
      key_mask: [B, T] bool, True = real token.
      segment_ids: [B, T] int, documents of a packed row.
      memory: [B, S, width], what the encoder made.
      memory_mask: [B, S] bool, True = real token.
      grid: the `Grid` of an image's tokens, None for text.
      edges: the `models.edges.Edges` between the tokens, [B, E], None without a graph.
    """

    shared: Mapping
    rotate: Any = None
    bias: Any = None
    key_mask: Any = None
    segment_ids: Any = None
    memory: Any = None
    memory_mask: Any = None
    grid: Any = None
    edges: Any = None

    def to_self(self):
        """What self-attention is given."""
        return self.to_graph() | {"rotate": self.rotate, "bias": self.bias, "grid": self.grid}

    def to_graph(self):
        """What graph attention is given: it has no positions, only the edges and which of them count."""
        return {"key_mask": self.key_mask, "segment_ids": self.segment_ids, "edges": self.edges}


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
