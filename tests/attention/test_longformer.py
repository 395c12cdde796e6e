"""Longformer equals dense attention under its own mask, and the authors' layer as transformers has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from golden import assert_matches, heads_inside, load
from materialised import (
    BLOCKWISE,
    VECTORS,
    N,
    alibi,
    assert_dense,
    assert_dropout,
    grids,
    packed,
    padding,
    project,
    restrict,
)

from attention import alibi_slopes, longformer_attention
from attention.biases import ALiBi


def window(T, size, dilation=1):
    i, j = grids(T)
    per_head = [(abs(i - j) <= size * d) & ((i - j) % d == 0) for d in np.atleast_1d(dilation)]
    return np.stack(per_head)


LONGFORMER = {
    "plain": (17, {"window": 3}),
    "causal": (17, {"window": 3, "causal": True, "scale": 0.3, **BLOCKWISE}),
    "wider_than_the_input": (5, {"window": 7}),
    "no_neighbours": (7, {"window": 0}),
    "one_token": (1, {"window": 3, "global_positions": np.array([0])}),
    "dilated": (23, {"window": 2, "dilation": 3}),
    "dilated_per_head": (23, {"window": 2, "dilation": (1, 2, 3, 4, 5, 30), "causal": True}),
    "dilated_per_head_blockwise": (23, {"window": 2, "dilation": (1, 2, 3, 4, 5, 30), **BLOCKWISE}),
    "padded_packed_biased": (
        23, {"window": 3, "key_mask": padding(23), **packed(23), "bias": ALiBi(alibi_slopes(N)), "causal": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LONGFORMER)
def test_window(case):
    T, given = LONGFORMER[case]
    pattern = window(T, given["window"], given.get("dilation", 1))
    assert_dense(longformer_attention, pattern, T, given, causal=given.get("causal", False))


GLOBAL = {  # length, positions [B, G], settings
    "two_slots": (17, [[0, 9], [4, 16]], {"window": 2}),
    "repeated_unused_unordered": (17, [[9, -1, 0, 9], [-1, -1, 3, -1]], {"window": 2, "causal": True}),
    "no_slots": (13, np.zeros((2, 0), int), {"window": 2}),
    "a_slot_past_the_end": (13, [[13, 4], [2, 99]], {"window": 2, "causal": True}),
    "all_unused": (13, [[-1], [-1]], {"window": 2}),
    "all_global": (3, [[2, 0, 1], [0, 1, 2]], {"window": 0}),
    "padded_packed_biased": (
        23, [[0, 11, 5], [7, 22, -1]],
        {"window": 3, "key_mask": padding(23), **packed(23), "bias": ALiBi(alibi_slopes(N)), "scale": 0.3},
    ),
    "causal_dilated_blockwise": (
        23, [[0, 11, 5], [7, 22, -1]],
        {"window": 2, "dilation": (1, 2, 3, 1, 2, 3), "causal": True, "key_mask": padding(23), **BLOCKWISE},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case, projections", [(case, "separate") for case in GLOBAL] + [("two_slots", "shared"), ("all_global", "shared")]
)
def test_global_tokens(case, projections):
    """Ordinary rows: window and global keys, each once. Global rows: all keys, in projections of their own."""
    T, positions, given = GLOBAL[case]
    *arrays, d_out, _ = oracle.inputs(T, None, N, 3)
    separate = projections == "separate"
    if separate:
        arrays += [x[::-1] + 1 for x in arrays]
    positions = np.array(positions)
    is_global = (positions[..., None] == np.arange(T)).any(-2)  # [B, T]
    vectors = {name: given[name] for name in VECTORS if name in given}
    causal, scale = given.get("causal", False), given.get("scale")
    bias = alibi(T) if "bias" in given else 0.0
    near = window(T, given["window"], given.get("dilation", 1)) | is_global[:, None, None]
    near, far = (restrict(x, causal, **vectors) for x in (near, np.ones((2, 1, T, T), bool)))
    real = given.get("key_mask", np.ones((2, T), bool))[..., None, None]
    d_out = np.where(real, d_out, 0)
    at_global = is_global[..., None, None]

    def attend(query, key, value, *rest):
        *apart, positions = rest
        apart = dict(zip(("global_query", "global_key", "global_value"), apart, strict=False))
        return longformer_attention(query, key, value, global_positions=positions, **apart, **given)

    out, gradients = oracle.value_and_vjp(attend, arrays, d_out, jnp.asarray(positions))

    def wanted(*arrays):
        *arrays, d_out = arrays
        own, apart = arrays[:3], arrays[3:] or arrays[:3]
        parts = [
            (
                oracle.attention(*x, bias, allowed, scale=scale)[0],
                oracle.gradients(*x, bias, np.where(rows, d_out, 0), 0.0, allowed, scale=scale)[:3],
            )
            for x, allowed, rows in ((own, near, ~at_global), (apart, far, at_global))
        ]
        out = np.where(real, np.where(at_global, parts[1][0], parts[0][0]), 0)
        gradients = [*parts[0][1], *parts[1][1]]
        return out, gradients if separate else [a + b for a, b in zip(*(p[1] for p in parts), strict=True)]

    oracle.assert_exact((np.where(real, out, 0), gradients), wanted, *arrays, d_out)


def test_traced_positions_do_not_recompile():
    query, key, value, _, _ = oracle.inputs(17)
    traces = []

    @jax.jit
    def attend(positions):
        traces.append(1)
        return longformer_attention(query, key, value, window=2, global_positions=positions)

    fixed = functools.partial(longformer_attention, window=2, global_positions=np.array([8, 3]))
    np.testing.assert_allclose(attend(jnp.array([3, 8])), jax.jit(fixed)(query, key, value), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(attend(jnp.array([3, 8])), attend(jnp.array([8, 3])))
    np.testing.assert_array_equal(attend(jnp.array([16, -1])), attend(jnp.array([16, 16])))
    assert len(traces) == 1


def test_vmap_over_positions_is_a_batch_dimension():
    query, key, value, _, _ = oracle.inputs(17)
    positions = np.array([[0, 9], [4, -1]])
    attend = functools.partial(longformer_attention, window=2, causal=True)
    mapped = jax.vmap(lambda q, k, v, p: attend(q, k, v, global_positions=p))(query, key, value, positions)
    whole = attend(query, key, value, global_positions=positions)
    np.testing.assert_allclose(mapped, whole, rtol=0, atol=8 * oracle.ULP)


def test_a_global_token_that_is_padding_is_seen_by_none():
    """Neither its key nor its value reaches anyone, NaN included; the other rows are those without it."""
    query, key, value, d_out, _ = oracle.inputs(17)
    key_mask = np.arange(17) != 9
    d_out[:, 9] = 0

    def attend(positions, *arrays):
        return longformer_attention(*arrays, window=2, global_positions=positions, key_mask=key_mask)

    spoilt = [x.copy() for x in (query, key, value)]
    for x in spoilt:
        x[:, 9] = np.nan
    with_it = oracle.value_and_vjp(functools.partial(attend, np.array([3, 9])), spoilt, d_out)
    without = oracle.value_and_vjp(functools.partial(attend, np.array([3, -1])), [query, key, value], d_out)
    for got, want in zip(jax.tree.leaves(with_it), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(np.delete(got, 9, axis=1), np.delete(want, 9, axis=1))


def test_half_precision_is_rounded_once():
    half = [jnp.asarray(x, jnp.bfloat16) for x in oracle.inputs(17)[:3]]
    attend = functools.partial(longformer_attention, window=2, global_positions=np.array([0, 9]))
    exact = attend(*(x.astype(jnp.float32) for x in half))
    np.testing.assert_allclose(np.asarray(attend(*half), np.float32), exact, rtol=2.0**-8, atol=16 * oracle.ULP)


@pytest.mark.parametrize("case", ["longformer_local", "longformer_global", "longformer_padding"])
def test_transformers_layer(case):
    """LongformerSelfAttention: projections, scale, window, padding and global tokens, values and all gradients."""
    arrays, meta = load(case)
    heads, size = meta["attrs"]["num_heads"], meta["attrs"]["attention_window"] // 2
    kind = arrays["aux.attention_mask"]  # -10000 padding, 0 local, 10000 global
    real = kind > -1
    slots = int((kind > 1).sum(-1).max())
    positions = np.stack(
        [np.pad(np.flatnonzero(row), (0, slots - (row > 0).sum()), constant_values=-1) for row in kind > 1]
    )
    names = [name for name in arrays if f"grad.{name}" in arrays]

    def layer(*given):
        w = dict(zip(names, given, strict=True))
        x = w.pop("in.x")

        def projection(name):
            return project(x, w[f"w.{name}.weight"], w[f"w.{name}.bias"], heads)

        query, key, value = (projection(name) for name in ("query", "key", "value"))
        apart = {}
        if slots:
            apart = {f"global_{name}": projection(f"{name}_global") for name in ("query", "key", "value")}
        out = longformer_attention(
            query, key, value, window=size, key_mask=real, global_positions=jnp.asarray(positions), **apart
        )
        return jnp.where(real[..., None], out.reshape(x.shape), 0)

    assert_matches(
        layer, [arrays[name] for name in names], arrays["cot"], arrays["out"],
        [arrays[f"grad.{name}"] for name in names], meta["f32_vs_f64_max_abs"],
    )  # fmt: skip


def test_local_attention_of_an_exact_window():
    arrays, meta = load("local_exact_window_causal")
    attend = functools.partial(longformer_attention, window=8, causal=True, key_mask=arrays["aux.mask"])
    given, gradients = ([heads_inside(arrays[f"{prefix}.{n}"]) for n in "qkv"] for prefix in ("in", "grad.in"))
    assert_matches(
        attend, given, heads_inside(arrays["cot"]), heads_inside(arrays["out"]), gradients, meta["f32_vs_f64_max_abs"]
    )


def test_dropout():
    assert_dropout(functools.partial(longformer_attention, window=3, global_positions=np.array([2, 11])))


X = np.zeros((2, 13, N, 3), np.float32)
WRONG = np.zeros((2, 13, N, 4), np.float32)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"window": -1}, ValueError, r"window: wanted an int >= 0, got -1"),
        ({"window": 2.0}, ValueError, r"window: wanted an int >= 0"),
        ({"window": 2, "dilation": 0}, ValueError, r"dilation: wanted an int >= 1, got 0"),
        ({"window": 2, "dilation": (1, 2)}, ValueError, r"dilation: wanted one for each of 6 heads"),
        ({"window": 2, "global_key": X}, ValueError, r"global_key: wanted together with global_pos"),
        ({"window": 2, "global_positions": np.zeros(2)}, ValueError, r"global_positions: wanted int"),
        ({"window": 2, "global_positions": 3}, ValueError, r"global_positions: wanted ints \[..., G"),
        (
            {"window": 2, "global_positions": np.zeros((3, 1), int)},
            ValueError,
            r"global_positions: wanted a shape that broadcasts to \(2, 1\), got \(3, 1\)",
        ),
        (
            {"window": 2, "global_positions": np.array([0]), "global_query": WRONG},
            ValueError,
            r"global_query: wanted query's \(2, 13, 6, 3\)",
        ),
        (
            {"window": 2, "global_positions": np.array([0]), "bias": np.zeros((13, 13), np.float32)},
            NotImplementedError,
            r"bias: global tokens takes Bias objects|bias: .*got an array",
        ),
        ({"window": 2, "dropout_rate": 0.1}, ValueError, r"rng: wanted a jax.random.key"),
        (
            {"window": 2, "global_positions": np.array([3, -2])},
            ValueError,
            r"global_positions: wanted -1 \(unused\) or positions from 0, got -2",
        ),
    ],
)
def test_refusals(given, error, message):
    with pytest.raises(error, match=message):
        longformer_attention(X, X, X, **given)
