"""The leaderboard: runs of one task are ranked together, what is not told apart or not finished is said."""

import csv
import json
import re

import pytest
from ml_collections import ConfigDict
from test_report import Page

from experiment import comparison, leaderboard
from experiment.cells import code_version

ACCURACY = {"name": "validation accuracy", "higher_is_better": True}


def config(labels, seeds=1, length=64):
    model = {"name": "transformer", "attention": {"name": "full"}, "width": 8}
    variants = {label: {"model": {"width": 8}} for label in labels}
    shared = {
        "task": "recall",
        "seed": 0,
        "seeds": seeds,
        "data": {"name": "mqar", "length": length},
        "train": {"steps": 5},
    }
    return shared | {"model": model, "variants": variants}


def variant(name, mean, stderr, **other):
    quality = {"mean": mean, "stderr": stderr, "stderr_over": "rows", "values": [] if mean is None else [mean]}
    numbers = {"parameters": 1000, "train_tokens_per_second": 2e3, "forward_tokens_per_second": 3e3, "steps": 5.0}
    return {"name": name, "quality": quality, "peak_memory_bytes": 2e7, "error": None} | numbers | other


def make(folder, variants, labels=None, sha256="a", metric=ACCURACY, baselines=None, device="cpu", data=(), **settings):
    folder.mkdir(parents=True)
    labels = labels or [v["name"] for v in variants]
    table = {"task": "recall", "metric": metric, "unit": {"name": "tokens", "tokens": 1}, "device": device}
    table |= {"baselines": {"chance": 0.125} if baselines is None else baselines, "variants": variants}
    asked = config(labels, **settings)
    asked["data"] |= dict(data)
    for name, content in (("config", asked), ("data", {"sha256": sha256}), ("comparison", table)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def train(folder, steps=5, sha256="early", seed=0):
    """Writes the result of the variant "full" and the fingerprint of its checkpoint."""
    own = folder / "full" / f"seed{seed}"
    (own / "checkpoints").mkdir(parents=True, exist_ok=True)
    (own / "checkpoints" / f"{steps}.json").write_text(json.dumps({"sha256": f"{sha256} {steps}"}))
    (own / "result.json").write_text(json.dumps({"seed": seed, "steps": steps, "error": None}))


def evaluate(folder, reached, **other):
    """Writes the evaluation.json of variants that reach so far; {name: length or None}."""
    variants = [{"name": name, "effective_length": length, "cells": []} for name, length in reached.items()]
    shared = {"lengths": [64, 128, 256], "threshold": 0.85, "trained": False, "command": "python eval.py <again>"}
    stored = ConfigDict(json.loads((folder / "config.json").read_text()))
    now = leaderboard.checkpoints(folder, comparison.results(folder, stored))
    shared |= {"checkpoints": now, "code": code_version(), "variants": variants} | other
    tasks = [
        {"name": "passkey", "metric": ACCURACY} | shared,
        {"name": "extrapolation", "metric": {"name": "bits", "higher_is_better": False}} | shared,
    ]
    (folder / "evaluation.json").write_text(json.dumps({"tasks": tasks}))


@pytest.fixture
def two(tmp_path):
    one = make(tmp_path / "one", [variant("full", 0.90, 0.02), variant("<window>", 0.80, 0.01)], labels=["full"])
    more = [variant("near", 0.86, 0.02), variant("bare", 0.85, None), variant("lost", None, None, error="NaN & <b>")]
    two = make(tmp_path / "two", more, device="a <gpu>", baselines={"chance": 0.125, "rule": 0.5})
    evaluate(one, {"full": 256, "<window>": None})
    return [one, two]


def rows(table, field, i=0):
    return {row["variant"]: row[field] for row in table["tables"][i]["rows"]}


class TestCollect:
    def test_ranks_the_runs_of_a_task_together(self, two):
        table = leaderboard.collect(two)
        assert len(table["tables"]) == 1
        assert list(rows(table, "run").items()) == [
            ("full", "one"), ("near", "two"), ("bare", "two"), ("<window>", "one"), ("lost", "two"),
        ]  # fmt: skip

    def test_tells_apart_by_two_standard_errors_of_the_difference(self, two):
        states = rows(leaderboard.collect(two), "standing")  # hypot(0.02, 0.02) = 0.028 < 0.04 <= 0.057 < 0.10
        assert states == {"full": "best", "near": "not told apart", "bare": "no error bar", "<window>": "", "lost": ""}

    def test_pairs_the_variants_of_one_run(self, tmp_path):
        near = variant("near", 0.86, 0.02, differences={"full": {"mean": -0.04, "stderr": 0.01}})
        run = make(tmp_path / "run", [variant("full", 0.90, 0.02), near])
        assert rows(leaderboard.collect([run]), "standing") == {"full": "best", "near": ""}
        other = make(tmp_path / "other", [variant("full", 0.80, 0.01)])
        best = make(tmp_path / "best", [near | {"quality": near["quality"] | {"mean": 0.82}}])
        states = [row["standing"] for row in leaderboard.collect([other, best])["tables"][0]["rows"]]
        assert states == ["best", "not told apart"]  # "full" of another run is not the one it is paired with

    def test_no_better_than_a_baseline_is_never_the_best(self, tmp_path):
        weak = [variant(name, mean, 0.01, beats_baselines=False) for name, mean in (("full", 0.1), ("rope", 0.1))]
        run = make(tmp_path / "run", [*weak, variant("lost", None, None, beats_baselines=False)])
        state = "no better than a baseline"
        assert rows(leaderboard.collect([run]), "standing") == {"full": state, "rope": state, "lost": ""}

    def test_smaller_is_better_where_the_metric_says_so(self, tmp_path):
        metric = {"name": "validation bits", "higher_is_better": False}
        run = make(tmp_path / "a", [variant("full", 3.0, 0.1), variant("rope", 2.0, 0.1)], metric=metric)
        table = leaderboard.collect([run])
        assert list(rows(table, "standing").items()) == [("rope", "best"), ("full", "")]
        assert table["tables"][0]["metric"]["name"] == "bits"

    def test_alone_there_is_no_best(self, tmp_path):
        assert rows(leaderboard.collect([make(tmp_path / "a", [variant("full", 0.5, 0.1)])]), "standing") == {
            "full": ""
        }

    @pytest.mark.parametrize("change", [{"sha256": "b"}, {"metric": ACCURACY | {"name": "validation F1"}}])
    def test_other_data_or_metric_is_another_table(self, two, tmp_path, change):
        other = make(tmp_path / "other", [variant("full", 0.99, 0.01)], **change)
        assert len(leaderboard.collect([*two, other])["tables"]) == 2

    def test_effective_lengths_of_metrics_that_have_one(self, two):
        reached = rows(leaderboard.collect(two), "effective_length")
        assert reached["full"] == {"passkey": {"length": 256, "threshold": 0.85, "longest": 256, "trained": False}}
        assert reached["<window>"]["passkey"]["length"] is None and reached["near"] == {}

    def test_an_evaluation_by_other_code_or_of_changed_variants_is_told(self, two):
        evaluate(two[0], {"full": 256}, code="edited")
        (told,) = leaderboard.collect(two)["outdated"]
        assert told["why"] == "by other checkpoints or code than there is now"
        evaluate(two[0], {"full": 256, "<window> window=8": 128})
        table = leaderboard.collect(two)
        assert [each["why"] for each in table["outdated"]] == ["of variants changed by --sweep"]
        assert rows(table, "effective_length")["full"]["passkey"]["length"] == 256
        line = "outdated: one, effective lengths on passkey are of variants changed by --sweep"
        assert leaderboard.warnings(table) == [line]

    def test_an_evaluation_of_other_checkpoints_is_left_out(self, two):
        train(two[0], steps=5, sha256="early")
        evaluate(two[0], {"full": 256})
        assert leaderboard.collect(two)["outdated"] == []
        train(two[0], steps=9, sha256="late")
        table = leaderboard.collect(two)
        assert rows(table, "effective_length")["full"] == {}
        assert table["outdated"] == [
            {"run": "one", "task": "passkey", "command": "python eval.py <again>"}
            | {"why": "by other checkpoints or code than there is now"}
        ]
        line = "outdated: one, effective lengths on passkey are by other checkpoints or code than there is now; to judge again: "
        assert leaderboard.warnings(table) == [line + "python eval.py <again>"]

    @pytest.mark.parametrize("change", [{"steps": 5, "sha256": "other"}, {"steps": 9}, {"seed": 1}])
    def test_a_checkpoint_more_or_other_is_another_fingerprint(self, two, change):
        def now():
            stored = ConfigDict(json.loads((two[0] / "config.json").read_text()) | {"seeds": 2})
            return leaderboard.checkpoints(two[0], comparison.results(two[0], stored))

        train(two[0])
        before = now()
        assert now() == before
        train(two[0], **change)
        assert now() != before

    def test_titles_say_what_differs(self, tmp_path):
        def titles(**runs):
            folders = [make(tmp_path / name, [variant("full", 0.5, 0.1)], **run) for name, run in runs.items()]
            return [table["title"] for table in leaderboard.collect(folders)["tables"]]

        assert titles(a={"data": {"dir": "/a"}}, b={"data": {"dir": "/b"}}) == ["recall: mqar"]
        assert titles(c={}, d={"sha256": "b", "length": 32}, e={"length": 128, "data": {"filler": ""}}) == [
            "recall: mqar",  # of two lengths: no length is its own
            "recall: mqar, length 32",
        ]
        assert titles(f={}, g={"sha256": "b" * 64}) == ["recall: mqar, data a", "recall: mqar, data bbbbbbbb"]
        other = {"sha256": "b", "data": {"filler": ""}, "metric": ACCURACY | {"name": "F1"}}
        assert titles(h={"data": {"filler": "zero"}}, i=other) == [
            "recall: mqar, filler none, metric F1",
            "recall: mqar, filler zero, metric accuracy",
        ]

    def test_folders_of_the_same_name_keep_their_path(self, tmp_path):
        folders = [make(tmp_path / part / "run", [variant("full", 0.5, 0.1)]) for part in ("a", "b")]
        assert [row["run"] for row in leaderboard.collect(folders)["tables"][0]["rows"]] == list(map(str, folders))


class TestUnfinished:
    def test_without_a_comparison_the_results_are_looked_at(self, tmp_path):
        (tmp_path / "run" / "full" / "seed0").mkdir(parents=True)
        (tmp_path / "run" / "full" / "seed0" / "result.json").write_text('{"seed": 0}')
        (tmp_path / "run" / "config.json").write_text(json.dumps(config(["full", "window"], seeds=2)))
        table = leaderboard.collect([tmp_path / "run"])
        missing = ["full seed 1", "window seed 0 and 1", "comparison.json"]
        unfinished = [{"run": "run", "missing": missing}]
        assert table == {"tables": [], "unfinished": unfinished, "outdated": [], "passed_over": []}

    def test_a_part_is_ranked_and_listed(self, tmp_path):
        folder = make(tmp_path / "run", [variant("full", 0.5, 0.1)], labels=["full", "window"], seeds=3)
        table = leaderboard.collect([folder])
        assert table["unfinished"] == [{"run": "run", "missing": ["full: 1 of 3 seeds", "window"]}]
        assert list(rows(table, "run")) == ["full"]

    def test_a_variant_that_failed_is_not_missing(self, tmp_path):
        folder = make(tmp_path / "run", [variant("full", None, None, error="NaN")])
        assert leaderboard.collect([folder])["unfinished"] == []


class TestPassedOver:
    def test_what_is_no_run(self, two, tmp_path):
        (tmp_path / "notes.txt").write_text("{}")
        (tmp_path / "empty").mkdir()
        table = leaderboard.collect([*two, tmp_path / "notes.txt", tmp_path / "empty", tmp_path / "nowhere"])
        names, why = ["notes.txt", "empty", "nowhere"], "no run of train.py there"
        assert table["passed_over"] == [{"run": name, "why": why} for name in names]
        assert leaderboard.warnings(table) == [f"passed over: {name}, {why}" for name in names]
        assert len(rows(table, "run")) == 5

    @pytest.mark.parametrize("file", ["config", "data", "comparison", "evaluation"])
    @pytest.mark.parametrize("content", [b'{"task": ', b"\xff\xfe\x00"])
    def test_a_run_with_a_half_written_file(self, two, file, content):
        (two[0] / f"{file}.json").write_bytes(content)
        table = leaderboard.collect(two)
        (passed,) = table["passed_over"]
        assert passed["run"] == "one" and f"{file}.json: not a readable JSON file" in passed["why"]
        assert set(rows(table, "run").values()) == {"two"}

    @pytest.mark.parametrize("file", ["config", "data", "comparison", "evaluation"])
    @pytest.mark.parametrize("content", ['{"tasks": [{}], "variants": 1}', "[1]"])
    def test_a_run_with_a_file_of_other_content(self, two, file, content):
        (two[0] / f"{file}.json").write_text(content)
        table = leaderboard.collect(two)
        assert [each["run"] for each in table["passed_over"]] == (
            ["one"] if (file, content[0]) != ("data", "{") else []
        )

    def check(self, folders, message):
        with pytest.raises(ValueError, match=message) as error:
            leaderboard.collect(folders)
        assert "\n" not in str(error.value)

    def test_refuses_folders_without_any_run(self, two, tmp_path):
        (two[0] / "comparison.json").write_text("{")
        self.check([tmp_path, two[0]], "got none .*: no run of train.py there; one: .*comparison.json: not a readable")

    def test_refuses_a_folder_twice(self, two):
        self.check([two[0], two[0].parent / "." / "two" / ".." / "one"], "each folder once")


class TestWrite:
    @pytest.fixture
    def written(self, two, tmp_path):
        half = tmp_path / "ha<lf"
        half.mkdir()
        (half / "config.json").write_text(json.dumps(config(["full"])))
        (tmp_path / "<none>").mkdir()
        old = make(tmp_path / "old", [variant("full", 0.7, 0.01)], sha256="b")
        evaluate(old, {"full": 256}, checkpoints="BEFORE")
        table = leaderboard.collect([*two, half, old, tmp_path / "<none>"])
        (tmp_path / "out").mkdir()
        leaderboard.write(tmp_path / "out", table)
        return tmp_path / "out", table

    def test_json_is_the_table(self, written):
        folder, table = written
        assert json.loads((folder / "leaderboard.json").read_text()) == table

    def test_csv(self, written):
        with (written[0] / "leaderboard.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        kinds = ["variant"] * 5 + ["baseline"] * 3 + ["variant", "baseline", "unfinished", "outdated", "passed over"]
        assert [row["kind"] for row in found] == kinds
        assert {row["title"] for row in found} == {"recall: mqar, data a", "recall: mqar, data b", ""}
        assert found[0]["mean"] == "0.9" and found[0]["effective_length_passkey"] == "256" and found[0]["seeds"] == "1"
        assert found[0]["standing"] == "best" and found[1]["standing"] == "not told apart"
        assert found[4]["mean"] == "" and found[4]["error"] == "NaN & <b>"
        assert (found[5]["name"], found[5]["mean"], found[5]["run"]) == ("chance", "0.125", "one")
        assert found[10]["error"] == "missing full seed 0, comparison.json"
        assert (found[11]["run"], found[12]["run"]) == ("old", "<none>")
        assert found[12]["error"] == "no run of train.py there"

    def test_page_stands_alone_and_is_escaped(self, written):
        html = (written[0] / "leaderboard.html").read_text()
        page = Page(html)
        assert len(page.ids) == len(set(page.ids))
        assert page.references == ["#table_0", "#table_1"] and set(page.ids) >= {"table_0", "table_1", "left_out"}
        assert all(word not in html for word in ("<window>", "<b>", "a <gpu>", "ha<lf", "<again>", "<none>"))

    def test_page_says_what_the_numbers_say(self, written):
        html = (written[0] / "leaderboard.html").read_text()
        text = " ".join(" ".join(Page(html).text).split())
        assert "full of one has the best accuracy: 0.900 ± 0.020; near of two cannot be told apart from it." in text
        assert '<span class="best">0.900 ± 0.020</span>' in html and '<span class="tie">0.860 ± 0.020</span>' in html
        assert "≥ 256" in text and "none" in text and "no error bar" in text and "failed NaN & <b>" in text
        assert "chance baseline 0.125" in text and "rule baseline of two 0.500" in text
        assert "device" in text and "a <gpu>" in text
        assert "passkey effective length at 0.85, not trained on it" in text
        assert "ha<lf unfinished: missing full seed 0, comparison.json" in text
        assert "old outdated: effective lengths on passkey are by other checkpoints" in text
        assert "<none> passed over: no run of train.py there" in text
        assert "length 64, 5 steps, 1 seed" in text

    def test_page_is_sorted_by_quality(self, tmp_path):
        for name, higher, order in (("a", True, "descending"), ("b", False, "ascending")):
            metric = {"name": "x", "higher_is_better": higher}
            table = leaderboard.collect([make(tmp_path / name, [variant("full", 0.5, 0.1)], metric=metric)])
            leaderboard.write(tmp_path, table)
            html = (tmp_path / "leaderboard.html").read_text()
            assert re.findall(r'<th scope="col" aria-sort="(\w+)"', html) == [order]

    def test_page_calls_nothing_the_best_that_does_not_beat_its_baseline(self, tmp_path):
        weak = [variant("full", 0.1, 0.01, beats_baselines=False), variant("rope", 0.05, 0.01, beats_baselines=False)]
        run = make(tmp_path / "run", weak, baselines={"chance": 0.01, "rule": 0.2, "unknown": None})
        leaderboard.write(tmp_path, leaderboard.collect([run]))
        html = (tmp_path / "leaderboard.html").read_text()
        assert html.count('<span class="bad">0.') == 2 and 'class="best"' not in html and 'class="tie"' not in html
        said = "full of run comes first in accuracy, 0.100 ± 0.010, but is no better than the rule baseline of its run"
        assert f"{said}, 0.200." in html and html.count(">no better than a baseline<") == 2

    def test_nothing_finished_is_a_page_too(self, tmp_path):
        table = {"tables": [], "unfinished": [{"run": "a", "missing": ["comparison.json"]}]}
        leaderboard.write(tmp_path, table | {"outdated": [], "passed_over": []})
        assert "0 runs on 0 tasks" in (tmp_path / "leaderboard.html").read_text()
