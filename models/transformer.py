"""One Transformer in three uses: decoder, encoder, encoder-decoder, with any variant and any kind of position."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from attention.checks import split_rng
from models.config import check, check_filled, decoder_of, encoder_of, rope_settings
from models.edges import check_edges
from models.layers import dropout, normal, sinusoids
from models.stack import Stack


class TokenStack(Stack):
    """A stack that tokens go into, by an embedding, and scores of tokens come out of.

        x = embed(tokens);   x = layers(x);   logits = x W_vocab

    Pre-norm blocks (`models.block.Block`). Every matrix starts as N(0, 0.02), those that write to the residual stream
    as N(0, 0.02 / sqrt(2 depth)) (Radford et al. 2019, GPT-2). Parameters are float32, activations `config.dtype`,
    logits float32.

    Positions, by `config.position`:

    * "rope": queries and keys rotate (Su et al. 2021, arXiv:2104.09864), stretched as `rope_scaling` says unless it is
      empty. The linear family rotates before its feature map, so its scores see more than the distance.
    * "alibi": scores fall linearly with distance (Press et al. 2022, arXiv:2108.12409), in encoders on both sides.
    * "t5": scores gain a learned number per head and bucket of distances, one table for all layers (Raffel et al. 2020,
      arXiv:1910.10683); encoders have buckets for either side. T5 leaves its scores unscaled; here they keep
      1 / sqrt(H).
    * "learned": a table of `length` vectors is added to the embeddings.
    * "sinusoidal": sines and cosines are added to sqrt(width) times the embeddings (Vaswani et al. 2017,
      arXiv:1706.03762, sections 3.4 and 3.5).
    * "none": only the causal order tells positions apart (Haviv et al. 2022, arXiv:2203.16634); an encoder sees a bag.

    Cross-attention has no positions of its own.

    Args:
      config: the config of a decoder or an encoder.
      length: the training length, with everything that stands before the tokens; the number of learned positions.
      vocabulary: whether scores of tokens come out.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs, vocabulary=True):
        self.length = length
        self.embedding = normal(rngs, (config.vocab_size, config.width))
        if config.position == "learned":
            self.positions = normal(rngs, (length, config.width))
        super().__init__(FrozenConfigDict(config), length=length, rngs=rngs)  # frozen: jit tells two models apart
        if vocabulary and not config.tie_embeddings:
            self.unembedding = normal(rngs, (config.vocab_size, config.width))

    def embed(self, tokens, places, rng, real=None, first=None):
        """[B, T] int -> [B, T, width], padding 0; `first [width]` stands before the tokens, if given."""
        config = self.config
        x = jnp.take(self.embedding[...], tokens, axis=0)
        x = x if real is None else jnp.where(real[..., None], x, 0)  # whatever stands there, also no token at all
        x = x if first is None else jnp.pad(x, ((0, 0), (1, 0), (0, 0))).at[:, 0].set(first)
        if config.position == "learned":
            x += jnp.take(self.positions[...], places, axis=0)
        if config.position == "sinusoidal":
            x = x * config.width**0.5 + sinusoids(places, config.width)
        return dropout(x.astype(config.dtype), config.dropout, rng)

    def logits(self, x):
        """[B, T, width] -> [B, T, vocab_size], float32."""
        vocabulary = self.embedding if self.config.tie_embeddings else self.unembedding
        return jnp.einsum("btd,vd->btv", x, vocabulary.astype(x.dtype), preferred_element_type=jnp.float32)

    def check_tokens(self, name, tokens, before=0):
        """Raises ValueError unless `tokens` are integers [B, T] that the learned positions reach."""
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"{name}: wanted integers [B, T], got {tokens.dtype}{list(tokens.shape)}")
        if self.config.position == "learned" and tokens.shape[1] + before > self.length:
            raise ValueError(
                f"{name}: T = {tokens.shape[1]} is beyond the {self.length - before} learned positions; "
                "cut the row or use rope"
            )


class Transformer(TokenStack):
    """A causal language model over tokens: scores of the next token after each token.

    Args:
      config: a ConfigDict with the fields of `models.config.FIELDS["transformer"]`.
      length: the training length T; the number of learned positions.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.config.check(config, length)` refuses.

    >>> from flax import nnx
    >>> from configs.compare_text import get_config
    >>> model = Transformer(get_config().model, length=16, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 16), int)).shape
    (2, 16, 256)
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config)
        super().__init__(config, length=length, rngs=rngs)

    def __call__(self, tokens, *, graph=None, positions=None, segment_ids=None, rng=None):
        """Scores of the next token after each token.

        Args:
          tokens: [B, T] int. A token outside the vocabulary makes its own logits NaN.
          graph: the `models.edges.Edges` between the tokens, [B, E], for a model with graph attention. An edge from a
            later token does not count: no token looks ahead.
          positions: [B, T] int, each token's place in its document, for rope, learned and sinusoidal; None = arange(T).
            What may attend follows the order of the array whatever stands here. alibi and t5 count along the array,
            which agrees inside a document, and refuse the argument; so does none. A place beyond the learned ones
            gives NaN.
          segment_ids: [B, T] int, the document of each token in a packed row; documents do not see one another, and
            each lies in one piece. Negative = padding. None for one document a row.
          rng: the training step's typed key, for dropout and what variants draw at random; None = evaluation.

        Returns:
          Logits [B, T, vocab_size], float32.

        Raises:
          ValueError: tokens are not integers [B, T], positions have no meaning, T is beyond the learned positions; a
            graph that the model does not read, or none where it reads one.
        """
        self.check_tokens("tokens", tokens)
        check_edges("graph", graph, tokens, self.reads_graph)
        _check_like(tokens, positions=positions, segment_ids=segment_ids)
        if positions is not None and self.config.position not in ("rope", "learned", "sinusoidal"):
            kind = self.config.position
            raise ValueError(f"positions: a model with position={kind!r} has no use for them; leave positions=None")
        places = jnp.arange(tokens.shape[1]) if positions is None else positions
        embed_rng, layers_rng = split_rng(rng, 2)
        x = self.embed(tokens, places, embed_rng, None if segment_ids is None else segment_ids >= 0)
        return self.logits(self.layers(x, places, layers_rng, segment_ids=segment_ids, edges=graph))

    def start(self, batch_size, capacity):
        """The state before the first token, for `step`.

        Args:
          batch_size: B.
          capacity: the longest text to come, in tokens. BigBird's last block is the last of `capacity`.

        Returns:
          A `Decoding`, a pytree; index the batch axis of its leaves to reorder rows.

        Raises:
          ValueError: a capacity beyond the learned positions.
          NotImplementedError: the variant, graph attention or dynamic rope scaling cannot decode.
        """
        config = self.config
        if self.reads_graph:
            raise NotImplementedError("graph: the edges of tokens to come are not known; give the whole text at once")
        if config.position == "learned" and capacity > self.length:
            raise ValueError(f"capacity: wanted at most the {self.length} learned positions, got {capacity}")
        if rope_settings(config, capacity)["length"] is not None:
            raise NotImplementedError("model.rope_scaling: dynamic scaling would turn earlier keys anew at every step")
        return Decoding(jnp.zeros((), jnp.int32), self.start_layers(batch_size, capacity))

    def step(self, tokens, state):
        """Scores of the next token after each of t new tokens: the same numbers as for the whole text at once.

        Args:
          tokens: [B, t] int, t >= 1: a prompt, or one token.
          state: from `start` or the step before. Donate it, and caches are written in place.

        Returns:
          (logits [B, t, vocab_size] float32, the new state). Beyond the capacity of a cache that keeps every token the
          logits are NaN.

        Raises:
          ValueError: tokens are not integers [B, t]; more tokens than the cache holds, where nothing is traced.
        """
        self.check_tokens("tokens", tokens)
        places = state.length + jnp.arange(tokens.shape[1])
        x, layers = self.step_layers(self.embed(tokens, places, None), places, state.layers)
        return self.logits(x), Decoding(state.length + tokens.shape[1], layers)


class Decoding(NamedTuple):
    """What a decoder goes on from: the number of tokens so far, and the state of each layer."""

    length: Any
    layers: Any


class Encoder(TokenStack):
    """A model that reads a text from both sides, to classify it or its words, or to guess its masked tokens.

        scores = pool(layers(embed(tokens))) W_classes         pool: the vector before the tokens, or the tokens' mean
        scores = layers(embed(tokens)) W_classes               pool = "tokens": the classes of each token
        scores = layers(embed(tokens)) W_vocab                 num_classes = 0: one row per token

    Classification by a vector before the tokens and masked language modelling: Devlin et al. 2019, BERT,
    arXiv:1810.04805, section 3. With pool="cls" that vector stands before the tokens also in masked language modelling;
    in the graph of the tokens it has no edges.

    Args:
      config: a ConfigDict with the fields of `models.config.FIELDS["encoder"]`.
      length: the training length T; variants and positions with parameters over the length go no further.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.config.check(config, length)` refuses.
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config)
        self.before = int(config.pool == "cls")
        super().__init__(config, length=length + self.before, rngs=rngs, vocabulary=config.num_classes == 0)
        if self.before:
            self.first = normal(rngs, (config.width,))
        if config.num_classes:
            self.classes = normal(rngs, (config.num_classes, config.width))

    def __call__(self, tokens, *, graph=None, key_mask=None, segment_ids=None, rng=None):
        """Scores of the classes, of the row or of each token, or of the vocabulary at each token.

        Args:
          tokens: [B, T] int.
          graph: the `models.edges.Edges` between the tokens, [B, E], for a model with graph attention or a graph bias.
            Edges from or to what is no real token, and between documents, do not count.
          key_mask: [B, T] bool, True = real token. What stands elsewhere has no influence on real tokens or the pool.
          segment_ids: [B, T] int, documents of a packed row, negative = padding; for scores of each token without a
            vector before the tokens.
          rng: the training step's typed key, for dropout and what variants draw at random; None = evaluation.

        Returns:
          [B, num_classes], [B, T, num_classes] with pool="tokens", or [B, T, vocab_size] for num_classes = 0; float32.

        Raises:
          ValueError: an input does not fit, named.
          NotImplementedError: packed rows where a row has one vector or one class; a variant without packing.
        """
        if segment_ids is not None and (self.before or self.config.num_classes and self.config.pool == "mean"):
            raise NotImplementedError("segment_ids: one class or one vector a row; write num_classes=0 and pool='mean'")
        x, real = self._read(tokens, graph, key_mask, segment_ids, rng)
        if self.config.num_classes == 0:
            return self.logits(x[:, self.before :])
        pooled = x if self.config.pool == "tokens" else self._pool(x, real)
        return jnp.einsum("...d,cd->...c", pooled, self.classes.astype(x.dtype), preferred_element_type=jnp.float32)

    def vectors(self, tokens, *, graph=None, key_mask=None, rng=None):
        """One vector for each row, whatever `num_classes`: that before the tokens, or the mean of the real tokens.

        Args:
          tokens: [B, T] int.
          graph: as the model itself takes it.
          key_mask: likewise.
          rng: likewise.

        Returns:
          [B, width] in the dtype of the activations; zeros with pool="mean" for a row without real tokens.

        Raises:
          ValueError: an input does not fit, named; pool="tokens", which has a vector for each token.
        """
        if self.config.pool == "tokens":
            raise ValueError("model.pool: 'tokens' gives each token its vector and the row none; write mean or cls")
        return self._pool(*self._read(tokens, graph, key_mask, None, rng))

    def attention_maps(self, tokens, *, graph=None, key_mask=None):
        """How much of each token the tokens of each layer take, in evaluation.

        Args:
          tokens: [B, T] int.
          graph: as the model itself takes it.
          key_mask: likewise. Rows of padding are unspecified.

        Returns:
          For each layer [B, N, T, T] float32, the token that takes before the one that is taken. A branch of graph
          attention follows the heads of self-attention with its own, [B, 2 N, T, T]. With pool="cls" the vector before
          the tokens counts as the first of T + 1.
        """
        x, places, _, given = self._embed(tokens, graph, key_mask, None, None)
        look = lambda block, x, context: block.weights(x, context)  # noqa: E731
        return self.watch_layers(x, places, None, look, **given)[0]

    def _read(self, tokens, graph, key_mask, segment_ids, rng):
        """What the layers made of the tokens and of what stands before them, and which tokens are real."""
        embed_rng, layers_rng = split_rng(rng, 2)
        x, places, real, given = self._embed(tokens, graph, key_mask, segment_ids, embed_rng)
        return self.layers(x, places, layers_rng, **given), real

    def _pool(self, x, real):
        return x[:, 0] if self.before else _mean(x, real)

    def _embed(self, tokens, graph, key_mask, segment_ids, rng):
        """x, its places, which tokens are real (None for all), and what else the layers are given."""
        self.check_tokens("tokens", tokens, self.before)
        _check_like(tokens, key_mask=key_mask, segment_ids=segment_ids)
        check_edges("graph", graph, tokens, self.reads_graph)
        real = (
            key_mask if segment_ids is None else segment_ids >= 0 if key_mask is None else key_mask & (segment_ids >= 0)
        )
        places = jnp.arange(tokens.shape[1] + self.before)
        x = self.embed(tokens, places, rng, real, self.first[...] if self.before else None)
        if key_mask is not None and self.before:
            key_mask = jnp.pad(key_mask, ((0, 0), (1, 0)), constant_values=True)
        if graph is not None and self.before:
            graph = graph._replace(senders=graph.senders + 1, receivers=graph.receivers + 1)
        return x, places, real, {"key_mask": key_mask, "segment_ids": segment_ids, "edges": graph}


class EncoderDecoder(TokenStack):
    """A model of one text given another: the decoder reads what the encoder made of the source.

        memory = encoder(embed(source));   logits = decoder(embed(target), memory) W_vocab

    Vaswani et al. 2017, arXiv:1706.03762, figure 1, with pre-norm layers. One embedding serves source, target and,
    tied, the scores. It has no state to decode from.

    Args:
      config: a ConfigDict with the fields of `models.config.FIELDS["encoder_decoder"]`.
      length: the longest training length of source and target.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.config.check(config, length)` refuses.
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config)
        super().__init__(decoder_of(config), length=length, rngs=rngs)
        self.encoder = Stack(encoder_of(config), length=length, rngs=rngs)

    @property
    def reads_graph(self):
        """Whether the encoder wants the edges of a graph of the source."""
        return self.encoder.reads_graph

    def __call__(self, source, target, *, source_graph=None, source_mask=None, rng=None):
        """Scores of the next token after each token of the target.

        Args:
          source: [B, S] int.
          target: [B, T] int, what the decoder has read so far: the wanted text behind a start token.
          source_graph: the `models.edges.Edges` between the tokens of the source, [B, E], for an encoder that reads a
            graph.
          source_mask: [B, S] bool, True = real token.
          rng: the training step's typed key, for dropout and what variants draw at random; None = evaluation.

        Returns:
          Logits [B, T, vocab_size], float32.

        Raises:
          ValueError: an input does not fit, named.
        """
        self.check_tokens("source", source)
        self.check_tokens("target", target)
        _check_like(source, "source", source_mask=source_mask)
        check_edges("source_graph", source_graph, source, self.reads_graph)
        source_rng, encoder_rng, target_rng, decoder_rng = split_rng(rng, 4)
        places = jnp.arange(source.shape[1])
        x = self.embed(source, places, source_rng, source_mask)
        memory = self.encoder.layers(x, places, encoder_rng, key_mask=source_mask, edges=source_graph)
        places = jnp.arange(target.shape[1])
        x = self.embed(target, places, target_rng)
        return self.logits(self.layers(x, places, decoder_rng, memory=memory, memory_mask=source_mask))


def _mean(x, real):
    """The mean over real tokens, [B, T, width] -> [B, width]; zeros for a row without any."""
    if real is None:
        return x.mean(1)
    return jnp.where(real[..., None], x, 0).sum(1) / jnp.maximum(real.sum(1, keepdims=True), 1).astype(x.dtype)


def _check_like(tokens, name="tokens", **arrays):
    for argument, array in arrays.items():
        if array is not None and array.shape != tokens.shape:
            wanted = list(tokens.shape)
            raise ValueError(f"{argument}: wanted the shape of {name} {wanted}, got {list(array.shape)}")
