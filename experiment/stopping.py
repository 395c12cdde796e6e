"""Early stopping as the code of graph attention networks has it: when to stop, and which weights are judged."""

import functools

import jax
import jax.numpy as jnp


def fresh(weights):
    """The state of the rule before the first look, for a model with these weights.

    Returns:
      {"best_metric", "least_loss", "waited", "best_step", "weights"}, arrays, so that a checkpoint holds them.
    """
    return {
        "best_metric": jnp.full((), -jnp.inf),
        "least_loss": jnp.full((), jnp.inf),
        "waited": jnp.zeros((), jnp.int32),
        "best_step": jnp.zeros((), jnp.int32),
        "weights": jax.tree.map(jnp.copy, weights),
    }


@functools.partial(jax.jit, donate_argnums=0)
def looked(stopping, weights, step, metric, loss):
    """The state of the rule after a look at the development data.

    The wait starts anew where the metric is at least as good as ever *or* the loss at most the least so far; weights
    are kept only where *both* hold, so what is judged may be older than the last good sign (the published training
    script of Velickovic et al. 2018, "Graph Attention Networks", arXiv:1710.10903). What is not a number is neither.

    Args:
      stopping: the state before, written over.
      weights: of the model at `step`.
      step: number of the step.
      metric: more is better; its sign is turned where less is.
      loss: in nats.

    >>> start = fresh({"w": jnp.zeros(1)})
    >>> after = looked(start, {"w": jnp.ones(1)}, 1, 0.5, 2.0)
    >>> after = looked(after, {"w": 2 * jnp.ones(1)}, 2, 0.4, 1.0)  # a lower loss alone: no wait, nothing kept
    >>> int(after["waited"]), int(after["best_step"]), after["weights"]["w"].tolist()
    (0, 1, [1.0])
    """
    better, lower = metric >= stopping["best_metric"], loss <= stopping["least_loss"]
    keep = better & lower
    return {
        "best_metric": jnp.fmax(metric, stopping["best_metric"]),
        "least_loss": jnp.fmin(loss, stopping["least_loss"]),
        "waited": jnp.where(better | lower, 0, stopping["waited"] + 1),
        "best_step": jnp.where(keep, step, stopping["best_step"]),
        "weights": jax.tree.map(lambda new, old: jnp.where(keep, new, old), weights, stopping["weights"]),
    }


def over(state, patience):
    """Whether training with this learner's state has waited `patience` looks in vain; never where that is 0."""
    return patience > 0 and int(state["stopping"]["waited"]) >= patience
