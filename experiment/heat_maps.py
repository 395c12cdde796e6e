"""The heat maps of evaluation.html: a metric by length, along, and by depth or another way to group, down."""

import math
import textwrap

from experiment.evaluation_figures import shares, variant_names
from experiment.figures import compact_length
from experiment.findings import number
from experiment.look import FAINT, INK, MUTED, new_figure, shorten, styled

SCALE = "cividis"  # made for colour-blind readers, and its lightness alone tells the order; light is good
_DARK, _LIGHT = "#000001", "#fffffe"  # not the page's own ink and paper, which change places in the dark
_CELL = (0.56, 0.3)  # width and height of a cell of a heat map, in inches
_LEAST = 3.4  # width of a heat map with its labels, in inches, at least


@styled
def of_one(task, index, name, places):
    """The metric of one variant by length, along, and group, down: see `draw`."""
    columns = len(task["variants"][index]["cells"])
    figure, axes = new_figure(*_size(columns, places))
    draw(axes, task, index, name, places)
    return figure


@styled
def of_all(task, name):
    """The heat maps of all variants in one figure with their colour scale; None where nothing was asked by group."""
    places, variants = group_labels(task, name), task["variants"]
    if not places:
        return None
    columns = min(len(variants), 3)
    rows = math.ceil(len(variants) / columns)
    width, height = _size(len(variants[0]["cells"]), places)
    titles = [textwrap.fill(label, 24) for label in variant_names(task)]
    height += 0.1 + 0.15 * max(title.count("\n") + 1 for title in titles)
    figure, _ = new_figure(width * columns, height * rows + 0.6)
    figure.clear()
    drawn = []
    for index, title in enumerate(titles):
        axes = figure.add_subplot(rows, columns, index + 1, title=title)
        drawn.append((axes, draw(axes, task, index, name, places)))
    bar = figure.colorbar(drawn[0][1], ax=[axes for axes, _ in drawn], location="bottom", aspect=50, shrink=0.5)
    bar.set_label(task["metric"]["name"])
    bar.outline.set_visible(False)
    return figure


def draw(axes, task, index, name, places):
    """Draws a variant's heat map, and returns it; numbers stand in its cells, cells without one are hatched.

    Args:
      axes: to draw on.
      task: of evaluation.json; its numbers decide the scale, so that it is the same for all variants.
      index: of the variant.
      name: of the groups, such as "depth".
      places: their labels, from `group_labels`.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    cells = task["variants"][index]["cells"]
    low, high = ends(task, name)
    scale = colormaps[SCALE if task["metric"]["higher_is_better"] else f"{SCALE}_r"]
    grid, norm = numbers(cells, name, places), Normalize(low, high)
    values = [[math.nan if isinstance(found, str) else found for found in row] for row in grid]
    mesh = axes.pcolormesh(values, cmap=scale, norm=norm, edgecolors="face", linewidth=0.2)
    for y, row in enumerate(grid):
        for x, found in enumerate(row):
            missing = isinstance(found, str)
            if missing:
                axes.add_patch(Rectangle((x, y), 1, 1, facecolor=FAINT, edgecolor=MUTED, hatch="////", linewidth=0))
            color = INK if missing else _legible(scale(norm(found)))
            text = found if missing else _short(found)
            box = {"facecolor": FAINT, "edgecolor": "none", "pad": 0.8} if missing else None
            axes.text(
                x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=6.5 if missing else 8, color=color, bbox=box
            )
    lengths = [compact_length(cell["length"]) for cell in cells]
    turn = 45 if max(map(len, lengths)) > 6 else 0  # more characters than a cell is wide
    axes.set_xticks([x + 0.5 for x in range(len(cells))], lengths, rotation=turn)
    axes.set_yticks([y + 0.5 for y in range(len(places))], [shorten(label, 18) for label in places])
    axes.set(xlabel="length T", ylabel=name, ylim=(len(places), 0), xlim=(0, len(cells)))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def group_labels(task, name):
    """The labels of a way to group what was asked, in order, of all lengths together."""
    cells = [cell for variant in task["variants"] for cell in variant["cells"]]
    labels = dict.fromkeys(group["label"] for cell in cells for group in (cell.get("groups") or {}).get(name) or [])
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else list(labels)


def numbers(cells, name, places):
    """Rows of numbers by group, one column a length; where there is no number the reason in a word or two.

    >>> cell = {"error": None, "groups": {"depth": [{"label": "0-50 %", "mean": 0.5}, {"label": "50 %", "mean": None}]}}
    >>> numbers([cell, {"error": "too long", "mean": None, "groups": {}}], "depth", ["0-50 %", "50 %"])
    [[0.5, 'error'], ['no needle', 'error']]
    """
    columns = []
    for cell in cells:
        found = {group["label"]: number(group, "mean") for group in (cell.get("groups") or {}).get(name) or []}
        empty = "no needle" if name == "depth" else "none"
        missing = "error" if cell.get("error") and not found else empty
        columns.append([missing if found.get(label) is None else found[label] for label in places])
    return [list(row) for row in zip(*columns, strict=True)]


def ends(task, name):
    """The ends of the colour scale: 0 and 1 for shares, else the lowest and highest number of all variants."""
    found = [
        group["mean"]
        for variant in task["variants"]
        for cell in variant["cells"]
        for group in (cell.get("groups") or {}).get(name) or []
        if number(group, "mean") is not None
    ]
    if shares(task, found) or not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _size(columns, places):
    margin = 0.75 + 0.065 * max((len(shorten(label, 18)) for label in places), default=0)
    return max(margin + _CELL[0] * columns, _LEAST), 0.55 + _CELL[1] * len(places)


def _legible(color):
    """Black or white, whichever stands out more against a colour (relative luminance as in WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return _DARK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else _LIGHT


def _short(value):
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
