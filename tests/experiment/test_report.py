"""The report: its words follow from the numbers, its page stands alone, its table and CSV hold what was measured."""

import copy
import csv
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs.compare_text import get_config
from experiment import figures, findings, labels, patterns
from experiment.report import print_table, write_csv, write_report

ROOT = Path(__file__).parents[2]
SETTINGS = {label: change.model.attention.to_dict() for label, change in get_config().variants.items()}
MASKLESS = ("lsh", "linear", "performer", "linformer", "efficient", "retention", "gated_linear", "delta_rule")
# bits per byte, its standard error, training tokens per second, exponent of time.
NUMBERS = {
    "full": (2.412, 0.031, 4900.0, 1.98),
    "window": (2.431, 0.033, 8900.0, 1.03),
    "longformer": (2.440, 0.032, 7100.0, 1.06),
    "sparse_transformer": (2.462, 0.032, 6200.0, 1.51),
    "bigbird": (2.447, 0.030, 6600.0, 1.12),
    "linear": (2.710, 0.036, 10300.0, 0.97),
}
CONFIG = {"seed": 0, "data": {"name": "python_stdlib", "path": "", "length": 512}, "model": {"width": 128}}


def variant(name, quality, stderr, speed, exponent):
    lengths = [512, 1024, 2048]
    return {
        "name": name,
        "attention": SETTINGS.get(name, {"name": "full"}),
        "parameters": 430_016,
        "quality": {"mean": quality, "stderr": stderr, "values": [quality], "stderr_over": "files"},
        "train_tokens_per_second": speed,
        "forward_tokens_per_second": 3 * speed,
        "step_ms": {"median": 2048e3 / speed, "p95": 2300e3 / speed},
        "compile_seconds": 3.5,
        "peak_memory_bytes": 81_000_000,
        "flops_per_step": 3_100_000_000,
        "error": None,
        "scaling": {
            "lengths": lengths,
            "forward_ms": [8 * (n / 512) ** exponent for n in lengths],
            "train_ms": [25 * (n / 512) ** exponent for n in lengths],
            "temporary_bytes": [3e6 * n / 512 for n in lengths],
            "time_exponent": exponent,
            "memory_exponent": 1.0,
        },
    }


def make(labels=tuple(NUMBERS)):
    return {
        "task": "text",
        "metric": {"name": "validation bits per byte", "higher_is_better": False},
        "device": "a small CPU, 2 cores",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "baselines": {"uniform": 8.0, "unigram": 4.71, "bigram": 3.48},
        "command": "python train.py",
        "date": "2025-11-24",
        "variants": [variant(label, *NUMBERS[label]) for label in labels],
    }


def make_curves(comparison, seeds=1):
    def rows(mean, seed):
        for step in range(20, 121, 20):
            value = mean + 5 * math.exp(-step / 18) + 0.02 * seed
            yield {"step": step, "split": "train", "bits_per_byte": value, "seconds": 0.3 * step, "tokens": 2048 * step}
            yield {"step": step, "split": "validation", "bits_per_byte": value, "seconds": 0.3 * step, "tokens": 1}

    return {
        v["name"]: {seed: list(rows(v["quality"]["mean"] or 9.0, seed)) for seed in range(seeds)}
        for v in comparison["variants"]
    }


def render(tmp_path, comparison, curves=None, config=CONFIG):
    curves = make_curves(comparison) if curves is None else curves
    page = write_report(tmp_path, comparison, curves, config)
    assert page == tmp_path / "report.html"
    return page.read_text(encoding="utf-8")


def words(comparison):
    return dict(findings.findings(comparison))


class Page(HTMLParser):
    """What a test asks of a page: balanced tags, ids, references, visible text."""

    VOID = {"meta", "br", "circle", "link", "img"}

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.references, self.text = [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data"):
                self.references.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    folder = tmp_path_factory.mktemp("six")
    html = render(folder, make())
    return folder, html


# What the numbers say.


def test_close_variants_are_called_unresolved_and_clear_ones_are_not():
    text = words(make())["Quality"]
    assert text.startswith("full reached the best bits per byte: 2.412 ± 0.031.")
    assert "unresolved" in text
    assert all(name in text for name in ("window", "longformer", "bigbird", "sparse_transformer"))
    assert "linear" not in text


def test_a_lead_beyond_two_standard_errors_is_a_lead():
    text = words(make(("full", "linear")))["Quality"]
    assert "unresolved" not in text
    assert "exceeds two standard errors" in text


def test_a_paired_error_resolves_what_independent_ones_do_not():
    comparison = make(("full", "window"))
    full, window = comparison["variants"]
    assert findings.resolved(full, window) is False
    window["differences"] = {"full": {"mean": 0.019, "stderr": 0.004}}
    assert findings.resolved(full, window) is findings.resolved(window, full) is True


def test_verdicts_never_contradict_the_ranking():
    comparison = make(("full", "window", "bigbird"))
    full, window, bigbird = comparison["variants"]
    full["differences"] = {"window": {"mean": -0.019, "stderr": 0.004}}
    assert [verdict for _, verdict in findings.leads(comparison)] == [False, False]
    bigbird["differences"] = {"full": {"mean": 0.035, "stderr": 0.004}}
    assert [verdict for _, verdict in findings.leads(comparison)] == [True, True]


def test_without_error_bars_no_difference_is_claimed():
    comparison = make(("full", "linear"))
    comparison["variants"][0]["quality"]["stderr"] = None
    text = words(comparison)["Quality"]
    assert "exceeds" not in text
    assert "error bar" in text


def test_the_front_holds_exactly_the_variants_that_nothing_dominates():
    comparison = make()
    front = [v["name"] for v in findings.pareto_front(comparison)]
    expected = [
        name
        for name, (quality, _, speed, _) in sorted(NUMBERS.items(), key=lambda item: -item[1][2])
        if not any(q < quality and s > speed for q, _, s, _ in NUMBERS.values())
    ]
    assert front == expected == ["linear", "window", "full"]
    assert "do not resolve the gain in quality of full over window" in words(comparison)["Pareto front"]


def test_a_tie_in_quality_puts_only_the_faster_one_on_the_front():
    comparison = make(("full", "window"))
    comparison["variants"][0]["quality"]["mean"] = comparison["variants"][1]["quality"]["mean"]
    assert [v["name"] for v in findings.pareto_front(comparison)] == ["window"]


def test_higher_can_be_better():
    comparison = make()
    comparison["metric"] = {"name": "accuracy", "higher_is_better": True}
    comparison["baselines"] = {"chance": 0.5, "majority": 2.45}
    assert findings.ranking(comparison)[0]["name"] == "linear"
    assert [v["name"] for v in findings.pareto_front(comparison)] == ["linear"]
    weak = [v["name"] for v in findings.not_better_than_baseline(comparison)]
    assert weak == ["bigbird", "longformer", "window", "full"]


def test_the_page_reads_right_where_higher_is_better(tmp_path):
    comparison = make(("full", "window", "linear"))
    comparison |= {"task": "classification", "metric": {"name": "validation accuracy", "higher_is_better": True}}
    comparison["baselines"] = {"majority": 0.1, "naive Bayes": 0.45}
    for v, accuracy in zip(comparison["variants"], (0.71, 0.66, 0.43), strict=True):
        v["quality"] |= {"mean": accuracy, "stderr": 0.01, "values": [accuracy]}
    curves = {
        v["name"]: {
            0: [
                {
                    "step": s,
                    "split": "validation",
                    "accuracy": v["quality"]["mean"] - 1 / s,
                    "loss": 1.0,
                    "seconds": s,
                    "tokens": s,
                }
                for s in (2, 4, 6, 8)
            ]
        }
        for v in comparison["variants"]
    }
    config = {"data": {"name": "python_packages", "path": "", "length": 512}, "model": {"name": "encoder"}}
    html = render(tmp_path, comparison, curves, config)
    assert "<h1>Three kinds of attention on python_packages (classification)</h1>" in html
    assert "The score is accuracy on validation data never seen in training; higher is better." in html
    assert "full reached the best accuracy: 0.710 ± 0.010." in html and "worse than naive Bayes" in html
    assert "linear does not beat the naive Bayes baseline (0.450 accuracy)" in html
    assert "validation accuracy" in html and "of all pairs at T = 512" in html
    assert not re.search("bits|bigram", "".join(Page(html).text))


def test_a_variant_worse_than_bigram_is_called_out(tmp_path):
    comparison = make(("full", "linear"))
    comparison["variants"][1]["quality"]["mean"] = 3.5
    assert "linear does not beat the bigram baseline (3.480 bits per byte)" in words(comparison)["Baselines"]
    html = render(tmp_path, comparison)
    assert "worse than bigram" in html
    assert '<dd class="warn">linear does not beat' in html


def test_speeds_within_the_noise_of_a_clock_are_level():
    comparison = make(("full", "window"))
    comparison["variants"][0]["train_tokens_per_second"] = 0.97 * 8900
    assert "full is level with it" in words(comparison)["Speed"]
    comparison["variants"][0]["train_tokens_per_second"] = 0.90 * 8900
    assert "level" not in words(comparison)["Speed"]


# The page.


def test_every_variant_and_number_stands_in_the_page(six):
    _, html = six
    text = " ".join(" ".join(Page(html).text).split())
    for name, (quality, stderr, _, exponent) in NUMBERS.items():
        assert f'<th scope="row" data-value="{name}">' in html
        assert f"{quality:.3f} ± {stderr:.3f}" in text
        assert f"{name} T^{exponent:.2f}" in text  # the legend of time against length
    for baseline, value in make()["baselines"].items():
        assert baseline in text and f"{value:.3f}" in text
    for wanted in ("python train.py", "2025-11-24", "a small CPU, 2 cores", "jax 0.10.2", "--config.model.width=128"):
        assert wanted in text


def test_the_page_stands_alone(six):
    _, html = six
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|<link|<img", html)
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert len(set(page.ids)) == len(page.ids)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(page.ids)


def test_every_figure_has_a_text_for_who_cannot_see_it(six):
    _, html = six
    for figure in re.findall(r"<figure>.*?</figure>", html, flags=re.S):
        assert re.search(r'role="img" aria-label="[^"]{20,}"', figure)
        assert "<figcaption>" in figure


def test_figures_are_files_too(six):
    folder, _ = six
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names >= {"pareto", "curves_steps", "curves_seconds", "cost_train", "cost_forward", "cost_memory", "masks"}
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (folder / "figures").iterdir())


def test_best_values_are_marked(six):
    _, html = six
    rows = dict(re.findall(r'<tr><th scope="row" data-value="(\w+)">(.*?)</tr>', html))
    assert '<span class="best">2.412 ± 0.031</span>' in rows["full"]
    assert '<span class="tie">2.431 ± 0.033</span>' in rows["window"]
    assert '<span class="best">10.3k</span>' in rows["linear"]
    assert 'class="best"' not in rows["bigbird"]


def test_markup_in_labels_and_settings_is_text(tmp_path):
    comparison = make(("full", "window"))
    label = '<b>$x^2$ & "q"</b>'
    comparison["variants"][0] |= {"name": label, "attention": {"name": "full", "note": "<i>"}, "error": "<u>oh</u>"}
    comparison |= {"task": "<task>", "device": "<device>", "command": "python train.py --x='<y>'", "date": "<today>"}
    html = render(tmp_path, comparison, config={"data": {"name": "<data>", "length": 64}, "<key>": "<value>"})
    for raw in ("<b>$", "<i>", "<u>", "<task>", "<device>", "<y>", "<today>", "<data>", "<key>", "<value>"):
        assert raw not in html
    assert "$x^2$" in "".join(Page(html).text)


def test_the_same_input_gives_the_same_page(tmp_path, six):
    assert render(tmp_path, make()) == six[1]


def test_seeds_make_a_band(tmp_path):
    comparison = make(("full", "window"))
    html = render(tmp_path, comparison, make_curves(comparison, 3))
    assert "lowest to the highest of 3 seeds" in html
    assert "<h1>Two kinds of attention on python_stdlib (text)</h1>" in html


def test_a_curve_averages_the_steps_that_all_seeds_share():
    rows = [{"step": s, "split": "validation", "loss": float(s), "seconds": 2.0 * s} for s in (1, 2, 3)]
    later = [row | {"loss": row["loss"] + 1, "seconds": 4.0 * row["step"]} for row in rows[:2]]
    x, low, mean, high = figures.averaged_curve({0: rows, 1: later}, "loss", "validation", "seconds")
    assert (x, low, mean, high) == ([3.0, 6.0], [1.0, 2.0], [1.5, 2.5], [2.0, 3.0])


def test_one_variant_without_baselines_or_scaling(tmp_path):
    comparison = make(("full",))
    del comparison["baselines"], comparison["variants"][0]["scaling"]
    html = render(tmp_path, comparison, {"full": {0: []}})
    assert "<h1>full on python_stdlib (text)</h1>" in html
    assert 'id="cost"' not in html and 'id="curves"' not in html and 'id="pareto"' in html
    Page(html)


def test_a_diverged_variant_keeps_its_place_and_says_why(tmp_path):
    comparison = make(("full", "linear"))
    comparison["variants"][1] |= {"error": "loss is nan at step 57", "train_tokens_per_second": None, "scaling": None}
    comparison["variants"][1]["quality"] = {"mean": None, "stderr": None, "values": []}
    html = render(tmp_path, comparison)
    assert "linear: loss is nan at step 57." in html
    assert "no quality: failed" in html
    assert words(comparison)["Speed"].startswith("full trains fastest")


def test_when_everything_diverged_there_is_still_a_page(tmp_path):
    comparison = make(("full", "linear"))
    for v in comparison["variants"]:
        v |= {"error": "loss is inf at step 2", "quality": {"mean": None, "stderr": None, "values": []}}
    html = render(tmp_path, comparison, {})
    assert "no quality to compare" in html
    assert 'id="pareto"' not in html


def test_twelve_variants_with_long_labels(tmp_path):
    comparison = make()
    twins = copy.deepcopy(comparison["variants"])
    for twin in twins:
        twin["name"] += "_with_a_very_long_label_that_says_everything"
    comparison["variants"] += twins
    html = render(tmp_path, comparison)
    assert "Twelve kinds of attention" in html
    assert all(v["name"] in html for v in comparison["variants"])
    assert html.count('class="swatch hollow"') == 6


def test_labels_cover_neither_points_nor_each_other():
    from matplotlib.figure import Figure

    figure = Figure((5, 4))
    axes = figure.subplots()
    points = [(0.5 + 0.02 * i, 0.5 + 0.01 * (i % 3)) for i in range(12)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels.label_points(axes, points, [f"variant_{i}" for i in range(12)], ["red"] * 12, {"fontsize": 8})
    figure.draw_without_rendering()
    boxes = [text.get_window_extent().extents for text in axes.texts if text.get_text()]
    assert len(boxes) == 12
    covered = [labels.overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert max(covered) < 1  # square pixels
    centers = axes.transData.transform(points)
    assert not any(x0 < x < x1 and y0 < y < y1 for x, y in centers for x0, y0, x1, y1 in boxes)


# Masks.


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in MASKLESS])
def test_a_drawn_mask_is_causal_and_keeps_the_proportions(name):
    picture = patterns.pattern(name, SETTINGS[name], 512)
    assert picture.allowed.shape == (64, 64)
    assert not np.triu(picture.allowed, 1).any() and picture.allowed.diagonal().all()
    assert re.search(r"[\d.]+% of the causal pairs at T = 512", picture.note)


def test_the_window_shrinks_with_the_length():
    rows, columns = np.nonzero(patterns.pattern("window", SETTINGS["window"], 512).allowed)
    assert (rows - columns).max() == 64 * 64 // 512


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in MASKLESS])
def test_an_encoder_s_mask_looks_both_ways(name):
    picture = patterns.pattern(name, SETTINGS[name], 512, causal=False)
    assert np.triu(picture.allowed, 1).any() and np.tril(picture.allowed, -1).any()
    assert re.search(r"[\d.]+% of all pairs at T = 512", picture.note)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", [name for name in SETTINGS if name in MASKLESS])
def test_what_has_no_mask_says_what_a_query_sees_and_draws_nothing(name, causal):
    picture = patterns.pattern(name, SETTINGS[name], 512, causal)
    assert picture.allowed is None and picture.note.startswith("no mask to draw: ")


def test_what_cannot_be_drawn_becomes_a_note():
    picture = patterns.pattern("x", {"name": "no_such_variant"}, 512)
    assert picture.allowed is None
    assert picture.note == "mask not available (KeyError: 'no_such_variant')"


def test_the_path_of_a_mask_covers_exactly_its_pairs():
    allowed = np.random.default_rng(0).random((7, 11)) < 0.5
    drawn = np.zeros_like(allowed)
    svg = patterns.to_svg(patterns.Pattern("x", allowed, ""), "red")
    for start, row, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", svg):
        drawn[int(row), int(start) : int(start) + int(width)] = True
    np.testing.assert_array_equal(drawn, allowed)


# The table.


def test_csv_gives_back_every_number_in_full_precision(tmp_path):
    comparison = make()
    comparison["variants"][0]["quality"]["mean"] = 2 + 1 / 3
    comparison["variants"][5]["scaling"] = None
    comparison["variants"][5]["error"] = 'loss "nan", at step 3'
    with write_csv(tmp_path, comparison).open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*NUMBERS, "uniform", "unigram", "bigram"]
    for v in comparison["variants"]:
        row = rows[v["name"]]
        assert float(row["quality_mean"]) == v["quality"]["mean"]
        assert float(row["step_ms_p95"]) == v["step_ms"]["p95"]
        assert int(row["parameters"]) == v["parameters"]
        assert json.loads(row["attention"]) == v["attention"]
        assert row["error"] == (v["error"] or "")
    assert rows["linear"]["scaling_time_exponent"] == ""
    assert rows["bigram"]["kind"] == "baseline" and float(rows["bigram"]["quality_mean"]) == 3.48


@pytest.mark.parametrize("width", [60, 100, 200])
def test_terminal_table_never_breaks_a_number(width):
    comparison = make()
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(comparison, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for name, (quality, stderr, *_) in NUMBERS.items():
        assert re.search(rf"^\s+{name}\s+{quality:.3f} ± {stderr:.3f}", text, flags=re.M)
    assert re.search(r"^\s+bigram baseline\s+3\.480", text, flags=re.M)
    assert "Quality. full reached the best" in text


def test_terminal_shows_brackets_as_they_are():
    comparison = make(("full",))
    comparison["variants"][0] |= {"name": "[red]full[/red]", "error": "stopped at [/x]"}
    console = Console(width=120, record=True, file=io.StringIO())
    print_table(comparison, console)
    assert "[red]full[/red]" in console.export_text()


def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, experiment.report; sys.exit(bool({'matplotlib', 'jax', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
