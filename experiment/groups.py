"""How a model does on parts of the validation data: by distance, by number of attractors, by relation."""

import csv
from pathlib import Path

import numpy as np

from experiment.estimate import over_seeds, per_piece, ratio


def sums(rows, owners, groups):
    """What a result keeps of each group.

    Args:
      rows: (counts [rows], amounts [rows] or [rows, K], sizes likewise) of every validation row.
      owners: int [rows], the piece that each row comes from.
      groups: the task's `groups`, {name: (labels, index [rows])}; index -1 = in none of them.

    Returns:
      {name: [{"label", "count", "amounts", "sizes"}]}, amounts and sizes per piece that has a row in the group.

    >>> rows = np.array([1, 1, 2]), np.array([1.0, 0.0, 2.0]), np.array([1.0, 1.0, 2.0])
    >>> sums(rows, np.array([0, 0, 4]), {"distance": (["1", "2+"], np.array([0, 1, 1]))})["distance"][1]
    {'label': '2+', 'count': 3, 'amounts': [0.0, 2.0], 'sizes': [1.0, 2.0]}
    """
    return {name: [_sums(rows, owners, label, index == i) for i, label in enumerate(labels)]
            for name, (labels, index) in groups.items()}  # fmt: skip


def compare(results, pieces):
    """Mean and error bar of each group: over seeds where there are several, else over the pieces with rows in it.

    Args:
      results: the results of one variant that went well, one a seed.
      pieces: what the validation data consist of, such as "files".

    Returns:
      {name: [{"label", "mean", "stderr", "stderr_over", "size"}]}; size is how many questions one seed was asked, and
      the mean of a group without any is None.
    """
    first = results[0]["groups"] if results else {}
    return {
        name: [_compare([result["groups"][name][i] for result in results], pieces) for i in range(len(cells))]
        for name, cells in first.items()
    }


def write_csv(path: Path, comparison: dict) -> None:
    """Writes one row for each variant and group, every number in full precision, empty where unknown."""
    columns = ["label", "mean", "stderr", "stderr_over", "size"]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", "group", *columns])
        for variant in comparison["variants"]:
            for name, cells in variant["groups"].items():
                rows.writerows([variant["name"], name, *(cell[column] for column in columns)] for cell in cells)


def _sums(rows, owners, label, chosen):
    _, pieces = np.unique(owners[chosen], return_inverse=True)
    counts, amounts, sizes = (row[chosen] for row in rows)
    per = {"amounts": per_piece(amounts, pieces).tolist(), "sizes": per_piece(sizes, pieces).tolist()}
    return {"label": label, "count": round(float(counts.sum()))} | per


def _compare(cells, pieces):
    found = [ratio(cell["amounts"], cell["sizes"]) if cell["count"] else (None, None) for cell in cells]
    mean, stderr = found[0]
    if len(cells) > 1 and mean is not None:
        mean, stderr = over_seeds([mean for mean, _ in found])
    over = "seeds" if len(cells) > 1 else pieces
    return {"label": cells[0]["label"], "mean": mean, "stderr": stderr, "stderr_over": over, "size": cells[0]["count"]}
