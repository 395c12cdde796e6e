"""The layers of a Transformer: attention heads of any variant, MLP, norm, dropout."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import FrozenConfigDict

from attention.cache import KeyValueCache, cached_attention
from attention.checks import split_rng
from models.config import ATTENTIONS
from models.variants import VARIANTS

INIT_STD = 0.02  # Radford et al. 2019 (GPT-2): every weight matrix starts as N(0, 0.02).


def normal(rngs, shape, std=INIT_STD):
    """A float32 parameter drawn from N(0, std^2)."""
    # Drawn as one axis: XLA on CPU compiles the generator up to five times faster for one axis than for several.
    flat = jax.random.normal(rngs.params(), (math.prod(shape),), jnp.float32)
    return nnx.Param(std * flat.reshape(shape))


def dropout(x, rate, rng):
    """Zeroes each entry with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
      x: any array.
      rate: 0 <= rate < 1.
      rng: typed random key, or None to leave `x` as it is.
    """
    if rng is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class Sizes(NamedTuple):
    """What decides the shapes of an attention layer's parameters."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    length: int


def sizes_of(config, length):
    """The `Sizes` of a model's config at a training length."""
    return Sizes(config.width, config.num_heads, config.num_kv_heads, config.width // config.num_heads, length)


class Attention(nnx.Module):
    """Heads of attention: project, rotate, attend by the configured variant, project back.

        query, key, value = x W_q, y W_k, y W_v        y = x, or in cross-attention what the encoder made
        out = concat_n(attend(query, key, value)) W_o

    Grouped-query attention: Ainslie et al. 2023, arXiv:2305.13245. No biases on the projections (Chowdhery et al. 2022,
    PaLM, arXiv:2204.02311, section 2). Time O(T width^2) and what the variant takes (`attention.capabilities`).

    What variants add to this layer, and what their papers add and this one leaves out so that layers stay comparable:
    LSH uses one projection as query and key. Longformer owns a second set of projections for the rows of its global
    tokens where `global_projections` says so. Linformer owns its projections over the length. Retention, gated linear
    attention and the delta rule have no normaliser, so each head of their output is divided by its root mean square;
    without the learned scale and the swish gate of their papers. Gated linear attention computes its decays from x
    through a rank of 16. The delta rule computes its step sizes from x and gives queries and keys a SiLU and unit
    length; without the short convolutions. RetNet's rotation is the model's `position`, as for all.

    Args:
      config: the model's config; reads name, width, depth, num_heads, num_kv_heads, attention_dropout and `field`.
      length: the training length, of the keys in cross-attention; parameters over the length have it.
      field: the config's field that names the variant: "attention" or "cross_attention".
      owner: whether the layer owns its variant's learned arrays; False where the model owns one set for all layers.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs, field="attention", owner=True):
        self.config = FrozenConfigDict(config)  # hashable, so jit can tell two layers apart
        self.field, self.sizes = field, sizes_of(config, length)
        width, num_heads, num_kv_heads, head_dim, _ = self.sizes
        variant, _ = variant_of(config[field])
        self.query = normal(rngs, (width, num_heads, head_dim))
        if not variant.shared_query_key:
            self.key = normal(rngs, (width, num_kv_heads, head_dim))
        self.value = normal(rngs, (width, num_kv_heads, head_dim))
        self.out = normal(rngs, (num_heads, head_dim, width), residual_std(config.depth))
        if owner:
            self.learned = learned_arrays(config, length=length, rngs=rngs, field=field)

    def __call__(
        self, x, *, memory=None, rotate=None, bias=None, key_mask=None, segment_ids=None, shared=None, rng=None
    ):
        """Attends within `x [B, T, width]`, or from x to `memory`.

        Args:
          x: [B, T, width].
          memory: [B, S, width], what cross-attention reads; None for self-attention.
          rotate: applied to query and key, `[B, T, heads, H] -> same`; None for no rotation.
          bias: an `attention.biases.Bias` for the scores, or None.
          key_mask: [B, S] bool, True = real token; None for no padding.
          segment_ids: [B, T] int, documents of a packed row; negative = padding. None for one document.
          shared: the model's `learned_arrays`, for a variant whose layers share one set.
          rng: the training step's key, for dropout on the attention weights and a variant's own draws; None in
            evaluation: no dropout, and what a variant draws is a function of its `seed`.

        Returns:
          [B, T, width] in the dtype of `x`.
        """
        variant, settings = variant_of(self.config[self.field])
        draw_rng, dropout_rng = split_rng(rng, 2)
        query, key, value = self.heads(x, x if memory is None else memory, rotate)
        learned = self.learned if shared is None else shared
        arrays = variant.arrays(settings, self.sizes, learned, x, rotate, draw_rng)
        attended = variant.attend(
            *(query, key, value, *arrays),
            settings=settings,
            causal=ATTENTIONS[self.config.name].get(self.field) == "decoder",
            **self._tail(variant, bias, key_mask, segment_ids, dropout_rng),
        )
        return self.merge_heads(attended)

    def start(self, batch_size, capacity):
        """The state before the first token, to decode from.

        Args:
          batch_size: B.
          capacity: the longest text; windows and the linear family hold less, whatever it is.

        Returns:
          An `attention.cache.KeyValueCache`, or the state of a variant of the linear family.

        Raises:
          NotImplementedError: the variant cannot decode.
        """
        attention, dtype = self.config[self.field], jnp.dtype(self.config.dtype)
        variant, settings = variant_of(attention)
        if not variant.can.decoding:
            raise NotImplementedError(f"model.{self.field}.name: {attention.name!r} has no state to decode from")
        if not variant.recurrent:
            size = variant.ring(settings) or {"capacity": capacity}
            heads = self.sizes.num_kv_heads, self.sizes.head_dim
            return KeyValueCache.create((batch_size,), *heads, dtype=dtype, **size)
        x = jnp.zeros((batch_size, 1, self.sizes.width), dtype)
        _, state = self._recur(x, self.heads(x, x, None), None, key_mask=jnp.zeros((batch_size, 1), bool))
        return state  # as one token leaves it that is padding

    def step(self, x, state, *, rotate=None, bias=None, shared=None):
        """Attends from new tokens `x [B, t, width]` to themselves and those before; returns (output, new state)."""
        variant, settings = variant_of(self.config[self.field])
        heads = self.heads(x, x, rotate)
        if variant.recurrent:
            attended, state = self._recur(x, heads, shared, initial_state=state)
        else:
            mask = variant.mask(settings, state.capacity, self.sizes.num_heads)
            attended, state = cached_attention(*heads, state, mask=mask, bias=bias)
        return self.merge_heads(attended), state

    def _recur(self, x, heads, shared, **tail):
        variant, settings = variant_of(self.config[self.field])
        learned = self.learned if shared is None else shared
        arrays = variant.arrays(settings, self.sizes, learned, x, None, None)
        return variant.attend(*heads, *arrays, settings=settings, causal=True, return_state=True, **tail)

    def heads(self, x, memory, rotate):
        """Query of `x`, key and value of `memory`: [B, T, num_heads, H], [B, S, num_kv_heads, H] twice."""
        variant, _ = variant_of(self.config[self.field])
        project = lambda x, w: jnp.einsum("btd,dnh->btnh", x, w.astype(x.dtype))  # noqa: E731
        query, value = project(x, self.query), project(memory, self.value)
        key = query if variant.shared_query_key else project(memory, self.key)
        query, key = variant.shape(query, key)
        return (query, key, value) if rotate is None else (rotate(query), rotate(key), value)

    def merge_heads(self, attended):
        """[B, T, num_heads, H] -> [B, T, width]."""
        variant, _ = variant_of(self.config[self.field])
        attended = rms_normalized(attended) if variant.normalized else attended
        return jnp.einsum("btnh,nhd->btd", attended, self.out.astype(attended.dtype))

    def _tail(self, variant, bias, key_mask, segment_ids, rng):
        """Keyword arguments for what has to be honoured; `check_attention` has refused bias and dropout in vain."""
        if segment_ids is not None and not variant.can.packing:
            raise NotImplementedError("segment_ids: this variant cannot keep documents apart; give each its own row")
        if key_mask is not None and not variant.can.padding:
            raise NotImplementedError("key_mask: this variant cannot leave out padding; give rows of one length")
        tail = {"key_mask": key_mask, "bias": bias, "query_segment_ids": segment_ids, "key_segment_ids": segment_ids}
        if rng is not None and self.config.attention_dropout:
            tail |= {"dropout_rate": self.config.attention_dropout, "dropout_rng": rng}
        return {name: x for name, x in tail.items() if x is not None}


def variant_of(attention):
    """The `Variant` that a config's `attention` names, and its settings."""
    settings = dict(attention)
    return VARIANTS[settings.pop("name")], settings


def one_for_all(attention):
    """Whether one set of `learned_arrays` serves all layers with this `attention`."""
    variant, settings = variant_of(attention)
    return variant.one_for_all(settings)


def learned_arrays(config, *, length, rngs, field):
    """The parameters that a layer's variant has beside the four projections, as an `nnx.Dict`, often empty."""
    variant, settings = variant_of(config[field])
    shapes = variant.learned(settings, sizes_of(config, length))
    return nnx.Dict({name: normal(rngs, shape, std) for name, (shape, std) in shapes.items()})


def residual_std(depth):
    """Standard deviation of the matrices that write to the residual stream: 0.02 / sqrt(2 depth).

    2 depth branches add to the stream, so its variance at the start does not grow with depth (Radford et al. 2019,
    "Language Models are Unsupervised Multitask Learners", section 2.3).
    """
    return INIT_STD / (2 * depth) ** 0.5


class MLP(nnx.Module):
    """Two matrices with a GELU between (Hendrycks & Gimpel 2016, arXiv:1606.08415): gelu(x W_in) W_out.

    With `mlp_chunks` above 1 the rows are taken in that many slices, one after the other, and computed anew in the
    backward pass: the hidden B T mlp_width numbers fall to those of one slice, the output is equal (Kitaev et al. 2020,
    arXiv:2001.04451, section 3, "chunking").

    Args:
      config: reads width, mlp_width, mlp_chunks, depth.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, rngs):
        self.chunks = config.mlp_chunks
        self.into = normal(rngs, (config.width, config.mlp_width))
        self.out = normal(rngs, (config.mlp_width, config.width), residual_std(config.depth))

    def __call__(self, x):
        into, out = self.into.astype(x.dtype), self.out.astype(x.dtype)
        # As one list of rows: XLA on CPU splits it over the cores twice as well as [B, T, width] with a small B.
        rows = x.reshape(-1, x.shape[-1])
        hidden = lambda rows: jax.nn.gelu(rows @ into) @ out  # noqa: E731
        if self.chunks == 1:
            return hidden(rows).reshape(x.shape)
        size = -(-len(rows) // self.chunks)
        slices = jnp.pad(rows, ((0, size * self.chunks - len(rows)), (0, 0))).reshape(self.chunks, size, -1)
        return lax.map(jax.checkpoint(hidden), slices).reshape(-1, x.shape[-1])[: len(rows)].reshape(x.shape)


class Block(nnx.Module):
    """One pre-norm layer, of a decoder or an encoder.

        x = x + mix(x);   x = x + feed(x)
        mix(x) = a = attention(norm(x)), and with cross-attention a + cross(norm(x + a));   feed(x) = mlp(norm(x))

    Norms in front of the branches keep gradients even at the start (Xiong et al. 2020, arXiv:2002.04745); RMSNorm does
    without LayerNorm's mean and shift (Zhang & Sennrich 2019, arXiv:1910.07467). Dropout acts on what each branch adds.

    Args:
      config: the model's config; with a field `cross_attention` the layer reads a memory, too.
      length: the training length, of the memory as well.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs):
        def attention(field):
            return Attention(config, length=length, rngs=rngs, field=field, owner=not one_for_all(config[field]))

        self.rate = config.dropout
        self.attention_norm = rms_norm(config, rngs)
        self.attention = attention("attention")
        self.crosses = "cross_attention" in config
        if self.crosses:
            self.cross_norm = rms_norm(config, rngs)
            self.cross = attention("cross_attention")
        self.mlp_norm = rms_norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x, rng, context):
        """Applies the layer to `x [B, T, width]`."""
        mix_rng, feed_rng = split_rng(rng, 2)
        x = x + self.mix(x, mix_rng, context)
        return x + self.feed(x, feed_rng)

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
    """

    shared: Mapping
    rotate: Any = None
    bias: Any = None
    key_mask: Any = None
    segment_ids: Any = None
    memory: Any = None
    memory_mask: Any = None


def rms_norm(config, rngs):
    """x / sqrt(mean(x^2) + 1e-6) * scale, summed in float32 and returned in the model's compute dtype."""
    return nnx.RMSNorm(config.width, dtype=config.dtype, rngs=rngs)


def rms_normalized(x):
    """x / sqrt(mean(x^2) + 1e-6) over the last axis, in float32; zeros stay zeros."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)
