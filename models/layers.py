"""The layers of a decoder: attention heads of any variant, MLP, norm, dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

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


class Attention(nnx.Module):
    """Heads of causal self-attention: project, rotate, attend by the configured variant, project back.

        query, key, value = x W_q, x W_k, x W_v        num_kv_heads <= num_heads: grouped heads
        out = concat_n(attend(query, key, value)) W_o

    Grouped-query attention: Ainslie et al. 2023, arXiv:2305.13245. No biases on the projections (Chowdhery et al. 2022,
    PaLM, arXiv:2204.02311, section 2). Time O(T width^2) and what the variant takes (`VARIANTS`).

    Args:
      config: the model's config; reads width, depth, num_heads, num_kv_heads, attention_dropout, attention.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, rngs):
        width, num_heads, num_kv_heads = config.width, config.num_heads, config.num_kv_heads
        head_dim = width // num_heads
        self.config = FrozenConfigDict(config)  # hashable, so jit can tell two layers apart
        self.query = normal(rngs, (width, num_heads, head_dim))
        self.key = normal(rngs, (width, num_kv_heads, head_dim))
        self.value = normal(rngs, (width, num_kv_heads, head_dim))
        self.out = normal(rngs, (num_heads, head_dim, width), residual_std(config.depth))

    def __call__(self, x, *, rotate=None, bias=None, segment_ids=None, rng=None):
        """Attends within `x [B, T, width]`.

        Args:
          x: [B, T, width].
          rotate: applied to query and key, `[B, T, heads, H] -> same`; None for no rotation.
          bias: an `attention.biases.Bias` for the scores, or None.
          segment_ids: [B, T] int, documents of a packed row; negative = padding. None for one document.
          rng: key for dropout on the attention weights; None for no dropout.

        Returns:
          [B, T, width] in the dtype of `x`.
        """
        query, key, value = (
            jnp.einsum("btd,dnh->btnh", x, w.astype(x.dtype)) for w in (self.query, self.key, self.value)
        )
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        attended = self._attend(query, key, value, bias, segment_ids, rng)
        return jnp.einsum("btnh,nhd->btd", attended, self.out.astype(x.dtype))

    def _attend(self, query, key, value, bias, segment_ids, rng):
        settings = dict(self.config.attention)
        variant = VARIANTS[settings.pop("name")]
        tail = {}  # `check_attention` has refused a bias or dropout that the variant cannot honour
        if segment_ids is not None and not variant.packing:
            raise NotImplementedError("segment_ids: this variant cannot keep documents apart; give each its own row")
        if segment_ids is not None:
            tail |= {"query_segment_ids": segment_ids, "key_segment_ids": segment_ids}
        if bias is not None:
            tail |= {"bias": bias}
        if rng is not None and self.config.attention_dropout:
            tail |= {"dropout_rate": self.config.attention_dropout, "rng": rng}
        return variant.attend(query, key, value, settings, **tail)


def residual_std(depth):
    """Standard deviation of the matrices that write to the residual stream: 0.02 / sqrt(2 depth).

    2 depth branches add to the stream, so its variance at the start does not grow with depth (Radford et al. 2019,
    "Language Models are Unsupervised Multitask Learners", section 2.3).
    """
    return INIT_STD / (2 * depth) ** 0.5


class MLP(nnx.Module):
    """Two matrices with a GELU between (Hendrycks & Gimpel 2016, arXiv:1606.08415): gelu(x W_in) W_out.

    Args:
      config: reads width, mlp_width, depth.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, rngs):
        self.into = normal(rngs, (config.width, config.mlp_width))
        self.out = normal(rngs, (config.mlp_width, config.width), residual_std(config.depth))

    def __call__(self, x):
        # As one list of rows: XLA on CPU splits it over the cores twice as well as [B, T, width] with a small B.
        rows = x.reshape(-1, x.shape[-1])
        return (jax.nn.gelu(rows @ self.into.astype(x.dtype)) @ self.out.astype(x.dtype)).reshape(x.shape)


class Block(nnx.Module):
    """One layer of a pre-norm decoder.

        x = x + attention(norm(x));   x = x + mlp(norm(x))

    Norms in front of the branches keep gradients even at the start (Xiong et al. 2020, arXiv:2002.04745); RMSNorm does
    without LayerNorm's mean and shift (Zhang & Sennrich 2019, arXiv:1910.07467). Dropout acts on what each branch adds.

    Args:
      config: the model's config.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, rngs):
        self.rate = config.dropout
        self.attention_norm = rms_norm(config, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = rms_norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x, *, rng=None, **context):
        """Applies the layer to `x [B, T, width]`; `context` goes to `Attention`, all dropout draws from `rng`."""
        weights_rng, attention_rng, mlp_rng = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        x = x + dropout(self.attention(self.attention_norm(x), rng=weights_rng, **context), self.rate, attention_rng)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.rate, mlp_rng)


def rms_norm(config, rngs):
    """x / sqrt(mean(x^2) + 1e-6) * scale, summed in float32 and returned in the model's compute dtype."""
    return nnx.RMSNorm(config.width, dtype=config.dtype, rngs=rngs)
