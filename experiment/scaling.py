"""One attention layer alone, at growing length: how its time and memory grow."""

import time

import jax
import jax.numpy as jnp
from flax import nnx

from experiment import measure
from models.layers import Attention


def scaling(model, settings):
    """Times the forward and the training pass of a variant's attention layer, projections included.

    Args:
      model: `config.model` of the variant.
      settings: `config.scaling`: `lengths`, `batch_size`, and `seconds` after which longer lengths are left out.

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
    graphdef, params = nnx.split(Attention(model, length=length, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (batch_size, length, model.width), jnp.dtype(model.dtype))

    def forward(params, x):
        return nnx.merge(graphdef, params)(x)

    def train(params, x):
        return jax.grad(lambda params, x: jnp.sum(forward(params, x) ** 2), argnums=(0, 1))(params, x)

    programs = [measure.compile(jax.jit(function), params, x) for function in (forward, train)]
    times = [1e3 * measure.measure(program.call, params, x, seconds=0.2)["median"] for program in programs]
    return *times, programs[1].temporary_bytes
