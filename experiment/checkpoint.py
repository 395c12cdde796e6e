"""Checkpoints that survive a kill, a torn file and a full disk: orbax writes them, a digest says which are whole."""

import errno
import hashlib
import re
import shutil
from pathlib import Path

import jax

from experiment.records import read_json, write_json


class DiskFullError(RuntimeError):
    """Nothing more can be written; what was written before is intact."""


def save(folder, step, state, keep=2):
    """Writes `state` as the newest checkpoint, then drops all but the newest `keep`.

    Orbax writes to a temporary folder and renames it; the digest beside it is written last and makes it count. A stop
    at any point leaves the older checkpoints, and at worst a folder without a digest, which `restore` ignores.

    Args:
      folder: where checkpoints lie; this one becomes `<folder>/<step>` and `<folder>/<step>.json`.
      step: number of the last finished step.
      state: pytree of arrays.
      keep: how many to keep; at least 2, so that one torn file loses one checkpoint and not the run.

    Raises:
      DiskFullError: no space left. Older checkpoints are intact.
    """
    import orbax.checkpoint as ocp  # takes a second to import

    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / str(step)
    try:
        _remove(folder, step)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(path, state)
        write_json(_marker(path), {"sha256": _digest(path)})
    except Exception as error:
        _remove(folder, step)
        if not is_disk_full(error):
            raise
        raise DiskFullError(f"no space left to save step {step} in {folder}; {_remaining(folder)}") from error
    _drop_old(folder, keep)


def restore(folder, like, warn):
    """Reads the newest checkpoint that is whole.

    Args:
      folder: as given to `save`.
      like: pytree of arrays with the shapes, dtypes and shardings to restore to.
      warn: called with one line for each checkpoint that had to be skipped.

    Returns:
      (step, state), or (0, None) if there is nothing to go on from.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    for step in reversed(steps(folder)):
        path = folder / str(step)
        try:
            if _digest(path) != read_json(_marker(path))["sha256"]:
                raise ValueError("its files are not what was saved")
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                return step, checkpointer.restore(path, shapes)
        except Exception as error:  # whatever is wrong with a file, the checkpoint before it may be good
            warn(f"checkpoint {path} skipped: {' '.join(str(error).split()) or type(error).__name__}")
    return 0, None


def steps(folder):
    """Steps of the checkpoints that were finished, oldest first."""
    return sorted(int(path.stem) for path in Path(folder).glob("*.json") if path.with_suffix("").is_dir())


def is_disk_full(error):
    """Whether an exception, or one that caused it, says that the disk or the quota is full."""
    while error is not None:
        told = re.search(r"os_error_code='(\d+)'", str(error))  # how tensorstore passes the system's number on
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


def _marker(path):
    return path.with_name(path.name + ".json")


def _digest(path):
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _remaining(folder):
    left = steps(folder)
    return f"the checkpoints of steps {left} are intact" if left else "there is no checkpoint yet"


def _drop_old(folder, keep):
    for step in {_step(path) for path in folder.iterdir()} - {str(step) for step in steps(folder)[-keep:]}:
        _remove(folder, step)


def _remove(folder, step):
    """Removes everything of one step, also what a kill left half written."""
    for path in list(folder.iterdir()):
        if _step(path) == str(step):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _step(path):
    return path.name.split(".")[0]
