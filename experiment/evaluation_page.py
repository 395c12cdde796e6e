"""evaluation.html: how far the context of each variant reaches, as one self-contained page and figures as files."""

import base64
import io
import re
from html import escape
from pathlib import Path

from experiment import evaluation_figures as figures
from experiment import heat_maps, look
from experiment.evaluation_findings import (
    elsewhere,
    findings,
    footnotes,
    interval_text,
    interval_words,
    marks,
    with_interval,
)
from experiment.findings import listed, number
from experiment.page import figure_html, section, whole_page
from experiment.report_table import marked, swatch

# What the page of a comparison has no need of.
_STYLE = (
    "<style>h3 { margin: 34px 0 10px; font-size: 17px; } "
    ".lengths td small { margin: 0; text-align: right; white-space: nowrap; } "
    ".lengths td:last-child, .lengths th:last-child { padding-right: 16px; } "
    ".key span { white-space: nowrap; } "
    ".notes { margin: 10px 2px 0; padding-left: 1.6em; color: var(--muted); font-size: 13.5px; } "
    ".notes li { overflow-wrap: anywhere; } sup { line-height: 0; } "
    "a { color: var(--accent); } .findings dd { white-space: pre-line; }</style>"
)
_MARKS = {"best": "best", "tie": "tie", "weak": "bad"}
_WARNINGS = ("Not trained", "Baselines", "Not judged")
_INTERVALS = (
    "Each mean stands with its 95% confidence interval: by Student's t over seeds where several were judged, on the "
    "same examples, so that others would add to it; else by the normal law over examples. That of a share is cut off "
    "at 0 and 1, and one of no width says that all agreed. "
    "Two results count as resolved when they differ by more than two standard errors of the difference: seed by seed "
    "where both were judged with the same seeds, else the two errors taken as independent. Over few seeds that asks "
    "for less than intervals that do not overlap."
)


def write_page(workdir: Path, evaluation: dict) -> Path:
    """Writes `figures/evaluation_*.png` and `evaluation.html` and returns the page's path.

    The page needs no network: figures stand in it as SVG, style and script are its own.

    Args:
      workdir: folder of the run; exists.
      evaluation: the content of evaluation.json.

    Returns:
      `workdir / "evaluation.html"`.
    """
    folder = Path(workdir) / "figures"
    folder.mkdir(exist_ok=True)
    title = f"How far {Path(evaluation['workdir']).name} reaches"
    sections = [_task_section(evaluation, task, folder) for task in evaluation["tasks"]]
    body = [_STYLE, _lead(evaluation, title), _overview(evaluation), *sections, _method_section(evaluation)]
    path = Path(workdir) / "evaluation.html"
    path.write_text(whole_page(title, body, evaluation), "utf-8")
    return path


def _lead(evaluation, title):
    tasks, trained = evaluation["tasks"], evaluation.get("trained_length")
    lengths = sorted({length for task in tasks for length in task["asked"]})
    count = max(len(task["variants"]) for task in evaluation["tasks"])
    what = f"{count} {'variant' if count == 1 else 'variants'}, " + (
        f"{lengths[0]:,} to {lengths[-1]:,} tokens" if len(lengths) > 1 else f"{lengths[0]:,} tokens"
    )
    what += f", trained at {trained:,}. " if trained else ". "
    what += f"Asked: {listed(task['name'] for task in tasks)}. Measured on {evaluation['device'] or 'no device'}."
    top = f'<p class="kicker">Long contexts</p><h1>{escape(title)}</h1>'
    return f'<header>{top}<p class="what">{escape(what)}</p></header>'


def _overview(evaluation):
    """The effective lengths of all tasks side by side; nothing where there are fewer than two."""
    tasks = [task for task in evaluation["tasks"] if task["metric"]["higher_is_better"]]
    if len(tasks) < 2:
        return ""
    labels = list(dict.fromkeys(variant["name"] for task in tasks for variant in task["variants"]))
    head = "".join(
        f'<th scope="col"><a href="#{_slug(task["name"])}">{escape(task["name"])}</a>'
        f"<small>{'' if task['trained'] else 'not trained on it'}</small></th>"
        for task in tasks
    )
    rows = ""
    for label in labels:
        found = [next((v for v in task["variants"] if v["name"] == label), None) for task in tasks]
        told = (_effective(evaluation, task, v) if v else "–" for task, v in zip(tasks, found, strict=True))
        cells = "".join(f"<td>{text}</td>" for text in told)
        rows += f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>'
    table = (
        f'<div class="table plain lengths" tabindex="0" role="region" aria-label="Effective lengths"><table><thead><tr>'
        f'<th scope="col">variant</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return section("overview", "Effective lengths", _effective_hint(evaluation), table)


def _effective_hint(evaluation):
    tasks = [task for task in evaluation["tasks"] if task["metric"]["higher_is_better"]]
    thresholds = _of_tasks(tasks, "threshold", "{:g}")
    return tasks and (
        f"The longest length such that it and every shorter one that the task has reach {thresholds}. "
        "≥ says that it is the longest of all asked, none that the shortest one fails; × training stands for times the "
        "length of training."
    )


def _of_tasks(tasks, field, form):
    """What tasks say of a field: once where they agree, else each value with its tasks."""
    alike = {}
    for task in tasks:
        alike.setdefault(form.format(task[field]), []).append(escape(task["name"]))
    return listed(alike) if len(alike) < 2 else "; ".join(f"{text} ({listed(names)})" for text, names in alike.items())


def _effective(evaluation, task, variant):
    reached = variant["effective_length"]
    if reached is None:
        return "none"
    more = "≥ " if reached == task["lengths"][-1] else ""
    trained = evaluation.get("trained_length")
    return f"{more}{reached:,}" + (f"<small>{reached / trained:.3g} × training</small>" if trained else "")


def _task_section(evaluation, task, folder):
    name = _slug(task["name"])
    better = "higher" if task["metric"]["higher_is_better"] else "lower"
    told = "".join(
        f'<dt>{topic}</dt><dd class="{"warn" if topic in _WARNINGS else "plain"}">{escape(text)}</dd>'
        for topic, text in findings(evaluation, task)
    )
    groups = dict.fromkeys(g for v in task["variants"] for cell in v["cells"] for g in cell.get("groups") or {})
    body = [
        told and f'<dl class="findings">{told}</dl>',
        _table(evaluation, task),
        _length_chart(evaluation, task, name, folder),
        *(_heat_maps(task, group, name, folder) for group in groups),
        _position_charts(evaluation, task, name, folder),
    ]
    hint = f"{escape(task['metric']['name'])}; {better} is better."
    warning = "" if task["trained"] else f' <small class="bad">{escape(elsewhere(task))}</small>'
    return section(name, escape(task["name"]) + warning, hint, "".join(body))


def _table(evaluation, task):
    lengths, higher = task["asked"], task["metric"]["higher_is_better"]
    notes = footnotes(task)
    signs = {place: at for at, (_, where) in enumerate(notes, start=1) for place in where}
    states = [marks(task, i) for i in range(len(lengths))]
    head = [("variant", "")] + [(f"{n:,}", "trained" if n == evaluation.get("trained_length") else "") for n in lengths]
    head += [("effective length", f"at {task['threshold']:g}")] if higher else []
    top = "".join(
        f'<th scope="col"><button type="button"><span>{text}</span> <small>{small}</small></button></th>'
        for text, small in head
    )
    rows = ""
    for variant in task["variants"]:
        label = variant["name"]
        cells = "".join(
            _cell(task, cell, states[i][label], signs.get((label, cell["length"])))
            for i, cell in enumerate(variant["cells"])
        )
        if higher:
            cells += f'<td data-value="{variant["effective_length"] or 0}">{_effective(evaluation, task, variant)}</td>'
        head = f'<th scope="row" data-value="{escape(label)}">{swatch(task, variant)}{escape(label)}</th>'
        rows += f"<tr>{head}{cells}</tr>"
    lines = "".join(
        f'<tr><th scope="row">{escape(name)} <small>baseline</small></th>'
        + "".join(f"<td>{'–' if value is None else f'{value:.3f}'}</td>" for value in values)
        + ("<td></td>" if higher else "") + "</tr>"
        for name, values in task["baselines"].items()
    )  # fmt: skip
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason, _ in notes)
    words = f"{escape(task['name'])} over length"
    return (
        f'<h3>Over length</h3><div class="table lengths" tabindex="0" role="region" aria-label="{words}"><table>'
        f'<thead><tr>{top}</tr></thead><tbody>{rows}</tbody><tbody class="baselines">{lines}</tbody>'
        f'</table></div><p class="key">{_key(task, states)}</p>' + (reasons and f'<ol class="notes">{reasons}</ol>')
    )


def _key(task, marked_states):
    states = {state for found in marked_states for state in found.values()}
    key = f"{interval_words(task)}"
    if "best" in states:
        key += ' &ensp; <span class="best">best</span> at its length'
    if "tie" in states:
        key += ' &ensp; <span class="tie">not resolved</span> from the best: within two standard errors'
    if "weak" in states:
        key += ' &ensp; <span class="bad">no better</span> than the strongest baseline by two standard errors'
    return key


def _cell(task, cell, state, note):
    sign = f"<sup>{note}</sup>" if note else ""
    if number(cell, "mean") is None:
        return f'<td data-value="">–{sign}</td>'
    mean = marked(f"{cell['mean']:.3f}", _MARKS.get(state, ""))
    return f'<td data-value="{cell["mean"]}">{mean}{sign}<small>{interval_text(task["metric"], cell)}</small></td>'


def _length_chart(evaluation, task, name, folder):
    figure = figures.by_length(evaluation, task)
    if figure is None:
        return ""
    svg = _drawn(figure, folder, f"evaluation_{name}_length")
    told = "; ".join(f"{v['name']}: {_told(task, v['cells'])}" for v in task["variants"])
    caption = "Bars are 95% confidence intervals; the length axis is logarithmic."
    chart = figure_html(svg, f"{task['metric']['name']} over length. {told}.", caption)
    return f'<h3>The same as a chart</h3><div class="solo">{chart}</div>'


def _told(task, cells):
    texts = ("not judged" if number(c, "mean") is None else with_interval(task["metric"], c) for c in cells)
    return ", ".join(f"{text} at {cell['length']:,}" for text, cell in zip(texts, cells, strict=True))


def _heat_maps(task, group, name, folder):
    places = heat_maps.group_labels(task, group)
    if not places:
        return ""
    file = f"evaluation_{name}_{_slug(group)}"
    look.save_png(heat_maps.of_all(task, group), folder / f"{file}.png")
    panels = []
    for i, variant in enumerate(task["variants"]):
        svg = look.to_svg(heat_maps.of_one(task, i, group, places), f"{file}_{i}")
        rows = heat_maps.numbers(variant["cells"], group, places)
        told = "; ".join(
            f"{label}: {_row_words(row, variant['cells'])}" for label, row in zip(places, rows, strict=True)
        )
        words = f"{variant['name']}, {task['metric']['name']} by {group} and length. {told}."
        panels.append(figure_html(svg, words, swatch(task, variant) + f"<b>{escape(variant['name'])}</b>"))
    low, high = heat_maps.ends(task, group)
    ends = (low, high) if task["metric"]["higher_is_better"] else (high, low)
    scale = (
        f'<div class="scale"><img src="{_scale_image()}" alt="Colour scale: the lighter, the better.">'
        f"<span>{ends[0]:.3g}</span><span>{sum(ends) / 2:.3g}</span><span>{ends[1]:.3g}</span></div>"
    )
    hint = f"{escape(task['metric']['name'])} by length, along, and {escape(group)}, down, all on one scale."
    return f'<h3>By length and {escape(group)}</h3><p class="hint">{hint}</p>{_side_by_side(panels)}{scale}'


def _row_words(row, cells):
    texts = (found if isinstance(found, str) else f"{found:.2f}" for found in row)
    return ", ".join(f"{text} at {cell['length']:,}" for text, cell in zip(texts, cells, strict=True))


def _scale_image():
    """The colour scale from worst to best, as a data URL."""
    import numpy as np
    from matplotlib import colormaps, image

    out = io.BytesIO()
    image.imsave(out, colormaps[heat_maps.SCALE](np.linspace(0, 1, 64))[None], format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _position_charts(evaluation, task, name, folder):
    everything = figures.by_position_all(evaluation, task)
    if everything is None:
        return ""
    look.save_png(everything, folder / f"evaluation_{name}_positions.png")
    panels = []
    for i, length in enumerate(task["asked"]):
        figure = figures.by_position(evaluation, task, length)
        if figure is not None:
            told = [(v["name"], v["cells"][i].get("positions")) for v in task["variants"]]
            words = "; ".join(f"{label}: {_place_words(places)}" for label, places in told if places)
            svg = look.to_svg(figure, f"evaluation_{name}_positions_{length}")
            panels.append(figure_html(svg, f"By position at T = {length:,}. {words}.", f"<b>T = {length:,}</b>"))
    key = "".join(
        f"<li>{look.key_svg(i)}<span>{escape(variant['name'])}</span></li>"
        for i, variant in enumerate(task["variants"])
    )
    hint = "Each position knows only what stands before it, on a log axis. Bands are 95% confidence intervals."
    if evaluation.get("trained_length"):
        hint += f" The upright line is the length of training, {evaluation['trained_length']:,}."
    return f'<h3>By position</h3><p class="hint">{hint}</p>{_side_by_side(panels)}<ul class="lines">{key}</ul>'


def _side_by_side(panels):
    """Charts in a row; a single one no wider than others."""
    return f'<div class="{"solo" if len(panels) == 1 else "panels"}">{"".join(panels)}</div>'


def _place_words(places):
    stretches = zip(places["edges"], places["edges"][1:], places["mean"], strict=False)
    return ", ".join(f"{mean:.2f} at {a + 1} to {b}" for a, b, mean in stretches if mean is not None)


def _drawn(figure, folder, name):
    look.save_png(figure, folder / f"{name}.png")
    return look.to_svg(figure, name)


def _method_section(evaluation):
    tasks = [task | {"command": escape(str(task["command"] or "not recorded"))} for task in evaluation["tasks"]]
    versions = ", ".join(f"{name} {version}" for name, version in (evaluation.get("versions") or {}).items())
    facts = {
        "Command": _of_tasks(tasks, "command", "<code>{}</code>"),
        "Date": escape(str(evaluation.get("date") or "not recorded")),
        "Device": escape(str(evaluation["device"] or "none")),
        "Versions": escape(versions) or "not recorded",
        "Examples": f"At most {_of_tasks(tasks, 'examples', '{:,}')} a length; extrapolation takes the whole text.",
        "Effective length": _effective_hint(evaluation),
        "Intervals": _INTERVALS,
    }
    told = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items() if text)
    return section("method", "How this was measured", "", f'<dl class="facts">{told}</dl>')


def _slug(text):
    return re.sub(r"\W+", "_", text.lower()).strip("_") or "unnamed"
