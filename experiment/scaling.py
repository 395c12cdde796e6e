"""One attention layer alone, at growing length: how its time and memory grow."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.swin import fit_window
from experiment import measure
from models.axial_layer import AxialLayer
from models.edges import Edges, disjoint_union
from models.graph_layers import LAYERS
from models.layers import Attention, Grid, variant_of
from models.window_attention import WindowAttention

DEGREE = 10  # edges that reach a node of the random graph


def scaling(model, settings):
    """Times the forward and the training pass of a variant's attention layer, projections included.

    Args:
      model: `config.model` of the variant. Of an Axial-ResNet it is the layer along the height and the one along the
        width, of the first stage, with running averages in their norms; of a Swin the first stage's, windows shifted.
        What attends along edges gets a random graph with DEGREE of them for each node.
      settings: `config.scaling`: `lengths`, for images squares of the grid's side, for graphs nodes, `batch_size`, and
        `seconds` after which longer lengths are left out.

    Returns:
      {"lengths", "forward_ms", "train_ms" (forward and backward), "temporary_bytes" (of the training pass),
      "time_exponent" (of train_ms), "memory_exponent"}, or None if `seconds` is 0. Two lengths are too few for an
      exponent to mean anything: None.
    """
    if not settings.seconds or not settings.lengths:
        return None
    rows, start = [], time.perf_counter()
    for length in sorted(settings.lengths):
        before = time.perf_counter()
        rows.append((length, *_cost(model, settings.batch_size, length)))
        took = time.perf_counter() - before
        if time.perf_counter() - start + took > settings.seconds:  # mostly compiling, which takes as long again
            break
    lengths, forward, train, temporary = (list(column) for column in zip(*rows, strict=True))
    return {
        "lengths": lengths,
        "forward_ms": forward,
        "train_ms": train,
        "temporary_bytes": temporary,
        "time_exponent": measure.exponent(lengths, train) if len(lengths) > 2 else None,
        "memory_exponent": measure.exponent(lengths, temporary) if len(lengths) > 2 else None,
    }


def _cost(model, batch_size, length):
    """(forward ms, training ms, temporary bytes of training) at one length."""
    layer, apply, shape = _alone(model, length)
    edges = _random_edges(batch_size, length)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), (batch_size, *shape), jnp.dtype(model.dtype))

    def forward(params, x, edges):
        return apply(nnx.merge(graphdef, params, rest), x, edges)

    def train(params, x, edges):
        return jax.grad(lambda params, x: jnp.sum(forward(params, x, edges) ** 2), argnums=(0, 1))(params, x)

    programs = [measure.compile(jax.jit(function), params, x, edges) for function in (forward, train)]
    times = [1e3 * measure.measure(program.call, params, x, edges, seconds=0.2)["median"] for program in programs]
    return *times, programs[1].temporary_bytes


def _alone(model, length):
    """One attention layer of a model: (the layer, how it is applied, the shape of an input with `length` tokens)."""
    side, rngs = math.isqrt(length), nnx.Rngs(0)
    if model.name == "graph_network":
        heads, features = model.num_heads[0], (*model.head_dim, model.num_classes)[0]
        layer = LAYERS[model.attention.name](model, heads * features, heads, features, rngs=rngs)
        return layer, _along_edges, (length, heads * features)
    if model.name == "swin":
        shift = model.attention.window // 2 if model.attention.shift else 0
        window, shift = fit_window((side, side), model.attention.window, shift)
        layer = WindowAttention(model, model.width, model.num_heads[0], window=window, rngs=rngs)
        return layer, lambda layer, x, edges: layer(x, window, shift, None), (side, side, model.width)
    if model.name == "axial":
        both = nnx.List([AxialLayer(model, 2 * model.width, side, rngs=rngs) for _ in range(2)])
        return both, _down_and_along, (side, side, 2 * model.width)
    layer, shape = Attention(model, length=length, rngs=rngs), (length, model.width)
    if variant_of(model.attention)[0].graph:
        return layer, lambda layer, x, edges: layer(x, edges=edges), shape
    grid = {"grid": Grid(side, side)} if model.name == "vit" else {}
    return layer, lambda layer, x, edges: layer(x, **grid), shape


def _random_edges(batch_size, num_nodes):
    """`Edges` of [batch_size, DEGREE * num_nodes], the same in every process."""
    receivers = np.tile(np.repeat(np.arange(num_nodes), DEGREE), (batch_size, 1))
    senders = np.random.default_rng(0).integers(num_nodes, size=receivers.shape)
    return Edges(*jax.device_put((senders, receivers, 0 * senders, senders >= 0)))


def _along_edges(layer, x, edges):
    return layer(x.reshape(-1, x.shape[-1]), disjoint_union(edges, x.shape[1]))[0]


def _down_and_along(layers, x, edges):
    for layer in layers:
        x = layer(x.swapaxes(1, 2), False)[0]
    return x
