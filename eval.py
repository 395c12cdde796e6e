"""Judge finished variants again from their checkpoints, also at a length they were not trained at.

    python eval.py --workdir=runs/compare_text
    python eval.py --workdir=runs/compare_text --length=1024

Prints the comparison's table with the quality measured now and writes it to `evaluation_T<length>.json` in the same
folder. Exit codes: 0 done, 2 something is missing or does not fit; the one line on stderr says what.
"""

import math
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiment import checkpoint, comparison, settings
from experiment.devices import split_rows
from experiment.records import read_json, write_json
from tasks import TASKS


def main(argv: list[str]) -> int:
    """Runs the command line `argv` and returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "runs/compare_text", "folder of a finished comparison", flag_values=values)
    flags.DEFINE_integer("length", None, "T to judge at; the default is the training length", 1, flag_values=values)
    try:
        settings.parse(argv, values, __doc__)
        workdir = Path(values.workdir)
        config, results = finished(workdir)
        task, length = TASKS[config.task], values.length or config.data.length
        corpus = task.load(config.data)
        if corpus.sha256 != read_json(workdir / "data.json")["sha256"]:
            raise settings.SettingsError(f"--workdir={workdir}: the text it was trained on has changed since")
        windows = task.windows(corpus.validation, length)
        variants = settings.variants(config)
        for label, runs in results.items():
            results[label] = [judge_again(run, variants[label], workdir, windows) for run in runs]
    except (ValueError, OSError) as error:
        print(f"eval.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2

    from experiment.report import print_table

    table = comparison.compare(workdir, config, task.METRIC, results)
    write_json(workdir / f"evaluation_T{length}.json", table | {"length": length})
    print_table(table)
    return 0


def finished(workdir):
    """Config and results of the comparison in a folder.

    Raises:
      SettingsError: no comparison there, or none of its variants is finished.
    """
    stored = read_json(workdir / "config.json")
    if stored is None or "variants" not in stored:
        raise settings.SettingsError(
            f"--workdir={workdir}: no comparison there; train one with train.py --workdir={workdir}"
        )
    config = ConfigDict(stored)
    config.variants = ConfigDict(stored["variants"], sort_keys=False)  # the table keeps the order of training
    results = comparison.results(workdir, config)
    if not results:
        raise settings.SettingsError(
            f"--workdir={workdir}: no variant is finished; go on with train.py --workdir={workdir}"
        )
    return config, results


def judge_again(run, config, workdir, windows):
    """A run's result with its quality replaced by one measured now on `windows`, from its newest checkpoint."""
    from experiment.learner import make_learner  # with Flax and optax, which no wrong flag should wait for

    if run["error"] is not None:
        return run
    folder = comparison.folder(workdir, run["label"], run["seed"]) / "checkpoints"
    learner = make_learner(config, run["seed"])
    step, state = checkpoint.restore(
        folder, learner.state, warn=lambda line: print(f"warning: {line}", file=sys.stderr)
    )
    if step != config.train.steps:
        raise settings.SettingsError(
            f"{folder}: wanted the checkpoint of step {config.train.steps}, found {step or 'none'}"
        )
    return run | judge(scorer(learner, TASKS[config.task]), state["params"], windows, config)


def judge(score, params, windows, config):
    """Quality of a model on the validation windows, as fields of result.json."""
    bits, sizes, seconds = evaluate(score, params, windows, config.train.batch_size)
    quality, stderr = TASKS[config.task].summarise(bits, sizes)
    return {
        "quality": quality,
        "stderr": stderr,
        "bits": bits.tolist(),
        "sizes": sizes.tolist(),
        "forward_tokens": config.train.batch_size * windows[1].shape[1],
        "forward_seconds": float(np.median(seconds[1:] or seconds)),  # the first call may have compiled
    }


def scorer(learner, task):
    """The jitted function behind `evaluate`: (params, tokens [B, T + 1], weights [B, T]) -> nats of each row [B]."""

    def score(params, tokens, weights):
        tokens = tokens.astype(jnp.int32)
        logits = learner.model(params)(tokens[:, :-1])
        return jnp.sum(task.losses(logits, tokens[:, 1:]) * weights, axis=-1)

    return jax.jit(score)


def evaluate(score, params, windows, batch_size):
    """Bits that a model needs for each validation piece.

    Args:
      score: from `scorer`.
      params: the parameters.
      windows: (tokens, weights, owners) of the task; the last batch is filled up with rows of weight 0.
      batch_size: windows scored at once.

    Returns:
      (bits [pieces], bytes [pieces], seconds of each batch).
    """
    tokens, weights, owners = windows
    sharding = split_rows(params)
    nats, seconds = [], []
    for start in range(0, len(tokens), batch_size):
        part = [np.zeros((batch_size, array.shape[1]), array.dtype) for array in (tokens, weights)]
        for full, array in zip(part, (tokens, weights), strict=True):
            full[: len(array[start : start + batch_size])] = array[start : start + batch_size]
        part = jax.block_until_ready(jax.device_put(part, sharding))
        begin = time.perf_counter()
        nats.append(jax.device_get(score(params, *part)))
        seconds.append(time.perf_counter() - begin)
    nats = np.concatenate(nats)[: len(tokens)].astype(np.float64)
    return np.bincount(owners, nats / math.log(2)), np.bincount(owners, weights.sum(1)), seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv))
