"""The recurrences of the linear family, token by token in NumPy: retention, gated linear attention, the delta rule."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention.delta_rule import delta_rule_attention
from attention.gated_linear import gated_linear_attention, retention

B, T, N, K, H, HV, C = 2, 11, 6, 3, 5, 7, 4
GAMMA = np.array([0.5, 0.9, 1.0, 0.99, 0.7, 0.2])


class Variant(NamedTuple):
    """A public function; its arguments after query, key and value; how the recurrence reads them."""

    fn: Any
    gates: tuple = ()  # of log_decay "head" or "feature", beta
    decay: Any = None  # [N], fixed


def gated(query, key, value, log_decay, **settings):
    return gated_linear_attention(query, key, value, log_decay, **settings)


def gated_delta(query, key, value, log_decay, beta, **settings):
    return delta_rule_attention(query, key, value, beta, log_decay=log_decay, **settings)


VARIANTS = {
    "retention": Variant(functools.partial(retention, decay=GAMMA), decay=GAMMA),
    "gated_per_head": Variant(gated, ("head",)),
    "gated_per_feature": Variant(gated, ("feature",)),
    "delta": Variant(delta_rule_attention, ("beta",)),
    "gated_delta": Variant(gated_delta, ("head", "beta")),
}
SHAPES = {"head": (K,), "feature": (K, H), "beta": (K,)}

every = pytest.mark.parametrize("name", VARIANTS)


def recurrence(variant, arrays, state, *, hidden=None, first=None):
    """Outputs and the last state, token by token. `hidden [..., T]` tokens do nothing, `first [T]` start anew."""
    query, key, value, *gates = arrays
    groups = query.shape[-2] // key.shape[-2]
    key, value = (np.repeat(x, groups, axis=-2) for x in (key, value))
    gates = dict(zip(variant.gates, gates, strict=True))
    keep = np.ones(query.shape[-3]) if hidden is None else 1 - hidden  # a number, so that it multiplies complex ones
    keep = keep[..., None, None].astype(query.dtype)
    log_decay = np.zeros_like(key)
    if variant.decay is not None:
        log_decay = log_decay + np.log(variant.decay).astype(query.dtype)[:, None]
    if "head" in gates:
        log_decay = log_decay + keep * np.repeat(gates["head"], groups, axis=-1)[..., None]
    if "feature" in gates:
        log_decay = log_decay + keep * np.repeat(gates["feature"], groups, axis=-2)
    beta = np.repeat(gates["beta"], groups, axis=-1)[..., None] if "beta" in gates else None
    out = []
    for t in range(query.shape[-3]):
        q, k, v, alive = (x[..., t, :, :] for x in (query, key, value, keep))
        state = (state * 0 if first is not None and first[t] else state) * np.exp(log_decay[..., t, :, :, None])
        if beta is not None:
            recalled = np.einsum("...nh,...nhv->...nv", k, state)
            v = beta[..., t, :, :] * (v - recalled)
        state = state + alive[..., None] * k[..., None] * v[..., None, :]
        out.append(np.einsum("...nh,...nhv->...nv", q, state) * query.dtype.type(query.shape[-1] ** -0.5))
    return np.stack(np.broadcast_arrays(*out), axis=-3), state


def derivatives(variant, arrays, state, d_out, d_state, **settings):
    """Output, state and all gradients, from one complex step along every coordinate: exact, since the step is tiny."""
    given = [*arrays, state]
    kind = np.result_type(given[0].dtype, np.complex64)
    step = given[0].dtype.type(2.0**-60)

    def loss(given):
        out, last = recurrence(variant, given[:-1], given[-1], **settings)
        return (out * d_out).sum((-4, -3, -2, -1)) + (last * d_state).sum((-4, -3, -2, -1))

    gradients = []
    for i, x in enumerate(given):
        moved = x + (1j * step * np.eye(x.size, dtype=x.dtype)).reshape(x.size, *x.shape).astype(kind)
        gradients.append((loss([*given[:i], moved, *given[i + 1 :]]).imag / step).reshape(x.shape))
    return *recurrence(variant, arrays, state, **settings), *gradients


def inputs(name, length=T, seed=0):
    """The arguments, a state, and the cotangents of output and state. |k| = 1 for the delta rule, near enough."""
    rng = np.random.default_rng(seed)
    query, key, value, d_out, _ = oracle.inputs(length, None, N, K, H, HV, lead=(B,), seed=seed)
    gates = [rng.standard_normal((B, length, *SHAPES[gate])).astype(np.float32) for gate in VARIANTS[name].gates]
    for i, gate in enumerate(VARIANTS[name].gates):
        gates[i] = 1 / (1 + np.exp(-gates[i])) if gate == "beta" else -np.exp(gates[i])
    key = key / np.linalg.norm(key, axis=-1, keepdims=True)
    state, d_state = rng.standard_normal((2, B, N, H, HV)).astype(np.float32)
    return [query, key, value, *gates], state, d_out, d_state


@functools.cache
def program(name, chunk_size=C):
    """Output, state and gradients of ours, compiled once per shape: masks and ids are data."""

    @jax.jit
    def run(arrays, state, d_out, d_state, key_mask=None, ids=None):
        masks = dict(key_mask=key_mask, query_segment_ids=ids, key_segment_ids=ids, chunk_size=chunk_size)
        if ids is not None:
            out, pullback = jax.vjp(lambda *a: VARIANTS[name].fn(*a, **masks), *arrays)
            return out, *pullback(d_out)

        def attend(*given):
            return VARIANTS[name].fn(*given[:-1], initial_state=given[-1], return_state=True, **masks)

        (out, last), pullback = jax.vjp(attend, *arrays, state)
        return out, last, *pullback((d_out, d_state))

    return lambda *given, **masks: [np.asarray(x) for x in run(*given, **masks)]


@every
@pytest.mark.parametrize(
    "length, chunk_size",
    [(T, 4), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1, 64), (T, 1), (T, 64)])],
)
def test_chunks_are_the_recurrence(name, length, chunk_size):
    """One token, one token a chunk (recurrent), several chunks, one chunk (parallel); values, states, gradients."""
    given = inputs(name, length)
    got = program(name, chunk_size)(*given)
    oracle.assert_exact(got, lambda *a: derivatives(VARIANTS[name], a[:-3], *a[-3:]), *given[0], *given[1:])


@every
def test_state_hand_over(name):
    arrays, state, *_ = inputs(name)
    fn = functools.partial(VARIANTS[name].fn, chunk_size=C, return_state=True)
    whole, last = fn(*arrays, initial_state=state)
    parts = []
    for begin, end in ((0, 1), (1, 6), (6, T)):
        out, state = fn(*(x[:, begin:end] for x in arrays), initial_state=state)
        parts.append(out)
    for got, want in ((np.concatenate(parts, axis=1), whole), (state, last)):
        np.testing.assert_allclose(got, want, rtol=0, atol=16 * oracle.ULP * np.abs(want).max())


@every
def test_hidden_tokens_do_nothing(name):
    """Whatever they hold, gates included; their own rows are 0; retention alone counts their positions."""
    arrays, state, d_out, d_state = inputs(name)
    hidden = np.random.default_rng(1).random((B, T)) < 0.4
    row = hidden[..., None, None]
    given = [np.where(row if x.ndim == 4 else row[..., 0], 0, x).astype(np.float32) for x in arrays]
    clean = program(name)(given, state, d_out, d_state, key_mask=~hidden)
    for fill in (np.nan, np.inf, -np.inf):
        filled = [np.where(row if x.ndim == 4 else row[..., 0], np.float32(fill), x) for x in arrays]
        for got, want in zip(program(name)(filled, state, d_out, d_state, key_mask=~hidden), clean, strict=True):
            np.testing.assert_array_equal(got, want)
    assert not clean[0][hidden].any() and not any(gradient[hidden].any() for gradient in clean[2:-1])
    d_real = np.where(row, 0, d_out)

    def naive(*a):
        out, *rest = derivatives(VARIANTS[name], a[:-3], *a[-3:], hidden=hidden)
        return np.where(row, 0, out), *rest

    oracle.assert_exact(clean, naive, *given, state, d_real, d_state)


IDS = np.array([-1, 4, 4, 4, -1, 4, 0, 0, 7, 7, -2])  # padding inside and around, boundaries inside chunks and between


@every
def test_documents_start_anew(name):
    arrays, state, d_out, d_state = inputs(name)
    ids, padding = np.broadcast_to(IDS, (B, T)), IDS < 0

    def fill(inside, value):
        return [np.where(inside.reshape(-1, *[1] * (x.ndim - 2)), np.float32(value), x) for x in arrays]

    got = program(name)(fill(padding, np.nan), state, d_out, d_state, ids=ids)
    assert not any(x[:, padding].any() for x in got)
    first = np.isin(np.arange(T), (0, 6, 8))
    d_real = np.where(padding[:, None, None], 0, d_out)

    def naive(*a):
        out, _, *gradients = derivatives(
            VARIANTS[name], a[:-1], state * 0, a[-1], state * 0, hidden=np.broadcast_to(padding, (B, T)), first=first
        )
        return np.where(padding[:, None, None], 0, out), *gradients[:-1]

    oracle.assert_exact(got, naive, *fill(padding, 0), d_real)
    for document in (4, 0, 7):
        inside = IDS == document
        changed = [np.where(inside.reshape(-1, *[1] * (x.ndim - 2)), x * 0.5, x) for x in fill(padding, 3)]
        for x, want in zip(program(name)(changed, state, d_out, d_state, ids=ids), got, strict=True):
            np.testing.assert_array_equal(x[:, ~inside], want[:, ~inside])
            assert (x[:, inside] != want[:, inside]).any()


@every
def test_no_look_ahead(name):
    """Token t, gates included, changes no bit before t, and gets no gradient from there."""
    arrays, state, d_out, d_state = inputs(name)
    expected = program(name)(arrays, state, d_out, d_state)
    for t in (1, 3, 4, 10):
        late = [np.concatenate([x[:, :t], x[:, t:] * 2], axis=1) for x in arrays]
        got = program(name)(late, state, d_out, d_state)
        np.testing.assert_array_equal(got[0][:, :t], expected[0][:, :t])
        assert (got[0][:, t:] != expected[0][:, t:]).any((0, 2, 3)).all()
        early = np.where(np.arange(T)[:, None, None] < t, d_out, 0)
        _, _, *gradients = program(name)(arrays, state, early, 0 * d_state)
        assert not any(gradient[:, t:].any() for gradient in gradients[:-1])


@pytest.mark.parametrize("name", ["gated_per_head", "gated_per_feature", "gated_delta"])
def test_any_decay_is_safe(name):
    """Decays of every strength, up to forgetting everything, keep the precision of weak ones."""
    arrays, state, d_out, d_state = inputs(name)
    rng = np.random.default_rng(3)
    strong = rng.choice([-1e-4, -1, -50, -3000], p=[0.6, 0.2, 0.1, 0.1], size=arrays[3].shape).astype(np.float32)
    given = [*arrays[:3], strong, *arrays[4:]], state, d_out, d_state
    got = program(name)(*given)
    oracle.assert_exact(got, lambda *a: derivatives(VARIANTS[name], a[:-3], *a[-3:]), *given[0], *given[1:])
    forget = np.zeros_like(strong)
    forget[:, 6] = -np.inf
    late = np.where(np.arange(T)[:, None, None] >= 6, d_out, 0)
    got = program(name)([*arrays[:3], forget, *arrays[4:]], state, late, d_state)
    assert all(np.isfinite(x).all() for x in got)
    assert not got[-1].any() and not any(gradient[:, :6].any() for gradient in got[2:-1])
    fn = functools.partial(VARIANTS[name].fn, chunk_size=C)
    fresh = fn(*(x[:, 6:] for x in (*arrays[:3], 0 * strong, *arrays[4:])))
    np.testing.assert_allclose(got[0][:, 6:], fresh, rtol=0, atol=16 * oracle.ULP * np.abs(fresh).max())


@every
def test_transforms_and_dtypes(name):
    """vmap over the batch, remat, no batch at all; bfloat16 rounded once; float64 kept; eager calls."""
    arrays, state, *_ = inputs(name)
    fn = functools.partial(VARIANTS[name].fn, chunk_size=C, return_state=True)
    whole = jax.jit(fn)(*arrays)
    for other in (jax.jit(jax.vmap(jax.checkpoint(fn)))(*arrays), [x[None] for x in fn(*(x[0] for x in arrays))]):
        for got, want in zip(other, whole, strict=True):
            want = want[: len(got)]
            np.testing.assert_allclose(got, want, rtol=0, atol=32 * oracle.ULP * np.abs(want).max())
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:3]]
    out, last = jax.jit(fn)(*half, *arrays[3:])
    assert out.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    exact, _ = fn(*(x.astype(jnp.float32) for x in half), *arrays[3:])
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2.0**-8, atol=32 * oracle.ULP)
    with jax.enable_x64(True):
        out, last = jax.jit(fn)(*oracle.as_float64(arrays))
    assert out.dtype == last.dtype == np.float64
    want, _ = recurrence(VARIANTS[name], oracle.as_float64(arrays), np.zeros(state.shape))
    np.testing.assert_allclose(out, want, rtol=0, atol=2.0**-44 * np.abs(want).max())


def cost(name, length, differentiate, heads=2, width=32):
    """(reported FLOPs, temporary bytes) of the compiled program with chunks of 64."""
    shapes = {"head": (heads,), "feature": (heads, width), "beta": (heads,)}
    sizes = [(heads, width)] * 3 + [shapes[gate] for gate in VARIANTS[name].gates]
    arrays = [jax.ShapeDtypeStruct((1, length, *size), jnp.float32) for size in sizes]

    def loss(*arrays):
        return VARIANTS[name].fn(*arrays, chunk_size=64).sum()

    program = jax.grad(loss, tuple(range(len(arrays)))) if differentiate else loss
    compiled = jax.jit(program).lower(*arrays).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "retention"])  # which is gated per head
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_cost_is_linear_in_length(name, differentiate):
    lengths = np.array([1024, 2048, 8192])
    reported, temporary = np.array([cost(name, int(length), differentiate) for length in lengths]).T
    # XLA counts the body of the scan once. What it reports is body + outside * T, so two lengths tell the parts apart.
    outside = (reported[-1] - reported[0]) / (lengths[-1] - lengths[0])
    body = reported[0] - outside * lengths[0]
    np.testing.assert_allclose(reported, body + outside * lengths, rtol=1e-3)
    # Per token and head: the products of the docstring, and a few numbers of other work per score (the decays) or per
    # feature and halving. Halving compares half of the pairs. The CPU's triangular solver is a call that XLA does not
    # count.
    pairs = 32 if name == "gated_per_feature" else 64
    products = 2 * (pairs * 32 + 64 * 32 + 2 * 32 * 32)
    measured = (body / 64 + outside) / 2
    assert products <= measured <= (12 if differentiate else 3) * products
    # Linear, and in units of the arguments' bytes a few copies of them.
    assert abs(np.polyfit(np.log(lengths), np.log(temporary), 1)[0] - 1) < 0.15
    assert temporary[-1] < 40 * 4 * lengths[-1] * 2 * 32


ARRAYS = {name: inputs(name, 7)[0] for name in VARIANTS}
WRONG = {
    "query_rank": ({0: lambda x: x[0, 0]}, {}, "query: wanted"),
    "lengths": ({1: lambda x: x[:, :6], 2: lambda x: x[:, :6]}, {}, "causal: wanted one key per query, got T = 7 and S = 6"),
    "chunk_size": ({}, {"chunk_size": 0}, "chunk_size: wanted an int >= 1, got 0"),
    "state": ({}, {"initial_state": np.zeros([B, K, H, HV])}, r"initial_state: wanted .* = \[2, 6, 5, 7\]"),
    "mask": ({}, {"key_mask": np.ones([B, 7])}, "key_mask: wanted bools"),
    "ids": ({}, {"query_segment_ids": np.zeros([B, 7], int)}, "key_segment_ids: wanted together"),
}  # fmt: skip


@every
@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(name, wrong):
    changes, settings, message = WRONG[wrong]
    arrays = [changes.get(i, lambda x: x)(x) for i, x in enumerate(ARRAYS[name])]
    with pytest.raises(ValueError, match=message):
        VARIANTS[name].fn(*arrays, **settings)


@every
def test_segments_with_a_state_are_refused(name):
    ids = np.zeros([B, 7], int)
    with pytest.raises(NotImplementedError, match="drop the segment ids"):
        VARIANTS[name].fn(*ARRAYS[name], query_segment_ids=ids, key_segment_ids=ids, return_state=True)


@pytest.mark.parametrize("name", ["gated_per_head", "gated_per_feature", "delta", "gated_delta"])
def test_wrong_gates(name):
    argument = "beta" if name == "delta" else "log_decay"
    for change, message in (
        (lambda x: x[:, :6], rf"{argument}: wanted a shape that broadcasts to \(2, 7, 3"),
        (lambda x: x[0, 0], rf"{argument}: wanted shape \(2, 7, 3"),
        (lambda x: x.astype(int), f"{argument}: wanted a float dtype"),
    ):
        arrays = [*ARRAYS[name][:3], change(ARRAYS[name][3]), *ARRAYS[name][4:]]
        with pytest.raises(ValueError, match=message):
            VARIANTS[name].fn(*arrays)
