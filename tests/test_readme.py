"""The README says what is true."""

import re
from pathlib import Path

import pytest

import attention
from attention.capabilities import tables

README = (Path(__file__).parent.parent / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number):
    exec(compile(EXAMPLES[number], "README.md", "exec"), {})


def test_first_example_is_short():
    assert len(EXAMPLES[0].strip().splitlines()) <= 15


def test_tables_are_those_of_the_code():
    """If not: python -m attention.capabilities, between the two marks."""
    assert f"<!-- python -m attention.capabilities -->\n\n{tables()}\n\n<!-- end -->" in README


@pytest.mark.parametrize("name", attention.__all__)
def test_names_every_public_name(name):
    assert f"`{name}`" in README or f"attention.{name}" in README or f"`{name}" in README


def test_names_only_files_that_exist():
    root = Path(__file__).parent.parent
    for file in re.findall(r"[`\]( ]((?:attention|models|configs|tests|benchmarks|docs)/[\w/.]+\.\w+)", README):
        assert (root / file).exists() or "NAME" in file, file
