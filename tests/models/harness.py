"""A model with weights large enough for every part of it to count, as a jitted function of its state."""

import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import MODELS

EPS = np.finfo(np.float32).eps


def build(config, length=13, seed=0):
    """(jitted (state, *inputs, **inputs) -> output, state)."""
    graph, state = nnx.split(pkgutil.resolve_name(MODELS[config.name])(config, length=length, rngs=nnx.Rngs(seed)))
    state = jax.tree.map(lambda w: jnp.asarray(np.asarray(w) * (10 if np.std(w) > 0 else 1)), state)
    return jax.jit(lambda state, *inputs, **others: nnx.merge(graph, state)(*inputs, **others)), state


def trained(config):
    """(*inputs, **inputs) -> (output, gradient of its mean square for the state), compiled once for one kind of input."""
    apply, state = build(config)

    def loss(state, inputs, others):
        output = apply(state, *inputs, **others)
        return jnp.mean(output**2), output

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run(*inputs, **others):
        (_, output), gradient = step(state, inputs, others)
        return output, gradient

    return run


def value_and_gradient(config, *inputs, **others):
    """`trained`, once."""
    return trained(config)(*inputs, **others)


def assert_trees_agree(got, wanted, roundings):
    """Every leaf within that many float32 roundings of its largest entry."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=roundings * EPS * np.abs(b).max())


def assert_everything_learns(gradient):
    """Every parameter has a finite gradient that is not 0, and so has every layer of a stacked one."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        stacked = "blocks" in jax.tree_util.keystr(path)
        rows = np.asarray(leaf).reshape(len(leaf) if stacked else 1, -1)
        assert (rows != 0).any(-1).all(), path
