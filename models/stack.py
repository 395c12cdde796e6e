"""A stack of layers: what runs them, and how they know where a token stands."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from attention import alibi_slopes, apply_rotary, biases, rotary_frequencies
from attention.checks import split_rng
from models.block import Block, Context, drop_path, drop_path_rates
from models.config import reads_graph, rope_settings
from models.edges import between_real, graph_distances
from models.layers import learned_arrays, norm_of, normal, one_for_all
from models.reversible import reversible


class Stack(nnx.Module):
    """`depth` layers and a norm.

        x = x + mix_l(x);   x = x + feed_l(x)   for l < depth;   out = norm(x)

    The parameters of all layers lie in one `Block`, stacked on a leading axis of `depth`. `scan_layers` runs them in a
    loop, so the program does not grow with depth; without it the same parameters run unrolled, which compiles longer.

    Memory of the gradient: `remat` recomputes each layer in the backward pass and keeps only the inputs of layers, B T
    width numbers each. `reversible` keeps not even those (`models.reversible`) and always runs in the loop: both
    streams start as x and the output is their mean, where Reformer concatenates, so parameters stay those of an
    ordinary stack; the streams are float32 whatever `dtype` is, as their inputs are won back by subtraction.

    Stochastic depth, where the config has `drop_path`: what a branch adds is left out with a probability that rises
    linearly over the layers (`models.block.drop_path`).

    Where the config has a `graph_bias` of D, the scores of self-attention gain a learned number per head and distance
    between the two tokens in the graph: one for each of 0 to D edges, one for more, one where no path leads (Ying et
    al. 2021, "Do Transformers Really Perform Bad for Graph Representation?", Graphormer, arXiv:2106.05234, eq. 6). All
    layers share the table. Edges count in both directions, whichever way they point.

    Args:
      config: the config of a decoder or an encoder; see `models.config.decoder_of`.
      length: the training length, with everything that stands before the tokens.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs):
        self.config = config
        if config.position == "t5":
            self.t5_table = normal(rngs, (config.t5_buckets, config.num_heads))
        if reads_graph(config) and config.graph_bias:
            self.graph_bias = normal(rngs, (config.graph_bias + 3, config.num_heads))
        fields = [name for name in ("attention", "cross_attention") if name in config and one_for_all(config[name])]
        if fields:
            shared = {name: learned_arrays(config, length=length, rngs=rngs, field=name) for name in fields}
            self.shared = nnx.Dict(shared)
        self.blocks = jax.vmap(lambda rng: Block(config, length=length, rngs=nnx.Rngs(params=rng)))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.norm = norm_of(config, rngs)

    def layers(self, x, places, rng, **context):
        """Runs the layers on `x [B, T, width]` and norms the result.

        Args:
          x: [B, T, width].
          places: [T] or [B, T] int, where each token stands.
          rng: the training step's key, None in evaluation.
          **context: fields of `models.block.Context`.
        """
        context = self._context(x, places, **context)
        rngs = None if rng is None else jax.random.split(rng, self.config.depth)
        x = self._reversible(x, rngs, context) if self.config.reversible else self._ordinary(x, rngs, context)[0]
        return self.norm(x)

    def watch_layers(self, x, places, rng, look, **context):
        """Runs the layers as `layers` does; returns what `look(block, x, context)` says of each one's input x, and the
        last one's output before the norm.
        """
        context = self._context(x, places, **context)
        rngs = None if rng is None else jax.random.split(rng, self.config.depth)
        x, seen = self._ordinary(x, rngs, context, look)
        return list(seen), x

    def start_layers(self, batch_size, capacity):
        """The state of all layers before the first token: stacked if `scan_layers`, else one after the other."""
        one = self._layer(0).attention.start(batch_size, capacity)
        each = [jax.tree.map(jnp.copy, one) for _ in range(self.config.depth)]  # apart, so that each can be donated
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) if self.config.scan_layers else each

    def step_layers(self, x, places, states):
        """Runs the layers on new tokens `x [B, t, width]` and norms; returns (x, new states)."""
        context = self._context(x, places)
        narrow = lambda x: x.astype(self.config.dtype)  # noqa: E731

        def layer(streams, block_and_state):
            (x1, x2), (block, state) = streams, block_and_state
            added, state = block.step(narrow(x2), state, context)
            y1 = x1 + added
            fed = block.feed(narrow(y1), None)
            return (y1, x2 + fed) if self.config.reversible else (y1 + fed, y1 + fed), state

        streams = (x.astype(jnp.float32 if self.config.reversible else x.dtype),) * 2
        if self.config.scan_layers:
            streams, new = lax.scan(layer, streams, (self.blocks, states))
        else:  # a stacked cache would be copied at every step
            new = []
            for i, state in enumerate(states):
                streams, state = layer(streams, (self._layer(i), state))
                new.append(state)
        return self.norm(narrow(sum(streams) / 2)), new

    def _layer(self, i):
        return jax.tree.map(lambda leaf: leaf[i], self.blocks)

    def _ordinary(self, x, rngs, context, look=lambda block, x, context: None):
        config = self.config

        def layer(x, inputs):
            block, rng, rate = inputs
            mix_rng, feed_rng, *drop_rngs = split_rng(rng, 2 if rate is None else 4)
            mix_drop, feed_drop = drop_rngs or (None, None)
            y = x + drop_path(block.mix(x, mix_rng, context), rate, mix_drop)
            return y + drop_path(block.feed(y, feed_rng), rate, feed_drop), look(block, x, context)

        if config.remat:  # inside a scan XLA cannot undo the recomputation, so nothing has to prevent it
            layer = jax.checkpoint(layer, prevent_cse=not config.scan_layers)
        inputs = self.blocks, rngs, None if rngs is None else self._drop_rates()
        return lax.scan(layer, x, inputs, unroll=1 if config.scan_layers else config.depth)

    def _drop_rates(self):
        """[depth] rates of stochastic depth, or None without it."""
        config = self.config
        if "drop_path" not in config or not config.drop_path:
            return None
        return jnp.asarray(drop_path_rates(config, config.depth), jnp.float32)

    def _reversible(self, x, rngs, context):
        wide = x.astype(jnp.float32)
        branches = _branch("mix", x.dtype), _branch("feed", x.dtype)
        first, second = reversible(branches, (wide, wide), (self.blocks, rngs), context)
        return ((first + second) / 2).astype(x.dtype)

    @property
    def reads_graph(self):
        """Whether the layers want the `edges` of a graph of the tokens."""
        return reads_graph(self.config)

    def _context(self, x, places, **given):
        """The `Context` of all layers, with what they share; distances in the graph are computed here, once."""
        changes = self._bias()
        if hasattr(self, "graph_bias"):
            restrictions = {name: given.get(name) for name in ("key_mask", "segment_ids")}
            edges = between_real(given["edges"], **restrictions)
            distance = graph_distances(edges, x.shape[1], self.config.graph_bias)
            changes = [*filter(None, [changes]), biases.GraphDistance(self.graph_bias[...], distance)]
        return Context(self._shared(), self._rotation(places), changes, **given)

    def _shared(self):
        return {name: dict(arrays) for name, arrays in self.shared.items()} if hasattr(self, "shared") else {}

    def _rotation(self, places):
        config = self.config
        if config.position != "rope":
            return None
        frequencies, factor = rotary_frequencies(**rope_settings(config, places.max() + 1))
        return jax.tree_util.Partial(_rotate, places, lax.stop_gradient(frequencies), factor)

    def _bias(self):
        config = self.config
        if config.position == "alibi":
            return biases.ALiBi(alibi_slopes(config.num_heads))
        if config.position == "t5":
            bidirectional = config.name == "encoder"
            return biases.T5(self.t5_table[...], bidirectional=bidirectional, max_distance=config.t5_max_distance)
        return None


def _rotate(places, frequencies, factor, x):
    return apply_rotary(x, positions=places, frequencies=frequencies, attention_factor=factor)


@functools.cache  # the same function for the same names, so that a program is compiled once
def _branch(name, dtype):
    def branch(block, x, rng, context):
        return getattr(block, name)(x.astype(dtype), rng, context).astype(x.dtype)

    return branch
