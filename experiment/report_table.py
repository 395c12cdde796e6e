"""The table of report.html: one row a variant, sortable, best values marked, baselines below."""

from html import escape

from experiment.findings import (
    metric_name,
    not_better_than_baseline,
    number,
    quality,
    ranking,
    strongest_baseline,
    with_error,
)
from experiment.look import PALETTE
from experiment.table import COLUMNS, reference_lines, settings_words, standing, telling


def results_table(comparison) -> str:
    """The table and the key under it, as HTML."""
    columns = telling(comparison)
    head = [("variant", ""), (metric_name(comparison), "mean ± standard error")]
    head += [(column.title, column.unit) for column in columns]
    cells = "".join(
        f'<th scope="col"><button type="button"><span>{escape(title)}</span> <small>{unit}</small></button></th>'
        for title, unit in head
    )
    states, best = standing(comparison), [column.best(comparison) for column in columns]
    rows = "".join(
        _row(comparison, variant, states[variant["name"]], columns, best) for variant in comparison["variants"]
    )
    lines = reference_lines(comparison)
    baselines = "".join(
        f'<tr><th scope="row">{escape(name)} <small>{kind}</small></th>{_quality_cell(comparison, value, "", None)}'
        f"{'<td></td>' * len(columns)}</tr>"
        for name, kind, value in lines
        if value is not None
    )
    key = '<span class="best">best</span> of its column'
    if "tie" in states.values():
        key += ' &ensp; <span class="tie">not resolved</span> from the best: within two standard errors'
    if baselines:
        key += " &ensp; baselines are simple models without any network"
    if any(kind == "upper line" for _, kind, _ in lines):
        key += ", upper lines know what the models must find out"
    shared = [column.within(comparison) for column in COLUMNS]
    shared = [c for c in shared if c not in columns and c.text(comparison["variants"][0]) != "–"]
    if shared:
        key += " &ensp; the same for all: " + ", ".join(
            f"{c.title} {c.text(comparison['variants'][0])}" for c in shared
        )
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="Results"><table><thead><tr>{cells}</tr></thead>'
        f'<tbody>{rows}</tbody><tbody class="baselines">{baselines}</tbody></table></div><p class="key">{key}</p>'
    )


def swatch(comparison, variant) -> str:
    """The coloured dot that stands before a variant's name, hollow where colours repeat."""
    repeated = comparison["variants"].index(variant) >= len(PALETTE)
    color = _color(comparison, variant)
    style = f"border-color: {color}" if repeated else f"background: {color}"
    return f'<span class="swatch{" hollow" if repeated else ""}" style="{style}"></span>'


def _row(comparison, variant, state, columns, best):
    settings = settings_words(variant)
    name = f"{swatch(comparison, variant)}{escape(variant['name'])}" + (
        f"<small>{escape(settings)}</small>" if settings else ""
    )
    cells = [
        f'<td data-value="{"" if column.of(variant) is None else column.of(variant)}">'
        + marked(column.text(variant), "best" if variant["name"] in names else "")
        + "</td>"
        for column, names in zip(columns, best, strict=True)
    ]
    return (
        f'<tr><th scope="row" data-value="{escape(variant["name"])}">{name}</th>'
        f"{_quality_cell(comparison, quality(variant), state, variant)}{''.join(cells)}</tr>"
    )


def _quality_cell(comparison, value, state, variant):
    if value is None:
        return '<td data-value=""><span class="bad">no quality: failed</span></td>'
    text = f"{value:.3f}" if variant is None else with_error(variant)
    mark = marked(text, {"best": "best", "tie": "tie", "weak": "bad", "failed": "bad"}.get(state, ""))
    notes = [f"worse than {strongest_baseline(comparison)[0]}"] if state == "weak" else []
    reference = comparison["variants"][0]["name"]
    if variant is not None and number(variant, "differences", reference, "mean") is not None:
        gap = variant["differences"][reference]
        error = "" if gap.get("stderr") is None else f" ± {gap['stderr']:.3f}"
        notes.append(f"{gap['mean']:+.3f}{error} against {reference}")
    words = "".join(f"<small>{escape(note)}</small>" for note in notes)
    return f'<td data-value="{value}">{mark}{_interval(comparison, value, variant)}{words}</td>'


def marked(text, mark) -> str:
    """A cell's text as HTML under a mark: "best", "tie", "bad", or "" for none."""
    return f'<span class="{mark}">{escape(text)}</span>' if mark else escape(text)


def _interval(comparison, value, variant):
    """A dot and two standard errors on a scale that all rows share; what no network needs to beat is left out."""
    ranked, weak = ranking(comparison), not_better_than_baseline(comparison)
    shown = [v for v in ranked if v not in weak] or ranked
    spans = [(quality(v), 2 * (number(v, "quality", "stderr") or 0)) for v in shown]
    low, high = min((m - e for m, e in spans), default=0), max((m + e for m, e in spans), default=0)
    if high <= low or not low <= value <= high:
        return '<svg class="interval" aria-hidden="true"></svg>'
    x, error = ((v / (high - low)) * 116 for v in (value - low, number(variant, "quality", "stderr") or 0))
    color = _color(comparison, variant) if variant else "var(--muted)"
    return (
        f'<svg class="interval" viewBox="-6 0 128 16" aria-hidden="true"><g style="stroke: {color}; fill: {color}">'
        f'<path d="M{x - 2 * error:.1f} 8H{x + 2 * error:.1f}" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="8" r="3.5" stroke="none"/></g></svg>'
    )


def _color(comparison, variant):
    return f"var(--s{comparison['variants'].index(variant) % len(PALETTE)})"
