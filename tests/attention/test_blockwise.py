"""The blockwise engine equals the definition: masks, biases, lengths, block sizes, dropout, dtypes, transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention import alibi_slopes, dot_product_attention
from attention.biases import ALiBi, SoftCap
from attention.masks import (
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

RNG = np.random.default_rng(0)
N = 6


def ids(T, S, lead=(2,)):
    return np.sort(RNG.integers(-1, 3, (*lead, T))), np.sort(RNG.integers(-1, 3, (*lead, S)))


def arrays(T, S):
    return Dense(RNG.random((2, N, T, S)) < 0.6)


# mask builder, T, S, block sizes, key heads, batch dimensions, shape of a bias array (1 or the full axis) or None
CASES = {
    "full": (lambda T, S: Full(), 13, 17, (5, 7), 3, (2,), None),
    "full_one_block": (lambda T, S: Full(), 7, 5, (64, 64), 1, (), (N, 7, 5)),
    "full_even_blocks": (lambda T, S: Full(), 12, 8, (4, 4), 6, (2, 3), (2, 1, 1, 1, 8)),
    "causal": (lambda T, S: Causal(), 19, 19, (4, 8), 2, (2,), (1, N, 1, 19)),
    "causal_more_keys": (lambda T, S: Causal(), 11, 23, (3, 5), 3, (), (1, 11, 1)),
    "causal_more_queries": (lambda T, S: Causal(), 23, 11, (5, 3), 3, (2,), (2, 1, 23, 11)),
    "one_query": (lambda T, S: Window(3, None), 1, 13, (4, 4), 3, (2,), (1, 1, 13)),
    "one_key": (lambda T, S: Causal(), 13, 1, (4, 4), 3, (2,), None),
    "window": (lambda T, S: Window(3, 2), 23, 19, (4, 4), 3, (2,), (N, 23, 19)),
    "nothing": (lambda T, S: ~Full(), 9, 7, (4, 4), 3, (2,), (9, 7)),
    "strided_or_window": (lambda T, S: (Window(3, 0) | Strided(5)) & Causal(), 22, 22, (4, 6), 3, (2,), None),
    "fixed_and_prefix": (lambda T, S: Fixed(5, 1) & ~Prefix(2), 22, 21, (5, 5), 3, (2,), None),
    "global_static_batch": (lambda T, S: Global([[1, 7], [3, -1]]), 13, 13, (4, 4), 3, (2,), None),
    "global_traced_batch": (lambda T, S: Global(jnp.array([[1, 7], [3, -1]])) & Causal(), 13, 13, (4, 4), 6, (2,), None),
    "prefix_batch": (lambda T, S: Prefix(jnp.array([2, 9])) | Causal(), 13, 11, (4, 4), 3, (2,), None),
    "random_blocks": (
        lambda T, S: RandomBlocks(RNG.integers(-1, 4, (N, 5, 2)), 5) | Causal() & Window(2, 0),
        *(22, 21, (5, 5), 3, (2,), (2, N, 22, 21)),
    ),
    "random_blocks_batch": (
        lambda T, S: RandomBlocks(RNG.integers(-1, 4, (2, 1, 5, 2)), 5) | Window(0, 0), 22, 21, (6, 4), 3, (2,), None,
    ),
    "per_head": (
        lambda T, S: PerHead([Causal(), Full(), Window(2, 1), Dilated(2, 2, 3), ~Full(), Prefix(jnp.array([3, 5]))]),
        *(13, 17, (4, 5), 3, (2,), (N, 1, 17)),
    ),
    "segments_and_lengths": (
        lambda T, S: Segments(*ids(T, S)) & Lengths(jnp.array([9, 13]), jnp.array([17, 8])),
        *(13, 17, (4, 5), 3, (2,), None),
    ),
    "keys_or": (lambda T, S: Keys(RNG.random((3, S)) < 0.5) | Window(0, 0), 13, 13, (4, 5), 3, (2, 3), None),
    "dense_per_pair": (lambda T, S: arrays(T, S), 13, 17, (4, 5), 3, (2,), None),
    "predicate": (lambda T, S: Predicate(lambda q, k: (q * k) % 3 < 2) & Causal(), 13, 17, (4, 5), 3, (2,), None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    """Output and log-sum-exp, and the gradients to query, key, value and the bias array from both cotangents."""
    build, T, S, block_sizes, K, lead, bias_shape = CASES[case]
    mask = build(T, S)
    *arrays, d_out, d_lse = oracle.inputs(T, S, N, K, lead=lead)
    if bias_shape:
        arrays.append(RNG.standard_normal(bias_shape, np.float32))
    allowed = np.broadcast_to(mask.dense(T, S), (*lead, N, T, S))
    seen = np.moveaxis(allowed.any(-1), -2, -1)
    d_lse = np.where(seen, d_lse, 0)
    d_out[..., -1, :, :] = 0  # a row of which only the log-sum-exp is used, and in one head nothing
    d_lse[..., -1, 0] = 0

    def attend(query, key, value, bias=None):
        more = dict(implementation="blockwise", block_sizes=block_sizes, return_residual=True)
        return dot_product_attention(query, key, value, bias, mask, **more)

    results = oracle.value_and_vjp(attend, arrays, (d_out, d_lse))
    assert not np.asarray(results[0][0])[~seen].any() and not np.asarray(results[1][0])[~seen].any()

    def wanted(query, key, value, *rest):
        *bias, d_out, d_lse = rest
        *gradients, d_bias = oracle.gradients(query, key, value, *bias or [0.0], d_out, d_lse, allowed)
        gradients += [oracle.sum_to(d_bias, b.shape) for b in bias]
        return oracle.attention(query, key, value, *bias, allowed=allowed), tuple(gradients)

    oracle.assert_exact(results, wanted, *arrays, d_out, d_lse)


def test_everything_at_once_equals_the_reference():
    *arrays, d_out, d_lse = oracle.inputs(13, 17)
    query_ids, key_ids = ids(13, 17)
    given = dict(
        mask=RNG.random((2, 1, 13, 17)) < 0.9,
        is_causal=True,
        local_window_size=(9, 1),
        key_value_seq_lengths=jnp.array([16, 12]),
        query_seq_lengths=jnp.array([12, 13]),
        key_mask=RNG.random((2, 17)) < 0.9,
        query_segment_ids=query_ids,
        key_segment_ids=key_ids,
        query_positions=RNG.integers(4, 17, (2, 13)),
        key_positions=RNG.permutation(17),
        softcap=2.0,
        scale=0.7,
        dropout_rate=0.3,
        rng=jax.random.key(1),
    )
    bias = RNG.standard_normal((N, 13, 17), np.float32)

    def attend(implementation, block_sizes, query, key, value, bias, slopes):
        more = dict(implementation=implementation, block_sizes=block_sizes)
        return dot_product_attention(query, key, value, [bias, ALiBi(slopes), SoftCap(1.5)], **given, **more)

    both = [
        oracle.value_and_vjp(functools.partial(attend, *which), (*arrays, bias, alibi_slopes(N)), d_out)
        for which in (("reference", None), ("blockwise", (4, 5)))
    ]
    for got, want in zip(jax.tree.leaves(both[1]), jax.tree.leaves(both[0]), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP * np.abs(want).max())
    assert (np.asarray(both[0][0]) != 0).any()


@functools.partial(jax.jit, static_argnames=("key_length", "implementation", "block_sizes"))
def kept_weights(rng, key_length=17, **given):
    """Weights `[N, 13, S]` of a causal call with dropout 0.4, as attention over one-hot values with equal scores."""
    query, key = jnp.zeros((13, 2, 1)), jnp.zeros((key_length, 2, 1))
    value = jnp.broadcast_to(jnp.eye(key_length)[:, None], (key_length, 2, key_length))
    out = dot_product_attention(query, key, value, is_causal=True, dropout_rate=0.4, rng=rng, **given)
    return jnp.moveaxis(out, 1, 0)


def test_dropout_drops_the_same_pairs():
    rng = jax.random.key(3)
    reference = np.asarray(kept_weights(rng, implementation="reference"))
    kept, causal = reference > 0, np.tri(13, 17, dtype=bool)
    assert not kept[:, ~causal].any() and kept[0].any() and (kept[0] != kept[1]).any()
    grown = np.where(kept, 1 / 0.6 / np.arange(1, 14)[:, None], 0)
    np.testing.assert_allclose(reference, grown, rtol=4 * oracle.ULP)
    for block_sizes in ((4, 5), (13, 3)):
        blockwise = np.asarray(kept_weights(rng, implementation="blockwise", block_sizes=block_sizes))
        np.testing.assert_array_equal(blockwise > 0, kept)
        np.testing.assert_allclose(blockwise, reference, rtol=4 * oracle.ULP)
    # Another key drops other pairs, and padding behind does not change the draw.
    other = np.asarray(kept_weights(jax.random.key(4), implementation="reference")) > 0
    assert (other[:, causal] != kept[:, causal]).mean() > 0.3
    longer = np.asarray(kept_weights(rng, key_length=23, implementation="reference"))
    np.testing.assert_array_equal(longer[..., :17] > 0, kept)


def test_dropout_rate_and_mean():
    keys = jax.random.split(jax.random.key(0), 64)
    reference = functools.partial(dot_product_attention, dropout_rate=0.3, implementation="reference")
    draw = jax.jit(jax.vmap(lambda rng: reference(*ones, rng=rng)))
    T, S = 31, 37
    query, key = jnp.zeros((2, T, N, 1)), jnp.zeros((2, S, N, 1))
    ones = query, key, jnp.ones((2, S, N, 1))
    out = np.asarray(draw(keys))  # each is the mean of S draws of {0, 1 / 0.7}
    noise = np.sqrt(0.3 / 0.7)
    assert abs(out.mean() - 1) < 4 * noise / np.sqrt(out.size * S)
    # No row, head, batch entry or key is special.
    for axes in ((1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 3, 4), (0, 1, 2, 4)):
        deviation = noise / np.sqrt(S * np.prod([out.shape[a] for a in axes]))
        assert np.abs(out.mean(axes) - 1).max() < 5 * deviation
    assert abs(out.std() - noise / np.sqrt(S)) < 0.02 * noise / np.sqrt(S)  # draws of one row are independent


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_only_the_results(dtype):
    *arrays, d_out, d_lse = (np.asarray(x, dtype) for x in oracle.inputs(13, 17))
    d_lse = d_lse.astype(np.float32)

    def attend(query, key, value):
        more = dict(implementation="blockwise", block_sizes=(4, 5), return_residual=True)
        return dot_product_attention(query, key, value, is_causal=True, **more)

    (out, lse), gradients = oracle.value_and_vjp(attend, arrays, (d_out, d_lse))
    assert [x.dtype for x in (out, lse, *gradients)] == [dtype, np.float32, *[dtype] * 3]
    causal = np.tri(13, 17, dtype=bool)

    def wanted(query, key, value, d_out, d_lse):
        out, lse = oracle.attention(query, key, value, allowed=causal)
        return out, oracle.gradients(query, key, value, 0.0, d_out, d_lse, causal)[:3]

    oracle.assert_exact((out, gradients), wanted, *arrays, d_out, d_lse, rounded_to=dtype)


def test_float64_stays_float64():
    *arrays, d_out, d_lse = oracle.as_float64(oracle.inputs(13, 17))
    bias = RNG.standard_normal((N, 13, 17))
    with jax.enable_x64(True):

        def attend(query, key, value, bias):
            more = dict(implementation="blockwise", block_sizes=(4, 5), return_residual=True)
            return dot_product_attention(
                query, key, value, [bias, lambda s, q, k, h: s + q - k], is_causal=True, **more
            )

        results = oracle.value_and_vjp(attend, (*arrays, bias), (d_out, d_lse))
    assert {x.dtype for x in jax.tree.leaves(results)} == {np.dtype(np.float64)}
    causal, slope = np.tri(13, 17, dtype=bool), np.arange(13)[:, None] - np.arange(17)
    *gradients, d_bias = oracle.gradients(*arrays, bias + slope, d_out, d_lse, causal)
    wanted = oracle.attention(*arrays, bias + slope, causal), (*gradients, oracle.sum_to(d_bias, bias.shape))
    for got, want in zip(jax.tree.leaves(results), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * 2.0**-52 * np.abs(want).max())


def test_transforms():
    """vmap over inputs, masks and captured arrays, under remat, inside a scan, all under one jit and grad."""
    *arrays, _, _ = oracle.inputs(11, 11, lead=(3, 2))  # scan over 3, vmap over 2
    lengths, document = RNG.integers(3, 11, (3, 2)), np.sort(RNG.integers(0, 3, (3, 2, 11)))

    def loss(query, key, value, length, document):
        mask = Prefix(length) & Predicate(lambda q, k: document[q] == document[k])
        more = dict(implementation="blockwise", block_sizes=(4, 5))
        return (dot_product_attention(query, key, value, mask=mask, **more) ** 2).sum()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def through(query, key, value, lengths, document):
        def step(total, xs):
            return total + jax.vmap(jax.checkpoint(loss))(*xs).sum(), None

        return jax.lax.scan(step, 0.0, (query, key, value, lengths, document))[0]

    j = np.arange(11)
    allowed = (j < lengths[..., None, None]) & (document[..., :, None] == document[..., None, :])

    def wanted(query, key, value):
        return oracle.gradients(
            *(query, key, value, 0.0), 2 * oracle.attention(query, key, value, allowed=allowed[:, :, None])[0],
            allowed=allowed[:, :, None],
        )[:3]  # fmt: skip

    oracle.assert_exact(through(*arrays, lengths, document), wanted, *arrays)


def test_no_recompilation_per_value():
    arrays = oracle.inputs(13, 13)[:3]
    traces = []

    @jax.jit
    def attend(query, key, value, mask, length, positions, rng):
        traces.append(1)
        more = dict(key_value_seq_lengths=length, query_positions=positions, dropout_rate=0.1, rng=rng)
        return dot_product_attention(
            query, key, value, mask=mask, implementation="blockwise", block_sizes=(4, 5), **more
        )

    outs = []
    for n in (3, 5):
        mask = Global(jnp.array([n, n + 1])) | Segments(*(np.arange(13) // n,) * 2) & Causal()
        outs.append(attend(*arrays, mask, jnp.array([n, 13]), jnp.arange(13) + n, jax.random.key(n)))
    assert len(traces) == 1 and (np.asarray(outs[0]) != np.asarray(outs[1])).any()


def test_blocks_that_a_mask_empties_are_not_visited():
    """Keys behind the prefix hold NaN: a block that was visited would spread it, with a weight of 0."""
    query, key, value, _, _ = oracle.inputs(16, 16)
    key[:, 8:], value[:, 8:] = np.nan, np.nan
    more = dict(implementation="blockwise", block_sizes=(4, 4))
    out = jax.jit(functools.partial(dot_product_attention, mask=Prefix(8), **more))(query, key, value)
    assert np.isfinite(out).all()
