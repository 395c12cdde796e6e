"""The parts of a Transformer's layer: attention heads of any variant, MLP, norm, dropout."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import FrozenConfigDict

from attention.cache import KeyValueCache, cached_attention
from attention.checks import split_rng
from models.config import ATTENTIONS
from models.variants import VARIANTS


def gelu(x):
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    By erf; jax.nn.gelu takes erfc, whose last digits for large negative x cost half as much time again on a CPU.
    """
    return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}
INIT_STD = 0.02  # Radford et al. 2019 (GPT-2): every weight matrix starts as N(0, 0.02).


def normal(rngs, shape, std=INIT_STD):
    """A float32 parameter drawn from N(0, std^2)."""
    # Drawn as one axis: XLA on CPU compiles the generator up to five times faster for one axis than for several.
    flat = jax.random.normal(rngs.params(), (math.prod(shape),), jnp.float32)
    return nnx.Param(std * flat.reshape(shape))


def zeros(*shape):
    """A float32 parameter that starts as 0, as biases do."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


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


def product(x, w):
    """`x [..., d]` times `w [d, ...]`, in the dtype of `x`.

    Flat: XLA on a CPU takes up to four times as long for the gradient of w where x has several leading axes.
    """
    flat = x.reshape(-1, x.shape[-1]) @ w.reshape(w.shape[0], -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


@jax.tree_util.register_static
class Grid(NamedTuple):
    """The rows and columns that the T = rows x columns tokens of an image stand in, one row after the other.

    A constant of the program, as shapes are: no pytree of numbers that a compiled function would trace.
    """

    rows: int
    columns: int


class Sizes(NamedTuple):
    """What decides the shapes of an attention layer's parameters."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    length: int
    num_relations: int


def sizes_of(config, length):
    """The `Sizes` of a model's config at a training length."""
    heads = config.num_heads, config.num_kv_heads, config.width // config.num_heads
    relations = config.num_relations if "num_relations" in config else 0  # models of images have no graphs
    return Sizes(config.width, *heads, length, relations)


class Attention(nnx.Module):
    """Heads of attention: project, rotate, attend by the configured variant, project back.

        query, key, value = x W_q, y W_k, y W_v        y = x, or in cross-attention what the encoder made
        out = concat_n(attend(query, key, value)) W_o

    Grouped-query attention: Ainslie et al. 2023, arXiv:2305.13245. `use_bias` adds a vector to each of the four
    products, as ViT has it; without it they have none (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 2). Time
    O(T width^2) and what the variant takes (`attention.capabilities`).

    What variants add to this layer, and what their papers add and this one leaves out so that layers stay comparable:
    LSH uses one projection as query and key. Longformer owns a second set of projections for the rows of its global
    tokens where `global_projections` says so. Linformer owns its projections over the length. Retention, gated linear
    attention and the delta rule have no normaliser, so each head of their output is divided by its root mean square;
    without the learned scale and the swish gate of their papers. Gated linear attention computes its decays from x
    through a rank of 16. The delta rule computes its step sizes from x and gives queries and keys a SiLU and unit
    length; without the short convolutions. RetNet's rotation is the model's `position`, as for all. Graph attention
    learns a vector for each relation; its "gatv2" has no value of its own, what is scored is sent.

    Args:
      config: the model's config; reads name, width, depth, num_heads, num_kv_heads, use_bias, attention_dropout and
        `field`.
      length: the training length, of the keys in cross-attention; parameters over the length have it.
      field: the config's field that names the variant: "attention", "graph_attention" or "cross_attention".
      owner: whether the layer owns its variant's learned arrays; False where the model owns one set for all layers.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs, field="attention", owner=True):
        self.config = FrozenConfigDict(config)  # hashable, so jit can tell two layers apart
        self.field, self.sizes = field, sizes_of(config, length)
        width, num_heads, num_kv_heads, head_dim, *_ = self.sizes
        variant, settings = variant_of(config[field])
        heads = {"query": num_heads, "key": num_kv_heads, "value": num_kv_heads}
        for name in variant.projected(settings):
            setattr(self, name, normal(rngs, (width, heads[name], head_dim)))
        self.out = normal(rngs, (num_heads, head_dim, width), residual_std(config.depth))
        if config.use_bias:
            for name in variant.projected(settings):
                setattr(self, f"{name}_bias", zeros(heads[name], head_dim))
            self.out_bias = zeros(width)
        if owner:
            self.learned = learned_arrays(config, length=length, rngs=rngs, field=field)

    def __call__(
        self,
        x,
        *,
        memory=None,
        rotate=None,
        bias=None,
        key_mask=None,
        segment_ids=None,
        grid=None,
        edges=None,
        shared=None,
        rng=None,
    ):
        """Attends within `x [B, T, width]`, or from x to `memory`.

        Args:
          x: [B, T, width].
          memory: [B, S, width], what cross-attention reads; None for self-attention.
          rotate: applied to query and key, `[B, T, heads, H] -> same`; None for no rotation.
          bias: an `attention.biases.Bias` for the scores, a list of them, or None.
          key_mask: [B, S] bool, True = real token; None for no padding.
          segment_ids: [B, T] int, documents of a packed row; negative = padding. None for one document.
          grid: the `Grid` that the tokens stand in, for the variants that want one.
          edges: the `models.edges.Edges` between the tokens, [B, E], for the variants that want them.
          shared: the model's `learned_arrays`, for a variant whose layers share one set.
          rng: the training step's key, for dropout on the attention weights and a variant's own draws; None in
            evaluation: no dropout, and what a variant draws is a function of its `seed`.

        Returns:
          [B, T, width] in the dtype of `x`.
        """
        variant, settings = variant_of(self.config[self.field])
        draw_rng, dropout_rng = split_rng(rng, 2)
        heads = self.heads(x, x if memory is None else memory, rotate)
        learned = self.learned if shared is None else shared
        arrays = variant.arrays(settings, self.sizes, learned, x, rotate, draw_rng)
        tail = self._tail(variant, bias, key_mask, segment_ids, grid, edges, dropout_rng)
        return self.merge_heads(variant.attend(*heads, *arrays, settings=settings, causal=self.causal, **tail))

    def weights(
        self, x, *, rotate=None, bias=None, key_mask=None, segment_ids=None, grid=None, edges=None, shared=None
    ):
        """How much of each token every token of `x [B, T, width]` takes: [B, N, T, T], float32, in evaluation.

        Whatever the variant, its output is linear in the values. With the j-th unit vector as the value of token j, it
        is the weights themselves, exactly. Time and memory of a call with heads of width T. Graph attention gives its
        weights itself.
        """
        variant, settings = variant_of(self.config[self.field])
        x = x.astype(jnp.float32)
        query, key, value = self.heads(x, x, rotate)
        learned = self.learned if shared is None else shared
        arrays = list(variant.arrays(settings, self.sizes, learned, x, rotate, None))
        tail = self._tail(variant, bias, key_mask, segment_ids, grid, edges, None)
        if variant.graph:  # whose values gain a vector for each edge: it gives its weights itself
            tail["return_weights"] = True
        else:
            value = jnp.broadcast_to(jnp.eye(x.shape[1])[:, None], (*value.shape[:-1], x.shape[1]))
            for i in variant.values if arrays else ():  # no arrays where the settings share the ordinary values
                arrays[i] = value
        weights = variant.attend(query, key, value, *arrays, settings=settings, causal=self.causal, **tail)
        return weights.swapaxes(1, 2)

    @property
    def causal(self):
        """Whether no token may look ahead: in a decoder's own attention."""
        return ATTENTIONS[self.config.name].get(self.field) == "decoder"

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
        variant, settings = variant_of(self.config[self.field])
        inputs = {"query": x, "value": memory, "key": memory}  # in this order, by which gradients of x are summed
        heads = {name: self._project(y, name) for name, y in inputs.items() if name in variant.projected(settings)}
        query, key = heads["query"], heads.get("key", heads["query"])
        value = heads.get("value", key)
        query, key = variant.shape(query, key)
        return (query, key, value) if rotate is None else (rotate(query), rotate(key), value)

    def merge_heads(self, attended):
        """[B, T, num_heads, H] -> [B, T, width]."""
        variant, _ = variant_of(self.config[self.field])
        attended = rms_normalized(attended) if variant.normalized else attended
        merged = jnp.einsum("btnh,nhd->btd", attended, self.out.astype(attended.dtype))
        return merged + self.out_bias.astype(merged.dtype) if self.config.use_bias else merged

    def _project(self, x, name):
        heads = jnp.einsum("btd,dnh->btnh", x, getattr(self, name).astype(x.dtype))
        return heads + getattr(self, f"{name}_bias").astype(x.dtype) if self.config.use_bias else heads

    def _tail(self, variant, bias, key_mask, segment_ids, grid, edges, rng):
        """Keyword arguments for what has to be honoured; `check_attention` has refused bias and dropout in vain."""
        if segment_ids is not None and not variant.can.packing:
            raise NotImplementedError("segment_ids: this variant cannot keep documents apart; give each its own row")
        if key_mask is not None and not variant.can.padding:
            raise NotImplementedError("key_mask: this variant cannot leave out padding; give rows of one length")
        if variant.grid and grid is None:
            raise ValueError("grid: this variant wants the rows and columns of the tokens, got None; give a Grid")
        if variant.graph and edges is None:
            raise ValueError(
                "edges: this variant wants those of a graph of the tokens, got None; give models.edges.Edges"
            )
        tail = {"key_mask": key_mask, "bias": bias, "query_segment_ids": segment_ids, "key_segment_ids": segment_ids}
        if variant.grid:
            tail["grid"] = grid
        if variant.graph:
            tail |= {"edges": edges, "bias": None}
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
    """Two matrices with a nonlinearity between: activation(x W_in) W_out, with `use_bias` a vector added to both.

    With `mlp_chunks` above 1 the rows are taken in that many slices, one after the other, and computed anew in the
    backward pass: the hidden B T mlp_width numbers fall to those of one slice, the output is equal (Kitaev et al. 2020,
    arXiv:2001.04451, section 3, "chunking").

    Args:
      config: reads width, mlp_width, mlp_chunks, depth, activation (one of ACTIVATIONS), use_bias.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, rngs):
        self.chunks, self.activation, self.use_bias = config.mlp_chunks, config.activation, config.use_bias
        self.into = normal(rngs, (config.width, config.mlp_width))
        self.out = normal(rngs, (config.mlp_width, config.width), residual_std(config.depth))
        if config.use_bias:
            self.into_bias, self.out_bias = zeros(config.mlp_width), zeros(config.width)

    def __call__(self, x):
        into, out = self._affine("into", x.dtype), self._affine("out", x.dtype)
        # As one list of rows: XLA on CPU splits it over the cores twice as well as [B, T, width] with a small B.
        rows = x.reshape(-1, x.shape[-1])
        hidden = lambda rows: out(ACTIVATIONS[self.activation](into(rows)))  # noqa: E731
        if self.chunks == 1:
            return hidden(rows).reshape(x.shape)
        size = -(-len(rows) // self.chunks)
        slices = jnp.pad(rows, ((0, size * self.chunks - len(rows)), (0, 0))).reshape(self.chunks, size, -1)
        return lax.map(jax.checkpoint(hidden), slices).reshape(-1, x.shape[-1])[: len(rows)].reshape(x.shape)

    def _affine(self, name, dtype):
        """rows -> rows W + b, of the parameters called `name` and `name`_bias."""
        matrix = getattr(self, name).astype(dtype)
        if not self.use_bias:
            return lambda rows: rows @ matrix
        bias = getattr(self, f"{name}_bias").astype(dtype)
        return lambda rows: rows @ matrix + bias


def norm_of(config, rngs):
    """The norm that `config.norm` names: `layer_norm`, or "rms", which does without the mean and the shift.

    x / sqrt(mean(x^2) + norm_epsilon) * a          (Zhang & Sennrich 2019, arXiv:1910.07467)
    """
    if config.norm == "layer":
        return layer_norm(config.width, config, rngs)
    return nnx.RMSNorm(config.width, epsilon=config.norm_epsilon, dtype=config.dtype, rngs=rngs)


def layer_norm(width, config, rngs, *, scale=1.0):
    """(x - mean) / sqrt(variance + norm_epsilon) * a + b (Ba et al. 2016, arXiv:1607.06450), summed in float32.

    Args:
      width: features of x.
      config: reads norm_epsilon and dtype, the dtype of the result.
      rngs: of the model; nothing is drawn.
      scale: where a starts.
    """
    start = nnx.initializers.constant(scale)
    return nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=config.dtype, scale_init=start, rngs=rngs)


def rms_normalized(x):
    """x / sqrt(mean(x^2) + 1e-6) over the last axis, in float32; zeros stay zeros."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def sinusoids(positions, width):
    """Fixed position vectors (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), all sines before all cosines.

        angle_i = position * 10000^(-2 i / width),   i < width / 2

    Args:
      positions: [...] int.
      width: even.

    Returns:
      [..., width] float32.

    >>> sinusoids(jnp.arange(3), 4).shape
    (3, 4)
    """
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
