"""The charts with lines of an evaluation at many lengths: what is drawn are the numbers, and labels keep apart."""

import math

import pytest
from test_evaluation_findings import (
    ACCURACY,
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

    def test_long_names_stay_different(self):
        task, start = needles(), "attention_with_a_long_name bucket_size="
        for i, each in enumerate(task["variants"]):
            each["name"] = f"{start}{8 * i}, num_hashes=1"
        legend = figures.by_length(evaluation(), task).legends[0]
        assert [text.get_text() for text in legend.get_texts()] == [each["name"] for each in task["variants"]]

    def test_positions_are_middles_of_stretches(self):
        axes = figures.by_position(evaluation(), text_task(), 128).axes[0]
        assert axes.lines[0].get_xydata().tolist() == [[1.0, 4.0], [33.0, 2.75]]  # the last stretch has no number
        assert figures.by_position(evaluation(), needles(), 128) is None
        assert figures.by_position_all(evaluation(), needles()) is None

    def test_an_outlier_in_one_length_keeps_the_axis_common(self):
        limits = {figures.by_position(evaluation(), text_task(), n).axes[0].get_ylim() for n in LENGTHS}
        assert len(limits) == 1 and all(map(math.isfinite, *limits))
