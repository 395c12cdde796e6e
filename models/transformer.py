"""The decoder language model: one Transformer for every attention variant and every kind of position."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import FrozenConfigDict

from attention import alibi_slopes, apply_rotary, biases, rotary_frequencies
from models.config import check, rope_settings
from models.layers import Block, dropout, normal, rms_norm


class Transformer(nnx.Module):
    """A causal language model over tokens.

        x = embed(tokens);   x = block_l(x) for l < depth;   logits = norm(x) W_vocab

    Pre-norm blocks (`models.layers.Block`). Every matrix starts as N(0, 0.02), those that write to the residual stream
    as N(0, 0.02 / sqrt(2 depth)) (Radford et al. 2019, GPT-2). Parameters are float32, activations `config.dtype`,
    logits float32.

    Positions, by `config.position`:

    * "rope": queries and keys rotate (Su et al. 2021, arXiv:2104.09864), stretched as `rope_scaling` says unless it is
      empty. Linear attention rotates before its feature map, so its scores see more than the distance.
    * "alibi": scores fall linearly with distance (Press et al. 2022, arXiv:2108.12409).
    * "t5": scores gain a learned number per head and bucket of distances, one table for all layers (Raffel et al. 2020,
      arXiv:1910.10683). T5 leaves its scores unscaled; here they keep 1 / sqrt(H).
    * "learned": a table of `length` vectors is added to the embeddings.
    * "sinusoidal": sines and cosines are added to sqrt(width) times the embeddings (Vaswani et al. 2017,
      arXiv:1706.03762, sections 3.4 and 3.5).
    * "none": only the causal order tells positions apart (Haviv et al. 2022, arXiv:2203.16634).

    The parameters of all layers lie in one `Block`, stacked on a leading axis of `depth`. `scan_layers` runs them in a
    loop, so the program does not grow with depth; without it the same parameters run unrolled, which compiles longer.
    `remat` recomputes each layer in the backward pass and keeps only the inputs of layers, B T width numbers each.

    Args:
      config: a ConfigDict with the fields of `models.config.FIELDS`.
      length: the training length T; the number of learned positions.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.config.check(config, length)` refuses.

    >>> from configs.compare_text import get_config
    >>> model = Transformer(get_config().model, length=16, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 16), int)).shape
    (2, 16, 256)
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        self.config = config = FrozenConfigDict(config)  # hashable, so jit can tell two models apart
        self.length = length
        self.embedding = normal(rngs, (config.vocab_size, config.width))
        if config.position == "learned":
            self.positions = normal(rngs, (length, config.width))
        if config.position == "t5":
            self.t5_table = normal(rngs, (config.t5_buckets, config.num_heads))
        self.blocks = jax.vmap(lambda rng: Block(config, rngs=nnx.Rngs(params=rng)))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.norm = rms_norm(config, rngs)
        if not config.tie_embeddings:
            self.unembedding = normal(rngs, (config.vocab_size, config.width))

    def __call__(self, tokens, *, positions=None, segment_ids=None, dropout_rng=None):
        """Scores of the next token after each token.

        Args:
          tokens: [B, T] int. A token outside the vocabulary makes its own logits NaN.
          positions: [B, T] int, each token's place in its document, for rope, learned and sinusoidal; None = arange(T).
            What may attend follows the order of the array whatever stands here. alibi and t5 count along the array,
            which agrees inside a document, and refuse the argument; so does none. A place beyond the learned ones
            gives NaN.
          segment_ids: [B, T] int, the document of each token in a packed row; documents do not see one another, and
            each lies in one piece. Negative = padding. None for one document a row.
          dropout_rng: typed key; dropout happens only when it is given.

        Returns:
          Logits [B, T, vocab_size], float32.

        Raises:
          ValueError: tokens are not integers [B, T], positions have no meaning, T is beyond the learned positions.
        """
        self._check_inputs(tokens, positions, segment_ids)
        embed_rng, layers_rng = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        places = jnp.arange(tokens.shape[1]) if positions is None else positions
        x = dropout(self._embed(tokens, places), self.config.dropout, embed_rng)
        x = self._layers(x, layers_rng, rotate=self._rotation(places), bias=self._bias(), segment_ids=segment_ids)
        vocabulary = self.embedding if self.config.tie_embeddings else self.unembedding
        return jnp.einsum("btd,vd->btv", self.norm(x), vocabulary.astype(x.dtype), preferred_element_type=jnp.float32)

    def _embed(self, tokens, places):
        config = self.config
        x = jnp.take(self.embedding[...], tokens, axis=0)
        if config.position == "learned":
            x += jnp.take(self.positions[...], places, axis=0)
        if config.position == "sinusoidal":
            x = x * config.width**0.5 + sinusoids(places, config.width)
        return x.astype(config.dtype)

    def _layers(self, x, rng, **context):
        config = self.config
        rngs = None if rng is None else jax.random.split(rng, config.depth)

        def layer(x, block_and_rng):
            block, rng = block_and_rng
            return block(x, rng=rng, **context), None

        if config.remat:  # inside a scan XLA cannot undo the recomputation, so nothing has to prevent it
            layer = jax.checkpoint(layer, prevent_cse=not config.scan_layers)
        return lax.scan(layer, x, (self.blocks, rngs), unroll=1 if config.scan_layers else config.depth)[0]

    def _rotation(self, places):
        config = self.config
        if config.position != "rope":
            return None
        frequencies, factor = rotary_frequencies(**rope_settings(config, places.max() + 1))
        return functools.partial(apply_rotary, positions=places, frequencies=frequencies, attention_factor=factor)

    def _bias(self):
        config = self.config
        if config.position == "alibi":
            return biases.ALiBi(alibi_slopes(config.num_heads))
        if config.position == "t5":
            return biases.T5(self.t5_table[...], bidirectional=False, max_distance=config.t5_max_distance)
        return None

    def _check_inputs(self, tokens, positions, segment_ids):
        kind = self.config.position
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens: wanted integers [B, T], got {tokens.dtype}{list(tokens.shape)}")
        if kind == "learned" and tokens.shape[1] > self.length:
            raise ValueError(
                f"tokens: T = {tokens.shape[1]} is beyond the {self.length} learned positions; cut the row or use rope"
            )
        if positions is not None and kind not in ("rope", "learned", "sinusoidal"):
            raise ValueError(f"positions: a model with position={kind!r} has no use for them; leave positions=None")
        for name, array in {"positions": positions, "segment_ids": segment_ids}.items():
            if array is not None and array.shape != tokens.shape:
                raise ValueError(f"{name}: wanted the shape of tokens {list(tokens.shape)}, got {list(array.shape)}")


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
