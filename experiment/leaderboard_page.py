"""leaderboard.html: the variants of several runs, a section for each task."""

from html import escape

from experiment.findings import compact, listed, quality, sign, strongest_baseline, with_error
from experiment.page import section, whole_page
from experiment.report_table import marked
from experiment.table import PEAK_MEMORY

# How a row stands to the best one, and to the baselines of its own run.
BEST, LEVEL, OPEN, WEAK = "best", "not told apart", "no error bar", "no better than a baseline"
# What runs may differ in though they answer the same task.
FACTS = ("length", "steps", "seeds", "device")
_MARKS = {BEST: "best", LEVEL: "tie", WEAK: "bad"}
_HINT = (
    "Quality, speed and memory are those of each run's own comparison; runs may have had different budgets, and speeds "
    "of different devices cannot be compared. Best first; a click on the head of a column sorts by it."
)
_EFFECTIVE = (
    "The effective length is the longest length asked such that it and every shorter one reach the threshold; ≥ says "
    "that it is the longest of all asked, none that the shortest one fails, a dash that nothing is known."
)


def page(table) -> str:
    """The whole page, as HTML.

    Args:
      table: from `experiment.leaderboard.collect`.
    """
    body = [_lead(table), *(_section(i, group) for i, group in enumerate(table["tables"])), _left_out(table)]
    return whole_page("Leaderboard", body)


def left_out(table) -> list[tuple[str, str, str]]:
    """What is not ranked, as (kind, run, why); kinds are "unfinished", "outdated" and "passed over"."""
    unfinished = [("unfinished", each["run"], f"missing {', '.join(each['missing'])}") for each in table["unfinished"]]
    passed = [("passed over", each["run"], each["why"]) for each in table["passed_over"]]
    outdated = []
    for each in table["outdated"]:
        again = f"; to judge again: {each['command']}" if each["command"] else ""
        why = f"effective lengths on {each['task']} are {each['why']}{again}"
        outdated.append(("outdated", each["run"], why))
    return unfinished + outdated + passed


def _lead(table):
    runs = dict.fromkeys(row["run"] for group in table["tables"] for row in group["rows"])
    count, tables = len(runs), len(table["tables"])
    what = f"{count} {'run' if count == 1 else 'runs'} on {tables} {'task' if tables == 1 else 'tasks'}. {_HINT}"
    told = "".join(
        f'<dt><a href="#table_{i}" style="color: var(--accent)">{escape(group["title"])}</a></dt>'
        f"<dd>{escape(_words(group))}</dd>"
        for i, group in enumerate(table["tables"])
    )
    top = '<p class="kicker">Attention comparison</p><h1>Leaderboard</h1>'
    tasks = f'<dl class="facts" style="margin-top: 26px">{told}</dl>'
    return f'<header>{top}<p class="what">{escape(what)}</p></header>\n{tasks}'


def _words(group):
    """Who leads, who cannot be told from it, and whether that is any skill."""
    scored = [row for row in group["rows"] if quality(row) is not None]
    if not scored:
        return "No variant has a quality."
    name = lambda row: f"{row['variant']} of {row['run']}"  # noqa: E731
    best, metric = scored[0], group["metric"]["name"]
    if best["standing"] == WEAK:
        lines = {line["name"]: line["value"] for line in group["baselines"] if line["run"] == best["run"]}
        baseline, value = strongest_baseline({"metric": group["metric"], "baselines": lines})
        first = f"{name(best)} comes first in {metric}, {with_error(best)}"
        return f"{first}, but is no better than the {baseline} baseline of its run, {value:.3f}."
    text = f"{name(best)} has the best {metric}: {with_error(best)}"
    level = [name(row) for row in scored[1:] if row["standing"] == LEVEL]
    return text + (f"; {listed(level)} cannot be told apart from it." if level else ".")


def _section(i, group):
    better, order = ("higher", "descending") if group["metric"]["higher_is_better"] else ("lower", "ascending")
    columns = _columns(group)
    head = [("variant", "run"), (group["metric"]["name"], f"{better} is better")] + [c[:2] for c in columns]
    head = [f"<span>{escape(title)}</span> <small>{escape(small)}</small>" for title, small in head]
    sort = ["", f' aria-sort="{order}"', *[""] * len(columns)]
    top = "".join(
        f'<th scope="col"{mark}><button type="button">{text}</button></th>'
        for text, mark in zip(head, sort, strict=True)
    )
    rows = "".join(_row(row, columns) for row in group["rows"])
    lines = "".join(
        f'<tr><th scope="row">{escape(name)} <small>baseline{escape(of)}</small></th><td>{value}</td>'
        f"{'<td></td>' * len(columns)}</tr>"
        for name, of, value in _lines(group)
    )
    standings = {row["standing"] for row in group["rows"]}
    key = ["± one standard error"]
    key += ['<span class="best">best</span>'] if BEST in standings else []
    if LEVEL in standings:
        key.append(f'<span class="tie">{LEVEL}</span> from the best: within two standard errors of the difference')
    if any(row["effective_length"] for row in group["rows"]):
        key.append(f"<br>{_EFFECTIVE}")
    body = (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(group["title"])}"><table>'
        f'<thead><tr>{top}</tr></thead><tbody>{rows}</tbody><tbody class="baselines">{lines}</tbody></table></div>'
        f'<p class="key">{" &ensp; ".join(key)}</p>'
    )
    return section(f"table_{i}", escape(group["title"]), escape(_shared(group)), body)


def _shared(group):
    """The facts in which all rows agree: "length 64, 300 steps, 3 seeds, a device"."""
    row = group["rows"][0]
    words = {
        "length": f"{group['size']} {row['length']:,}",
        "steps": f"{row['steps'] or 0:,.0f} steps",
        "seeds": f"{row['seeds']} {'seed' if row['seeds'] == 1 else 'seeds'}",
        "device": row["device"],
    }
    return ", ".join(text for name, text in words.items() if row[name] and not _differ(group, name))


def _differ(group, name):
    """Whether a fact tells the variants apart; those that failed have no say."""
    return len({str(row[name]) for row in group["rows"] if quality(row) is not None}) > 1


def _columns(group):
    """(title, unit, row -> text, row -> number to sort by or None) of what any row knows."""
    speeds = (("train speed", "train_tokens_per_second"), ("forward speed", "forward_tokens_per_second"))
    columns = [("parameters", "", *_plain("parameters", compact))]
    columns += [(title, f"{group['unit']}/s", *_plain(name, compact)) for title, name in speeds]
    columns.append(("peak memory", PEAK_MEMORY.unit, PEAK_MEMORY.text, PEAK_MEMORY.of))
    asked = {(t, c["threshold"], c["trained"]) for row in group["rows"] for t, c in row["effective_length"].items()}
    for task, threshold, trained in sorted(asked, key=lambda key: (not key[2], *key)):
        unit = f"effective length at {threshold:g}{'' if trained else ', not trained on it'}"
        columns.append((task, unit, *_reach(task, threshold, trained)))
    for name in FACTS:
        if _differ(group, name):
            columns.append((group["size"] if name == "length" else name, "", *_fact(group, name)))
    return columns


def _plain(name, show):
    def text(row):
        return "–" if row[name] is None else show(row[name])

    return text, lambda row: row[name]


def _fact(group, name):
    words = sorted({str(row[name]) for row in group["rows"]})
    text, value = _plain(name, lambda value: value if isinstance(value, str) else f"{value:,.0f}")
    return text, lambda row: words.index(row[name]) if isinstance(row[name], str) else value(row)


def _reach(task, threshold, trained):
    def cell(row):
        found = row["effective_length"].get(task)
        return found if found and (found["threshold"], found["trained"]) == (threshold, trained) else None

    def text(row):
        found = cell(row)
        if found is None or found["length"] is None:
            return "–" if found is None else "none"
        return f"{'≥ ' if found['length'] == found['longest'] else ''}{found['length']:,}"

    return text, lambda row: None if cell(row) is None else cell(row)["length"] or 0


def _row(row, columns):
    label = f"{escape(row['variant'])}<small>{escape(row['run'])}</small>"
    score, mark, note = "failed", "bad", row["error"] or "no quality"
    if quality(row) is not None:
        score, mark = with_error(row), _MARKS.get(row["standing"], "")
        note = row["standing"] if row["standing"] in (OPEN, WEAK) else ""
    note = note and f'<small style="text-align: right">{escape(note)}</small>'
    by = "" if quality(row) is None else quality(row)
    score = f'<td data-value="{by}">{marked(score, mark)}{note}</td>'
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


def _left_out(table):
    left = left_out(table)
    told = "".join(f"<dt>{escape(run)}</dt><dd>{kind}: {escape(why)}</dd>" for kind, run, why in left)
    hint = "The same train.py command goes on with a run that was stopped." if table["unfinished"] else ""
    return section("left_out", "Left out", hint, f'<dl class="facts">{told}</dl>') if left else ""
