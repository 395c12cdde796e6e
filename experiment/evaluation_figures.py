"""The charts with lines of evaluation.html: a metric over length, and by position.

Each is a matplotlib Figure, or None where the task holds nothing to draw. matplotlib is imported inside the functions,
because importing it costs most of a second. A variant keeps its colour and marker in every figure.
"""

import math

from experiment.evaluation_findings import interval
from experiment.figures import compact_length, legend_below
from experiment.findings import number
from experiment.look import INK, MUTED, PALETTE, new_figure, series, shorten, styled

_TRAINED = {"color": MUTED, "linewidth": 1.2, "linestyle": "-"}
_THRESHOLD = {"color": INK, "linewidth": 1, "linestyle": (0, (5, 3))}
_BASELINE = {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}
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
    spans, names = [], variant_names(task)
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


def variant_names(task):
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
    spans, names = [y for means in drawn for y in means if y is not None], variant_names(task)
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
