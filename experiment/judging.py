"""How well a trained model does: its weights from a checkpoint, examples in parts, and sums over their pieces."""

import time

import jax
import numpy as np

from experiment import checkpoint, comparison, groups
from experiment.devices import split_rows
from experiment.estimate import per_piece, ratio
from experiment.learner import judged, make_learner
from experiment.settings import SettingsError
from tasks import TASKS


def trained(run, config, workdir, warn):
    """The learner of a finished run, and the weights that it is judged with, from its newest checkpoint.

    Args:
      run: its result.json.
      config: the full config of the variant.
      workdir: folder of the comparison.
      warn: takes a line about a checkpoint that is not whole.

    Raises:
      SettingsError: there is no checkpoint of its last step.
    """
    learner = make_learner(config, run["seed"])
    return learner, restored(run, learner, workdir, warn)


def restored(run, learner, workdir, warn):
    """The weights that a finished run is judged with, for a learner of its variant; see `trained`."""
    folder = comparison.folder(workdir, run["label"], run["seed"]) / "checkpoints"
    step, state = checkpoint.restore(folder, learner.state, warn)
    if step != run["steps"]:
        raise SettingsError(f"{folder}: wanted the checkpoint of step {run['steps']}, found {step or 'none'}")
    return judged(state)


def judge(learner, score, weights, corpus, length, config):
    """Quality of a model on all validation examples of `length`, as fields of result.json.

    Args:
      learner: whose structure the model has.
      score: from `scorer`.
      weights: of the model.
      corpus: of the task.
      length: size of the examples.
      config: the full config of the variant.
    """
    task = TASKS[config.task]
    examples, owners = task.validation(corpus, length)
    parts = uploaded(examples, len(owners), config.train.batch_size, split_rows(weights))
    rows, seconds = evaluate(score, weights, parts, len(owners))
    losses, counts, amounts, sizes = (per_piece(each, owners) for each in rows)
    quality, stderr = ratio(amounts, sizes)
    grouped = task.groups(corpus, length) if hasattr(task, "groups") else {}
    details = task.details(learner.model(weights), corpus, length) if hasattr(task, "details") else {}
    return {
        "quality": quality,
        "stderr": stderr,
        "loss": float(losses.sum() / counts.sum()),
        "amounts": amounts.tolist(),
        "sizes": sizes.tolist(),
        "groups": groups.sums(rows[1:], owners, grouped),
        "details": {name: float(value) for name, value in details.items()},
        "forward_tokens": config.train.batch_size * task.tokens(length),
        "forward_seconds": float(np.median(seconds[1:] or seconds)),  # the first call may have compiled
    }


def scorer(learner, task):
    """The jitted function behind `evaluate`: (weights, examples) -> (loss, count, metric, weight) of each row."""
    return jax.jit(lambda weights, examples: task.score(learner.model(weights), examples))


def uploaded(examples, count, batch_size, sharding):
    """Yields examples in parts of `batch_size` rows, on the device.

    Args:
      examples: {name: array [count, ...]} of the task.
      count: number of rows.
      batch_size: rows of a part; the last one is filled up with rows from the beginning, which do not count.
      sharding: of the rows over the devices.
    """
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size) % count
        yield jax.block_until_ready(jax.device_put({name: array[rows] for name, array in examples.items()}, sharding))


def evaluate(score, weights, parts, count):
    """What a model gets right, or needs, for each validation row.

    Args:
      score: from `scorer`.
      weights: of the model, see `experiment.learner.weights`.
      parts: from `uploaded`; a list of them may be looked at again and again.
      count: number of rows.

    Returns:
      ((losses [count], counts [count], the metric [count] or [count, K], weights likewise), seconds of each part).
    """
    found, seconds = [], []
    for part in parts:
        begin = time.perf_counter()
        found.append(jax.device_get(score(weights, part)))
        seconds.append(time.perf_counter() - begin)
    return tuple(np.concatenate(rows)[:count] for rows in zip(*found, strict=True)), seconds
