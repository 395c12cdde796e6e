"""How far the context of trained models reaches: every variant of a finished run, on tasks, at growing lengths."""

import datetime

from experiment import answers, comparison, settings
from experiment.cells import (
    CHECKPOINT,
    MEMORY,
    Cells,
    checkpoint_of,
    checkpoints,
    code_version,
    combined,
    effective_length,
    fingerprint,
    judged,
)
from experiment.findings import metric_words
from experiment.settings import SettingsError

TOKEN_BYTES = 32  # held for a token while examples are drawn: kinds of recall take 24 to 30, the other tasks fewer


def run(plan, workdir, results, answer, progress, command):
    """Judges what is not known yet, and returns what evaluation.json holds of it.

    Args:
      plan: the `Plan`.
      workdir: folder of the run.
      results: label -> its results, one a seed.
      answer: (name, config, result, exam, length, asked) -> (rows as `Exam.score`, seconds, device); raises ValueError
        or NotImplementedError for what the model cannot do, and MemoryError.
      progress: an `experiment.progress.Progress`, one step a cell.
      command: the command line, which each task is told with.

    Raises:
      SettingsError: nothing at all could be judged, or the data have changed.
    """
    asked = {(exam.name, length): _ask(exam, length, plan) for exam in plan.exams for length in plan.lengths}
    found = {}
    with Cells(workdir / "evaluation") as cells:
        for name, (label, config) in plan.variants.items():
            for result in results[label]:
                trained = [settings.size(config), checkpoint_of(workdir, label, result)]
                for exam in plan.exams:
                    progress.phase(f"{name}, seed {result['seed']}: {exam.name}")
                    for length in plan.lengths:
                        key = _key(name, config, result, exam, length, asked[exam.name, length], trained)
                        cell = cells.get(key["sha256"])
                        if cell is None:
                            cell = key | _cell(name, config, result, exam, length, asked[exam.name, length], answer)
                            cells.add(cell)
                        found.setdefault((exam.name, name, length), []).append(cell)
                        progress.skip(1)
    everything = [cell for some in found.values() for cell in some]
    if all(cell["mean"] is None for cell in everything):
        raise SettingsError(f"--workdir={workdir}: nothing could be judged: {everything[0]['error']}")
    shared = {"checkpoints": checkpoints(workdir, results), "code": code_version(), "command": command}
    return _table(plan, workdir, found, asked, shared)


def with_earlier(table, earlier):
    """A table and the tasks of an earlier one that it lacks, as far as those still hold.

    Args:
      table: from `run`.
      earlier: the content of evaluation.json, None if there is none.

    Returns:
      (the table, what of the earlier one is left out, a line each).
    """
    now = {task["name"]: task for task in table["tasks"]}
    first, kept, left = table["tasks"][0], [], []
    for task in (earlier or {}).get("tasks", []):
        if any(task.get(key) != first[key] for key in ("checkpoints", "code")):
            if task["name"] not in now:
                left.append(f"{task['name']}: judged with other checkpoints or code than now; ask for it again")
        elif task["name"] not in now:
            kept.append(task)
        elif gone := _gone(task, now[task["name"]]):
            left.append(f"{task['name']}: {', '.join(gone)} of an earlier command; ask for all in one, nothing is lost")
    tasks = table["tasks"] + kept
    devices = " and ".join(dict.fromkeys(task["device"] for task in tasks if task["device"]))
    return table | {"device": devices, "tasks": tasks}, left


def _gone(task, now):
    """Lengths and variants that an earlier table of a task has, and the one that replaces it lacks."""
    lengths = [f"{length:,}" for length in task["asked"] if length not in now["asked"]]
    names = [variant["name"] for variant in now["variants"]]
    return lengths + [variant["name"] for variant in task["variants"] if variant["name"] not in names]


def _ask(exam, length, plan):
    """What is asked, or why it cannot be; nothing is drawn for variants that all refuse it."""
    refusals = [exam.refusal(config) for _, config in plan.variants.values()]
    if all(refusals):
        return refusals[0]
    wanted, free = exam.rows * exam.tokens(length) * TOKEN_BYTES, answers.free_memory()
    if free is not None and wanted > free:
        return f"{MEMORY}: the examples alone want {wanted / 1e9:,.1f} GB, {free / 1e9:.1f} GB are free"
    try:
        return exam.ask(length)
    except SettingsError:
        raise
    except MemoryError as error:
        return f"{MEMORY}: {_line(error)}"
    except (ValueError, NotImplementedError) as error:
        return _line(error)


def _key(name, config, result, exam, length, asked, trained):
    """The fields of a cell that are known before it is judged; `sha256` is all that its numbers depend on."""
    key = {"variant": name, "seed": result["seed"], "task": exam.name, "length": length}
    depends = {"model": settings.as_json(config.model), "trained": trained, "code": code_version()}
    return key | {"sha256": fingerprint(**key, **depends, asked=getattr(asked, "sha256", asked))}


def _cell(name, config, result, exam, length, asked, answer):
    """What was found of one run at one length, or why nothing was."""
    failed = {"examples": 0, "mean": None, "stderr": None, "loss": None, "groups": {}, "positions": None}
    failed |= {"seconds": None, "device": None}
    error = result["error"] and f"training failed: {result['error']}"
    error = error or exam.refusal(config) or (asked if isinstance(asked, str) else None)
    if error:
        return failed | {"error": error}
    try:
        rows, seconds, device = answer(name, config, result, exam, length, asked)
    except SettingsError as error:
        return failed | {"error": f"{CHECKPOINT}: {_line(error)}"}
    except MemoryError as error:
        return failed | {"error": f"{MEMORY}: {_line(error)}"}
    except (ValueError, NotImplementedError) as error:  # the model has parts of a fixed length
        return failed | {"error": _line(error)}
    if not all(abs(each.sum(dtype=float)) < float("inf") for each in rows):
        return failed | {"error": "the model's scores are not finite"}
    edges = exam.edges(length) if exam.edges else None
    found = judged(rows, asked.owners, asked.groups, edges)
    return found | {"error": None, "seconds": seconds, "device": device}


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__


def _table(plan, workdir, found, asked, shared):
    tasks = []
    for exam in plan.exams:
        variants, drawn = [], [asked[exam.name, length] for length in plan.lengths]
        there = [length for length, each in zip(plan.lengths, drawn, strict=True) if not isinstance(each, str)]
        for name in plan.variants:
            cells = [combined(found[exam.name, name, length]) for length in plan.lengths]
            counted = [cell for cell in cells if cell["length"] in there]
            reached = effective_length(counted, plan.threshold) if exam.metric["higher_is_better"] else None
            variants.append({"name": name, "effective_length": reached, "cells": cells})
        known = [{} if isinstance(each, str) else each.baselines for each in drawn]
        names = dict.fromkeys(name for each in known for name in each)
        baselines = {name: [each.get(name) for each in known] for name in names}
        metric = exam.metric | {"name": metric_words(exam.metric)}
        told = {"name": exam.name, "metric": metric, "trained": exam.trained, "asked": plan.lengths, "lengths": there}
        told |= {"threshold": plan.threshold, "examples": plan.examples} | shared
        cells = [cell for name in plan.variants for length in plan.lengths for cell in found[exam.name, name, length]]
        told["device"] = " and ".join(dict.fromkeys(cell["device"] for cell in cells if cell["device"]))
        tasks.append(told | {"baselines": baselines, "variants": variants})
    return {
        "workdir": str(workdir),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": " and ".join(dict.fromkeys(task["device"] for task in tasks if task["device"])),
        "versions": comparison.versions(),
        "command": shared["command"],
        "trained_length": plan.trained,
        "tasks": tasks,
    }
