"""One attention layer alone, at growing length: how its time and memory grow."""

import math
import time

import jax
import jax.numpy as jnp
from flax import nnx

from attention.swin import fit_window
from experiment import measure
from models.axial_layer import AxialLayer
from models.layers import Attention, Grid
from models.window_attention import WindowAttention


def scaling(model, settings):
    """Times the forward and the training pass of a variant's attention layer, projections included.

    Args:
      model: `config.model` of the variant. Of an Axial-ResNet it is the layer along the height and the one along the
        width, of the first stage, with running averages in their norms; of a Swin the first stage's, windows shifted.
      settings: `config.scaling`: `lengths`, for images squares of the grid's side, `batch_size`, and `seconds` after
        which longer lengths are left out.

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
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), (batch_size, *shape), jnp.dtype(model.dtype))

    def forward(params, x):
        return apply(nnx.merge(graphdef, params, rest), x)

    def train(params, x):
        return jax.grad(lambda params, x: jnp.sum(forward(params, x) ** 2), argnums=(0, 1))(params, x)

    programs = [measure.compile(jax.jit(function), params, x) for function in (forward, train)]
    times = [1e3 * measure.measure(program.call, params, x, seconds=0.2)["median"] for program in programs]
    return *times, programs[1].temporary_bytes


def _alone(model, length):
    """One attention layer of a model: (the layer, how it is applied, the shape of an input with `length` tokens)."""
    side, rngs = math.isqrt(length), nnx.Rngs(0)
    if model.name == "swin":
        shift = model.attention.window // 2 if model.attention.shift else 0
        window, shift = fit_window((side, side), model.attention.window, shift)
        layer = WindowAttention(model, model.width, model.num_heads[0], window=window, rngs=rngs)
        return layer, lambda layer, x: layer(x, window, shift, None), (side, side, model.width)
    if model.name == "axial":
        both = nnx.List([AxialLayer(model, 2 * model.width, side, rngs=rngs) for _ in range(2)])
        return both, _down_and_along, (side, side, 2 * model.width)
    grid = {"grid": Grid(side, side)} if model.name == "vit" else {}
    return Attention(model, length=length, rngs=rngs), lambda layer, x: layer(x, **grid), (length, model.width)


def _down_and_along(layers, x):
    for layer in layers:
        x = layer(x.swapaxes(1, 2), False)[0]
    return x
