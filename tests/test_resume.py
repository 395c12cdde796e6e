"""kill -9 at any moment, the same command again: the same numbers, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from experiment.records import read_json, read_rows
from tests.test_train import TINY, numbers

STEPS = 30


def command(workdir, story):
    return [
        "train.py",
        *TINY,
        f"--workdir={workdir}",
        f"--config.data.path={story}",
        "--config.only=full",
        f"--config.train.steps={STEPS}",
        "--config.train.checkpoint_every=3",
        "--config.model.dropout=0.25",  # so that the random state matters, too
    ]


def rows(workdir):
    path = workdir / "full" / "seed0" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def start(line):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, *line], env=environment, stderr=subprocess.PIPE, text=True)


def kill_at(line, workdir, moment):
    """Starts the command and kills it some time after `moment` rows are written; returns whether it was still alive."""
    process = start(line)
    while process.poll() is None and rows(workdir) < moment:
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.1))  # anywhere in a step, a row or a checkpoint
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_random_moments_ends_in_the_same_numbers(kills, tmp_path):
    story = tmp_path / "story.txt"
    story.write_bytes("".join(f"{n} bottles of beer on the wall.\n" for n in range(300)).encode())
    straight, killed = tmp_path / "straight", tmp_path / "killed"

    process = start(command(straight, story))
    assert process.wait() == 0, process.stderr.read()
    process.communicate()

    moments = sorted(random.sample(range(1, STEPS), kills))
    alive = [kill_at(command(killed, story), killed, moment) for moment in moments]
    assert alive[0], "the first kill came after the run had ended"
    process = start(command(killed, story))
    _, err = process.communicate()
    assert process.returncode == 0, err

    assert numbers(killed) == numbers(straight), moments
    for name in ("quality", "error"):
        one, other = (read_json(folder / "comparison.json")["variants"][0][name] for folder in (straight, killed))
        assert one == other
    steps = [row["step"] for row in read_rows(killed / "full" / "seed0" / "metrics.jsonl") if row["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def test_wrong_config_ends_a_process_within_seconds():
    begin = time.perf_counter()
    process = start(["train.py", "--config.variants.full.model.attention.name=ful"])
    _, err = process.communicate()
    took = time.perf_counter() - begin
    assert process.returncode == 2
    assert err.startswith("train.py: ") and err.count("\n") == 1 and "Traceback" not in err
    assert took < 5 * max(1.0, os.getloadavg()[0] / os.cpu_count())
