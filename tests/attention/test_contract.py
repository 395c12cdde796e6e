"""The contract of every attention function: one suite over all of them. A new variant is one more row."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention import (
    bigbird_attention,
    dot_product_attention,
    linear_attention,
    longformer_attention,
    sparse_transformer_attention,
)

T, N, K = 13, 6, 3


class Row(NamedTuple):
    """A function of (query, key, value, *, key_mask, query_segment_ids, key_segment_ids), and what it promises."""

    fn: functools.partial
    causal: bool = False
    self_attention: bool = True  # a masked token is a query too, and may then hold NaN in it
    ends_matter: bool = False  # the pattern depends on the length, so padding changes it


REFERENCE = functools.partial(dot_product_attention, implementation="reference")
BLOCKWISE = functools.partial(dot_product_attention, implementation="blockwise", block_sizes=(4, 5))
LONGFORMER = functools.partial(longformer_attention, window=2, global_positions=np.array([5, 0]))
SPARSE = functools.partial(sparse_transformer_attention, stride=4)
BIGBIRD = functools.partial(bigbird_attention, block_size=2, num_random_blocks=1, rng=jax.random.key(2))
LINEAR = functools.partial(linear_attention, chunk_size=4)

FUNCTIONS = {
    "reference": Row(REFERENCE, self_attention=False),
    "reference_causal": Row(functools.partial(REFERENCE, is_causal=True), causal=True, self_attention=False),
    "blockwise": Row(BLOCKWISE, self_attention=False),
    "blockwise_causal": Row(functools.partial(BLOCKWISE, is_causal=True), causal=True, self_attention=False),
    "longformer": Row(LONGFORMER),
    "longformer_causal": Row(functools.partial(LONGFORMER, causal=True), causal=True),
    "sparse_transformer_strided": Row(functools.partial(SPARSE, pattern="strided"), causal=True),
    "sparse_transformer_fixed": Row(functools.partial(SPARSE, pattern="fixed", causal=False)),
    "bigbird": Row(BIGBIRD, ends_matter=True),
    "bigbird_causal": Row(functools.partial(BIGBIRD, causal=True, num_random_blocks=0, num_global_blocks=0), causal=True),
    "linear": Row(LINEAR, self_attention=False),
    "linear_causal": Row(functools.partial(LINEAR, causal=True), causal=True),
}  # fmt: skip

*ARRAYS, D_OUT, _ = oracle.inputs(T, None, N, K)
REAL = np.ones((2, T), bool)
ONE_DOCUMENT = np.zeros((2, T), np.int32)

every = pytest.mark.parametrize("name", FUNCTIONS)


@functools.cache
def program(name):
    """The compiled output and gradients. One program serves most tests: masks and ids are data."""

    @jax.jit
    def run(arrays, d_out, key_mask, ids):
        def attend(*arrays):
            masks = dict(key_mask=key_mask, query_segment_ids=ids, key_segment_ids=ids)
            return FUNCTIONS[name].fn(*arrays, **masks)

        out, pullback = jax.vjp(attend, *arrays)
        return out, *pullback(d_out)

    return run


def run(name, arrays=ARRAYS, d_out=D_OUT, key_mask=REAL, ids=ONE_DOCUMENT):
    return [np.asarray(x) for x in program(name)(arrays, d_out, key_mask, ids)]


def at(tokens, x, fill):
    """`x [2, T, ...]` with `fill` where `tokens [2, T]`, or added to it if it is an array."""
    return np.where(tokens[..., None, None], x + fill if np.ndim(fill) else np.float32(fill), x)


def noise(seed=9):
    return np.random.default_rng(seed).standard_normal((2, T, 1, 1)).astype(np.float32) * 3


def assert_rounding(got, want, ulps=64):
    """Sums in another order: a few units of the largest number."""
    np.testing.assert_allclose(got, want, rtol=0, atol=ulps * oracle.ULP * np.abs(want).max())


@every
def test_values_are_of_the_promised_shape_and_finite(name):
    out, *gradients = run(name)
    assert out.shape == D_OUT.shape and out.dtype == np.float32
    for x, array in zip(gradients, ARRAYS, strict=True):
        assert x.shape == array.shape and np.isfinite(x).all()
        assert x[:, 1:].any((-1, -2)).all()  # the first query, if it sees one key only, cannot change the output


@every
def test_masked_keys_have_no_influence(name):
    """Not on values, not on gradients, bit for bit, whatever they hold."""
    key_mask = np.random.default_rng(1).random((2, T)) < 0.6
    key_mask[:, 0] = True
    query, key, value = ARRAYS
    d_out = at(~key_mask, D_OUT, 0)  # rows of masked tokens are unspecified
    expected = run(name, d_out=d_out, key_mask=key_mask)
    assert not expected[2][~key_mask].any() and not expected[3][~key_mask].any()
    for fill in (noise(), np.nan, np.inf):
        changed = [query, at(~key_mask, key, fill), at(~key_mask, value, fill)]
        if FUNCTIONS[name].self_attention:
            changed[0] = at(~key_mask, query, fill)
        out, *gradients = run(name, changed, d_out, key_mask)
        np.testing.assert_array_equal(out[key_mask], expected[0][key_mask])
        for got, want in zip(gradients, expected[1:], strict=True):
            np.testing.assert_array_equal(got[key_mask], want[key_mask])
            assert not got[~key_mask].any() or got is gradients[0]
    # Each real token does have influence: a mask that hides too much would pass all of the above.
    moved = run(name, [query, key, at(key_mask, value, noise())], d_out, key_mask)
    assert (moved[0] != expected[0])[key_mask].any()


@every
def test_packed_documents_are_isolated(name):
    """A document, and the padding around it, may change without a bit of another document changing."""
    ids = np.array([[0] * 5 + [1] * 6 + [-1] * 2, [-1] + [4] * 7 + [2] * 5])
    expected = run(name, ids=ids)
    assert not expected[0][ids < 0].any()
    assert all(not gradient[ids < 0].any() for gradient in expected[1:])
    for document in (0, 1, 4, 2, -1):
        inside = ids == document
        for fill in (noise(),) if document >= 0 else (noise(), np.nan):
            got = run(name, [at(inside, x, fill) for x in ARRAYS], ids=ids)
            for x, want in zip(got, expected, strict=True):
                np.testing.assert_array_equal(x[~inside], want[~inside])
            assert document < 0 or (got[0][inside] != expected[0][inside]).any()


@every
def test_no_look_ahead(name):
    """Token t changes nothing before t, and what lies before t passes no gradient to it, bit for bit."""
    if not FUNCTIONS[name].causal:
        pytest.skip("not causal")
    expected = run(name)
    for t in (1, 4, 6, T - 1):
        late = np.broadcast_to(np.arange(T) >= t, (2, T))
        out, *_ = run(name, [at(late, x, noise()) for x in ARRAYS])
        np.testing.assert_array_equal(out[:, :t], expected[0][:, :t])
        assert (out[:, t:] != expected[0][:, t:]).any((0, 2, 3)).all()
        _, *gradients = run(name, d_out=at(late, D_OUT, 0))
        assert all(not g[:, t:].any() for g in gradients) and gradients[2][:, :t].any()


@every
def test_what_is_not_causal_looks_ahead(name):
    if FUNCTIONS[name].causal:
        pytest.skip("causal")
    late = np.broadcast_to(np.arange(T) >= T - 2, (2, T))
    assert (run(name, [ARRAYS[0], *(at(late, x, noise()) for x in ARRAYS[1:])])[0] != run(name)[0])[:, : T - 2].any()


@every
def test_padding_changes_nothing(name):
    """An input of length 11 equals the same input padded to 13, by key_mask or by segments."""
    if FUNCTIONS[name].ends_matter:
        pytest.skip("the last block is part of the pattern")
    short = jax.jit(FUNCTIONS[name].fn)(*(x[:, :11] for x in ARRAYS))
    real = np.broadcast_to(np.arange(T) < 11, (2, T))
    for given in ({"key_mask": real}, {"ids": np.where(real, 0, -1)}):
        assert_rounding(run(name, [at(~real, x, 7.0) for x in ARRAYS], **given)[0][:, :11], short)


@every
def test_rows_with_nothing_to_attend_are_zero(name):
    """Exactly 0, with zero gradient, beside a batch entry that is as it was."""
    expected = run(name)
    key_mask = REAL * np.array([[True], [False]])
    out, *gradients = run(name, key_mask=key_mask)
    for got, want in zip((out, *gradients), expected, strict=True):
        assert not got[1].any()
        np.testing.assert_array_equal(got[0], want[0])
    assert not any(x.any() for x in run(name, key_mask=~REAL))


@every
def test_one_token_sees_itself(name):
    """Length 1, eagerly, without batch dimensions: the output is the token's own value."""
    query, key, value = (jnp.asarray(x[0, :1]) for x in ARRAYS)
    out = FUNCTIONS[name].fn(query, key, value)
    assert_rounding(out, np.repeat(value, N // K, axis=-2), ulps=4)


@every
def test_vmap_and_remat(name):
    """vmap equals the batch dimension, remat the plain gradient, both at once."""
    out, gradients = oracle.value_and_vjp(jax.checkpoint(jax.vmap(FUNCTIONS[name].fn)), ARRAYS, D_OUT)
    for got, want in zip((out, *gradients), run(name), strict=True):
        assert_rounding(got, want)


@every
def test_jit_with_more_batch_dimensions(name):
    """Any number of batch dimensions, of which masks may leave some to broadcasting."""
    arrays = [np.broadcast_to(x, (3, *x.shape)) for x in ARRAYS]
    key_mask = np.random.default_rng(2).random((2, T)) < 0.7
    out = np.asarray(jax.jit(FUNCTIONS[name].fn)(*arrays, key_mask=key_mask))
    for entry in out:
        assert_rounding(entry[key_mask], run(name, key_mask=key_mask)[0][key_mask])


@every
def test_half_precision_rounds_the_output_once(name):
    half = [jnp.asarray(x, jnp.bfloat16) for x in ARRAYS]
    out = jax.jit(FUNCTIONS[name].fn)(*half)
    assert out.dtype == jnp.bfloat16
    exact = run(name, [np.asarray(x, np.float32) for x in half])[0]
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, rtol=2.0**-8, atol=64 * oracle.ULP)


@every
def test_float64_stays_float64(name):
    with jax.enable_x64(True):
        out = jax.jit(FUNCTIONS[name].fn)(*oracle.as_float64(ARRAYS))
    assert out.dtype == np.float64
    error = np.abs(np.asarray(out) - run(name)[0]).max()
    assert 0 < error < 64 * oracle.ULP * np.abs(out).max()  # float32 is off by its rounding, and by no less than that


QUERY, KEY, VALUE = ARRAYS
WRONG = {
    "query_rank": ({"query": QUERY[0, 0]}, "query: wanted"),
    "query_integers": ({"query": QUERY.astype(np.int32)}, "query: wanted a float dtype, got int32"),
    "key_dtype": ({"key": KEY.astype(np.float16)}, "key: wanted query's dtype float32, got float16"),
    "key_batch": ({"key": KEY[:1]}, "key: wanted query's batch"),
    "key_width": ({"key": KEY[..., :2]}, "key: wanted query's head width 5, got 2"),
    "key_heads": ({"key": KEY[:, :, :1].repeat(4, 2), "value": VALUE[:, :, :1].repeat(4, 2)}, "key: wanted a number of"),
    "value_length": ({"value": VALUE[:, :7]}, "value: wanted key's"),
    "value_heads": ({"value": VALUE[:, :, :1]}, "value: wanted key's"),
    "no_tokens": ({n: x[:, :0] for n, x in zip(("query", "key", "value"), ARRAYS, strict=True)}, "wanted lengths of at"),
    "key_mask_dtype": ({"key_mask": np.ones((2, T))}, "key_mask: wanted bools, got dtype float"),
    "key_mask_length": ({"key_mask": REAL[:, :7]}, "key_mask: wanted shape"),
    "key_mask_batch": ({"key_mask": np.ones((3, T), bool)}, "key_mask: wanted a shape that broadcasts"),
    "segments_alone": ({"query_segment_ids": ONE_DOCUMENT}, "key_segment_ids: wanted together with its partner"),
    "segments_length": (
        {"query_segment_ids": ONE_DOCUMENT, "key_segment_ids": ONE_DOCUMENT[:, :7]},
        "key_segment_ids: wanted shape",
    ),
    "segments_dtype": (
        {"query_segment_ids": ONE_DOCUMENT * 1.0, "key_segment_ids": ONE_DOCUMENT * 1.0},
        "query_segment_ids: wanted integers",
    ),
}  # fmt: skip


@every
@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(name, wrong):
    arguments, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name].fn(**{"query": QUERY, "key": KEY, "value": VALUE} | arguments)


@every
def test_unknown_arguments_are_refused(name):
    with pytest.raises(TypeError):
        FUNCTIONS[name].fn(*ARRAYS, attention_mask=REAL)
    with pytest.raises(TypeError):
        FUNCTIONS[name].fn(*ARRAYS, None, None, None)  # what is not learned goes by keyword
