"""The command line of a benchmark: the flags that all have, the line above a table, the file of its rows."""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import jax


def parser(doc, *, rounds):
    """A parser with --rounds and --json.

    Args:
      doc: of the program, whose first line `--help` says.
      rounds: the default.
    """
    found = argparse.ArgumentParser(description=doc.split("\n")[0])
    found.add_argument("--rounds", type=int, default=rounds)
    found.add_argument("--json", default=None, help="also write the rows here")
    return found


def print_machine():
    """Prints date, version of jax and device."""
    device = jax.devices()[0]
    print(
        f"{date.today()}  jax {jax.__version__}  {device.platform} {device.device_kind}  {platform.machine()}",
        flush=True,
    )


def write(path, rows):
    """Writes the rows as JSON, where `--json` names a file."""
    if path:
        Path(path).write_text(json.dumps(rows, indent=1))
