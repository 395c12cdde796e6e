"""The charts of report.html: quality against speed, learning curves, cost; as files, and as sections of the page."""

from html import escape

from experiment import figures, look
from experiment.findings import listed, number, pareto_front, ranking, with_error
from experiment.page import figure_html, section
from experiment.table import MEMORY_EXPONENT, TIME_EXPONENT, TRAIN_SPEED
from experiment.wording import unit, wording


def sections(comparison, curves, folder) -> list[str]:
    """The sections that hold charts; the charts are also written to `folder` as PNG files."""
    svgs = {}
    for name, figure in _drawings(comparison, curves).items():
        if figure is not None:
            look.save_png(figure, folder / f"{name}.png")
            svgs[name] = look.to_svg(figure, name)
    svgs |= _cost_drawings(comparison, folder)
    return [
        _pareto_section(comparison, svgs),
        _curve_section(comparison, curves, svgs),
        _cost_section(comparison, svgs),
    ]


def _drawings(comparison, curves):
    return {
        "pareto": figures.pareto(comparison),
        "curves_steps": figures.learning_curves(comparison, curves, "step"),
        "curves_seconds": figures.learning_curves(comparison, curves, "seconds"),
    }


def _cost_drawings(comparison, folder):
    """The cost figures as SVG without a legend, which the page has one of; as files they get their own."""
    svgs = {}
    quantities = {"cost_train": "train_ms", "cost_forward": "forward_ms", "cost_memory": "temporary_bytes"}
    for name, quantity in quantities.items():
        figure = figures.cost(comparison, quantity)
        if figure is not None:
            svgs[name] = look.to_svg(figure, name)
            figures.add_legend(figure)
            look.save_png(figure, folder / f"{name}.png")
    return svgs


def _pareto_section(comparison, svgs):
    if "pareto" not in svgs:
        return ""
    points = "; ".join(
        f"{v['name']} {with_error(v)} at {TRAIN_SPEED.within(comparison).text(v)} {unit(comparison)} per second"
        for v in ranking(comparison)
        if number(v, "train_tokens_per_second")
    )
    front = listed(v["name"] for v in pareto_front(comparison))
    caption = (
        "<b>Up and to the right is better.</b> Bars are one standard error. The dashed line is the Pareto front "
        f"({escape(front)}); whatever lies in the shaded area is beaten by one of them in quality and in speed at once."
    )
    figure = figure_html(svgs["pareto"], f"Quality against training speed. {points}.", caption)
    hint = "What a slower mechanism buys, and what a faster one gives up."
    return section("pareto", "Quality against speed", hint, f'<div class="solo">{figure}</div>')


def _curve_section(comparison, curves, svgs):
    if "curves_steps" not in svgs:
        return ""
    seeds = max(len(runs) for runs in curves.values())
    band = f"The band runs from the lowest to the highest of {seeds} seeds. " if seeds > 1 else ""
    last = "; ".join(f"{v['name']} ends at {with_error(v)}" for v in ranking(comparison))
    captions = {
        "curves_steps": "<b>Per step:</b> how much each variant learns from the same data. Dotted lines are baselines.",
        "curves_seconds": "<b>Per second:</b> the same curves against the clock, where a cheap step counts.",
    }
    panels = "".join(
        figure_html(svgs[name], f"Learning curves. {last}.", text) for name, text in captions.items() if name in svgs
    )
    hint = f"The score during training. {band}The first steep part, where all look alike, is cut off."
    return section("curves", "Learning curves", hint, f'<div class="panels wide">{panels}</div>')


def _cost_section(comparison, svgs):
    words = wording(comparison)
    captions = {
        "cost_train": "<b>Forward and backward time.</b>",
        "cost_forward": "<b>Forward time</b> alone.",
        "cost_memory": "<b>Temporary memory</b> of both passes.",
    }
    grown = "; ".join(
        f"{v['name']} time {words.letter}^{TIME_EXPONENT.text(v)}, memory {words.letter}^{MEMORY_EXPONENT.text(v)}"
        for v in comparison["variants"]
    )
    panels = "".join(
        figure_html(svgs[name], f"{words.cost} on log axes. {grown}.", text)
        for name, text in captions.items()
        if name in svgs
    )
    if not panels:
        return ""
    hint = (
        f"One attention layer alone, both axes logarithmic: a straight line is a power of the {words.size} and its "
        "slope the exponent. Dotted guides show slopes 1 and 2. The key gives the fitted exponents of forward and "
        "backward time and of memory."
    )
    return section("cost", words.cost, hint, f'<div class="panels">{panels}</div>{_cost_key(comparison)}')


def _cost_key(comparison):
    items, letter = [], wording(comparison).letter
    for i, variant in enumerate(comparison["variants"]):
        if variant.get("scaling"):
            powers = ((TIME_EXPONENT, "time"), (MEMORY_EXPONENT, "memory"))
            fits = ", ".join(
                f"{letter}^{column.text(variant)} {of}" for column, of in powers if column.of(variant) is not None
            )
            items.append(f"<li>{look.key_svg(i)}<span>{escape(variant['name'])} <small>{fits}</small></span></li>")
    return f'<ul class="lines">{"".join(items)}</ul>'
