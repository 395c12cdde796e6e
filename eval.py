"""Judge finished variants again from their checkpoints, also on other tasks and far beyond the length of training.

    python eval.py --workdir=runs/compare_text
    python eval.py --workdir=runs/compare_text --length=1024
    python eval.py --workdir=runs/passkey --lengths=256,512,1024,2048
    python eval.py --workdir=runs/compare_text --tasks=passkey,mqar,extrapolation --lengths=512,1024,2048 --examples=256
    python eval.py --workdir=runs/duplication --lengths=128 --sweep=model.attention.num_hashes:1,2,4,8 \
        --sweep=model.attention.bucket_size:8,16
    python eval.py --workdir=runs/compare_text --generate --prompt="def " --variant=full,linear --temperature=0.5
    python eval.py --leaderboard runs/compare_text runs/mine --output=runs

Without further flags, or with --length, it prints the comparison's table with the quality measured now and writes it to
`evaluation_T<length>.json` in the same folder. A variant that cannot take the length is told in one line and stands in
the table as failed.

With --tasks or --lengths it judges every variant at every length on each task, and writes `evaluation.json`,
`evaluation.csv` and the page `evaluation.html`: quality by length and by depth of what is asked for, the effective
length, loss by position. Tasks are the run's own, every kind of recall (`tasks/recall.py`) for decoders, and
`extrapolation` and `extrapolation_sliding` (`tasks/extrapolation.py`) for models of text. What a variant cannot do
stands there with the reason. Stop it at any moment and give the same command again: what was judged is not judged
again. Tasks that an earlier command asked for stay in the files while checkpoints and code are the same.

With --generate it prints how the variants go on from a prompt, with --leaderboard it writes one table of several runs.
Exit codes: 0 done; 2 something is missing or nothing fits, and one line on stderr says what; 143 or 130 stopped by
SIGTERM or SIGINT.
"""

import shlex
import sys
from itertools import takewhile
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiment import command_line, comparison, evaluation_plan, generate, settings
from experiment.records import read_json, write_json
from tasks import TASKS


def main(argv: list[str]) -> int:
    """Runs the command line `argv` and returns the exit code."""
    values = flags.FlagValues()
    define_flags(values)
    try:
        argv, folders = run_folders(argv)
        command_line.parse(argv, values, __doc__)
        mode = chosen(values)
        if values.leaderboard:
            write_leaderboard(folders, Path(values.output))
        else:
            workdir = Path(values.workdir)
            mode(values, workdir, *finished(workdir), command=shlex.join(["python", *argv]))
    except (ValueError, OSError) as error:
        print(f"eval.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def define_flags(values):
    """Adds the flags of the program."""
    flags.DEFINE_string("workdir", "runs/compare_text", "folder of a finished comparison", flag_values=values)
    flags.DEFINE_integer(
        "length",
        None,
        "T to judge at, or the side of images; the default is the one of training",
        1,
        flag_values=values,
    )
    evaluation_plan.define_flags(values)
    generate.define_flags(values)
    flags.DEFINE_boolean(
        "leaderboard",
        False,
        "one table of the runs whose folders follow: --leaderboard runs/a runs/b",
        flag_values=values,
    )
    flags.DEFINE_string("output", "runs", "folder that the leaderboard is written to", flag_values=values)


def run_folders(argv):
    """The command line without the folders that follow `--leaderboard`, and these.

    >>> run_folders(["eval.py", "--leaderboard", "runs/a", "runs/b", "--output=here"])
    (['eval.py', '--leaderboard', '--output=here'], ['runs/a', 'runs/b'])
    """
    if "--leaderboard" not in argv:
        return argv, []
    at = argv.index("--leaderboard") + 1
    folders = list(takewhile(lambda item: not item.startswith("-"), argv[at:]))
    return argv[:at] + argv[at + len(folders) :], folders


def chosen(values):
    """The function that does what the flags ask for, None for a leaderboard.

    Raises:
      SettingsError: flags that do not go together, or have no effect.
    """
    given = {name for name in values if values[name].present}
    if values.leaderboard:
        _check_effect(given - {"leaderboard", "output"}, "with --leaderboard")
        return None
    _check_effect(given & {"output"}, "without --leaderboard")
    if evaluation_plan.wanted(values):
        _check_effect(given - {"workdir", "variant", *evaluation_plan.FLAGS}, "with --tasks or --lengths")
        return judge_lengths
    if not values.generate:
        _check_effect(given & {"variant"}, "without --generate, --tasks or --lengths")
    generate.check_flags(values)
    return write_texts if values.generate else judge_everything


def _check_effect(names, where):
    if names:
        raise settings.SettingsError(f"--{min(names)}: has no effect {where}")


def judge_everything(values, workdir, config, results, command):
    """Judges all variants on the task they were trained on, prints the table and writes it."""
    from experiment.report import print_table

    task, length = TASKS[config.task], values.length or settings.size(config)
    corpus = task.load(config.data)
    if corpus.sha256 != read_json(workdir / "data.json")["sha256"]:
        raise settings.SettingsError(f"--workdir={workdir}: the data it was trained on have changed since")
    variants = settings.variants(config)
    for label, runs in results.items():
        results[label] = [judge_again(run, variants[label], workdir, corpus, length) for run in runs]
    if all(run["error"] is not None for runs in results.values() for run in runs):
        raise settings.SettingsError(f"--workdir={workdir} --length={length}: no variant can be judged at it")
    table = comparison.compare(workdir, config, task.METRIC, task.describe(corpus, length), results)
    write_json(workdir / f"evaluation_T{length}.json", table | {"length": length})
    print_table(table)


def judge_lengths(values, workdir, config, results, command):
    """Judges variants on tasks at many lengths, prints the tables and writes them with their page."""
    from experiment import evaluation, evaluation_page, evaluation_table
    from experiment.answers import Answers  # with Flax and optax, which no wrong flag should wait for
    from experiment.progress import Interrupt, Progress

    plan = evaluation_plan.Plan(values, config, results, read_json(workdir / "data.json")["sha256"])
    left = [label for label in settings.variants(config) if label not in results]
    if left and not values.variant:
        warn(f"{', '.join(left)}: not finished, left out; the train.py command of this run goes on with them")
    earlier = read_json(workdir / "evaluation.json")
    with Interrupt(), Progress(plan.count(results), "", counted="judged") as progress:
        table = evaluation.run(plan, workdir, results, Answers(workdir, config, warn), progress, command)
        everything, left_out = evaluation.with_earlier(table, earlier)
        evaluation_table.write_csv(workdir / "evaluation.csv", everything)
        evaluation_page.write_page(workdir, everything)
        write_json(workdir / "evaluation.json", everything)
    for line in left_out:
        warn(f"left out: {line}")
    evaluation_table.print_tables(table)


def write_leaderboard(folders, output):
    """Writes one table of several runs as `leaderboard.html`, `.csv` and `.json`.

    Args:
      folders: of the runs; the leaderboard's own files, which `runs/*` names as well, are passed over.
      output: folder to write to, made if missing.
    """
    from experiment import leaderboard

    own = {f"leaderboard.{ending}" for ending in ("html", "csv", "json")}
    folders = [Path(folder) for folder in folders if Path(folder).name not in own]
    if not folders:
        raise settings.SettingsError("--leaderboard: want folders of runs after it: --leaderboard runs/a runs/b")
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise settings.SettingsError(f"--output={output}: want a folder, found the file {path}")
    table = leaderboard.collect(folders)
    for line in leaderboard.warnings(table):
        warn(line)
    output.mkdir(parents=True, exist_ok=True)
    leaderboard.write(output, table)
    print(f"{output / 'leaderboard.html'}: {len(folders) - len(table['passed_over'])} runs")


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
            f"--workdir={workdir}: no variant is finished; give the train.py command of this run again"
        )
    return config, results


def judge_again(run, config, workdir, corpus, length):
    """A run's result with its quality replaced by one measured now at `length`, from its newest checkpoint."""
    from experiment.judging import judge, scorer, trained

    if run["error"] is not None:
        return run
    try:
        learner, weights = trained(run, config, workdir, warn)
        return run | judge(learner, scorer(learner, TASKS[config.task]), weights, corpus, length, config)
    except (ValueError, NotImplementedError) as error:  # no checkpoint, or the model has parts of a fixed length
        warn(f"{run['label']}: {error}")
        return run | {"error": str(error), "quality": None}


def write_texts(values, workdir, config, results, command):
    """Prints what the first seed of each wanted variant makes of the prompt."""
    from experiment.judging import trained

    if config.task != "text":
        raise settings.SettingsError(f"--generate: wants models trained on the task 'text', got {config.task!r}")
    variants = settings.variants(config)
    whole = {label: next((run for run in runs if run["error"] is None), None) for label, runs in results.items()}
    whole = {label: run for label, run in whole.items() if run}
    generate.print_texts(values, whole, lambda label: trained(whole[label], variants[label], workdir, warn), warn)


def warn(line):
    """Prints a warning on stderr."""
    print(f"warning: {' '.join(line.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
