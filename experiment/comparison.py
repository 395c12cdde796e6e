"""From the results of single runs to the one file that compares them, `comparison.json`."""

import importlib.metadata
import os
import platform

import jax
import numpy as np

from experiment import estimate, findings, groups, settings
from experiment.measure import spread
from experiment.records import read_arrays, read_json, read_rows
from tasks import TASKS

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

EXAMPLES = ("images",)  # units that are whole examples; the others are what an example consists of


def folder(workdir, label, seed):
    """Where one variant trained with one seed lies."""
    return workdir / label / f"seed{seed}"


def result(label, seed, error, program, state, metrics, quality):
    """The content of one `result.json`.

    Args:
      label: of the variant.
      seed: it was trained with.
      error: why it has no quality, or None.
      program: the compiled training step, a `measure.Program`.
      state: the learner's, at the end.
      metrics: the run's `records.Metrics`.
      quality: from `experiment.judging.judge`; empty if there was an error.
    """
    params, steps = state["params"], int(state["step"])
    best = int(state["stopping"]["best_step"]) if "stopping" in state else steps
    return {
        "label": label,
        "seed": seed,
        "error": error,
        "steps": steps,
        "best_step": None if error else best,  # whose weights are judged
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "compile_seconds": program.compile_seconds,
        "peak_memory_bytes": program.peak_bytes,
        "flops_per_step": program.flops,
        "train_tokens": metrics.rows[0]["tokens"],
        "step_seconds": spread(metrics.step_seconds()),
        "device": describe_devices(jax.tree.leaves(params)[0].sharding.device_set),
        "versions": versions(),
    } | quality


def results(workdir, config):
    """The `result.json` of every seed of every variant that has one, label -> list, in the order of the config."""
    found = {
        label: [read_json(folder(workdir, label, seed) / "result.json") for seed in settings.seeds(config)]
        for label in settings.variants(config)
    }
    return {label: [result for result in some if result] for label, some in found.items() if any(some)}


def compare(workdir, config, metric, data, results):
    """Turns results into what comparison.json holds, but for what differs between two calls: command and date.

    Args:
      workdir: folder of the run.
      config: the comparison's config; `only` is not looked at, so a part trained earlier stays in.
      metric: {"name", "higher_is_better"}.
      data: the task's `describe`, with the baselines of the length that was judged at.
      results: from `results`.
    """
    pieces = findings.pieces({"unit": unit(config), "data": data})
    everything, configs = [result for found in results.values() for result in found], settings.variants(config)
    variants = []
    for label, found in results.items():
        variant = _variant(label, configs[label], found, pieces)
        variant["scaling"] = read_json(workdir / label / "scaling.json")
        variant["differences"] = {
            other: gap for other in results if other != label and (gap := _difference(found, results[other], pieces))
        }
        variants.append(variant)
    table = {
        "task": config.task,
        "metric": metric,
        "unit": unit(config),
        "device": " and ".join(dict.fromkeys(result["device"] for result in everything)),
        "versions": everything[-1]["versions"] if everything else {},
        "baselines": data["baselines"],
        "data": {name: value for name, value in data.items() if name != "baselines"},
        "variants": variants,
    }
    weak = findings.not_better_than_baseline(table)
    for variant in variants:
        variant["beats_baselines"] = variant["quality"]["mean"] is not None and variant not in weak
    return table


def curves(workdir, config):
    """Rows of metrics by label and seed."""
    found = {
        label: {seed: read_rows(folder(workdir, label, seed) / "metrics.jsonl") for seed in settings.seeds(config)}
        for label in settings.variants(config)
    }
    return {label: {seed: rows for seed, rows in runs.items() if rows} for label, runs in found.items()}


def pictures(workdir, config):
    """What the task shows of each trained variant, by label."""
    found = {label: read_arrays(workdir / label / "pictures.npz") for label in settings.variants(config)}
    return {label: arrays for label, arrays in found.items() if arrays}


def describe_devices(devices):
    """Names a set of devices, with the processor and its cores where they are the CPU."""
    one = next(iter(devices))
    name = one.device_kind
    if one.platform == "cpu":
        name = f"{_processor()}, {os.cpu_count()} cores"
    return f"{len(devices)} x {name}" if len(devices) > 1 else name


def versions():
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def unit(config):
    """What speed is told in, and how many of what `task.tokens` counts make one of it."""
    task = TASKS[config.task]
    return {"name": task.UNIT, "tokens": task.tokens(settings.size(config)) if task.UNIT in EXAMPLES else 1}


def _variant(label, config, results, pieces):
    good = [result for result in results if result["error"] is None]
    first = (good or results)[0]
    median = lambda values: float(np.median(values)) if values else None  # noqa: E731
    step = {name: median([result["step_seconds"][name] for result in good]) for name in ("median", "p95")}
    return {
        "name": label,
        "model": config.model.name,
        "attention": config.model.attention.to_dict(),
        "parameters": first["parameters"],
        "quality": _quality(good, pieces),
        "groups": groups.compare(good, pieces),
        "details": _details(good),
        "error": next((result["error"] for result in results if result["error"]), None),
        "train_tokens_per_second": median(
            [result["train_tokens"] / result["step_seconds"]["median"] for result in good]
        ),
        "forward_tokens_per_second": median([result["forward_tokens"] / result["forward_seconds"] for result in good]),
        "steps": median([result["steps"] for result in good]),
        "step_ms": {name: value and 1e3 * value for name, value in step.items()},
        "compile_seconds": median([result["compile_seconds"] for result in results]),
        "peak_memory_bytes": first["peak_memory_bytes"],
        "flops_per_step": first["flops_per_step"],
    }


def _quality(results, pieces):
    """Mean and error bar: over seeds where there are several, else over the validation pieces."""
    values = [result["quality"] for result in results]
    if not values:
        return {"mean": None, "stderr": None, "stderr_over": pieces, "values": []}
    if len(values) == 1:
        return {"mean": values[0], "stderr": results[0]["stderr"], "stderr_over": pieces, "values": values}
    mean, stderr = estimate.over_seeds(values)
    return {"mean": mean, "stderr": stderr, "stderr_over": "seeds", "values": values}


def _details(results):
    """Further numbers of the judged models, over seeds."""
    names = results[0]["details"] if results else {}
    values = {name: [result["details"][name] for result in results] for name in names}
    return {
        name: dict(zip(("mean", "stderr"), estimate.over_seeds(own), strict=True)) | {"values": own}
        for name, own in values.items()
    }


def _difference(results, others, pieces):
    """How much more than another variant, pair by pair: far sharper than the two error bars apart.

    With one seed the pairs are the validation pieces, which both variants were judged on; with more, the seeds.
    """
    others = {result["seed"]: result for result in others if result["error"] is None}
    pairs = [
        (result, others[result["seed"]]) for result in results if result["error"] is None and result["seed"] in others
    ]
    if not pairs:
        return None
    mean, stderr = estimate.over_seeds([one["quality"] - other["quality"] for one, other in pairs])
    over = "seeds"
    if len(pairs) == 1:
        one, other = ((run["amounts"], run["sizes"]) for run in pairs[0])
        stderr, over = estimate.difference(one, other)[1], pieces
    return {"mean": mean, "stderr": stderr, "stderr_over": over}


def _processor():
    """The processor's name where the system tells, else its architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
