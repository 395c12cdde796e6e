"""The report of parts of the validation data, of further numbers, and of models that read graphs."""

import csv
import io
import re

import numpy as np
import pytest
from rich.console import Console
from test_report import CONFIG, Page, make, make_curves

from experiment import findings, report_groups
from experiment.report import print_table, write_csv, write_report
from experiment.wording import wording
from tasks import TASKS

DISTANCE = "words between <verb> and subject"
LABELS, SIZES = ("0", "1–2", "3 & more"), (1200, 402, 31)
MEANS = {"full": (0.95, 0.91, 0.70), "window": (0.90, 0.90, 0.80), "linear": (0.60, 0.62, None)}


def cells(means, labels=LABELS, stderr=0.01, sizes=SIZES):
    rows = zip(labels, means, sizes, strict=True)
    return [{"label": a, "mean": m, "stderr": stderr, "stderr_over": "sentences", "size": n} for a, m, n in rows]


def grouped(names=tuple(MEANS)):
    comparison = make(names) | {"metric": {"name": "validation accuracy", "higher_is_better": True}, "baselines": {}}
    for v in comparison["variants"]:
        v["groups"] = {DISTANCE: cells(MEANS[v["name"]])}
        v["quality"] = {"mean": 0.8, "stderr": 0.01, "values": [0.8]}
    return comparison


def on_graphs():
    comparison = make(("full", "window")) | {"task": "graphs", "unit": {"name": "nodes", "tokens": 1}}
    comparison["metric"] = {"name": "validation accuracy", "higher_is_better": True}
    comparison["baselines"] = {"majority": 0.3, "label propagation": 3.0}
    for v in comparison["variants"]:
        v |= {"model": "graph_network", "attention": {"name": "gat"}}
    return comparison


def told(html):
    return " ".join(" ".join(Page(html.replace("<wbr>", "")).text).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder, comparison = tmp_path_factory.mktemp("groups"), grouped()
    comparison["variants"][0]["details"] = {
        "Hits@1": {"mean": 0.25, "stderr": 0.125},
        "<b>": {"mean": 2, "stderr": None},
    }
    comparison["data"] = {"ceilings": {"gold subject": 0.97}}
    path = write_report(folder, comparison, make_curves(comparison), CONFIG)
    return folder, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def graph_page(tmp_path_factory):
    comparison, config = on_graphs(), {"data": {"name": "cora", "num_nodes": 0}, "train": {"patience": 100}}
    curves = make_curves(comparison, seeds=2)
    curves["window"][1] = curves["window"][1][:6]
    return write_report(tmp_path_factory.mktemp("graphs"), comparison, curves, config).read_text(encoding="utf-8")


# Groups.


def test_a_group_is_a_small_comparison_in_the_order_given():
    groups = report_groups.within_groups(grouped(), DISTANCE)
    assert list(groups) == list(LABELS)
    assert [v["name"] for v in findings.ranking(groups["0"])] == ["full", "window", "linear"]
    assert [v["name"] for v in findings.ranking(groups["3 & more"])] == ["window", "full"]  # linear has no mean there
    assert report_groups.within_groups(grouped(), "no such") == {}


def test_points_and_bars_of_the_chart_are_the_numbers():
    figure = report_groups.group_chart(grouped(), DISTANCE)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0\nn 1.2k", "1–2\nn 402", "3 & more\nn 31"]
    assert axes.get_xlabel() == DISTANCE and axes.get_ylabel() == "validation accuracy"
    shown = {bar.get_label(): bar for bar in axes.containers}
    left = -np.inf
    for name, means in MEANS.items():
        x, y = shown[name].lines[0].get_data(orig=False)
        known = [(at, mean) for at, mean in enumerate(means) if mean is not None]
        np.testing.assert_allclose(y, [mean for _, mean in known])
        assert np.abs(x - [at for at, _ in known]).max() < 0.4 and left < x[0]
        left = x[0]
        (bars,) = shown[name].lines[2]
        np.testing.assert_allclose([np.ptp(segment[:, 1]) for segment in bars.get_segments()], 0.02)


def test_many_labels_stand_below_each_other_from_top_to_bottom():
    comparison = grouped(("full", "window"))
    labels = [f"relation {n}" for n in range(20)]
    for v in comparison["variants"]:
        v["groups"] = {"relation": cells(np.linspace(0.5, 0.9, 20), labels, None, [7] * 20)}
    (axes,) = report_groups.group_chart(comparison, "relation").axes
    assert [text.get_text().split("\n")[0] for text in axes.get_yticklabels()] == labels
    assert axes.yaxis_inverted() and axes.get_xlabel() == "validation accuracy"


def test_nothing_asked_is_nothing_drawn():
    comparison = grouped(("full",))
    comparison["variants"][0]["groups"] = {DISTANCE: cells((None, None, None))}
    assert report_groups.group_chart(comparison, DISTANCE) is None
    assert report_groups.group_sections(comparison, folder=None) == [""]
    assert report_groups.group_sections(make(), folder=None) == []


def test_the_page_has_chart_table_and_verdict_of_each_grouping(page):
    folder, html = page
    name = "groups_words_between_verb_and_subject"
    assert (folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    section = re.search(f'<section id="{name}">.*?</section>', html, flags=re.S)[0]
    assert "<verb>" not in html and "By words between &lt;verb&gt; and subject" in section
    # 0.95 - 0.90 = 3.5 errors of the difference, 0.91 - 0.90 less than one, 0.80 - 0.70 seven.
    assert "Best of 3 groups: full in 2 and window in 1; in 2 of them the lead over the next one exceeds" in section
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', section)
    assert [row.split("<small>")[0] for row in rows] == ["0", "1–2", "3 &amp; more"]
    assert '<span class="best">0.950 ± 0.010</span>' in rows[0] and 'class="tie"' not in rows[0]
    assert '<span class="best">0.910 ± 0.010</span>' in rows[1] and '<span class="tie">0.900 ± 0.010</span>' in rows[1]
    assert '<span class="best">0.800 ± 0.010</span>' in rows[2] and rows[2].endswith("<td>–</td>")
    assert "n 1.2k" in rows[0] and "aria-label" in section


def test_further_numbers_and_upper_lines_have_their_rows(page):
    _, html = page
    section = re.search('<section id="details">.*?</section>', html, flags=re.S)[0]
    assert "<b>" not in section and "Hits@1" in section
    assert [re.findall(r"<td>(.*?)</td>", row) for row in section.split("<tr>")[2:]] == [
        ["0.250 ± 0.125", "2.000"],
        ["–", "–"],
        ["–", "–"],
    ]
    assert re.search(r"gold subject <small>upper line</small></th><td data-value=\"0.97\">0.970", html)
    assert "does not beat" not in html and "upper lines know what the models must find out" in html


def test_upper_lines_stand_in_the_terminal_and_the_csv(tmp_path):
    comparison = grouped() | {"data": {"ceilings": {"gold subject": 0.97}}}
    with (console := Console(width=100, file=io.StringIO())).capture() as printed:
        print_table(comparison, console)
    assert re.search(r"gold subject upper line +0\.970", printed.get())
    with write_csv(tmp_path, comparison).open() as file:
        assert [row["kind"] for row in csv.DictReader(file) if row["name"] == "gold subject"] == ["upper line"]


# Graphs.


def test_the_page_speaks_of_nodes_and_draws_no_mask(graph_page):
    text = told(graph_page)
    assert "<h1>Two graph models on cora</h1>" in graph_page
    assert "tokens" not in text.replace("--config", "") and "files" not in text
    assert "nodes/s" in text and "window trains fastest, at 8.9k nodes per second" in text
    assert "Cost against graph size" in text and "proportional to V^1.03" in text and "T^" not in text
    assert 'id="masks"' not in graph_page
    assert "nothing here shows that training bought anything" in text  # 3.0 of label propagation is above 2.4


def test_a_metric_on_training_data_is_not_called_validation(tmp_path):
    comparison = make(("full", "window")) | {"metric": {"name": "accuracy", "higher_is_better": True}}
    html = write_report(tmp_path, comparison, {}, CONFIG).read_text(encoding="utf-8")
    assert "The score is accuracy; higher is better." in html
    assert "validation" not in html[html.index("<body>") : html.index('<section id="method">')]


def test_early_stopping_is_told_where_it_happened(graph_page):
    assert "training stopped 100 evaluations after the last improvement: 60 to 120 steps, 2 seeds." in told(graph_page)


def test_of_a_graph_only_the_answers_were_unseen(graph_page):
    assert "accuracy on validation data whose answers were never seen in training; higher" in told(graph_page)


def test_every_task_s_unit_has_words():
    for name, task in TASKS.items():
        unit = {"unit": {"name": task.UNIT}}
        sees = {"vit": "grid", "swin": "grid", "axial": "grid", "graph_network": "", "link_prediction": ""}
        assert {sees.get(model, "pairs") for model in task.MODELS} == {wording(unit).sees}, name


def test_equal_masks_are_drawn_once_under_all_their_labels(tmp_path):
    comparison = make(("full", "window", "linear"))
    for v, name in zip(comparison["variants"], ("rope", "alibi", "graph"), strict=True):
        v |= {"name": name, "attention": {"name": "full"}}
    comparison["variants"][2]["attention"] = {"name": "window", "window": 64, "num_global": 0}
    html = write_report(tmp_path, comparison, {}, CONFIG).read_text(encoding="utf-8")
    section = html[html.index('<section id="masks">') : html.index('<section id="method">')]
    assert re.findall("<figcaption><b>(.*?)</b>", section) == ["rope, alibi", "graph"]
