"""The leaderboard: runs of one task are ranked together, what is not told apart or not finished is said."""

import csv
import json

import pytest
from test_report import Page

from experiment import leaderboard

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


def make(folder, variants, labels=None, sha256="a", metric=ACCURACY, baselines=None, device="cpu", **settings):
    folder.mkdir(parents=True)
    labels = labels or [v["name"] for v in variants]
    table = {"task": "recall", "metric": metric, "unit": {"name": "tokens", "tokens": 1}, "device": device}
    table |= {"baselines": {"chance": 0.125} if baselines is None else baselines, "variants": variants}
    for name, content in (("config", config(labels, **settings)), ("data", {"sha256": sha256}), ("comparison", table)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def evaluate(folder, reached, threshold=0.85):
    """Writes the evaluation.json of variants that reach so far; {name: length or None}."""
    variants = [{"name": name, "effective_length": length, "cells": []} for name, length in reached.items()]
    tasks = [
        {"name": "passkey", "metric": ACCURACY, "variants": variants},
        {"name": "extrapolation", "metric": {"name": "bits", "higher_is_better": False}, "variants": variants},
    ]
    table = {"threshold": threshold, "lengths": [64, 128, 256], "tasks": tasks}
    (folder / "evaluation.json").write_text(json.dumps(table))


@pytest.fixture
def two(tmp_path):
    one = make(tmp_path / "one", [variant("full", 0.90, 0.03), variant("<window>", 0.80, 0.01)], labels=["full"])
    more = [variant("near", 0.86, 0.03), variant("bare", 0.85, None), variant("lost", None, None, error="NaN & <b>")]
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

    def test_tells_apart_by_one_standard_error_of_the_difference(self, two):
        states = rows(leaderboard.collect(two), "standing")  # 0.04 <= hypot(0.03, 0.03) = 0.042 < 0.10
        assert states == {"full": "best", "near": "not told apart", "bare": "no error bar", "<window>": "", "lost": ""}

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
        assert reached["full"] == {"passkey": {"length": 256, "threshold": 0.85, "longest": 256}}
        assert reached["<window>"]["passkey"]["length"] is None and reached["near"] == {}

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
        assert table == {"tables": [], "unfinished": [{"run": "run", "missing": missing}]}

    def test_a_part_is_ranked_and_listed(self, tmp_path):
        folder = make(tmp_path / "run", [variant("full", 0.5, 0.1)], labels=["full", "window"], seeds=3)
        table = leaderboard.collect([folder])
        assert table["unfinished"] == [{"run": "run", "missing": ["full: 1 of 3 seeds", "window"]}]
        assert list(rows(table, "run")) == ["full"]

    def test_a_variant_that_failed_is_not_missing(self, tmp_path):
        folder = make(tmp_path / "run", [variant("full", None, None, error="NaN")])
        assert leaderboard.collect([folder])["unfinished"] == []


class TestRefuses:
    def check(self, folders, message):
        with pytest.raises(ValueError, match=message) as error:
            leaderboard.collect(folders)
        assert "\n" not in str(error.value)

    def test_a_folder_without_a_run(self, tmp_path):
        self.check([tmp_path], "want the folder of a run of train.py")
        self.check([tmp_path / "nowhere"], "nowhere: want the folder of a run")

    def test_a_folder_twice(self, two):
        self.check([two[0], two[0].parent / "." / "two" / ".." / "one"], "each folder once")

    def test_a_broken_file(self, two):
        (two[0] / "comparison.json").write_text("{")
        self.check(two, "comparison.json: not a readable JSON file")


class TestWrite:
    @pytest.fixture
    def written(self, two, tmp_path):
        half = tmp_path / "ha<lf"
        half.mkdir()
        (half / "config.json").write_text(json.dumps(config(["full"])))
        table = leaderboard.collect([*two, half])
        (tmp_path / "out").mkdir()
        leaderboard.write(tmp_path / "out", table)
        return tmp_path / "out", table

    def test_json_is_the_table(self, written):
        folder, table = written
        assert json.loads((folder / "leaderboard.json").read_text()) == table

    def test_csv(self, written):
        with (written[0] / "leaderboard.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        kinds = [row["kind"] for row in found]
        assert kinds == ["variant"] * 5 + ["baseline"] * 3 + ["unfinished"]
        assert found[0]["mean"] == "0.9" and found[0]["effective_length_passkey"] == "256"
        assert found[4]["mean"] == "" and found[4]["error"] == "NaN & <b>"
        assert (found[5]["name"], found[5]["mean"], found[5]["run"]) == ("chance", "0.125", "one")
        assert found[8]["error"] == "missing: full seed 0, comparison.json"

    def test_page_stands_alone_and_is_escaped(self, written):
        html = (written[0] / "leaderboard.html").read_text()
        page = Page(html)
        assert len(page.ids) == len(set(page.ids)) and not page.references
        assert "<window>" not in html and "<b>" not in html and "a <gpu>" not in html and "ha<lf" not in html

    def test_page_says_what_the_numbers_say(self, written):
        html = (written[0] / "leaderboard.html").read_text()
        text = " ".join(" ".join(Page(html).text).split())
        assert "full of one has the best accuracy: 0.900 ± 0.030; near of two cannot be told apart from it." in text
        assert '<span class="best">0.900 ± 0.030</span>' in html and '<span class="tie">0.860 ± 0.030</span>' in html
        assert "≥ 256" in text and "none" in text and "no error bar" in text and "failed NaN & <b>" in text
        assert "chance baseline 0.125" in text and "rule baseline of two 0.500" in text
        assert "device" in text and "a <gpu>" in text
        assert "missing: full seed 0, comparison.json" in text

    def test_what_does_not_beat_its_baseline_is_never_the_best(self, tmp_path):
        weak = [variant("full", 0.1, 0.01, beats_baselines=False), variant("rope", 0.05, 0.01, beats_baselines=False)]
        leaderboard.write(tmp_path, leaderboard.collect([make(tmp_path / "run", weak)]))
        html = (tmp_path / "leaderboard.html").read_text()
        assert '<span class="bad">0.100 ± 0.010</span>' in html and '<span class="best">0.1' not in html

    def test_nothing_finished_is_a_page_too(self, tmp_path):
        leaderboard.write(tmp_path, {"tables": [], "unfinished": [{"run": "a", "missing": ["comparison.json"]}]})
        assert "0 runs on 0 tasks" in (tmp_path / "leaderboard.html").read_text()
