"""What learns: a model split into its structure and its numbers, the optimiser, and the step that changes them."""

import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from experiment import optimizers, settings, stopping
from experiment.devices import data_mesh
from models import MODELS


class Learner(NamedTuple):
    """A model, its optimiser and the state of both.

    Attributes:
      model: `weights` -> the model that has them.
      optimizer: optax transformation.
      schedule: step -> learning rate.
      state: {"step", "params", "statistics", "optimizer", "rng"}, what a checkpoint holds. The data position is the
        step: a batch is a function of (seed, step). `statistics` are running averages of batch norm, which no gradient
        changes. `rng` is the raw key that all draws of a training step come from, folded with it. With early stopping
        also "stopping", from `experiment.stopping`.
    """

    model: Callable[[dict], nnx.Module]
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
        model = build(config.model, length=settings.size(config), rngs=nnx.Rngs(seed))
        graphdef, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
        structure[:] = [graphdef]
        params, statistics = nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "statistics": statistics,
            "optimizer": optimizer.init(params),
            "rng": jax.random.key_data(jax.random.key(seed)),
        }
        if config.train.patience:
            state["stopping"] = stopping.fresh(weights(state))
        return state, rest

    optimizer, schedule = optimizers.make(config.train)
    copied = NamedSharding(data_mesh(config.train), PartitionSpec())
    state, rest = jax.jit(initialise, out_shardings=copied)()  # one program instead of one per parameter
    model = lambda weights: nnx.merge(*structure, weights["params"], weights["statistics"], rest)  # noqa: E731
    return Learner(model, optimizer, schedule, state)


def weights(state):
    """The part of a learner's state that a model is made of."""
    return {name: state[name] for name in ("params", "statistics")}


def judged(state):
    """The weights that a judgement is of: those kept by early stopping, else the newest."""
    return state["stopping"]["weights"] if "stopping" in state else weights(state)


def make_step(learner, score):
    """The training step: one jitted function, (state, examples) -> (state, metrics), that writes over its state.

    Losses, counts and gradients of the parts of a batch are summed before the one division and update, so that a batch
    larger than memory trains as if it fitted, also where parts weigh differently. Batch norm alone sees the parts, one
    after the other.

    Args:
      learner: from `make_learner`.
      score: the task's `score`, (model, examples, rng) -> (loss, count, metric, weight) of each row.

    Returns:
      The function; examples are arrays [parts, rows, ...], metrics are scalars.
    """

    def total_loss(params, statistics, examples, rng):
        model = learner.model({"params": params, "statistics": statistics})
        sums = [jnp.sum(each, axis=0) for each in score(model, examples, rng)]
        return sums[0], (sums, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step(state, examples):
        count = len(jax.tree.leaves(examples)[0])
        rng = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])

        def gradient(statistics, part):
            grads, (sums, statistics) = jax.grad(total_loss, has_aux=True)(state["params"], statistics, *part)
            return statistics, (grads, sums)

        statistics, sums = over_parts(gradient, state["statistics"], (examples, jax.random.split(rng, count)), count)
        grads, (loss, asked, metric, weight) = sums
        grads = jax.tree.map(lambda x: x / asked, grads)
        updates, optimizer = learner.optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {
            "loss": loss / asked,
            "metric": mean_ratio(metric, weight),
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learner.schedule(state["step"]),
        }
        new = {"step": state["step"] + 1, "params": params, "statistics": statistics, "optimizer": optimizer}
        return state | new, metrics

    return jax.jit(step, donate_argnums=0)


def over_parts(function, carry, parts, count):
    """Calls `function(carry, part) -> (carry, sums)` for each of `count` parts; returns the last carry and all sums."""
    first = jax.tree.map(lambda x: x[0], parts)
    if count == 1:
        return function(carry, first)

    def add(carry_and_sums, part):
        carry, new = function(carry_and_sums[0], part)
        return (carry, jax.tree.map(jnp.add, carry_and_sums[1], new)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, carry, first)[1])
    return jax.lax.scan(add, (carry, zeros), parts)[0]


def mean_ratio(amount, weight):
    """amount / weight; of several columns the mean, without those that nothing was asked of.

    >>> float(mean_ratio(jnp.array([1.0, 0.0, 3.0]), jnp.array([2.0, 0.0, 4.0])))
    0.625
    """
    ratios = jnp.where(weight > 0, amount / jnp.where(weight > 0, weight, 1), jnp.nan)
    return jnp.nanmean(ratios)
