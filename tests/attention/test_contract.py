"""The contract of every attention function: one suite over all of them. A new function is one more row.

What a function can do is read from `attention.capabilities`, the table of the README: a yes is tried out here, a no must
be a refusal.
"""

import functools
import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import attention
from attention import (
    axial_attention,
    bigbird_attention,
    delta_rule_attention,
    dot_product_attention,
    efficient_attention,
    gated_linear_attention,
    linear_attention,
    linformer_attention,
    local_attention,
    longformer_attention,
    lsh_attention,
    performer_attention,
    performer_projection,
    retention,
    shifted_window_attention,
    sparse_transformer_attention,
)
from attention.capabilities import CAPABILITIES, GRAPH_CAPABILITIES, tables

ROOT = Path(attention.__file__).parent.parent
T, N, K = 13, 6, 3


class Row(NamedTuple):
    """A function of (query, key, value, *, key_mask, query_segment_ids, key_segment_ids), and what it promises.

    `causal` None: the order of positions is kept in the sums, but which keys meet depends on all of them.
    """

    function: str  # its row in CAPABILITIES
    fn: functools.partial
    causal: bool | None = False
    self_attention: bool = True  # a masked token is a query too, and may then hold NaN in it
    ends_matter: bool = False  # the pattern depends on the length, so padding changes it
    averages: bool = True  # the weights of a row sum to 1
    slow: bool = False  # a second form of a function, for the long run
    key_refusals: bool = True  # complains about keys and values in the words of the others


RANDOM = np.random.default_rng(11)
# Halves of small integers, which bfloat16 holds exactly.
PROJECTION = np.round(4 * performer_projection(jax.random.key(5), 7, 5)) / 4
LENGTH_PROJECTIONS = RANDOM.integers(-4, 5, (2, N, T, 5)).astype(np.float32) / 4
FADING = -RANDOM.integers(1, 9, (T, K, 5)).astype(np.float32) / 4
BETA = RANDOM.integers(1, 5, (T, K)).astype(np.float32) / 4


def of_tokens(x, key):
    """What the layer would say of each token, [..., S, K(, H)]."""
    x = jnp.asarray(x[: key.shape[-3]], key.dtype)
    return jnp.broadcast_to(x, (*key.shape[:-3], *x.shape))


def performer(query, key, value, **settings):
    return performer_attention(query, key, value, PROJECTION, chunk_size=4, **settings)


def linformer(query, key, value, **settings):
    return linformer_attention(query, key, value, *jnp.asarray(LENGTH_PROJECTIONS, query.dtype), **settings)


def lsh(query, key, value, **settings):
    """Queries are keys, so both go into them; each key head serves its query heads."""
    spread = functools.partial(jnp.repeat, repeats=N // K, axis=-2)
    return lsh_attention(query + spread(key), spread(value), num_hashes=2, bucket_size=4, rng=SEED, **settings)


def gated(query, key, value, **settings):
    return gated_linear_attention(query, key, value, of_tokens(FADING, key), chunk_size=4, **settings)


def gated_by_head(query, key, value, **settings):
    return gated_linear_attention(query, key, value, of_tokens(FADING[..., 0], key), chunk_size=4, **settings)


def delta(query, key, value, **settings):
    return delta_rule_attention(query, key, value, of_tokens(BETA, key), chunk_size=4, **settings)


def gated_delta(query, key, value, **settings):
    return delta(query, key, value, log_decay=of_tokens(FADING[..., 0], key), **settings)


def bigbird_listed(query, key, value, **settings):
    """Random blocks as they are listed: unused, repeated, global and window ones among them."""
    blocks = -(-key.shape[-3] // 2)
    listed = np.random.default_rng(3).integers(-1, blocks, (N, max(blocks - 2, 0), 2))
    return bigbird_attention(query, key, value, block_size=2, random_blocks=listed, **settings)


def on_lines(function, query, key, value, *, key_mask=None, **settings):
    """A function of grids: each sequence is a row, and the batch entries are the rows of one image."""
    if query.ndim < 3:
        return function(query, key, value, **settings)
    *lead, length = query.shape[:-2]

    def image(x, rank):
        return x.reshape(1, math.prod(x.shape[:-rank]), *x.shape[x.ndim - rank :])

    if key_mask is not None:
        key_mask = image(jnp.broadcast_to(key_mask, (*lead, length)) if key_mask.ndim <= len(lead) else key_mask, 1)
    out = function(*(image(x, 3) for x in (query, key, value)), key_mask=key_mask, **settings)
    return out.reshape(*lead, *out.shape[-3:])


def on_image(function, query, key, value, *, key_mask=None, **settings):
    """A function of grids: each sequence is an image of five columns, read row by row; its last row may be cut."""
    *lead, length = query.shape[:-2]

    def image(x, rank, fill=0):
        *batch, tokens = x.shape[: x.ndim - rank + 1]
        x = jnp.pad(x, [(0, 0)] * len(batch) + [(0, -tokens % 5)] + [(0, 0)] * (rank - 1), constant_values=fill)
        return x.reshape(math.prod(batch), -(-tokens // 5), 5, *x.shape[len(batch) + 1 :])

    key_mask = jnp.ones(length, bool) if key_mask is None else jnp.asarray(key_mask)
    if key_mask.ndim <= len(lead):
        key_mask = jnp.broadcast_to(key_mask, (*lead, key_mask.shape[-1]))
    out = function(*(image(x, 3) for x in (query, key, value)), key_mask=image(key_mask, 1, False), **settings)
    return out.reshape(*lead, -1, *out.shape[-2:])[..., :length, :, :]


TABLES = dict(
    zip(("query_table", "key_table"), RANDOM.integers(-4, 5, (2, 2 * T - 1, 5)).astype(np.float32) / 4, strict=True)
)
SEED = jax.random.key(2)
REFERENCE = functools.partial(dot_product_attention, implementation="reference")
BLOCKWISE = functools.partial(dot_product_attention, implementation="blockwise", block_sizes=(4, 5))
LOCAL = functools.partial(local_attention, window=4)
LONGFORMER = functools.partial(longformer_attention, window=2, global_positions=np.array([5, 0]))
SPARSE = functools.partial(sparse_transformer_attention, stride=4)
AXIAL = functools.partial(on_lines, axial_attention, axis=-3, **TABLES)
WINDOWS = functools.partial(on_lines, shifted_window_attention, window=(1, 4), shift=(0, 2))
BIGBIRD = functools.partial(bigbird_attention, block_size=2, num_random_blocks=1, rng=SEED)
LINEAR = functools.partial(linear_attention, chunk_size=4)
EFFICIENT = functools.partial(efficient_attention, chunk_size=4)
RETENTION = functools.partial(retention, chunk_size=4)
causal = functools.partial

FUNCTIONS = {
    "reference": Row("dot_product_attention", REFERENCE, self_attention=False),
    "reference_causal": Row("dot_product_attention", causal(REFERENCE, is_causal=True), True, self_attention=False),
    "blockwise": Row("dot_product_attention", BLOCKWISE, self_attention=False),
    "blockwise_causal": Row("dot_product_attention", causal(BLOCKWISE, is_causal=True), True, self_attention=False),
    "local": Row("local_attention", LOCAL),
    "local_causal": Row("local_attention", causal(LOCAL, causal=True), True),
    "longformer": Row("longformer_attention", LONGFORMER),
    "longformer_causal": Row("longformer_attention", causal(LONGFORMER, causal=True), True),
    "sparse_transformer_strided": Row("sparse_transformer_attention", causal(SPARSE, pattern="strided"), True),
    "sparse_transformer_fixed": Row("sparse_transformer_attention", causal(SPARSE, pattern="fixed", causal=False)),
    "sparse_transformer_by_head": Row(
        "sparse_transformer_attention",
        causal(SPARSE, pattern="fixed", summary=2, summary_per_head=True), True, slow=True,
    ),
    "sparse_transformer_split": Row("sparse_transformer_attention", causal(SPARSE, heads="split"), True),
    "bigbird": Row("bigbird_attention", BIGBIRD, ends_matter=True),
    "bigbird_causal": Row(
        "bigbird_attention", causal(BIGBIRD, causal=True, num_random_blocks=0, num_global_blocks=0), True
    ),
    "bigbird_listed": Row("bigbird_attention", bigbird_listed, ends_matter=True),
    "bigbird_etc": Row("bigbird_attention", causal(BIGBIRD, num_global_tokens=3), ends_matter=True, slow=True),
    "axial": Row("axial_attention", AXIAL),
    "axial_causal": Row("axial_attention", causal(AXIAL, causal=True, span=5), True),
    "axial_on_an_image": Row(
        "axial_attention", causal(on_image, axial_attention, axis=1), slow=True, key_refusals=False
    ),
    "shifted_window": Row("shifted_window_attention", WINDOWS),
    "shifted_window_on_an_image": Row(
        "shifted_window_attention",
        causal(on_image, shifted_window_attention, window=(2, 3), shift=(1, 2)), key_refusals=False,
    ),
    "lsh": Row("lsh_attention", lsh, ends_matter=True, key_refusals=False),
    "lsh_causal": Row("lsh_attention", causal(lsh, causal=True), None, ends_matter=True, key_refusals=False),
    "linformer": Row("linformer_attention", linformer, self_attention=False, averages=False),
    "performer": Row("performer_attention", performer, self_attention=False),
    "performer_causal": Row("performer_attention", causal(performer, causal=True), True),
    "performer_relu": Row("performer_attention", causal(performer, causal=True, kernel="relu"), True, slow=True),
    "linear": Row("linear_attention", LINEAR, self_attention=False),
    "linear_causal": Row("linear_attention", causal(LINEAR, causal=True), True),
    "efficient": Row("efficient_attention", EFFICIENT, self_attention=False, averages=False),
    "retention": Row("retention", RETENTION, True, averages=False),
    "gated": Row("gated_linear_attention", gated, True, averages=False),
    "gated_by_head": Row("gated_linear_attention", gated_by_head, True, averages=False, slow=True),
    "delta_rule": Row("delta_rule_attention", delta, True, averages=False),
    "gated_delta_rule": Row("delta_rule_attention", gated_delta, True, averages=False, slow=True),
}  # fmt: skip

*ARRAYS, D_OUT, _ = oracle.inputs(T, None, N, K)
REAL = np.ones((2, T), bool)
ONE_DOCUMENT = np.zeros((2, T), np.int32)


def where(concerned):
    """Runs a test with the name of each function that its property concerns, told by its `Row`."""
    rows = {name: row for name, row in FUNCTIONS.items() if concerned(row)}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=pytest.mark.slow) if row.slow else name for name, row in rows.items()]
    )


every = where(lambda row: True)


def packs(name):
    return CAPABILITIES[FUNCTIONS[name].function].packing


@functools.cache
def program(name):
    """The compiled output and gradients. One program serves most tests: masks and ids are data."""

    @jax.jit
    def run(arrays, d_out, key_mask, ids):
        def attend(*arrays):
            masks = dict(key_mask=key_mask)
            if packs(name):
                masks |= dict(query_segment_ids=ids, key_segment_ids=ids)
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
        # The first query, if it sees one key only, cannot change the output; with LSH nobody may see the last value.
        assert x[:, 1 : -1 if FUNCTIONS[name].causal is None else None].any((-1, -2)).all()


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
    if not packs(name):
        with pytest.raises(TypeError, match="query_segment_ids"):
            FUNCTIONS[name].fn(*ARRAYS, query_segment_ids=ONE_DOCUMENT, key_segment_ids=ONE_DOCUMENT)
        return
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


@where(lambda row: row.causal is True)  # and not in its sums only
def test_no_look_ahead(name):
    """Token t changes nothing before t, and what lies before t passes no gradient to it, bit for bit."""
    expected = run(name)
    for t in (1, 4, 6, T - 1):
        late = np.broadcast_to(np.arange(T) >= t, (2, T))
        out, *_ = run(name, [at(late, x, noise()) for x in ARRAYS])
        np.testing.assert_array_equal(out[:, :t], expected[0][:, :t])
        assert (out[:, t:] != expected[0][:, t:]).any((0, 2, 3)).all()
        _, *gradients = run(name, d_out=at(late, D_OUT, 0))
        assert all(not g[:, t:].any() for g in gradients) and gradients[2][:, :t].any()


@where(lambda row: row.causal is False)
def test_what_is_not_causal_looks_ahead(name):
    late = np.broadcast_to(np.arange(T) >= T - 2, (2, T))
    assert (run(name, [ARRAYS[0], *(at(late, x, noise()) for x in ARRAYS[1:])])[0] != run(name)[0])[:, : T - 2].any()


@where(lambda row: not row.ends_matter)  # where they do, the last block is part of the pattern
def test_padding_changes_nothing(name):
    """An input of length 11 equals the same input padded to 13, by key_mask or by segments."""
    short = jax.jit(FUNCTIONS[name].fn)(*(x[:, :11] for x in ARRAYS))
    real = np.broadcast_to(np.arange(T) < 11, (2, T))
    for given in [{"key_mask": real}] + [{"ids": np.where(real, 0, -1)}] * packs(name):
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
    assert out.shape == (1, N, value.shape[-1]) and np.asarray(out).any((-1, -2)).all()
    if FUNCTIONS[name].averages:
        assert_rounding(out, np.repeat(value, N // K, axis=-2), ulps=4)


@every
def test_rows_average(name):
    """Values of one give one, where the weights of a row are said to sum to 1, and nowhere else."""
    query, key, value = ARRAYS
    out = run(name, [query, key, np.ones_like(value)])[0]
    assert FUNCTIONS[name].averages == np.allclose(out, 1, rtol=0, atol=64 * oracle.ULP)


@pytest.mark.slow
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


@pytest.mark.slow
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
    "no_tokens": ({n: x[:, :0] for n, x in zip(("query", "key", "value"), ARRAYS, strict=True)}, "wanted (lengths of )?at least (1|one)"),
    "key_mask_dtype": ({"key_mask": np.ones((2, T))}, "key_mask: wanted bools, got dtype float"),
    "key_mask_length": ({"key_mask": REAL[:, :7]}, "key_mask: wanted (a )?shape"),
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


def has(row, wrong):
    """Whether a function takes what this is wrong in: plain key and value, or ids."""
    ordinary = row.key_refusals or wrong.split("_")[0] not in ("key", "value", "query") or "mask" in wrong
    return ordinary and (CAPABILITIES[row.function].packing or "segments" not in wrong)


@pytest.mark.parametrize(
    "name, wrong",
    [
        pytest.param(name, wrong, marks=[pytest.mark.slow] * row.slow)
        for name, row in FUNCTIONS.items()
        for wrong in WRONG
        if has(row, wrong)
    ],
)
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


@pytest.mark.parametrize("function", CAPABILITIES)
def test_capabilities_are_what_the_signature_takes(function):
    """What the table denies, the function has no argument for."""
    able, takes = CAPABILITIES[function], inspect.signature(getattr(attention, function)).parameters
    assert able.padding == ("key_mask" in takes)
    assert able.packing == ("query_segment_ids" in takes) == ("key_segment_ids" in takes)
    assert able.bias == ("bias" in takes)
    assert able.dropout == ("dropout_rate" in takes)
    assert (able.decoding == "state") == ("initial_state" in takes) == ("return_state" in takes)
    if able.causal and able.bidirectional:
        assert not takes.keys().isdisjoint({"causal", "is_causal"})
    elif "causal" in takes:
        with pytest.raises(NotImplementedError, match="causal"):
            getattr(attention, function)(*ARRAYS, causal=True)
    for name in able.learned.split("`")[1::2]:
        assert name in takes


@pytest.mark.parametrize("function", CAPABILITIES)
def test_every_capability_is_tried_out(function):
    able, rows = CAPABILITIES[function], [row for row in FUNCTIONS.values() if row.function == function]
    assert able.causal == any(row.causal is not False for row in rows)
    assert able.bidirectional == any(row.causal is False for row in rows)
    assert able.softmax in ("exact", "approximated", "replaced")
    assert able.softmax != "exact" or all(row.averages for row in rows)


def test_the_table_names_every_attention_function():
    exported = {name for name in attention.__all__ if name.endswith("_attention") or name == "retention"}
    forms = {"cached_attention", "window_attention"}  # of dot_product_attention and of shifted_window_attention
    assert exported - forms == set(CAPABILITIES) | set(GRAPH_CAPABILITIES)  # these are in test_graph.py


def test_the_table_prints_itself_without_a_warning():
    """The package must not import the module that `python -m` is to run."""
    command = [sys.executable, "-W", "error", "-m", "attention.capabilities"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout == tables() + "\n"


@every
def test_cross_attention(name):
    """Another number of queries than of keys, or a refusal."""
    row = FUNCTIONS[name]
    query = ARRAYS[0][:, :7]
    if CAPABILITIES[row.function].cross and row.causal is False:
        assert_rounding(row.fn(query, *ARRAYS[1:]), run(name)[0][:, :7])
    elif not CAPABILITIES[row.function].cross:
        with pytest.raises((ValueError, TypeError)):
            row.fn(query, *ARRAYS[1:])


@every
def test_dropout(name):
    """Weights are dropped and the rest grow: the mean over draws is the output without; or it is refused."""
    row = FUNCTIONS[name]
    if not CAPABILITIES[row.function].dropout:
        with pytest.raises(TypeError, match="dropout_rate"):
            row.fn(*ARRAYS, dropout_rate=0.5)
        return
    seed = "dropout_rng" if "dropout_rng" in inspect.signature(getattr(attention, row.function)).parameters else "rng"
    with pytest.raises(ValueError, match=f"^{seed}: wanted"):
        row.fn(*ARRAYS, dropout_rate=0.5)
    draw = jax.jit(jax.vmap(lambda rng: row.fn(*ARRAYS, dropout_rate=0.5, **{seed: rng})))
    outputs = np.asarray(draw(jax.random.split(SEED, 400)))
    assert len({x.tobytes() for x in outputs}) == 400
    error = np.abs(outputs.mean(0) - run(name)[0])
    assert (error < 6 * outputs.std(0) / 20 + 1e-5).all()
