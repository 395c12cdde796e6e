"""The numbers of an evaluation at many lengths as CSV and in the terminal."""

import csv
from pathlib import Path

from experiment.evaluation_findings import elsewhere, error_lines, interval

_GAP = 3  # characters between two columns in the terminal


def write_csv(path: Path, evaluation: dict) -> None:
    """Writes one row for each task, variant and length, every number in full precision, empty where unknown.

    `low` and `high` are the ends of the confidence interval, see `experiment.evaluation_findings.interval`.
    """
    columns = ("length", "mean", "stderr", "stderr_over")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["task", "variant", *columns, "low", "high", "seeds", "error"])
        for task in evaluation["tasks"]:
            for variant in task["variants"]:
                for cell in variant["cells"]:
                    own = [cell[column] for column in columns]
                    own += interval(task["metric"], cell) or (None, None)
                    rows.writerow([task["name"], variant["name"], *own, len(cell["values"]), cell["error"]])


def print_tables(evaluation: dict, console=None) -> None:
    """Prints variants by lengths for each task, baselines below, and what could not be judged.

    Args:
      evaluation: the content of evaluation.json.
      console: a rich Console; stdout by default. In a narrow one lengths that do not fit stand in a table of their own.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    for task in evaluation["tasks"]:
        better = "higher" if task["metric"]["higher_is_better"] else "lower"
        title = Text(f"{task['name']} · {task['metric']['name']}, {better} is better", "bold")
        console.print(title if task["trained"] else title.append(f" · {elsewhere(task)}", "yellow"))
        names = [variant["name"] for variant in task["variants"]]
        names += [f"{name} baseline" for name in task["baselines"]]
        room = min(max(map(len, names)), console.width // 3)
        for columns in _fitting(_columns(evaluation, task), console.width - room - _GAP):
            table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
            table.add_column("variant", overflow="fold", max_width=room)
            for head, *_ in columns:
                table.add_column(head, justify="right", no_wrap=True)
            for i, name in enumerate(names):
                style = "" if i < len(task["variants"]) else "dim"
                table.add_row(*(Text(text, style) for text in (name, *(column[i + 1] for column in columns))))
            console.print(table)
        for line in error_lines(task):
            console.print(Text(line, "yellow"), soft_wrap=True)


def _columns(evaluation, task):
    """Texts of each column but the names, its head first: the lengths, then the effective length."""
    columns = []
    for i, length in enumerate(task["asked"]):
        trained = "trained\n" if length == evaluation["trained_length"] else ""
        means = [v["cells"][i]["mean"] for v in task["variants"]] + [b[i] for b in task["baselines"].values()]
        columns.append([f"{trained}{length:,}", *("–" if mean is None else f"{mean:.3f}" for mean in means)])
    if task["metric"]["higher_is_better"]:
        reached = [variant["effective_length"] for variant in task["variants"]]
        texts = ["none" if length is None else f"{length:,}" for length in reached]
        columns.append([f"effective\nlength at {task['threshold']:g}", *texts, *[""] * len(task["baselines"])])
    return columns


def _fitting(columns, width):
    """Columns in groups that are at most so wide, or one column."""
    groups, left = [], 0
    for column in columns:
        needed = max(len(line) for text in column for line in text.splitlines() or [""]) + _GAP
        if needed > left:
            groups.append([])
            left = width
        groups[-1].append(column)
        left -= needed
    return groups
