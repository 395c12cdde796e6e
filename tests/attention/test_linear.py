"""Linear attention: chunked = recurrent = quadratic, published numbers, state, padding, packing, cost."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import assert_matches, heads_inside, load

from attention.linear import (
    efficient_attention,
    elu_plus_one,
    linear_attention,
    softmax_features,
    taylor_features,
)

GOLDENS = Path(__file__).parents[1] / "goldens"
ULP = 2.0**-23
B, N, H, HV = 2, 3, 5, 7
STATIC = ("feature_map", "causal", "chunk_size", "normalize", "return_state")

attend = jax.jit(linear_attention, static_argnames=STATIC)


@functools.partial(jax.jit, static_argnames=STATIC)
def attend_vjp(arrays, cotangent, **settings):
    """The output and the gradients of sum(output * cotangent) with respect to query, key and value."""
    out, pullback = jax.vjp(lambda *a: linear_attention(*a, **settings), *arrays)
    return out, pullback(cotangent)


def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def quadratic(query, key, value, allowed=True, state=None):
    """The definition: all pairs at once, in the precision of the arguments. Same number of heads on both sides."""
    weights = np.einsum("...inh,...jnh->...nij", phi(query), phi(key)) * allowed
    out = np.einsum("...nij,...jnv->...inv", weights, value)
    normalizer = weights.sum(-1).swapaxes(-1, -2)[..., None]
    if state is not None:
        out = out + np.einsum("...inh,...nhv->...inv", phi(query), state[0])
        normalizer = normalizer + np.einsum("...inh,...nh->...in", phi(query), state[1])[..., None]
    return out / np.where(normalizer == 0, 1, normalizer)


def quadratic_vjp(query, key, value, cotangent, allowed=True):
    """Gradients of sum(quadratic(...) * cotangent) by hand, in the precision of the arguments."""
    weights = np.einsum("...inh,...jnh->...nij", phi(query), phi(key)) * allowed
    normalizer = weights.sum(-1, keepdims=True)
    weights = weights / np.where(normalizer == 0, 1, normalizer)
    out = np.einsum("...nij,...jnv->...inv", weights, value)
    change = (
        np.einsum("...inv,...jnv->...nij", cotangent, value) - (cotangent * out).sum(-1).swapaxes(-1, -2)[..., None]
    )
    change = change * allowed / np.where(normalizer == 0, 1, normalizer)
    to_query = np.einsum("...nij,...jnh->...inh", change, phi(key)) * np.exp(np.minimum(query, 0))
    to_key = np.einsum("...nij,...inh->...jnh", change, phi(query)) * np.exp(np.minimum(key, 0))
    return to_query, to_key, np.einsum("...nij,...inv->...jnv", weights, cotangent)


def recurrent(query, key, value):
    """The causal form as an RNN, token by token, in float64."""
    query, key, value = float64(query, key, value)
    sums, normalizer, out = 0, 0, []
    for t in range(query.shape[-3]):
        sums = sums + phi(key)[..., t, :, :, None] * value[..., t, :, None, :]
        normalizer = normalizer + phi(key)[..., t, :, :]
        top = np.einsum("...nh,...nhv->...nv", phi(query)[..., t, :, :], sums)
        out.append(top / np.einsum("...nh,...nh->...n", phi(query)[..., t, :, :], normalizer)[..., None])
    return np.stack(out, axis=-3), (sums, normalizer)


def float64(*arrays):
    return [np.asarray(x, np.float64) for x in arrays]


def float32(*arrays):
    return [np.asarray(x, np.float32) for x in arrays]


def assert_as_exact_as_float32(ours, fn, *arrays):
    """Error against `fn` in float64 within 4 times that of `fn` in float32, plus one unit of the largest number."""
    exact, low = fn(*float64(*arrays)), fn(*float32(*arrays))
    for got, want, rough in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), jax.tree.leaves(low), strict=True):
        atol = 4 * np.abs(rough - want).max() + ULP * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def assert_quadratic(results, arrays, cotangent, allowed):
    """`results` of `attend_vjp` against the definition, values and gradients."""
    allowed = np.asarray(allowed, np.float32)
    assert_as_exact_as_float32(results[0], lambda *a: quadratic(*a, allowed), *arrays)
    assert_as_exact_as_float32(results[1], lambda *a: quadratic_vjp(*a, allowed), *arrays, cotangent)


def inputs(T, S=None, K=N, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = ((T, N, H), (S or T, K, H), (S or T, K, HV), (T, N, HV))
    *arrays, cotangent = (rng.standard_normal((B, *shape), np.float32).astype(dtype) for shape in shapes)
    return arrays, cotangent


def test_elu_plus_one():
    x = np.array([-200, -80, -50, -18, -1, -0.0, 0.0, 1e-3, 2, 1e30], np.float32)
    exact = phi(x.astype(np.float64))
    # exp in float32 is good to a few units; below the normal numbers it may be 0.
    np.testing.assert_allclose(elu_plus_one(x), exact, rtol=4 * ULP, atol=1.2e-38)
    slope = jax.vmap(jax.grad(elu_plus_one))(jnp.asarray(x))
    np.testing.assert_allclose(slope, np.minimum(exact, 1), rtol=4 * ULP, atol=1.2e-38)  # 1 at 0, from either side


def test_published_values_and_gradients():
    for case, allowed in (("linear_elu_full", np.ones([20, 20])), ("linear_elu_causal", np.tri(20))):
        golden = dict(np.load(GOLDENS / f"{case}.npz"))
        arrays = [golden[f"in.{name}"] for name in "qkv"]
        expected = (golden["out"], tuple(golden[f"grad.in.{name}"] for name in "qkv"))
        results = attend_vjp(arrays, golden["cot"], causal=case.endswith("causal"), chunk_size=6)
        assert_quadratic(results, arrays, golden["cot"], allowed)
        # The peer is one float32 program more: the noise of the definition in float32, theirs and ours.
        noise = [quadratic(*float32(*arrays), allowed.astype(np.float32)) - quadratic(*float64(*arrays), allowed)]
        stated = json.loads(str(golden["__meta__"]))["f32_vs_f64_max_abs"] or 0
        np.testing.assert_allclose(results[0], expected[0], rtol=0, atol=4 * max(stated, np.abs(noise).max()))
        precise = quadratic_vjp(*float64(*arrays, golden["cot"]), allowed)
        low = quadratic_vjp(*float32(*arrays, golden["cot"]), allowed.astype(np.float32))
        for got, want, rough, exact in zip(results[1], expected[1], low, precise, strict=True):
            np.testing.assert_allclose(
                got, want, rtol=0, atol=4 * np.abs(rough - exact).max() + ULP * np.abs(want).max()
            )


def test_published_unnormalised_with_state():
    golden = dict(np.load(GOLDENS / "linear_elu_causal_unnormalised.npz"))

    @jax.jit
    def ours(*given):
        def fn(q, k, v, state):
            settings = dict(causal=True, normalize=False, return_state=True, chunk_size=6)
            out, (sums, _) = linear_attention(q, k, v, initial_state=(state, jnp.zeros(state.shape[:-1])), **settings)
            return out, sums

        out, pullback = jax.vjp(fn, *given)
        return *out, *pullback((golden["cot"], golden["cot.state"]))

    results = ours(*(golden[f"in.{name}"] for name in ("q", "k", "v", "state")))
    names = ("out", "out.state", "grad.in.q", "grad.in.k", "grad.in.v", "grad.in.state")
    for name, got in zip(names, results, strict=True):
        # Sums of up to 20 tokens x 16 features: random rounding grows like the root of their number, on both sides.
        atol = 2 * np.sqrt(20 * 16) * ULP / 2 * np.abs(golden[name]).max()
        np.testing.assert_allclose(got, golden[name], rtol=0, atol=atol)


@pytest.mark.parametrize("T, chunk_size", [(1, 128), (7, 1), (11, 4), (13, 128)])
def test_chunked_is_recurrent_is_quadratic(T, chunk_size):
    arrays, cotangent = inputs(T)
    exact, _ = recurrent(*arrays)
    np.testing.assert_allclose(quadratic(*float64(*arrays), np.tri(T)), exact, rtol=0, atol=1e-13)
    results = attend_vjp(arrays, cotangent, causal=True, chunk_size=chunk_size)
    assert_quadratic(results, arrays, cotangent, np.tri(T))


@pytest.mark.parametrize("T, S", [(1, 13), (11, 1), (11, 13)])
def test_bidirectional_is_quadratic(T, S):
    arrays, cotangent = inputs(T, S)
    assert_quadratic(attend_vjp(arrays, cotangent), arrays, cotangent, np.ones([T, S]))


@pytest.mark.parametrize("causal", [False, True])
def test_query_heads_share_key_heads(causal):
    T, groups = 11, 3
    (query, key, value), _ = inputs(T, K=2)
    query = np.random.default_rng(7).standard_normal([B, T, 2 * groups, H], np.float32)
    repeated = [np.repeat(x, groups, axis=-2) for x in (key, value)]
    out, state = attend(query, key, value, causal=causal, chunk_size=4, return_state=True)
    allowed = np.tri(T, dtype=np.float32) if causal else 1
    assert_as_exact_as_float32(out, lambda *a: quadratic(*a, allowed), query, *repeated)
    for got, want in zip(state, recurrent(query, *repeated)[1], strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=T * ULP * np.abs(want).max())
    if causal:  # each query head goes on from a state of its own
        state = [np.abs(np.random.default_rng(3).standard_normal(s.shape, np.float32)) for s in state]
        out = attend(query, key, value, causal=True, chunk_size=4, initial_state=state)
        assert_as_exact_as_float32(out, lambda *a: quadratic(*a[:3], allowed, state=a[3:]), query, *repeated, *state)


@pytest.mark.parametrize("cut", [1, 6])
def test_state_hand_over(cut):
    T = 11
    arrays, _ = inputs(T, K=1)
    key_mask = np.arange(T) % 4 != 2
    settings = dict(causal=True, chunk_size=4, return_state=True)
    whole, last = attend(*arrays, key_mask=key_mask, **settings)
    first, state = attend(*(x[:, :cut] for x in arrays), key_mask=key_mask[:cut], **settings)
    second, state = attend(*(x[:, cut:] for x in arrays), key_mask=key_mask[cut:], initial_state=state, **settings)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=0, atol=8 * ULP * np.abs(whole).max())
    for got, want in zip(state, last, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=T * ULP * np.abs(want).max())


@pytest.mark.parametrize("causal", [False, True])
def test_masked_keys_may_hold_nan(causal):
    T = 11
    arrays, cotangent = inputs(T)
    key_mask = np.arange(T) < 8
    query, key, value = arrays
    hidden = ~key_mask[:, None, None]
    poisoned = [query, np.where(hidden, np.float32(np.nan), key), np.where(hidden, np.float32(np.inf), value)]
    results = attend_vjp(poisoned, cotangent, causal=causal, key_mask=key_mask, chunk_size=4)
    assert_quadratic(results, arrays, cotangent, (np.tri(T) if causal else np.ones([T, T])) * key_mask)
    for gradient in results[1][1:]:
        assert not np.asarray(gradient[:, 8:]).any()


@pytest.mark.parametrize("causal", [False, True])
def test_rows_with_nothing_to_attend_are_zero(causal):
    T = 11
    arrays, cotangent = inputs(T)
    key_mask, empty = np.zeros([B, T], bool), np.zeros([B, T], bool)
    key_mask[1, 5:] = True
    empty[0], empty[1, :5] = True, causal
    only_empty = np.where(empty[..., None, None], cotangent, 0)
    out, gradients = attend_vjp(arrays, only_empty, causal=causal, key_mask=key_mask, chunk_size=4)
    assert not np.asarray(out)[empty].any() and np.asarray(out)[~empty].all()
    assert not any(np.asarray(g).any() for g in gradients)


DOCUMENTS = {  # boundaries inside and between chunks of 4, one long document, padding all over the place
    "inside": [3] * 6 + [5] * 1 + [4] * 4,
    "aligned": [0] * 4 + [1] * 7,
    "padded": [-1, 0, 0, -1, -1, 0, 1, -1, 1, 1, -2],
}


def packed(arrays, cotangent, ids, causal, key_ids=None):
    key_ids = ids if key_ids is None else key_ids
    settings = dict(causal=causal, chunk_size=4)
    return attend_vjp(arrays, cotangent, query_segment_ids=ids, key_segment_ids=key_ids, **settings)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_packed_documents_are_isolated(name, causal):
    ids = np.array(DOCUMENTS[name])
    arrays, cotangent = inputs(len(ids))
    # Padding is NaN on every side: queries too, as the hidden states of a padded batch might be.
    poisoned = [np.where((ids >= 0)[:, None, None], x, np.float32(np.nan)) for x in arrays]
    allowed = (ids[:, None] == ids) & (ids >= 0) & (np.tri(len(ids), dtype=bool) | (not causal))
    results = packed(poisoned, cotangent, ids, causal)
    assert_quadratic(results, arrays, cotangent, allowed)
    out, _ = results
    assert not np.asarray(out)[:, ids < 0].any()
    for document in np.unique(ids[ids >= 0]):
        own = ids == document
        changed, _ = packed([np.where(own[:, None, None], 100 * x + 1, x) for x in poisoned], cotangent, ids, causal)
        np.testing.assert_array_equal(np.asarray(changed)[:, ~own], np.asarray(out)[:, ~own])
        assert (np.asarray(changed)[:, own] != np.asarray(out)[:, own]).any()


@pytest.mark.parametrize("causal", [False, True])
def test_unusual_ids(causal):
    arrays, cotangent = inputs(11)
    returning, fresh = np.array([0] * 3 + [1] * 2 + [0] * 6), np.array([0] * 3 + [1] * 2 + [2] * 6)
    first, second = (packed(arrays, cotangent, ids, causal)[0] for ids in (returning, fresh))
    np.testing.assert_array_equal(first, second)  # an id that returns is a new document
    query_ids, key_ids, agreed = (np.array([0] * 5 + [x] + [1] * 5) for x in (0, 1, -1))
    first, _ = packed(arrays, cotangent, query_ids, causal, key_ids)
    second, _ = packed(arrays, cotangent, agreed, causal)
    np.testing.assert_array_equal(first, second)  # a token whose traced ids disagree is padding


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_only_the_output(dtype):
    arrays, _ = inputs(11, dtype=dtype)
    out, state = attend(*arrays, causal=True, chunk_size=4, return_state=True)
    assert out.dtype == dtype and all(s.dtype == jnp.float32 for s in state)
    exact = quadratic(*float64(*arrays), np.tri(11))
    low = quadratic(*float32(*arrays), np.tri(11, dtype=np.float32))
    bound = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(exact) + 4 * np.abs(low - exact).max()
    assert (np.abs(np.asarray(out, np.float64) - exact) <= bound).all()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        arrays = float64(*inputs(11)[0])
        out, state = attend(*arrays, causal=True, chunk_size=4, return_state=True)
        assert {x.dtype for x in (out, *state)} == {jnp.dtype("float64")}
        exact, _ = recurrent(*arrays)
        np.testing.assert_allclose(out, exact, rtol=0, atol=64 * 2.0**-53 * np.abs(exact).max())


def test_weights_that_underflow_give_zero_not_nan():
    (query, key, value), cotangent = inputs(11)
    out, gradients = attend_vjp([query - 200, key, value], cotangent, causal=True, chunk_size=4)
    assert not np.asarray(out).any()
    assert all(np.isfinite(g).all() for g in gradients)


def test_transforms():
    arrays, _ = inputs(11)
    key_mask = np.arange(11) != np.array([[2], [5]])

    def loss(*a):
        return (linear_attention(*a[:3], causal=True, key_mask=a[3], chunk_size=4) ** 2).sum()

    def whole(fn):
        return jax.jit(jax.value_and_grad(fn, (0, 1, 2)))(*arrays, key_mask)

    expected = whole(loss)
    # vmap adds a batch dimension, which neither the products nor the sums know of; remat computes the same again.
    for fn in (lambda *a: jax.vmap(loss)(*a).sum(), jax.checkpoint(loss)):
        for got, want in zip(jax.tree.leaves(whole(fn)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=32 * ULP * np.abs(want).max())


def test_no_look_ahead():
    arrays, _ = inputs(11)
    out = np.asarray(attend(*arrays, causal=True, chunk_size=4))
    for t in (0, 3, 4, 10):
        late = (np.arange(11) == t)[:, None, None]
        changed = np.asarray(attend(*(np.where(late, x + 10, x) for x in arrays), causal=True, chunk_size=4))
        np.testing.assert_array_equal(changed[:, :t], out[:, :t])
        assert (changed[:, t:] != out[:, t:]).any()


def test_any_feature_map():
    (query, key, value), _ = inputs(11)

    def both_signs(x):
        return jnp.concatenate([jnp.exp(x), jnp.exp(-x)], axis=-1)

    settings = dict(feature_map=both_signs, causal=True, chunk_size=4, return_state=True)
    out, (sums, normalizer) = attend(query, key, value, **settings)
    assert sums.shape == (B, N, 2 * H, HV) and normalizer.shape == (B, N, 2 * H)

    def cosh(query, key, value):  # exp(q) . exp(k) + exp(-q) . exp(-k)
        sides = np.einsum("binh,bjnh->bnij", np.exp(query), np.exp(key))
        weights = (sides + np.einsum("binh,bjnh->bnij", np.exp(-query), np.exp(-key))) * np.tri(11, dtype=key.dtype)
        return np.einsum("bnij,bjnv->binv", weights / weights.sum(-1, keepdims=True), value)

    assert_as_exact_as_float32(out, cosh, query, key, value)


def cost(T, chunk_size, differentiate, N=2, H=32):
    """(reported FLOPs, temporary bytes) of the compiled causal form."""

    def loss(query, key, value):
        return linear_attention(query, key, value, causal=True, chunk_size=chunk_size).sum()

    fn = jax.grad(loss, (0, 1, 2)) if differentiate else loss
    compiled = jax.jit(fn).lower(*[jax.ShapeDtypeStruct([1, T, N, H], jnp.float32)] * 3).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_cost_is_linear_in_length(differentiate):
    N, H, C = 2, 32, 64
    lengths = 1024 * 2 ** np.arange(4)
    reported, temporary = np.array([cost(int(T), C, differentiate) for T in lengths]).T
    # XLA counts the body of the scan once. What it reports is body + outside * T, so two lengths tell the parts apart.
    outside = (reported[-1] - reported[0]) / (lengths[-1] - lengths[0])
    body = reported[0] - outside * lengths[0]
    flops = outside * lengths + body * (lengths // C)
    np.testing.assert_allclose(reported, body + outside * lengths, rtol=1e-3)
    for amounts in (flops, temporary):
        exponent = np.polyfit(np.log(lengths), np.log(amounts), 1)[0]
        assert abs(exponent - 1) < 0.15
    # The products of the docstring: scores, their sums, the state read and written. The gradient goes back through each
    # twice and computes the scores anew.
    scores, sums, state = C * H, C * (H + 1), 2 * H * (H + 1)
    promised = 2 * N * (4 * scores + 3 * sums + 3 * state if differentiate else scores + sums + state)
    assert promised <= flops[-1] / lengths[-1] <= 1.25 * promised
    # In units of the values' bytes: 9 measured, 13 if the scores of every chunk were kept, over 2 H = 64 with a state
    # per token.
    assert temporary[-1] < 11 * 4 * lengths[-1] * N * H


def test_taylor_features():
    query, key, value = inputs(11)[0]

    def taylor(query, key, value):
        s = np.einsum("binh,bjnh->bnij", query, key) * query.dtype.type(H**-0.5)
        weights = (1 + s + s * s / 2) * np.tri(11, dtype=query.dtype)
        return np.einsum("bnij,bjnv->binv", weights / weights.sum(-1, keepdims=True), value)

    out = attend(query, key, value, feature_map=taylor_features, causal=True, chunk_size=4)
    assert_as_exact_as_float32(out, taylor, query, key, value)


def test_published_efficient_attention():
    golden, meta = load("efficient_attention_full")
    given = [heads_inside(golden[f"in.{name}"]) for name in "qkv"]
    expected = [heads_inside(golden[name]) for name in ("cot", "out", *(f"grad.in.{name}" for name in "qkv"))]
    cotangent, out, *gradients = expected
    ours = functools.partial(efficient_attention, key_mask=golden["aux.mask"])
    assert_matches(ours, given, cotangent, out, gradients, meta["f32_vs_f64_max_abs"])


def test_published_causal_efficient_attention():
    """Rows normalised in place of features. The peer divides by at least 1e-3; no row here comes near that."""
    golden, meta = load("efficient_attention_causal")
    given = [heads_inside(golden[f"in.{name}"]) for name in "qkv"]
    cotangent, out, *gradients = [heads_inside(golden[n]) for n in ("cot", "out", *(f"grad.in.{x}" for x in "qkv"))]
    ours = functools.partial(linear_attention, feature_map=(softmax_features, jnp.exp), causal=True, chunk_size=6)
    assert_matches(ours, given, cotangent, out, gradients, meta["f32_vs_f64_max_abs"])


def efficient(query, key, value, allowed):
    """The definition, `allowed [..., 1 or T, S]`: which keys the softmax over the length runs over, for each query."""
    weights = np.exp(query) / np.exp(query).sum(-1, keepdims=True) * query.dtype.type(query.shape[-1] ** -0.5)
    length = np.where(allowed[:, None, :, :, None], np.exp(key).swapaxes(1, 2)[:, :, None], 0)  # B N i j H
    total = length.sum(-2, keepdims=True)
    length = length / np.where(total == 0, 1, total)
    return np.einsum("binh,bnijh,bjnv->binv", weights, length, value)


@pytest.mark.parametrize("T, S", [(1, 13), (11, 1), (11, 11)])
def test_efficient_attention_is_its_definition(T, S):
    """Masked keys, some rows with none, packed documents with padding: their contents, however wild, do not matter."""
    (query, key, value), _ = inputs(T, S, K=1)
    repeated = [np.repeat(x, N, axis=-2) for x in (key, value)]
    key_mask = np.random.default_rng(1).random((B, S)) < 0.7
    key_mask[0] = False
    hidden = ~key_mask[..., None, None]
    fill = [np.where(hidden, np.float32(np.nan), x) for x in (key, value)]
    out = efficient_attention(query, *fill, key_mask=key_mask)
    assert_as_exact_as_float32(out, lambda *a: efficient(*a, key_mask[:, None]), query, *repeated)
    assert not np.asarray(out)[0].any()
    if T == S:
        ids = np.array(DOCUMENTS["padded"])
        padding = (ids < 0)[:, None, None]
        fill = [np.where(padding, np.float32(np.nan), x) for x in (query, key, value)]
        out = efficient_attention(*fill, query_segment_ids=ids, key_segment_ids=ids, chunk_size=4)
        allowed = np.broadcast_to((ids[:, None] == ids) & (ids >= 0), (B, T, T))
        assert_as_exact_as_float32(out, lambda *a: efficient(*a, allowed), query, *repeated)


def test_efficient_attention_shrugs_off_large_keys():
    (query, key, value), cotangent = inputs(11)
    key[:, 3] = 400
    out, pullback = jax.vjp(efficient_attention, 100 * query, 10 * key, value)
    assert all(np.isfinite(x).all() for x in (out, *pullback(cotangent)))
    np.testing.assert_allclose(out, value[:, 3:4] * np.ones([11, 1, 1]) * H**-0.5, rtol=4 * ULP)  # weight 1 on key 3


@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("fn", [linear_attention, efficient_attention])
def test_cost_of_seeing_all_keys_is_linear_too(fn, differentiate):
    """No loop here, so the compiled program's FLOPs are all of them."""
    lengths, width = np.array([1024, 4096]), 32

    def loss(*arrays):
        return fn(*arrays).sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2)) if differentiate else loss)
    compiled = [
        program.lower(*[jax.ShapeDtypeStruct([1, T, 1, width], jnp.float32)] * 3).compile() for T in lengths.tolist()
    ]
    flops = np.array([c.cost_analysis()["flops"] for c in compiled])
    temporary = np.array([c.memory_analysis().temp_size_in_bytes for c in compiled])
    for amounts in (flops, temporary):
        assert abs(np.log(amounts[1] / amounts[0]) / np.log(4) - 1) < 0.1
    promised = 2 * 2 * width * (width + 1) * (3 if differentiate else 1)  # the state made and read, with its weights
    assert promised <= flops[1] / lengths[1] <= 1.5 * promised
    assert temporary[1] < 12 * 4 * lengths[1] * width


def test_efficient_attention_refuses_causal():
    with pytest.raises(NotImplementedError, match="causal: each feature is normalised .* write linear_attention"):
        efficient_attention(*inputs(11)[0], causal=True)


QUERY, KEY, VALUE = (
    np.zeros([B, 7, N, H], np.float32),
    np.zeros([B, 7, N, H], np.float32),
    np.zeros([B, 7, N, HV], np.float32),
)
IDS = np.zeros([B, 7], np.int32)
STATE = (np.zeros([B, N, H, HV], np.float32), np.zeros([B, N, H], np.float32))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"query": QUERY[0, 0]}, ValueError, r"query: wanted \[..., length, heads, width\], got shape \(3, 5\)"),
        ({"key": KEY.astype(np.int32)}, ValueError, "key: wanted a float dtype, got int32"),
        ({"key": KEY[..., :4]}, ValueError, "key: wanted query's head width 5, got 4"),
        ({"key": KEY[:1], "value": VALUE[:1]}, ValueError, "key: wanted query's batch dimensions"),
        (
            {"key": KEY[..., :2, :], "value": VALUE[..., :2, :]},
            ValueError,
            "key: wanted a number of heads that divides",
        ),
        ({"value": VALUE[:, :6]}, ValueError, r"value: wanted key's \[S, K\]"),
        ({"key": KEY[:, :6], "value": VALUE[:, :6], "causal": True}, ValueError, "causal.*T = 7 and S = 6"),
        ({"query": QUERY.astype(np.float16)}, ValueError, "key: wanted query's dtype float16"),
        ({"chunk_size": 0}, ValueError, "chunk_size: wanted an int >= 1, got 0"),
        ({"chunk_size": 2.0}, ValueError, "chunk_size"),
        ({"key_mask": np.ones([7], np.float32)}, ValueError, "key_mask: wanted bools, got dtype float32"),
        ({"key_mask": np.ones([6], bool)}, ValueError, r"key_mask: wanted shape \(2, 7\), got \(6,\)"),
        ({"initial_state": STATE}, ValueError, "initial_state: needs causal=True"),
        ({"initial_state": STATE[::-1], "causal": True}, ValueError, r"initial_state.*\[2, 3, 5, 7\]"),
        ({"feature_map": lambda x: x.sum(-2)}, ValueError, "feature_map.*of the query.*last axis only"),
        ({"feature_map": (elu_plus_one,)}, ValueError, "feature_map: wanted a function or a pair"),
        ({"feature_map": "elu"}, ValueError, "feature_map: wanted a function or a pair .*, got 'elu'"),
        ({"query_segment_ids": IDS}, ValueError, "key_segment_ids: wanted together with"),
        ({"query_segment_ids": IDS, "key_segment_ids": IDS[:, :6]}, ValueError, "key_segment_ids"),
        ({"query_segment_ids": IDS, "key_segment_ids": IDS + 1}, ValueError, "key_segment_ids: wanted the same ids"),
        (
            {"query_segment_ids": IDS * 1.0, "key_segment_ids": IDS * 1.0},
            ValueError,
            "query_segment_ids: wanted integers, got",
        ),
        (
            {"query_segment_ids": IDS, "key_segment_ids": IDS, "return_state": True},
            NotImplementedError,
            "return_state.*drop the segment ids",
        ),
        (
            {"key": KEY[:, :6], "value": VALUE[:, :6], "query_segment_ids": IDS, "key_segment_ids": IDS[:, :6]},
            NotImplementedError,
            "as many queries as keys, got T = 7 and S = 6",
        ),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        linear_attention(**{"query": QUERY, "key": KEY, "value": VALUE} | arguments)
