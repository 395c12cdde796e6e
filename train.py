"""Train the variants of a comparison under one budget, then measure, tabulate and draw what each costs and buys.

    python train.py                                            # configs/compare_text.py, minutes on two cores
    python train.py --config.data.path=FILE_OR_FOLDER          # on your own text
    python train.py --config=configs/NAME.py --workdir=FOLDER --config.seeds=3

What is compared, and on what, stands in the config: configs/compare_classification.py trains encoders to classify.
Stop it at any moment and give the same command again: it goes on, to the same numbers. Exit codes: 0 done; 1 every
variant diverged, or the disk is full; 2 wrong flags, config or data, found before anything is compiled; 143 or 130
stopped by SIGTERM or SIGINT after saving.
"""

import datetime
import math
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiment import checkpoint, command_line, comparison, groups, measure, settings
from experiment.devices import data_mesh, split_rows
from experiment.estimate import per_piece, ratio
from experiment.findings import metric_words
from experiment.progress import Interrupt, Progress
from experiment.records import Metrics, read_json, write_arrays, write_json
from tasks import TASKS

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "compare_text.py"


def main(argv: list[str]) -> int:
    """Runs the command line `argv` and returns the exit code."""
    try:
        config, workdir, corpus, lock = prepare(argv)
    except (ValueError, OSError) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        with lock:
            table = compare(config, workdir, corpus, command=shlex.join(["python", *argv]))
    except Exception as error:
        if not checkpoint.is_disk_full(error):
            raise
        print(f"train.py: disk full: {error}; make room and give the same command again", file=sys.stderr)
        return 1

    from experiment.report import print_table

    print_table(table)
    return 0 if any(variant["quality"]["mean"] is not None for variant in table["variants"]) else 1


def prepare(argv):
    """Config, folder, text, and the lock on the folder: whatever is wrong with them is found here, in seconds."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where results go; the default is runs/<config name>", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "start anew: remove what an earlier run left", flag_values=values)
    config = command_line.parse(argv, values, __doc__, DEFAULT_CONFIG).config
    settings.check(config)
    task = TASKS[config.task]
    corpus = task.load(config.data)
    settings.fill(config, task.fields(corpus))
    workdir = Path(values.workdir or f"runs/{command_line.run_name(command_line.config_path(argv, DEFAULT_CONFIG))}")
    lock = settings.claim(workdir, config, task.describe(corpus, settings.size(config)), values.overwrite)
    return config, workdir, corpus, lock


def compare(config, workdir, corpus, command):
    """Trains and measures what is not done yet, writes the report if anything is new, returns comparison.json."""
    from experiment.scaling import scaling  # with Flax, which no wrong flag should wait for

    labels, seeds, variants = settings.selected(config), settings.seeds(config), settings.variants(config)
    runs = [(label, seed) for label in labels for seed in seeds]
    total, metric = sum(variants[label].train.steps for label, _ in runs), TASKS[config.task].METRIC
    with Interrupt() as interrupt, Progress(total, metric_words(metric), comparison.unit(config)) as progress:
        used, present = data_mesh(config.train).size, jax.local_device_count()
        if used < present:
            progress.warn(
                f"{used} of {present} devices used: config.train.batch_size={config.train.batch_size} splits no further"
            )
        for number, (label, seed) in enumerate(runs, 1):
            progress.phase(f"[{number}/{len(runs)}] {label}" + f", seed {seed}" * (len(seeds) > 1))
            train(variants[label], corpus, workdir, label, seed, progress, interrupt)
        for label in labels:
            path = workdir / label / "scaling.json"
            if not path.exists():
                progress.phase(f"timing {label} attention at growing length")
                write_json(path, scaling(variants[label].model, config.scaling))
        results = comparison.results(workdir, config)
        for label in labels:
            depict(variants[label], corpus, workdir, results[label], progress)
        table = comparison.compare(workdir, config, metric, read_json(workdir / "data.json"), results)
        stored = read_json(workdir / "comparison.json")
        if stored is not None and table.items() <= stored.items():
            return stored
        progress.phase("drawing the report")
        date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        return report(table | {"command": command, "date": date}, workdir, config)


def train(config, corpus, workdir, label, seed, progress, interrupt):
    """Trains one variant with one seed from where it stopped, judges it, and writes `result.json`."""
    # With Flax and optax, which no wrong flag should wait for.
    from experiment import stopping
    from experiment.judging import judge, scorer
    from experiment.learner import judged, make_learner, make_step, weights

    folder, task, budget = comparison.folder(workdir, label, seed), TASKS[config.task], config.train
    length = settings.size(config)
    if (folder / "result.json").exists():
        return progress.skip(budget.steps)

    # Model, optimiser, and the one step that changes them; the newest checkpoint that is whole.
    learner = make_learner(config, seed)
    score = scorer(learner, task)
    step, state = checkpoint.restore(folder / "checkpoints", learner.state, progress.warn)
    state = state or learner.state
    progress.skip(step)

    # Task: batches to learn from, and what to look at on the way.
    batch = batches(config, corpus, seed, split_rows(state["params"], axis=1))
    look = glance(config, corpus, score, split_rows(state["params"]))
    program = measure.compile(make_step(learner, task.score), state, batch(step))

    # Loop: a signal waits for the end of the step and for its checkpoint.
    error, size, sign = None, budget.batch_size * task.tokens(length), 1 if task.METRIC["higher_is_better"] else -1
    done = step == budget.steps or stopping.over(state, budget.patience)
    with Metrics(folder, step, metric_words(task.METRIC).replace(" ", "_")) as metrics, interrupt.hold():
        while not done:
            arrays = jax.block_until_ready(batch(step))
            begin = time.perf_counter()
            state, numbers = program.call(state, arrays)
            numbers = jax.device_get(numbers)
            step, seconds = step + 1, time.perf_counter() - begin
            metrics.train(step, numbers, seconds, size)
            progress.step(metrics.rows[-1], budget.steps, size, seconds)
            if not all(map(math.isfinite, numbers.values())):
                error = diverged(step, numbers, folder / "checkpoints")
                break
            if step % budget.evaluate_every == 0 or step == budget.steps:
                metric, loss = look(weights(state))
                metrics.validation(metric, loss)
                if budget.patience:
                    state |= {"stopping": stopping.looked(state["stopping"], weights(state), step, sign * metric, loss)}
            done = step == budget.steps or stopping.over(state, budget.patience)
            if step % budget.checkpoint_every == 0 or done or interrupt.pending:
                metrics.sync()
                checkpoint.save(folder / "checkpoints", step, state, budget.keep_checkpoints)
            if interrupt.pending:
                interrupt.leave()
    progress.skip(budget.steps - step)

    # Judgement, on every validation example.
    quality = {}
    if not error:
        progress.phase(f"judging {label}")
        quality = judge(learner, score, judged(state), corpus, length, config)
        if not math.isfinite(quality["loss"]):
            error, quality = f"validation loss is {quality['loss']} after {step} steps", {}
    if error:
        progress.warn(f"{label}: {error}")
    write_json(folder / "result.json", comparison.result(label, seed, error, program, state, metrics, quality))


def batches(config, corpus, seed, sharding):
    """Returns a function: step -> its training examples on the device, [accumulate, rows, ...].

    Examples that are the very object of the step before, such as a whole graph, are not copied again.
    """
    task, budget, length = TASKS[config.task], config.train, settings.size(config)
    shape = budget.accumulate, budget.batch_size // budget.accumulate
    last = None, None

    def batch(step):
        nonlocal last
        arrays = task.batch(corpus, seed, step, budget.batch_size, length)
        if arrays is not last[0]:
            parts = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
            last = arrays, jax.device_put(parts, sharding)
        return last[1]

    return batch


def glance(config, corpus, score, sharding):
    """Returns a function: weights -> (metric, loss) on examples that stay on the device.

    They are the task's development data, or a part of the judgement: at most `evaluate_examples`, evenly spread.
    """
    from experiment.judging import evaluate, uploaded

    task, budget = TASKS[config.task], config.train
    examples, owners = getattr(task, "development", task.validation)(corpus, settings.size(config))
    some = np.linspace(0, len(owners) - 1, min(budget.evaluate_examples, len(owners))).round().astype(int)
    examples, owners = {name: array[some] for name, array in examples.items()}, owners[some]
    parts = list(uploaded(examples, len(owners), budget.batch_size, sharding))

    def look(weights):
        rows, _ = evaluate(score, weights, parts, len(owners))
        losses, counts, amounts, sizes = (per_piece(each, owners) for each in rows)
        return ratio(amounts, sizes)[0], losses.sum() / counts.sum()

    return look


def depict(config, corpus, workdir, results, progress):
    """Writes what the task has to show of a variant, if anything, by its first seed that went well."""
    from experiment.judging import trained

    task, run = TASKS[config.task], next((result for result in results if result["error"] is None), None)
    if run is None or not hasattr(task, "pictures") or (workdir / run["label"] / "pictures.npz").exists():
        return
    progress.phase(f"looking at {run['label']}")
    learner, weights = trained(run, config, workdir, progress.warn)
    try:
        arrays = task.pictures(learner.model(weights), corpus, settings.size(config))
    except (ValueError, NotImplementedError, RuntimeError, MemoryError) as error:  # no reason to lose the report
        return progress.warn(f"{run['label']}: no pictures: {' '.join(str(error).split())}")
    write_arrays(workdir / run["label"] / "pictures.npz", arrays)


def diverged(step, numbers, folder):
    """Says in one line when the loss broke, at what learning rate, and which checkpoint still is good."""
    name = "grad_norm" if math.isfinite(numbers["loss"]) else "loss"
    good = checkpoint.steps(folder)
    last = f"last good checkpoint {folder / str(good[-1])}" if good else "no checkpoint before it"
    return f"{name} became {numbers[name]} at step {step}, learning rate {numbers['learning_rate']:.3g}; {last}"


def report(table, workdir, config):
    """Writes figures, page and CSVs, and last of all comparison.json, whose presence says that everything is there."""
    from experiment.report import write_csv, write_report  # matplotlib takes a second to import

    write_report(workdir, table, comparison.curves(workdir, config), config, comparison.pictures(workdir, config))
    write_csv(workdir, table)
    if any(variant["groups"] for variant in table["variants"]):
        groups.write_csv(workdir / "groups.csv", table)
    write_json(workdir / "comparison.json", table)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv))
