"""The record of an evaluation: one cell for each run, task and length, on disk as soon as it is known."""

import fcntl
import functools
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiment import comparison
from experiment.estimate import over_seeds, per_piece, ratio
from experiment.records import read_json, read_rows
from experiment.settings import SettingsError

# How the errors of cells begin that are tried again: another machine has more memory, a copy the checkpoint.
MEMORY, CHECKPOINT = "out of memory", "no checkpoint"
ROOT = Path(__file__).resolve().parent.parent
_JUDGING = ("answers", "cells", "estimate", "evaluation", "exams", "judging", "learner")
CODE = ("attention/**/*.py", "models/**/*.py", "tasks/**/*.py", *(f"experiment/{name}.py" for name in _JUDGING))


class Cells:
    """The lines of `cells.jsonl`: cells that are known by what they depend on, and are not judged again.

    A stop at any moment leaves whole lines and at most one broken one, which is cut off. Cells that ran out of memory,
    or whose checkpoint was missing, are forgotten, so that they are tried again.

    Args:
      folder: where the file lies, made if missing.

    Raises:
      SettingsError: another process writes there.
    """

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "cells.jsonl"
        self.file = open(self.path, "ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise SettingsError(f"{self.path}: another process writes there; wait for it or stop it") from None
        content = self.path.read_bytes()
        self.file.truncate(content.rfind(b"\n") + 1)
        try:
            self.known = {cell["sha256"]: cell for cell in read_rows(self.path)}
        except (ValueError, TypeError, KeyError):
            self.file.close()
            raise SettingsError(
                f"{self.path}: holds lines that are no cells; remove it to have all judged again"
            ) from None
        passing = [key for key, cell in self.known.items() if (cell["error"] or "").startswith((MEMORY, CHECKPOINT))]
        for key in passing:
            del self.known[key]

    def get(self, key):
        """The cell of a fingerprint, None if it is not known."""
        return self.known.get(key)

    def add(self, cell):
        """Appends a cell and forces it to disk."""
        self.known[cell["sha256"]] = cell
        self.file.write(json.dumps(cell, allow_nan=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def fingerprint(**settings):
    """sha256 of everything a cell depends on, the same in every process.

    >>> fingerprint(length=64, task="mqar") == fingerprint(task="mqar", length=64)
    True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_version(root=ROOT):
    """Fingerprint of jax's version and of the code that judges, so that an edit of a model or task counts.

    Args:
      root: folder of the packages.
    """
    digest = hashlib.sha256(version("jax").encode())
    for path in sorted(path for pattern in CODE for path in root.glob(pattern)):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def checkpoint_of(workdir, label, result):
    """Fingerprint of the checkpoint of a finished run, None if it is missing, the reason if training failed."""
    folder = comparison.folder(workdir, label, result["seed"]) / "checkpoints"
    return result["error"] or (read_json(folder / f"{result['steps']}.json") or {}).get("sha256")


def checkpoints(workdir, results):
    """Fingerprint of all checkpoints that a run has: what `checkpoints` of evaluation.json holds.

    Args:
      workdir: folder of the run.
      results: from `comparison.results`.
    """
    found = {
        f"{label}/{result['seed']}": checkpoint_of(workdir, label, result)
        for label, some in results.items()
        for result in some
    }
    return fingerprint(checkpoints=found)


def judged(rows, owners, groups, edges):
    """What a cell keeps of a judgement.

    Args:
      rows: (losses, counts, amounts, sizes), each [rows] (amounts and sizes perhaps [rows, K], as in a task's `score`),
        or with edges all of them [rows, len(edges) - 1], sums over stretches of places.
      owners: int [rows], the piece that each row comes from.
      groups: {name: (labels, index [rows])}; index -1 = in none of them.
      edges: the places that stretches begin and end at, or None.

    Returns:
      {"examples", "mean", "stderr", "loss", "groups": {name: [{"label", "mean", "stderr", "size"}]}, "positions":
      {"edges", "mean", "stderr", "sizes"} or None}; a mean of nothing is None.
    """
    places = None
    if edges is not None:
        places = {"edges": list(edges)} | _table(
            [(rows[2][:, i], rows[3][:, i]) for i in range(len(edges) - 1)], owners
        )
        rows = tuple(each.sum(1) for each in rows)
    losses, counts, amounts, sizes = rows
    mean, stderr = _ratio(amounts, sizes, owners)
    return {
        "examples": len(owners),
        "mean": mean,
        "stderr": stderr,
        "loss": float(losses.sum(dtype=float) / counts.sum(dtype=float)),
        "groups": {
            name: [_group(label, rows, owners, index == i) for i, label in enumerate(labels)]
            for name, (labels, index) in groups.items()
        },
        "positions": places,
    }


def combined(found):
    """The cell of a variant from those of its seeds: the error bar is over seeds where several were judged.

    Args:
      found: the cells of all seeds, those that failed included.

    Returns:
      {"length", "mean", "stderr", "stderr_over", "values", "error", "examples", "seconds", "groups", "positions"}.
    """
    good = [cell for cell in found if cell["mean"] is not None]
    first = good[0] if good else {"stderr": None, "groups": {}, "positions": None}
    places = None
    if first["positions"]:
        columns = zip(*(cell["positions"]["mean"] for cell in good), strict=True)
        means = [_over_seeds(list(means), first["positions"]["stderr"][i]) for i, means in enumerate(columns)]
        places = {"edges": first["positions"]["edges"], "mean": [m for m, _ in means], "stderr": [e for _, e in means]}
    mean, stderr = _over_seeds([cell["mean"] for cell in good], first["stderr"])
    return {
        "length": found[0]["length"],
        "mean": mean,
        "stderr": stderr,
        "stderr_over": ["", "examples", "seeds"][min(len(good), 2)],
        "values": [cell["mean"] for cell in good],
        "error": next((cell["error"] for cell in found if cell["error"]), None),
        "examples": max(cell["examples"] for cell in found),
        "seconds": float(np.median([cell["seconds"] for cell in good])) if good else None,
        "groups": {
            name: [_group_over_seeds([cell["groups"][name][i] for cell in good]) for i in range(len(groups))]
            for name, groups in first["groups"].items()
        },
        "positions": places,
    }


def effective_length(cells, threshold):
    """The longest length such that it and every shorter one reach the threshold, None if the shortest does not.

    Args:
      cells: of the lengths that the task has.
      threshold: what counts as solved.

    >>> effective_length([{"length": 2, "mean": 0.9}, {"length": 4, "mean": 0.8}, {"length": 8, "mean": 1.0}], 0.85)
    2
    """
    reached = None
    for cell in sorted(cells, key=lambda cell: cell["length"]):
        if cell["mean"] is None or cell["mean"] < threshold:
            break
        reached = cell["length"]
    return reached


def _ratio(amounts, sizes, owners):
    if not sizes.any():
        return None, None
    mean, stderr = ratio(per_piece(amounts, owners), per_piece(sizes, owners))
    return (mean, stderr) if np.isfinite(mean) else (None, None)


def _table(columns, owners):
    found = [_ratio(amounts, sizes, owners) for amounts, sizes in columns]
    sizes = [float(sizes.sum(dtype=float)) for _, sizes in columns]
    return {"mean": [mean for mean, _ in found], "stderr": [stderr for _, stderr in found], "sizes": sizes}


def _group(label, rows, owners, chosen):
    _, counts, amounts, sizes = (each[chosen] for each in rows)
    _, pieces = np.unique(owners[chosen], return_inverse=True)
    mean, stderr = _ratio(amounts, sizes, pieces)
    return {"label": label, "mean": mean, "stderr": stderr, "size": round(float(counts.sum(dtype=float)))}


def _group_over_seeds(cells):
    mean, stderr = _over_seeds([cell["mean"] for cell in cells], cells[0]["stderr"])
    return cells[0] | {"mean": mean, "stderr": stderr}


def _over_seeds(values, stderr):
    """Mean and error bar of the seeds that have a value; `stderr` is that of a single one."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return (values[0], stderr) if values else (None, None)
    return over_seeds(values)
