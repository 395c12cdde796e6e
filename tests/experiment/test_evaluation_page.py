"""The page of an evaluation at many lengths: its words follow from the numbers, its tables and charts hold them."""

import copy
import math
import re

import pytest
from test_report import Page

from experiment import evaluation_figures as figures
from experiment.evaluation_findings import at_length, findings, footnotes
from experiment.evaluation_page import write_page

LENGTHS = [128, 256, 512]
DEPTHS = ("0–50 %", "50–100 %")
TOO_LONG = "T = {} is beyond the <256> learned positions"
ACCURACY = {"name": "accuracy", "higher_is_better": True}


def cell(length, mean, stderr=0.01, error=None, positions=None, depths=True):
    groups = [{"label": label, "mean": mean, "stderr": stderr, "size": 8} for label in DEPTHS]
    return {
        "length": length,
        "mean": mean,
        "stderr": stderr if mean is not None else None,
        "stderr_over": "seeds",
        "values": [] if mean is None else [mean] * 3,
        "error": error,
        "examples": 64,
        "seconds": 1.0,
        "groups": {"depth": groups} if depths and mean is not None else {},
        "positions": positions,
    }


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
    return {"name": "passkey", "metric": ACCURACY, "baselines": baselines, "variants": variants}


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
    metric = {"name": "bits per byte", "higher_is_better": False}
    baselines = {"uniform": [8.0] * 3, "bigram": [3.6] * 3}
    return {"name": "extrapolation", "metric": metric, "baselines": baselines, "variants": variants}


def evaluation(*tasks, **other):
    return {
        "workdir": "runs/<mine>",
        "command": "python eval.py --workdir=runs/<mine> --lengths=128,256,512",
        "date": "2026-11-29",
        "device": "a small CPU, 2 cores",
        "versions": {"jax": "0.10.2"},
        "threshold": 0.85,
        "trained_length": 256,
        "examples": 64,
        "lengths": LENGTHS,
        "tasks": list(tasks) or [needles(), text_task()],
    } | other


def shown(html):
    return " ".join(" ".join(Page(html).text).split())


def render(folder, *tasks, **other):
    return write_page(folder, evaluation(*tasks, **other)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return folder, render(folder)


class TestWords:
    def test_how_far_each_reaches_and_what_stops_it(self):
        words = dict(findings(evaluation(), needles()))
        assert words["Reach"].splitlines() == [
            "full stays at 0.85 or above up to 512, 2 times the length of training; nothing longer was asked.",
            "<window> stays at 0.85 or above up to 256, the length of training, and falls below at 512 (0.410 ± 0.010).",
            "learned stays at 0.85 or above up to 256, the length of training; 512 could not be judged.",
            "linear is below 0.85 already at 128 (0.100 ± 0.010).",
        ]

    def test_alike_variants_share_a_sentence(self):
        task = needles()
        task["variants"].append(variant("twin", None, cell(128, 0.2), cell(256, 0.2), cell(512, 0.2)))
        words = dict(findings(evaluation(), task))["Reach"]
        assert "linear and twin are below 0.85 already at 128 (0.100 ± 0.010 and 0.200 ± 0.010)." in words

    def test_a_score_that_its_error_bar_cannot_tell_from_the_threshold(self):
        task = needles()
        task["variants"][1]["cells"][2] = cell(512, 0.84, 0.02)
        assert "(0.840 ± 0.020, within one standard error of it)" in dict(findings(evaluation(), task))["Reach"]

    def test_nothing_judged_at_the_shortest_length(self):
        task = needles() | {"variants": [variant("full", None, *(cell(n, None, error="no") for n in LENGTHS))]}
        words = dict(findings(evaluation(), task))
        assert words["Reach"] == "full could not be judged at 128, the shortest length."
        assert words["Not judged"] == "full at 128, 256 and 512: no."
        assert set(words) == {"Reach", "Not judged"}

    def test_a_length_that_the_task_lacks_is_no_failure_and_hides_none(self):
        none = [cell(128, None, error="too short")]
        some = (
            variant("full", 256, *none, cell(256, 0.99), cell(512, 0.2)),
            variant("low", None, *none, cell(256, 0.1), cell(512, 0.1)),
        )
        task = needles() | {"lengths": [256, 512], "variants": list(some), "baselines": {}}
        reach = dict(findings(evaluation(task), task))["Reach"].splitlines()
        assert reach[0].startswith("full stays at 0.85 or above up to 256") and "falls below at 512 (0.200" in reach[0]
        assert reach[1] == "low is below 0.85 already at 256 (0.100 ± 0.010)."
        task = needles() | {"lengths": [], "variants": [variant("full", None, *none * 3)]}
        assert "Reach" not in dict(findings(evaluation(task), task))

    def test_baselines_and_errors(self):
        words = dict(findings(evaluation(), needles()))
        assert words["Baselines"] == "linear does not beat the chance & co baseline at 128 and 256."
        assert words["Not judged"].splitlines() == [
            "learned at 512: T = 512 is beyond the <256> learned positions.",
            "linear at 256 (some seeds): training failed: NaN.",
        ]

    def test_the_best_at_the_longest_length_and_its_ties(self):
        task = needles()
        assert dict(findings(evaluation(), task))["Longest"] == "At 512 full has the best accuracy: 0.970 ± 0.010."
        task["variants"][1]["cells"][2] = cell(512, 0.96)
        assert dict(findings(evaluation(), task))["Longest"].endswith(
            "at most two standard errors separate <window> from it."
        )

    def test_change_beyond_training_where_less_is_better(self):
        words = dict(findings(evaluation(), text_task()))
        assert "Reach" not in words
        assert words["Beyond training"] == (
            "From 256, the length of training, on (less is better): alibi 2.700 to 2.710 at 512 (+0.010, within 2 standard "
            "errors); sinusoidal 2.900 to 4.500 at 512 (+1.600)."
        )
        assert words["Baselines"] == "sinusoidal does not beat the bigram baseline at 512."

    def test_reasons_that_differ_in_numbers_alone_are_one(self):
        task = needles()
        task["variants"][2]["cells"][1] = cell(256, None, error=TOO_LONG.format(256))
        assert footnotes(task)[0] == (TOO_LONG.format(256), [("learned", 256), ("learned", 512)])

    def test_one_length_is_a_comparison(self):
        group = at_length(needles(), 2)
        assert group["baselines"] == {"chance & co": None}
        assert [v["quality"]["mean"] for v in group["variants"]] == [0.97, 0.41, None, 0.12]


class TestPage:
    def test_stands_alone(self, page):
        html = Page(page[1])
        assert len(html.ids) == len(set(html.ids))
        assert all(ref.startswith(("#", "data:")) for ref in html.references)
        assert {ref[1:] for ref in html.references if ref[0] == "#"} <= set(html.ids)

    def test_writes_its_figures(self, page):
        names = {path.name for path in (page[0] / "figures").iterdir()}
        assert names == {
            "evaluation_passkey_length.png", "evaluation_passkey_depth.png",
            "evaluation_extrapolation_length.png", "evaluation_extrapolation_positions.png",
        }  # fmt: skip

    def test_labels_are_escaped(self, page):
        assert not re.search(r"<window>|<mine>|<256>|chance & co", page[1])
        assert "<window>" in shown(page[1]) and "chance & co" in shown(page[1])

    def test_table_holds_every_number(self, page):
        first = page[1][page[1].index('aria-label="passkey over length"') :]
        table = re.sub(r"<[^>]*>", " ", first[: first.index("</table>")])
        for v in needles()["variants"]:
            for c in v["cells"]:
                assert c["mean"] is None or (f"{c['mean']:.3f}" in table and "± 0.010" in table)
        assert "–" in table and "≥ 512" in table and "none" in table and "0.125" in table

    def test_a_cell_without_a_number_points_to_its_reason(self, page):
        assert '<td data-value="">–<sup>1</sup></td>' in page[1]
        assert "0.110</span><sup>2</sup>" in page[1]
        assert f"<li>{TOO_LONG.format(512)}</li>".replace("<256>", "&lt;256&gt;") in page[1]

    def test_pictures_are_told_in_words(self, page):
        told = re.findall(r'role="img" aria-label="([^"]*)"', page[1])
        assert len(told) == 1 + 4 + 1 + 3  # chart, heat maps; chart, positions of each length
        assert any("learned: 0.950 ± 0.010 at 128, 0.930 ± 0.010 at 256, not judged at 512" in text for text in told)
        assert any("50–100 %: no needle at 128, 0.98 at 256, 0.97 at 512" in text for text in told)
        assert any("alibi: 4.00 at 1 to 1, 2.71 at 2 to 64" in text for text in told)

    def test_effective_lengths_of_several_tasks_side_by_side(self, page, tmp_path):
        assert "Effective lengths" not in shown(page[1])  # one task has any
        html = render(tmp_path, needles(), needles() | {"name": "mqar"})
        assert "Effective lengths" in shown(html) and 'href="#mqar"' in html

    def test_how_it_was_measured(self, page):
        text = shown(page[1])
        assert "python eval.py --workdir=runs/<mine>" in text and "a small CPU" in text and "jax 0.10.2" in text

    def test_one_length_one_variant_one_seed(self, tmp_path):
        alone = variant("full", 256, cell(256, 0.9, None) | {"values": [0.9], "stderr_over": "examples"})
        task = needles() | {"variants": [alone], "baselines": {}}
        text = shown(render(tmp_path, task, lengths=[256], trained_length=0, command=None, versions=None))
        assert "1 variant, 256 tokens." in text and "no error bars" in text
        assert "full stays at 0.85 or above up to 256; nothing longer was asked." in text

    def test_nothing_judged(self, tmp_path):
        task = needles() | {"variants": [variant("full", None, *(cell(n, None, error="no") for n in LENGTHS))]}
        html = render(tmp_path, task, device="")
        assert "could not be judged" in shown(html) and "<figure>" not in html


class TestFigures:
    def test_points_and_bars_are_the_numbers(self):
        figure = figures.by_length(evaluation(), needles())
        drawn = figure.axes[0].containers[1]
        assert drawn.lines[0].get_xydata().tolist() == [[128, 0.985], [256, 0.90], [512, 0.41]]
        low, high = drawn.lines[2][0].get_segments()[2][:, 1]
        assert (low, high) == pytest.approx((0.40, 0.42))

    def test_trained_length_threshold_and_baseline_are_named(self):
        texts = [text.get_text() for text in figures.by_length(evaluation(), needles()).axes[0].texts]
        assert texts == ["trained", "threshold 0.85", "chance & co"]
        texts = [text.get_text() for text in figures.by_length(evaluation(), text_task()).axes[0].texts]
        assert texts == ["trained", "bigram"]  # uniform lies far off, and bits have no threshold

    def test_lengths_keep_their_places_on_a_log_axis(self):
        axes = figures.by_length(evaluation(), needles()).axes[0]
        assert axes.get_xscale() == "log" and list(axes.get_xticks()) == LENGTHS

    def test_grid_by_depth(self):
        task = needles()
        places = figures.group_labels(task, "depth")
        assert places == list(DEPTHS)
        assert figures.heat_grid(task["variants"][0]["cells"], "depth", places) == [
            [0.99, 0.98, 0.97],
            ["no needle", 0.98, 0.97],
        ]
        assert figures.heat_grid(task["variants"][2]["cells"], "depth", places)[0] == [0.95, 0.93, "error"]

    def test_labels_of_all_lengths_in_order(self):
        task = copy.deepcopy(needles())
        for c, labels in zip(task["variants"][0]["cells"], ("9 10", "10 11", "2"), strict=True):
            c["groups"] = {
                "depth of the tree": [{"label": n, "mean": 0.5, "stderr": None, "size": 1} for n in labels.split()]
            }
        assert figures.group_labels(task, "depth of the tree") == ["2", "9", "10", "11"]
        grid = figures.heat_grid(task["variants"][0]["cells"], "depth of the tree", ["2", "9"])
        assert grid == [["none", "none", 0.5], [0.5, "none", "none"]]

    def test_one_scale_for_all_variants(self):
        assert figures.heat_range(needles(), "depth") == (0.0, 1.0)
        task = needles() | {"metric": {"name": "bits", "higher_is_better": False}}
        assert figures.heat_range(task, "depth") == (0.10, 0.99)
        assert figures.heat_range(text_task(), "depth") == (0.0, 1.0)  # nothing to draw

    def test_numbers_stand_out_from_their_cells(self):
        def luminance(color):
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        from matplotlib import colormaps
        from matplotlib.colors import to_rgb

        for n in range(11):
            back = colormaps[figures.SCALE](n / 10)
            dim, bright = sorted((luminance(back[:3]), luminance(to_rgb(figures._legible(back)))))
            assert (bright + 0.05) / (dim + 0.05) >= 4.5  # WCAG 2, level AA

    def test_positions_are_middles_of_stretches(self):
        axes = figures.by_position(evaluation(), text_task(), 128).axes[0]
        assert axes.lines[0].get_xydata().tolist() == [[1.0, 4.0], [33.0, 2.75]]  # the last stretch has no number
        assert figures.by_position(evaluation(), needles(), 128) is None
        assert figures.by_position_all(evaluation(), needles()) is None

    def test_an_outlier_in_one_length_keeps_the_axis_common(self):
        limits = {figures.by_position(evaluation(), text_task(), n).axes[0].get_ylim() for n in LENGTHS}
        assert len(limits) == 1 and all(map(math.isfinite, *limits))
