"""The charts of evaluation.html: a metric over length, over length and depth, and by position.

Each function returns a matplotlib Figure, or None where the task holds nothing to draw. matplotlib is imported inside
them, because importing it costs most of a second. A variant keeps its colour and marker in every figure.
"""

import math
import textwrap

from experiment.evaluation_findings import interval
from experiment.figures import compact_length, legend_below
from experiment.findings import number
from experiment.look import FAINT, INK, MUTED, PALETTE, new_figure, series, shorten, styled

SCALE = "cividis"  # made for colour-blind readers, and its lightness alone tells the order; light is good
_DARK, _LIGHT = "#000001", "#fffffe"  # not the page's own ink and paper, which change places in the dark
_TRAINED = {"color": MUTED, "linewidth": 1.2, "linestyle": "-"}
_THRESHOLD = {"color": INK, "linewidth": 1, "linestyle": (0, (5, 3))}
_BASELINE = {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}
_CELL = (0.56, 0.3)  # width and height of a cell of a heat map, in inches
_LONGEST = 70  # characters of a name, under a chart over length
_PART = (3.4, 2.5)  # width and height of one chart by position, in inches


@styled
def by_length(evaluation, task):
    """The metric over length on a log axis: a line and intervals a variant; threshold and baselines lie across.

    Args:
      evaluation: the content of evaluation.json, for the length of training.
      task: one of its tasks.
    """
    figure, axes = new_figure(6.8, 4.0)
    axes.set_xscale("log", base=2)
    spans, names = [], _labels(task)
    for i, variant in enumerate(task["variants"]):
        cells = [cell for cell in variant["cells"] if number(cell, "mean") is not None]
        if cells:
            x, y, ends = [c["length"] for c in cells], [c["mean"] for c in cells], [_ends(task, c) for c in cells]
            bars = [[abs(end[side] - mean) for mean, end in zip(y, ends, strict=True)] for side in (0, 1)]
            style = series(i, line=True, ms=5)
            axes.errorbar(x, y, bars, capsize=2, elinewidth=1, label=names[i], **style)
            spans += [value for pair in ends for value in pair]
    if not spans:
        return None
    axes.set_ylim(_limits(task, spans))
    _draw_lines(axes, evaluation, task)
    lengths = task["asked"]
    pad = (lengths[-1] / lengths[0]) ** 0.05 if len(lengths) > 1 else 2
    axes.set_xlim(lengths[0] / pad, lengths[-1] * pad)
    axes.set_xticks(lengths, _apart(lengths), minor=False)
    axes.xaxis.minorticks_off()
    axes.set(xlabel="length T", ylabel=task["metric"]["name"])
    legend_below(figure, axes)
    return figure


def _labels(task):
    """Names of the variants, shortened as far as that leaves them different."""
    names = [shorten(variant["name"]) for variant in task["variants"]]
    return names if len(set(names)) == len(names) else [shorten(v["name"], _LONGEST) for v in task["variants"]]


def _ends(task, cell):
    """The ends of a cell's interval, its mean where it has none."""
    return interval(task["metric"], cell) or (cell["mean"], cell["mean"])


def _apart(lengths, characters=70):
    """Labels of lengths on a log axis of so many characters; empty where one would touch the label before it.

    >>> _apart([60, 61, 70, 128])
    ['60', '', '70', '128']
    """
    scale = characters / (1.1 * math.log2(lengths[-1] / lengths[0]) or 1)
    labels, free = [], -math.inf
    for length in lengths:
        label, place = compact_length(length), scale * math.log2(length)
        fits = place - len(label) / 2 >= free
        labels.append(label if fits else "")
        free = place + len(label) / 2 + 1 if fits else free
    return labels


@styled
def heat_map(task, index, name, places):
    """The metric of one variant by length, along, and group, down: see `draw_heat_map`."""
    columns = len(task["variants"][index]["cells"])
    figure, axes = new_figure(*_heat_size(columns, places))
    draw_heat_map(axes, task, index, name, places)
    return figure


@styled
def heat_maps(task, name):
    """The heat maps of all variants in one figure with their colour scale; None where nothing was asked by group."""
    places, variants = group_labels(task, name), task["variants"]
    if not places:
        return None
    columns = min(len(variants), 3)
    rows = math.ceil(len(variants) / columns)
    width, height = _heat_size(len(variants[0]["cells"]), places)
    titles = [textwrap.fill(label, 24) for label in _labels(task)]
    height += 0.1 + 0.15 * max(title.count("\n") + 1 for title in titles)
    figure, _ = new_figure(width * columns, height * rows + 0.6)
    figure.clear()
    drawn = []
    for index, title in enumerate(titles):
        axes = figure.add_subplot(rows, columns, index + 1, title=title)
        drawn.append((axes, draw_heat_map(axes, task, index, name, places)))
    bar = figure.colorbar(drawn[0][1], ax=[axes for axes, _ in drawn], location="bottom", aspect=50, shrink=0.5)
    bar.set_label(task["metric"]["name"])
    bar.outline.set_visible(False)
    return figure


def draw_heat_map(axes, task, index, name, places):
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
    low, high = heat_range(task, name)
    scale = colormaps[SCALE if task["metric"]["higher_is_better"] else f"{SCALE}_r"]
    grid, norm = heat_grid(cells, name, places), Normalize(low, high)
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


def heat_grid(cells, name, places):
    """Rows of numbers by group, one column a length; where there is no number the reason in a word or two.

    >>> cell = {"error": None, "groups": {"depth": [{"label": "0-50 %", "mean": 0.5}, {"label": "50 %", "mean": None}]}}
    >>> heat_grid([cell, {"error": "too long", "mean": None, "groups": {}}], "depth", ["0-50 %", "50 %"])
    [[0.5, 'error'], ['no needle', 'error']]
    """
    columns = []
    for cell in cells:
        found = {group["label"]: number(group, "mean") for group in (cell.get("groups") or {}).get(name) or []}
        empty = "no needle" if name == "depth" else "none"
        missing = "error" if cell.get("error") and not found else empty
        columns.append([missing if found.get(label) is None else found[label] for label in places])
    return [list(row) for row in zip(*columns, strict=True)]


def heat_range(task, name):
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


def shares(task, values) -> bool:
    """Whether the metric is a share such as accuracy: more is better, and all values lie from 0 to 1."""
    return task["metric"]["higher_is_better"] and all(0 <= value <= 1 for value in values)


@styled
def by_position(evaluation, task, length):
    """The metric along the positions of one length, a line a variant and its interval as a band; or None."""
    if not _positions(task, length):
        return None
    figure, axes = new_figure(*_PART)
    _draw_positions(axes, evaluation, task, length)
    return figure


@styled
def by_position_all(evaluation, task):
    """`by_position` of every length in one figure, with a legend; None where no length has any."""
    lengths = [length for length in task["asked"] if _positions(task, length)]
    if not lengths:
        return None
    columns = min(len(lengths), 3)
    rows = math.ceil(len(lengths) / columns)
    figure, _ = new_figure(_PART[0] * columns, (_PART[1] + 0.2) * rows)
    figure.clear()
    for place, length in enumerate(lengths, start=1):
        axes = figure.add_subplot(rows, columns, place, title=f"T = {length:,}")
        _draw_positions(axes, evaluation, task, length)
    legend_below(figure, _Everyone(figure.axes))
    return figure


class _Everyone:
    """Several axes as one, for a legend: a variant stands in it once, wherever it was first drawn."""

    def __init__(self, axes):
        self.axes = axes

    def get_legend_handles_labels(self):
        found = {}
        for axes in self.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        return list(found.values()), list(found)


def _positions(task, length):
    """(i, cell) of the variants that have any at this length."""
    found = []
    for i, variant in enumerate(task["variants"]):
        for cell in variant["cells"]:
            places = cell.get("positions") if cell["length"] == length else None
            if places and any(number({"y": y}, "y") is not None for y in places["mean"]):
                found.append((i, cell))
    return found


def _draw_positions(axes, evaluation, task, length):
    axes.set_xscale("log", base=2)
    lengths = [each for each in task["asked"] if _positions(task, each)]
    drawn = [cell["positions"]["mean"] for each in lengths for _, cell in _positions(task, each)]
    spans, names = [y for means in drawn for y in means if y is not None], _labels(task)
    for i, cell in _positions(task, length):
        places = cell["positions"]
        edges = zip(places["edges"], places["edges"][1:], strict=False)
        rows = [  # the middle of a stretch; the first position is 1
            ((start + 1 + end) / 2, mean, *_ends(task, cell | {"mean": mean, "stderr": error}))
            for (start, end), mean, error in zip(edges, places["mean"], places["stderr"], strict=True)
            if mean is not None
        ]
        x, y, low, high = map(list, zip(*rows, strict=True))
        axes.fill_between(x, low, high, color=PALETTE[i % len(PALETTE)], alpha=0.15, linewidth=0)
        axes.plot(x, y, label=names[i], **series(i, line=True, ms=3) | {"linewidth": 1.3})
    low, high = min(spans), max(spans)
    pad = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(0.8, 1.2 * max(lengths))
    if evaluation.get("trained_length"):
        axes.axvline(evaluation["trained_length"], **_TRAINED, zorder=0)
    powers = range(0, int(math.log2(max(lengths))) + 1, 2 if max(lengths) < 2**11 else 3)
    axes.set_xticks([2**n for n in powers], [compact_length(2**n) for n in powers], minor=False)
    axes.xaxis.minorticks_off()
    axes.set(xlabel="position", ylabel=task["metric"]["name"])


def _limits(task, spans):
    """The ends of the axis: 0 to 1 for shares, else what was measured and the strongest baseline."""
    higher = task["metric"]["higher_is_better"]
    means = [number(cell, "mean") for variant in task["variants"] for cell in variant["cells"]]
    if shares(task, [mean for mean in means if mean is not None]):
        return -0.03, 1.05
    lines = [line for values in task["baselines"].values() if (line := [v for v in values if v is not None])]
    strongest = [max(map(max, lines)) if higher else min(map(min, lines))] if lines else []
    low, high = min([*spans, *strongest]), max([*spans, *strongest])
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _draw_lines(axes, evaluation, task):
    """The length of training, the threshold, and the baselines that lie within the axis, each with its name."""
    low, high = axes.get_ylim()
    named = {"textcoords": "offset points", "fontsize": 7.5, "color": MUTED}
    if trained := evaluation.get("trained_length"):
        axes.axvline(trained, **_TRAINED, zorder=0)
        across = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "bottom", "ha": "right"}
        if task["asked"][0] <= trained <= task["asked"][-1]:
            axes.annotate("trained", (trained, 0.02), (-1, 0), **across, **named)
    right = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center"}
    if task["metric"]["higher_is_better"] and low <= task["threshold"] <= high:
        axes.axhline(task["threshold"], **_THRESHOLD, zorder=0)
        axes.annotate(f"threshold {task['threshold']:g}", (1, task["threshold"]), (4, 0), **right, **named)
    taken = []
    for name, values in task["baselines"].items():
        known = [(x, y) for x, y in zip(task["asked"], values, strict=True) if y is not None]
        known = [(x, y) for x, y in known if low <= y <= high]
        if not known:
            continue
        if len({y for _, y in known}) == 1:
            axes.axhline(known[0][1], **_BASELINE, zorder=0)
        else:
            axes.plot(*zip(*known, strict=True), **_BASELINE, zorder=0)
        if all(abs(known[-1][1] - other) > 0.045 * (high - low) for other in taken):  # else the names would overlap
            axes.annotate(shorten(name), (1, known[-1][1]), (4, 0), **right, **named)
            taken.append(known[-1][1])


def _heat_size(columns, places):
    margin = 0.75 + 0.065 * max((len(shorten(label, 18)) for label in places), default=0)
    return max(margin + _CELL[0] * columns, _PART[0]), 0.55 + _CELL[1] * len(places)


def _legible(color):
    """Black or white, whichever stands out more against a colour (relative luminance as in WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return _DARK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else _LIGHT


def _short(value):
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
