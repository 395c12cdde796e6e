"""Progress: lines in a log, a bar on a terminal, and signals that wait for the step in hand."""

import io
import os
import signal

import pytest
from rich.console import Console

from experiment import progress
from experiment.progress import Interrupt, Progress

ROW = {"step": 3, "bits_per_byte": 2.5}


def shown(monkeypatch, *, terminal, row=ROW):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    output = io.StringIO()
    with Progress(10, "bits per byte", console=Console(file=output, force_terminal=terminal, width=120)) as bar:
        bar.phase("[1/2] window")
        bar.skip(2)
        bar.step(row, 10, tokens=100, seconds=0.5)
        bar.warn("[brackets] stay")
    return output.getvalue()


def test_log_gets_whole_lines(monkeypatch):
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert lines == [
        "[1/2] window",
        "[1/2] window  step 3/10  bits per byte 2.500  200 tokens/s  0.1 min of training left",
        "warning: [brackets] stay",
    ]


def test_terminal_shows_variant_loss_and_speed(monkeypatch):
    out = shown(monkeypatch, terminal=True)
    assert "[1/2] window" in out and "3/10" in out and "bits per byte 2.500  200 tokens/s" in out


def test_broken_loss_is_shown_as_nan(monkeypatch):
    assert "bits per byte nan" in shown(monkeypatch, terminal=False, row=ROW | {"bits_per_byte": None})


def test_signal_leaves_at_once_outside_of_hold():
    with pytest.raises(SystemExit) as caught, Interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143


def test_signal_waits_inside_of_hold():
    done = []
    with pytest.raises(SystemExit) as caught, Interrupt() as interrupt:
        with interrupt.hold():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(interrupt.pending)
        done.append("not reached")
    assert caught.value.code == 130 and done == [signal.SIGINT]
