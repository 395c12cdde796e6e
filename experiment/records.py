"""What a run writes besides checkpoints: whole JSON and array files, metrics as JSON lines and TensorBoard events."""

import contextlib
import json
import math
import os

import numpy as np


def read_json(path):
    """The content of a JSON file, None if there is none.

    Raises:
      ValueError: it holds something else.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error


def write_json(path, content):
    """Writes all of a file or nothing: a stop in the middle leaves the old content in place."""
    with _whole(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode())


def read_arrays(path):
    """{name: array} of an npz file, empty if there is none."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def write_arrays(path, arrays):
    """Writes {name: array} as an npz file, all of it or nothing."""
    with _whole(path) as file:
        np.savez_compressed(file, **arrays)


@contextlib.contextmanager
def _whole(path):
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_rows(path):
    """Rows of a metrics file; a last line that a stop cut short is left out.

    >>> from pathlib import Path
    >>> read_rows(Path("nowhere.jsonl"))
    []
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # text after the last newline is the row that was being written


class Metrics:
    """One row a step in `metrics.jsonl`, the same numbers as TensorBoard events beside it.

    Rows past the step that training goes on from are dropped when the file is opened, so that a run stopped anywhere
    leaves exactly the rows of a run never stopped.

    Args:
      folder: where the files lie, made if missing.
      step: the last step that a checkpoint remembers; 0 for a fresh start.
      metric: name of the column that holds the metric, such as "bits_per_byte".
    """

    def __init__(self, folder, step, metric):
        from tensorboardX import SummaryWriter  # takes seconds to import

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        self.rows = [row for row in read_rows(path) if row["step"] <= step]
        part = folder / "metrics.jsonl.part"
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(part, path)
        self.metric = metric
        self.file = open(path, "a")
        self.events = SummaryWriter(str(folder), purge_step=step + 1)

    def train(self, step, numbers, seconds, tokens):
        """Appends the row of a training step.

        Args:
          step: number of the step, from 1.
          numbers: {"loss" in nats, "metric", "learning_rate", "grad_norm"}.
          seconds: what the step took; rows hold the sum so far, as of
          tokens: trained on in the step.
        """
        last = self.rows[-1] if self.rows else {"seconds": 0.0, "tokens": 0}
        numbers = {name: float(value) for name, value in numbers.items()}
        spent = {"seconds": last["seconds"] + seconds, "tokens": last["tokens"] + tokens}
        metric = numbers.pop("metric")
        self._write({"step": step, "split": "train", self.metric: metric} | numbers | spent)

    def validation(self, metric, loss):
        """Appends a row of validation after the last training step, at no cost in seconds or tokens."""
        row = {"split": "validation", self.metric: float(metric), "loss": float(loss), "grad_norm": None}
        self._write(self.rows[-1] | row)

    def step_seconds(self):
        """Seconds of each training step but the first two, which warm up (all, if there are not more)."""
        spent = [row["seconds"] for row in self.rows if row["split"] == "train"]
        times = [after - before for before, after in zip([0.0, *spent], spent, strict=False)]
        return times[2:] or times

    def _write(self, row):
        """Appends a row; a number that is not finite becomes null, because JSON has no NaN."""
        row = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name in ("loss", self.metric, "learning_rate", "grad_norm"):
            if row[name] is not None:
                self.events.add_scalar(f"{row['split']}/{name}", row[name], row["step"])

    def sync(self):
        """Forces the rows to disk: a checkpoint must never be newer than the rows it goes with."""
        os.fsync(self.file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.events.close()
