"""What an evaluation at many lengths says: intervals, sentences and marks follow from the numbers."""

import statistics

import pytest
import scipy.stats

from experiment.evaluation_findings import at_length, findings, footnotes, interval, interval_words, marks

LENGTHS = [128, 256, 512]
DEPTHS = ("0–50 %", "50–100 %")
TOO_LONG = "T = {} is beyond the <256> learned positions"
ACCURACY = {"name": "accuracy", "higher_is_better": True}
BITS = {"name": "bits per byte", "higher_is_better": False}
ASKED = {"lengths": LENGTHS, "asked": LENGTHS, "threshold": 0.85, "examples": 64, "trained": True}


def cell(length, mean, stderr=0.01, error=None, positions=None, depths=True):
    groups = [{"label": label, "mean": mean, "stderr": stderr, "size": 8} for label in DEPTHS]
    return {
        "length": length,
        "mean": mean,
        "stderr": stderr if mean is not None else None,
        "stderr_over": "examples",
        "values": [] if mean is None else [mean],
        "error": error,
        "examples": 64,
        "seconds": 1.0,
        "groups": {"depth": groups} if depths and mean is not None else {},
        "positions": positions,
    }


def seeded(length, *values, error=None):
    """A cell judged with several seeds."""
    stderr = statistics.stdev(values) / len(values) ** 0.5
    return cell(length, statistics.mean(values), stderr, error) | {"stderr_over": "seeds", "values": list(values)}


def at_one_length(*variants, metric=BITS, baselines=None):
    """A task of one length, from (name, cell)."""
    variants = [variant(name, None, each) for name, each in variants]
    only = {"lengths": [64], "asked": [64], "variants": variants, "baselines": baselines or {}}
    return needles() | {"metric": metric} | only


def variant(name, reached, *cells):
    return {"name": name, "effective_length": reached, "cells": list(cells)}


def needles():
    failed = [cell(512, None, error=TOO_LONG.format(512))]
    variants = [
        variant("full", 512, cell(128, 0.99), cell(256, 0.98), cell(512, 0.97)),
        variant("<window>", 256, cell(128, 0.985), cell(256, 0.90), cell(512, 0.41)),
        variant("learned", 256, cell(128, 0.95), cell(256, 0.93), *failed),
        variant("linear", None, cell(128, 0.10), cell(256, 0.11, error="training failed: NaN"), cell(512, 0.12)),
    ]
    variants[0]["cells"][0]["groups"]["depth"][1] |= {"mean": None, "stderr": None, "size": 0}
    baselines = {"chance & co": [0.125, 0.125, None]}
    told = ASKED | {"command": "python eval.py --tasks=passkey", "baselines": baselines, "variants": variants}
    return {"name": "passkey", "metric": ACCURACY} | told


def text_task():
    def losses(name, *means):
        edges = {128: [0, 1, 64, 128], 256: [0, 1, 64, 128, 256], 512: [0, 1, 64, 128, 256, 512]}
        return variant(name, None, *(
            cell(length, mean, 0.05, depths=False, positions={
                "edges": edges[length], "mean": [4.0] + [mean] * (len(edges[length]) - 3) + [None],
                "stderr": [0.1] * (len(edges[length]) - 2) + [None],
            })
            for length, mean in zip(LENGTHS, means, strict=True)
        ))  # fmt: skip

    variants = [losses("alibi", 2.75, 2.70, 2.71), losses("sinusoidal", 3.0, 2.9, 4.5)]
    baselines = {"uniform": [8.0] * 3, "bigram": [3.6] * 3}
    told = ASKED | {"command": "python eval.py --tasks=passkey", "baselines": baselines, "variants": variants}
    return {"name": "extrapolation", "metric": BITS} | told


def evaluation(*tasks, **other):
    return {
        "workdir": "runs/<mine>",
        "command": "python eval.py --workdir=runs/<mine> --lengths=128,256,512",
        "date": "2026-11-29",
        "device": "a small CPU, 2 cores",
        "versions": {"jax": "0.10.2"},
        "trained_length": 256,
        "tasks": list(tasks) or [needles(), text_task()],
    } | other


class TestIntervals:
    def test_students_t_over_seeds(self):
        values = [2.81, 3.1, 2.95]
        wanted = scipy.stats.t.interval(0.95, 2, statistics.mean(values), scipy.stats.sem(values))
        assert interval(BITS, seeded(64, *values)) == pytest.approx(wanted)

    def test_normal_over_the_examples_of_one_seed(self):
        assert interval(BITS, cell(64, 3.0, 0.1)) == pytest.approx(scipy.stats.norm.interval(0.95, 3.0, 0.1))

    def test_a_share_ends_at_0_and_1(self):
        assert interval(ACCURACY, seeded(64, 0.9, 0.99)) == pytest.approx((0.945 - 12.7062 * 0.045, 1), abs=1e-4)
        assert interval(ACCURACY, cell(64, 0.01, 0.01))[0] == 0
        assert interval(BITS, cell(64, 0.01, 0.01))[0] < 0 and interval(BITS, seeded(64, 0.9, 0.99))[1] > 1

    def test_none_without_an_error_bar(self):
        assert interval(BITS, cell(64, 3.0, None)) is None and interval(BITS, cell(64, None)) is None

    def test_they_are_told_in_one_sentence(self):
        by_seeds = at_one_length(("a", seeded(64, 2.8, 2.9)))
        assert (
            interval_words(by_seeds) == "Intervals are 95% confidence intervals of the mean, by Student's t over seeds."
        )
        both = at_one_length(("a", seeded(64, 0.8, 0.9)), ("b", cell(64, 0.5)), metric=ACCURACY)
        assert interval_words(both).endswith(
            "by Student's t over seeds, else by the normal law over the examples of a single seed, cut off at 0 and 1."
        )
        assert interval_words(at_one_length(("a", cell(64, 2.8, None)))) == "No intervals: one seed, one example."


class TestWords:
    def reach(self, *cells, reached=None, lengths=LENGTHS):
        task = needles() | {"variants": [variant("full", reached, *cells)], "baselines": {}, "lengths": lengths}
        return dict(findings(evaluation(task), task))["Reach"]

    def reach_of_all(self, cells):
        variants = [variant(name, None, each) for name, each in cells.items()]
        task = needles() | {"variants": variants, "baselines": {}, "lengths": [128], "asked": [128]}
        return dict(findings(evaluation(task), task))["Reach"]

    def test_how_far_each_reaches_and_what_stops_it(self):
        words = dict(findings(evaluation(), needles()))
        assert words["Reach"].splitlines() == [
            "full stays at 0.85 or above up to 512, 2 times the length of training; nothing longer was asked.",
            "<window> stays at 0.85 or above up to 256, the length of training, and falls below at 512 "
            "(0.410 [0.390, 0.430]).",
            "learned stays at 0.85 or above up to 256, the length of training; 512 could not be judged.",
            "linear is below 0.85 already at 128 (0.100 [0.080, 0.120]).",
        ]

    def test_alike_variants_share_a_sentence(self):
        task = needles()
        task["variants"].append(variant("twin", None, cell(128, 0.2), cell(256, 0.2), cell(512, 0.2)))
        words = dict(findings(evaluation(), task))["Reach"]
        assert "linear and twin are below 0.85 already at 128 (0.100 [0.080, 0.120] and 0.200 [0.180, 0.220])." in words

    def test_a_score_that_its_interval_cannot_tell_from_the_threshold(self):
        task = needles()
        task["variants"][1]["cells"][2] = cell(512, 0.84, 0.02)
        assert "(0.840 [0.801, 0.879], which holds 0.85)" in dict(findings(evaluation(), task))["Reach"]

    def test_each_task_has_its_own_threshold(self):
        words = dict(findings(evaluation(), needles() | {"threshold": 0.5}))["Reach"]
        assert "linear is below 0.5 already at 128" in words and "0.85" not in words

    def test_nothing_judged(self):
        task = needles() | {"variants": [variant("full", None, *(cell(n, None, error="no") for n in LENGTHS))]}
        words = dict(findings(evaluation(), task))
        assert words["Reach"] == "full could not be judged at any length."
        assert words["Not judged"] == "full at 128, 256 and 512: no."
        assert set(words) == {"Reach", "Not judged"}

    def test_what_could_not_be_judged_hides_nothing_longer(self):
        gap = cell(256, None, error="no room")
        assert self.reach(cell(128, 0.9), gap, cell(512, 0.2), reached=128) == (
            "full stays at 0.85 or above up to 128, 0.5 times the length of training; 256 could not be judged, "
            "and it is below 0.85 at 512 (0.200 [0.180, 0.220])."
        )
        assert "and it is at 0.85 or above at 512" in self.reach(cell(128, 0.9), gap, cell(512, 0.9), reached=128)
        assert self.reach(cell(128, None, error="no room"), gap, cell(512, 0.2)) == (
            "full could not be judged at 128 and 256, and is below 0.85 at 512 (0.200 [0.180, 0.220])."
        )

    def test_a_length_that_the_task_lacks_is_no_failure_and_hides_none(self):
        lacks = cell(128, None, error="too short")
        assert self.reach(lacks, cell(256, 0.1), cell(512, 0.1), lengths=[256, 512]) == (
            "full is below 0.85 already at 256 (0.100 [0.080, 0.120])."
        )
        between = self.reach(
            cell(128, 0.9), cell(256, None, error="odd"), cell(512, 0.2), reached=128, lengths=[128, 512]
        )
        assert between.endswith(", and falls below at 512 (0.200 [0.180, 0.220]).")
        longest = self.reach(
            cell(128, 0.9), cell(256, 0.9), cell(512, None, error="long"), reached=256, lengths=[128, 256]
        )
        assert longest.endswith("up to 256, the length of training; nothing longer could be asked.")
        task = needles() | {"lengths": [], "variants": [variant("full", None, lacks, lacks, lacks)]}
        assert "Reach" not in dict(findings(evaluation(task), task))

    def test_what_stops_all_is_told_once(self):
        task = needles()
        for each in task["variants"]:
            each["cells"][0] = cell(128, None, error="too short")
        assert "all at 128: too short." in dict(findings(evaluation(), task))["Not judged"].splitlines()

    def test_a_task_that_the_run_was_not_trained_on(self):
        assert findings(evaluation(), needles() | {"trained": False})[0] == (
            "Not trained",
            "This run was not trained on passkey: what it learned elsewhere.",
        )
        assert "Not trained" not in dict(findings(evaluation(), needles()))

    def test_baselines_and_errors(self):
        words = dict(findings(evaluation(), needles()))
        assert (
            words["Baselines"] == "linear does not beat the chance & co baseline by two standard errors at 128 and 256."
        )
        assert words["Not judged"].splitlines() == [
            "learned at 512: T = 512 is beyond the <256> learned positions.",
            "linear at 256 (some seeds): training failed: NaN.",
        ]

    def test_the_best_at_the_longest_length_and_its_ties(self):
        task = needles()
        assert (
            dict(findings(evaluation(), task))["Longest"] == "At 512 full has the best accuracy: 0.970 [0.950, 0.990]."
        )
        task["variants"][1]["cells"][2] = cell(512, 0.96)
        assert dict(findings(evaluation(), task))["Longest"].endswith(
            "at most two standard errors separate <window> from it."
        )

    def test_the_best_that_does_not_beat_a_baseline_is_no_achievement(self):
        assert dict(findings(evaluation(), needles() | {"baselines": {"guess": [0.1, 0.1, 0.96]}}))["Longest"] == (
            "At 512 full has the best accuracy: 0.970 [0.950, 0.990], which does not beat the guess baseline by two "
            "standard errors."
        )

    def test_change_beyond_training_where_less_is_better(self):
        words = dict(findings(evaluation(), text_task()))
        assert "Reach" not in words and "Longest" not in words
        assert words["Beyond training"] == (
            "From 256, the length of training, on (less is better): alibi 2.700 [2.602, 2.798] to 2.710 [2.612, 2.808] at "
            "512 (+0.010, within 2 standard errors); sinusoidal 2.900 [2.802, 2.998] to 4.500 [4.402, 4.598] at 512 (+1.600)."
        )
        assert words["Baselines"] == "sinusoidal does not beat the bigram baseline by two standard errors at 512."

    def test_change_is_paired_by_seed(self):
        """All seeds lose alike, though they lie far apart."""
        cells = seeded(128, 2.0, 3.0), seeded(256, 2.0, 3.0), seeded(512, 2.11, 3.1)
        task = text_task() | {"variants": [variant("alibi", None, *cells)]}
        assert dict(findings(evaluation(), task))["Beyond training"].endswith("(+0.105).")

    def test_order_and_which_steps_of_it_are_resolved(self):
        assert dict(findings(evaluation(), text_task()))["Order"].splitlines() == [
            "At 128, 256 and 512: alibi < sinusoidal.",
            "< is a difference of more than two standard errors, the two taken as independent; ≈ is one that is not resolved.",
        ]

    def test_order_is_paired_by_seed(self):
        spread = [("rope", seeded(64, 2.6, 3.2)), ("t5", seeded(64, 2.5, 3.34)), ("alibi", seeded(64, 2.3, 2.92))]
        task = at_one_length(*spread)
        lines = dict(findings(evaluation(), task))["Order"].splitlines()
        assert lines[0] == "At 64: alibi < rope ≈ t5." and "paired by seed" in lines[1]
        task["variants"][1]["cells"][0]["error"] = "training failed: NaN"  # whose seeds are these two?
        lines = dict(findings(evaluation(), task))["Order"].splitlines()
        assert lines[0] == "At 64: alibi ≈ rope ≈ t5." and "taken as independent" in lines[1]

    def test_of_many_only_some_are_named(self):
        names = [f"v{i:02}" for i in range(30)]
        first = " < ".join(names[:8])
        task = at_one_length(*((name, cell(64, 2.0 + i)) for i, name in enumerate(names)))
        assert dict(findings(evaluation(), task))["Order"].startswith(f"At 64: {first}, and 22 more.")
        cells = [(cell(128, 2.0), cell(256, 2.0), cell(512, 2.0 + i)) for i in range(30)]
        task = text_task() | {"variants": [variant(name, None, *some) for name, some in zip(names, cells, strict=True)]}
        assert dict(findings(evaluation(), task))["Beyond training"].endswith("; 22 more, up to +29.000.")
        words = self.reach_of_all({name: cell(128, 0.1 + i / 100) for i, name in enumerate(names)})
        assert words == f"{', '.join(names[:8])} and 22 more are below 0.85 already at 128 (0.100 to 0.390)."

    def test_reasons_that_differ_in_numbers_alone_are_one(self):
        task = needles()
        task["variants"][2]["cells"][1] = cell(256, None, error=TOO_LONG.format(256))
        assert footnotes(task)[0] == (TOO_LONG.format(256), [("learned", 256), ("learned", 512)])

    def test_one_length_is_a_comparison(self):
        group = at_length(needles(), 2)
        assert group["baselines"] == {"chance & co": None}
        assert [v["quality"]["mean"] for v in group["variants"]] == [0.97, 0.41, None, 0.12]

    def test_differences_are_over_the_seeds_that_two_share(self):
        first = [("a", seeded(64, 0.5, 0.7, 0.9)), ("b", seeded(64, 0.4, 0.5, 0.9)), ("c", seeded(64, 0.4, 0.5))]
        group = at_length(at_one_length(*first, ("d", cell(64, 0.5)), ("e", cell(64, None)), ("f", cell(64, None))), 0)
        wanted = statistics.stdev([0.1, 0.2, 0.0]) / 3**0.5
        assert group["variants"][0]["differences"] == {"b": {"stderr": pytest.approx(wanted)}}
        assert not any(each["differences"] for each in group["variants"][1:])


class TestMarks:
    def test_nothing_is_best_that_does_not_beat_the_strongest_baseline(self):
        cells = [("high", cell(64, 0.14, 0.02)), ("sure", cell(64, 0.13, 0.001)), ("none", cell(64, None, error="no"))]
        task = at_one_length(*cells, metric=ACCURACY, baselines={"weak": [0.01], "guess": [0.12]})
        assert marks(task, 0) == {"high": "weak", "sure": "tie", "none": "failed"}
        assert marks(task | {"baselines": {"guess": [0.09]}}, 0)["high"] == "best"
        assert marks(task | {"baselines": {}}, 0)["high"] == "best"

    def test_less_is_better(self):
        task = at_one_length(("low", cell(64, 3.0, 0.1)), ("high", cell(64, 3.5, 0.1)), baselines={"bigram": [3.6]})
        assert marks(task, 0) == {"low": "best", "high": "weak"}

    def test_without_error_bars_the_means_decide(self):
        """As where one seed was judged on a single file."""
        task = at_one_length(("a", cell(64, 3.0, None)), ("b", cell(64, 4.0, None)), baselines={"bigram": [3.6]})
        assert marks(task, 0) == {"a": "best", "b": "weak"}
