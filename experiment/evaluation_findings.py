"""What an evaluation at many lengths says in plain words, drawn from its numbers alone."""

import re

from experiment.findings import (
    RESOLVED,
    listed,
    not_better_than_baseline,
    number,
    quality,
    ranking,
    resolved,
    strongest_baseline,
    with_error,
)
from experiment.table import standing


def findings(evaluation, task) -> list[tuple[str, str]]:
    """What a task's numbers say in plain words, as (topic, text); topics without evidence are left out."""
    higher = task["metric"]["higher_is_better"]
    told = {
        "Reach" if higher else "Beyond training": (_reach_words if higher else _change_words)(evaluation, task),
        "Longest": _longest_words(task, evaluation["lengths"]),
        "Baselines": _baseline_words(task, evaluation["lengths"]),
        "Not judged": _error_words(task),
    }
    return [(topic, text) for topic, text in told.items() if text]


def at_length(task, i) -> dict:
    """The variants at the i-th length as a comparison, as far as `experiment.findings` reads it."""
    variants = [{"name": v["name"], "quality": v["cells"][i]} for v in task["variants"]]
    baselines = {name: values[i] for name, values in task["baselines"].items()}
    return {"metric": task["metric"], "baselines": baselines, "variants": variants}


def footnotes(task) -> list[tuple[str, list[tuple[str, int]]]]:
    """(what went wrong, [(variant, length)]): reasons that differ in numbers alone, such as the length, are one."""
    found = {}
    for variant in task["variants"]:
        for cell in variant["cells"]:
            if cell.get("error"):
                found.setdefault(kind_of(cell["error"]), (cell["error"], []))[1].append(
                    (variant["name"], cell["length"])
                )
    return list(found.values())


def kind_of(error):
    """What errors that differ in numbers alone, such as the length, have in common."""
    return re.sub(r"\d+", "", error)


def lengths_of(evaluation, task) -> list[int]:
    """The lengths among those asked that the task has at all."""
    return task.get("lengths", evaluation["lengths"])


def times_trained(evaluation, length) -> str:
    """A length as a multiple of the length of training.

    >>> [times_trained({"trained_length": 256}, length) for length in (128, 256, 1024)]
    ['0.5 times the length of training', 'the length of training', '4 times the length of training']
    >>> times_trained({"trained_length": 0}, 128)
    ''
    """
    trained = evaluation.get("trained_length")
    if not trained:
        return ""
    return "the length of training" if length == trained else f"{length / trained:.3g} times the length of training"


def _reach_words(evaluation, task):
    """Up to where each variant reaches the threshold, and what stopped it there; alike variants in one clause."""
    clauses, lengths = {}, lengths_of(evaluation, task)
    if not lengths:
        return ""
    for variant in task["variants"]:
        reached = variant["effective_length"]
        after = 0 if reached is None else lengths.index(reached) + 1
        clause = reached, after < len(lengths) and quality({"quality": _cell(variant, lengths[after])}) is None
        clauses.setdefault(clause, []).append((variant["name"], after))
    order = sorted(clauses, key=lambda clause: (-(clause[0] or 0), clause[1]))
    return "\n".join(_clause(evaluation, task, *clause, clauses[clause]) for clause in order)


def _clause(evaluation, task, reached, unknown, variants):
    threshold, lengths = f"{evaluation['threshold']:g}", lengths_of(evaluation, task)
    names, one = listed(name for name, _ in variants), len(variants) == 1
    after = variants[0][1]
    if reached is None and unknown:
        return f"{names} could not be judged at {lengths[0]:,}, the shortest length."
    cells = {v["name"]: _cell(v, lengths[after]) for v in task["variants"]} if after < len(lengths) else {}
    scores = listed(_against(evaluation, cells[name]) for name, _ in variants) if cells and not unknown else ""
    if reached is None:
        return f"{names} {'is' if one else 'are'} below {threshold} already at {lengths[0]:,} ({scores})."
    times = times_trained(evaluation, reached)
    text = f"{names} {'stays' if one else 'stay'} at {threshold} or above up to {reached:,}" + (times and f", {times}")
    if after == len(lengths):
        return f"{text}; nothing longer was asked."
    if unknown:
        return f"{text}; {lengths[after]:,} could not be judged."
    return f"{text}, and {'falls' if one else 'fall'} below at {lengths[after]:,} ({scores})."


def _cell(variant, length):
    return next(cell for cell in variant["cells"] if cell["length"] == length)


def _against(evaluation, cell):
    """A score below the threshold, and whether its error bar can tell it from that."""
    error = number(cell, "stderr")
    near = error is not None and evaluation["threshold"] - cell["mean"] <= error
    return with_error({"quality": cell}) + (", within one standard error of it" if near else "")


def _change_words(evaluation, task):
    """How each variant changes from the length of training to the longest it was judged at, least change first."""
    lengths, trained = evaluation["lengths"], evaluation.get("trained_length")
    start = lengths.index(trained) if trained in lengths else 0
    found = []
    for variant in task["variants"]:
        known = [cell for cell in variant["cells"][start:] if number(cell, "mean") is not None]
        if len(known) < 2 or known[0]["length"] != lengths[start]:
            continue
        first, last = ({"quality": cell} for cell in (known[0], known[-1]))
        change = quality(last) - quality(first)
        clear = resolved(last, first, paired=False)
        doubt = "" if clear else f", within {RESOLVED:g} standard errors" if clear is False else ", without error bar"
        ends = f"{quality(first):.3f} to {quality(last):.3f} at {known[-1]['length']:,}"
        found.append((change, f"{variant['name']} {ends} ({change:+.3f}{doubt})"))
    if not found:
        return ""
    better = "more" if task["metric"]["higher_is_better"] else "less"
    told = "; ".join(words for _, words in sorted(found, key=lambda item: item[0]))
    where = ", the length of training" if lengths[start] == trained else ""
    return f"From {lengths[start]:,}{where}, on ({better} is better): {told}."


def _longest_words(task, lengths):
    """Who is best at the longest length."""
    group = at_length(task, len(lengths) - 1)
    ranked = ranking(group)
    if len(ranked) < 2 or len(lengths) < 2:
        return ""
    ties = [name for name, state in standing(group).items() if state == "tie"]
    text = f"At {lengths[-1]:,} {ranked[0]['name']} has the best {task['metric']['name']}: {with_error(ranked[0])}"
    return text + (f"; at most two standard errors separate {listed(ties)} from it." if ties else ".")


def _baseline_words(task, lengths):
    """Which variants fail to beat the strongest baseline, and at what lengths."""
    weak = {}
    for i, length in enumerate(lengths):
        group = at_length(task, i)
        for variant in not_better_than_baseline(group):
            weak.setdefault((variant["name"], strongest_baseline(group)[0]), []).append(f"{length:,}")
    alike = {}
    for (name, baseline), some in weak.items():
        alike.setdefault((baseline, tuple(some)), []).append(name)
    return "\n".join(
        f"{listed(names)} {'does' if len(names) == 1 else 'do'} not beat the {baseline} baseline at {listed(some)}."
        for (baseline, some), names in alike.items()
    )


def _error_words(task):
    """Why what could not be judged, a line a reason; where other seeds gave a number, that it is but a part."""
    judged = {(v["name"], c["length"]) for v in task["variants"] for c in v["cells"] if number(c, "mean") is not None}
    told = []
    for reason, where in footnotes(task):
        lengths = {}
        for name, length in where:
            part = " (some seeds)" if (name, length) in judged else ""
            lengths.setdefault(name, []).append(f"{length:,}{part}")
        alike = {}
        for name, some in lengths.items():
            alike.setdefault(listed(some), []).append(name)
        places = "; ".join(f"{listed(names)} at {some}" for some, names in alike.items())
        told.append(f"{places}: {reason.rstrip('.')}.")
    return "\n".join(told)
