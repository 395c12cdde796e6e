"""Evaluation at many lengths: cells on disk, numbers over seeds, sweeps, refusals; models here are functions."""

import json
import math
import types

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict

from configs.compare_text import get_config
from experiment import evaluation, evaluation_plan, exams, settings
from experiment.cells import Cells, code_version, combined, effective_length, fingerprint, judged
from experiment.records import write_json
from experiment.settings import SettingsError

LENGTHS = [4, 8, 16]


def asked(length):
    """Six rows, two of them with no depth; longer than 8 is refused."""
    if length > 8:
        raise ValueError(f"no rows of\n{length}")
    groups = {"depth": (["low", "high", "never"], np.array([0, 1, 0, 1, -1, -1]))}
    return exams.Asked(
        {"tokens": np.zeros((6, length), int)}, np.arange(6), groups, {"chance": 1 / length}, str(length)
    )


@pytest.fixture
def plan():
    """Two variants, the second one refused by an exam."""
    config = FrozenConfigDict({"task": "text", "data": {"length": 4}, "model": {"name": "transformer"}})
    other = FrozenConfigDict({"task": "text", "data": {"length": 4}, "model": {"name": "encoder"}})
    exam = exams.Exam(
        "find",
        {"name": "validation accuracy", "higher_is_better": True},
        asked,
        score=None,
        tokens=lambda length: length,
        refusal=lambda variant: "" if variant.model.name == "transformer" else "an encoder cannot",
        rows=6,
    )
    variants = {"one": ("one", config), "two": ("two", other)}
    return types.SimpleNamespace(variants=variants, exams=[exam], lengths=LENGTHS, threshold=0.6, trained=4, examples=6)


@pytest.fixture
def results(tmp_path):
    """Two seeds of each variant."""
    for label in ("one", "two"):
        for seed in (0, 1):
            folder = tmp_path / label / f"seed{seed}" / "checkpoints"
            folder.mkdir(parents=True)
            write_json(folder / "7.json", {"sha256": f"{label}{seed}"})
    return {
        label: [{"label": label, "seed": seed, "steps": 7, "error": None} for seed in (0, 1)]
        for label in ("one", "two")
    }


class Answer:
    """Seed 0 gets the first `right` rows right, seed 1 one more; every call is counted."""

    def __init__(self, right=3, error=None):
        self.calls, self.right, self.error = [], right, error

    def __call__(self, name, config, run, exam, length, asked):
        self.calls.append((name, run["seed"], length))
        if self.error:
            raise self.error
        ones = np.ones(6, np.float32)
        right = (np.arange(6) < self.right + run["seed"]).astype(np.float32)
        return (2 * ones, ones, right, ones), 0.5, "a device"


class Bar:
    """Stands for the progress bar."""

    def __init__(self):
        self.cells = 0

    def phase(self, title):
        pass

    def skip(self, count):
        self.cells += count


def run(*args):
    return evaluation.run(*args, command="python eval.py")


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluation" / "cells.jsonl").read_text().splitlines()]


class TestRun:
    def test_numbers_are_over_seeds_and_failures_are_stated(self, plan, results, tmp_path):
        bar = Bar()
        table = run(plan, tmp_path, results, Answer(), bar)
        (task,) = table["tasks"]
        one, two = task["variants"]
        assert task["name"] == "find" and task["metric"] == {"name": "accuracy", "higher_is_better": True}
        assert task["baselines"] == {"chance": [1 / 4, 1 / 8, None]} and table["device"] == "a device"
        first = one["cells"][0]
        assert first["values"] == [3 / 6, 4 / 6] and first["mean"] == pytest.approx(7 / 12)
        assert first["stderr"] == pytest.approx(np.std([3 / 6, 4 / 6], ddof=1) / math.sqrt(2))
        assert first["stderr_over"] == "seeds" and first["error"] is None and first["seconds"] == 0.5
        assert [cell["mean"] for cell in first["groups"]["depth"]] == [1.0, pytest.approx(0.75), None]
        assert [cell["size"] for cell in first["groups"]["depth"]] == [2, 2, 0]
        assert one["effective_length"] is None and first["positions"] is None
        assert one["cells"][2]["mean"] is None and one["cells"][2]["error"] == "no rows of 16"
        assert [cell["error"] for cell in two["cells"]] == ["an encoder cannot"] * 3
        assert bar.cells == 12

    def test_one_seed_has_the_spread_over_examples(self, plan, results, tmp_path):
        results = {"one": results["one"][:1]}
        del plan.variants["two"]
        table = run(plan, tmp_path, results, Answer(right=4), Bar())
        cell = table["tasks"][0]["variants"][0]["cells"][1]
        assert cell["stderr_over"] == "examples" and cell["values"] == [4 / 6]
        assert cell["stderr"] == pytest.approx(np.std([1, 1, 1, 1, 0, 0], ddof=1) / math.sqrt(6))
        assert table["tasks"][0]["variants"][0]["effective_length"] == 8

    def test_a_length_that_the_task_lacks_does_not_count_against_a_variant(self, plan, results, tmp_path):
        plan.exams = [plan.exams[0]._replace(ask=lambda length: asked(length) if length > 4 else asked(99))]
        table = run(plan, tmp_path, results, Answer(right=5), Bar())
        one, two = table["tasks"][0]["variants"]
        assert one["cells"][0]["error"] == "no rows of 99" and one["cells"][1]["mean"] == pytest.approx(11 / 12)
        assert one["effective_length"] == 8 and two["effective_length"] is None
        assert table["tasks"][0]["lengths"] == [8] and table["tasks"][0]["asked"] == LENGTHS

    def test_what_was_judged_is_not_judged_again(self, plan, results, tmp_path):
        first, second = Answer(), Answer()
        before = run(plan, tmp_path, results, first, Bar())
        stored = lines(tmp_path)
        after = run(plan, tmp_path, results, second, Bar())
        assert len(first.calls) == 4 and second.calls == [] and lines(tmp_path) == stored and len(stored) == 12
        assert after | {"date": None} == before | {"date": None}

    def test_a_line_that_a_kill_cut_short_is_judged_again(self, plan, results, tmp_path):
        run(plan, tmp_path, results, Answer(), Bar())
        path = tmp_path / "evaluation" / "cells.jsonl"
        whole = path.read_bytes().splitlines(keepends=True)
        for cut in (b"".join(whole)[:-1], b"".join(whole[:2]) + whole[2][:30], whole[0][:1], b""):
            path.write_bytes(cut)
            again = Answer()
            run(plan, tmp_path, results, again, Bar())
            judged_before = sum(json.loads(line)["mean"] is not None for line in whole[: cut.count(b"\n")])
            assert len(again.calls) == 4 - judged_before and path.read_bytes() == b"".join(whole)

    def test_other_settings_are_other_cells(self, plan, results, tmp_path):
        run(plan, tmp_path, results, Answer(), Bar())
        write_json(tmp_path / "one" / "seed1" / "checkpoints" / "7.json", {"sha256": "trained anew"})
        retrained = Answer()
        run(plan, tmp_path, results, retrained, Bar())
        assert retrained.calls == [("one", 1, 4), ("one", 1, 8)]
        other = plan.exams[0]._replace(ask=lambda length: asked(length)._replace(sha256="more examples"))
        plan.exams, more = [other], Answer()
        run(plan, tmp_path, results, more, Bar())
        assert len(more.calls) == 4

    def test_other_code_judges_again(self, plan, results, tmp_path, monkeypatch):
        run(plan, tmp_path, results, Answer(), Bar())
        monkeypatch.setattr(evaluation, "code_version", lambda: "edited")
        again = Answer()
        run(plan, tmp_path, results, again, Bar())
        assert len(again.calls) == 4

    def test_a_missing_checkpoint_is_stated_and_tried_again(self, plan, results, tmp_path):
        class Gone(Answer):
            def __call__(self, name, config, run, *args):
                if run["seed"] == 1:
                    raise SettingsError("checkpoints: wanted the checkpoint of step 7")
                return super().__call__(name, config, run, *args)

        cell = run(plan, tmp_path, results, Gone(), Bar())["tasks"][0]["variants"][0]["cells"][0]
        assert cell["values"] == [0.5] and cell["error"].startswith("no checkpoint: checkpoints: wanted")
        again = Answer()
        run(plan, tmp_path, results, again, Bar())
        assert again.calls == [("one", 1, 4), ("one", 1, 8)]

    def test_examples_beyond_memory_are_not_drawn(self, plan, results, tmp_path, monkeypatch):
        monkeypatch.setattr(evaluation.answers, "free_memory", lambda: 6 * 8 * evaluation.TOKEN_BYTES)
        plan.exams = [plan.exams[0]._replace(ask=lambda length: asked(length) if length < 9 else pytest.fail("drawn"))]
        cells = run(plan, tmp_path, results, Answer(), Bar())["tasks"][0]["variants"][0]["cells"]
        assert cells[1]["mean"] is not None and cells[2]["error"].startswith("out of memory: the examples alone want")

    def test_tasks_of_an_earlier_command_stay_while_they_hold(self, plan, results, tmp_path):
        earlier = run(plan, tmp_path, results, Answer(), Bar())
        plan.exams = [plan.exams[0]._replace(name="other", trained=True)]
        table = run(plan, tmp_path, results, Answer(), Bar())
        both, gone = evaluation.with_earlier(table, earlier)
        assert [(t["name"], t["trained"]) for t in both["tasks"]] == [("other", True), ("find", False)] and not gone
        assert evaluation.with_earlier(table, None) == (table, [])
        assert evaluation.with_earlier(earlier, earlier)[0] == earlier
        earlier["tasks"][0]["device"] = "another device"
        assert evaluation.with_earlier(table, earlier)[0]["device"] == "a device and another device"
        write_json(tmp_path / "two" / "seed0" / "checkpoints" / "7.json", {"sha256": "trained anew"})
        table = run(plan, tmp_path, results, Answer(), Bar())
        only, gone = evaluation.with_earlier(table, earlier)
        assert only == table and gone == ["find: judged with other checkpoints or code than now; ask for it again"]

    def test_what_a_narrower_command_replaces_is_told(self, plan, results, tmp_path):
        earlier = run(plan, tmp_path, results, Answer(), Bar())
        plan.lengths = LENGTHS[:2]
        del plan.variants["two"]
        table, left = evaluation.with_earlier(run(plan, tmp_path, results, Answer(), Bar()), earlier)
        assert [task["asked"] for task in table["tasks"]] == [[4, 8]]
        assert left == ["find: 16, two of an earlier command; ask for all in one, nothing is lost"]

    def test_memory_is_tried_again_and_a_refusal_is_not(self, plan, results, tmp_path):
        with pytest.raises(SettingsError, match="nothing could be judged: out of memory: 9 GB"):
            run(plan, tmp_path, results, Answer(error=MemoryError("9 GB")), Bar())
        with pytest.raises(SettingsError, match="nothing could be judged: T is too long"):
            run(plan, tmp_path, results, Answer(error=ValueError("T is\ntoo long")), Bar())
        again = Answer()
        with pytest.raises(SettingsError):
            run(plan, tmp_path, results, again, Bar())
        assert again.calls == []

    def test_a_diverged_seed_is_stated_beside_the_others(self, plan, results, tmp_path):
        results["one"][1]["error"] = "loss became nan"
        table = run(plan, tmp_path, results, Answer(), Bar())
        cell = table["tasks"][0]["variants"][0]["cells"][0]
        assert cell["values"] == [0.5] and cell["error"] == "training failed: loss became nan"

    def test_scores_that_are_no_numbers_are_an_error(self, plan, results, tmp_path):
        def answer(*_):
            return (np.full(6, np.nan), np.ones(6), np.ones(6), np.ones(6)), 0.5, "a device"

        with pytest.raises(SettingsError, match="scores are not finite"):
            run(plan, tmp_path, results, answer, Bar())

    def test_an_error_of_the_code_is_no_cell(self, plan, results, tmp_path):
        with pytest.raises(ZeroDivisionError):
            run(plan, tmp_path, results, Answer(error=ZeroDivisionError()), Bar())


class TestCells:
    def test_two_processes_do_not_write_at_once(self, tmp_path):
        with Cells(tmp_path), pytest.raises(SettingsError, match="another process"):
            Cells(tmp_path)
        Cells(tmp_path).file.close()

    @pytest.mark.parametrize("line", [b"{", b"[]", b"5", b"{}", b"\xff"])
    def test_lines_that_are_no_cells_are_told_in_one_line(self, tmp_path, line):
        (tmp_path / "cells.jsonl").write_bytes(line + b"\n")
        with pytest.raises(SettingsError, match="cells.jsonl: holds lines that are no cells; remove it"):
            Cells(tmp_path)

    def test_a_fingerprint_knows_every_setting(self):
        assert fingerprint(length=1, task="a") != fingerprint(length=2, task="a")

    def test_the_version_of_the_code_knows_every_file_that_judges(self, tmp_path):
        versions = []
        files = [("tasks/a.py", "1"), ("tasks/a.py", "2"), ("tasks/sub/a.py", ""), ("models/a.py", "2")]
        files += [(f"experiment/{name}.py", "") for name in ("judging", "estimate", "learner", "answers")]
        for name, text in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
            code_version.cache_clear()
            versions.append(code_version(tmp_path))
        (tmp_path / "experiment" / "report.py").write_text("a page")
        code_version.cache_clear()
        assert len(set(versions)) == len(files) and code_version(tmp_path) == versions[-1] != code_version()

    def test_stretches_of_places_have_their_own_error_bar_and_sum_to_the_whole(self):
        rng = np.random.default_rng(0)
        bits, sizes = rng.random((5, 3)), np.ones((5, 3))
        sizes[:, 2] = 0
        cell = judged((bits, np.ones((5, 3)), bits * sizes, sizes), np.arange(5), {}, [0, 1, 2, 4])
        assert cell["positions"]["edges"] == [0, 1, 2, 4] and cell["positions"]["sizes"] == [5.0, 5.0, 0.0]
        np.testing.assert_allclose(cell["positions"]["mean"][:2], bits.mean(0)[:2])
        np.testing.assert_allclose(cell["positions"]["stderr"][:2], bits.std(0, ddof=1)[:2] / math.sqrt(5))
        assert cell["positions"]["mean"][2] is None
        assert cell["mean"] == pytest.approx(bits[:, :2].mean()) and cell["loss"] == pytest.approx(bits.mean())

    def test_positions_over_seeds(self):
        rows = [np.full((4, 2), value) for value in (1.0, 3.0)]
        ones = np.ones((4, 2))
        cells = [judged((each, ones, each, ones), np.arange(4), {}, [0, 1, 2]) for each in rows]
        found = combined([cell | {"length": 2, "error": None, "seconds": 1.0} for cell in cells])
        assert found["positions"] == {"edges": [0, 1, 2], "mean": [2.0, 2.0], "stderr": [1.0, 1.0]}

    def test_a_metric_of_several_columns_is_the_mean_of_their_ratios(self):
        amounts = np.array([[1.0, 0.0], [1.0, 2.0]])
        cell = judged((np.ones(2), np.ones(2), amounts, np.array([[2.0, 1.0], [2.0, 3.0]])), np.arange(2), {}, None)
        assert cell["mean"] == pytest.approx((2 / 4 + 2 / 4) / 2) and cell["positions"] is None

    @pytest.mark.parametrize(
        "means, wanted", [([0.9, 0.9, 0.9], 16), ([0.9, 0.5, 0.9], 4), ([0.5, 0.9, 0.9], None), ([0.85, None, 0.9], 4)]
    )
    def test_effective_length_stops_at_the_first_failure(self, means, wanted):
        cells = [{"length": length, "mean": mean} for length, mean in zip(LENGTHS, means, strict=True)]
        assert effective_length(cells[::-1], 0.85) == wanted


def variants(**changes):
    config = get_config()
    config.data.length = 16
    config.model.update(width=8, depth=1, num_heads=2, num_kv_heads=2, mlp_width=8)
    return {label: settings.variants(config)[label] for label in ("full", "window", "lsh")}


class TestSweep:
    def test_each_value_is_a_variant_and_the_others_stay(self):
        found = evaluation_plan.sweep(["model.attention.num_hashes:1,4"], variants())
        assert list(found) == ["full", "window", "lsh num_hashes=1", "lsh num_hashes=4"]
        assert found["lsh num_hashes=4"][0] == "lsh" and found["lsh num_hashes=4"][1].model.attention.num_hashes == 4
        assert found["full"][1] == variants()["full"]

    def test_a_field_that_all_have_reaches_all(self):
        found = evaluation_plan.sweep(["model.rope_base:10000,50000.5"], variants())
        assert len(found) == 6 and found["full rope_base=50000.5"][1].model.rope_base == 50000.5

    def test_several_fields_make_all_combinations_and_names_say_what_varies(self):
        texts = ["model.attention.bucket_size:4", "model.attention.num_hashes:1,2", "model.rope_base:100.0,200.0"]
        found = evaluation_plan.sweep(texts, variants())
        swept = [f"lsh num_hashes={n} rope_base={base}" for n in (1, 2) for base in (100.0, 200.0)]
        assert list(found)[-4:] == swept and "window rope_base=200.0" in found and len(found) == 8
        attention = found[swept[2]][1].model.attention
        assert (attention.bucket_size, attention.num_hashes, found[swept[2]][1].model.rope_base) == (4, 2, 100.0)
        assert list(evaluation_plan.sweep(texts[:1], variants())) == ["full", "window", "lsh bucket_size=4"]

    @pytest.mark.parametrize(
        "text, message",
        [
            (
                "model.attention.rounds:1",
                "none of full, window, lsh has the field model.attention.rounds with a single",
            ),
            ("model.attention.num_hashes", "want model.FIELD:VALUE,VALUE"),
            ("train.steps:1,2", "want model.FIELD:VALUE,VALUE"),
            ("model.attention:1", "has the field model.attention with a single value"),
            ("model.rope_base:1.0 model.rope_base:2.0", "want each field once"),
            ("model.rope_base:100.0 model.width:16", "100.0, 16 changes the shape of a trained parameter"),
            ("model.attention.num_hashes:two", "want int values, got 'two'"),
            ("model.attention.num_hashes:1,1", "want different items"),
            ("model.attention.num_hashes:0", "num_hashes"),
            ("model.tie_embeddings:maybe", "want bool values"),
            ("model.width:16", "16 changes the shape of a trained parameter"),
            ("model.tie_embeddings:False", "changes the shape"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, text, message):
        with pytest.raises(SettingsError, match=message) as caught:
            evaluation_plan.sweep(text.split(), variants())
        assert "\n" not in str(caught.value)


def parsed(*line):
    values = flags.FlagValues()
    evaluation_plan.define_flags(values)
    flags.DEFINE_string("variant", "", "", flag_values=values)
    values(["eval.py", *line])
    return values


def recall_config(**data):
    config = get_config()
    config.task = "recall"
    config.data = ConfigDict(
        {"name": "mqar", "length": 32, "vocabulary": 64, "num_pairs": 5, "num_symbols": 0, "power": 1.0}
        | {"filler": "random", "validation_examples": 4}
        | data
    )
    return config


class TestPlan:
    def plan(self, config, *line):
        results = {label: [{"seed": 0}, {"seed": 1}] for label in ("full", "lsh")}
        return evaluation_plan.Plan(parsed(*line), config, results, "sha")

    def test_defaults_are_the_own_task_at_one_to_eight_times_its_length(self):
        plan = self.plan(get_config(), "--lengths=")
        assert [exam.name for exam in plan.exams] == ["extrapolation"] and plan.lengths == [512, 1024, 2048, 4096]
        assert [exam.name for exam in self.plan(recall_config(name="mqar, passkey")).exams] == ["mqar", "passkey"]
        plan = self.plan(recall_config(name="mqar,passkey"), "--tasks=extrapolation,induction,mqar")
        assert plan.lengths == [32, 64, 128, 256] and list(plan.variants) == ["full", "lsh"]
        assert [exam.name for exam in plan.exams] == ["extrapolation", "induction", "mqar"]
        assert plan.count({"full": [1, 2], "lsh": [1]}) == 3 * 3 * 4

    @pytest.mark.parametrize(
        "line, message",
        [
            (["--tasks=mqra"], "--tasks=mqra: unknown for this run, want some of .*extrapolation.*mqar"),
            (["--tasks=text"], "unknown for this run"),
            (["--tasks=mqar,,passkey"], "want different items"),
            (["--lengths=64,many"], "want integers of at least 1, got 'many'"),
            (["--lengths=0"], "want integers of at least 1"),
            (["--lengths=-5"], "want integers of at least 1"),
            (["--lengths=64,64"], "want different items"),
            (["--lengths=64", "--examples=0"], "want at least 1"),
            (["--lengths=64", "--examples=5"], "--examples: has no effect on extrapolation"),
            (["--lengths=64", "--threshold=0.5"], "--threshold: has no effect"),
            (["--lengths=064,64"], "--lengths=64,64: want different items, comma-separated, got '64'"),
            (["--lengths=64", "--threshold=nan"], "--threshold=nan: want 0 to 1"),
            (["--lengths=64", "--threshold=7"], "--threshold=7: want 0 to 1"),
            (["--lengths=64", "--variant=window"], "--variant=window: not finished or unknown"),
        ],
    )
    def test_what_cannot_be_is_refused(self, line, message):
        with pytest.raises(SettingsError, match=message):
            self.plan(get_config(), *line)

    def test_flags_without_effect_are_refused(self):
        assert not evaluation_plan.wanted(parsed())
        assert evaluation_plan.wanted(parsed("--tasks=mqar")) and evaluation_plan.wanted(parsed("--lengths=3"))
        for line in ("--threshold=0.5", "--examples=3", "--sweep=model.width:3"):
            with pytest.raises(SettingsError, match="has no effect without --tasks or --lengths"):
                evaluation_plan.wanted(parsed(line))


class TestExams:
    def test_recall_takes_the_settings_of_the_run_where_it_has_any(self):
        data = exams.recall_data("mqar", recall_config(), 48, 9)
        assert (data.num_pairs, data.power, data.filler) == (5, 1.0, "random")
        assert (data.name, data.length, data.vocabulary, data.validation_examples) == ("mqar", 48, 64, 9)
        copying = exams.recall_data("copying", recall_config(), 48, 9)
        assert (copying.num_pairs, copying.power, copying.filler) == (0, 1.0, "")
        assert copying.num_symbols == exams.TYPICAL["num_symbols"]
        assert exams.recall_data("mqar", get_config(), 48, 9).vocabulary == 256

    def test_recall_of_any_length_with_as_many_examples_as_wanted(self):
        (exam,) = exams.find(["mqar"], recall_config(), 9, "")
        found = {length: exam.ask(length) for length in (32, 48)}
        assert found[48].examples["tokens"].shape == (9, 48) and len(found[32].owners) == 9
        assert found[32].sha256 != found[48].sha256 and exam.ask(32).sha256 == found[32].sha256
        assert all(0 < value <= 1 for value in found[32].baselines.values())

    def test_who_cannot_be_asked(self):
        config = recall_config()
        (mqar, text) = exams.find(["mqar", "extrapolation"], config, 9, "")
        assert mqar.refusal(config) == "" and "of models of the task 'text', not 'recall'" in text.refusal(config)
        config.model.vocab_size = 63
        assert mqar.refusal(config) == "model.vocab_size=63: mqar wants 64 tokens"
        config.model.name = "encoder"
        assert "token by token" in mqar.refusal(config)

    def test_rows_are_what_is_drawn(self):
        from configs.needle_classification import get_config as needle

        config = needle()
        config.data.validation_examples = 70
        (own,) = exams.find(["needle_classification"], config, 9, "")
        (mqar,) = exams.find(["mqar"], recall_config(), 9, "")
        (text,) = exams.find(["extrapolation"], get_config(), 9, "")
        assert (own.rows, mqar.rows, text.rows) == (70, 9, 0)

    def test_own_task_gives_rows_spread_over_all_of_them(self):
        from configs.compare_rewriting import get_config as rewriting
        from tasks import TASKS

        config = rewriting()
        corpus = TASKS["rewriting"].load(config.data)
        (exam,) = exams.find(["rewriting"], config, 5, corpus.sha256)
        rows, _ = TASKS["rewriting"].validation(corpus, 13)
        some = exam.ask(13).examples
        picked = np.linspace(0, len(rows["source"]) - 1, 5).round().astype(int)
        np.testing.assert_array_equal(some["source"], rows["source"][picked])
        (changed,) = exams.find(["rewriting"], config, 5, "other data")
        with pytest.raises(SettingsError, match="data it was trained on have changed"):
            changed.ask(13)
