"""Masks against their definitions in NumPy, their algebra, and the schedule that is planned from them."""

import functools
import operator
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import masks, schedule
from attention.masks import (
    Blocks,
    Causal,
    Dense,
    Dilated,
    Fixed,
    Full,
    Global,
    Keys,
    Lengths,
    PerHead,
    Predicate,
    Prefix,
    RandomBlocks,
    Segments,
    Strided,
    Window,
)
from attention.tile import EMPTY, FULL, Ranges, Tile

T, S = 23, 19
RNG = np.random.default_rng(0)
ARRAY = RNG.random((T, S)) < 0.4
IDS = np.array([0] * 5 + [1] * 6 + [-1] * 3 + [2] * 9), np.array([0] * 4 + [1] * 7 + [-1] * 2 + [2] * 6)
BLOCKS = np.array([[[0, 4], [-1, 2], [3, 3], [1, -1]]])  # of size 5: rows from 20 on are in no block


def same_block(i, j, size=5):
    inside = np.minimum(i // size, BLOCKS.shape[1] - 1)
    return ((BLOCKS[0][inside] == (j // size)[..., None]).any(-1)) & (i // size < BLOCKS.shape[1])


def dilated(i, j, left, right, d):
    return (-left * d <= j - i) & (j - i <= right * d) & ((j - i) % d == 0)


# mask, its definition on broadcast grids of query index i and key index j
DEFINITIONS = {
    "full": (Full(), lambda i, j: j == j),
    "causal": (Causal(), lambda i, j: j <= i),
    "window": (Window(3, 2), lambda i, j: (j - i >= -3) & (j - i <= 2)),
    "window_open_left": (Window(None, 1), lambda i, j: j - i <= 1),
    "window_open_right": (Window(4, None), lambda i, j: j - i >= -4),
    "window_all": (Window(None, None), lambda i, j: j == j),
    "window_of_the_past": (Window(7, -2), lambda i, j: (j - i >= -7) & (j - i <= -2)),
    "window_of_nothing": (Window(-5, 3), lambda i, j: (j - i >= 5) & (j - i <= 3)),
    "dilated": (Dilated(2, 1, 3), lambda i, j: dilated(i, j, 2, 1, 3)),
    "dilated_by_one": (Dilated(2, 1), lambda i, j: dilated(i, j, 2, 1, 1)),
    "strided": (Strided(4), lambda i, j: (i - j) % 4 == 0),
    "strided_by_one": (Strided(1), lambda i, j: j == j),
    "fixed": (Fixed(5, 2), lambda i, j: (i // 5 == j // 5) | (j % 5 >= 3)),
    "fixed_without_summary": (Fixed(5, 0), lambda i, j: i // 5 == j // 5),
    "fixed_all_summary": (Fixed(5, 5), lambda i, j: j == j),
    "blocks": (Blocks(5, -1, 2), lambda i, j: (j // 5 - i // 5 >= -1) & (j // 5 - i // 5 <= 2)),
    "blocks_behind": (Blocks(4, -3, -2), lambda i, j: (j // 4 - i // 4 >= -3) & (j // 4 - i // 4 <= -2)),
    "global": (Global([2, 17, -1, 2]), lambda i, j: np.isin(i, [2, 17]) | np.isin(j, [2, 17])),
    "global_run": (Global(np.arange(4, 9)), lambda i, j: ((i >= 4) & (i < 9)) | ((j >= 4) & (j < 9))),
    "prefix": (Prefix(6), lambda i, j: j < 6),
    "prefix_of_nothing": (Prefix(0), lambda i, j: j < 0),
    "random_blocks": (RandomBlocks(BLOCKS, 5), same_block),
    "segments": (Segments(*IDS), lambda i, j: (IDS[0][i] == IDS[1][j]) & (IDS[0][i] >= 0)),
    "lengths": (Lengths(20, 13), lambda i, j: (i < 20) & (j < 13)),
    "query_lengths": (Lengths(11), lambda i, j: i < 11),
    "keys": (Keys(jnp.arange(S) % 3 > 0), lambda i, j: j % 3 > 0),
    "dense": (Dense(ARRAY), lambda i, j: ARRAY[i, j]),
    "dense_column": (Dense(ARRAY[:, :1]), lambda i, j: ARRAY[i, 0]),
    "dense_row": (Dense(ARRAY[:1]), lambda i, j: ARRAY[0][j]),
    "predicate": (Predicate(lambda q, k: (q * k) % 7 < 4), lambda i, j: (i * j) % 7 < 4),
}
# Masks whose EMPTY (FULL) blocks are all blocks without a True (a False), not merely some of them.
TIGHT_EMPTY = [
    *("full", "causal", "window", "window_open_left", "window_open_right", "window_all", "window_of_the_past"),
    *("strided", "strided_by_one", "fixed", "fixed_without_summary", "fixed_all_summary", "global", "global_run"),
    *("prefix", "prefix_of_nothing", "blocks", "blocks_behind", "random_blocks", "dilated_by_one"),
]
TIGHT_FULL = [
    *("full", "causal", "window", "window_open_left", "window_open_right", "window_all", "window_of_the_past"),
    *("strided", "strided_by_one", "fixed_without_summary", "fixed_all_summary", "global_run", "prefix"),
    *("prefix_of_nothing", "blocks", "blocks_behind"),
]


def definition(name, T=T, S=S):
    i, j = np.broadcast_arrays(np.arange(T)[:, None], np.arange(S))
    return np.asarray(DEFINITIONS[name][1](i, j))


def expression(rng, depth):
    """A random combination of masks and its dense array in NumPy."""
    if depth == 0:
        name = rng.choice(list(DEFINITIONS))
        return DEFINITIONS[name][0], definition(name)
    op = rng.choice(["and", "or", "not"])
    a, dense_a = expression(rng, depth - 1)
    if op == "not":
        return ~a, ~dense_a
    b, dense_b = expression(rng, rng.integers(depth))
    combine = operator.and_ if op == "and" else operator.or_
    return combine(a, b), combine(dense_a, dense_b)


def rectangles(rng, count, T=T, S=S):
    """Inclusive corners of random blocks, blocks of one element among them."""
    q_lo, k_lo = rng.integers(T, size=count), rng.integers(S, size=count)
    q_hi = np.minimum(q_lo + rng.integers(6, size=count), T - 1)
    k_hi = np.minimum(k_lo + rng.integers(6, size=count), S - 1)
    return Ranges(q_lo, q_hi, k_lo, k_hi)


def contents(dense, r):
    """Whether each block holds a True at all, and only True."""
    blocks = [dense[q0 : q1 + 1, k0 : k1 + 1] for q0, q1, k0, k1 in zip(*r[:4], strict=True)]
    return np.array([b.any() for b in blocks]), np.array([b.all() for b in blocks])


def assert_sound(mask, dense, r):
    state = mask.classify(r)
    some, throughout = contents(dense, r)
    assert not (some & (state == EMPTY)).any()
    assert not (~throughout & (state == FULL)).any()
    return state, some, throughout


@pytest.mark.parametrize("name", DEFINITIONS)
def test_dense_is_the_definition(name):
    mask, _ = DEFINITIONS[name]
    dense = mask.dense(T, S)
    assert dense.shape == (T, S) and dense.dtype == bool
    np.testing.assert_array_equal(dense, definition(name))


def test_every_public_mask_has_a_definition():
    public = {x for x in vars(masks).values() if isinstance(x, type) and issubclass(x, masks.Mask)}
    combined = {masks.Mask, masks._Combined, masks.And, masks.Or, masks.Not, PerHead}
    assert public - combined == {type(mask) for mask, _ in DEFINITIONS.values()}


def test_algebra_is_that_of_arrays():
    rng = np.random.default_rng(1)
    for _ in range(40):
        mask, dense = expression(rng, 3)
        np.testing.assert_array_equal(mask.dense(T, S), dense, err_msg=repr(mask))


def test_de_morgan():
    rng = np.random.default_rng(2)
    for _ in range(20):
        (a, _), (b, _) = expression(rng, 1), expression(rng, 2)
        r = rectangles(rng, 50)
        for left, right in ((~(a & b), ~a | ~b), (~(a | b), ~a & ~b), (~~a, a)):
            np.testing.assert_array_equal(left.dense(T, S), right.dense(T, S))
            np.testing.assert_array_equal(left.classify(r), right.classify(r))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_classify_is_sound_and_tight(name):
    state, some, throughout = assert_sound(
        DEFINITIONS[name][0], definition(name), rectangles(np.random.default_rng(3), 500)
    )
    if name in TIGHT_EMPTY:
        np.testing.assert_array_equal(state == EMPTY, ~some)
    if name in TIGHT_FULL:
        np.testing.assert_array_equal(state == FULL, throughout)


def test_classify_is_sound_for_expressions():
    rng = np.random.default_rng(4)
    decided = 0
    for _ in range(100):
        state, *_ = assert_sound(*expression(rng, 3), rectangles(rng, 100))
        decided += (state != 1).sum()
    assert decided > 1000  # else soundness would be a matter of never deciding


def test_classify_knows_nothing_of_unknown_positions():
    rng = np.random.default_rng(5)
    query_positions, key_positions = rng.permutation(T), rng.permutation(S)
    tile = Tile(0, T, 0, S, 0, 1, 0, jnp.asarray(query_positions), jnp.asarray(key_positions))
    for name, (mask, define) in DEFINITIONS.items():
        at = (query_positions, key_positions) if mask.by_position else (np.arange(T), np.arange(S))
        dense = np.broadcast_to(define(*np.broadcast_arrays(at[0][:, None], at[1])), (T, S))
        np.testing.assert_array_equal(np.broadcast_to(mask.allows(tile)[0], (T, S)), dense, err_msg=name)
        assert_sound(mask, dense, rectangles(rng, 50)._replace(by_index=False))


def test_negative_positions():
    """Left padding often has position -1, which is no slot and no block."""
    tile = Tile(0, 3, 0, 4, 0, 1, 0, jnp.array([-1, 0, 1]), jnp.array([-2, -1, 0, 1]))
    np.testing.assert_array_equal(
        RandomBlocks(np.array([[[0, -1]]]), 2).allows(tile)[0], [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    )
    batch = tile._replace(query_positions=jnp.array([[-1, 0, 1], [2, 1, 0]]))  # and may differ by batch entry
    np.testing.assert_array_equal(RandomBlocks(np.array([[[1]]]), 2).allows(batch), np.zeros((2, 1, 3, 4)))
    np.testing.assert_array_equal(Global([1, -1]).allows(tile)[0], [[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]])


SIZES = [(23, 19, 5, 7), (1, 1, 1, 1), (1, 19, 1, 4), (23, 1, 3, 1), (16, 16, 4, 4), (13, 17, 13, 3), (22, 7, 4, 7)]


def blocks_of(length, size):
    """First and last index of each block; the last block is moved back to end at `length`."""
    starts = [min(n * size, length - size) for n in range(-(-length // size))]
    return [(a, a + size - 1) for a in starts]


@pytest.mark.parametrize("sizes", SIZES)
def test_plan_covers_the_live_blocks(sizes):
    T, S, block_q, block_k = sizes
    queries, keys = blocks_of(T, block_q), blocks_of(S, block_k)
    every = [(n, m) for n in range(len(queries)) for m in range(len(keys))]
    r = Ranges(*np.array([(*queries[n], *keys[m]) for n, m in every]).T)
    for name, (mask, _) in DEFINITIONS.items():
        dense = np.asarray(definition(name))[:T, :S]
        plan = schedule.plan(mask, T, S, block_q, block_k)
        pairs = list(zip(plan.query_block.tolist(), plan.key_block.tolist(), strict=True))
        some, throughout = (dict(zip(every, x, strict=True)) for x in contents(dense, r))
        assert pairs == sorted(set(pairs))
        assert {pair for pair in every if some[pair]} <= set(pairs), name
        assert all(throughout[pair] for pair, full in zip(pairs, plan.full, strict=True) if full), name
        if name in TIGHT_EMPTY:
            assert all(some[pair] for pair in pairs), name
        # A block that was moved back shares rows or columns with its neighbour and must be masked.
        for pair, full in zip(pairs, plan.full, strict=True):
            moved = any(
                n * size > length - size for n, size, length in zip(pair, (block_q, block_k), (T, S), strict=True)
            )
            assert not (full and moved)
            if name in TIGHT_FULL:
                assert full == (throughout[pair] and not moved), name


def test_lists_hold_the_plan_by_either_axis():
    mask = PerHead([Causal(), Window(3, 2) | Prefix(6), ~Full(), Full()])
    plans = schedule.plans(mask, 23, 19, 5, 4)
    for by, blocks in (("query", 5), ("key", 5)):
        lists = schedule.lists(schedule.stack(plans), blocks, by=by)
        for head, plan in enumerate(plans):
            found = []
            for i in range(blocks):
                start, split, end = lists.starts[head, i], lists.splits[head, i], lists.starts[head, i + 1]
                found += [(i, int(j), n < split) for n, j in enumerate(lists.other[start:end], start)]
            pairs = zip(plan.query_block.tolist(), plan.key_block.tolist(), plan.full.tolist(), strict=True)
            assert sorted(found) == sorted((q, k, f) if by == "query" else (k, q, f) for q, k, f in pairs)


def test_a_million_tokens_plan_in_proportion_to_the_live_blocks():
    window, block = Causal() & Window(256, 0), 128
    counts = {}
    for length in (1 << 18, 1 << 19, 1 << 20):
        start = time.process_time()
        counts[length] = len(schedule.plan(window, length, length, block, block).full)
        seconds = time.process_time() - start
        blocks = length // block
        assert counts[length] == 3 * blocks - (1 + 2)  # the own block and two before it, fewer at the start
    assert seconds < 1


def test_block_sizes_fit():
    for length in (1, 2, 15, 16, 17, 100, 127, 128, 129, 257, 1000, 4095):
        for size in (64, 128, 256):
            fitted = schedule.fit(size, length)
            assert 1 <= fitted <= min(max(size, 16), length)
            assert schedule.num_blocks(length, fitted) <= schedule.num_blocks(length, size)
    narrow, _ = schedule.choose_block_sizes(Causal() & Window(16, 0), 8192, 8192)
    wide, _ = schedule.choose_block_sizes(Full(), 8192, 8192)
    assert narrow <= wide
    assert schedule.choose_block_sizes(~Full(), 37, 41) == (37, 41)


def test_heads():
    rng = np.random.default_rng(6)
    blocks = rng.integers(-1, 4, (3, 5, 2))
    mask = (RandomBlocks(blocks, 5) | Causal()) & PerHead([Full(), Window(4, 1), Strided(3) | Prefix(2)])
    assert mask.num_heads == 3 and (Causal() & Full()).num_heads is None
    dense = np.asarray(mask.dense(T, S))
    assert dense.shape == (3, T, S)
    i, j = np.arange(T)[:, None], np.arange(S)
    for head, own in enumerate((j == j, (j - i >= -4) & (j - i <= 1), ((i - j) % 3 == 0) | (j < 2))):
        drawn = (blocks[head][i // 5] == (j // 5)[:, None]).any(-1)
        np.testing.assert_array_equal(dense[head], (drawn | (j <= i)) & own)
        assert_sound(mask.for_head(head), dense[head], rectangles(rng, 200))
    # One head at a time, as the blockwise engine asks, with the head traced.
    one = jax.jit(lambda head: mask.allows(Tile(0, T, 0, S, head, 1)))
    for head in range(3):
        np.testing.assert_array_equal(one(head)[0], dense[head])

    heads = RNG.random((3, T, S)) < 0.5
    np.testing.assert_array_equal((Dense(heads) & Causal()).dense(T, S), heads & (j <= i))


def test_batch_arrays():
    ids = np.array([[0, 0, 1], [1, 1, -1]])
    slots = np.array([[0, -1], [2, 1]])
    i, j = np.arange(3)[:, None], np.arange(3)
    cases = {
        Segments(ids, ids): [(x[i] == x[j]) & (x[i] >= 0) for x in ids],
        Lengths(None, np.array([1, 2])): [(i == i) & (j < n) for n in (1, 2)],
        Prefix(jnp.array([1, 2])): [(i == i) & (j < n) for n in (1, 2)],
        Global(jnp.asarray(slots)): [np.isin(i, x[x >= 0]) | np.isin(j, x[x >= 0]) for x in slots],
        Global(slots): [np.isin(i, x[x >= 0]) | np.isin(j, x[x >= 0]) for x in slots],
        RandomBlocks(slots[:, None, :, None], 2): [j // 2 == x[i // 2] for x in slots],
        Keys(ids >= 0): [(i == i) & (x[j] >= 0) for x in ids],
    }
    for mask, wanted in cases.items():
        np.testing.assert_array_equal(mask.dense(3), np.array(wanted)[:, None], err_msg=repr(mask))
        for one in wanted:  # the plan is one for all entries, so it may not drop what any of them wants
            assert_sound(mask, one, rectangles(np.random.default_rng(7), 50, 3, 3))


def test_traced_arrays_do_not_recompile():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def dense(build, array):
        traces.append(build)
        return build(array).dense(T, S)

    for build, arrays in {
        Global: ([2, 17, -1], [5, -1, 0]),
        Prefix: (3, 11),
        lambda n: Lengths(n + 4, n): (3, 11),
        lambda n: Causal() & ~Prefix(n): (3, 11),
        lambda ids: Segments(ids[:T], ids[:S]): (IDS[0], IDS[0] % 2),
        lambda blocks: RandomBlocks(blocks, 5): (BLOCKS, BLOCKS[:, ::-1]),
    }.items():
        traces.clear()
        for array in arrays:
            np.testing.assert_array_equal(dense(build, jnp.asarray(array)), build(np.asarray(array)).dense(T, S))
        assert len(traces) == 1


def test_pytrees():
    rng = np.random.default_rng(8)
    heads = PerHead([Causal(), Global(jnp.array([3])), RandomBlocks(BLOCKS, 5)])
    for mask in [m for m, _ in DEFINITIONS.values()] + [expression(rng, 3)[0] for _ in range(10)] + [heads]:
        leaves, structure = jax.tree.flatten(mask)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(mask) and jax.tree.structure(again) == structure
        np.testing.assert_array_equal(again.dense(T, S), mask.dense(T, S))
        np.testing.assert_array_equal(again.classify(r := rectangles(rng, 20)), mask.classify(r))
        np.testing.assert_array_equal(jax.jit(lambda m: m.dense(T, S))(mask), mask.dense(T, S))
        assert len(jax.tree_util.tree_flatten_with_path(mask)[0]) == len(leaves)


def test_what_is_static_is_part_of_the_structure():
    structure = jax.tree.structure
    assert structure(Global([1, 2])) == structure(Global(np.array([1, 2])))
    assert hash(structure(Global([1, 2]))) == hash(structure(Global([1, 2])))
    assert structure(Global([1, 2])) != structure(Global([1, 3]))
    assert structure(Window(1, 2)) != structure(Window(2, 1))
    assert structure(Global(jnp.array([1, 2]))) == structure(Global(jnp.array([7, 8])))
    assert jax.tree.leaves(Window(1, 2) & Causal() & Global([1])) == []
    assert repr(Global([1, 2]))  # static arrays print
    batched = jax.vmap(lambda mask: mask.dense(T, S))(Prefix(jnp.array([2, 5])) & Causal())
    np.testing.assert_array_equal(batched[1], (Prefix(5) & Causal()).dense(T, S))


def test_masks_draw_themselves():
    pytest.importorskip("matplotlib").use("Agg")
    axes = PerHead([Causal(), Full()]).draw(5, 3)
    np.testing.assert_array_equal(axes.images[0].get_array(), np.tri(5, 3))


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: Window(1.5, 0), ValueError, r"Window.left: wanted an int, got 1.5"),
        (lambda: Window(0, True), ValueError, r"Window.right: wanted an int, got True"),
        (lambda: Dilated(1, 1, 0), ValueError, r"Dilated.dilation: wanted an int >= 1, got 0"),
        (lambda: Dilated(None, 1, 2), ValueError, r"Dilated.left: wanted an int, got None"),
        (lambda: Dilated(1, None, 2), ValueError, r"Dilated.right: wanted an int, got None"),
        (lambda: Strided(0), ValueError, r"Strided.stride: wanted an int >= 1, got 0"),
        (lambda: Fixed(0, 0), ValueError, r"Fixed.stride: wanted an int >= 1, got 0"),
        (lambda: Fixed(4, -1), ValueError, r"Fixed.summary: wanted an int >= 0, got -1"),
        (lambda: Fixed(4, 5), ValueError, r"Fixed.summary: wanted at most stride = 4, got 5"),
        (lambda: Global([0.5]), ValueError, r"Global.positions: wanted integers, got dtype float64"),
        (lambda: Prefix(2.0), ValueError, r"Prefix.n: wanted integers, got dtype float32"),
        (lambda: Blocks(0, -1, 1), ValueError, r"Blocks.size: wanted an int >= 1, got 0"),
        (lambda: Blocks(4, None, 1), ValueError, r"Blocks.first: wanted an int, got None"),
        (lambda: Blocks(4, 0, 0.5), ValueError, r"Blocks.last: wanted an int, got 0.5"),
        (lambda: RandomBlocks(np.zeros((2, 3), int), 4), ValueError, r"RandomBlocks.blocks: wanted \[N, query blocks, R"),
        (lambda: RandomBlocks(np.zeros((1, 2, 3)), 4), ValueError, r"RandomBlocks.blocks: wanted integers"),
        (lambda: RandomBlocks(BLOCKS, 0), ValueError, r"RandomBlocks.block_size: wanted an int >= 1, got 0"),
        (lambda: Segments(np.zeros(3), np.zeros(3, int)), ValueError, r"Segments.query_ids: wanted integers"),
        (lambda: Lengths(np.zeros(2)), ValueError, r"Lengths.query_lengths: wanted integers"),
        (lambda: Keys(np.zeros(3)), ValueError, r"Keys.key_mask: wanted bools"),
        (lambda: Dense(np.zeros((2, 2))), ValueError, r"mask: wanted a bool array \(True = may attend\), got dtype float"),
        (lambda: Predicate(lambda q, k: q - k).dense(3), ValueError, r"Predicate.fn: wanted a bool result, got dtype int"),
        (lambda: Causal() & np.ones((3, 3), bool), TypeError, r"wanted a Mask, got ndarray \(wrap a bool array: Dense"),
        (lambda: Causal() | None, TypeError, r"wanted a Mask, got NoneType"),
        (lambda: PerHead([]), ValueError, r"PerHead.masks: wanted one mask a head, got none"),
        (lambda: PerHead([Causal(), "causal"]), TypeError, r"wanted a Mask, got str"),
        (
            lambda: (PerHead([Full()] * 2) & PerHead([Full()] * 3)).num_heads,
            ValueError,
            r"mask: combined parts differ in their number of heads: \[2, 3\]",
        ),
    ],
)  # fmt: skip
def test_refusals(build, error, message):
    with pytest.raises(error, match=message):
        build()
