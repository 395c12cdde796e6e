"""Records: whole files or none, and rows that read as if a run had never stopped."""

import json
import math

import pytest

from experiment.records import Metrics, read_json, read_rows, write_json

NUMBERS = {"loss": math.log(2), "metric": 1.0, "learning_rate": 0.5, "grad_norm": 3.0}
METRIC = "bits_per_byte"


def test_json_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})  # fails after a part is written
    assert read_json(path) == {"a": 1}
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    assert read_json(tmp_path / "none.json") is None


def test_rows_hold_running_sums(tmp_path):
    with Metrics(tmp_path, 0, METRIC) as metrics:
        for step, seconds in ((1, 5.0), (2, 0.5), (3, 0.25), (4, 0.75)):
            metrics.train(step, NUMBERS, seconds, tokens=7)
        metrics.validation(3.0, 2.0)
        assert metrics.step_seconds() == [0.25, 0.75]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["seconds"] for row in rows] == [5.0, 5.5, 5.75, 6.5, 6.5]
    assert [row["tokens"] for row in rows] == [7, 14, 21, 28, 28]
    assert rows[0]["bits_per_byte"] == pytest.approx(1.0)
    assert (rows[-1]["split"], rows[-1]["step"], rows[-1]["bits_per_byte"]) == ("validation", 4, 3.0)
    assert rows[-1]["loss"] == 2.0 and rows[-1]["grad_norm"] is None
    assert {"step", "split", "loss", "bits_per_byte", "learning_rate", "grad_norm", "seconds", "tokens"} == set(rows[0])
    assert set(rows[0]) == set(rows[-1])


def test_rows_past_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    with Metrics(tmp_path, 0, METRIC) as metrics:
        for step in range(1, 6):
            metrics.train(step, NUMBERS, 1.0, 7)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "los')
    with Metrics(tmp_path, 3, METRIC) as metrics:
        metrics.train(4, NUMBERS, 9.0, 7)
    assert [(row["step"], row["seconds"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 12.0)
    ]  # fmt: skip


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_becomes_null(tmp_path, broken):
    with Metrics(tmp_path, 0, METRIC) as metrics:
        metrics.train(1, NUMBERS | {"loss": broken}, 1.0, 7)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None


def test_events_lie_beside_the_rows(tmp_path):
    with Metrics(tmp_path, 0, METRIC) as metrics:
        metrics.train(1, NUMBERS, 1.0, 7)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"train/bits_per_byte" in events.read_bytes()
