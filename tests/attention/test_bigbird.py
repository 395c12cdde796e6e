"""BigBird equals dense attention in which a key counts as often as it is listed, and the layer of transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from golden import assert_matches, load
from materialised import BLOCKWISE, N, assert_dense, assert_dropout, grids, packed, padding, project, weights

from attention import alibi_slopes, bigbird_attention, bigbird_pattern, bigbird_random_blocks, dot_product_attention
from attention.biases import ALiBi, SoftCap

REFERENCE = {"implementation": "reference"}


def definition(T, block, blocks, num_global, prefix=0):
    """How often each key counts, `[..., N, T, T]`: once as neighbour or end, and as often as its block is listed."""
    i, j = (np.where(x < prefix, -9, (x - prefix) // block) for x in grids(T))
    n = -(-(T - prefix) // block)
    ends = [-9] + [b for b in range(n) if b < num_global or b >= n - num_global]
    times = ((abs(i - j) <= 1) | np.isin(i, ends) | np.isin(j, ends)).astype(int)
    times = np.broadcast_to(times, (N, T, T)).copy()
    if blocks is not None:
        times = np.broadcast_to(times, (*blocks.shape[:-3], N, T, T)).copy()
        for at in np.ndindex(*blocks.shape):
            if blocks[at] >= 0:
                times[at[:-2]] += (i == at[-2] + 1) & (j == blocks[at])
    return times


PADDED = {"key_mask": padding(29), **packed(29)}
ARRAY = np.random.default_rng(4).standard_normal((N, 29, 29)).astype(np.float32)
BIGBIRD = {  # length, settings, random blocks
    "default_globals": (29, {"block_size": 3}, 2),
    "blockwise": (29, {"block_size": 3, **BLOCKWISE}, 2),
    "blockwise_whole_blocks": (28, {"block_size": 4, **BLOCKWISE}, 2),
    "blockwise_causal": (29, {"block_size": 3, "causal": True, **BLOCKWISE}, 2),
    "no_globals": (31, {"block_size": 4, "num_global_blocks": 0, **BLOCKWISE}, 1),
    "two_globals": (31, {"block_size": 3, "num_global_blocks": 2, "scale": 0.3, **BLOCKWISE}, 1),
    "two_globals_causal": (31, {"block_size": 3, "num_global_blocks": 2, "causal": True, **REFERENCE}, 1),
    "no_random": (23, {"block_size": 4, "num_random_blocks": 0, **BLOCKWISE}, 0),
    "one_block": (3, {"block_size": 4}, 1),
    "two_blocks": (7, {"block_size": 4}, 1),
    "one_token": (1, {"block_size": 4}, 3),
    "padded_packed_biased": (29, {"block_size": 3, **PADDED, "bias": ALiBi(alibi_slopes(N)), **BLOCKWISE}, 2),
    "padded_packed_biased_reference": (29, {"block_size": 3, **PADDED, "bias": ALiBi(alibi_slopes(N)), **REFERENCE}, 2),
    "global_tokens": (29, {"block_size": 3, "num_global_tokens": 5, **BLOCKWISE}, 2),
    "global_tokens_in_whole_blocks": (30, {"block_size": 3, "num_global_tokens": 6, **BLOCKWISE}, 2),
    "global_tokens_causal": (29, {"block_size": 3, "num_global_tokens": 2, "causal": True, **BLOCKWISE}, 1),
    "global_tokens_only": (29, {"block_size": 3, "num_global_tokens": 2, "num_global_blocks": 0, **BLOCKWISE}, 1),
    "global_tokens_biased": (
        29, {"block_size": 3, "num_global_tokens": 4, **PADDED, "bias": ALiBi(alibi_slopes(N)), **BLOCKWISE}, 2,
    ),
    "global_tokens_bias_array": (29, {"block_size": 3, "num_global_tokens": 4, "bias": ARRAY, **BLOCKWISE}, 1),
    "global_tokens_reference": (29, {"block_size": 3, "num_global_tokens": 4, "bias": ARRAY, **REFERENCE}, 1),
    "all_global_tokens": (7, {"block_size": 3, "num_global_tokens": 9}, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", BIGBIRD)
def test_drawn_blocks(case):
    T, given, R = BIGBIRD[case]
    num_global, block, prefix = (
        given.get("num_global_blocks", 1),
        given["block_size"],
        given.get("num_global_tokens", 0),
    )
    causal, length = given.get("causal", False), T - min(prefix, T)
    blocks = None
    if R:
        blocks = bigbird_random_blocks(jax.random.key(5), N, length, block, R, num_global, causal=causal)
        given = given | {"random_blocks": blocks}
    times = definition(T, block, blocks, num_global, prefix)
    assert times.max() == 1  # window, ends and drawn blocks are different ones
    assert_dense(bigbird_attention, times, T, given, causal=causal)


LISTED = np.random.default_rng(3).integers(
    -1, 10, (N, 8, 3)
)  # T = 29, blocks of 3: window, global and doubled ones too
PER_ENTRY = np.random.default_rng(4).integers(-1, 10, (2, N, 8, 2))


COUNTED = {  # settings, random blocks, whether these are traced
    "blockwise": (BLOCKWISE, LISTED, False),
    "blockwise_traced": (BLOCKWISE, LISTED, True),
    "reference_traced": (REFERENCE, LISTED, True),
    "causal_with_global_tokens": ({"causal": True, "num_global_tokens": 2, **BLOCKWISE}, LISTED, True),
    "padded_and_capped": ({"bias": SoftCap(2.0), **PADDED, **BLOCKWISE}, LISTED, True),
    "per_batch_entry": (BLOCKWISE, PER_ENTRY, True),
    "per_batch_entry_reference": (REFERENCE, PER_ENTRY, False),
}


@pytest.mark.parametrize("case", COUNTED)
def test_a_block_counts_as_often_as_it_is_listed(case):
    """Listed twice, or window or global besides: exp(score) once for each, in values and gradients."""
    given, blocks, traced = COUNTED[case]
    prefix = given.get("num_global_tokens", 0)
    T, listed = 29 + prefix, {"random_blocks": blocks}
    times = definition(T, 3, blocks, 1, prefix)
    assert times.max() >= 3
    attend = functools.partial(bigbird_attention, block_size=3, **({} if traced else listed))
    assert_dense(attend, times, T, given, causal=given.get("causal", False), **(listed if traced else {}))


@pytest.mark.slow
def test_traced_patterns_do_not_recompile_and_equal_concrete_ones():
    arrays = oracle.inputs(29)[:3]
    attend = functools.partial(bigbird_attention, block_size=3, num_random_blocks=2, **BLOCKWISE)
    traces = []

    @jax.jit
    def draw(rng, *arrays):
        traces.append(1)
        return attend(*arrays, rng=rng)

    for seed in (7, 8):
        key = jax.random.key(seed)
        blocks = bigbird_random_blocks(key, N, 29, 3, 2)
        np.testing.assert_array_equal(jax.jit(lambda key: bigbird_random_blocks(key, N, 29, 3, 2))(key), blocks)
        concrete = jax.jit(functools.partial(attend, random_blocks=blocks))(*arrays)
        closed_over = jax.jit(functools.partial(attend, rng=key))(*arrays)
        np.testing.assert_array_equal(closed_over, concrete)
        np.testing.assert_allclose(draw(key, *arrays), concrete, rtol=0, atol=16 * oracle.ULP)  # blocks in other order
    assert len(traces) == 1
    keys = jax.random.split(jax.random.key(9), 2)
    mapped = jax.vmap(lambda key, *x: attend(*x, rng=key))(keys, *arrays)
    for key, out, *entry in zip(keys, mapped, *arrays, strict=True):
        np.testing.assert_allclose(out, attend(*entry, rng=key), rtol=0, atol=16 * oracle.ULP)


def test_a_traced_pattern_under_remat_and_scan():
    query, key, value, d_out, _ = oracle.inputs(29)
    blocks = np.stack([LISTED, LISTED[::-1]])

    def attend(random_blocks, *arrays):
        return bigbird_attention(*arrays, block_size=3, random_blocks=random_blocks, **BLOCKWISE)

    def both(*arrays):
        step = jax.checkpoint(lambda total, listed: (total + attend(listed, *arrays), None))
        return jax.lax.scan(step, jnp.zeros_like(d_out), jnp.asarray(blocks))[0]

    got = oracle.value_and_vjp(both, (query, key, value), d_out)
    want = oracle.value_and_vjp(lambda *x: attend(blocks[0], *x) + attend(blocks[1], *x), (query, key, value), d_out)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=32 * oracle.ULP * np.abs(y).max())


@pytest.mark.parametrize(
    "num_global, R, causal", [(1, 0, False), (1, 2, False), (2, 1, False), (0, 2, False), (1, 2, True)]
)
def test_short_inputs_are_full_attention(num_global, R, causal):
    """Up to 2 g + 2 blocks, and R more where those are drawn and g > 0, every pair is seen, as the docstring says."""
    limit = 2 * num_global + 2 + (R if num_global else 0)
    for n in range(1, limit + 2):
        T = 2 * n
        blocks = bigbird_random_blocks(jax.random.key(n), N, T, 2, R, num_global, causal=causal)
        times = definition(T, 2, blocks, num_global)
        if causal:
            i, j = grids(T)
            times = np.where(j <= i, times, 1)
        assert times.max() == 1 and times.all() == (n <= limit)
    arrays = oracle.inputs(2 * limit)[:3]
    settings = dict(block_size=2, num_random_blocks=R, num_global_blocks=num_global, causal=causal)
    got = jax.jit(functools.partial(bigbird_attention, rng=jax.random.key(0), **settings))(*arrays)
    want = jax.jit(functools.partial(dot_product_attention, is_causal=causal))(*arrays)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("num_global, causal", [(0, False), (1, False), (2, True)])
def test_no_key_counts_twice(num_global, causal):
    """With equal scores the weight of each key seen is one over their number."""
    given = dict(block_size=2, num_random_blocks=3, num_global_blocks=num_global, causal=causal, **BLOCKWISE)
    for seed in range(3):
        key = jax.random.key(seed)
        got = np.asarray(weights(functools.partial(bigbird_attention, rng=key, **given), 37))
        blocks = bigbird_random_blocks(key, N, 37, 2, 3, num_global, causal=causal)
        seen = definition(37, 2, blocks, num_global) > 0
        seen = seen & np.tri(37, dtype=bool) if causal else seen
        np.testing.assert_allclose(got, seen / seen.sum(-1, keepdims=True), rtol=0, atol=4 * oracle.ULP)
        np.testing.assert_array_equal(got > 0, bigbird_pattern(blocks, N, 37, 2, num_global, causal=causal).dense(37))


@pytest.mark.parametrize("causal", [False, True])
def test_random_blocks_are_new_and_uniform(causal):
    heads, n, R, ends = 400, 11, 3, 1
    blocks = bigbird_random_blocks(jax.random.key(1), heads, 4 * n - 1, 4, R, ends, causal=causal)
    assert isinstance(blocks, np.ndarray) and blocks.shape == (heads, n - 2, R) and blocks.dtype == np.int32
    for row in range(n - 2):
        b = row + 1
        free = [x for x in range(ends, b if causal else n - ends) if abs(x - b) > 1]
        drawn = blocks[:, row]
        count = min(R, len(free))
        assert set(np.unique(drawn[:, :count])) == set(free) and (drawn[:, count:] == -1).all()
        assert all(len(set(line)) == count for line in drawn[:, :count].tolist())
        for place in range(count):  # each place alone is uniform over the free blocks
            share, p = (drawn[:, place, None] == free).mean(0), 1 / len(free)
            assert np.abs(share - p).max() <= 5 * np.sqrt(p * (1 - p) / heads)


def test_a_row_draws_the_same_whatever_stands_beside_it():
    draw = functools.partial(bigbird_random_blocks, jax.random.key(1), block_size=4, num_random_blocks=2)
    np.testing.assert_array_equal(draw(num_heads=5, length=44)[:3], draw(num_heads=3, length=44))
    longer, shorter = (draw(num_heads=3, length=length, causal=True) for length in (44, 32))
    np.testing.assert_array_equal(longer[:, :6], shorter)


@pytest.mark.parametrize("case", ["bigbird_block_sparse", "bigbird_padding"])
@pytest.mark.parametrize("implementation", ["blockwise", "reference"])
def test_transformers_layer(case, implementation):
    """BigBirdBlockSparseAttention with its own random blocks, some of them counted twice; values and all gradients."""
    arrays, meta = load(case)
    heads, block = meta["attrs"]["num_heads"], meta["attrs"]["block_size"]
    real = arrays["aux.pad_mask"] > 0
    names = [name for name in arrays if f"grad.{name}" in arrays]

    def layer(*given):
        w = dict(zip(names, given, strict=True))
        x = w.pop("in.x")
        query, key, value = (project(x, w[f"w.{n}.weight"], w[f"w.{n}.bias"], heads) for n in ("query", "key", "value"))
        out = bigbird_attention(
            query, key, value, block_size=block, random_blocks=jnp.asarray(arrays["aux.rand_attn"]), key_mask=real,
            implementation=implementation,
        )  # fmt: skip
        return jnp.where(real[..., None], out.reshape(x.shape), 0)

    assert_matches(
        layer, [arrays[name] for name in names], arrays["cot"], arrays["out"],
        [arrays[f"grad.{name}"] for name in names], meta["f32_vs_f64_max_abs"],
    )  # fmt: skip


def test_the_published_counts_are_ours():
    """aux.block_count: the tool's own count of how often it gathers each block, for the rows that are not global."""
    arrays, _ = load("bigbird_block_sparse")
    blocks = arrays["aux.rand_attn"][0]
    times = definition_of_heads(blocks, arrays["aux.block_count"].shape[-1])
    np.testing.assert_array_equal(times[:, 1:-1], arrays["aux.block_count"][:, 1:-1])


def definition_of_heads(blocks, n):
    """`definition` with one token a block, for any number of heads."""
    padded = np.full((N, *blocks.shape[1:]), -1)
    padded[: len(blocks)] = blocks
    return definition(n, 1, padded, 1)[: len(blocks)]


@pytest.mark.parametrize("given", [BLOCKWISE, REFERENCE])
def test_dropout(given):
    def attend(*arrays, rng=None, dropout_rate=0.0):
        settings = dict(block_size=3, num_random_blocks=0, **given)
        return bigbird_attention(*arrays, dropout_rng=rng, dropout_rate=dropout_rate, **settings)

    assert_dropout(attend)


@pytest.mark.slow
def test_implementations_drop_the_same_weights():
    drop = dict(rng=jax.random.key(1), dropout_rng=jax.random.key(0), dropout_rate=0.4, block_size=4)
    arrays = oracle.inputs(37)[:3]
    blockwise, reference = (bigbird_attention(*arrays, **drop, **given) for given in (BLOCKWISE, REFERENCE))
    np.testing.assert_allclose(blockwise, reference, rtol=0, atol=16 * oracle.ULP * np.abs(reference).max())


def temporary_bytes(T):
    """Of the gradient, with the random blocks traced."""

    def loss(blocks, *arrays):
        return bigbird_attention(*arrays, block_size=64, random_blocks=blocks, **BLOCKWISE).sum()

    listed = jax.ShapeDtypeStruct((1, T // 64 - 2, 3), jnp.int32)
    arrays = [jax.ShapeDtypeStruct((T, 1, 4), jnp.float32)] * 3
    return jax.jit(jax.grad(loss, (1, 2, 3))).lower(listed, *arrays).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_a_traced_pattern_is_linear():
    """Beside a constant tile, a few arrays of the inputs' size (sorting the schedule weighs far less)."""
    low, high = temporary_bytes(2048), temporary_bytes(8192)
    assert high - low < 20 * 4 * 4 * (8192 - 2048)


@pytest.mark.parametrize("T, shape", [(1, (N, 0, 2)), (29, (N, 8, 0))])
def test_an_empty_list_of_random_blocks_is_none(T, shape):
    arrays, empty = oracle.inputs(T)[:3], np.zeros(shape, np.int32)
    listed, none = (
        bigbird_attention(*arrays, block_size=3, **x) for x in ({"random_blocks": empty}, {"num_random_blocks": 0})
    )
    np.testing.assert_array_equal(listed, none)
    np.testing.assert_array_equal(bigbird_pattern(empty, N, T, 3).dense(T), bigbird_pattern(None, N, T, 3).dense(T))


def test_a_mask_cannot_count():
    blocks = np.full((N, 3, 2), -1)
    for twice in ((3, 3), (1, -1), (0, -1)):
        blocks[0, 0] = twice
        with pytest.raises(NotImplementedError, match="random_blocks: a block listed twice, or one that is window or"):
            bigbird_pattern(blocks, N, 13, 3)
    with pytest.raises(NotImplementedError, match="random_blocks: wanted a concrete array, got a tracer"):
        jax.jit(lambda blocks: bigbird_pattern(blocks, N, 13, 3).dense(13))(np.full((N, 3, 1), -1))


X = np.zeros((2, 13, N, 3), np.float32)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({}, ValueError, r"rng: wanted a jax.random.key to draw random blocks"),
        ({"block_size": 0, "num_random_blocks": 0}, ValueError, r"block_size: wanted an int >= 1, got 0"),
        (
            {"block_size": 0, "rng": jax.random.key(0)},
            ValueError,
            r"block_size: wanted an int >= 1, got 0",
        ),
        (
            {"num_global_blocks": -1, "rng": jax.random.key(0)},
            ValueError,
            r"num_global_blocks: wanted an int >= 0, got -1",
        ),
        (
            {"num_random_blocks": -1, "rng": jax.random.key(0)},
            ValueError,
            r"num_random_blocks: wanted an int >= 0, got -1",
        ),
        (
            {"block_size": 3, "random_blocks": np.zeros((N, 2, 1), int)},
            ValueError,
            r"random_blocks: wanted ints \[..., N, blocks - 2, R\] = \(6, 3, 'R'\), got int64 \(6, 2, 1\)",
        ),
        (
            {"block_size": 3, "random_blocks": np.full((N, 3, 1), 5)},
            ValueError,
            r"random_blocks: wanted -1 \(none\) or blocks below 5, got 5 to 5",
        ),
        (
            {"block_size": 3, "random_blocks": np.full((N, 3, 1), -2)},
            ValueError,
            r"random_blocks: wanted -1 \(none\) or blocks below 5, got -2 to -2",
        ),
        (
            {"block_size": 3, "rng": jax.random.key(0), "random_blocks": np.full((N, 3, 1), -1)},
            ValueError,
            r"rng, random_blocks: wanted at most one of the two, got both",
        ),
        ({"rng": jax.random.PRNGKey(0)}, ValueError, r"rng: wanted a typed key from jax.random.key, got uint32"),
        (
            {"block_size": 3, "random_blocks": np.ones((4, N, 3, 1), int)},
            ValueError,
            r"random_blocks: wanted a shape that br",
        ),
        ({"num_global_tokens": -1}, ValueError, r"num_global_tokens: wanted an int >= 0, got -1"),
        (
            {"block_size": 2, "num_random_blocks": 0, "implementation": "cudnn"},
            NotImplementedError,
            r"implementation: wanted None or one of",
        ),
        ({"num_random_blocks": 0, "dropout_rate": 0.1}, ValueError, r"^dropout_rng: wanted a jax.random.key"),
    ],
)
def test_refusals(given, error, message):
    with pytest.raises(error, match=message):
        bigbird_attention(X, X, X, **given)
