"""The charts of an evaluation at many lengths: what is drawn are the numbers, and labels keep apart."""

import copy
import math

import pytest
from test_evaluation_findings import (
    ACCURACY,
    DEPTHS,
    LENGTHS,
    at_one_length,
    cell,
    evaluation,
    needles,
    text_task,
    variant,
)

from experiment import evaluation_figures as figures
from experiment.evaluation_findings import interval


def shown_labels(figure):
    """Where the labels of the lengths stand, those that are not empty, from left to right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    return sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)


class TestFigures:
    def test_points_and_bars_are_the_numbers(self):
        figure = figures.by_length(evaluation(), needles())
        drawn = figure.axes[0].containers[1]
        assert drawn.lines[0].get_xydata().tolist() == [[128, 0.985], [256, 0.90], [512, 0.41]]
        low, high = drawn.lines[2][0].get_segments()[2][:, 1]
        assert (low, high) == pytest.approx(interval(ACCURACY, cell(512, 0.41)))
        low, high = drawn.lines[2][0].get_segments()[0][:, 1]
        assert high == 1.0 and low == pytest.approx(0.985 - 1.96 * 0.01, abs=1e-4)

    def test_bands_are_intervals(self):
        axes = figures.by_position(evaluation(), text_task(), 128).axes[0]
        ends = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((2.75 - 1.96 * 0.1, 4.0 + 1.96 * 0.1), abs=1e-4)

    def test_trained_length_threshold_and_baseline_are_named(self):
        texts = [text.get_text() for text in figures.by_length(evaluation(), needles()).axes[0].texts]
        assert texts == ["trained", "threshold 0.85", "chance & co"]
        texts = [text.get_text() for text in figures.by_length(evaluation(), text_task()).axes[0].texts]
        assert texts == ["trained", "bigram"]  # uniform lies far off, and bits have no threshold

    def test_lengths_keep_their_places_on_a_log_axis(self):
        axes = figures.by_length(evaluation(), needles()).axes[0]
        assert axes.get_xscale() == "log" and list(axes.get_xticks()) == LENGTHS

    def test_labels_of_close_lengths_do_not_touch(self):
        lengths = [60, 61, 62, 64, 1_000, 100_000, 110_000]
        task = at_one_length() | {"lengths": lengths, "asked": lengths, "metric": ACCURACY}
        task["variants"] = [variant("full", None, *(cell(n, 0.5) for n in lengths))]
        figure = figures.by_length(evaluation(), task)
        boxes = shown_labels(figure)
        assert len(boxes) >= 3 and all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
        assert list(figure.axes[0].get_xticks()) == lengths

    def test_long_lengths_stand_aslant_under_a_heat_map(self):
        task = needles()
        assert figures.heat_map(task, 0, "depth", DEPTHS).axes[0].get_xticklabels()[0].get_rotation() == 0
        task["variants"][0]["cells"] = [cell(10**9 + n, 0.5) for n in range(3)]
        assert figures.heat_map(task, 0, "depth", DEPTHS).axes[0].get_xticklabels()[0].get_rotation() == 45

    def test_long_names_stay_different(self):
        task, start = needles(), "attention_with_a_long_name bucket_size="
        for i, each in enumerate(task["variants"]):
            each["name"] = f"{start}{8 * i}, num_hashes=1"
        legend = figures.by_length(evaluation(), task).legends[0]
        assert [text.get_text() for text in legend.get_texts()] == [each["name"] for each in task["variants"]]
        titles = [axes.get_title("left") for axes in figures.heat_maps(task, "depth").axes[:4]]
        assert len(set(titles)) == 4 and all("\n" in title for title in titles)

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
