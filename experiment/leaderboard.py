"""The leaderboard: the variants of several finished runs in one table for each task, as a page, CSV and JSON."""

import csv
from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from experiment import comparison, leaderboard_page, settings
from experiment.cells import checkpoints, code_version
from experiment.findings import leads, listed, metric_words, number, quality, ranking
from experiment.leaderboard_page import BEST, FACTS, LEVEL, OPEN, WEAK
from experiment.records import read_json, write_json
from tasks import TASKS

NUMBERS = ("parameters", "train_tokens_per_second", "forward_tokens_per_second", "peak_memory_bytes")


def collect(folders) -> dict:
    """What the runs in these folders hold, those of one task together.

    Args:
      folders: of runs of `train.py`; others are passed over.

    Returns:
      {"tables": [{"title" (unique), "task", "name" (of the data), "data" (the settings that all its runs share), "size"
      (the field "length" is of), "metric", "unit", "data_sha256", "baselines": [{"name", "run", "value"}], "rows"}],
      "unfinished": [{"run", "missing"}], "outdated": [{"run", "task", "command", "why"}], "passed_over": [{"run",
      "why"}]}. Rows, best first, are {"run", "variant", "quality", "standing", "parameters", "train_tokens_per_second",
      "forward_tokens_per_second", "peak_memory_bytes", "beats_baselines" (of its own run), "length", "steps", "seeds",
      "device", "effective_length": {task: {"length", "threshold", "longest", "trained"}}, "error"}. Runs share a table
      if they share task, data and metric. `standing` is "no better than a baseline", whatever else it is; "best"; "not
      told apart" (from the first, by `findings.leads`); "no error bar" (which tells nothing); or "". `outdated` are
      evaluations by other checkpoints or code than there is now, or of variants changed by --sweep.

    Raises:
      ValueError: one of the folders given twice, or none with a run.
    """
    tables, unfinished, outdated, passed_over = {}, [], [], []
    for folder, run in _named(folders).items():
        try:
            table, missing, old = _read(folder, run)
        except (ValueError, OSError) as error:
            passed_over.append({"run": run, "why": str(error)})
            continue
        unfinished += [{"run": run, "missing": missing}] if missing else []
        outdated += old
        if table:
            _join(tables.setdefault((table["task"], table["data_sha256"], *table["metric"].values()), table), table)
    if len(passed_over) == len(folders):
        reasons = "; ".join(f"{each['run']}: {each['why']}" for each in passed_over[:3])
        raise ValueError(f"want the folder of a run of train.py at least, got none ({reasons})")
    tables = [_ranked(table) for table in tables.values()]
    tables = [{"title": title} | table for title, table in zip(_titles(tables), tables, strict=True)]
    tables.sort(key=lambda table: table["title"])
    return {"tables": tables, "unfinished": unfinished, "outdated": outdated, "passed_over": passed_over}


def warnings(table) -> list[str]:
    """What a table from `collect` had to leave out, a line each."""
    left = leaderboard_page.left_out(table)
    return [f"{kind}: {run}, {why}" for kind, run, why in left if kind != "unfinished"]


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


def _read(folder, run):
    """The table of one run, None where it has no comparison yet; what it lacks; its evaluations that are outdated."""
    try:
        config = settings.from_json(read_json(folder / "config.json"))
        if not isinstance(config, dict) or "variants" not in config:
            raise ValueError("no run of train.py there")
        config, compared = ConfigDict(config), read_json(folder / "comparison.json")
        missing = _missing(folder, config, compared)
        if compared is None:
            return None, missing, []
        reached, old = _effective(folder, config, run, [variant["name"] for variant in compared["variants"]])
        return _table(folder, run, config, compared, reached), missing, old
    except (LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"a file of it holds something that train.py and eval.py do not write ({reason})") from error


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


def _effective(folder, config, run, names):
    """variant -> {task: effective length}, of tasks whose metric is better the higher; and what is outdated."""
    found, old = {}, []
    now = checkpoints(folder, comparison.results(folder, config)), code_version()
    for task in (read_json(folder / "evaluation.json") or {}).get("tasks", []):
        if not task["metric"]["higher_is_better"]:
            continue
        told = {"run": run, "task": task["name"], "command": task.get("command")}
        if (task.get("checkpoints"), task.get("code")) != now:
            old.append(told | {"why": "by other checkpoints or code than there is now"})
            continue
        if any(variant["name"] not in names for variant in task["variants"]):
            old.append(told | {"why": "of variants changed by --sweep", "command": None})
        asked = {"threshold": task["threshold"], "longest": max(task["lengths"], default=None)}
        for variant in task["variants"]:
            cell = {"length": variant["effective_length"], "trained": task["trained"]} | asked
            found.setdefault(variant["name"], {})[task["name"]] = cell
    return found, old


def _table(folder, run, config, compared, reached):
    """The table of one run, its rows in the order of its comparison."""
    sha256 = (read_json(folder / "data.json") or {}).get("sha256") or (compared.get("data") or {}).get("sha256")
    unit = compared.get("unit") or {}
    shared = {"run": run, "length": settings.size(config), "device": compared["device"]}
    rows = []
    for variant in compared["variants"]:
        row = shared | {"variant": variant["name"], "quality": variant["quality"], "steps": variant.get("steps")}
        row |= {name: number(variant, name) for name in NUMBERS} | {"beats_baselines": variant.get("beats_baselines")}
        row |= {"seeds": len(variant["quality"]["values"]), "differences": variant.get("differences") or {}}
        rows.append(row | {"effective_length": reached.get(variant["name"], {}), "error": variant.get("error")})
    return {
        "task": compared["task"],
        "name": config.data.name,
        "data": {
            field: value
            for field, value in settings.as_json(config.data).items()
            if field not in ("name", "dir", "path")
        },
        "size": TASKS[config.task].SIZE,
        "metric": compared["metric"] | {"name": metric_words(compared["metric"])},
        "unit": unit["name"] if unit.get("tokens") == 1 else "tokens",  # speed is told in what all runs share
        "data_sha256": sha256,
        "baselines": [{"name": n, "run": run, "value": v} for n, v in (compared.get("baselines") or {}).items()],
        "rows": rows,
    }


def _join(known, table):
    """Adds the table of another run to that of its task."""
    if known is not table:
        known["baselines"] += table["baselines"]
        known["rows"] += table["rows"]
        known["data"] = {f: value for f, value in known["data"].items() if table["data"].get(f, known) == value}


def _ranked(table):
    """A table with its rows best first, each with its standing; those without a quality come last."""
    # Two variants are paired by name, and another run may have one of the same name.
    rows = [row | {"name": (row["run"], row["variant"])} for row in table["rows"]]
    for row in rows:
        row["differences"] = {(row["run"], other): gap for other, gap in row["differences"].items()}
    told = {"metric": table["metric"], "variants": rows}
    ranked = ranking(told)
    states = {}
    if len(ranked) > 1:
        words = {None: OPEN, False: LEVEL, True: ""}
        states = {ranked[0]["name"]: BEST} | {row["name"]: words[verdict] for row, verdict in leads(told)}
    for row in ranked:
        row["standing"] = WEAK if row["beats_baselines"] is False else states.get(row["name"], "")
    rows = ranked + [row | {"standing": ""} for row in rows if quality(row) is None]
    return table | {"rows": [{f: x for f, x in row.items() if f not in ("name", "differences")} for row in rows]}


def _titles(tables):
    """A title each: the task, the name of its data, and the settings that tell them from others of that name."""
    own = [table["data"] | {"metric": table["metric"]["name"]} for table in tables]
    titles = []
    for table, facts in zip(tables, own, strict=True):
        alike = [
            o for o, t in zip(own, tables, strict=True) if (t["task"], t["name"]) == (table["task"], table["name"])
        ]
        differ = [f for f, value in facts.items() if any(other.get(f) != value for other in alike)]
        name = table["task"] if table["name"] == table["task"] else f"{table['task']}: {table['name']}"
        titles.append(", ".join([name, *(f"{f} {'none' if facts[f] == '' else facts[f]}" for f in differ)]))
    pairs = zip(titles, tables, strict=True)
    return [t if titles.count(t) == 1 else f"{t}, data {(table['data_sha256'] or 'unknown')[:8]}" for t, table in pairs]


def _write_csv(path, table):
    """One row a variant, baseline or run left out, numbers in full precision, empty where unknown."""
    tasks = list(
        dict.fromkeys(t for group in table["tables"] for row in group["rows"] for t in row["effective_length"])
    )
    quality_columns = ("mean", "stderr", "stderr_over")
    columns = ["title", "task", "metric", "kind", "run", "name", "standing", *quality_columns, *NUMBERS, *FACTS]
    columns += [*(f"effective_length_{task}" for task in tasks), "error"]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, restval=None, lineterminator="\n")
        rows.writeheader()
        for group in table["tables"]:
            first = {"title": group["title"], "task": group["task"], "metric": group["metric"]["name"]}
            for row in group["rows"]:
                own = {column: row["quality"].get(column) for column in quality_columns}
                own |= {name: row[name] for name in ("run", "standing", *NUMBERS, *FACTS, "error")}
                reached = {f"effective_length_{task}": cell["length"] for task, cell in row["effective_length"].items()}
                rows.writerow(first | {"kind": "variant", "name": row["variant"]} | own | reached)
            for line in group["baselines"]:
                own = {"run": line["run"], "name": line["name"], "mean": line["value"]}
                rows.writerow(first | {"kind": "baseline"} | own)
        for kind, run, why in leaderboard_page.left_out(table):
            rows.writerow({"kind": kind, "run": run, "error": why})
