"""The training step: parts of a batch equal the batch, two devices equal one, dropout and decay where they belong."""

import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import FrozenConfigDict

from configs.compare_text import get_config
from experiment import devices, optimizers, rules
from experiment.learner import make_learner, make_step, weights
from tasks import text


def tiny(**changes):
    config = get_config()
    config.data.length = 11
    config.model.update(width=6, depth=1, num_heads=3, num_kv_heads=3, mlp_width=5, scan_layers=False)
    config.train.update(steps=7, warmup_steps=2, batch_size=6, optimizer="adamw", learning_rate=1e-2)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return FrozenConfigDict(config)


def examples_of(config, step):
    """Windows of unequal sizes, so that the parts of a batch weigh differently."""
    rng, rows, length = np.random.default_rng(step), config.train.batch_size, config.data.length
    tokens = rng.integers(0, 256, (rows, length + 1), np.uint8)
    arrays = {"tokens": tokens, "sizes": rng.integers(1, length, rows, np.int32)}
    return {name: x.reshape(config.train.accumulate, -1, *x.shape[1:]) for name, x in arrays.items()}


@functools.cache
def run(config, seed=0):
    """Losses of the first three steps, and the state after them."""
    one = make_learner(config, seed)
    step, state, losses = make_step(one, text.score), one.state, []
    for i in range(3):
        state, metrics = step(state, examples_of(config, i))
        assert float(metrics["metric"]) == pytest.approx(float(metrics["loss"]) / math.log(2), rel=1e-6)
        losses.append(float(metrics["loss"]))
    return losses, state


def test_first_loss_is_that_of_a_uniform_guess():
    losses, state = run(tiny())
    assert losses[0] == pytest.approx(math.log(256), rel=0.02)
    assert int(state["step"]) == 3


def test_accumulation_equals_the_large_batch_though_parts_weigh_differently():
    whole, state = run(tiny())
    parts, other = run(tiny(train__accumulate=3))
    np.testing.assert_allclose(parts, whole, rtol=3e-6)  # sums in another order: a few float32 roundings
    for one, two in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(other["params"]), strict=True):
        # Adam divides by the root of the second moment, so a parameter moves by up to the learning rate for any
        # gradient; where the gradient is rounding alone, so is the direction. Such entries are few.
        close = np.isclose(one, two, rtol=1e-3, atol=1e-5)
        assert close.mean() > 0.98


@pytest.mark.slow
def test_dropout_repeats_by_seed_and_step_and_is_off_without_a_rate():
    dropping = tiny(model__dropout=0.5)
    assert run(dropping)[0] == run.__wrapped__(dropping)[0]  # compiled and run anew
    assert run(dropping)[0][0] != run(tiny())[0][0]


def test_data_parallel_over_two_devices_equals_one():
    code = (
        "import json, jax; from tests.experiment.test_learner import run, tiny;"
        "losses, state = run(tiny()); leaf = jax.tree.leaves(state['params'])[0];"
        "print(json.dumps([jax.device_count(), len(leaf.sharding.device_set), losses]))"
    )
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    devices, holders, losses = json.loads(done.stdout)
    assert (devices, holders) == (2, 2)
    np.testing.assert_allclose(losses, run(tiny())[0], rtol=3e-6)


def test_batch_is_split_over_as_many_devices_as_divide_it(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(jax, "local_devices", lambda: list("abcd"))
    used = {}
    monkeypatch.setattr(devices, "Mesh", lambda devices, _: "".join(devices))
    for batch_size, accumulate in ((1, 1), (6, 1), (6, 3), (8, 1), (10, 1)):
        used[batch_size, accumulate] = devices.data_mesh(
            tiny(train__batch_size=batch_size, train__accumulate=accumulate).train
        )
    assert used == {(1, 1): "a", (6, 1): "abc", (6, 3): "ab", (8, 1): "abcd", (10, 1): "ab"}


class TestStatistics:
    """Batch norm: the running averages are part of the state, moved by the step and not by the optimiser."""

    class Model(nnx.Module):
        def __init__(self, config, *, length, rngs):
            self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)

        def __call__(self, x, rng=None):
            return self.norm(x, use_running_average=rng is None)

    @staticmethod
    def score(model, examples, rng=None):
        rows = jnp.square(model(examples["x"], rng=rng)).sum(1)
        return rows, jnp.ones_like(rows), rows[:, None], jnp.ones_like(rows)[:, None]

    @pytest.mark.parametrize("parts", [1, 2])
    def test_move_once_a_part_and_are_used_in_a_judgement(self, monkeypatch, parts):
        monkeypatch.setattr("experiment.learner.pkgutil.resolve_name", lambda name: self.Model)
        learner = make_learner(tiny(), 0)
        x = np.random.default_rng(0).normal(5.0, 2.0, (parts, 4, 3)).astype(np.float32)
        state, _ = make_step(learner, self.score)(learner.state, {"x": x})
        expected = np.zeros(3)
        for part in x:
            expected = 0.5 * expected + 0.5 * part.mean(0)
        np.testing.assert_allclose(state["statistics"]["norm"]["mean"], expected, rtol=1e-5)
        judged = learner.model(weights(state))(x[0])
        np.testing.assert_allclose(
            judged,
            (x[0] - expected) / np.sqrt(state["statistics"]["norm"]["var"] + 1e-5) * state["params"]["norm"]["scale"]
            + state["params"]["norm"]["bias"],
            rtol=1e-4,
        )


class TestOptimizers:
    def test_a_config_may_name_each(self):
        assert set(optimizers.OPTIMIZERS) == set(rules.OPTIMIZERS)

    def params(self):
        return make_learner(tiny(), 0).state["params"]

    def test_schedule_warms_up_and_falls_to_the_fraction(self):
        _, schedule = optimizers.make(tiny(train__learning_rate=0.3, train__final_fraction=0.1).train)
        rates = [float(schedule(step)) for step in range(8)]
        assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
        assert rates[2:] == sorted(rates[2:], reverse=True) and rates[7] == pytest.approx(0.03)

    def test_only_matrices_decay(self):
        decays = optimizers.is_matrix(self.params())
        names = {jax.tree_util.keystr(path): on for path, on in jax.tree_util.tree_leaves_with_path(decays)}
        assert {name for name, on in names.items() if not on} == {name for name in names if "norm" in name}
        assert names["['embedding']"] and names["['blocks']['mlp']['into']"]

    def test_without_warm_up_and_fall_the_rate_is_constant(self):
        _, schedule = optimizers.make(tiny(train__warmup_steps=0, train__final_fraction=1.0).train)
        assert {float(schedule(step)) for step in (0, 1, 5, 7, 1000)} == {float(np.float32(1e-2))}

    def test_gradients_of_any_size_pass_a_clip_norm_of_inf(self):
        updates = []
        for clip_norm in (math.inf, 1e30, 1.0):
            transformation, _ = optimizers.make(tiny(train__optimizer="adam", train__clip_norm=clip_norm).train)
            params = {"w": jnp.ones(3)}
            state = transformation.init(params)
            for size in (1e3, 1.0):
                update, state = transformation.update({"w": jnp.full(3, size)}, state, params)
            updates.append(float(update["w"][0]))
        assert updates[0] == updates[1] != updates[2]

    def test_adam_takes_the_gradient_of_the_penalty_on_every_parameter_into_its_moments(self):
        rng, decay, rate, beta1, beta2 = np.random.default_rng(0), 0.1, 1e-2, 0.9, 0.999
        params = {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=5)}
        constant = dict(train__warmup_steps=0, train__final_fraction=1.0, train__clip_norm=math.inf)
        betas = dict(train__beta1=beta1, train__beta2=beta2)
        transformation, _ = optimizers.make(
            tiny(train__optimizer="adam", train__weight_decay=decay, **constant, **betas).train
        )
        ours = {name: jnp.float32(value) for name, value in params.items()}
        state, first, second = transformation.init(ours), dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
        for step in range(1, 5):
            grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
            updates, state = transformation.update(jax.tree.map(jnp.float32, grads), state, ours)
            ours = optax.apply_updates(ours, updates)
            for name, grad in grads.items():  # Kingma & Ba 2015, algorithm 1
                grad = grad + decay * params[name]
                first[name] = beta1 * first[name] + (1 - beta1) * grad
                second[name] = beta2 * second[name] + (1 - beta2) * grad**2
                mean, spread = first[name] / (1 - beta1**step), np.sqrt(second[name] / (1 - beta2**step))
                params[name] = params[name] - rate * mean / (spread + 1e-8)
        for name in params:
            np.testing.assert_allclose(ours[name], params[name], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS.keys() - {"adam"}))  # whose penalty is in the loss
    def test_decay_without_gradient_shrinks_matrices_only(self, name):
        params = self.params()
        transformation, schedule = optimizers.make(tiny(train__optimizer=name, train__weight_decay=0.5).train)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = jax.jit(transformation.update)(zeros, transformation.init(params), params)
        matrix, norm = params["blocks"]["mlp"]["into"], updates["blocks"]["mlp_norm"]["scale"]
        np.testing.assert_allclose(updates["blocks"]["mlp"]["into"], -0.5 * float(schedule(0)) * matrix, rtol=1e-5)
        assert not norm.any()

    def test_muon_gives_matrices_orthogonal_updates(self):
        params = self.params()
        transformation, schedule = optimizers.make(tiny(train__optimizer="muon", train__weight_decay=0.0).train)
        grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(3), x.shape), params)
        updates, _ = jax.jit(transformation.update)(grads, transformation.init(params), params)
        for update, rows in (
            (updates["blocks"]["attention"]["query"], 6),
            (updates["blocks"]["attention"]["out"], 6),
            (updates["blocks"]["mlp"]["into"], 6),
        ):
            values = np.linalg.svd(np.asarray(update[0]).reshape(rows, -1), compute_uv=False)
            scale = 0.2 * math.sqrt(6) * float(schedule(0))
            assert (values > 0.5 * scale).all() and (values < 1.4 * scale).all()  # Newton-Schulz stops near 1
