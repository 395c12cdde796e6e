"""The leaderboard: the variants of several finished runs in one table for each task, as a page, CSV and JSON."""

import csv
import math
from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from experiment import comparison, leaderboard_page, settings
from experiment.evaluation_findings import lengths_of
from experiment.findings import listed, metric_words, number, quality, ranking
from experiment.leaderboard_page import BEST, FACTS, LEVEL, OPEN
from experiment.records import read_json, write_json

NUMBERS = ("parameters", "train_tokens_per_second", "forward_tokens_per_second", "peak_memory_bytes")


def collect(folders) -> dict:
    """What the runs in these folders hold, those of one task together.

    Args:
      folders: of runs of `train.py`.

    Returns:
      {"tables": [{"task", "name" (of the data), "metric", "unit", "data_sha256", "baselines": [{"name", "run",
      "value"}], "rows"}], "unfinished": [{"run", "missing"}]}. Rows, best first, are {"run", "variant", "quality",
      "standing", "parameters", "train_tokens_per_second", "forward_tokens_per_second", "peak_memory_bytes",
      "beats_baselines" (of its own run), "length", "steps", "device", "effective_length": {task: {"length",
      "threshold", "longest"}}, "error"}. Runs share a table if they share task, data and metric. `standing` is "best",
      "not told apart" (within one standard error of the difference from the best, the two errors taken as
      independent), "no error bar" (which tells nothing), or "".

    Raises:
      ValueError: a folder without a run, or one given twice.
    """
    tables, unfinished = {}, []
    for folder, run in _named(folders).items():
        config = settings.from_json(read_json(folder / "config.json"))
        if not isinstance(config, dict) or "variants" not in config:
            raise ValueError(f"{folder}: want the folder of a run of train.py, found none there")
        config = ConfigDict(config)
        table, data = read_json(folder / "comparison.json"), read_json(folder / "data.json")
        missing = _missing(folder, config, table)
        if missing:
            unfinished.append({"run": run, "missing": missing})
        if table is None:
            continue
        sha256 = (data or {}).get("sha256") or (table.get("data") or {}).get("sha256")
        metric = table["metric"] | {"name": metric_words(table["metric"])}
        key = table["task"], sha256, *metric.values()
        unit = table.get("unit") or {}
        unit = unit["name"] if unit.get("tokens") == 1 else "tokens"  # speed is told in what all runs share
        new = {
            "task": table["task"],
            "name": config.data.name,
            "metric": metric,
            "unit": unit,
            "data_sha256": sha256,
            "baselines": [],
            "rows": [],
        }
        group = tables.setdefault(key, new)
        group["baselines"] += [{"name": n, "run": run, "value": v} for n, v in (table.get("baselines") or {}).items()]
        group["rows"] += _rows(folder, run, config, table)
    return {"tables": [_ranked(group) for group in tables.values()], "unfinished": unfinished}


def write(output: Path, table: dict) -> None:
    """Writes `leaderboard.html`, `leaderboard.csv` and `leaderboard.json` into an existing folder.

    Args:
      output: the folder.
      table: from `collect`.
    """
    output = Path(output)
    write_json(output / "leaderboard.json", table)
    _write_csv(output / "leaderboard.csv", table)
    (output / "leaderboard.html").write_text(leaderboard_page.page(table), "utf-8")


def _named(folders):
    """folder -> its name, or its whole path where another one has the same name."""
    folders = [Path(folder) for folder in folders]
    for folder, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise ValueError(f"{folder}: want each folder once, got it {count} times")
    names = Counter(folder.resolve().name for folder in folders)
    return {f: f.resolve().name if names[f.resolve().name] == 1 else str(f) for f in folders}


def _missing(folder, config, table):
    """What a run lacks, as a list of words; empty where it is finished."""
    labels, seeds = list(settings.variants(config)), settings.seeds(config)
    if table is None:
        done = comparison.results(folder, config)
        known = {label: [result["seed"] for result in some] for label, some in done.items()}
        lacking = {label: [seed for seed in seeds if seed not in known.get(label, [])] for label in labels}
        words = [f"{label} seed {listed(map(str, some))}" for label, some in lacking.items() if some]
        return [*words, "comparison.json"]
    known = {variant["name"]: variant for variant in table["variants"]}
    words = []
    for label in labels:
        if label not in known:
            words.append(label)
        elif not known[label].get("error") and len(known[label]["quality"]["values"]) < len(seeds):
            words.append(f"{label}: {len(known[label]['quality']['values'])} of {len(seeds)} seeds")
    return words


def _rows(folder, run, config, table):
    reached = _effective(read_json(folder / "evaluation.json"))
    shared = {"run": run, "length": settings.size(config), "device": table["device"]}
    rows = []
    for variant in table["variants"]:
        row = shared | {"variant": variant["name"], "quality": variant["quality"], "steps": variant.get("steps")}
        row |= {name: number(variant, name) for name in NUMBERS} | {"beats_baselines": variant.get("beats_baselines")}
        rows.append(row | {"effective_length": reached.get(variant["name"], {}), "error": variant.get("error")})
    return rows


def _effective(evaluation):
    """variant -> {task: effective length}, of the tasks whose metric is better the higher."""
    found = {}
    for task in (evaluation or {}).get("tasks", []):
        if task["metric"]["higher_is_better"]:
            lengths = lengths_of(evaluation, task)
            for variant in task["variants"]:
                cell = {"length": variant["effective_length"], "threshold": evaluation["threshold"]}
                found.setdefault(variant["name"], {})[task["name"]] = cell | {
                    "longest": lengths[-1] if lengths else None
                }
    return found


def _ranked(group):
    """A table with its rows best first, each with its standing; those without a quality come last."""
    ranked = ranking({"metric": group["metric"], "variants": group["rows"]})
    failed = [row for row in group["rows"] if quality(row) is None]
    alone = len(ranked) < 2
    rows = [row | {"standing": "" if alone else _standing(ranked[0], row)} for row in ranked]
    return group | {"rows": rows + [row | {"standing": ""} for row in failed]}


def _standing(best, row):
    if quality(row) == quality(best):
        return BEST
    errors = [number(each, "quality", "stderr") for each in (best, row)]
    if None in errors:
        return OPEN
    return LEVEL if abs(quality(best) - quality(row)) <= math.hypot(*errors) else ""


def _write_csv(path, table):
    """One row a variant or baseline, numbers in full precision, empty where unknown."""
    tasks = list(
        dict.fromkeys(t for group in table["tables"] for row in group["rows"] for t in row["effective_length"])
    )
    columns = ("mean", "stderr", "stderr_over")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        asked = [f"effective_length_{task}" for task in tasks]
        rows.writerow(
            ["task", "metric", "kind", "run", "name", "standing", *columns, *NUMBERS, *FACTS, *asked, "error"]
        )
        for group in table["tables"]:
            first = group["task"], group["metric"]["name"]
            for row in group["rows"]:
                own = [row["quality"].get(column) for column in columns] + [row[name] for name in (*NUMBERS, *FACTS)]
                reached = [row["effective_length"].get(task, {}).get("length") for task in tasks]
                name = row["run"], row["variant"], row["standing"]
                rows.writerow([*first, "variant", *name, *own, *reached, row["error"]])
            for line in group["baselines"]:
                empty = [None] * (len(NUMBERS) + len(FACTS) + len(tasks) + 3)
                rows.writerow([*first, "baseline", line["run"], line["name"], "", line["value"], *empty])
        for run in table["unfinished"]:
            empty = [None] * (len(NUMBERS) + len(FACTS) + len(tasks) + 5)
            rows.writerow([None, None, "unfinished", run["run"], *empty, f"missing: {', '.join(run['missing'])}"])
