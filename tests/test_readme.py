"""The README says what is true."""

import re
from pathlib import Path

import pytest

import attention

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.strip().splitlines()) <= 15
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("name", attention.__all__)
def test_names_every_public_name(name):
    assert f"`{name}`" in README or f"attention.{name}" in README or f"`{name}" in README


def test_names_only_files_that_exist():
    root = Path(__file__).parent.parent
    for file in re.findall(r"[`\]( ]((?:attention|models|configs|tests|benchmarks|docs)/[\w/.]+\.\w+)", README):
        assert (root / file).exists() or "NAME" in file, file
