"""What an evaluation at many lengths says in plain words, drawn from its numbers alone."""

import re
from itertools import combinations, pairwise, takewhile

from scipy.special import ndtri, stdtrit

from experiment.estimate import over_seeds
from experiment.findings import (
    RESOLVED,
    listed,
    number,
    quality,
    ranking,
    resolved,
    sign,
    strongest_baseline,
)
from experiment.table import standing

CONFIDENCE = 0.95  # of every interval
_MOST = 8  # so many variants are named in a sentence


def findings(evaluation, task) -> list[tuple[str, str]]:
    """What a task's numbers say in plain words, as (topic, text); topics without evidence are left out."""
    if task["metric"]["higher_is_better"]:
        told = {"Reach": _reach_words(evaluation, task), "Longest": _longest_words(task)}
    else:
        told = {"Beyond training": _change_words(evaluation, task), "Order": _order_words(task)}
    told = {"Not trained": "" if task["trained"] else f"This run was {elsewhere(task)}."} | told
    told |= {"Baselines": _baseline_words(task), "Not judged": "\n".join(error_lines(task))}
    return [(topic, text) for topic, text in told.items() if text]


def elsewhere(task) -> str:
    """What is said of a task that the run was not trained on."""
    return f"not trained on {task['name']}: what it learned elsewhere"


def interval(metric, cell) -> tuple[float, float] | None:
    """The 95% confidence interval of a mean, None where it has no error bar.

        mean ± q * standard error

    Over n seeds q is the quantile of Student's t with n - 1 degrees of freedom, over the examples of a single seed that
    of the normal law. A metric of which more is better is a share, such as accuracy: its interval ends at 0 and 1.

    Args:
      metric: of the task.
      cell: {"mean", "stderr", "stderr_over": "seeds" or "examples", "values": one a seed}.

    >>> bits, cell = {"higher_is_better": False}, {"mean": 3.0, "stderr": 0.1, "values": [2.8, 3.1, 3.1]}
    >>> low, high = interval(bits, cell | {"stderr_over": "seeds"})
    >>> f"[{low:.3f}, {high:.3f}]"
    '[2.570, 3.430]'
    >>> low, high = interval(bits, cell | {"stderr_over": "examples"})
    >>> f"[{low:.3f}, {high:.3f}]"
    '[2.804, 3.196]'
    """
    mean, error = number(cell, "mean"), number(cell, "stderr")
    if mean is None or error is None:
        return None
    tail = (1 + CONFIDENCE) / 2
    quantile = stdtrit(len(cell["values"]) - 1, tail) if cell["stderr_over"] == "seeds" else ndtri(tail)
    low, high = float(mean - quantile * error), float(mean + quantile * error)
    return (max(low, 0.0), min(high, 1.0)) if metric["higher_is_better"] else (low, high)


def with_interval(metric, cell) -> str:
    """A mean with its confidence interval: "2.412 [2.377, 2.447]"."""
    return " ".join([f"{cell['mean']:.3f}", interval_text(metric, cell)]).rstrip()


def interval_text(metric, cell) -> str:
    """The confidence interval in brackets, nothing where there is none."""
    ends = interval(metric, cell)
    return "" if ends is None else f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def interval_words(task) -> str:
    """What the intervals of a task are, in one sentence."""
    cells = [cell for variant in task["variants"] for cell in variant["cells"] if number(cell, "stderr") is not None]
    laws = {"seeds": "by Student's t over seeds", "examples": "by the normal law over the examples of a single seed"}
    over = [laws[name] for name in laws if any(cell["stderr_over"] == name for cell in cells)]
    if not over:
        return "No intervals: one seed, one example."
    ends = ", cut off at 0 and 1" if task["metric"]["higher_is_better"] else ""
    return f"Intervals are {CONFIDENCE:.0%} confidence intervals of the mean, {', else '.join(over)}{ends}."


def at_length(task, i) -> dict:
    """The variants at the i-th length asked as a comparison, as far as `experiment.findings` reads it.

    Variants judged with the same seeds, all of them, have their difference's error over these: `differences`.
    """
    variants = [{"name": v["name"], "quality": v["cells"][i], "differences": {}} for v in task["variants"]]
    for one, other in combinations(variants, 2):
        if (error := _paired_error(one["quality"], other["quality"])) is not None:
            one["differences"][other["name"]] = {"stderr": error}
    baselines = {name: values[i] for name, values in task["baselines"].items()}
    return {"metric": task["metric"], "baselines": baselines, "variants": variants}


def marks(task, i) -> dict[str, str]:
    """name -> "best", "tie", "weak", "failed" or "" at the i-th length asked, as `experiment.table.standing`.

    Here also those are weak whose lead over the strongest baseline is not resolved.
    """
    group = at_length(task, i)
    return standing(group) | dict.fromkeys(_weak(group), "weak")


def footnotes(task) -> list[tuple[str, list[tuple[str, int]]]]:
    """(what went wrong, [(variant, length)]): reasons that differ in numbers alone, such as the length, are one."""
    found = {}
    for variant in task["variants"]:
        for cell in variant["cells"]:
            if cell.get("error"):
                kind = re.sub(r"\d+", "", cell["error"])
                found.setdefault(kind, (cell["error"], []))[1].append((variant["name"], cell["length"]))
    return list(found.values())


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


def error_lines(task) -> list[str]:
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
        everyone = len(task["variants"])
        places = "; ".join(
            f"{_names(names) if len(names) < everyone or everyone == 1 else 'all'} at {some}"
            for some, names in alike.items()
        )
        told.append(f"{places}: {reason.rstrip('.')}.")
    return told


def _names(names):
    """The first of many names, and how many more."""
    return listed(names if len(names) <= _MOST else [*names[:_MOST], f"{len(names) - _MOST} more"])


def _paired_error(one, other):
    """The standard error of a difference, seed by seed; None where one lacks a seed, or there is but one."""
    if one["error"] or other["error"] or not len(one["values"]) == len(other["values"]) > 1:
        return None
    return over_seeds([a - b for a, b in zip(one["values"], other["values"], strict=True)])[1]


def _weak(group):
    """Names of the scored variants that do not beat the strongest baseline by two standard errors, if they have any."""
    baseline = strongest_baseline(group)
    if baseline is None:
        return []
    ahead = lambda variant: sign(group) * (quality(variant) - baseline[1])  # noqa: E731
    return [v["name"] for v in ranking(group) if ahead(v) <= RESOLVED * (number(v, "quality", "stderr") or 0)]


def _reach_words(evaluation, task):
    """Up to where each variant reaches the threshold, and what stopped it there; alike variants in one sentence."""
    alike = {}
    for variant in task["variants"]:
        reached = variant["effective_length"]
        after = [c for c in variant["cells"] if c["length"] in task["lengths"] and c["length"] > (reached or 0)]
        unknown = [c["length"] for c in takewhile(lambda cell: number(cell, "mean") is None, after)]
        following = after[len(unknown)] if len(unknown) < len(after) else None
        solved = following is not None and following["mean"] >= task["threshold"]
        kind = reached, tuple(unknown), following and following["length"], solved
        alike.setdefault(kind, []).append((variant["name"], following))
    order = sorted(alike, key=lambda kind: (-(kind[0] or 0), kind[1])) if task["lengths"] else []
    return "\n".join(_reach_sentence(evaluation, task, *kind, alike[kind]) for kind in order)


def _reach_sentence(evaluation, task, reached, unknown, following, solved, variants):
    """How far variants reach, lengths right after that without a number, and how they do at the next one with one."""
    threshold, one = f"{task['threshold']:g}", len(variants) == 1
    names, unknown = _names([name for name, _ in variants]), listed(f"{length:,}" for length in unknown)
    if following is not None:
        at = f"at {following:,} ({_scores(task, [cell for _, cell in variants])})"
        found = f"{'is' if one else 'are'} {f'at {threshold} or above' if solved else f'below {threshold}'}"
    if reached is None:
        if following is None:
            return f"{names} could not be judged at any length."
        return f"{names} {f'could not be judged at {unknown}, and {found}' if unknown else f'{found} already'} {at}."
    text = f"{names} {'stays' if one else 'stay'} at {threshold} or above up to {reached:,}"
    if times := times_trained(evaluation, reached):
        text += f", {times}"
    if unknown:
        text += f"; {unknown} could not be judged"
        return f"{text}." if following is None else f"{text}, and {'it' if one else 'they'} {found} {at}."
    if following is None:
        return f"{text}; nothing longer {'was' if reached == task['asked'][-1] else 'could be'} asked."
    return f"{text}, and {'falls' if one else 'fall'} below {at}."


def _scores(task, cells):
    """Scores beside the threshold, and whose intervals cannot tell them from it; of many the ends alone."""
    if len(cells) <= _MOST:
        return listed(_score(task, cell) for cell in cells)
    means = [cell["mean"] for cell in cells]
    return f"{min(means):.3f} to {max(means):.3f}"


def _score(task, cell):
    low, high = interval(task["metric"], cell) or (cell["mean"], cell["mean"])
    near = f", which holds {task['threshold']:g}" if low <= task["threshold"] <= high != low else ""
    return with_interval(task["metric"], cell) + near


def _change_words(evaluation, task):
    """How each variant changes from the length of training to the longest it was judged at, least change first."""
    metric, lengths, trained = task["metric"], task["lengths"], evaluation.get("trained_length")
    start = trained if trained in lengths else min(lengths, default=0)
    found = []
    for variant in task["variants"]:
        known = [cell for cell in variant["cells"] if cell["length"] >= start and number(cell, "mean") is not None]
        if len(known) < 2 or known[0]["length"] != start:
            continue
        first, last = known[0], known[-1]
        change, error = last["mean"] - first["mean"], _paired_error(last, first)
        ends = {"name": "last", "quality": last, "differences": {"first": {"stderr": error}}}
        clear = resolved(ends, {"name": "first", "quality": first})
        doubt = "" if clear else f", within {RESOLVED:g} standard errors" if clear is False else ", without error bar"
        told = f"{with_interval(metric, first)} to {with_interval(metric, last)} at {last['length']:,}"
        found.append((change, f"{variant['name']} {told} ({change:+.3f}{doubt})"))
    if not found:
        return ""
    found.sort(key=lambda item: item[0])
    told = "; ".join(words for _, words in found[:_MOST])
    told += f"; {len(found) - _MOST} more, up to {found[-1][0]:+.3f}" if len(found) > _MOST else ""
    where = ", the length of training" if start == trained else ""
    return f"From {start:,}{where}, on (less is better): {told}."


def _order_words(task):
    """The order of the variants at each length, best first, and which steps of it are resolved."""
    ranked = {length: ranking(at_length(task, i)) for i, length in enumerate(task["asked"])}
    ranked = {length: variants for length, variants in ranked.items() if len(variants) > 1}
    if not ranked:
        return ""
    paired = all(_are_paired(*pair) for variants in ranked.values() for pair in pairwise(variants))
    chains = {}
    for length, variants in ranked.items():
        chain = variants[0]["name"]
        for one, other in pairwise(variants[:_MOST]):
            chain += f" {'<' if resolved(one, other, paired) else '≈'} {other['name']}"
        chain += f", and {len(variants) - _MOST} more" if len(variants) > _MOST else ""
        chains.setdefault(chain, []).append(f"{length:,}")
    told = [f"At {listed(lengths)}: {chain}." for chain, lengths in chains.items()]
    how = "paired by seed" if paired else "the two taken as independent"
    signs = f"< is a difference of more than two standard errors, {how}; ≈ is one that is not resolved."
    return "\n".join([*told, signs])


def _are_paired(one, other):
    return other["name"] in one["differences"] or one["name"] in other["differences"]


def _longest_words(task):
    """Who is best at the longest length, if it beats the strongest baseline."""
    if len(task["lengths"]) < 2:
        return ""
    longest = task["lengths"][-1]
    group = at_length(task, task["asked"].index(longest))
    ranked, weak = ranking(group), _weak(group)
    if len(ranked) < 2:
        return ""
    text = f"At {longest:,} {ranked[0]['name']} has the best {task['metric']['name']}: "
    text += with_interval(task["metric"], ranked[0]["quality"])
    if ranked[0]["name"] in weak:
        return f"{text}, which does not beat the {strongest_baseline(group)[0]} baseline by two standard errors."
    ties = [name for name, state in standing(group).items() if state == "tie"]
    return text + (f"; at most two standard errors separate {_names(ties)} from it." if ties else ".")


def _baseline_words(task):
    """Which variants fail to beat the strongest baseline, and at what lengths."""
    weak = {}
    for i, length in enumerate(task["asked"]):
        group = at_length(task, i)
        for name in _weak(group):
            weak.setdefault((name, strongest_baseline(group)[0]), []).append(f"{length:,}")
    alike = {}
    for (name, baseline), some in weak.items():
        alike.setdefault((baseline, tuple(some)), []).append(name)
    return "\n".join(
        f"{_names(names)} {'does' if len(names) == 1 else 'do'} not beat the {baseline} baseline "
        f"by two standard errors at {listed(some)}."
        for (baseline, some), names in alike.items()
    )
