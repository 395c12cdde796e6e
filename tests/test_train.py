"""train.py and eval.py from their command lines: what they write, refuse, survive and repeat."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import eval as evaluation
import train
from configs.compare_text import get_config
from experiment import checkpoint
from experiment.progress import Progress
from experiment.records import read_arrays, read_json, read_rows, write_json

TINY = [
    "--config.data.length=13",
    "--config.data.validation_bytes=400",
    "--config.model.width=6",
    "--config.model.depth=1",
    "--config.model.num_heads=3",
    "--config.model.num_kv_heads=3",
    "--config.model.mlp_width=5",
    "--config.train.optimizer=adamw",
    "--config.train.steps=7",
    "--config.train.warmup_steps=2",
    "--config.train.batch_size=2",
    "--config.train.evaluate_every=3",
    "--config.train.evaluate_examples=8",
    "--config.train.checkpoint_every=2",
    "--config.scaling.seconds=0",
]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A text of the user's own."""
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_bytes("".join(f"{n} bottles of beer on the wall.\n" for n in range(300)).encode())
    return path


@pytest.fixture(scope="module")
def command(story):
    """Returns a function: flags -> the command line of a tiny run in a folder."""

    def build(workdir, *changes, only="full"):
        own = [f"--workdir={workdir}", f"--config.data.path={story}", f"--config.only={only}"]
        return ["train.py", *TINY, *own, *changes]

    return build


@pytest.fixture
def no_report(monkeypatch):
    """Leaves out the figures, which these tests do not look at."""
    monkeypatch.setattr("experiment.report.write_report", lambda *_: None)


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """A comparison of two variants that ran through."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(command(workdir, only="full,linear")) == 0
    return workdir


def numbers(workdir, label="full", seed=0):
    """Everything of a run that must repeat bit for bit."""
    rows = read_rows(workdir / label / f"seed{seed}" / "metrics.jsonl")
    result = read_json(workdir / label / f"seed{seed}" / "result.json")
    return [{**row, "seconds": None} for row in rows], result["quality"], result["amounts"], result["stderr"]


class TestFinished:
    def test_leaves_what_the_design_lists(self, finished):
        for name in ("config.json", "comparison.json", "comparison.csv", "report.html", "full/seed0/metrics.jsonl"):
            assert (finished / name).stat().st_size > 0
        assert list(finished.glob("figures/*.png"))
        assert list(finished.glob("linear/seed0/events.out.tfevents.*"))
        assert checkpoint.steps(finished / "full" / "seed0" / "checkpoints") == [6, 7]

    def test_comparison_holds_the_schema(self, finished):
        table = read_json(finished / "comparison.json")
        assert table["metric"] == {"name": "validation bits per byte", "higher_is_better": False}
        assert {"task", "device", "versions", "baselines", "command", "date"} <= set(table)
        assert [variant["name"] for variant in table["variants"]] == ["full", "linear"]
        for variant in table["variants"]:
            assert {"parameters", "train_tokens_per_second", "forward_tokens_per_second", "step_ms", "scaling"} < set(
                variant
            )
            assert {"compile_seconds", "peak_memory_bytes", "flops_per_step", "attention", "error"} < set(variant)
            assert set(variant["quality"]) == {"mean", "stderr", "values", "stderr_over"}
            assert 0 < variant["quality"]["mean"] < 9 and variant["error"] is None
        full, linear = table["variants"]
        gap = linear["quality"]["mean"] - full["quality"]["mean"]
        assert linear["differences"]["full"]["mean"] == pytest.approx(gap)
        assert full["differences"]["linear"]["mean"] == pytest.approx(-gap)

    def test_quality_is_total_bits_over_total_bytes(self, finished):
        result = read_json(finished / "full" / "seed0" / "result.json")
        data = read_json(finished / "data.json")
        assert sum(result["sizes"]) == data["validation_bytes"] - data["validation_pieces"]
        assert result["quality"] == pytest.approx(sum(result["amounts"]) / sum(result["sizes"]))

    def test_rows_are_complete(self, finished):
        rows = read_rows(finished / "full" / "seed0" / "metrics.jsonl")
        assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 8))
        assert [row["step"] for row in rows if row["split"] == "validation"] == [3, 6, 7]
        assert [row["tokens"] for row in rows if row["split"] == "train"] == [26 * step for step in range(1, 8)]

    def test_again_does_nothing_but_print(self, finished, command, capsys, monkeypatch):
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
        monkeypatch.setattr("experiment.learner.make_learner", pytest.fail)
        assert train.main(command(finished, only="full,linear")) == 0
        out = capsys.readouterr().out
        assert "full" in out and "linear" in out and "bigram" in out
        changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
        assert changed == []

    def test_changed_config_is_refused_with_the_difference(self, finished, command, capsys):
        assert train.main(command(finished, "--config.model.width=12")) == 2
        assert "config.model.width: 6 -> 12" in capsys.readouterr().err

    def test_changed_text_is_refused(self, finished, command, story, capsys):
        content = story.read_bytes()
        story.write_bytes(content.replace(b"beer", b"wine"))
        try:
            assert train.main(command(finished)) == 2
        finally:
            story.write_bytes(content)
        assert "data.sha256: " in capsys.readouterr().err


class TestEval:
    def test_repeats_the_quality(self, finished, capsys):
        assert evaluation.main(["eval.py", f"--workdir={finished}"]) == 0
        assert "linear" in capsys.readouterr().out
        found, stored = (read_json(finished / name) for name in ("evaluation_T13.json", "comparison.json"))
        for one, other in zip(found["variants"], stored["variants"], strict=True):
            assert one["quality"] == other["quality"]

    def test_other_length(self, finished):
        assert evaluation.main(["eval.py", f"--workdir={finished}", "--length=29"]) == 0
        found, stored = (read_json(finished / name) for name in ("evaluation_T29.json", "comparison.json"))
        assert found["length"] == 29
        assert found["variants"][0]["quality"]["mean"] != stored["variants"][0]["quality"]["mean"]
        assert found["baselines"] == stored["baselines"]

    def test_keeps_the_order_of_the_config(self, tmp_path):
        labels = list(get_config().variants)
        write_json(tmp_path / "config.json", get_config().to_dict())
        for label in reversed(labels):
            (tmp_path / label / "seed0").mkdir(parents=True)
            write_json(tmp_path / label / "seed0" / "result.json", {"label": label})
        assert list(evaluation.finished(tmp_path)[1]) == labels

    def test_refuses_what_is_missing(self, tmp_path, capsys):
        assert evaluation.main(["eval.py", f"--workdir={tmp_path}"]) == 2
        assert "no comparison there" in capsys.readouterr().err
        assert evaluation.main(["eval.py", f"--workdir={tmp_path}", "--length=0"]) == 2
        assert evaluation.main(["eval.py", "--lenght=3"]) == 2


class TestStopping:
    def test_sigterm_saves_leaves_and_goes_on_to_the_same_numbers(self, finished, command, tmp_path, monkeypatch):
        original = Progress.step

        def stop_at_5(self, row, *rest):
            if row["step"] == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, row, *rest)

        monkeypatch.setattr(Progress, "step", stop_at_5)
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            train.main(command(tmp_path / "run"))
        assert caught.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handler
        assert checkpoint.steps(tmp_path / "run" / "full" / "seed0" / "checkpoints") == [4, 5]
        monkeypatch.setattr("experiment.report.write_report", lambda *_: None)
        monkeypatch.setattr(Progress, "step", original)
        assert train.main(command(tmp_path / "run")) == 0
        assert numbers(tmp_path / "run") == numbers(finished)

    def test_torn_newest_checkpoint_goes_on_from_the_one_before(self, finished, command, tmp_path, capsys, no_report):
        import shutil

        workdir = tmp_path / "run"
        shutil.copytree(finished, workdir)
        (workdir / "full" / "seed0" / "result.json").unlink()
        newest = workdir / "full" / "seed0" / "checkpoints" / "7"
        for file in newest.rglob("*"):
            if file.is_file():
                os.truncate(file, file.stat().st_size // 2)
        assert train.main(command(workdir)) == 0
        assert "checkpoints/7 skipped" in capsys.readouterr().err.replace("\n", "")
        assert numbers(workdir) == numbers(finished)

    def test_full_disk_ends_with_a_line_and_leaves_the_older_checkpoints(
        self, command, tmp_path, capsys, monkeypatch, no_report
    ):
        original = checkpoint.write_json

        def full_at_6(path, content):
            if path.name == "6.json":
                raise OSError(errno.ENOSPC, "No space left on device")
            original(path, content)

        monkeypatch.setattr(checkpoint, "write_json", full_at_6)
        assert train.main(command(tmp_path / "run")) == 1
        err = capsys.readouterr().err
        assert "train.py: disk full: no space left to save step 6" in err and "[2, 4] are intact" in err
        assert checkpoint.steps(tmp_path / "run" / "full" / "seed0" / "checkpoints") == [2, 4]


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A finished classification of a folder of the user's own, by an encoder that reads no further than T = 13."""
    root = tmp_path_factory.mktemp("classes")
    for name in ("ham", "spam", "eggs"):
        (root / "text" / name).mkdir(parents=True)
        for i in range(6):
            (root / "text" / name / f"{i}.txt").write_bytes(f"{name} number {i}. ".encode() * (i + 1))
    line = ["train.py", "--config=configs/compare_classification.py", *TINY, f"--workdir={root / 'run'}"]
    line += [f"--config.data.path={root / 'text'}", "--config.only=full", "--config.model.position=learned"]
    return line, root / "run", train.main(line)


class TestOtherTasks:
    def test_classification_gives_accuracy_and_the_data_decide_the_classes(self, classified):
        _, workdir, code = classified
        table, data = read_json(workdir / "comparison.json"), read_json(workdir / "data.json")
        assert code == 0 and table["metric"] == {"name": "validation accuracy", "higher_is_better": True}
        assert read_json(workdir / "config.json")["model"]["num_classes"] == 3
        assert data["classes"] == ["eggs", "ham", "spam"] and set(table["baselines"]) == {"majority", "naive Bayes"}
        result = read_json(workdir / "full" / "seed0" / "result.json")
        assert result["quality"] == sum(result["amounts"]) / sum(result["sizes"])
        assert (
            sum(result["sizes"]) == data["validation_examples"] and len(result["sizes"]) == data["validation_documents"]
        )
        rows = read_rows(workdir / "full" / "seed0" / "metrics.jsonl")
        assert all(0 <= row["accuracy"] <= 1 and row["loss"] > 0 for row in rows)

    def test_again_does_nothing_but_print(self, classified, capsys, monkeypatch):
        monkeypatch.setattr("experiment.learner.make_learner", pytest.fail)
        assert train.main(classified[0]) == 0
        assert "accuracy" in capsys.readouterr().out

    def test_eval_repeats_and_refuses_a_length_beyond_the_model_in_one_line(self, classified, capsys):
        _, workdir, _ = classified
        assert evaluation.main(["eval.py", f"--workdir={workdir}"]) == 0
        found, stored = (read_json(workdir / name) for name in ("evaluation_T13.json", "comparison.json"))
        assert found["variants"][0]["quality"] == stored["variants"][0]["quality"]
        capsys.readouterr()
        assert evaluation.main(["eval.py", f"--workdir={workdir}", "--length=14"]) == 2
        warning, error = capsys.readouterr().err.splitlines()
        assert warning.startswith("warning: full: tokens: T = 14 is beyond the 13 learned positions")
        assert error.endswith("--length=14: no variant can be judged at it")

    def test_masked_text(self, command, tmp_path, no_report):
        flags = ["--config.task=masked_text", "--config.data.name=python_stdlib", "--config.model.vocab_size=257"]
        line = command(tmp_path / "run", "--config=configs/compare_classification.py", *flags, only="linear")
        assert train.main(line) == 0
        (variant,) = read_json(tmp_path / "run" / "comparison.json")["variants"]
        assert 0 < variant["quality"]["mean"] < 9
        last = read_rows(tmp_path / "run" / "linear" / "seed0" / "metrics.jsonl")[-1]
        assert last["split"] == "validation" and last["bits_per_masked_byte"] > 0

    @pytest.mark.slow
    def test_rewriting_trains_an_encoder_decoder(self, tmp_path, no_report):
        flags = [f"--workdir={tmp_path / 'run'}", "--config.only=window_encoder,linformer"]
        assert train.main(["train.py", "--config=configs/compare_rewriting.py", *TINY, *flags]) == 0
        table, data = (read_json(tmp_path / "run" / name) for name in ("comparison.json", "data.json"))
        assert table["metric"] == {"name": "validation token accuracy", "higher_is_better": True}
        assert table["baselines"] == {"chance": 1 / 32} and data["validation_examples"] == 400 // 13
        assert [variant["attention"]["name"] for variant in table["variants"]] == ["window", "linformer"]
        for variant in table["variants"]:
            result = read_json(tmp_path / "run" / variant["name"] / "seed0" / "result.json")
            assert result["sizes"] == [13] * (400 // 13) and result["quality"] == sum(result["amounts"]) / 390
        rows = read_rows(tmp_path / "run" / "linformer" / "seed0" / "metrics.jsonl")
        assert all(0 <= row["token_accuracy"] <= 1 and row["loss"] > 0 for row in rows)
        assert evaluation.main(["eval.py", f"--workdir={tmp_path / 'run'}"]) == 0
        again = read_json(tmp_path / "run" / "evaluation_T13.json")
        assert [v["quality"] for v in again["variants"]] == [v["quality"] for v in table["variants"]]


IMAGES = """
from configs import compare_vision
def get_config():
    config = compare_vision.get_config()
    small = {"width": 8, "depths": (1,), "num_heads": 2}
    for label in ("axial", "swin"):
        config.variants[label].model.update(small | {"num_heads": (2,) if label == "swin" else 2})
    config.model.update(width=8, depth=1, num_heads=2, num_kv_heads=2, mlp_width=8)
    config.train.update(steps=5, warmup_steps=1, batch_size=6, evaluate_every=3, evaluate_examples=4, checkpoint_every=2)
    config.scaling.seconds = 0.0
    return config
"""


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A finished comparison of image models on a folder of the user's own: its command line, folder and exit code."""
    root = tmp_path_factory.mktemp("images")
    (root / "small.py").write_text(IMAGES)
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 128)):
        (root / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(low, low + 128, (9, 7, 3), np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{i}.png")
    line = ["train.py", f"--config={root / 'small.py'}", f"--config.data.path={root / 'data'}"]
    line += ["--config.data.image_size=6", "--config.only=vit_axial,axial", f"--workdir={root / 'run'}"]
    return line, root / "run", train.main(line)


@pytest.mark.slow  # compiling three models takes a minute
class TestImages:
    def test_report_shows_what_each_model_looks_at_and_speed_in_images(self, pictured):
        _, workdir, code = pictured
        table, page = read_json(workdir / "comparison.json"), (workdir / "report.html").read_text()
        assert code == 0 and table["unit"] == {"name": "images", "tokens": 36}
        assert [variant["model"] for variant in table["variants"]] == ["vit", "axial"]
        assert read_json(workdir / "config.json")["model"]["channels"] == 3
        assert "rollout" in page and "images/s" in page and (workdir / "figures" / "attention.png").exists()
        pictures = read_arrays(workdir / "vit_axial" / "pictures.npz")
        np.testing.assert_allclose(pictures["maps"].sum((1, 2)), 1, rtol=1e-5)

    def test_eval_repeats_the_quality_with_the_running_averages_of_the_checkpoint(self, pictured):
        _, workdir, _ = pictured
        assert evaluation.main(["eval.py", f"--workdir={workdir}"]) == 0
        found, stored = (read_json(workdir / name) for name in ("evaluation_T6.json", "comparison.json"))
        assert [v["quality"] for v in found["variants"]] == [v["quality"] for v in stored["variants"]]

    def test_stopped_in_the_middle_it_goes_on_to_the_same_numbers(self, pictured, tmp_path, monkeypatch, no_report):
        line, workdir, _ = pictured
        line = [*line, "--config.only=axial", f"--workdir={tmp_path / 'run'}"]
        original = checkpoint.save

        def stop_after_4(folder, step, *rest):
            original(folder, step, *rest)
            if step == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint, "save", stop_after_4)
        with pytest.raises(KeyboardInterrupt):
            train.main(line)
        monkeypatch.setattr(checkpoint, "save", original)
        assert train.main(line) == 0
        assert numbers(tmp_path / "run", "axial") == numbers(workdir, "axial")

    def test_scenes_are_judged_by_their_mean_iou(self, pictured, tmp_path, no_report):
        config = IMAGES.replace("compare_vision", "compare_segmentation").replace("config.model.update", "dict")
        (tmp_path / "scenes.py").write_text(config.replace('("axial", "swin")', '("axial",)'))
        flags = ["--config.only=axial", "--config.data.image_size=9", "--config.data.validation_images=7"]
        assert (
            train.main(["train.py", f"--config={tmp_path / 'scenes.py'}", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
        )
        table = read_json(tmp_path / "run" / "comparison.json")
        result = read_json(tmp_path / "run" / "axial" / "seed0" / "result.json")
        amounts, sizes = np.array(result["amounts"]).sum(0), np.array(result["sizes"]).sum(0)
        assert result["quality"] == pytest.approx((amounts / sizes)[sizes > 0].mean())
        assert table["variants"][0]["quality"]["mean"] == result["quality"] and len(result["sizes"]) == 7
        assert read_arrays(tmp_path / "run" / "axial" / "pictures.npz")["answers"].shape[1:] == (9, 9)


@pytest.fixture(scope="module")
def diverged(command, tmp_path_factory):
    """A comparison of two variants of which one cannot go well: its folder, command line and exit code."""
    workdir = tmp_path_factory.mktemp("runs") / "diverged"
    (workdir.parent / "two.py").write_text(
        "from configs import compare_text\n"
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    config = compare_text.get_config()\n"
        "    wild = {'train': {'learning_rate': 1e30}}\n"
        "    config.variants = ConfigDict({'wild': wild, 'calm': {}}, sort_keys=False)\n"
        "    return config\n"
    )
    program, *flags = command(workdir, only="")
    line = [program, f"--config={workdir.parent / 'two.py'}", *flags]
    return workdir, line, train.main(line)


class TestDivergence:
    def test_stops_that_variant_and_goes_on_with_the_others(self, diverged):
        workdir, _, code = diverged
        wild, calm = read_json(workdir / "comparison.json")["variants"]
        assert code == 0
        assert wild["quality"]["mean"] is None and wild["beats_baselines"] is False
        assert calm["error"] is None and calm["quality"]["mean"] > 0

    def test_names_step_learning_rate_and_last_good_checkpoint(self, diverged):
        workdir, _, _ = diverged
        error = read_json(workdir / "wild" / "seed0" / "result.json")["error"]
        last = read_rows(workdir / "wild" / "seed0" / "metrics.jsonl")[-1]
        assert f"at step {last['step']}, learning rate " in error
        assert "checkpoint" in error and (last["loss"] is None or last["grad_norm"] is None)

    def test_again_only_prints(self, diverged, monkeypatch):
        _, line, _ = diverged
        monkeypatch.setattr("experiment.learner.make_learner", pytest.fail)
        assert train.main(line) == 0

    def test_nothing_that_succeeds_is_a_failure(self, command, tmp_path, no_report):
        assert train.main(command(tmp_path / "run", "--config.train.learning_rate=1e30")) == 1


def test_more_seeds_keep_the_finished_one(finished, command, tmp_path, no_report):
    import shutil

    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = (workdir / "full" / "seed0" / "result.json").read_text()
    assert train.main(command(workdir, "--config.seeds=2")) == 0
    assert (workdir / "full" / "seed0" / "result.json").read_text() == before
    full = read_json(workdir / "comparison.json")["variants"][0]["quality"]
    assert full["stderr_over"] == "seeds" and len(full["values"]) == 2
    assert full["mean"] == pytest.approx(np.mean(full["values"]))
    assert full["stderr"] == pytest.approx(np.std(full["values"], ddof=1) / 2**0.5)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.train.step=3", "unknown field 'step'; did you mean steps"),
        ("--config.train.steps=x", "--config.train.steps=x"),
        ("--config.data.length=0", "config.data.length=0: want int, at least 1"),
        (
            "--config.seed=99999999999999999999",
            "config.seed=99999999999999999999: want int, at least 0 and below 2**31",
        ),
        ("--config.data.path=/dev/null", "config.data.path='/dev/null': neither a regular file nor a folder"),
        ("--config.model.rope_base=0.5", "variant full: model.rope_base: wanted a number above 1, got 0.5"),
        ("--config.data.path=nowhere", "no such file or folder"),
        ("--config.data.path=", "T"),
        ("--config.model.width=7", "variant full: model.width: 7 is not a multiple of num_heads = 3"),
        ("--config.model.position=alibi", "has no scores for 'alibi' to add to; write rope"),
        (
            "--config.variants.full.model.attention.name=ful",
            "variant full: model.attention.name: unknown variant 'ful'",
        ),
        ("--config.train.optimizer=sgd", "config.train.optimizer='sgd': want str, one of adamw, adam, muon"),
        ("--config.only=ful", "unknown variant 'ful'"),
    ],
)
def test_wrong_settings_end_in_one_line(command, tmp_path, capsys, flag, message):
    if flag == "--config.data.path=":
        flag, message = f"--config.data.path={tmp_path}", "the folder holds no visible file"
    assert train.main([*command(tmp_path / "run"), flag]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and err.startswith("train.py: ")
    assert not (tmp_path / "run").exists()


def test_wrong_settings_are_found_before_flax_is_imported(tmp_path):
    code = (
        "import sys, train; flags = [f'--workdir={sys.argv[1]}', '--config.data.path=nowhere'];"
        "assert train.main(['train.py', *flags]) == 2;"
        "print(sorted({'flax', 'optax', 'orbax', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert "no such file or folder" in done.stderr and done.stdout == "[]\n"


def test_overwrite_starts_anew(finished, command, tmp_path, no_report):
    import shutil

    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    assert train.main(command(workdir, "--config.train.steps=3", "--overwrite")) == 0
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 3
    assert not (workdir / "linear").exists()
    assert len(read_rows(workdir / "full" / "seed0" / "metrics.jsonl")) == 4
