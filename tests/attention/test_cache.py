"""Decoding from a state: every causal variant equals its parallel form, in whatever chunks the text comes."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention.biases import T5, ALiBi, alibi_slopes
from attention.bigbird import bigbird_attention, bigbird_pattern, bigbird_random_blocks
from attention.cache import KeyValueCache, cached_attention
from attention.capabilities import CAPABILITIES
from attention.delta_rule import delta_rule_attention
from attention.dot_product import dot_product_attention
from attention.gated_linear import gated_linear_attention, retention
from attention.linear import linear_attention
from attention.local import local_attention
from attention.longformer import longformer_attention, window_pattern
from attention.masks import Blocks, Causal, Dense, Dilated, Global, Keys, PerHead, Prefix, Window
from attention.performer import performer_attention, performer_projection
from attention.sparse_transformer import sparse_pattern, sparse_transformer_attention

T, N, K, H, HV = 23, 6, 3, 5, 7
*ARRAYS, D_OUT, _ = oracle.inputs(T, None, N, K, H, HV)
DILATIONS = (1, 2, 1, 2, 1, 1)
BLOCKS = bigbird_random_blocks(jax.random.key(1), N, T, 3, 1, causal=True)
TABLE = np.random.default_rng(1).standard_normal((8, N)).astype(np.float32)


dense = functools.partial(dot_product_attention, is_causal=True, implementation="reference")


class Variant(NamedTuple):
    """The parallel function, the cache it decodes from, and what it says to `cached_attention`."""

    parallel: Any
    cache: dict
    settings: dict = {}


def softened(score, query_position, key_position, head):
    return score / (1 + 0.1 * (query_position - key_position) * (head + 1))


def alike(cache, **settings):
    return Variant(functools.partial(dense, **settings), cache, settings)


FULL = {"capacity": T}
VARIANTS = {
    "full": alike(FULL),
    "full_with_room": alike({"capacity": T + 9}, scale=0.3, softcap=2.0),
    "window": Variant(functools.partial(dense, local_window_size=(4, 0)), {"window": 4}),
    "window_with_room": Variant(functools.partial(dense, local_window_size=(4, 0)), {"window": 4, "capacity": 9}),
    "window_of_one": Variant(functools.partial(dense, local_window_size=(0, 0)), {"window": 0}),
    "window_beyond_the_text": Variant(dense, {"window": 40}),
    "window_in_a_full_cache": alike(FULL, mask=Window(4, 0)),
    "longformer": Variant(
        functools.partial(longformer_attention, window=3, causal=True, global_positions=np.array([0, 1])),
        {"window": 3, "pinned": 2},
    ),
    "longformer_global_elsewhere": Variant(
        functools.partial(longformer_attention, window=3, causal=True, global_positions=np.array([2, 11])),
        FULL,
        {"mask": (Window(3, 0) | Global(np.array([2, 11]))) & Causal()},
    ),
    "longformer_dilated": Variant(
        functools.partial(longformer_attention, window=2, dilation=3, causal=True),
        {"window": 6},
        {"mask": Dilated(2, 0, 3)},
    ),
    "longformer_dilated_by_head": Variant(
        functools.partial(longformer_attention, window=2, dilation=DILATIONS, causal=True),
        {"window": 4},
        {"mask": window_pattern(2, DILATIONS, N, causal=True)},
    ),
    "local": Variant(
        functools.partial(local_attention, window=3, causal=True), {"window": 5}, {"mask": Blocks(3, -1, 0)}
    ),
    "local_in_a_full_cache": Variant(
        functools.partial(local_attention, window=3, causal=True), FULL, {"mask": Blocks(3, -1, 0)}
    ),
    "sparse_transformer_strided": Variant(
        functools.partial(sparse_transformer_attention, pattern="strided", stride=4),
        FULL,
        {"mask": sparse_pattern("strided", 4)},
    ),
    "sparse_transformer_fixed": Variant(
        functools.partial(sparse_transformer_attention, pattern="fixed", stride=5, summary=2),
        FULL,
        {"mask": sparse_pattern("fixed", 5, summary=2)},
    ),
    "bigbird": Variant(
        functools.partial(bigbird_attention, block_size=3, random_blocks=BLOCKS, causal=True),
        FULL,
        {"mask": bigbird_pattern(BLOCKS, N, T, 3, causal=True)},
    ),
    "masks_that_differ_by_head": alike(FULL, mask=PerHead([Window(n, 0) for n in range(N)])),
    "masks_that_differ_by_entry": alike(FULL, mask=Prefix(jnp.array([3, 8])) | Window(2, 0)),
    "alibi": alike(FULL, bias=ALiBi(alibi_slopes(N))),
    "alibi_window": Variant(
        functools.partial(dense, local_window_size=(4, 0), bias=ALiBi(alibi_slopes(N))),
        {"window": 4},
        {"bias": ALiBi(alibi_slopes(N))},
    ),
    "t5": alike(FULL, bias=T5(TABLE, max_distance=16)),
    "any_function": alike(FULL, bias=[softened, ALiBi(alibi_slopes(N))]),
}
every = pytest.mark.parametrize("name", VARIANTS)


def public_name(fn):
    """The public function under a partial."""
    return getattr(fn, "func", fn).__name__


def empty(name, lead=(2,), dtype=jnp.float32, **changes):
    return KeyValueCache.create(lead, K, H, value_dim=HV, dtype=dtype, **VARIANTS[name].cache | changes)


@functools.cache
def parallel(name):
    return np.asarray(jax.jit(VARIANTS[name].parallel)(*ARRAYS))


@functools.cache
def step(name):
    """One compiled step of a variant: (cache, query, key, value, key_mask=None) -> (output, cache)."""

    @jax.jit
    def run(cache, query, key, value, key_mask=None):
        return cached_attention(query, key, value, cache, key_mask=key_mask, **VARIANTS[name].settings)

    return run


def decode(name, cache, arrays, chunks, axis=1):
    """The outputs of a text that comes in chunks, joined, and the cache after it."""
    outs, start = [], 0
    for size in chunks:
        part = (jax.lax.slice_in_dim(x, start, start + size, axis=axis) for x in arrays)
        out, cache = step(name)(cache, *part)
        outs.append(out)
        start += size
    return np.concatenate(outs, axis), cache


@functools.cache
def token_by_token(name):
    """All outputs and the last cache, from one program that scans over the tokens."""

    def body(cache, token):
        out, cache = step(name)(cache, *(x[:, None] for x in token))
        return cache, out[:, 0]

    tokens = [jnp.moveaxis(x, 1, 0) for x in ARRAYS]
    cache, out = jax.jit(lambda c, xs: jax.lax.scan(body, c, xs))(empty(name), tokens)
    return np.moveaxis(np.asarray(out), 0, 1), cache


def assert_rounding(got, want, ulps=16):
    """Sums in another order: a few units of the largest number (measured: up to 3)."""
    np.testing.assert_allclose(got, want, rtol=0, atol=ulps * oracle.ULP * np.abs(want).max())


@every
def test_token_by_token(name):
    out, cache = token_by_token(name)
    assert_rounding(out, parallel(name))
    assert cache.length.tolist() == [T, T]
    kept = np.sort(np.asarray(cache.positions[0][cache.positions[0] >= 0]))
    pinned, ring = cache.pinned, cache.capacity - cache.pinned
    np.testing.assert_array_equal(kept, [p for p in range(T) if p < pinned or p >= T - ring])


@pytest.mark.slow
@every
def test_in_chunks(name):
    """A prompt of three tokens, then many at once: more than a ring holds."""
    out, cache = decode(name, empty(name), ARRAYS, (1, 3, T - 4))
    assert_rounding(out, parallel(name))
    _, one_by_one = token_by_token(name)
    for got, want in zip(jax.tree.leaves(cache), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_array_equal(got, want)  # the state does not say how the tokens came


@pytest.mark.parametrize("chunks", [(2,) * 11 + (1,), (5, 5, 5, 5, 3), (6, 1, 6, 1, 6, 1, 1, 1), (T,)])
def test_other_chunks_of_a_ring(chunks):
    """Chunks below, at and above what the ring's spare slots take."""
    for name in ("window", "window_with_room", "longformer"):
        assert_rounding(decode(name, empty(name), ARRAYS, chunks)[0], parallel(name))


@pytest.mark.slow
@pytest.mark.parametrize("lead", [(), (1,), (2, 1), (1, 2), (1, 1)])
def test_batch_dimensions(lead, name="longformer_dilated_by_head"):
    arrays = [x[: max(1, np.prod(lead, dtype=int))].reshape(*lead, *x.shape[1:]) for x in ARRAYS]
    want = parallel(name)[: max(1, np.prod(lead, dtype=int))].reshape(*lead, T, N, HV)
    out, cache = decode(name, empty(name, lead), arrays, (10, *(1,) * 13), axis=len(lead))
    assert_rounding(out, want)
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, empty(name, lead))


def test_a_batch_of_one_with_masks_of_its_own():
    arrays = [x[:1] for x in ARRAYS]
    mask = Prefix(jnp.array([3])) | Window(2, 0)
    run = jax.jit(lambda cache, *arrays: cached_attention(*arrays, cache, mask=mask)[0])
    assert_rounding(run(empty("full", (1,)), *arrays), jax.jit(functools.partial(dense, mask=mask))(*arrays))


@pytest.mark.parametrize("name", ["full", "longformer"])
def test_vmap_is_a_batch_dimension(name):
    cache, part = empty(name), [x[:, :7] for x in ARRAYS]
    out, after = jax.vmap(step(name))(cache, *part)
    want, wanted = step(name)(cache, *part)
    assert_rounding(out, want)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, wanted))


def test_eagerly():
    out, _ = cached_attention(*(x[:, :3] for x in ARRAYS), empty("window"))
    assert_rounding(out, parallel("window")[:, :3])


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("name", ["full", "window", "longformer", "alibi"])
def test_ragged_prompts(name, side):
    """Prompts of 5 and 9 tokens in rows of 9, then tokens of which one row gets fewer; padding may hold anything."""
    lengths, rng = (5, 9), np.random.default_rng(3)
    places = [{"right": np.arange(n), "left": np.arange(9 - n, 9), "holes": np.sort(rng.permutation(9)[:n])}[side]
              for n in lengths]  # fmt: skip
    results = []
    for fill in (7.0, np.nan):
        padded = [np.full((2, 9, *x.shape[2:]), fill, np.float32) for x in ARRAYS]
        real = np.zeros((2, 9), bool)
        for row, place in enumerate(places):
            real[row, place] = True
            for full, x in zip(padded, ARRAYS, strict=True):
                full[row, place] = x[row, : lengths[row]]
        prompt, cache = step(name)(empty(name), *padded, real)
        assert cache.length.tolist() == list(lengths)
        assert not prompt[~real].any()
        outs = [[prompt[row, place]] for row, place in enumerate(places)]
        for n in range(8):
            alive = np.array([[n % 2 == 0], [True]])  # the first row stands still at every other step
            at = np.asarray(cache.length)
            out, cache = step(name)(cache, *(x[[0, 1], at][:, None] for x in ARRAYS), alive)
            for row in (0, 1):
                outs[row] += [out[row]] if alive[row, 0] else []
        results.append([np.concatenate(row) for row in outs])
    for row, (got, same) in enumerate(zip(*results, strict=True)):
        np.testing.assert_array_equal(got, same)
        assert_rounding(got, parallel(name)[row, : len(got)])
    assert [len(x) for x in results[0]] == [9, 17]


@pytest.mark.parametrize("name", ["window", "window_with_room"])
def test_what_left_the_window_may_hold_anything(name):
    """A ring forgets: tokens older than its slots change no bit of what follows, be they NaN."""
    slots = empty(name).capacity
    old = np.arange(T) < 5
    changed = [np.where(old[:, None, None], np.float32(np.nan), x) for x in ARRAYS]
    want, _ = decode(name, empty(name), ARRAYS, (1,) * T)
    got, _ = decode(name, empty(name), changed, (1,) * T)
    np.testing.assert_array_equal(got[:, 5 + slots - 1 :], want[:, 5 + slots - 1 :])
    assert np.isnan(got[:, 4:8]).all()


@pytest.mark.parametrize("name", ["window", "window_with_room", "longformer"])
def test_no_two_tokens_of_a_chunk_share_a_slot(name):
    """XLA leaves open which of two writes to one place wins."""
    cache = empty(name)
    slots = np.asarray(cache._slots(cache.next_positions(T)))[0]
    np.testing.assert_array_equal(np.sort(slots[slots < cache.capacity]), np.arange(cache.capacity))


def test_beam_search_reorders_the_batch():
    _, cache = decode("longformer", empty("longformer"), ARRAYS, (9,))
    parents = np.array([1, 1, 0])
    beams = jax.tree.map(lambda x: x[parents], cache)
    out, _ = decode("longformer", beams, [x[parents, 9:] for x in ARRAYS], (1,) * 5)
    assert_rounding(out, parallel("longformer")[parents, 9:14])


def test_one_entry_starts_anew():
    """The other goes on, at its own length."""
    _, cache = decode("window", empty("window"), ARRAYS, (9,))
    cache = jax.tree.map(lambda x, new: x.at[0].set(new[0]), cache, empty("window"))
    mixed = [np.stack([x[0, :6], x[1, 9:15]]) for x in ARRAYS]
    out, cache = decode("window", cache, mixed, (1,) * 6)
    assert_rounding(out, np.stack([parallel("window")[0, :6], parallel("window")[1, 9:15]]))
    assert cache.length.tolist() == [6, 15]


def test_a_full_cache_takes_tokens_back():
    """As speculative decoding does with guesses that were wrong."""
    _, cache = decode("alibi", empty("alibi"), ARRAYS, (9,))
    _, wrong = decode("alibi", cache, [x[:, ::-1] for x in ARRAYS], (1,) * 4)
    out, _ = decode("alibi", dataclasses.replace(wrong, length=cache.length), [x[:, 9:] for x in ARRAYS], (1,) * 6)
    assert_rounding(out, parallel("alibi")[:, 9:15])


def test_gradients_pass_through_the_cache():
    """They equal those of the parallel form, also through a ring that a chunk overflows."""
    for name in ("full", "longformer"):

        def chunked(*arrays, name=name):
            prompt, cache = step(name)(empty(name), *(x[:, :9] for x in arrays))
            return jnp.concatenate([prompt, step(name)(cache, *(x[:, 9:] for x in arrays))[0]], axis=1)

        got, want = (oracle.value_and_vjp(fn, ARRAYS, D_OUT) for fn in (chunked, VARIANTS[name].parallel))
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert_rounding(x, y, ulps=32)


@pytest.mark.parametrize("name", ["full", "longformer"])
def test_half_precision_rounds_the_output_once(name):
    half = [jnp.asarray(x, jnp.bfloat16) for x in ARRAYS]
    out, cache = decode(name, empty(name, dtype=jnp.bfloat16), half, (9, *(1,) * 14))
    exact = np.asarray(jax.jit(VARIANTS[name].parallel)(*(x.astype(np.float32) for x in half)))
    assert out.dtype == cache.key.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2.0**-8, atol=64 * oracle.ULP)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in oracle.as_float64(ARRAYS)]
        out, _ = decode("full", empty("full", dtype=jnp.float64), arrays, (1,) * T)
        exact = np.asarray(jax.jit(dense)(*arrays))
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-14)


def test_overflow_is_never_silent():
    """An error where the length is known; where it is traced, NaN in every row beyond the capacity and after it."""
    _, cache = decode("full", empty("full", capacity=6), ARRAYS, (4,))
    part = [x[:, 4:8] for x in ARRAYS]
    with pytest.raises(ValueError, match="cache: wanted a capacity of at least 8 tokens, got 6; create it larger"):
        cached_attention(*part, cache)
    out, cache = step("full")(cache, *part)
    assert_rounding(out[:, :2], parallel("full")[:, 4:6])
    assert np.isnan(out[:, 2:]).all()
    assert np.isnan(step("full")(cache, *(x[:, 8:9] for x in ARRAYS))[0]).all()
    # Padding takes no room.
    real = np.arange(4) < 2
    _, cache = decode("full", empty("full", capacity=6), ARRAYS, (4,))
    assert np.isfinite(step("full")(cache, *part, real)[0]).all()


QUERY, KEY, VALUE = (x[:, :3] for x in ARRAYS)
WRONG = {
    "cache": ({"cache": None}, "cache: wanted a KeyValueCache, got NoneType"),
    "cache_batch": ({"cache": empty("full", (3,))}, r"cache: wanted keys \[..., K, C, width\] = \[2, 3, 23, 5\] float32"),
    "cache_dtype": ({"cache": empty("full", dtype=jnp.bfloat16)}, "float32, got .* bfloat16"),
    "cache_width": ({"cache": KeyValueCache.create((2,), K, H, capacity=4)}, "cache: wanted values"),
    "key_length": ({"key": KEY[:, :2], "value": VALUE[:, :2]}, "key: wanted query's length 3"),
    "key_mask": ({"key_mask": np.ones((2, 4), bool)}, "key_mask: wanted shape"),
    "key_mask_dtype": ({"key_mask": np.ones((2, 3))}, "key_mask: wanted bools"),
    "mask": ({"mask": lambda i, j: j <= i}, "mask: wanted a bool array or a Mask"),
    "bias_heads": ({"bias": ALiBi(alibi_slopes(3))}, "ALiBi.slopes: wanted"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(wrong):
    changes, message = WRONG[wrong]
    arguments = {"query": QUERY, "key": KEY, "value": VALUE, "cache": empty("full")} | changes
    with pytest.raises(ValueError, match=message):
        cached_attention(**arguments)


def test_arrays_of_indices_are_refused():
    """A ring keeps its keys in another order than the text."""
    for mask in (Dense(np.ones((3, T), bool)), np.ones((3, T), bool), Window(2, 0) & Keys(np.ones((2, T), bool))):
        with pytest.raises(NotImplementedError, match="mask: .* counts array entries"):
            cached_attention(QUERY, KEY, VALUE, empty("full"), mask=mask)
    with pytest.raises(NotImplementedError, match="bias: a cache takes Bias objects"):
        cached_attention(QUERY, KEY, VALUE, empty("full"), bias=np.zeros((3, T), np.float32))


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({}, "capacity: wanted the longest text, got None"),
        ({"capacity": 9, "pinned": 1}, "window: wanted one for pinned=1, got None"),
        ({"capacity": 0}, "capacity: wanted an int >= 1, got 0"),
        ({"window": -1}, "window: wanted an int >= 0, got -1"),
        ({"window": 8, "pinned": 2, "capacity": 10}, r"capacity: wanted at least pinned \+ window \+ 1 = 11, got 10"),
        ({"capacity": 9.0}, "capacity: wanted an int"),
        ({"capacity": 9, "value_dim": 0}, "value_dim: wanted an int >= 1"),
    ],
)
def test_a_cache_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        KeyValueCache.create((), 1, 1, **sizes)


def big(slots, kind, lead=(1,)):
    sizes = {"capacity": slots} if kind == "full" else {"window": slots - 1}
    cache = KeyValueCache.create(lead, 2, 16, **sizes)
    return cache, jnp.ones((*lead, 1, 4, 16)), jnp.ones((*lead, 1, 2, 16))


def test_one_program_for_all_positions():
    """So a ring's step costs the same wherever the text is."""
    traces = []

    @jax.jit
    def run(cache, query, key):
        traces.append(cache)
        return cached_attention(query, key, key, cache)[1]

    cache, query, key = big(5, "ring")
    for _ in range(12):
        cache = run(cache, query, key)
    assert len(traces) == 1 and cache.length.tolist() == [12]


@pytest.mark.parametrize("lead", [(), (1,), (3,)])
@pytest.mark.parametrize("kind", ["full", "ring"])
def test_cost_of_a_token(kind, lead):
    """FLOPs in proportion to the slots; written in place where donated, so that no copy of the cache is made."""
    slots = np.array([512, 1024, 2048])
    flops = []
    for size in slots:
        cache, query, key = big(int(size), kind, lead)
        run = jax.jit(lambda cache, query, key: cached_attention(query, key, key, cache), donate_argnums=0)
        program = run.lower(cache, query, key).compile()
        flops.append(program.cost_analysis()["flops"])
        memory, held = program.memory_analysis(), sum(x.nbytes for x in jax.tree.leaves(cache))
        assert memory.alias_size_in_bytes == held
        scores = 4 * 4 * size * max(1, *lead, 1)  # float32, one a query head and slot
        assert memory.temp_size_in_bytes < 4 * scores + 4096 < held
    growth = np.diff(flops) / np.diff(slots)
    np.testing.assert_allclose(growth, growth[0], rtol=0.05)
    products = 2 * 2 * 4 * 16 * max(1, *lead, 1)  # of queries and keys, of weights and values
    assert products <= growth[0] <= 1.5 * products


RNG = np.random.default_rng(5)
GATE = -np.abs(RNG.standard_normal((2, T, K))).astype(np.float32)
BETA = RNG.uniform(size=(2, T, K)).astype(np.float32)
RECURRENT = {
    "linear": (functools.partial(linear_attention, causal=True), ()),
    "linear_unnormalised": (functools.partial(linear_attention, causal=True, normalize=False), ()),
    "performer": (functools.partial(performer_attention, causal=True), "projection"),
    "performer_relu": (functools.partial(performer_attention, causal=True, kernel="relu"), "projection"),
    "retention": (retention, ()),
    "gated_linear": (gated_linear_attention, (GATE,)),
    "delta_rule": (delta_rule_attention, (BETA,)),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_the_linear_family(name):
    """A prompt of nine tokens, then one at a time from the state, whose size does not depend on the text."""
    fn, rest = RECURRENT[name]
    if rest == "projection":
        projection = performer_projection(jax.random.key(2), 16, H)
        fn, rest = (lambda q, k, v, fn=fn, **kw: fn(q, k, v, projection, **kw)), ()
    arrays = [*ARRAYS, *rest]
    prompt, state = jax.jit(functools.partial(fn, return_state=True))(*(x[:, :9] for x in arrays))

    def body(state, token):
        out, state = fn(*(x[:, None] for x in token), initial_state=state, return_state=True)
        return state, out[:, 0]

    tokens = [jnp.moveaxis(x[:, 9:], 1, 0) for x in arrays]
    after, out = jax.jit(lambda s, xs: jax.lax.scan(body, s, xs))(state, tokens)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    out = np.concatenate([prompt, np.moveaxis(out, 0, 1)], axis=1)
    assert_rounding(out, np.asarray(jax.jit(fn)(*arrays)), ulps=64)


@pytest.mark.parametrize("function", CAPABILITIES)
def test_the_table_of_capabilities_claims_what_is_proven_here(function):
    """Each state that it says a function decodes from has a case above, and what has a case is claimed."""
    claim = CAPABILITIES[function].decoding
    caches = [variant.cache for variant in VARIANTS.values() if public_name(variant.parallel) == function]
    proven = {
        "full cache": any("window" not in cache for cache in caches),
        "ring buffer": any("window" in cache for cache in caches),
        "pinned": any("pinned" in cache for cache in caches),
        "state": any(public_name(fn) == function for fn, _ in RECURRENT.values()),
    }
    claimed = {words for words in proven if words in claim}
    assert all(proven[words] for words in claimed)
    assert any(proven.values()) == bool(claimed) == bool(claim)


def test_global_projections_matter_in_rows_of_global_tokens_alone():
    """So a prompt that holds these goes through `longformer_attention`, and its keys and values into the ring."""
    others = [x[:, ::-1] for x in ARRAYS]
    run = functools.partial(longformer_attention, window=3, causal=True, global_positions=np.array([0, 1]))
    whole = np.asarray(
        jax.jit(lambda *x: run(*x[:3], global_query=x[3], global_key=x[4], global_value=x[5]))(*ARRAYS, *others)
    )
    assert not np.allclose(whole[:, 1], parallel("longformer")[:, 1], atol=1e-3)
    np.testing.assert_array_equal(whole[:, 2:], parallel("longformer")[:, 2:])
    cache = empty("longformer")
    cache = cache.append(*(x[:, :9] for x in ARRAYS[1:]), cache.next_positions(9))
    out, _ = decode("longformer", cache, [x[:, 9:] for x in ARRAYS], (1,) * (T - 9))
    assert_rounding(out, whole[:, 9:])
