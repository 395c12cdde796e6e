"""leaderboard.html: the variants of several runs, a section for each task."""

from html import escape

from experiment.findings import compact, listed, quality, sign, with_error
from experiment.page import section, whole_page
from experiment.report_table import marked
from experiment.table import PEAK_MEMORY

# How a row stands to the best one.
BEST, LEVEL, OPEN = "best", "not told apart", "no error bar"
# What runs may differ in though they answer the same task: told only where they do.
FACTS = ("length", "steps", "device")
_MARKS = {BEST: "best", LEVEL: "tie"}
_HINT = (
    "Best first. Quality, speed and memory are those of each run's own comparison; runs may have had different "
    "budgets, and speeds of different devices cannot be compared."
)
_EFFECTIVE = (
    "The effective length is the longest length asked such that it and every shorter one reach the threshold; ≥ says "
    "that it is the longest of all asked, none that the shortest one fails, a dash that the task was not asked."
)


def page(table) -> str:
    """The whole page, as HTML.

    Args:
      table: from `experiment.leaderboard.collect`.
    """
    body = [_lead(table), *(_section(i, group) for i, group in enumerate(table["tables"])), _unfinished(table)]
    return whole_page("Leaderboard", body)


def _lead(table):
    runs = dict.fromkeys(row["run"] for group in table["tables"] for row in group["rows"])
    count, tasks = len(runs), len(table["tables"])
    what = f"{count} {'run' if count == 1 else 'runs'} on {tasks} {'task' if tasks == 1 else 'tasks'}."
    told = "".join(f"<dt>{escape(_title(group))}</dt><dd>{escape(_words(group))}</dd>" for group in table["tables"])
    top = '<p class="kicker">Attention comparison</p><h1>Leaderboard</h1>'
    return f'<header>{top}<p class="what">{escape(what)}</p></header>\n<dl class="findings">{told}</dl>'


def _title(group):
    """The task, with the name of its data where that says more."""
    return group["task"] if group["name"] == group["task"] else f"{group['task']}: {group['name']}"


def _words(group):
    """Who leads, and who cannot be told from it."""
    scored = [row for row in group["rows"] if quality(row) is not None]
    if not scored:
        return "No variant has a quality."
    name = lambda row: f"{row['variant']} of {row['run']}"  # noqa: E731
    text = f"{name(scored[0])} has the best {group['metric']['name']}: {with_error(scored[0])}"
    level = [name(row) for row in scored[1:] if row["standing"] in (BEST, LEVEL)]
    return text + (f"; {listed(level)} cannot be told apart from it." if level else ".")


def _section(i, group):
    better = "higher" if group["metric"]["higher_is_better"] else "lower"
    columns = _columns(group)
    head = [("variant", "run"), (group["metric"]["name"], f"{better} is better")] + [c[:2] for c in columns]
    head = [f"<span>{escape(title)}</span> <small>{escape(small)}</small>" for title, small in head]
    top = "".join(f'<th scope="col"><button type="button">{text}</button></th>' for text in head)
    rows = "".join(_row(row, columns) for row in group["rows"])
    lines = "".join(
        f'<tr><th scope="row">{escape(name)} <small>baseline{escape(of)}</small></th><td>{value}</td>'
        f"{'<td></td>' * len(columns)}</tr>"
        for name, of, value in _lines(group)
    )
    key = '± one standard error &ensp; <span class="best">best</span>'
    if any(row["standing"] == LEVEL for row in group["rows"]):
        key += f' &ensp; <span class="tie">{LEVEL}</span> from the best: within one standard error of the difference'
    if any(row["effective_length"] for row in group["rows"]):
        key += f"<br>{_EFFECTIVE}"
    body = (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(_title(group))}"><table>'
        f'<thead><tr>{top}</tr></thead><tbody>{rows}</tbody><tbody class="baselines">{lines}</tbody></table></div>'
        f'<p class="key">{key}</p>'
    )
    return section(f"table_{i}", escape(_title(group)), _HINT, body)


def _columns(group):
    """(title, unit, row -> text, row -> number to sort by or None) of what any row knows."""
    speeds = (("train speed", "train_tokens_per_second"), ("forward speed", "forward_tokens_per_second"))
    columns = [("parameters", "", *_plain("parameters", compact))]
    columns += [(title, f"{group['unit']}/s", *_plain(name, compact)) for title, name in speeds]
    columns.append(("peak memory", PEAK_MEMORY.unit, PEAK_MEMORY.text, PEAK_MEMORY.of))
    for task, threshold in dict.fromkeys(
        (task, cell["threshold"]) for row in group["rows"] for task, cell in row["effective_length"].items()
    ):
        columns.append((task, f"effective length at {threshold:g}", *_reach(task, threshold)))
    for name in FACTS:
        if len({str(row[name]) for row in group["rows"]}) > 1:
            columns.append((name, "", *_fact(group, name)))
    return columns


def _plain(name, show):
    def text(row):
        return "–" if row[name] is None else show(row[name])

    return text, lambda row: row[name]


def _fact(group, name):
    words = sorted({str(row[name]) for row in group["rows"]})
    text, value = _plain(name, lambda value: value if isinstance(value, str) else f"{value:,g}")
    return text, lambda row: words.index(row[name]) if isinstance(row[name], str) else value(row)


def _reach(task, threshold):
    def cell(row):
        found = row["effective_length"].get(task)
        return found if found and found["threshold"] == threshold else None

    def text(row):
        found = cell(row)
        if found is None or found["length"] is None:
            return "–" if found is None else "none"
        return f"{'≥ ' if found['length'] == found['longest'] else ''}{found['length']:,}"

    return text, lambda row: None if cell(row) is None else cell(row)["length"] or 0


def _row(row, columns):
    label = f"{escape(row['variant'])}<small>{escape(row['run'])}</small>"
    score = (
        f'<td data-value=""><span class="bad">failed</span><small>{escape(row["error"] or "no quality")}</small></td>'
    )
    if quality(row) is not None:
        note = f"<small>{OPEN}</small>" if row["standing"] == OPEN else ""
        weak = row["beats_baselines"] is False
        note = "<small>no better than a baseline</small>" if weak else note
        mark = marked(with_error(row), "bad" if weak else _MARKS.get(row["standing"], ""))
        score = f'<td data-value="{quality(row)}">{mark}{note}</td>'
    cells = ""
    for _, _, text, value in columns:
        by = value(row)
        cells += f'<td data-value="{"" if by is None else escape(str(by))}">{escape(text(row))}</td>'
    name = escape(f"{row['variant']} {row['run']}")
    return f'<tr><th scope="row" data-value="{name}">{label}</th>{score}{cells}</tr>'


def _lines(group):
    """(name, of which run, value) of baselines, strongest last; those that all runs agree on stand there once."""
    runs = {row["run"] for row in group["rows"]}
    values = {}
    for line in group["baselines"]:
        if line["value"] is not None:
            values.setdefault((line["name"], f"{line['value']:.3f}"), []).append(line)
    lines = sorted(values.items(), key=lambda item: sign(group) * item[1][0]["value"])
    return [
        (name, "" if {line["run"] for line in some} == runs else f" of {listed(line['run'] for line in some)}", value)
        for (name, value), some in lines
    ]


def _unfinished(table):
    if not table["unfinished"]:
        return ""
    told = "".join(
        f"<dt>{escape(run['run'])}</dt><dd>missing: {escape(', '.join(run['missing']))}</dd>"
        for run in table["unfinished"]
    )
    hint = "The same train.py command goes on with a run that was stopped."
    return section("unfinished", "Not finished", hint, f'<dl class="facts">{told}</dl>')
