"""Longformer, Sparse Transformer and BigBird equal dense attention under their own masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention import (
    alibi_slopes,
    bigbird_attention,
    bigbird_pattern,
    bigbird_random_blocks,
    longformer_attention,
    sparse_transformer_attention,
)
from attention.biases import ALiBi, SoftCap
from attention.masks import Full

N = 6
RNG = np.random.default_rng(0)
BLOCKWISE = {"implementation": "blockwise"}


def grids(T):
    return np.arange(T)[:, None], np.arange(T)


def window(T, size, dilation=1):
    i, j = grids(T)
    per_head = [(abs(i - j) <= size * d) & ((i - j) % d == 0) for d in np.atleast_1d(dilation)]
    return np.stack(per_head)


def restrict(allowed, causal=False, key_mask=None, query_segment_ids=None, key_segment_ids=None):
    """The pattern `[..., N or 1, T, T]` and everything else that hides keys."""
    i, j = grids(allowed.shape[-1])
    if causal:
        allowed = allowed & (j <= i)
    if key_mask is not None:
        allowed = allowed & np.asarray(key_mask)[..., None, None, :]
    if query_segment_ids is not None:
        same = np.asarray(query_segment_ids)[..., None] == np.asarray(key_segment_ids)[..., None, :]
        allowed = allowed & (same & (np.asarray(query_segment_ids) >= 0)[..., None])[..., None, :, :]
    return allowed


def alibi(T):
    i, j = grids(T)
    return -np.asarray(alibi_slopes(N))[:, None, None] * abs(i - j)


def packed(T, lead=(2,)):
    """Two documents and padding behind them."""
    ids = np.zeros((*lead, T), np.int32)
    ids[..., T // 3 :] = 1
    ids[..., T - T // 5 :] = -1
    return {"query_segment_ids": ids, "key_segment_ids": ids}


def padding(T):
    return RNG.random((2, T)) < 0.7


VECTORS = ("key_mask", "query_segment_ids", "key_segment_ids")


def assert_dense(fn, pattern, T, given, K=3, lead=(2,)):
    """`fn(query, key, value, **given)` against the oracle under `pattern [..., N or 1, T, T]`, values and gradients."""
    *arrays, d_out, _ = oracle.inputs(T, None, N, K, lead=lead)
    vectors = {name: given[name] for name in VECTORS if name in given}
    allowed = restrict(pattern, given.get("causal", fn is sparse_transformer_attention), **vectors)
    allowed = np.broadcast_to(allowed, (*lead, N, T, T))
    real = np.broadcast_to(given.get("key_mask", np.ones(T, bool)), (*lead, T))[..., None, None]
    d_out = np.where(real, d_out, 0)  # rows of masked tokens are unspecified
    settings = dict(scale=given.get("scale"), softcap=2.0 if isinstance(given.get("bias"), SoftCap) else None)
    bias = alibi(T) if isinstance(given.get("bias"), ALiBi) else 0.0
    rest = {name: x for name, x in given.items() if name not in vectors}
    names = list(vectors)

    def attend(query, key, value, *vectors):
        return fn(query, key, value, **rest, **dict(zip(names, vectors, strict=True)))

    out, gradients = oracle.value_and_vjp(attend, arrays, d_out, *vectors.values())
    seen = np.moveaxis(allowed.any(-1), -2, -1)[..., None]
    assert not np.asarray(out)[np.broadcast_to(~seen & real, out.shape)].any()

    def wanted(query, key, value, d_out):
        out = oracle.attention(query, key, value, bias, allowed, **settings)[0]
        return np.where(real, out, 0), oracle.gradients(query, key, value, bias, d_out, 0.0, allowed, **settings)[:3]

    oracle.assert_exact((np.where(real, out, 0), gradients), wanted, *arrays, d_out)


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
def test_longformer_window(case):
    T, given = LONGFORMER[case]
    pattern = window(T, given["window"], given.get("dilation", 1))
    assert_dense(longformer_attention, pattern, T, given)


GLOBAL = {  # length, positions [B, G], settings
    "two_slots": (17, [[0, 9], [4, 16]], {"window": 2}),
    "repeated_unused_unordered": (17, [[9, -1, 0, 9], [-1, -1, 3, -1]], {"window": 2, "causal": True}),
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
def test_longformer_global_tokens(case, projections):
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


def test_longformer_traced_positions_do_not_recompile():
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


SPARSE = {
    "strided": (23, {"pattern": "strided", "stride": 5}),
    "strided_blockwise": (23, {"pattern": "strided", "stride": 5, **BLOCKWISE}),
    "strided_both_ways": (25, {"pattern": "strided", "stride": 5, "causal": False, "scale": 0.3}),
    "strided_by_one": (7, {"pattern": "strided", "stride": 1}),
    "strided_past_the_end": (7, {"pattern": "strided", "stride": 11, "causal": False}),
    "strided_one_token": (1, {"pattern": "strided", "stride": 4}),
    "strided_padded_packed_biased": (
        23, {"pattern": "strided", "stride": 4, "key_mask": padding(23), **packed(23), "bias": ALiBi(alibi_slopes(N))},
    ),
    "fixed": (23, {"pattern": "fixed", "stride": 5}),
    "fixed_blockwise": (23, {"pattern": "fixed", "stride": 5, "summary": 2, **BLOCKWISE}),
    "fixed_both_ways": (20, {"pattern": "fixed", "stride": 5, "summary": 2, "causal": False, "bias": SoftCap(2.0)}),
    "fixed_default_summary": (37, {"pattern": "fixed", "stride": 17}),
    "fixed_all_summary": (13, {"pattern": "fixed", "stride": 3, "summary": 3}),
    "fixed_one_token": (1, {"pattern": "fixed", "stride": 4, "causal": False}),
    "fixed_padded_packed_biased": (
        23,
        {"pattern": "fixed", "stride": 4, "key_mask": padding(23), **packed(23), "bias": ALiBi(alibi_slopes(N))},
    ),
    "strided_reference": (23, {"pattern": "strided", "stride": 5, "key_mask": padding(23), "implementation": "reference"}),
}  # fmt: skip


def sparse_pattern(T, pattern, stride, summary=None):
    i, j = grids(T)
    if pattern == "strided":
        return (abs(i - j) < stride) | ((i - j) % stride == 0)
    summary = max(1, stride // 8) if summary is None else summary
    return (i // stride == j // stride) | (j % stride >= stride - summary)


@pytest.mark.parametrize("case", SPARSE)
def test_sparse_transformer(case):
    T, given = SPARSE[case]
    pattern = sparse_pattern(T, given["pattern"], given["stride"], given.get("summary"))
    assert_dense(sparse_transformer_attention, pattern, T, given)


def bigbird_definition(T, block, blocks, num_global):
    """`[N, T, T]`: window of three blocks, global blocks at both ends, the listed blocks."""
    i, j = (x // block for x in grids(T))
    n = -(-T // block)
    ends = [b for b in range(n) if b < num_global or b >= n - num_global]
    allowed = np.broadcast_to((abs(i - j) <= 1) | np.isin(i, ends) | np.isin(j, ends), (N, T, T)).copy()
    if blocks is not None:
        for head in range(N):
            for row in range(blocks.shape[1]):
                allowed[head] |= (i == row + 1) & np.isin(j, blocks[head, row])
    return allowed


BIGBIRD = {
    "default_globals": (29, {"block_size": 3}, 2),
    "blockwise_causal": (29, {"block_size": 3, "causal": True, **BLOCKWISE}, 2),
    "no_globals": (31, {"block_size": 4, "num_global_blocks": 0}, 1),
    "two_globals": (31, {"block_size": 3, "num_global_blocks": 2, "scale": 0.3}, 1),
    "no_random": (23, {"block_size": 4, "num_random_blocks": 0}, 0),
    "one_block": (3, {"block_size": 4}, 1),
    "two_blocks": (7, {"block_size": 4}, 1),
    "one_token": (1, {"block_size": 4}, 3),
    "padded_packed_biased": (
        29, {"block_size": 3, "key_mask": padding(29), **packed(29), "bias": ALiBi(alibi_slopes(N))}, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BIGBIRD)
def test_bigbird(case):
    T, given, R = BIGBIRD[case]
    num_global, block = given.get("num_global_blocks", 1), given["block_size"]
    blocks = None
    if R:
        blocks = bigbird_random_blocks(jax.random.key(5), N, T, block, R, num_global, causal=given.get("causal", False))
        given = given | {"random_blocks": blocks}
    assert_dense(bigbird_attention, bigbird_definition(T, block, blocks, num_global), T, given)


def test_bigbird_draws_from_its_key():
    arrays = oracle.inputs(29)[:3]
    attend = functools.partial(bigbird_attention, block_size=3, num_random_blocks=2)
    blocks = jnp.asarray(bigbird_random_blocks(jax.random.key(7), N, 29, 3, 2))  # concrete, if not NumPy's
    listed, drawn, other = (
        jax.jit(functools.partial(attend, **given))(*arrays)
        for given in ({"random_blocks": blocks}, {"rng": jax.random.key(7)}, {"rng": jax.random.key(8)})
    )
    np.testing.assert_array_equal(drawn, listed)
    assert (np.asarray(other) != np.asarray(listed)).any()


@pytest.mark.parametrize("causal", [False, True])
def test_random_blocks_are_new_and_uniform(causal):
    heads, n, R, ends = 400, 11, 2, 1
    blocks = bigbird_random_blocks(jax.random.key(1), heads, 4 * n - 1, 4, R, ends, causal=causal)
    assert blocks.shape == (heads, n - 2, R) and blocks.dtype == np.int32
    for row in range(n - 2):
        b = row + 1
        free = [x for x in range(ends, b if causal else n - ends) if abs(x - b) > 1]
        drawn = blocks[:, row]
        count = min(R, len(free))
        assert set(np.unique(drawn[:, :count])) == set(free) and (drawn[:, count:] == -1).all()
        assert count < 2 or (drawn[:, 0] != drawn[:, 1]).all()
        if count:
            share = (drawn[:, :count, None] == free).any(1).mean(0)  # a binomial of `heads` draws
            p = count / len(free)
            assert np.abs(share - p).max() <= 5 * np.sqrt(p * (1 - p) / heads)
    np.testing.assert_array_equal(
        blocks, bigbird_random_blocks(jax.random.key(1), heads, 4 * n - 1, 4, R, ends, causal=causal)
    )


@functools.partial(jax.jit, static_argnums=0)
def one_hot(fn, key=None):
    """The weights `[N, T, T]` of `fn`, as attention over one-hot values with equal scores; dropped by `key`."""
    zero = jnp.zeros((31, N, 1))
    value = jnp.broadcast_to(jnp.eye(31)[:, None], (31, N, 31))
    rng = "dropout_rng" if fn.func is bigbird_attention else "rng"
    return jnp.moveaxis(fn(zero, zero, value, **{} if key is None else {rng: key, "dropout_rate": 0.4}), 1, 0)


DROPPED = {
    "longformer": functools.partial(longformer_attention, window=3, global_positions=np.array([2, 11])),
    "strided": functools.partial(sparse_transformer_attention, pattern="strided", stride=5),
    "fixed": functools.partial(sparse_transformer_attention, pattern="fixed", stride=5, summary=2),
    "bigbird": functools.partial(bigbird_attention, block_size=3, num_random_blocks=0),
}


@pytest.mark.parametrize("name", DROPPED)
def test_dropout(name):
    """Weights are zeroed or grown by 1 / 0.6, independently of each other, the same each time for one key."""
    drop = functools.partial(one_hot, DROPPED[name])
    whole, dropped = np.asarray(drop()), np.asarray(drop(jax.random.key(0)))
    live = whole > 0
    assert not dropped[~live].any()
    kept = dropped[live] > 0
    np.testing.assert_allclose(dropped[live][kept], whole[live][kept] / 0.6, rtol=16 * oracle.ULP)
    assert abs(kept.mean() - 0.6) < 4 * np.sqrt(0.24 / kept.size)
    np.testing.assert_array_equal(drop(jax.random.key(0)), dropped)
    other = np.asarray(drop(jax.random.key(1)))[live] > 0
    assert abs((other & kept).mean() - 0.36) < 5 * np.sqrt(0.36 * 0.64 / kept.size)


X = np.zeros((2, 13, N, 3), np.float32)
WRONG = np.zeros((2, 13, N, 4), np.float32)
TWICE = np.full((N, 3, 2), -1)
TWICE[0, 0] = 3, 3


@pytest.mark.parametrize(
    "fn, given, error, message",
    [
        (longformer_attention, {"window": -1}, ValueError, r"window: wanted an int >= 0 \(tokens on each side\), got -1"),
        (longformer_attention, {"window": 2.0}, ValueError, r"window: wanted an int >= 0"),
        (longformer_attention, {"window": 2, "dilation": 0}, ValueError, r"dilation: wanted an int >= 1 or one a head"),
        (longformer_attention, {"window": 2, "dilation": (1, 2)}, ValueError, r"dilation: wanted one for each of 6 heads"),
        (longformer_attention, {"window": 2, "global_key": X}, ValueError, r"global_key: wanted together with global_pos"),
        (longformer_attention, {"window": 2, "global_positions": np.zeros(2)}, ValueError, r"global_positions: wanted int"),
        (longformer_attention, {"window": 2, "global_positions": 3}, ValueError, r"global_positions: wanted ints \[..., G"),
        (
            longformer_attention,
            {"window": 2, "global_positions": np.zeros((3, 1), int)},
            ValueError,
            r"global_positions: wanted a shape that broadcasts to \(2, 1\), got \(3, 1\)",
        ),
        (
            longformer_attention,
            {"window": 2, "global_positions": np.array([0]), "global_query": WRONG},
            ValueError,
            r"global_query: wanted query's \(2, 13, 6, 3\)",
        ),
        (
            longformer_attention,
            {"window": 2, "global_positions": np.array([0]), "bias": np.zeros((13, 13), np.float32)},
            NotImplementedError,
            r"bias: global tokens takes Bias objects|bias: .*got an array",
        ),
        (longformer_attention, {"window": 2, "dropout_rate": 0.1}, ValueError, r"rng: wanted a jax.random.key"),
        (sparse_transformer_attention, {"stride": 0}, ValueError, r"stride: wanted an int >= 1, got 0"),
        (sparse_transformer_attention, {"stride": 4, "pattern": "random"}, ValueError, r"pattern: wanted 'strided' or 'fix"),
        (sparse_transformer_attention, {"stride": 4, "summary": 1}, ValueError, r"summary: only the fixed pattern has"),
        (
            sparse_transformer_attention,
            {"stride": 4, "pattern": "fixed", "summary": 5},
            ValueError,
            r"summary: wanted an int in \[1, stride = 4\], got 5",
        ),
        (
            sparse_transformer_attention,
            {"stride": 4, "bias": np.zeros((13, 13), np.float32)},
            NotImplementedError,
            r"bias: the sparse form takes Bias objects or functions of positions, got an array",
        ),
        (bigbird_attention, {}, ValueError, r"rng: wanted a jax.random.key to draw random blocks"),
        (bigbird_attention, {"block_size": 0, "num_random_blocks": 0}, ValueError, r"block_size: wanted an int >= 1, got 0"),
        (
            bigbird_attention,
            {"block_size": 0, "rng": jax.random.key(0)},
            ValueError,
            r"block_size: wanted an int >= 1, got 0",
        ),
        (
            bigbird_attention,
            {"num_global_blocks": -1, "rng": jax.random.key(0)},
            ValueError,
            r"num_global_blocks: wanted an int >= 0, got -1",
        ),
        (
            bigbird_attention,
            {"num_random_blocks": -1, "rng": jax.random.key(0)},
            ValueError,
            r"num_random_blocks: wanted an int >= 0, got -1",
        ),
        (
            bigbird_attention,
            {"block_size": 3, "random_blocks": np.zeros((N, 2, 1), int)},
            ValueError,
            r"random_blocks: wanted ints \[N, blocks - 2, R\] = \(6, 3, 'R'\), got int64 \(6, 2, 1\)",
        ),
        (
            bigbird_attention,
            {"block_size": 3, "random_blocks": np.full((N, 3, 1), 5)},
            ValueError,
            r"random_blocks: wanted blocks below 5, got 5",
        ),
        (bigbird_attention, {"block_size": 3, "random_blocks": TWICE}, NotImplementedError, r"random_blocks: a block listed"),
        (
            bigbird_attention,
            {"block_size": 3, "random_blocks": np.ones((N, 3, 1), int)},
            NotImplementedError,
            r"random_blocks: a block listed twice, or one that is window or global already",
        ),
        (bigbird_attention, {"num_random_blocks": 0, "dropout_rate": 0.1}, ValueError, r"rng: wanted a jax.random.key"),
    ],
)  # fmt: skip
def test_refusals(fn, given, error, message):
    with pytest.raises(error, match=message):
        fn(X, X, X, **given)


def test_a_traced_pattern_is_refused():
    def attend(**given):
        return bigbird_attention(X, X, X, block_size=3, **given)

    with pytest.raises(NotImplementedError, match="rng: the pattern shapes the compiled program"):
        jax.jit(lambda rng: attend(rng=rng))(jax.random.key(0))
    with pytest.raises(NotImplementedError, match="random_blocks: the pattern shapes the compiled program"):
        jax.jit(lambda blocks: attend(random_blocks=blocks))(np.full((N, 3, 1), -1))


def test_short_inputs_see_everything():
    """Where every block is a neighbour or an end, BigBird is full attention, and its mask says so to the planner."""
    np.testing.assert_array_equal(np.broadcast_to(bigbird_pattern(None, N, 9, 3).dense(9), (9, 9)), Full().dense(9))
