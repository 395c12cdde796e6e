"""Judge finished variants again from their checkpoints, also at a length they were not trained at.

    python eval.py --workdir=runs/compare_text
    python eval.py --workdir=runs/compare_text --length=1024
    python eval.py --workdir=runs/compare_text --generate --prompt="def " --variant=full,linear --temperature=0.5

Prints the comparison's table with the quality measured now and writes it to `evaluation_T<length>.json` in the same
folder. A variant that cannot take the length is told in one line and stands in the table as failed. With --generate it
prints how the variants go on from a prompt instead. Exit codes: 0 done, 2 something is missing or nothing fits; the one
line on stderr says what.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiment import checkpoint, comparison, generate, groups, settings
from experiment.devices import split_rows
from experiment.estimate import per_piece, ratio
from experiment.records import read_json, write_json
from tasks import TASKS


def main(argv: list[str]) -> int:
    """Runs the command line `argv` and returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "runs/compare_text", "folder of a finished comparison", flag_values=values)
    flags.DEFINE_integer(
        "length",
        None,
        "T to judge at, or the side of images; the default is the one of training",
        1,
        flag_values=values,
    )
    generate.define_flags(values)
    try:
        settings.parse(argv, values, __doc__)
        generate.check_flags(values)
        workdir = Path(values.workdir)
        config, results = finished(workdir)
        if values.generate:
            write_texts(values, workdir, config, results)
            return 0
        task, length = TASKS[config.task], values.length or settings.size(config)
        corpus = task.load(config.data)
        if corpus.sha256 != read_json(workdir / "data.json")["sha256"]:
            raise settings.SettingsError(f"--workdir={workdir}: the data it was trained on have changed since")
        variants = settings.variants(config)
        for label, runs in results.items():
            results[label] = [judge_again(run, variants[label], workdir, corpus, length) for run in runs]
        if all(run["error"] is not None for runs in results.values() for run in runs):
            raise settings.SettingsError(f"--workdir={workdir} --length={length}: no variant can be judged at it")
    except (ValueError, OSError) as error:
        print(f"eval.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2

    from experiment.report import print_table

    table = comparison.compare(workdir, config, task.METRIC, task.describe(corpus, length), results)
    write_json(workdir / f"evaluation_T{length}.json", table | {"length": length})
    print_table(table)
    return 0


def finished(workdir):
    """Config and results of the comparison in a folder.

    Raises:
      SettingsError: no comparison there, or none of its variants is finished.
    """
    stored = settings.from_json(read_json(workdir / "config.json"))
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


def judge_again(run, config, workdir, corpus, length):
    """A run's result with its quality replaced by one measured now at `length`, from its newest checkpoint."""
    if run["error"] is not None:
        return run
    learner, weights = trained(run, config, workdir)
    try:
        return run | judge(learner, scorer(learner, TASKS[config.task]), weights, corpus, length, config)
    except (ValueError, NotImplementedError) as error:  # the model has parts of a fixed length
        warn(f"{run['label']}: {error}")
        return run | {"error": str(error), "quality": None}


def write_texts(values, workdir, config, results):
    """Prints what the first seed of each wanted variant makes of the prompt."""
    if config.task != "text":
        raise settings.SettingsError(f"--generate: wants models trained on the task 'text', got {config.task!r}")
    variants = settings.variants(config)
    whole = {label: next((run for run in runs if run["error"] is None), None) for label, runs in results.items()}
    whole = {label: run for label, run in whole.items() if run}
    generate.print_texts(values, whole, lambda label: trained(whole[label], variants[label], workdir), warn)


def trained(run, config, workdir):
    """The learner of a finished run, and the weights that it is judged with, from its newest checkpoint."""
    from experiment.learner import judged, make_learner  # with Flax and optax, which no wrong flag should wait for

    folder = comparison.folder(workdir, run["label"], run["seed"]) / "checkpoints"
    learner = make_learner(config, run["seed"])
    step, state = checkpoint.restore(folder, learner.state, warn)
    if step != run["steps"]:
        raise settings.SettingsError(f"{folder}: wanted the checkpoint of step {run['steps']}, found {step or 'none'}")
    return learner, judged(state)


def warn(line):
    """Prints a warning on stderr."""
    print(f"warning: {' '.join(line.split())}", file=sys.stderr)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv))
