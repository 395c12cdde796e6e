"""How each variant does on parts of the validation data: by distance, by relation; charts and tables of report.html."""

import re
from html import escape

from experiment import look
from experiment.figures import legend_below
from experiment.findings import compact, listed, metric_name, number, ranking, resolved, with_error
from experiment.look import PALETTE, new_figure, series, shorten, styled
from experiment.page import figure_html, section
from experiment.report_table import marked, swatch
from experiment.table import standing

_LETTERS = 66  # so many fit side by side under a chart; more labels than that stand at the left of it
_SPREAD = 0.72  # of the room of a group that its points may take
_OPEN = 12  # a longer table is folded


def group_sections(comparison, folder) -> list[str]:
    """A section for each way to group the validation data; the charts are also written to `folder` as PNG files.

    `comparison["variants"][i]["groups"]` is `{name: [{"label", "mean", "stderr", "stderr_over", "size"}]}`, or missing.
    """
    return [_group_section(comparison, name, folder) for name in group_names(comparison)]


def group_names(comparison) -> list[str]:
    """The ways in which validation data were grouped, in their order."""
    return list(dict.fromkeys(name for v in comparison["variants"] for name in v.get("groups") or {}))


def within_groups(comparison, name) -> dict[str, dict]:
    """label -> the comparison on that group alone: its variants have a name, and the group's `quality` and `size`.

    Labels keep their order; a group in which nothing was asked is left out, and so is a variant that failed.
    """
    alone = {}
    for variant in comparison["variants"]:
        for cell in (variant.get("groups") or {}).get(name) or []:
            if number(cell, "mean") is not None:
                group = alone.setdefault(cell["label"], {"metric": comparison["metric"], "variants": []})
                group["variants"].append({"name": variant["name"], "size": cell["size"], "quality": cell})
    return alone


@styled
def group_chart(comparison, name):
    """The metric in each group: a point and one standard error a variant, side by side; None where nothing was asked.

    Groups run along the axis in the order given, joined by thin lines; many or long labels stand below each other.
    """
    groups = within_groups(comparison, name)
    if not groups:
        return None
    upright = len(groups) * max(map(len, groups)) <= _LETTERS
    figure, axes = new_figure(5.8, 3.8) if upright else new_figure(5.4, 1.2 + 0.42 * len(groups))
    count = len(comparison["variants"])
    for i, variant in enumerate(comparison["variants"]):
        own = [(at, cell) for at, group in enumerate(groups.values()) if (cell := _cell(group, variant["name"]))]
        if own:
            places = [at + _SPREAD * ((i + 0.5) / count - 0.5) for at, _ in own]
            _draw_series(axes, i, variant["name"], places, [cell for _, cell in own], upright)
    ticks = [f"{shorten(label)}\nn {_size(group)}" for label, group in groups.items()]
    words = comparison["metric"]["name"]
    axes.grid(visible=False, axis="x" if upright else "y")
    if upright:
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set(xlabel=name, ylabel=words)
    else:
        axes.set_yticks(range(len(ticks)), ticks)
        axes.set(xlabel=words, ylabel=name, ylim=(len(ticks) - 0.4, -0.6))
    legend_below(figure, axes)
    return figure


def details_section(comparison) -> str:
    """A plain table of further numbers, `comparison["variants"][i]["details"]`: {name: {"mean", "stderr"}}."""
    names = list(dict.fromkeys(name for v in comparison["variants"] for name in v.get("details") or {}))
    if not names:
        return ""
    rows = []
    for variant in comparison["variants"]:
        cells = [_number(number(variant, "details", n, "mean"), number(variant, "details", n, "stderr")) for n in names]
        rows.append((swatch(comparison, variant) + escape(variant["name"]), cells))
    return section(
        "details", "Further numbers", "Of the same judgement.", _table(["variant", *map(escape, names)], rows)
    )


def _group_section(comparison, name, folder):
    figure = group_chart(comparison, name)
    if figure is None:
        return ""
    groups, file = within_groups(comparison, name), "groups_" + re.sub(r"\W+", "_", name.lower()).strip("_")
    look.save_png(figure, folder / f"{file}.png")
    told = "; ".join(
        f"{label}: " + ", ".join(f"{v['name']} {with_error(v)}" for v in ranking(group))
        for label, group in groups.items()
    )
    caption = (
        f"Points are each variant's {escape(metric_name(comparison))} in a group, bars one standard error, n the size "
        f"of the group. {escape(_verdict(groups))}"
    )
    chart = figure_html(look.to_svg(figure, file), f"{metric_name(comparison)} by {name}. {told}.", caption)
    table = _group_table(comparison, name, groups)
    if len(groups) > _OPEN:
        table = f"<details><summary>All {len(groups)} groups as a table</summary>{table}</details>"
    title = f"By {escape(name)}"
    return section(file, title, "", f'<div class="solo">{chart}</div>{table}')


def _verdict(groups):
    """Who is best in how many groups, and in how many of them the lead is more than noise."""
    best, clear = {}, 0
    for group in groups.values():
        first, *rest = ranking(group)
        best.setdefault(first["name"], 0)
        best[first["name"]] += 1
        clear += bool(rest) and bool(resolved(first, rest[0], paired=False))
    if all(len(group["variants"]) < 2 for group in groups.values()):
        return ""
    winners = listed(f"{name} in {n}" for name, n in sorted(best.items(), key=lambda item: -item[1]))
    lead = f"in {clear} of them" if clear else "in none of them"
    return (
        f"Best of {len(groups)} groups: {winners}; {lead} the lead over the next one exceeds two standard errors, the "
        "two errors taken as independent."
    )


def _group_table(comparison, name, groups):
    """A row a group, a column a variant: the best of a row is marked, and what is not resolved from it."""
    variants = comparison["variants"]
    head = [f"{swatch(comparison, v)}{escape(v['name'])}" for v in variants]
    rows = []
    for label, group in groups.items():
        marks, texts = standing(group), {v["name"]: with_error(v) for v in group["variants"]}
        found = {n: marked(text, marks[n] if marks[n] in ("best", "tie") else "") for n, text in texts.items()}
        words = f"{escape(label)}<small>n {_size(group)}</small>"
        rows.append((words, [found.get(v["name"], "–") for v in variants]))
    return _table([escape(name), *head], rows)


def _table(head, rows):
    """A table of HTML texts that is not sorted; rows are (head, cells)."""
    top = "".join(f'<th scope="col">{text}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in rows
    )
    return (
        f'<div class="table plain" tabindex="0" role="region" aria-label="Table"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _draw_series(axes, i, name, places, cells, upright):
    means, errors = [number(cell, "mean") for cell in cells], [number(cell, "stderr") or 0 for cell in cells]
    x, y = (places, means) if upright else (means, places)
    bars = {"yerr" if upright else "xerr": errors}
    if upright:
        axes.plot(x, y, color=PALETTE[i % len(PALETTE)], linewidth=0.8, alpha=0.55)
    axes.errorbar(x, y, **bars, capsize=2, elinewidth=1, label=shorten(name), **series(i, ms=5))


def _cell(group, name):
    return next((v["quality"] for v in group["variants"] if v["name"] == name), None)


def _number(mean, stderr):
    return "–" if mean is None else f"{mean:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


def _size(group) -> str:
    return compact(max(variant["size"] for variant in group["variants"]))
