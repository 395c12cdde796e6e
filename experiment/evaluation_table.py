"""The numbers of an evaluation at many lengths as CSV and in the terminal."""

import csv
from pathlib import Path

from experiment.evaluation_findings import kind_of


def write_csv(path: Path, evaluation: dict) -> None:
    """Writes one row for each task, variant and length, every number in full precision, empty where unknown."""
    columns = ("length", "mean", "stderr", "stderr_over")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["task", "variant", *columns, "seeds", "error"])
        for task in evaluation["tasks"]:
            for variant in task["variants"]:
                for cell in variant["cells"]:
                    own = [cell[column] for column in columns]
                    rows.writerow([task["name"], variant["name"], *own, len(cell["values"]), cell["error"]])


def print_tables(evaluation: dict, console=None) -> None:
    """Prints a table for each task: variants by lengths, baselines below, and what could not be judged.

    Args:
      evaluation: the content of evaluation.json.
      console: a rich Console; stdout by default.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    for task in evaluation["tasks"]:
        higher = task["metric"]["higher_is_better"]
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
        table.add_column("variant", overflow="fold")
        for length in evaluation["lengths"]:
            trained = "trained\n" if length == evaluation["trained_length"] else ""
            table.add_column(f"{trained}{length:,}", justify="right", overflow="fold")
        if higher:
            table.add_column(f"effective\nlength at {evaluation['threshold']:g}", justify="right", overflow="fold")
        for variant in task["variants"]:
            means = [Text(_number(cell["mean"])) for cell in variant["cells"]]
            reached = variant["effective_length"]
            effective = [Text("none" if reached is None else f"{reached:,}")] if higher else []
            table.add_row(Text(variant["name"]), *means, *effective)
        for name, means in task["baselines"].items():
            table.add_row(Text(f"{name} baseline", "dim"), *(Text(_number(mean), "dim") for mean in means))
        better = "higher" if higher else "lower"
        console.print(Text(f"{task['name']} · {task['metric']['name']}, {better} is better", "bold"))
        console.print(table)
        for line in _errors(task):
            console.print(Text(line, "yellow"), soft_wrap=True)


def _number(mean):
    return "–" if mean is None else f"{mean:.3f}"


def _errors(task):
    """A line for each variant and reason why it could not be judged: at what lengths, and why at the first of them."""
    for variant in task["variants"]:
        reasons = {}
        for cell in variant["cells"]:
            if cell["error"]:
                reasons.setdefault(kind_of(cell["error"]), []).append(cell)
        for cells in reasons.values():
            lengths = ", ".join(f"{cell['length']:,}" for cell in cells)
            yield f"{variant['name']} at {lengths}: {cells[0]['error']}"
