"""What learns: a model split into its structure and its numbers, the optimiser, and the step that changes them."""

import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from experiment import optimizers
from experiment.devices import data_mesh
from models import MODELS


class Learner(NamedTuple):
    """A model, its optimiser and the state of both.

    Attributes:
      model: params -> the model that has them.
      optimizer: optax transformation.
      schedule: step -> learning rate.
      state: {"step", "params", "optimizer", "rng"}, what a checkpoint holds. The data position is the step: a batch is
        a function of (seed, step). `rng` is the raw key that dropout draws from, folded with the step.
    """

    model: Callable[[Any], nnx.Module]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    state: dict


def make_learner(config, seed):
    """A learner at step 0.

    Args:
      config: the full config of one variant.
      seed: decides the initial parameters and dropout.
    """
    structure, build = [], pkgutil.resolve_name(MODELS[config.model.name])

    def initialise():
        model = build(config.model, length=config.data.length, rngs=nnx.Rngs(seed))
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        structure[:] = [graphdef]
        params = nnx.to_pure_dict(params)
        rng = jax.random.key_data(jax.random.key(seed))
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "optimizer": optimizer.init(params),
            "rng": rng,
        }, rest

    optimizer, schedule = optimizers.make(config.train)
    copied = NamedSharding(data_mesh(config.train), PartitionSpec())
    state, rest = jax.jit(initialise, out_shardings=copied)()  # one program instead of one per parameter
    return Learner(lambda params: nnx.merge(*structure, params, rest), optimizer, schedule, state)


def make_step(learner, config, losses):
    """The training step: one jitted function, (state, tokens) -> (state, metrics), that writes over its state.

    Gradients of `accumulate` parts of the batch are averaged before the one update, so that a batch larger than memory
    trains as if it fitted: parts have equal size, so the mean of their means is the mean.

    Args:
      learner: from `make_learner`.
      config: the full config of the variant.
      losses: (logits, targets) -> loss of each token.

    Returns:
      The function; `tokens` is [accumulate, batch / accumulate, T + 1], metrics are scalars.
    """
    dropout = config.model.dropout > 0 or config.model.attention_dropout > 0

    def loss(params, tokens, rng):
        logits = learner.model(params)(tokens[:, :-1], dropout_rng=rng if dropout else None)
        return losses(logits, tokens[:, 1:]).mean()

    def step(state, tokens):
        rng = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
        parts = tokens.astype(jnp.int32), jax.random.split(rng, len(tokens))
        gradient = jax.value_and_grad(loss)
        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), state["params"]))
        add = lambda sums, part: (jax.tree.map(jnp.add, sums, gradient(state["params"], *part)), None)  # noqa: E731
        sums, _ = jax.lax.scan(add, zeros, parts, unroll=len(tokens) == 1)
        value, grads = jax.tree.map(lambda x: x / len(tokens), sums)
        updates, optimizer = learner.optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learner.schedule(state["step"]),
        }
        return state | {"step": state["step"] + 1, "params": params, "optimizer": optimizer}, metrics

    return jax.jit(step, donate_argnums=0)
