"""Early stopping: the published rule, the weights that are judged, and a run killed in the middle of its wait."""

import math
import os
import random
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import scipy.sparse

import eval as evaluation
import train
from configs.compare_text import get_config
from experiment import checkpoint, stopping
from experiment.progress import Progress
from experiment.records import read_json, read_rows
from tasks import text
from tests.test_resume import start
from tests.test_train import TINY, numbers

PATIENCE, STEPS = 3, 40


def read_checkpoint(folder, step):
    """The state that a checkpoint holds, as arrays."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder.absolute() / str(step))


def published(looks, patience):
    """The loop of the published script: (looks taken, the look whose weights are kept, from 1)."""
    best, least, waited, kept = 0.0, math.inf, 0, 0
    for number, (metric, loss) in enumerate(looks, 1):
        if metric >= best or loss <= least:
            if metric >= best and loss <= least:
                kept = number
            best, least, waited = max(metric, best), min(loss, least), 0
        else:
            waited += 1
            if waited == patience:
                return number, kept
    return len(looks), kept


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_rule_is_that_of_the_published_script(patience):
    stopped = 0
    for seed in range(20):
        # Few distinct values, so that ties are many, drifting as those of a model that overfits do.
        rng, drift = np.random.default_rng(seed), np.arange(25) / 10
        looks = np.stack([rng.integers(1, 9, 25) - drift, rng.integers(1, 9, 25) + drift], 1).round().clip(0) / 4
        state, taken = {"stopping": stopping.fresh({"w": jnp.zeros(())})}, 0
        while taken < len(looks) and not stopping.over(state, patience):
            taken += 1
            state["stopping"] = stopping.looked(state["stopping"], {"w": jnp.float32(taken)}, taken, *looks[taken - 1])
        wanted = published(looks, patience)
        assert (taken, int(state["stopping"]["best_step"])) == wanted
        assert float(state["stopping"]["weights"]["w"]) == wanted[1]
        stopped += taken < len(looks)
    assert stopped >= 5


def test_what_is_not_a_number_is_no_good_sign_and_no_bound():
    state = stopping.fresh({"w": jnp.zeros(())})
    for step, (metric, loss) in enumerate([(math.nan, math.nan), (1.0, 2.0), (math.nan, math.nan), (2.0, 1.0)], 1):
        state = stopping.looked(state, {"w": jnp.float32(step)}, step, metric, loss)
        assert int(state["waited"]) == (math.isnan(loss)) and int(state["best_step"]) == 2 * (step // 2)


def half(corpus, length):
    examples, owners = text.validation(corpus, length)
    return {name: array[::2] for name, array in examples.items()}, owners[::2]


@pytest.fixture(scope="module")
def developing():
    """A text task with development data: half of the windows of its judgement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "development", half, raising=False)
        patch.setattr("experiment.report.write_report", lambda *_: None)
        patch.setattr("experiment.scaling.scaling", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def command(developing, tmp_path_factory):
    """Returns a function: flags -> a command line; the learning rate is constant and far too high to learn for long."""
    story = tmp_path_factory.mktemp("text") / "story.txt"
    story.write_bytes("".join(f"{n} bottles of beer on the wall.\n" for n in range(300)).encode())
    high = [f"--config.train.{field}" for field in ("learning_rate=0.3", "warmup_steps=0", "final_fraction=1.0")]

    def build(workdir, *changes):
        own = [f"--workdir={workdir}", f"--config.data.path={story}", "--config.only=full"]
        often = [
            f"--config.train.{field}"
            for field in (f"steps={STEPS}", "evaluate_every=1", "checkpoint_every=1", "keep_checkpoints=40")
        ]
        return ["train.py", *TINY, *own, *high, *often, f"--config.train.patience={PATIENCE}", *changes]

    return build


@pytest.fixture(scope="module")
def stopped(command, tmp_path_factory):
    """A run that stopped early: its folder and `result.json`."""
    workdir, bars, begin = tmp_path_factory.mktemp("runs") / "stopped", [], Progress.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "__init__", lambda self, *rest: bars.append(self) or begin(self, *rest))
        assert train.main(command(workdir)) == 0
    assert bars[0].done == bars[0].total == STEPS  # the bar counts what was left out
    return workdir, read_json(workdir / "full" / "seed0" / "result.json")


class TestRun:
    def test_stops_where_the_rule_says(self, stopped):
        workdir, result = stopped
        rows = read_rows(workdir / "full" / "seed0" / "metrics.jsonl")
        looks = [(-row["bits_per_byte"], row["loss"]) for row in rows if row["split"] == "validation"]
        least = 1.0 - min(metric for metric, _ in looks)  # the script starts from a best metric of 0
        assert published([(metric + least, loss) for metric, loss in looks], PATIENCE) == (
            len(looks),
            result["best_step"],
        )
        assert result["steps"] == len(looks) == rows[-1]["step"] < STEPS
        assert 0 < result["best_step"] <= result["steps"] - PATIENCE
        assert checkpoint.steps(workdir / "full" / "seed0" / "checkpoints")[-1] == result["steps"]
        assert read_json(workdir / "comparison.json")["variants"][0]["steps"] == result["steps"]

    def test_the_weights_of_the_best_step_are_kept(self, stopped):
        workdir, result = stopped
        saved = workdir / "full" / "seed0" / "checkpoints"
        at = {step: read_checkpoint(saved, step) for step in (result["best_step"], result["steps"])}
        kept = at[result["steps"]]["stopping"]["weights"]["params"]
        chex.assert_trees_all_equal(kept, at[result["best_step"]]["params"])
        assert not np.array_equal(kept["embedding"], at[result["steps"]]["params"]["embedding"])

    def test_eval_judges_them_again(self, stopped):
        workdir, result = stopped
        assert evaluation.main(["eval.py", f"--workdir={workdir}"]) == 0
        assert read_json(workdir / "evaluation_T13.json")["variants"][0]["quality"]["mean"] == result["quality"]

    def test_stopped_during_the_wait_goes_on_to_the_same_numbers(self, command, stopped, tmp_path, monkeypatch):
        _, result = stopped
        original, line = Progress.step, command(tmp_path / "run", "--config.train.checkpoint_every=9")

        def stop_in_the_wait(self, row, *rest):
            if row["step"] == result["steps"] - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, row, *rest)

        monkeypatch.setattr(Progress, "step", stop_in_the_wait)
        with pytest.raises(SystemExit):
            train.main(line)
        monkeypatch.setattr(Progress, "step", original)
        assert train.main(line) == 0
        assert numbers(tmp_path / "run") == numbers(stopped[0])
        again = read_json(tmp_path / "run" / "full" / "seed0" / "result.json")
        assert (again["steps"], again["best_step"]) == (result["steps"], result["best_step"])

    @pytest.mark.slow
    def test_killed_before_the_judgement_trains_no_further(self, stopped, command, tmp_path, monkeypatch):
        import shutil

        workdir = tmp_path / "run"
        shutil.copytree(stopped[0], workdir)
        (workdir / "full" / "seed0" / "result.json").unlink()
        monkeypatch.setattr(Progress, "step", pytest.fail)
        assert train.main(command(workdir)) == 0
        assert numbers(workdir) == numbers(stopped[0])


@pytest.mark.parametrize("most, asked", [(100, 5), (3, 3), (1, 1)])
def test_development_data_are_looked_at_where_there_are_any(monkeypatch, most, asked):
    config, rows = get_config(), {"validation": 7, "development": 5}
    config.train.update(evaluate_examples=most, batch_size=2)
    for name, count in rows.items():
        data = {"x": np.full(count, count, np.float32)}, np.arange(count)
        monkeypatch.setattr(text, name, lambda corpus, length, data=data: data, raising=False)
    seen = []

    def score(weights, examples):
        seen.extend(np.asarray(examples["x"]))
        return tuple(weights * examples["x"] ** power for power in (2, 1, 3, 1))

    look = train.glance(config, None, score, jax.local_devices()[0])
    assert look(1.0) == look(1.0) == (25.0, 5.0)  # weighted means of x^2 and of x
    assert set(seen) == {5.0} and len(seen) == 2 * (asked + asked % 2)
    monkeypatch.delattr(text, "development")
    assert train.glance(config, None, score, jax.local_devices()[0])(1.0) == (49.0, 7.0)


def test_the_same_object_is_copied_to_the_device_once(monkeypatch):
    config = get_config()
    graph, sharding = {"x": np.zeros((config.train.batch_size, 5))}, jax.local_devices()[0]
    monkeypatch.setattr(text, "batch", lambda *_: graph)
    batch = train.batches(config, None, 0, sharding)
    assert batch(0)["x"].shape == (1, config.train.batch_size, 5) and batch(1) is batch(0)
    monkeypatch.setattr(text, "batch", lambda *_: dict(graph))
    assert batch(2) is not batch(3)


@pytest.fixture(scope="module")
def on_a_graph(tmp_path_factory):
    """Returns a function: folder -> the command line of an attention network on one small graph, stopped early."""
    root, rng, num_nodes = tmp_path_factory.mktemp("graph"), np.random.default_rng(0), 61
    labels = np.arange(num_nodes) % 3
    pairs = np.argwhere(rng.random((num_nodes, num_nodes)) < np.where(labels[:, None] == labels, 0.2, 0.02))
    words = scipy.sparse.csr_array(
        rng.random((num_nodes, 17)) < np.where(np.arange(17) % 3 == labels[:, None], 0.3, 0.1)
    )
    arrays = {"indptr": words.indptr, "indices": words.indices, "data": words.data.astype(np.float32)}
    turn = np.arange(num_nodes) // 3 % 3
    masks = {name: turn == i for i, name in enumerate(("train_mask", "val_mask", "test_mask"))}
    edges = pairs[pairs[:, 0] != pairs[:, 1]].T
    np.savez(root / "graph.npz", **arrays, shape=words.shape, labels=labels, edge_index=edges, **masks)
    (root / "small_graph.py").write_text(
        "from configs import compare_text\n"
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    config = compare_text.get_config()\n"
        "    config.task = 'graphs'\n"
        f"    config.data = ConfigDict(dict(name='path', path={str(root / 'graph.npz')!r}, dir='', num_nodes=0,\n"
        "        num_neighbours=0, labels_per_class=0))\n"
        "    config.model = ConfigDict(dict(name='graph_network', num_features=0, num_classes=0, num_relations=0,\n"
        "        input_width=0, num_heads=(3, 1), head_dim=(5,), readout=False, activation='elu', residual=False,\n"
        "        self_loops=True, dropout=0.5, attention_dropout=0.5, dtype='float32', attention={'name': 'gat'}))\n"
        "    config.train.update(steps=400, batch_size=1, optimizer='adam', learning_rate=0.02, warmup_steps=0,\n"
        "        final_fraction=1.0, weight_decay=5e-4, clip_norm=float('inf'), evaluate_every=1, checkpoint_every=20,\n"
        "        patience=20)\n"
        "    config.scaling.update(lengths=(16,), seconds=0.0)\n"
        "    config.variants = ConfigDict({})\n"
        "    return config\n"
    )
    return lambda workdir: ["train.py", f"--config={root / 'small_graph.py'}", f"--workdir={workdir}"]


def results(workdir):
    result = read_json(workdir / "gat" / "seed0" / "result.json")
    return numbers(workdir, "gat"), {name: result[name] for name in ("steps", "best_step", "quality", "loss", "sizes")}


@pytest.mark.slow
def test_a_graph_network_killed_at_a_random_moment_ends_in_the_same_numbers(on_a_graph, tmp_path, monkeypatch):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train.main(on_a_graph(straight)) == 0
    numbers, found = results(straight)
    assert found["best_step"] < found["steps"] < 400 and sum(found["sizes"]) == 19

    moment = random.randrange(1, 2 * found["steps"] - 10)
    path = killed / "gat" / "seed0" / "metrics.jsonl"
    process = start(on_a_graph(killed))
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < moment):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "comparison.json").exists(), "the kill came after the run had ended"

    process = start(on_a_graph(killed))
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert results(killed) == (numbers, found), moment
    table = read_json(killed / "comparison.json")
    assert table["unit"] == {"name": "nodes", "tokens": 1} and table["variants"][0]["quality"]["stderr"] > 0
    assert evaluation.main(["eval.py", f"--workdir={killed}"]) == 0
    assert read_json(killed / "evaluation_T61.json")["variants"][0]["quality"]["mean"] == found["quality"]
