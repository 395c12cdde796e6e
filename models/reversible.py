"""Reversible residual layers: the backward pass computes each layer's input from its output instead of keeping it."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def reversible(branches, streams, layers, context):
    """Runs all layers on two residual streams, with a gradient whose memory does not grow with the number of layers.

        y1 = x1 + f(x2);   y2 = x2 + g(y1)          backwards:   x2 = y2 - g(y1);   x1 = y1 - f(x2)

    Gomez et al. 2017, "The Reversible Residual Network", arXiv:1707.04585, section 3.1, as Kitaev et al. 2020,
    Reformer, arXiv:2001.04451, section 3, use it: f attends, g is the MLP, norms inside. The inputs come back up to
    rounding, whatever was drawn at random is drawn again from the same keys. Time: one more forward pass. Memory of the
    gradient beside that of the parameters: one layer's, whatever the depth. The loop is never unrolled: XLA would
    overlap layers and hold parts of several at once.

    Args:
      branches: (f, g), each (layer, x, rng, context) -> what it adds to a stream, shaped like it. Plain functions.
      streams: (x1, x2), float arrays of one shape.
      layers: (parameters, keys) with a leading axis over layers on every leaf; keys may be None.
      context: pytree that every layer reads. Gradients reach its float leaves and those of the parameters.

    Returns:
      (y1, y2) after the last layer.
    """

    def forward(streams, layer):
        return _layer(branches, streams, layer, context), None

    return lax.scan(forward, streams, layers)[0]


def _layer(branches, streams, layer, context):
    (f, g), (x1, x2), (parameters, rng) = branches, streams, layer
    f_rng, g_rng = (None, None) if rng is None else jax.random.split(rng)
    y1 = x1 + f(parameters, x2, f_rng, context)
    return y1, x2 + g(parameters, y1, g_rng, context)


def _forward(branches, streams, layers, context):
    streams = reversible(branches, streams, layers, context)
    return streams, (streams, layers, context)


def _backward(branches, residuals, cotangents):
    streams, (parameters, rngs), context = residuals
    floats, join = _split_floats(context)

    def backward(carry, layer):
        (y1, y2), (dy1, dy2), dfloats = carry
        parameters, rng = layer
        f_rng, g_rng = (None, None) if rng is None else jax.random.split(rng)
        f, g = (
            lambda parameters, x, floats, branch=branch, rng=rng: branch(parameters, x, rng, join(floats))
            for branch, rng in zip(branches, (f_rng, g_rng), strict=True)
        )
        added, pull = jax.vjp(g, parameters, y1, floats)
        x2 = y2 - added
        g_parameters, dx1, g_floats = pull(dy2)
        dx1 = dx1 + dy1
        added, pull = jax.vjp(f, parameters, x2, floats)
        x1 = y1 - added
        f_parameters, dx2, f_floats = pull(dx1)
        dfloats = jax.tree.map(lambda *parts: sum(parts), dfloats, g_floats, f_floats)
        return ((x1, x2), (dx1, dx2 + dy2), dfloats), jax.tree.map(jnp.add, g_parameters, f_parameters)

    zeros = [jnp.zeros_like(x) for x in floats]
    carry = streams, cotangents, zeros
    (_, cotangents, dfloats), dparameters = lax.scan(backward, carry, (parameters, rngs), reverse=True)
    return cotangents, (dparameters, None), join(dfloats, rest=None)


reversible.defvjp(_forward, _backward)


def _split_floats(tree):
    """The float leaves of a pytree, and (floats, rest=the other leaves) -> the pytree."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def join(floats, rest=leaves):
        floats = iter(floats)
        filled = [
            next(floats) if real else None if rest is None else x for real, x in zip(is_float, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, filled)

    return [x for x, real in zip(leaves, is_float, strict=True) if real], join
