"""Checkpoints: what was saved comes back bit for bit, torn ones are skipped, a full disk loses nothing."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiment import checkpoint


def state_of(step):
    params = {
        "blocks": {"out": jax.random.normal(jax.random.key(step), (3, 5, 7))},
        "norm": jnp.full(2, step, jnp.bfloat16),
    }
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": params,
        "optimizer": optax.adamw(1e-3).init(params),
        "rng": jax.random.key_data(jax.random.key(step)),
    }


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def restore(folder):
    warnings = []
    step, state = checkpoint.restore(folder, state_of(0), warnings.append)
    return step, state, warnings


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 2 and 4."""
    for step in (2, 4):
        checkpoint.save(tmp_path, step, state_of(step))
    return tmp_path


def largest_file(path):
    return max((item for item in path.rglob("*") if item.is_file()), key=lambda item: item.stat().st_size)


def test_nothing_saved_is_a_fresh_start(tmp_path):
    assert restore(tmp_path / "none") == (0, None, [])


def test_newest_comes_back_bit_for_bit(saved):
    step, state, warnings = restore(saved)
    assert (step, warnings) == (4, [])
    assert_same(state, state_of(4))


def test_only_the_newest_are_kept(saved):
    checkpoint.save(saved, 6, state_of(6))
    assert checkpoint.steps(saved) == [4, 6]
    assert sorted(path.name for path in saved.iterdir()) == ["4", "4.json", "6", "6.json"]


def test_what_a_kill_left_half_written_is_cleared_away(saved, capfd):
    for name in ("6.orbax-checkpoint-tmp", "3"):
        (saved / name).mkdir()
        (saved / name / "part").write_text("half")
    checkpoint.save(saved, 6, state_of(6))
    assert sorted(path.name for path in saved.iterdir()) == ["4", "4.json", "6", "6.json"]
    assert "WARNING" not in capfd.readouterr().err


def truncate(path):
    file = largest_file(path / "4")
    os.truncate(file, file.stat().st_size // 2)


def flip_a_byte(path):
    file = largest_file(path / "4")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(path):
    largest_file(path / "4").unlink()


def empty_everything(path):
    for file in (path / "4").rglob("*"):
        if file.is_file():
            os.truncate(file, 0)


def tear_the_digest(path):
    (path / "4.json").write_text('{"sha')


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, lose_a_file, empty_everything, tear_the_digest])
def test_damaged_newest_is_skipped_with_a_warning(saved, damage):
    damage(saved)
    step, state, warnings = restore(saved)
    assert step == 2
    assert_same(state, state_of(2))
    assert len(warnings) == 1 and "4 skipped" in warnings[0] and "\n" not in warnings[0]


def test_checkpoint_without_digest_does_not_count(saved):
    (saved / "4.json").unlink()  # as a kill between the two leaves it
    assert restore(saved)[0] == 2
    checkpoint.save(saved, 4, state_of(4))
    assert restore(saved)[0] == 4


def test_other_shapes_are_skipped_and_not_forced(saved):
    like = state_of(0)
    like["params"]["blocks"]["out"] = jnp.zeros((3, 5, 11))
    warnings = []
    assert checkpoint.restore(saved, like, warnings.append) == (0, None)
    assert len(warnings) == 2


class TestFullDisk:
    def test_older_checkpoints_stay(self, saved, monkeypatch):
        def no_space(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "write_json", no_space)
        with pytest.raises(checkpoint.DiskFullError, match=r"save step 6 .* steps \[2, 4\] are intact"):
            checkpoint.save(saved, 6, state_of(6))
        assert restore(saved)[0] == 4
        assert sorted(path.name for path in saved.iterdir()) == ["2", "2.json", "4", "4.json"]

    def test_clearing_a_torn_step_spares_those_that_begin_alike(self, tmp_path, monkeypatch):
        for step in (20, 21):
            checkpoint.save(tmp_path, step, state_of(step))
        monkeypatch.setattr(checkpoint, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            checkpoint.save(tmp_path, 2, state_of(2))
        assert checkpoint.steps(tmp_path) == [20, 21]

    def test_a_file_system_that_really_is_full(self, saved):
        # A limit on the size of files fails the writes that a full disk would fail, inside orbax and tensorstore.
        import resource
        import signal

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        big = state_of(6) | {"params": {"w": jax.random.normal(jax.random.key(0), (1 << 20,))}}
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
            with pytest.raises(checkpoint.DiskFullError, match="save step 6"):
                checkpoint.save(saved, 6, big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert restore(saved)[0] == 4
        assert not any(path.name.startswith("6") for path in saved.iterdir())

    def test_other_errors_are_not_called_a_full_disk(self, saved, monkeypatch):
        def denied(*_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(checkpoint, "write_json", denied)
        with pytest.raises(PermissionError):
            checkpoint.save(saved, 6, state_of(6))
