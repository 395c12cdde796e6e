"""report.html: one self-contained page that a person enjoys reading, and the figures as files."""

import json
from html import escape
from pathlib import Path
from string import Template

from experiment import figures, look, patterns
from experiment.findings import (
    compact,
    findings,
    listed,
    metric_name,
    not_better_than_baseline,
    number,
    pareto_front,
    ranking,
    with_error,
)
from experiment.report_table import results_table, swatch
from experiment.table import MEMORY_EXPONENT, PEAK_MEMORY, TIME_EXPONENT, TRAIN_SPEED, print_table, write_csv

__all__ = ["print_table", "write_csv", "write_report"]

_COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
_TIMES = (
    "Medians after a warm-up. Compilation and evaluation are excluded, and every timing waits until the device has "
    "finished its work. Times belong to this machine and what else it was doing; compare them within this page only."
)
_MEMORY = "Arguments, results and temporaries of the compiled training step, as the compiler plans them."
_SCALING = (
    "One attention layer of each variant on its own, projections included, at growing length T; temporary memory is "
    "what the compiled training pass sets aside besides its arguments and results. An exponent is the slope of the "
    "line fitted to the longer half on log axes: 1 means twice the length costs twice as much, 2 means four times."
)
_FLOPS = "Operations in the matrix products of one training step, loops counted as often as they run."


def write_report(workdir: Path, comparison: dict, curves: dict[str, dict[int, list[dict]]], config) -> Path:
    """Writes `figures/*.png` and `report.html` and returns the page's path.

    The page needs no network: figures stand in it as SVG, style and script are its own.

    Args:
      workdir: folder of the comparison; exists.
      comparison: the content of comparison.json.
      curves: `curves[label][seed]`, the rows of metrics.jsonl.
      config: the run's config, a ConfigDict or nested mapping; `config["data"]["length"]` is the training length.

    Returns:
      `workdir / "report.html"`.
    """
    folder = Path(workdir) / "figures"
    folder.mkdir(exist_ok=True)
    settings = json.loads(config.to_json_best_effort()) if hasattr(config, "to_json_best_effort") else dict(config)
    drawings = _drawings(comparison, curves)
    pictures = _pictures(comparison, settings)
    for name, figure in {**drawings, "masks": figures.masks(pictures)}.items():
        if figure is not None:
            look.save_png(figure, folder / f"{name}.png")
    svgs = {name: look.to_svg(figure, name) for name, figure in drawings.items() if figure is not None}
    title = _title(comparison, settings)
    body = [
        _lead(comparison, curves, title),
        _cards(comparison),
        _section("results", "Results", "Click a column to sort by it.", results_table(comparison)),
        _pareto_section(comparison, svgs),
        _curve_section(comparison, curves, svgs),
        _cost_section(comparison, svgs),
        _mask_section(pictures),
        _method_section(comparison, settings),
    ]
    page = Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    footer = escape(f"Made by Attention Atlas on {comparison.get('date') or 'an unknown date'}.")
    path = Path(workdir) / "report.html"
    path.write_text(page.substitute(title=escape(title), body="\n".join(body), footer=footer), "utf-8")
    return path


def _drawings(comparison, curves):
    return {
        "pareto": figures.pareto(comparison),
        "curves_steps": figures.learning_curves(comparison, curves, "step"),
        "curves_seconds": figures.learning_curves(comparison, curves, "seconds"),
        "cost_train": figures.cost(comparison, "train_ms"),
        "cost_forward": figures.cost(comparison, "forward_ms"),
        "cost_memory": figures.cost(comparison, "temporary_bytes"),
    }


def _pictures(comparison, settings):
    length = number(settings, "data", "length")
    if length is None:
        return []
    causal = (settings.get("model") or {}).get("name", "transformer") == "transformer"
    return [patterns.pattern(v["name"], v.get("attention") or {}, length, causal) for v in comparison["variants"]]


def _title(comparison, settings):
    count, data = len(comparison["variants"]), settings.get("data") or {}
    # The user's own text is named by its file or folder.
    name = Path(data.get("path") or "").name or data.get("name")
    topic = f"{name} ({comparison['task']})" if name else comparison["task"]
    if count == 1:
        return f"{comparison['variants'][0]['name']} on {topic}"
    return f"{_COUNTS[count] if count < len(_COUNTS) else count} kinds of attention on {topic}"


def _lead(comparison, curves, title):
    rows = [row for seeds in curves.values() for run in seeds.values() for row in run]
    steps, tokens = (max((number(row, key) or 0 for row in rows), default=0) for key in ("step", "tokens"))
    budget = f": {steps:,} steps, {compact(tokens)} tokens each" if steps and tokens else ""
    seeds = max((len(seeds) for seeds in curves.values()), default=0)
    better = "higher" if comparison["metric"]["higher_is_better"] else "lower"
    same = "All had the same data, the same order and the same budget" if len(comparison["variants"]) > 1 else "Budget"
    what = (
        f"{same}{budget}{f', {seeds} seeds' if seeds > 1 else ''}. The score is {metric_name(comparison)} on "
        f"validation data never seen in training; {better} is better. Measured on {comparison['device']}."
    )
    troubled = {"Failed"} | ({"Baselines"} if not_better_than_baseline(comparison) else set())

    def tone(topic):
        return "warn" if topic in troubled else "plain"

    told = "".join(
        f'<dt>{topic}</dt><dd class="{tone(topic)}">{escape(text)}</dd>' for topic, text in findings(comparison)
    )
    return (
        f'<header><p class="kicker">Attention comparison</p><h1>{escape(title)}</h1>'
        f'<p class="what">{escape(what)}</p></header>\n<dl class="findings">{told}</dl>'
    )


def _cards(comparison):
    ranked = ranking(comparison)
    if len(ranked) < 2:
        return ""
    cards = [("Best quality", ranked[0], f"{with_error(ranked[0])} {metric_name(comparison)}")]
    for title, column, words in (
        ("Fastest in training", TRAIN_SPEED, "{} tokens per second"),
        ("Least peak memory", PEAK_MEMORY, "{} MB"),
        ("Slowest growth of time", TIME_EXPONENT, "proportional to T^{}"),
    ):
        known = [v for v in ranked if column.of(v) is not None]
        if known:
            best = max(known, key=lambda v: column.better * column.of(v))
            cards.append((title, best, words.format(column.text(best))))
    return f'<div class="cards">{"".join(_card(comparison, *card) for card in cards)}</div>'


def _card(comparison, title, variant, text):
    name = swatch(comparison, variant) + escape(variant["name"])
    return f'<div class="card"><p>{title}</p><p class="name">{name}</p><p>{escape(text)}</p></div>'


def _pareto_section(comparison, svgs):
    if "pareto" not in svgs:
        return ""
    points = "; ".join(
        f"{v['name']} {with_error(v)} at {compact(v['train_tokens_per_second'])} tokens per second"
        for v in ranking(comparison)
        if number(v, "train_tokens_per_second")
    )
    front = listed(v["name"] for v in pareto_front(comparison))
    caption = (
        "<b>Up and to the right is better.</b> Bars are one standard error. The dashed line is the Pareto front "
        f"({escape(front)}); whatever lies in the shaded area is beaten by one of them in quality and in speed at once."
    )
    figure = _figure(svgs["pareto"], f"Quality against training speed. {points}.", caption)
    hint = "What a slower mechanism buys, and what a faster one gives up."
    return _section("pareto", "Quality against speed", hint, f'<div class="solo">{figure}</div>')


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
        _figure(svgs[name], f"Learning curves. {last}.", text) for name, text in captions.items() if name in svgs
    )
    hint = f"Validation score during training. {band}The first steep part, where all look alike, is cut off."
    return _section("curves", "Learning curves", hint, f'<div class="panels wide">{panels}</div>')


def _cost_section(comparison, svgs):
    captions = {
        "cost_train": "<b>Forward and backward time</b>; the legend gives the fitted exponent.",
        "cost_forward": "<b>Forward time</b> alone.",
        "cost_memory": "<b>Temporary memory</b> of both passes; the legend gives the fitted exponent.",
    }
    grown = "; ".join(
        f"{v['name']} time T^{TIME_EXPONENT.text(v)}, memory T^{MEMORY_EXPONENT.text(v)}"
        for v in comparison["variants"]
    )
    panels = "".join(
        _figure(svgs[name], f"Cost against sequence length on log axes. {grown}.", text)
        for name, text in captions.items()
        if name in svgs
    )
    if not panels:
        return ""
    hint = (
        "One attention layer alone, both axes logarithmic: a straight line is a power of the length and its slope the "
        "exponent. Dotted guides show slopes 1 and 2."
    )
    return _section("cost", "Cost against length", hint, f'<div class="panels">{panels}</div>')


def _mask_section(pictures):
    if not pictures:
        return ""
    shown, told = [], []
    for i, picture in enumerate(pictures):
        label, note = escape(picture.label), escape(picture.note)
        if picture.allowed is None:
            told.append(f"<dt>{label}</dt><dd>{note}</dd>")
            continue
        svg = patterns.to_svg(picture, f"var(--s{i % len(look.PALETTE)})")
        image = f'<div role="img" aria-label="Mask of {label}: {note}">{svg}</div>'
        shown.append(f"<figure>{image}<figcaption><b>{label}</b>{note}</figcaption></figure>")
    hint = (
        "A row is a query, a column a key, a coloured cell a pair that may attend. Each pattern is scaled down to "
        f"{patterns.SIDE} tokens, proportions kept."
    )
    drawn = f'<div class="masks">{"".join(shown)}</div>' if shown else ""
    words = f'<dl class="facts">{"".join(told)}</dl>' if told else ""
    return _section("masks", "Who may attend to whom", hint if shown else "", drawn + words)


def _method_section(comparison, settings):
    over = {number_of for v in ranking(comparison) if (number_of := v["quality"].get("stderr_over"))}
    versions = comparison.get("versions") or {}
    facts = {
        "Command": f"<code>{escape(str(comparison.get('command') or 'not recorded'))}</code>",
        "Date": escape(str(comparison.get("date") or "not recorded")),
        "Device": escape(str(comparison["device"])),
        "Versions": escape(", ".join(f"{name} {version}" for name, version in versions.items())) or "not recorded",
        "Error bars": escape(
            f"One standard error, over {listed(sorted(over)) or 'an unrecorded source'}. Two results count as resolved "
            "when they differ by more than two standard errors of the difference. That error is paired, file by file "
            "or seed by seed, where the comparison recorded it; else the two errors count as independent: cautious."
        ),
        "Times": _TIMES,
        "Peak memory": _MEMORY,
        "Cost against length": _SCALING,
        "FLOPs": _FLOPS,
    }
    told = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    lines = escape("\n".join(_flat(settings)))
    config = f"<details><summary>The exact config</summary><pre>{lines}</pre></details>"
    return _section("method", "How this was measured", "", f'<dl class="facts">{told}</dl>{config}')


def _flat(settings, prefix="config"):
    """The config as the flags that would set it.

    >>> list(_flat({"seed": 0, "model": {"width": 128}}))
    ['--config.seed=0', '--config.model.width=128']
    """
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"--{prefix}.{name}={value}"


def _section(name, title, hint, body):
    hint = f'<p class="hint">{hint}</p>' if hint else ""
    return f'<section id="{name}"><h2>{title}</h2>{hint}{body}</section>'


def _figure(svg, alt, caption):
    return f'<figure><div role="img" aria-label="{escape(alt)}">{svg}</div><figcaption>{caption}</figcaption></figure>'
