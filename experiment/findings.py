"""What the numbers of a comparison say, and what they leave open: ranking, Pareto front, sentences in plain words."""

import math
from collections.abc import Mapping

from experiment.wording import unit, wording

# Two variants whose means differ by less than this many standard errors of the difference are called unresolved.
# Two is the usual 95% rule.
RESOLVED = 2.0
# A clock on a shared machine repeats itself to a few per cent: closer speeds than this are called level.
LEVEL = 0.05


def number(record, *path):
    """The finite number at `path` in nested mappings, or None where it is missing, null, NaN or infinite.

    >>> number({"quality": {"mean": 2.5}}, "quality", "mean")
    2.5
    >>> number({"quality": {"mean": None}}, "quality", "mean") is None
    True
    """
    for step in path:
        record = record.get(step) if isinstance(record, Mapping) else None
    return record if isinstance(record, int | float) and math.isfinite(record) else None


def quality(variant):
    """The variant's mean quality, or None where it has none (it diverged)."""
    return number(variant, "quality", "mean")


def metric_words(metric) -> str:
    """A metric in words, without the "validation" that holds for all.

    >>> metric_words({"name": "validation bits per byte", "higher_is_better": False})
    'bits per byte'
    """
    return metric["name"].removeprefix("validation ")


def metric_name(comparison) -> str:
    """A comparison's metric in words."""
    return metric_words(comparison["metric"])


def in_units(comparison, tokens: float) -> float:
    """So many tokens in the comparison's unit.

    >>> in_units({"unit": {"name": "images", "tokens": 784}}, 1568), in_units({}, 1568)
    (2.0, 1568.0)
    """
    return tokens / (number(comparison, "unit", "tokens") or 1)


def pieces(comparison) -> str:
    """What the validation data consist of, in the plural: files, reviews, images, sentences."""
    return (comparison.get("data") or {}).get("pieces", wording(comparison).pieces)


def sign(comparison) -> int:
    """+1 where a higher metric is better, else -1: `sign * quality` always grows with merit."""
    return 1 if comparison["metric"]["higher_is_better"] else -1


def ranking(comparison) -> list[dict]:
    """The variants that have a quality, best first."""
    scored = [variant for variant in comparison["variants"] if quality(variant) is not None]
    return sorted(scored, key=quality, reverse=comparison["metric"]["higher_is_better"])


def resolved(first, second, paired=True) -> bool | None:
    """Whether two qualities differ by more than two standard errors; None where an error bar is missing.

    The error of the difference is the paired one, file by file or seed by seed, where one of the two records it in its
    `differences`. Without it, or with `paired=False`, the two errors count as independent,
    sqrt(e1^2 + e2^2): cautious, because a hard file is hard for both.

    >>> def scored(name, mean, stderr): return {"name": name, "quality": {"mean": mean, "stderr": stderr}}
    >>> near, far = scored("near", 2.55, 0.03), scored("far", 2.60, 0.03)
    >>> resolved(scored("best", 2.50, 0.03), near), resolved(scored("best", 2.50, 0.03), far)
    (False, True)
    >>> resolved(scored("best", 2.50, 0.03), near | {"differences": {"best": {"stderr": 0.01}}})
    True
    """
    error = _paired_error(first, second) if paired else None
    if error is None:
        errors = [number(variant, "quality", "stderr") for variant in (first, second)]
        error = None if None in errors else math.hypot(*errors)
    return None if error is None else abs(quality(first) - quality(second)) > RESOLVED * error


def leads(comparison) -> list[tuple[dict, bool | None]]:
    """(variant, whether the best one's lead over it is resolved) for all but the best, best first.

    Paired errors count only where the best has one to every other: else a close variant could be called resolved and
    one further behind not.
    """
    best, *rest = ranking(comparison)
    paired = all(_paired_error(best, other) is not None for other in rest)
    return [(other, resolved(best, other, paired)) for other in rest]


def pareto_front(comparison) -> list[dict]:
    """The variants that no other one equals or beats in both quality and training speed, fastest first."""
    front = []
    # Equal qualities must meet fastest first, or the slower twin would enter before the faster one rules it out.
    placed = [v for v in ranking(comparison) if number(v, "train_tokens_per_second") is not None]
    placed.sort(key=lambda v: (-sign(comparison) * quality(v), -v["train_tokens_per_second"]))
    for variant in placed:
        if not front or variant["train_tokens_per_second"] > front[-1]["train_tokens_per_second"]:
            front.append(variant)
    return front[::-1]


def strongest_baseline(comparison) -> tuple[str, float] | None:
    """(name, value) of the baseline that is hardest to beat, or None where there is none."""
    known = [(name, number(comparison, "baselines", name)) for name in comparison.get("baselines") or {}]
    known = [(name, value) for name, value in known if value is not None]
    return max(known, key=lambda item: sign(comparison) * item[1], default=None)


def not_better_than_baseline(comparison) -> list[dict]:
    """The scored variants that fail to beat the strongest baseline."""
    baseline = strongest_baseline(comparison)
    if baseline is None:
        return []
    return [v for v in ranking(comparison) if sign(comparison) * (quality(v) - baseline[1]) <= 0]


def failures(comparison) -> list[dict]:
    """The variants that stopped with an error or have no quality."""
    return [v for v in comparison["variants"] if v.get("error") or quality(v) is None]


def findings(comparison) -> list[tuple[str, str]]:
    """The comparison in plain words, as (topic, text) pairs; topics without evidence are left out.

    Topics, in this order: quality, speed, front, baselines, failed. Every sentence follows from numbers in
    `comparison`; differences within two standard errors are said to be unresolved.
    """
    told = {
        "Quality": _quality_words(comparison),
        "Speed": _speed_words(comparison),
        "Pareto front": _front_words(comparison),
        "Baselines": _baseline_words(comparison),
        "Failed": _failure_words(comparison),
    }
    return [(topic, text) for topic, text in told.items() if text]


def with_error(variant) -> str:
    """A quality with its error bar: "2.412 ± 0.018"."""
    error = number(variant, "quality", "stderr")
    return f"{quality(variant):.3f}" + ("" if error is None else f" ± {error:.3f}")


def compact(value) -> str:
    """A number as a person says it: three figures and a suffix.

    >>> [compact(v) for v in (0.0312, 7, 48.26, 999.9, 15300, 2.5e6)]
    ['0.031', '7', '48.3', '1k', '15.3k', '2.5M']
    """
    value = float(f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}")
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def listed(words) -> str:
    """Words in a row: "a", "a and b", "a, b and c"."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _names(variants) -> str:
    return listed(variant["name"] for variant in variants)


def _paired_error(first, second):
    for one, other in ((first, second), (second, first)):
        if (error := number(one, "differences", other["name"], "stderr")) is not None:
            return error
    return None


def _claims(pairs) -> str:
    return listed(f"{winner['name']} over {loser['name']}" for winner, loser in pairs)


def _level(fast, slow) -> bool:
    return slow["train_tokens_per_second"] >= (1 - LEVEL) * fast["train_tokens_per_second"]


def _quality_words(comparison) -> str:
    ranked = ranking(comparison)
    if not ranked:
        return "No variant reached the end of its training, so there is no quality to compare."
    best, verdicts = ranked[0], leads(comparison)
    text = f"{best['name']} reached the best {metric_name(comparison)}: {with_error(best)}."
    if any(verdict is None for _, verdict in verdicts):
        text += " Not every number has an error bar, so small differences should not be trusted."
    if ties := [other for other, verdict in verdicts if verdict is False]:
        other = "it" if len(ties) == 1 else "them"
        text += f" The gap to {_names(ties)} is unresolved: at most two standard errors separate {other} from the best."
    elif verdicts and all(verdict for _, verdict in verdicts):
        runner = ranked[1]
        text += f" Its lead over the next one, {runner['name']} ({quality(runner):.3f}), exceeds two standard errors."
    return text


def _speed_words(comparison) -> str:
    timed = [v for v in ranking(comparison) if number(v, "train_tokens_per_second")]
    timed.sort(key=lambda variant: -variant["train_tokens_per_second"])
    if not timed:
        return ""
    speeds = [variant["train_tokens_per_second"] for variant in timed]
    fastest, slowest = (compact(in_units(comparison, speed)) for speed in (speeds[0], speeds[-1]))
    text = f"{timed[0]['name']} trains fastest, at {fastest} {unit(comparison)} per second"
    level = [variant for variant in timed[1:] if _level(timed[0], variant)]
    if level:
        text += f"; {_names(level)} {'is' if len(level) == 1 else 'are'} level with it (within {LEVEL:.0%})"
    if len(timed) > 1 and timed[-1] not in level:
        text += f"; the slowest, {timed[-1]['name']}, runs at {slowest}, {speeds[-1] / speeds[0]:.0%} of that"
    return text + "."


def _front_words(comparison) -> str:
    front = pareto_front(comparison)
    if len(ranking(comparison)) < 2 or not front:
        return ""
    if len(front) == 1:
        return f"{front[0]['name']} is both the best and the fastest: it is the whole front."
    text = f"From fastest to best: {_names(front)}. Every other variant is beaten on both counts by one of these."
    # A slower member earns its place only by its quality, so the place stands or falls with that difference.
    open_pairs = [(slow, fast) for fast, slow in zip(front, front[1:], strict=False) if not resolved(slow, fast)]
    if len(front) == len(ranking(comparison)):
        text = f"All are on it; from fastest to best: {_names(front)}."
    if open_pairs:
        text += f" The error bars do not resolve the gain in quality of {_claims(open_pairs)}."
    if level := [(fast, slow) for fast, slow in zip(front, front[1:], strict=False) if _level(fast, slow)]:
        text += f" The gain in speed of {_claims(level)} is within {LEVEL:.0%}, the noise of a clock."
    return text


def _baseline_words(comparison) -> str:
    baseline, ranked = strongest_baseline(comparison), ranking(comparison)
    if baseline is None or not ranked:
        return ""
    name, value = baseline
    weak = not_better_than_baseline(comparison)
    if not weak:
        who = "Every scored variant beats" if len(ranked) > 1 else f"{ranked[0]['name']} beats"
        return f"{who} the {name} baseline ({value:.3f} {metric_name(comparison)})."
    verb = "does" if len(weak) == 1 else "do"
    return (
        f"{_names(weak)} {verb} not beat the {name} baseline ({value:.3f} {metric_name(comparison)}), "
        "which needs no network, though it may know what the models must learn: nothing here shows that training "
        "bought anything, whatever the speed."
    )


def _failure_words(comparison) -> str:
    reasons = ((v["name"], v.get("error") or "no quality was recorded") for v in failures(comparison))
    return " ".join(f"{name}: {reason.rstrip('.')}." for name, reason in reasons)
