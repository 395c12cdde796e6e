"""Linformer: published numbers, the definition, padding, sharing, what it tends to, cost, refusals."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_scaling import exponent

from attention.linformer import linformer_attention

T, S, N, K, R = 11, 13, 6, 3, 5
IMPLEMENTATIONS = ["reference", "blockwise"]
GOLDENS = ["linformer", "linformer_shared_kv", "linformer_one_kv_head", "linformer_short_input"]


def projections(heads=(), rows=S, mixtures=R, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*heads, rows, mixtures)).astype(np.float32) / 3 for _ in "kv"]


@pytest.mark.parametrize("case", GOLDENS)
def test_published_values_and_gradients(case):
    arrays, meta = golden.load(case)
    names = ["in.x", *(name for name in arrays if name.startswith("w."))]

    def layer(*given):
        w = dict(zip(names, given, strict=True))
        x = w["in.x"]
        query, key, value = (
            (x @ w.get(f"w.to_{name}.weight", w["w.to_k.weight"]).T).reshape(*x.shape[:2], -1, 8) for name in "qkv"
        )
        mix = w["w.proj_k"]
        out = linformer_attention(query, key, value, mix, w.get("w.proj_v", mix))
        return out.reshape(x.shape) @ w["w.to_out.weight"].T + w["w.to_out.bias"]

    given, gradients = ([arrays[prefix + name] for name in names] for prefix in ("", "grad."))
    golden.assert_matches(layer, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"])


def mix(x, projection):
    """`[..., S, K, h]` to `[..., R, N, h]`, each query head's own mixtures."""
    x = np.repeat(x, N // x.shape[-2], axis=-2)
    return np.einsum(
        "...snh,nsr->...rnh", x, np.broadcast_to(projection, (N, *projection.shape[-2:]))[:, : x.shape[-3]]
    )


def unmix(d_mixtures, x, projection):
    """The gradients of `mix` with respect to `x` and `projection`."""
    spread = np.broadcast_to(projection, (N, *projection.shape[-2:]))[:, : x.shape[-3]]
    d_x = oracle._gather(np.einsum("...rnh,nsr->...snh", d_mixtures, spread), x)
    d_projection = np.einsum("bsnh,brnh->nsr", np.repeat(x, N // x.shape[-2], axis=-2), d_mixtures)
    d_projection = np.pad(d_projection, [(0, 0), (0, projection.shape[-2] - x.shape[-3]), (0, 0)])
    return d_x, oracle.sum_to(d_projection, projection.shape)


def definition(query, key, value, key_projection, value_projection, cotangent):
    """Output and gradients, by hand."""
    keys, values = mix(key, key_projection), mix(value, value_projection)
    out, _ = oracle.attention(query, keys, values)
    d_query, d_keys, d_values, _ = oracle.gradients(query, keys, values, 0.0, cotangent)
    (d_key, d_first), (d_value, d_second) = unmix(d_keys, key, key_projection), unmix(d_values, value, value_projection)
    return out, d_query, d_key, d_value, d_first, d_second


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("heads", [((), ()), ((N,), (N,)), ((), (N,))], ids=["shared", "a head each", "mixed"])
@pytest.mark.parametrize("rows", [S, S + 4], ids=["fits", "short input"])
def test_equals_the_definition(heads, rows, implementation):
    query, key, value, cotangent, _ = oracle.inputs(T, S, N, K)
    arrays = [query, key, value, projections(heads[0], rows)[0], projections(heads[1], rows)[1]]
    fn = functools.partial(linformer_attention, implementation=implementation)
    out, gradients = oracle.value_and_vjp(fn, arrays, cotangent)
    oracle.assert_exact((out, *gradients), definition, *arrays, cotangent)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masked_keys_have_no_influence(implementation):
    """On the output, and on all gradients, those of the projections included; the query may be NaN with them."""
    *arrays, cotangent, _ = oracle.inputs(S, S, N, K)
    key_mask = np.random.default_rng(3).random((2, S)) < 0.6
    key_mask[1] = False
    at = ~key_mask[..., None, None]
    cotangent[:1] = np.where(at[:1], 0, cotangent[:1])

    def run(fill):
        changed = [np.where(at, np.float32(fill), x) for x in arrays]
        fn = functools.partial(linformer_attention, key_mask=key_mask, implementation=implementation)
        out, pullback = jax.vjp(fn, *changed, *projections())
        return [np.asarray(x) for x in (out, *pullback(cotangent))]

    expected = run(0)
    for fill in (7, np.nan, np.inf):
        for i, (got, want) in enumerate(zip(run(fill), expected, strict=True)):
            real = key_mask if i < 4 else slice(None)  # outputs and query gradients of masked rows are unspecified
            np.testing.assert_array_equal(got[real], want[real])
            assert i not in (2, 3) or not got[~key_mask].any()
    out, d_query, *_ = expected
    assert not out[1].any() and not d_query[1].any()  # nothing to attend, though the cotangent is not 0
    shorter = [x[:1, key_mask[0]] for x in arrays]
    rows = [p[key_mask[0]] for p in projections()]
    exact, low = (oracle.attention(q, mix(k, rows[0]), mix(v, rows[1]))[0] for q, k, v in
                  (oracle.as_float64(shorter), shorter))  # fmt: skip
    np.testing.assert_allclose(out[:1, key_mask[0]], exact, rtol=0, atol=8 * np.abs(low - exact).max() + oracle.ULP)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_identity_is_exact_attention(implementation):
    """At full rank, and with any order of the mixtures."""
    query, key, value, cotangent, _ = oracle.inputs(T, S, N, K)
    order = np.eye(S, dtype=np.float32)[np.random.default_rng(0).permutation(S)]
    fn = functools.partial(linformer_attention, implementation=implementation)
    for projection in (np.eye(S, dtype=np.float32), order):
        same = dict(key_projection=projection, value_projection=projection)
        out, gradients = oracle.value_and_vjp(functools.partial(fn, **same), [query, key, value], cotangent)
        oracle.assert_exact(out, lambda *a: oracle.attention(*a)[0], query, key, value)
        oracle.assert_exact(gradients, lambda *a: oracle.gradients(*a[:3], 0.0, a[3])[:3], query, key, value, cotangent)


def pooling(length, mixtures):
    """`[S, R]`: mixture r is the mean of the r-th block of S / R tokens."""
    return np.kron(np.eye(mixtures), np.ones((length // mixtures, 1))) * mixtures / length


def test_mean_pooling_is_exact_where_blocks_are_constant():
    query, key, value, _, _ = oracle.inputs(T, R, N, K)
    repeated = [np.repeat(x, 4, axis=1) for x in (key, value)]
    out = linformer_attention(query, *repeated, *[pooling(4 * R, R).astype(np.float32)] * 2)
    oracle.assert_exact(out, lambda *a: oracle.attention(*a)[0], query, *repeated)


def test_error_of_mean_pooling_falls_with_the_square_of_the_rank():
    """For keys and values smooth along the length a block differs from its mean by O(1 / R), to first order evenly.

    So the first order cancels in each block's sum of exponentials, and the error against exact attention is O(R ** -2).
    """
    length, ranks = 1024, np.array([16, 64, 256])
    rng = np.random.default_rng(0)
    waves = rng.standard_normal((2, 8, 2 * 4)), rng.uniform(0, 2 * np.pi, (2, 8, 1))
    angles = 2 * np.pi * np.arange(1, 9)[:, None] / 4 * np.arange(length) / length + waves[1]
    key, value = np.einsum("xwf,xws->xsf", waves[0], np.sin(angles)).reshape(2, 1, length, 2, 4)
    query = rng.standard_normal((1, 7, 2, 4))
    exact, _ = oracle.attention(query, key, value)
    errors = []
    with jax.enable_x64(True):
        for rank in ranks:
            out = linformer_attention(query, key, value, *[pooling(length, int(rank))] * 2)
            errors.append(np.sqrt(((np.asarray(out) - exact) ** 2).mean()))
    assert abs(np.polyfit(np.log(ranks), np.log(errors), 1)[0] + 2) < 0.2
    assert errors[-1] < 1e-3 * exact.std()


def test_every_token_reaches_every_row():
    """Why there is no causal form: the last key changes the first row."""
    *arrays, _, _ = oracle.inputs(S, S, N, K)
    out = linformer_attention(*arrays, *projections())
    arrays[1][:, -1] += 1
    assert (np.asarray(linformer_attention(*arrays, *projections()))[:, 0] != out[:, 0]).any()


def test_dtypes():
    *arrays, _, _ = oracle.inputs(T, S, N, K)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (*arrays, *projections())]
    out = linformer_attention(*half)
    assert out.dtype == jnp.bfloat16
    exact = linformer_attention(*(x.astype(jnp.float32) for x in half))
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, rtol=2.0**-8, atol=64 * oracle.ULP)
    with jax.enable_x64(True):
        double = oracle.as_float64((*arrays, *projections()))
        out = linformer_attention(*double)
        exact, _ = oracle.attention(double[0], *(mix(x, p) for x, p in zip(double[1:3], double[3:], strict=True)))
        assert out.dtype == np.float64
        np.testing.assert_allclose(out, exact, rtol=0, atol=64 * 2.0**-53 * np.abs(exact).max())


def test_transforms():
    """jit, vmap, remat and grad at once equal the batch, and one token without batch dimensions is as it should be."""
    *arrays, cotangent, _ = oracle.inputs(T, S, N, K)
    shared = projections()
    key_mask = np.random.default_rng(2).random((2, S)) < 0.7

    def attend(query, key, value, mask):
        return linformer_attention(query, key, value, *shared, key_mask=mask)

    mapped = jax.checkpoint(jax.vmap(attend))
    batch = oracle.value_and_vjp(lambda *a: attend(*a, key_mask), arrays, cotangent)
    for got, want in zip(
        jax.tree.leaves(oracle.value_and_vjp(lambda *a: mapped(*a, key_mask), arrays, cotangent)),
        jax.tree.leaves(batch),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP * np.abs(want).max())
    one = np.ones((1, 1), np.float32)
    out = linformer_attention(*(x[0, :1] for x in arrays), one, one)
    np.testing.assert_allclose(out, np.repeat(arrays[2][0, :1], N // K, axis=-2), rtol=4 * oracle.ULP)


def test_dropout_is_of_the_weights():
    """Whole weights vanish and the others grow, so that the mean over many draws is the output without."""
    *arrays, _, _ = oracle.inputs(T, S, N, K)
    mean = np.ones((S, 1), np.float32) / S  # one mixture, of weight 1: a row is 0 or its double
    plain = np.asarray(linformer_attention(*arrays, mean, mean))
    dropped = np.asarray(linformer_attention(*arrays, mean, mean, dropout_rate=0.5, rng=jax.random.key(0)))
    kept = dropped.any(-1)
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=4 * oracle.ULP)
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)


@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_cost_is_linear_in_length(differentiate):
    """Compiled FLOPs and temporary bytes, of the dense form: it has no loop, whose body XLA would count once."""
    lengths, width, rank = 1024 * 2 ** np.arange(4), 16, 32

    def loss(query, key, value, *projections):
        out = linformer_attention(query, key, value, *projections, implementation="reference")
        return (out * out).sum()  # the plain sum could be differentiated without the output

    fn = jax.grad(loss, range(5)) if differentiate else loss
    costs = []
    for length in lengths:
        shapes = [(1, length, 2, width)] * 3 + [(length, rank)] * 2
        compiled = jax.jit(fn).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
        costs.append((compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes))
    flops, temporary = np.array(costs).T
    for amounts in (flops, temporary):
        assert abs(exponent(lengths, amounts) - 1) < 0.15
    # Four products of R H multiply-adds a token and head, twice as many on the way back; the softmax is the rest.
    promised = 2 * 2 * 4 * rank * width * (3 if differentiate else 1)
    assert promised <= flops[-1] / lengths[-1] <= 1.35 * promised


QUERY, KEY, VALUE, *_ = oracle.inputs(T, S, N, K)
WRONG = {
    "rank": ({"key_projection": np.ones(S, np.float32)}, r"key_projection: wanted \[S', R\] or \[N, S', R\] with N = 6"),
    "length": ({"value_projection": np.ones((S - 1, R), np.float32)}, r"value_projection: .*S' >= S = 13 .*got \(12, 5\)"),
    "heads": ({"key_projection": np.ones((K, S, R), np.float32)}, r"key_projection: .*got \(3, 13, 5\)"),
    "no mixtures": ({"key_projection": np.ones((S, 0), np.float32)}, "key_projection: .*R >= 1"),
    "integers": ({"key_projection": np.ones((S, R), int)}, "key_projection: wanted a float dtype, got int"),
    "mixtures": ({"value_projection": np.ones((S, 4), np.float32)}, "value_projection: wanted as many .*R = 5, got 4"),
    "key": ({"key": KEY[..., :2]}, "key: wanted query's head width 5, got 2"),
    "key_mask": ({"key_mask": np.ones((2, T), bool)}, "key_mask: wanted shape"),
    "dropout": ({"dropout_rate": 0.1}, "rng: wanted a jax.random.key"),
    "implementation": ({"implementation": "fast"}, "implementation"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(wrong):
    arguments, message = WRONG[wrong]
    given = dict(query=QUERY, key=KEY, value=VALUE) | dict(
        zip(("key_projection", "value_projection"), projections(), strict=True)
    )
    with pytest.raises(ValueError, match=message):
        linformer_attention(**given | arguments)


@pytest.mark.parametrize("name", ["causal", "is_causal", "mask", "query_segment_ids"])
def test_what_mixing_rules_out_is_no_argument(name):
    with pytest.raises(TypeError, match=name):
        linformer_attention(QUERY, KEY, VALUE, *projections(), **{name: True})
