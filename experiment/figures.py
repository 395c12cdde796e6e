"""The charts of a comparison: quality against speed, learning curves, cost against length, masks.

Each function returns a matplotlib Figure, or None where the comparison holds nothing to draw. matplotlib is imported
inside them, because importing it costs most of a second. A variant keeps its colour and marker in every figure.
"""

import math
import textwrap

from experiment.findings import (
    compact,
    in_units,
    metric_name,
    number,
    pareto_front,
    quality,
    sign,
)
from experiment.labels import label_points
from experiment.look import FAINT, INK, MUTED, PALETTE, new_figure, series, shorten, styled
from experiment.wording import unit, wording


@styled
def pareto(comparison):
    """Quality against training speed, up and right is better, with the Pareto front and error bars."""
    from matplotlib.ticker import LogLocator

    points = [(i, v) for i, v in enumerate(comparison["variants"]) if _placed(v)]
    if not points:
        return None
    figure, axes = new_figure(5.4, 4.2)
    positions = [_position(comparison, v) for _, v in points]
    errors = [number(v, "quality", "stderr") or 0 for _, v in points]
    speeds = [speed for speed, _ in positions]
    if max(speeds) > 4 * min(speeds):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for (i, v), position in zip(points, positions, strict=True):
        axes.errorbar(*position, number(v, "quality", "stderr"), capsize=3, elinewidth=1, **series(i, ms=8))
    axes.margins(0.16)
    axes.autoscale_view()
    if sign(comparison) < 0:
        axes.invert_yaxis()
    front = _draw_front(axes, [_position(comparison, v) for v in pareto_front(comparison)])
    _plain_ticks(axes.xaxis)
    axes.set_xlabel(f"training speed, {unit(comparison)} per second  →")
    axes.set_ylabel(f"{comparison['metric']['name']}  →  better")
    names, colors = [shorten(v["name"]) for _, v in points], [PALETTE[i % len(PALETTE)] for i, _ in points]
    bars = [(x, y - error, x, y + error) for (x, y), error in zip(positions, errors, strict=True)]
    label_points(axes, positions, names, colors, {"fontsize": 9, "color": INK}, avoid=[*bars, *front])
    return figure


@styled
def learning_curves(comparison, curves, against="step"):
    """The validation metric during training: mean over seeds, band from the lowest to the highest seed.

    Args:
      comparison: the comparison, for order, metric and baselines.
      curves: `curves[label][seed]`, rows of metrics.jsonl.
      against: "step" or "seconds", the horizontal axis.
    """
    field, split = _curve_field(comparison, curves)
    figure, axes = new_figure(4.6, 3.3)
    drawn = []
    for i, variant in enumerate(comparison["variants"]):
        x, low, mean, high = averaged_curve(curves.get(variant["name"], {}), field, split, against)
        if x:
            axes.fill_between(x, low, high, color=PALETTE[i % len(PALETTE)], alpha=0.18, linewidth=0)
            dense = {"markevery": -(-len(x) // 20), "linewidth": 1.8 if len(x) < 100 else 1.0}
            axes.plot(x, mean, label=shorten(variant["name"]), **dense, **series(i, line=True, ms=3.5))
            drawn.append(mean)
    if not drawn:
        return None
    on_metric = field != "loss"
    baselines = {k: number(comparison, "baselines", k) for k in comparison.get("baselines") or {}} if on_metric else {}
    _zoom(axes, drawn, baselines.values(), higher_is_better=on_metric and sign(comparison) > 0)
    _draw_baselines(axes, baselines)
    axes.set_xlabel({"step": "training steps", "seconds": "seconds of training"}[against])
    metric = comparison["metric"]["name"] if split == "validation" else f"train {metric_name(comparison)}"
    axes.set_ylabel(metric if on_metric else f"{split} loss")
    axes.set_xlim(left=0)
    _plain_ticks(axes.xaxis)
    legend_below(figure, axes)
    return figure


def averaged_curve(seeds, field, split, against):
    """One curve from the runs of all seeds: x and the lowest, mean and highest value at each step all seeds share.

    >>> row = lambda step, loss: {"step": step, "split": "validation", "loss": loss, "seconds": 2.0 * step}
    >>> runs = {0: [row(1, 3.0), row(2, 2.0)], 1: [row(1, 5.0), row(2, 2.5)]}
    >>> averaged_curve(runs, "loss", "validation", "step")
    ([1, 2], [3.0, 2.0], [4.0, 2.25], [5.0, 2.5])
    """
    runs = [{row["step"]: row for row in rows if _holds(row, field, split, against)} for rows in seeds.values()]
    runs = [run for run in runs if run]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    values = [[run[step][field] for run in runs] for step in steps]
    x = steps if against == "step" else [sum(run[step][against] for run in runs) / len(runs) for step in steps]
    return x, [min(v) for v in values], [sum(v) / len(v) for v in values], [max(v) for v in values]


@styled
def cost(comparison, quantity):
    """One cost against sequence length on log axes, slopes 1 and 2 for the eye.

    The legend, with fitted exponents, is up to `add_legend`: the page has one for all costs.

    Args:
      comparison: the comparison; variants without `scaling` are left out.
      quantity: "forward_ms", "train_ms" or "temporary_bytes".
    """
    from matplotlib.ticker import LogLocator, NullLocator

    title, exponent, one = {
        "forward_ms": ("forward time, ms", None, 1),
        "train_ms": ("forward + backward time, ms", "time_exponent", 1),
        "temporary_bytes": ("temporary memory, MB", "memory_exponent", 1e6),
    }[quantity]
    figure, axes = new_figure(3.8, 3.1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths, letter = set(), wording(comparison).letter
    for i, variant in enumerate(comparison["variants"]):
        x, y = _scaling(variant, quantity)
        if x:
            power = number(variant, "scaling", exponent) if exponent else None
            fit = "" if power is None else f"  {letter}^{power:.2f}"
            axes.plot(x, [v / one for v in y], label=shorten(variant["name"]) + fit, **series(i, line=True))
            lengths.update(x)
    if not lengths:
        return None
    _draw_slopes(axes, letter)
    axes.set_xticks(sorted(lengths), [compact_length(x) for x in sorted(lengths)], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _plain_ticks(axes.yaxis)
    axes.set_xlabel(wording(comparison).axis)
    axes.set_ylabel(title)
    return figure


@styled
def add_legend(figure):
    """Adds the legend at the right of a figure that has none, and widens the figure by it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.08 * max(map(len, labels)))
    figure.legend(handles, labels, loc="outside right center", fontsize=8.5)


def legend_below(figure, axes) -> None:
    """Puts the legend under the axes; the figure grows by its rows, so that many variants do not squash the plot."""
    handles, labels = axes.get_legend_handles_labels()
    columns = int(figure.get_figwidth() * 11 / (max(map(len, labels)) + 5)) or 1  # some 11 characters an inch
    figure.set_figheight(figure.get_figheight() + 0.18 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize=8.5)


@styled
def masks(pictures):
    """All masks in one figure; `pictures` holds (i, `patterns.Pattern`) of the comparison's i-th variant."""
    drawn = [(i, picture) for i, picture in pictures if picture.allowed is not None]
    if not drawn:
        return None
    columns = min(len(drawn), 4 if len(drawn) > 6 else 3)
    rows = math.ceil(len(drawn) / columns)
    figure, _ = new_figure(2.3 * columns, 2.75 * rows)
    figure.clear()
    figure.get_layout_engine().set(hspace=0.06)
    for place, (i, picture) in enumerate(drawn, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(picture.allowed, cmap=_two_colors(PALETTE[i % len(PALETTE)]), vmin=0, vmax=1)
        if picture.query:
            axes.plot(*picture.query[::-1], "o", color=INK, ms=3)
        axes.set(xticks=[], yticks=[], title=shorten(picture.label, 22))
        axes.set_xlabel(textwrap.fill(picture.note, 44), fontsize=7, color=MUTED)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=FAINT)
    return figure


def compact_length(length: int) -> str:
    """A sequence length in the field's words: 512, 4k (4096), 1M (1048576)."""
    for size, suffix in ((2**20, "M"), (2**10, "k")):
        if length >= size and length % size == 0:
            return f"{length // size}{suffix}"
    return str(length)


def _placed(variant):
    return quality(variant) is not None and number(variant, "train_tokens_per_second") is not None


def _position(comparison, variant):
    return in_units(comparison, variant["train_tokens_per_second"]), quality(variant)


def _draw_front(axes, front):
    """A staircase through the front; the shaded side is beaten by some member of it. Returns its steps."""
    (left, _), (worst, _) = axes.get_xlim(), axes.get_ylim()
    axes.set_autoscale_on(False)
    corners = front[::-1]  # slowest first, as the axis runs
    x = [left, *(x for x, _ in corners), corners[-1][0]]
    y = [corners[0][1], *(y for _, y in corners), worst]
    axes.fill_between(x, y, worst, step="pre", color=MUTED, alpha=0.07, linewidth=0)
    axes.plot(x, y, drawstyle="steps-pre", color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    flat = [(x[i], y[i + 1], x[i + 1], y[i + 1]) for i in range(len(x) - 2)]
    steep = [(x[i], y[i], x[i], y[i + 1]) for i in range(1, len(x) - 1)]
    return flat + steep


def _holds(row, field, split, against):
    return row.get("split") == split and number(row, field) is not None and number(row, against) is not None


def _curve_field(comparison, curves):
    """(field, split) that the rows hold: the comparison's metric where it was logged, else the loss."""
    rows = [row for seeds in curves.values() for run in seeds.values() for row in run]
    split = "validation" if any(row.get("split") == "validation" for row in rows) else "train"
    name = metric_name(comparison).replace(" ", "_")
    return (name if any(_holds(row, name, split, "step") for row in rows) else "loss"), split


def _zoom(axes, drawn, baselines, higher_is_better):
    """Cuts off the first steep third of training, where all curves look alike, but keeps the strongest baseline."""
    late = [value for mean in drawn for value in mean[len(mean) // 3 :]]
    low, high = min(late), max(late)
    baselines = [value for value in baselines if value is not None]
    if baselines:
        strongest = max(baselines) if higher_is_better else min(baselines)
        low, high = min(low, strongest), max(high, strongest)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - pad, high + pad)


def _draw_baselines(axes, baselines):
    low, high = axes.get_ylim()
    for name, value in baselines.items():
        if value is not None and low <= value <= high:
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            where = {"xy": (1, value), "xycoords": ("axes fraction", "data")}
            axes.annotate(
                f"{name} {value:.2f}", **where, xytext=(0, 2), textcoords="offset points", ha="right", color=MUTED
            )


def _scaling(variant, quantity):
    """The (lengths, values) that were measured; a length the time budget cut off holds null."""
    table = variant.get("scaling") or {}
    pairs = zip(table.get("lengths") or [], table.get(quantity) or [], strict=False)
    pairs = [(x, y) for x, y in pairs if number({"y": y}, "y")]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _draw_slopes(axes, letter):
    """Dotted guides proportional to the size and to its square from the lower left corner of the data."""
    left, right = axes.dataLim.intervalx
    low, high = axes.dataLim.intervaly
    if right <= left:
        return
    for power, name in ((1, f"∝ {letter}"), (2, f"∝ {letter}²")):
        end = min(right, left * (high / low) ** (1 / power)) if high > low else right
        ends = [low, low * (end / left) ** power]
        axes.plot([left, end], ends, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        axes.annotate(name, (end, ends[1]), (3, 0), textcoords="offset points", color=MUTED, fontsize=8, va="center")


def _plain_ticks(axis):
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axis.set_minor_formatter(NullFormatter())


def _two_colors(color):
    from matplotlib.colors import ListedColormap

    return ListedColormap([FAINT, color])
