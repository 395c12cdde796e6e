"""Local attention: published numbers, dense attention under the mask of blocks, the ring, cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from golden import assert_matches, heads_inside, load

from attention import alibi_slopes, blockwise, dot_product_attention
from attention.biases import ALiBi
from attention.local import local_attention

N, K = 6, 3
BLOCKWISE = {"implementation": "blockwise"}


@pytest.mark.parametrize("case", ["blocks_causal", "blocks_bidirectional", "exact_window_causal"])
def test_published_blocks(case):
    arrays, meta = load(f"local_{case}")
    attrs = meta["attrs"]
    settings = {name: attrs[name] for name in ("causal", "look_backward", "look_forward")}
    settings |= {"window": attrs["window_size"], "exact_window": attrs.get("exact_windowsize", False)}
    inside, gradients = ([heads_inside(arrays[f"{kind}.{name}"]) for name in "qkv"] for kind in ("in", "grad.in"))
    assert case.startswith("exact") == settings["exact_window"]
    assert_matches(
        functools.partial(local_attention, key_mask=arrays["aux.mask"], **settings),
        *(inside, heads_inside(arrays["cot"]), heads_inside(arrays["out"]), gradients, meta["f32_vs_f64_max_abs"]),
    )


@pytest.mark.parametrize("case", ["causal", "bidirectional"])
def test_published_ring(case):
    arrays, meta = load(f"reformer_local_{case}")
    attrs, shape = meta["attrs"], arrays["in.x"].shape
    settings = dict(look_backward=attrs["chunks_before"], look_forward=attrs["chunks_after"], causal=attrs["causal"])

    def fn(x, *weights):
        arrays = [jnp.einsum("ble,fe->blf", x, w).reshape(*shape[:2], attrs["num_heads"], -1) for w in weights]
        return local_attention(*arrays, window=attrs["chunk_length"], circular=True, **settings).reshape(shape)

    names = ["in.x", *(f"w.{name}.weight" for name in ("query", "key", "value"))]
    given, gradients = ([arrays[prefix + name] for name in names] for prefix in ("", "grad."))
    assert_matches(fn, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"])


def reached(T, window, backward, forward, circular):
    """How often each query reaches each key, `[T, T]`, by walking over the blocks."""
    blocks = -(-T // window)
    count = np.zeros((T, T), int)
    for i in range(T):
        for step in range(-backward, forward + 1):
            block = i // window + step
            if circular or 0 <= block < blocks:
                start = block % blocks * window
                count[i, start : min(start + window, T)] += 1
    return count


IDS = np.array([[0] * 9 + [1] * 10 + [-1] * 4, [-1] * 2 + [4] * 21])
PADDING = np.random.default_rng(1).random((2, 23)) < 0.7
CASES = {  # length, settings
    "causal": (23, {"causal": True}),
    "both_sides": (23, {"scale": 0.3}),
    "both_sides_blockwise": (23, BLOCKWISE),
    "own_block_only": (23, {"look_backward": 0, "look_forward": 0}),
    "far_back": (23, {"look_backward": 3, "look_forward": 0, **BLOCKWISE}),
    "ahead": (23, {"look_backward": 0, "look_forward": 2}),
    "exact": (23, {"exact_window": True, "look_backward": 2}),
    "exact_causal": (23, {"exact_window": True, "causal": True, **BLOCKWISE}),
    "short": (3, {}),
    "ring": (23, {"circular": True}),
    "ring_blockwise": (23, {"circular": True, "look_backward": 2, "look_forward": 0, **BLOCKWISE}),
    "ring_causal": (23, {"circular": True, "causal": True, "look_forward": 2}),
    "ring_all_reached_once": (11, {"circular": True}),
    "ring_some_reached_twice": (11, {"circular": True, "look_backward": 2}),
    "ring_of_two": (7, {"circular": True, "causal": True, "look_backward": 3, "look_forward": 2, **BLOCKWISE}),
    "ring_of_one": (4, {"circular": True}),
    "padded_packed_biased": (
        23, {"key_mask": PADDING, "query_segment_ids": IDS, "key_segment_ids": IDS, "bias": ALiBi(alibi_slopes(N))},
    ),
    "ring_biased": (7, {"circular": True, "look_backward": 3, "bias": ALiBi(alibi_slopes(N))}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_is_dense_attention_under_its_mask(case):
    """A key reached more often than once, round the ring, weighs as often: the log of that is added to its score."""
    T, given = CASES[case]
    *arrays, d_out, _ = oracle.inputs(T, None, N, K)
    backward, forward = given.get("look_backward", 1), given.get("look_forward", 0 if given.get("causal") else 1)
    count = reached(T, 4, backward, forward, given.get("circular"))
    assert (count.max() > 1) == (case in ("ring_some_reached_twice", "ring_of_two", "ring_of_one", "ring_biased"))
    i, j = np.arange(T)[:, None], np.arange(T)
    allowed = (count > 0) & ((j <= i) | (not given.get("causal")))
    if given.get("exact_window"):
        allowed &= (i - j <= 4 * backward) & (j - i <= 4 * forward)
    allowed = np.broadcast_to(allowed, (2, N, T, T))
    real = np.ones((2, T, 1, 1), bool)
    if "key_mask" in given:
        allowed = allowed & (PADDING[:, None] & (IDS[:, :, None] == IDS[:, None]) & (IDS >= 0)[:, :, None])[:, None]
        real = PADDING[..., None, None]
    bias = np.log(np.maximum(count, 1))
    if "bias" in given:
        bias = bias - np.asarray(alibi_slopes(N), np.float64)[:, None, None] * abs(i - j)
    d_out = np.where(real, d_out, 0)  # rows of masked tokens are unspecified
    out, gradients = oracle.value_and_vjp(functools.partial(local_attention, window=4, **given), arrays, d_out)

    def wanted(*arrays):
        *arrays, d_out = arrays
        out = oracle.attention(*arrays, bias, allowed, scale=given.get("scale"))[0]
        return np.where(real, out, 0), oracle.gradients(*arrays, bias, d_out, 0.0, allowed, scale=given.get("scale"))[
            :3
        ]

    oracle.assert_exact((np.where(real, out, 0), gradients), wanted, *arrays, d_out)


def test_an_array_of_biases_on_the_ring():
    *arrays, d_out, _ = oracle.inputs(7, None, N, K)
    bias = np.random.default_rng(0).standard_normal((N, 7, 7)).astype(np.float32)
    repeats = np.log(reached(7, 4, 2, 1, True))
    out, gradients = oracle.value_and_vjp(
        lambda *a: local_attention(*a[:3], window=4, look_backward=2, circular=True, bias=a[3]), (*arrays, bias), d_out
    )

    def wanted(query, key, value, bias, d_out):
        bias = bias + repeats.astype(bias.dtype)
        *gradients, d_bias = oracle.gradients(query, key, value, bias, d_out)
        return oracle.attention(query, key, value, bias)[0], (*gradients, d_bias.sum(0))

    oracle.assert_exact((out, gradients), wanted, *arrays, bias, d_out)


def test_one_block_is_full_attention():
    """No matter how far it looks, on a ring or not."""
    *arrays, _, _ = oracle.inputs(5, None, N, K)
    for settings in ({}, {"circular": True, "look_backward": 3}):
        got = local_attention(*arrays, window=5, **settings)
        np.testing.assert_array_equal(got, dot_product_attention(*arrays))


@pytest.mark.parametrize("settings", [{"causal": True}, {}, {"circular": True}, {"exact_window": True}], ids=str)
def test_time_is_linear_in_length(settings, monkeypatch):
    """By the blocks visited (XLA counts a loop's body once); forward and backward visit the same."""
    visited = []
    make = blockwise._make_attend

    def make_attend(program):
        assert len(program.by_query.other) == len(program.by_key.other)
        visited.append(len(program.by_query.other) * program.block_q * program.block_k)
        return make(program)

    monkeypatch.setattr(blockwise, "_make_attend", make_attend)
    lengths = 1024 * 2 ** np.arange(4)
    for T in lengths:
        array = jax.ShapeDtypeStruct((int(T), 1, 4), jnp.float32)
        jax.eval_shape(functools.partial(local_attention, window=64, **settings), *[array] * 3)
    assert abs(np.polyfit(np.log(lengths), np.log(visited), 1)[0] - 1) < 0.05
    looks = 2 if settings.get("causal") else 3
    assert visited[-1] <= 1.6 * lengths[-1] * 64 * looks


@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_memory_is_linear_in_length(differentiate):
    def bytes_at(T):
        def loss(*arrays):
            return local_attention(*arrays, window=64, circular=True, implementation="blockwise").sum()

        program = jax.jit(jax.grad(loss, (0, 1, 2)) if differentiate else loss)
        compiled = program.lower(*[jax.ShapeDtypeStruct((T, 1, 4), jnp.float32)] * 3).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    amounts = [bytes_at(T) for T in (2048, 4096, 6144)]
    assert abs((amounts[2] - amounts[1]) / (amounts[1] - amounts[0]) - 1) < 0.15
    assert amounts[1] - amounts[0] < 20 * 4 * 4 * 2048  # a few arrays of the inputs' size


X = np.zeros((2, 13, N, 3), np.float32)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"window": 0}, ValueError, "window: wanted an int >= 1, got 0"),
        ({"window": 2.0}, ValueError, "window: wanted an int >= 1, got 2.0"),
        ({"look_backward": -1}, ValueError, "look_backward: wanted an int >= 0, got -1"),
        ({"look_forward": 0.5}, ValueError, "look_forward: wanted an int >= 0, got 0.5"),
        ({"look_forward": 1, "causal": True}, ValueError, "look_forward: wanted 0 with causal=True, got 1"),
        ({"circular": True, "exact_window": True}, NotImplementedError, "exact_window: distances do not go round a ring"),
        ({"dropout_rate": 0.5}, ValueError, "rng: wanted a jax.random.key"),
        ({"key": X[:, :7], "value": X[:, :7]}, ValueError, "key: wanted query's length 13"),
    ],
)  # fmt: skip
def test_refusals(given, error, message):
    with pytest.raises(error, match=message):
        local_attention(**{"query": X, "key": X, "value": X, "window": 4} | given)
