"""The one table of a comparison: its columns, as CSV, in the terminal, and what is best in each."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from experiment.findings import (
    compact,
    failures,
    findings,
    in_units,
    leads,
    metric_name,
    not_better_than_baseline,
    number,
    pareto_front,
    quality,
    ranking,
    with_error,
)
from experiment.wording import unit, wording


@dataclass(frozen=True)
class Column:
    """A cost or speed of each variant.

    Attributes:
      title: what it is.
      unit: in which unit `show` writes it; `{unit}` and `{letter}` stand for those of a comparison.
      path: where it stands in a variant's record.
      show: number -> text.
      better: +1 where more is better, -1 where less is, 0 where it is a mere fact.
      factor: from what the record holds to what `of` gives.
    """

    title: str
    unit: str
    path: tuple[str, ...]
    show: Callable[[float], str]
    better: int
    factor: float = 1.0

    def of(self, variant) -> float | None:
        """The variant's number, None where it was not measured."""
        value = number(variant, *self.path)
        return None if value is None else self.factor * value

    def within(self, comparison) -> "Column":
        """The column in the units of the comparison."""
        factor = in_units(comparison, 1.0) if "{unit}" in self.unit else 1.0
        return replace(
            self, unit=self.unit.format(unit=unit(comparison), letter=wording(comparison).letter), factor=factor
        )

    def text(self, variant) -> str:
        """The variant's number as shown, a dash where it was not measured."""
        return "–" if self.of(variant) is None else self.show(self.of(variant))

    def best(self, comparison) -> set[str]:
        """Labels of the best scored variants; none where all look alike or the column is a mere fact."""
        shown = {v["name"]: (self.of(v), self.text(v)) for v in ranking(comparison) if self.of(v) is not None}
        if not self.better or len({text for _, text in shown.values()}) < 2:
            return set()
        _, best = max(shown.values(), key=lambda item: self.better * item[0])
        return {name for name, (_, text) in shown.items() if text == best}


def _megabytes(value):
    return f"{value / 1e6:.0f}" if value >= 1e7 else f"{value / 1e6:.2g}"


def _exponent(value):
    return f"{value:.2f}"


TRAIN_SPEED = Column("train speed", "{unit}/s", ("train_tokens_per_second",), compact, +1)
PEAK_MEMORY = Column("peak memory", "MB", ("peak_memory_bytes",), _megabytes, -1)
TIME_EXPONENT = Column("time", "exponent of {letter}", ("scaling", "time_exponent"), _exponent, -1)
MEMORY_EXPONENT = Column("memory", "exponent of {letter}", ("scaling", "memory_exponent"), _exponent, -1)
COLUMNS = (
    TRAIN_SPEED,
    Column("forward speed", "{unit}/s", ("forward_tokens_per_second",), compact, +1),
    Column("step", "ms, median", ("step_ms", "median"), compact, -1),
    PEAK_MEMORY,
    TIME_EXPONENT,
    MEMORY_EXPONENT,
    Column("FLOPs", "per step", ("flops_per_step",), compact, 0),
    Column("compile", "s", ("compile_seconds",), compact, 0),
    Column("parameters", "", ("parameters",), compact, 0),
)
_STYLES = {"best": "bold green", "tie": "green", "weak": "yellow", "failed": "red", "": ""}
_GAP = 3  # characters between two columns of the terminal table
# What only the CSV holds.
_CSV_PATHS = (("quality", "mean"), ("quality", "stderr"), *(c.path for c in COLUMNS), ("step_ms", "p95"))


def settings_words(variant) -> str:
    """A variant's settings in one line: "window 64, num_global 8"."""
    settings = variant.get("attention") or {}
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != "name")


def telling(comparison) -> list[Column]:
    """The columns worth their width: those with any number, without facts in which all variants agree."""
    columns = [column.within(comparison) for column in COLUMNS]
    texts = {column: {column.text(variant) for variant in comparison["variants"]} for column in columns}
    single = len(comparison["variants"]) == 1
    return [c for c in columns if texts[c] != {"–"} and (c.better or single or len(texts[c]) > 1)]


def standing(comparison) -> dict[str, str]:
    """label -> "best", "tie" (not resolved from the best), "weak" (below a baseline), "failed" or ""."""
    ranked = ranking(comparison)
    weak, failed = not_better_than_baseline(comparison), failures(comparison)
    ties = [other for other, verdict in leads(comparison) if verdict is False] if ranked else []

    def of(variant):
        if variant in failed:
            return "failed"
        if variant in weak:
            return "weak"
        if variant is ranked[0]:
            return "best" if len(ranked) > 1 else ""
        return "tie" if variant in ties else ""

    return {variant["name"]: of(variant) for variant in comparison["variants"]}


def reference_lines(comparison):
    """What variants stand beside: [(name, "baseline" or "upper line", value or None)].

    A baseline has no network; an upper line knows what the models must find out.
    """
    ceilings = (comparison.get("data") or {}).get("ceilings") or {}
    lines = [(name, "baseline", number(comparison, "baselines", name)) for name in comparison.get("baselines") or {}]
    return lines + [(name, "upper line", number(comparison, "data", "ceilings", name)) for name in ceilings]


def write_csv(workdir: Path, comparison: dict) -> Path:
    """Writes `comparison.csv`: one row a variant or line, numbers in full precision, empty where unknown."""
    path = Path(workdir) / "comparison.csv"
    front = pareto_front(comparison)
    header = ["name", "kind", "attention", *("_".join(p) for p in _CSV_PATHS), "pareto_front", "error"]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)
        for variant in comparison["variants"]:
            numbers = [number(variant, *p) for p in _CSV_PATHS]
            settings = json.dumps(variant.get("attention") or {})
            error = variant.get("error") or ""
            rows.writerow([variant["name"], "variant", settings, *numbers, variant in front, error])
        for name, kind, value in reference_lines(comparison):
            rows.writerow([name, kind, "", value, *[None] * (len(_CSV_PATHS) - 1), "", ""])
    return path


def print_table(comparison: dict, console=None) -> None:
    """Prints the table, best values in bold, and what it means in words.

    Args:
      comparison: the comparison.
      console: a rich Console; stdout by default. A narrow one gets the first columns only, never a wrapped number.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    states = standing(comparison)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    table.add_column("variant", overflow="fold")
    table.add_column(f"{metric_name(comparison)}\n± standard error", justify="right", no_wrap=True)
    columns = _fitting(comparison, console.width)
    for column in columns:
        table.add_column(f"{column.title}\n{column.unit}", justify="right", no_wrap=True)
    best = [column.best(comparison) for column in columns]
    for variant in comparison["variants"]:
        name = variant["name"]
        score = Text("failed" if quality(variant) is None else with_error(variant), _STYLES[states[name]])
        costs = [Text(c.text(variant), "bold green" if name in b else "") for c, b in zip(columns, best, strict=True)]
        table.add_row(Text(name), score, *costs)
    for name, kind, value in reference_lines(comparison):
        table.add_row(Text(f"{name} {kind}", "dim"), Text("–" if value is None else f"{value:.3f}", "dim"))
    console.print(Text(f"{comparison['task']} · {comparison['device']}", "bold"))
    console.print(table)
    for topic, text in findings(comparison):
        console.print(Text.assemble((f"{topic}. ", "bold"), text))


def _fitting(comparison, width):
    """The first columns that fit a terminal beside the label and the quality, which always stand."""
    names = [v["name"] for v in comparison["variants"]]
    names += [f"{name} {kind}" for name, kind, _ in reference_lines(comparison)]
    left = width - max(map(len, names)) - max(len("± standard error"), len(metric_name(comparison))) - 2 * _GAP
    fitting = []
    for column in telling(comparison):
        texts = (column.title, column.unit, *(column.text(v) for v in comparison["variants"]))
        left -= max(map(len, texts)) + _GAP
        if left < 0:
            break
        fitting.append(column)
    return fitting
