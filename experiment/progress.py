"""What the user sees while a run lasts, and how a signal ends it: on stderr, so that stdout holds only the result."""

import contextlib
import math
import signal
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 10.0  # between two lines where the output is not a terminal


class Progress:
    """One live line on a terminal, a plain line now and then in a log file.

    Args:
      total: optimiser steps of the whole comparison.
      metric: what the metric is called, such as "bits per byte".
      unit: what speed is told in, {"name": "images", "tokens": tokens in one}; None = tokens.
      console: where to write; None = stderr.
      counted: what `total` counts, where it is not steps.
    """

    def __init__(self, total, metric, unit=None, console=None, counted="steps"):
        self.console = console or Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(counted + "{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=total, numbers="")
        self.total, self.done, self.fresh, self.busy, self.last = total, 0, 0, 0.0, time.perf_counter()
        self.title, self.metric, self.unit = "", metric, unit or {"name": "tokens", "tokens": 1}

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def phase(self, title):
        """Names what is being done now, such as "[2/6] window"."""
        self.title = title
        self.bar.update(self.task, description=f"[bold]{escape(title)}[/bold]", numbers="")
        self._plain(title)

    def skip(self, steps):
        """Counts steps that an earlier run has done."""
        self.done += steps
        self.bar.update(self.task, completed=self.done)

    def step(self, row, steps, tokens, seconds):
        """Shows one finished step, its row of metrics, of `steps`; it took `seconds` for `tokens`."""
        metric = row[self.metric.replace(" ", "_")]
        self.done, self.fresh, self.busy = self.done + 1, self.fresh + 1, self.busy + seconds
        speed = f"{tokens / self.unit['tokens'] / seconds:,.0f} {self.unit['name']}/s"
        numbers = f"  {self.metric} {math.nan if metric is None else metric:.3f}  {speed}"
        self.bar.update(self.task, completed=self.done, numbers=numbers)
        if time.perf_counter() - self.last > PLAIN_SECONDS:
            left = (self.total - self.done) * self.busy / self.fresh
            self._plain(f"{self.title}  step {row['step']}/{steps}{numbers}  {left / 60:.1f} min of training left")

    def say(self, line, style=None):
        """Prints a line that stays."""
        self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def warn(self, line):
        """Prints a warning that stays."""
        self.say(f"warning: {line}", style="yellow")

    def _plain(self, line):
        if not self.console.is_terminal:
            self.last = time.perf_counter()
            self.say(line)


class Interrupt:
    """SIGTERM and SIGINT end a run with 128 + the signal's number, 143 and 130, as the shell reports them.

    Inside `with interrupt.hold():` a signal is only remembered, for the loop to look at `interrupt.pending` after each
    step and save first; anywhere else it leaves at once, because nothing there is lost.
    """

    def __init__(self):
        self.pending = None
        self.held = False

    def __enter__(self):
        self.before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def hold(self):
        """Remembers signals inside the `with` instead of leaving."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.pending:
            self.leave()

    def leave(self):
        """Ends the process with the code of the pending signal."""
        raise SystemExit(128 + self.pending)

    def _receive(self, number, _frame):
        self.pending = number
        if not self.held:
            self.leave()
