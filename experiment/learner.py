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
        a function of (seed, step). `rng` is the raw key that all draws of a training step come from, folded with it.
    """

    model: Callable[[Any], nnx.Module]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    state: dict


def make_learner(config, seed):
    """A learner at step 0.

    Args:
      config: the full config of one variant.
      seed: decides the initial parameters and what training draws.
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


def make_step(learner, score):
    """The training step: one jitted function, (state, examples) -> (state, metrics), that writes over its state.

    Losses, weights and gradients of the parts of a batch are summed before the one division and update, so that a batch
    larger than memory trains as if it fitted, also where parts weigh differently.

    Args:
      learner: from `make_learner`.
      score: the task's `score`, (model, examples, rng) -> (loss, metric, weight) of each row.

    Returns:
      The function; examples are arrays [parts, rows, ...], metrics are scalars.
    """

    def total_loss(params, examples, rng):
        sums = [jnp.sum(each) for each in score(learner.model(params), examples, rng)]
        return sums[0], sums

    def step(state, examples):
        count = len(jax.tree.leaves(examples)[0])
        rng = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
        gradient = jax.grad(total_loss, has_aux=True)
        zeros = jax.tree.map(jnp.zeros_like, (state["params"], [jnp.float32(0)] * 3))
        add = lambda sums, part: (jax.tree.map(jnp.add, sums, gradient(state["params"], *part)), None)  # noqa: E731
        sums, _ = jax.lax.scan(add, zeros, (examples, jax.random.split(rng, count)), unroll=count == 1)
        grads, (loss, metric, weight) = sums
        grads = jax.tree.map(lambda x: x / weight, grads)
        updates, optimizer = learner.optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {
            "loss": loss / weight,
            "metric": metric / weight,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learner.schedule(state["step"]),
        }
        return state | {"step": state["step"] + 1, "params": params, "optimizer": optimizer}, metrics

    return jax.jit(step, donate_argnums=0)
