"""Measurements: operations counted through loops, exponents of known curves, times that exclude the warm-up."""

import time

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from attention import dot_product_attention
from configs.compare_text import get_config
from experiment import measure
from experiment.scaling import scaling


def count(function, *args):
    return measure.flops(jax.make_jaxpr(function)(*args))


class TestFlops:
    def test_batched_product(self):
        a, b = jnp.zeros((2, 3, 5)), jnp.zeros((2, 5, 7))
        assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b) == 2 * 2 * 3 * 5 * 7

    def test_loops_count_every_trip(self):
        w = jnp.zeros((3, 3))
        loop = lambda x: jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=11)[0]  # noqa: E731
        assert count(loop, w) == 11 * 2 * 27
        assert count(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: loop(x), x), w) == 5 * 11 * 2 * 27

    @pytest.mark.parametrize("window", [None, (40, 0)])
    def test_live_blocks_of_attention(self, window):
        T, N, H, size = 256, 2, 8, 32
        x = jnp.zeros((1, T, N, H))
        attend = lambda x: dot_product_attention(  # noqa: E731
            x, x, x, is_causal=True, local_window_size=window, block_sizes=(size, size)
        )
        blocks = sum(1 for i in range(T // size) for j in range(i + 1) if window is None or i - j <= 2)
        one = 2 * N * size * size * H  # one matrix product of one block, all heads
        assert count(attend, x) == 2 * blocks * one
        # Backward: scores again, and the gradients of weights, values, queries and keys.
        assert count(jax.grad(lambda x: attend(x).sum()), x) == 7 * blocks * one

    def test_dearest_branch_of_a_conditional(self):
        w = jnp.zeros((3, 3))
        assert count(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x), w) == 4 * 27

    def test_inside_jit_remat_and_gradients(self):
        w = jnp.zeros((3, 3))
        product = lambda x: (jax.jit(jnp.matmul)(x, w) ** 2).sum()  # noqa: E731
        assert count(product, w) == 54
        assert count(jax.grad(product), w) == 2 * 54
        assert count(jax.grad(jax.checkpoint(product)), w) == 3 * 54


def test_program_knows_its_cost():
    x = jnp.zeros((64, 64), jnp.float32)
    program = measure.compile(jax.jit(lambda x: jnp.tanh(x @ x) @ x), x)
    assert program.flops == 2 * 2 * 64**3
    assert program.temporary_bytes >= 0 and program.peak_bytes >= 2 * x.nbytes
    assert program.compile_seconds > 0
    donating = measure.compile(jax.jit(lambda x: x + 1, donate_argnums=0), x)
    assert donating.peak_bytes < 2 * x.nbytes


def test_measure_leaves_out_the_first_call():
    calls = []

    def call():
        calls.append(None)
        time.sleep(0.2 if len(calls) == 1 else 0.01)
        return jnp.zeros(())

    times = measure.measure(call, seconds=0.0, least=3)
    assert len(calls) == 4 and 0.01 <= times["median"] <= times["p95"] < 0.2


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_a_power(power):
    lengths = [64, 128, 256, 512]
    assert measure.exponent(lengths, [3.0 * n**power for n in lengths]) == pytest.approx(power)


@pytest.mark.parametrize("lengths, values", [([64], [1.0]), ([64, 128], [0, 5])])
def test_exponent_needs_two_positive_points(lengths, values):
    assert measure.exponent(lengths, values) is None


class TestScaling:
    def model(self):
        model = get_config().model
        model.update(width=6, num_heads=3, num_kv_heads=3)
        return model

    def test_one_row_a_length(self):
        found = scaling(self.model(), ConfigDict({"lengths": (13, 7), "batch_size": 2, "seconds": 1e6}))
        assert found["lengths"] == [7, 13]
        assert all(len(found[name]) == 2 for name in ("forward_ms", "train_ms", "temporary_bytes"))
        assert set(found) == {
            "lengths", "forward_ms", "train_ms", "temporary_bytes", "time_exponent", "memory_exponent"
        }  # fmt: skip

    def test_long_lengths_are_left_out_when_time_is_up(self):
        found = scaling(self.model(), ConfigDict({"lengths": (7, 13), "batch_size": 2, "seconds": 1e-6}))
        assert found["lengths"] == [7] and found["time_exponent"] is None

    def test_no_seconds_no_scaling(self):
        assert scaling(self.model(), ConfigDict({"lengths": (7,), "batch_size": 2, "seconds": 0.0})) is None
