"""The front door: a superset of jax.nn's function, empty rows, refusals, and the merging of parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from attention import dot_product_attention, merge
from attention.biases import SoftCap
from attention.masks import Causal, Dense, Full, Global, Keys, PerHead, Segments, Window

B, T, S, N, H = 2, 5, 7, 6, 3
EMPTY_ROW = np.ones((B, 1, T, S), bool)
EMPTY_ROW[1, 0, 2] = False
UNSIGNED = np.arange(T, dtype=np.uint8)  # whose differences wrap
RNG = np.random.default_rng(0)
CHOICES = {
    "heads": [1, 2, 3, 6],
    "bias": [None, (1, 1, T, S), (B, 1, 1, S), (1, N, T, 1), (B, N, T, S)],
    "mask": [None, (1, 1, T, S), (B, 1, 1, S), (1, N, T, S), (B, N, T, S), "empty row"],
    "is_causal": [False, True],
    "query_seq_lengths": [None, [5, 3]],
    "key_value_seq_lengths": [None, [4, 7], [0, 2]],
    "local_window_size": [None, 2, (1, 3), (0, 1)],
    "scale": [None, 0.3],
    "dtype": ["float32", "float32", "bfloat16", "float16", "float64"],
}


def combinations(count):
    """Random combinations in which every option comes up equally often."""
    rng = np.random.default_rng(0)
    order = {name: rng.permutation(np.arange(count) % len(options)) for name, options in CHOICES.items()}
    return [{name: CHOICES[name][order[name][n]] for name in CHOICES} for n in range(count)]


def allowed_by(mask, is_causal, query_seq_lengths, key_value_seq_lengths, local_window_size, **_):
    """The dense meaning of jax.nn's arguments."""
    i, j = np.arange(T)[:, None], np.arange(S)
    allowed = np.ones((B, N, T, S), bool) if mask is None else np.broadcast_to(mask, (B, N, T, S)).copy()
    if is_causal:
        allowed &= j <= i
    if query_seq_lengths is not None:
        allowed &= i < np.array(query_seq_lengths)[:, None, None, None]
    if key_value_seq_lengths is not None:
        allowed &= j < np.array(key_value_seq_lengths)[:, None, None, None]
    if local_window_size is not None:
        left, right = np.broadcast_to(local_window_size, 2)
        allowed &= (i - left <= j) & (j <= i + right)
    return allowed


@pytest.mark.parametrize("picked", combinations(30))
def test_superset_of_jax_nn(picked):
    """Ours, jax.nn's and the definition agree, but for empty rows: exactly 0 with zero gradient here."""
    picked = dict(picked)
    dtype, K, bias_shape, mask_shape = (picked.pop(name) for name in ("dtype", "heads", "bias", "mask"))
    dtype, rng = jnp.dtype(dtype), np.random.default_rng(1)
    mask = EMPTY_ROW if mask_shape == "empty row" else mask_shape and rng.random(mask_shape) < 0.7
    allowed = allowed_by(mask, **picked)
    seen = np.moveaxis(allowed.any(-1), 1, -1)[..., None]  # [B, T, N, 1]
    given = {n: np.array(x, np.int32) if n.endswith("lengths") and x is not None else x for n, x in picked.items()}
    *arrays, d_out, _ = (x.astype(dtype) for x in oracle.inputs(T, S, N, K, H, H))
    d_out = np.where(seen, d_out, 0)  # what jax.nn passes back from an empty row is its own matter
    if bias_shape:
        arrays.append(rng.standard_normal(bias_shape).astype(jnp.promote_types(dtype, np.float32)))

    def both(query, key, value, bias=None):
        ours = dot_product_attention(query, key, value, bias, mask, **given)
        if dtype == np.float16:  # which jax.nn does not compile for CPU
            query, key, value = (x.astype(np.float32) for x in (query, key, value))
        return ours, jax.nn.dot_product_attention(query, key, value, bias, mask, **given).astype(dtype)

    def wanted(query, key, value, *rest):
        *bias, d_out = rest
        settings = dict(allowed=allowed, scale=picked["scale"])
        *gradients, d_bias = oracle.gradients(query, key, value, *bias or [0.0], d_out, **settings)
        gradients += [oracle.sum_to(d_bias, b.shape) for b in bias]
        return [oracle.attention(query, key, value, *bias, **settings)[0], *gradients]

    zero = np.zeros_like(d_out)
    with jax.enable_x64(dtype == np.float64):
        (ours, theirs), gradients = oracle.value_and_vjp(both, arrays, (d_out, zero))
        _, their_gradients = oracle.value_and_vjp(both, arrays, (zero, d_out))
    assert ours.dtype == dtype
    assert not np.asarray(ours, np.float64)[~np.broadcast_to(seen, ours.shape)].any()
    # Half precision is rounded once, at the end.
    arrays = [*oracle.as_float64(arrays), np.asarray(d_out, np.float64)]
    oracle.assert_exact([ours, *gradients], wanted, *arrays, rounded_to=dtype if dtype.itemsize == 2 else None)
    eps = max(float(jnp.finfo(dtype).eps), oracle.ULP)  # jax.nn's softmax is float32 for float64 too
    theirs = np.where(seen, np.asarray(theirs, np.float64), 0)
    for got, want in zip([theirs, *their_gradients], wanted(*arrays), strict=True):
        atol = 16 * eps * max(1, np.abs(want).max())
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=atol)


def test_float64_is_float64():
    arrays = [x.astype(np.float64) for x in oracle.inputs(T, S)]
    with jax.enable_x64(True):

        def attend(query, key, value):
            return dot_product_attention(query, key, value, softcap=2.0, return_residual=True)

        (out, lse), gradients = oracle.value_and_vjp(attend, arrays[:3], tuple(arrays[3:]))
    assert {x.dtype for x in (out, lse, *gradients)} == {np.dtype(np.float64)}
    wanted = (
        oracle.attention(*arrays[:3], softcap=2.0),
        oracle.gradients(*arrays[:3], 0.0, *arrays[3:], softcap=2.0)[:3],
    )
    for got, want in zip(jax.tree.leaves(((out, lse), gradients)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=32 * 2.0**-52 * np.abs(want).max())


def test_residual_is_the_log_sum_exp():
    query, key, value, _, _ = oracle.inputs(T, S, Hv=5)
    out, lse = dot_product_attention(query, key, value, mask=EMPTY_ROW, return_residual=True)
    oracle.assert_exact((out, lse), functools.partial(oracle.attention, allowed=EMPTY_ROW), query, key, value)
    assert (np.asarray(lse)[1, 2] == -np.inf).all()
    plain = np.ones((B, 1, T, S), bool)
    _, theirs = jax.nn.dot_product_attention(query, key, value, mask=plain, return_residual=True)
    _, ours = dot_product_attention(query, key, value, mask=plain, return_residual=True)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=8 * oracle.ULP * np.abs(theirs).max())
    half = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    assert [x.dtype for x in dot_product_attention(*half, return_residual=True)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_large_scores_in_half_precision(dtype):
    """Scores past float16's largest number, which only float32 holds."""
    query = jnp.full((1, 1, 1, 2), 200, dtype)
    key = jnp.asarray([[[[200, 200]], [[199, 200]]]], dtype)
    value = jnp.asarray([[[[1.0]], [[3.0]]]], dtype)
    assert float(dot_product_attention(query, key, value, scale=1.0).squeeze()) == 1
    assert float(dot_product_attention(query, key, value, scale=0.01).squeeze()) == pytest.approx(
        1 + 2 / (1 + np.exp(float(key[0, 0, 0, 0] - key[0, 1, 0, 0]) * 2)), rel=2**-8
    )


def test_bias_of_minus_infinity_hides():
    *arrays, d_out, _ = oracle.inputs(T, S)
    allowed = RNG.random((N, T, S)) < 0.5
    allowed[2, 3] = False
    bias = np.where(allowed, 0, -np.inf).astype(np.float32)
    for more in ({"implementation": "reference"}, {"implementation": "blockwise", "block_sizes": (2, 3)}):

        def attend(query, key, value, bias, more=more):
            return dot_product_attention(query, key, value, bias, **more)

        out, gradients = oracle.value_and_vjp(attend, (*arrays, bias), d_out)
        oracle.assert_exact(out, lambda *a: oracle.attention(*a, allowed=allowed)[0], *arrays)
        assert not np.asarray(out)[:, 3, 2].any()
        assert all(np.isfinite(g).all() for g in gradients)


def test_equivalent_ways_to_hide():
    """Each convenience equals the mask that it stands for, bit for bit."""
    arrays = oracle.inputs(T, T)[:3]
    keep = RNG.random((B, T)) < 0.6
    ids = np.array([[0, 0, 1, 1, -1], [2, 2, 2, 0, 0]])
    same = (ids[:, :, None] == ids[:, None]) & (ids >= 0)[..., None]
    i, j = np.arange(T)[:, None], np.arange(T)
    heads = np.stack([j <= i, np.ones((T, T), bool), abs(i - j) < 2] * 2)
    attend = functools.partial(dot_product_attention, *arrays, implementation="reference")
    for given, dense in (
        ({"key_mask": keep}, keep[:, None, None]),
        ({"key_mask": keep[0]}, keep[0]),
        ({"mask": Keys(keep)}, keep[:, None, None]),
        ({"query_segment_ids": ids, "key_segment_ids": ids}, same[:, None]),
        ({"mask": Segments(ids, ids) & Causal()}, same[:, None] & (j <= i)),
        ({"mask": Causal(), "local_window_size": (1, 1)}, (j <= i) & (i - j < 2)),
        ({"mask": Dense(heads)}, heads),
        ({"mask": PerHead([Causal(), Full(), Window(1, 1)] * 2)}, heads),
        ({"is_causal": True, "query_positions": [2, 2, 0, 9, 1]}, j <= np.array([2, 2, 0, 9, 1])[:, None]),
        ({"is_causal": True, "key_positions": np.array([[5, 1, 0, 3, 2]])}, np.array([5, 1, 0, 3, 2]) <= i),
        ({"is_causal": True, "query_positions": np.arange(5, dtype=np.uint8) + 1}, j <= i + 1),
        ({"local_window_size": 1, "query_positions": UNSIGNED, "key_positions": UNSIGNED}, abs(i - j) < 2),
    ):
        given = {n: np.asarray(x) if n.endswith("positions") else x for n, x in given.items()}
        np.testing.assert_array_equal(attend(**given), attend(mask=dense), err_msg=str(given))
    np.testing.assert_array_equal(attend(softcap=2.0), attend(SoftCap(2.0)))


def test_positions_do_not_steer_arrays_and_lengths():
    arrays = oracle.inputs(T, S)[:3]
    mask = RNG.random((T, S)) < 0.6
    given = dict(mask=mask, query_seq_lengths=np.array([5, 3]), key_value_seq_lengths=np.array([4, 7]))
    moved = dict(query_positions=np.arange(T)[::-1], key_positions=np.arange(S)[::-1])
    np.testing.assert_array_equal(
        dot_product_attention(*arrays, **given, **moved), dot_product_attention(*arrays, **given)
    )


def test_implementation_none_is_dense_where_small_and_blockwise_where_large():
    def loops(T, **more):
        x = jax.ShapeDtypeStruct((T, 1, 4), jnp.float32)
        return str(jax.make_jaxpr(functools.partial(dot_product_attention, **more))(x, x, x)).count("while")

    assert loops(128) == 0 and loops(129) > 0
    assert loops(16, block_sizes=(8, 8)) > 0 and loops(129, implementation="xla") == 0


QUERY, KEY, VALUE = (np.zeros((B, n, h, 3), np.float32) for n, h in ((T, N), (S, 3), (S, 3)))
IDS = np.zeros((B, T), np.int32)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"query": QUERY[0, 0]}, ValueError, r"query: wanted \[..., length, heads, width\], got shape \(6, 3\)"),
        ({"query": QUERY.astype(int)}, ValueError, r"query: wanted a float dtype, got int"),
        ({"key": KEY.astype(np.float16)}, ValueError, r"key: wanted query's dtype float32, got float16"),
        ({"value": VALUE.astype(np.float16)}, ValueError, r"value: wanted query's dtype float32, got float16"),
        ({"key": KEY[:1]}, ValueError, r"key: wanted query's batch dimensions \(2,\), got \(1,\)"),
        ({"key": KEY[..., :2]}, ValueError, r"key: wanted query's head width 3, got 2"),
        ({"value": VALUE[:, :6]}, ValueError, r"value: wanted key's \[S, K\] = \(7, 3\), got \(6, 3\)"),
        ({"query": QUERY[:, :, :4]}, ValueError, r"key: wanted a number of heads that divides query's 4, got 3"),
        ({"query": QUERY[:, :0]}, ValueError, r"query, key: wanted lengths of at least 1, got T = 0, S = 7"),
        ({"mask": np.ones((T, S))}, ValueError, r"mask: wanted a bool array \(True = may attend\), got dtype float"),
        ({"mask": np.ones((T, S + 1), bool)}, ValueError, r"mask: wanted a shape that broadcasts to \(2, 6, 5, 7\)"),
        ({"mask": np.ones((3, 1, 1, 1), bool)}, ValueError, r"mask: wanted a shape that broadcasts to \(2, 6, 5, 7\)"),
        ({"mask": ~Dense(np.ones((T, 2), bool))}, ValueError, r"mask: wanted a shape that broadcasts to \(2, 6, 5, 7\)"),
        (
            {"mask": Causal() | PerHead([Dense(np.ones((T, 2), bool))] * N)},
            ValueError,
            r"mask: wanted a shape that broadcasts to \(2, 6, 5, 7\)",
        ),
        ({"mask": Keys(np.ones(T, bool))}, ValueError, r"Keys.key_mask: wanted shape \(2, 7\), got \(5,\)"),
        ({"mask": Segments(IDS, IDS)}, ValueError, r"Segments.key_ids: wanted shape \(2, 7\), got \(2, 5\)"),
        (
            {"mask": Global(jnp.zeros((3, 1), int))},
            ValueError,
            r"Global.positions: wanted a shape that broadcasts to \(2, 1\), got \(3, 1\)",
        ),
        ({"mask": PerHead([Full()] * 3)}, ValueError, r"mask: wanted a pattern for N = 6 query heads, got one for 3"),
        ({"mask": "causal"}, ValueError, r"mask: wanted a bool array or a Mask, got str"),
        ({"key_mask": np.ones((B, S), int)}, ValueError, r"key_mask: wanted bools, got dtype int"),
        ({"key_mask": np.ones((B, T), bool)}, ValueError, r"key_mask: wanted shape \(2, 7\), got \(2, 5\)"),
        ({"key_mask": np.ones((3, S), bool)}, ValueError, r"key_mask: wanted a shape that broadcasts to \(2, 7\)"),
        ({"query_seq_lengths": [1.0, 2.0]}, ValueError, r"query_seq_lengths: wanted integers, got dtype float"),
        ({"query_seq_lengths": [1, 2, 3]}, ValueError, r"query_seq_lengths: wanted a shape that broadcasts to \(2,\)"),
        ({"key_value_seq_lengths": [1, 2, 3]}, ValueError, r"key_value_seq_lengths: wanted a shape that broadcasts"),
        ({"local_window_size": -1}, ValueError, r"local_window_size: wanted a size >= 0 or two, \(left, right\), got -1"),
        ({"local_window_size": (1, 2, 3)}, ValueError, r"local_window_size: wanted"),
        ({"query_segment_ids": IDS}, ValueError, r"key_segment_ids: wanted together with its partner, got None"),
        ({"key_segment_ids": IDS}, ValueError, r"query_segment_ids: wanted together with its partner, got None"),
        ({"query_segment_ids": IDS, "key_segment_ids": IDS}, ValueError, r"key_segment_ids: wanted shape \(2, 7\)"),
        ({"query_positions": np.zeros(T)}, ValueError, r"query_positions: wanted integers, got dtype float"),
        ({"key_positions": np.arange(T)}, ValueError, r"key_positions: wanted shape \(2, 7\), got \(5,\)"),
        ({"implementation": "flash"}, ValueError, r"implementation: wanted None or one of .*, got 'flash'"),
        ({"implementation": "pallas"}, NotImplementedError, r"implementation: 'pallas' kernels do not exist yet"),
        ({"dropout_rate": 1.0, "rng": jax.random.key(0)}, ValueError, r"dropout_rate: wanted a number in \[0, 1\)"),
        ({"dropout_rate": -0.1}, ValueError, r"dropout_rate: wanted a number in \[0, 1\), got -0.1"),
        ({"dropout_rate": 0.1}, ValueError, r"rng: wanted a jax.random.key with dropout_rate > 0, got None"),
        ({"rng": np.zeros(2, np.uint32)}, ValueError, r"rng: wanted a typed key from jax.random.key, got uint32"),
        ({"softcap": 0.0}, ValueError, r"softcap: wanted a positive number or None, got 0.0"),
        ({"block_sizes": (0, 4)}, ValueError, r"block_sizes: wanted two positive sizes \(queries, keys\), got \(0, 4\)"),
        ({"block_sizes": (4,)}, ValueError, r"block_sizes: wanted two positive sizes"),
        ({"block_sizes": (4, 4), "implementation": "xla"}, ValueError, r"block_sizes: only the blockwise"),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        dot_product_attention(**{"query": QUERY, "key": KEY, "value": VALUE} | arguments)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, RuntimeError, "cuDNN"),  # jax.nn's own complaint
        ({"mask": np.ones((1, 1, T, S), bool)}, NotImplementedError, "'cudnn' gives mean"),
        ({"key_value_seq_lengths": [1, 2]}, NotImplementedError, "'cudnn' gives mean"),
        ({"mask": Causal()}, NotImplementedError, "'cudnn' takes mask and bias as arrays only"),
        ({"bias": SoftCap(2.0)}, NotImplementedError, "'cudnn' takes mask and bias as arrays only"),
        ({"key_mask": np.ones((B, S), bool)}, NotImplementedError, "'cudnn' does not take key_mask"),
        ({"softcap": 2.0, "block_sizes": (4, 4)}, NotImplementedError, "not take block_sizes, softcap"),
        ({"dropout_rate": 0.1, "rng": jax.random.key(0)}, NotImplementedError, "not take dropout_rate"),
        ({"query_positions": np.arange(T)}, NotImplementedError, "not take query_positions"),
    ],
)
def test_cudnn_never_falls_back(arguments, error, message):
    if jax.default_backend() == "gpu" and not arguments:
        pytest.skip("a GPU has the kernel")
    half = {n: jnp.zeros((B, L, N, 16), jnp.bfloat16) for n, L in (("query", T), ("key", S), ("value", S))}
    with pytest.raises(error, match=message):
        dot_product_attention(**half | arguments, implementation="cudnn")


def test_merge_of_parts_is_the_whole():
    *arrays, d_out, d_lse = oracle.inputs(T, 11)
    owner = np.array([0, 0, 1, 2, 1, 1, 0, 2, 2, 0, 1])  # which part a key belongs to; nothing belongs to part 3
    rows = np.arange(T)[:, None] != 3  # row 3 sees nothing in any part
    rows_of_part = [rows, rows & (np.arange(T)[:, None] != 1), rows, rows]  # row 1 sees nothing in part 1
    allowed = sum((owner == n) & rows_of_part[n] for n in range(4)).astype(bool)

    def merged(query, key, value):
        parts = [
            dot_product_attention(query, key, value, mask=(owner == n) & rows_of_part[n], return_residual=True)
            for n in range(4)
        ]
        outputs, residuals = zip(*parts, strict=True)
        return merge(outputs, residuals)

    results = oracle.value_and_vjp(merged, arrays, (d_out, np.where(rows, d_lse, 0)))
    assert not np.asarray(results[0][0])[:, 3].any() and (np.asarray(results[0][1])[:, 3] == -np.inf).all()
    assert not np.asarray(results[1][0])[:, 3].any()

    def wanted(query, key, value, d_out, d_lse):
        gradients = oracle.gradients(query, key, value, 0.0, d_out, d_lse, allowed)
        return oracle.attention(query, key, value, allowed=allowed), gradients[:3]

    oracle.assert_exact(results, wanted, *arrays, d_out, np.where(rows, d_lse, 0))


def test_merge_takes_stacks_and_keeps_dtypes():
    outputs = RNG.standard_normal((3, B, T, N, 2)).astype(np.float32)
    residuals = (100 * RNG.standard_normal((3, B, T, N))).astype(np.float32)  # far apart: no overflow
    out, lse = merge(jnp.asarray(outputs), jnp.asarray(residuals))
    weight = np.exp(residuals.astype(np.float64) - residuals.max(0))
    np.testing.assert_allclose(
        out, (outputs * (weight / weight.sum(0))[..., None]).sum(0), rtol=0, atol=16 * oracle.ULP
    )
    np.testing.assert_allclose(lse, residuals.max(0) + np.log(weight.sum(0)), rtol=2 * oracle.ULP)
    pairs = [merge(list(jnp.asarray(outputs)), list(jnp.asarray(residuals))), merge(outputs, residuals)]
    for pair in pairs:
        np.testing.assert_array_equal(pair[0], out)
    half, _ = merge(jnp.asarray(outputs, jnp.bfloat16), jnp.asarray(residuals))
    assert half.dtype == jnp.bfloat16
    alone, lse = merge(outputs[:1], residuals[:1])
    np.testing.assert_array_equal(alone, outputs[0])
    np.testing.assert_array_equal(lse, residuals[0])
    for parts in (((), ()), (outputs, residuals[:2])):
        with pytest.raises(ValueError, match="outputs, residuals: wanted the same number, at least 1"):
            merge(*parts)
