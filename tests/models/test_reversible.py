"""Reversible layers against the same function differentiated plainly, and the memory they are there to save."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION
from flax import nnx
from harness import EPS, assert_everything_learns, assert_trees_agree, build, trained

from models import stack
from models.reversible import reversible
from models.transformer import Transformer

B, T, V = 2, 13, 23


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(0), (B, T), 0, V)


def affine(layer, x, rng, context):
    noise = 0 if rng is None else jax.random.normal(rng, x.shape)
    return jnp.tanh(x @ layer + noise + context["shift"]) * context["mask"]


def arguments(depth=5, width=7):
    rngs = jax.random.split(jax.random.key(0), 4)
    layers = jax.random.normal(rngs[0], (depth, width, width)) * width**-0.5
    streams = jax.random.normal(rngs[1], (2, 3, width))
    context = {"shift": jax.random.normal(rngs[2], (width,)), "mask": jnp.arange(width) > 1}
    return tuple(streams), layers, jax.random.split(rngs[3], depth), context


@pytest.mark.parametrize("drawn", [True, False])
def test_equals_a_plain_loop_in_values_and_gradients(drawn):
    streams, layers, rngs, context = arguments()

    def ours(streams, layers, shift):
        return reversible((affine, affine), streams, (layers, rngs if drawn else None), context | {"shift": shift})

    def plain(streams, layers, shift):
        x1, x2 = streams
        for i, layer in enumerate(layers):
            f_rng, g_rng = jax.random.split(rngs[i]) if drawn else (None, None)
            x1 = x1 + affine(layer, x2, f_rng, context | {"shift": shift})
            x2 = x2 + affine(layer, x1, g_rng, context | {"shift": shift})
        return x1, x2

    weigh = lambda run, *args: sum((y * (i + jnp.arange(7.0))).sum() for i, y in enumerate(run(*args)))  # noqa: E731
    pull = lambda run: jax.jit(jax.value_and_grad(functools.partial(weigh, run), argnums=(0, 1, 2)))  # noqa: E731
    got, wanted = (pull(run)(streams, layers, context["shift"]) for run in (ours, plain))
    # Each of 10 half layers adds a rounding to the stream that is won back, and the gradient is a sum of 6 products.
    assert_trees_agree(got, wanted, roundings=4 * 10 * 6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full", "lsh", "linformer layerwise"])
def test_the_model_replays_what_was_drawn(tiny, tokens, monkeypatch, case):
    """Dropout and LSH's rotations are drawn again in the backward pass: the gradient is that of the plain loop."""
    name = "transformer" if case != "linformer layerwise" else "encoder"
    rates = {"dropout": 0.3, "attention_dropout": 0.0 if case == "lsh" else 0.2}
    config = tiny(name=name, attention=ATTENTION[case], reversible=True, depth=2, **rates)
    got = trained(config)(tokens, rng=jax.random.key(3))
    assert_everything_learns(got[1])
    monkeypatch.setattr(stack, "reversible", reversible.__wrapped__)  # without the custom gradient
    wanted = trained(config)(tokens, rng=jax.random.key(3))
    assert_trees_agree(got, wanted, roundings=1024)  # the streams are won back within roundings of a sum


@pytest.mark.slow
def test_bfloat16_streams_are_won_back_in_float32(tiny, tokens, monkeypatch):
    config = tiny(reversible=True, dtype="bfloat16", depth=8)
    got = trained(config)(tokens)
    monkeypatch.setattr(stack, "reversible", reversible.__wrapped__)
    wanted = trained(config)(tokens)
    np.testing.assert_array_equal(got[0], wanted[0])
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(wanted[1]), strict=True):
        assert np.linalg.norm(a - b) < 4 * 2.0**-8 * np.linalg.norm(b)  # an input may round to its neighbour


def temporary_bytes(config, length=128):
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, length=length, rngs=nnx.Rngs(0))))
    tokens = jax.ShapeDtypeStruct((4, length), jnp.int32)
    loss = jax.grad(lambda state, tokens: (nnx.merge(graph, state)(tokens) ** 2).mean())
    return jax.jit(loss).lower(state, tokens).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_the_gradient_does_not_grow_with_depth(tiny):
    """Temporary bytes of the compiled gradient at depth 2, 8 and 32; those of an ordinary stack grow with every layer.

    Whatever `scan_layers` says: unrolled, layers would overlap and each would keep a part.
    """
    shape = {"width": 24, "mlp_width": 48, "attention": ATTENTION["window"]}
    depths = (2, 8, 32)
    flat, unscanned, growing, remat = (
        [temporary_bytes(tiny(**shape, depth=depth, **changes)) for depth in depths]
        for changes in ({"reversible": True}, {"reversible": True, "scan_layers": False}, {}, {"remat": True})
    )
    inputs = 30 * 4 * 128 * 24 * 4  # what 30 layers more take in, float32
    assert flat[2] - flat[0] < inputs / 4 and unscanned[2] - unscanned[0] < inputs / 4
    assert 0.9 * inputs < remat[2] - remat[0] < 2 * inputs
    assert growing[2] - growing[0] > 4 * inputs


def test_the_program_does_not_grow_with_depth(tiny, tokens):
    def lines(depth):
        graph, state = nnx.split(
            nnx.eval_shape(lambda: Transformer(tiny(reversible=True, depth=depth), length=T, rngs=nnx.Rngs(0)))
        )
        loss = jax.grad(lambda state: nnx.merge(graph, state)(tokens).sum())
        return jax.jit(loss).lower(state).as_text().count("\n")

    assert lines(2) == lines(8)


@pytest.mark.slow
def test_reversible_layers_are_one_layer_deep_the_ordinary_ones(tiny, tokens):
    """With one layer: streams (x, x) -> (x + f, x + g(x + f)), and the mean of both."""
    config = tiny(reversible=True, depth=1)
    graph, state = nnx.split(Transformer(config, length=T, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, build(config)[1])
    places = jnp.arange(T)
    x = model.embed(tokens, places, None)
    context = stack.Context({}, model._rotation(places))
    block = model._layer(0)
    y1 = x + block.mix(x, None, context)
    y2 = x + block.feed(y1, None)
    wanted = model.logits(model.norm((y1 + y2) / 2))
    np.testing.assert_allclose(model(tokens), wanted, rtol=0, atol=64 * EPS * np.abs(wanted).max())
