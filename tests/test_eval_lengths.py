"""eval.py --tasks and --lengths from the command line: what it writes, states, refuses and survives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import eval as evaluation
import train
from configs.extrapolation import get_config
from experiment import answers, evaluation_page, judging, settings
from experiment.records import read_json
from tasks import TASKS

CONFIG = """
from configs import compare_text
def get_config():
    config = compare_text.get_config()
    config.data.length, config.data.validation_bytes = 16, 1200
    config.model.update(width=8, depth=1, num_heads=2, num_kv_heads=2, mlp_width=8)
    config.train.update(steps=3, warmup_steps=1, batch_size=4, evaluate_every=3, evaluate_examples=4, checkpoint_every=3)
    config.train.optimizer, config.seeds, config.scaling.seconds = "adamw", 2, 0.0
    config.variants = {
        "learned": {"model": {"position": "learned"}},
        "lsh": {"model": {"attention": config.variants.lsh.model.attention.to_dict() | {"bucket_size": 4}}},
    }
    return config
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished comparison of two language models, two seeds each."""
    root = tmp_path_factory.mktemp("lengths")
    (root / "small.py").write_text(CONFIG)
    (root / "story.txt").write_text("".join(f"{n} bottles of beer on the wall.\n" for n in range(900)))
    line = ["train.py", f"--config={root / 'small.py'}", f"--config.data.path={root / 'story.txt'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiment.report.write_report", lambda *_: None)
        assert train.main([*line, f"--workdir={root / 'run'}"]) == 0
    return root / "run"


@pytest.fixture
def workdir(trained, monkeypatch):
    """The comparison, without an evaluation; the page is not drawn."""
    monkeypatch.setattr(evaluation_page, "write_page", lambda *_: None)
    (trained / "evaluation" / "cells.jsonl").unlink(missing_ok=True)
    (trained / "evaluation.json").unlink(missing_ok=True)
    return trained


def judge(workdir, *flags):
    return evaluation.main(["eval.py", f"--workdir={workdir}", *flags])


def means(variant):
    return [cell["mean"] for cell in variant["cells"]]


def test_text_beyond_training_and_what_cannot_go_there(workdir, capsys):
    assert judge(workdir, "--tasks=extrapolation,extrapolation_sliding", "--lengths=16,5,24") == 0
    out = capsys.readouterr().out
    found = read_json(workdir / "evaluation.json")
    assert found["trained_length"] == 16
    assert found["command"].startswith("python eval.py --workdir=") and found["device"]
    side, sliding = found["tasks"]
    assert side["asked"] == [5, 16, 24] and side["trained"] and sliding["trained"]
    assert side["metric"] == {"name": "bits per byte", "higher_is_better": False}
    assert side["baselines"]["uniform"] == [8.0] * 3
    learned, lsh = side["variants"]
    assert all(0 < mean < 9 for mean in means(lsh)) and means(learned)[2] is None
    assert "T = 24 is beyond the 16 learned positions" in learned["cells"][2]["error"]
    assert "learned at 24: tokens: T = 24 is beyond the 16 learned positions" in out.replace("\n", " ")
    assert learned["effective_length"] is None
    for cell in lsh["cells"]:
        assert cell["positions"]["edges"] == [0, 1, 2, 3, 4, *([5] if cell["length"] == 5 else [6, 8, 12, 16])] + (
            [24] if cell["length"] == 24 else []
        )
        assert len(cell["values"]) == 2 and cell["stderr_over"] == "seeds"
        assert cell["mean"] == pytest.approx(np.mean(cell["values"]))
    assert all(cell["positions"] is None for cell in sliding["variants"][1]["cells"])
    rows = (workdir / "evaluation.csv").read_text().splitlines()
    assert rows[0].startswith("task,variant,length,mean") and len(rows) == 1 + 2 * 2 * 3


def test_the_length_of_training_repeats_what_the_model_says(workdir):
    """Bits of each byte from the scores of the model itself, window by window, summed by hand."""
    assert judge(workdir, "--tasks=extrapolation", "--lengths=16", "--variant=learned") == 0
    config, results = evaluation.finished(workdir)
    corpus = TASKS["text"].load(config.data)
    learner, weights = judging.trained(results["learned"][0], settings.variants(config)["learned"], workdir, print)
    stream, bits = np.concatenate(list(corpus.validation.values())), []
    windows = [stream[start : start + 17].astype(int) for start in range(0, stream.size - 1, 16)]
    inputs = np.stack([np.pad(window[:-1], (0, 17 - window.size)) for window in windows])
    logits = np.asarray(jax.jit(lambda weights, tokens: learner.model(weights)(tokens))(weights, inputs), np.float64)
    for window, scores in zip(windows, logits, strict=True):
        for place, byte in enumerate(window[1:]):
            bits.append(np.log2(np.exp(scores[place]).sum()) - scores[place, byte] / np.log(2))
    (variant,) = read_json(workdir / "evaluation.json")["tasks"][0]["variants"]
    assert len(bits) == stream.size - 1
    assert variant["cells"][0]["values"][0] == pytest.approx(np.mean(bits), rel=1e-5)


def test_recall_of_a_model_of_text_and_a_sweep(workdir):
    flags = ["--tasks=mqar,extrapolation", "--lengths=32", "--examples=9", "--threshold=0.0"]
    assert judge(workdir, *flags, "--sweep=model.attention.num_hashes:1,3") == 0
    found = read_json(workdir / "evaluation.json")
    mqar, text = found["tasks"]
    assert [v["name"] for v in mqar["variants"]] == ["learned", "lsh num_hashes=1", "lsh num_hashes=3"]
    assert mqar["metric"]["higher_is_better"] and mqar["threshold"] == 0.0 and not mqar["trained"]
    assert [v["effective_length"] for v in mqar["variants"]] == [None, 32, 32]
    assert means(text["variants"][1]) != means(text["variants"][2])
    assert mqar["variants"][1]["cells"][0]["examples"] == 9


def test_the_same_command_judges_nothing_again(workdir, monkeypatch):
    flags = ["--tasks=extrapolation", "--lengths=8,16"]
    assert judge(workdir, *flags) == 0
    before, cells = read_json(workdir / "evaluation.json"), (workdir / "evaluation" / "cells.jsonl").read_bytes()
    monkeypatch.setattr("experiment.learner.make_learner", pytest.fail)
    assert judge(workdir, *flags) == 0
    assert read_json(workdir / "evaluation.json") | {"date": 0} == before | {"date": 0}
    assert (workdir / "evaluation" / "cells.jsonl").read_bytes() == cells


def test_a_later_command_keeps_the_tasks_of_an_earlier_one(workdir, monkeypatch, capsys):
    assert judge(workdir, "--tasks=mqar", "--lengths=32", "--examples=3") == 0
    assert judge(workdir, "--tasks=extrapolation", "--lengths=16") == 0
    text, mqar = read_json(workdir / "evaluation.json")["tasks"]
    assert (text["name"], mqar["name"], mqar["examples"]) == ("extrapolation", "mqar", 3)
    assert "--tasks=mqar" in mqar["command"] and "--tasks=mqar" not in text["command"]
    assert "mqar" in (workdir / "evaluation.csv").read_text() and "left out" not in capsys.readouterr().err
    monkeypatch.setattr("experiment.evaluation.code_version", lambda: "edited")
    assert judge(workdir, "--tasks=extrapolation", "--lengths=16") == 0
    assert [task["name"] for task in read_json(workdir / "evaluation.json")["tasks"]] == ["extrapolation"]
    assert "warning: left out: mqar: judged with other checkpoints or code than now" in capsys.readouterr().err


KILLED = """
import os, signal, sys
import eval as evaluation
from experiment.cells import Cells
add, count = Cells.add, 0
def add_and_die(self, cell):
    global count
    add(self, cell)
    count += 1
    if count == 3:
        self.file.write(b'{"variant": "lsh", "se')
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
Cells.add = add_and_die
evaluation.main(sys.argv)
"""


def test_killed_in_the_middle_it_goes_on_to_the_same_numbers(workdir):
    flags = [f"--workdir={workdir}", "--tasks=extrapolation", "--lengths=8,16"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *flags], cwd=Path(__file__).parents[1], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    path = workdir / "evaluation" / "cells.jsonl"
    begun = path.read_bytes()
    assert begun.count(b"\n") == 3 and not begun.endswith(b"\n") and not (workdir / "evaluation.json").exists()
    assert judge(workdir, *flags[1:]) == 0
    whole = path.read_bytes()
    assert whole.startswith(begun[: begun.rindex(b"\n") + 1])
    resumed = [json.loads(line) for line in whole.splitlines()]
    path.unlink()
    assert judge(workdir, *flags[1:]) == 0
    anew = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [cell | {"seconds": 0} for cell in resumed] == [cell | {"seconds": 0} for cell in anew]


@pytest.mark.slow
def test_a_part_holds_no_more_tokens_than_a_training_batch(workdir, monkeypatch):
    shapes, original = set(), answers.uploaded

    def watched(*args):
        for part in original(*args):
            shapes.add(part["tokens"].shape)
            yield part

    monkeypatch.setattr(answers, "uploaded", watched)
    assert judge(workdir, "--tasks=extrapolation,mqar", "--lengths=16,32,128", "--variant=lsh", "--examples=3") == 0
    assert shapes == {(4, 17), (2, 33), (1, 129), (3, 16), (2, 32), (1, 128)}


def test_too_little_memory_is_stated(workdir, monkeypatch, capsys):
    monkeypatch.setattr(answers, "free_memory", lambda: 1000)
    assert judge(workdir, "--tasks=extrapolation", "--lengths=16", "--variant=lsh") == 2
    assert "nothing could be judged: out of memory: wanted 0.0 GB" in capsys.readouterr().err
    assert answers.free_memory() == 1000
    monkeypatch.undo()
    assert answers.free_memory() > 10**6


def test_a_missing_checkpoint_is_stated_for_its_variant_alone(workdir, capsys):
    marker = workdir / "lsh" / "seed1" / "checkpoints" / "3.json"
    marker.rename(marker.with_suffix(".away"))
    try:
        assert judge(workdir, "--lengths=16") == 0
        learned, lsh = read_json(workdir / "evaluation.json")["tasks"][0]["variants"]
        assert evaluation.main(["eval.py", f"--workdir={workdir}"]) == 0
    finally:
        marker.with_suffix(".away").rename(marker)
    assert len(learned["cells"][0]["values"]) == 2 and len(lsh["cells"][0]["values"]) == 1
    assert "wanted the checkpoint of step 3, found none" in lsh["cells"][0]["error"]
    assert "warning: lsh: " in capsys.readouterr().err
    assert judge(workdir, "--lengths=16", "--variant=lsh") == 0
    (lsh,) = read_json(workdir / "evaluation.json")["tasks"][0]["variants"]
    assert len(lsh["cells"][0]["values"]) == 2


def test_a_broken_checkpoint_is_read_once(workdir, capsys):
    folder = workdir / "lsh" / "seed0" / "checkpoints" / "3"
    (folder / "more").write_text("no part of it")
    try:
        assert judge(workdir, "--tasks=mqar,passkey", "--lengths=32,40", "--examples=2") == 0
    finally:
        (folder / "more").unlink()
    assert capsys.readouterr().err.count("skipped: its files are not what was saved") == 1
    for task in read_json(workdir / "evaluation.json")["tasks"]:
        learned, lsh = task["variants"]
        assert all(cell["error"].startswith("no checkpoint: ") and len(cell["values"]) == 1 for cell in lsh["cells"])


@pytest.mark.parametrize("size", ["small", "published"])
def test_the_config_of_extrapolation_fits_every_variant(size):
    config = get_config(size)
    settings.check(config)
    assert list(config.variants) == ["sinusoidal", "rope", "t5", "alibi", "none"]


class TestRefusals:
    @pytest.mark.parametrize(
        "flags, message",
        [
            (["--tasks=mqra"], "--tasks=mqra: unknown for this run"),
            (["--lengths=sixteen"], "want integers of at least 1, got 'sixteen'"),
            (["--threshold=0.5"], "--threshold: has no effect without --tasks or --lengths"),
            (["--variant=lsh"], "--variant: has no effect without --generate, --tasks or --lengths"),
            (["--lengths=16", "--length=16"], "--length: has no effect with --tasks or --lengths"),
            (["--lengths=16", "--generate"], "--generate: has no effect with --tasks or --lengths"),
            (["--lengths=16", "--output=here"], "--output: has no effect without --leaderboard"),
            (["--tasks=mqar", "--lengths=4"], "nothing could be judged"),
            (["--lengths=100000"], "nothing could be judged: T = 100000 is beyond the"),
            (["--lengths=16", "--sweep=model.attention.bucket_size:2,x"], "want int values, got 'x'"),
        ],
    )
    def test_one_line_and_exit_code_2(self, workdir, capsys, flags, message):
        assert judge(workdir, *flags) == 2
        *_, last = capsys.readouterr().err.strip().splitlines()
        assert last.startswith("eval.py: ") and message in last

    def test_a_folder_without_a_finished_run(self, tmp_path, capsys):
        assert judge(tmp_path, "--tasks=mqar") == 2
        assert "no comparison there" in capsys.readouterr().err


class TestLeaderboard:
    @pytest.fixture
    def written(self, monkeypatch):
        calls = []
        told = {"tables": [], "unfinished": [], "outdated": [], "passed_over": []}
        monkeypatch.setattr("experiment.leaderboard.collect", lambda folders: told | {"folders": folders})
        monkeypatch.setattr("experiment.leaderboard.write", lambda output, table: calls.append((output, table)))
        return calls

    def test_takes_the_folders_behind_it_but_for_its_own_files(self, written, tmp_path):
        line = ["eval.py", "--leaderboard", "runs/a", "runs/b", "runs/leaderboard.html", f"--output={tmp_path / 'new'}"]
        assert evaluation.main(line) == 0
        ((output, table),) = written
        assert output == tmp_path / "new" and table["folders"] == [Path("runs/a"), Path("runs/b")]

    @pytest.mark.parametrize("name", ["board", "board/new"])
    def test_writes_into_no_file(self, written, tmp_path, capsys, name):
        (tmp_path / "board").write_text("")
        assert evaluation.main(["eval.py", "--leaderboard", "runs/a", f"--output={tmp_path / name}"]) == 2
        assert (
            f"{name}: want a folder, found the file {tmp_path / 'board'}" in capsys.readouterr().err and written == []
        )

    @pytest.mark.parametrize(
        "line, message",
        [
            (["--leaderboard"], "want folders of runs after it"),
            (["--leaderboard", "runs/a", "--workdir=runs/b"], "--workdir: has no effect with --leaderboard"),
            (["runs/a", "--leaderboard"], "not a flag"),
        ],
    )
    def test_refuses(self, written, line, message, capsys):
        assert evaluation.main(["eval.py", *line]) == 2
        assert message in capsys.readouterr().err and written == []
