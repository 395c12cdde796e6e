"""The numbers of an evaluation at many lengths in the terminal and as CSV."""

import io

import pytest
from rich.console import Console

from experiment import evaluation_table


def table():
    cell = {"stderr": 0.1, "stderr_over": "examples", "values": [0.5], "error": None}
    failed = cell | {"mean": None, "stderr": None, "values": []}
    cells = [cell | {"length": 64, "mean": 0.9}]
    cells += [failed | {"length": length, "error": f"{length} is too [long]"} for length in (128, 256)]
    cells.append(failed | {"length": 512, "error": "no room"})
    metric = {"name": "accuracy", "higher_is_better": True}
    variants = [{"name": "full [x]", "effective_length": 64, "cells": cells}]
    asked = {"asked": [64, 128, 256, 512], "lengths": [64, 128, 256], "threshold": 0.85, "trained": True}
    baselines = {"chance": [0.25, 0.125, None, None]}
    task = {"name": "mqar", "metric": metric, "baselines": baselines, "variants": variants} | asked
    return {"tasks": [task], "trained_length": 128}


def test_terminal_shows_numbers_baselines_and_what_failed():
    output = io.StringIO()
    evaluation_table.print_tables(table(), Console(file=output, width=100))
    text = output.getvalue()
    assert "mqar · accuracy, higher is better" in text and "trained" in text and "effective" in text
    assert "full [x]" in text and "0.900" in text and "chance baseline" in text and "0.125" in text
    assert "full [x] at 128 and 256: 128 is too [long]." in text and "full [x] at 512: no room." in text
    assert "not trained" not in text


def test_terminal_says_what_the_run_was_not_trained_on():
    output, told = io.StringIO(), table()
    told["tasks"][0] |= {"trained": False}
    evaluation_table.print_tables(told, Console(file=output, width=100))
    assert "higher is better · not trained on mqar: what it learned elsewhere" in output.getvalue()


def test_csv_has_a_row_for_each_cell(tmp_path):
    evaluation_table.write_csv(tmp_path / "evaluation.csv", table())
    head, first, *others = (tmp_path / "evaluation.csv").read_text().splitlines()
    assert head == "task,variant,length,mean,stderr,stderr_over,low,high,seeds,error"
    low, high = map(float, first.split(",")[6:8])
    assert (low, high) == (pytest.approx(0.9 - 1.959964 * 0.1), 1.0)  # a share ends at 1
    assert first == f"mqar,full [x],64,0.9,0.1,examples,{low},{high},1,"
    assert others == [
        "mqar,full [x],128,,,examples,,,0,128 is too [long]",
        "mqar,full [x],256,,,examples,,,0,256 is too [long]",
        "mqar,full [x],512,,,examples,,,0,no room",
    ]


def test_a_narrow_terminal_gets_whole_numbers_in_more_tables():
    output, told = io.StringIO(), table()
    evaluation_table.print_tables(told, Console(file=output, width=36))
    text = output.getvalue()
    assert text.count("full [x]\u0020") > 2 and "0.900" in text and "0.125" in text and "512" in text
    assert max(map(len, text.split("full [x] at")[0].splitlines())) <= 36
