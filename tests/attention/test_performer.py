"""Performer: published numbers, the dense kernel, stabilisers that do not leak, state, the laws of its error, cost."""

import functools
import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_scaling import exponent

from attention.performer import EPSILON, PerformerState, performer_attention, performer_projection

T, N, K, H, M = 13, 6, 3, 5, 11
KERNELS = ["softmax", "relu"]
PROJECTION = np.random.default_rng(5).standard_normal((M, H), np.float32)
*ARRAYS, D_OUT, _ = oracle.inputs(T, None, N, K)
REAL = np.ones((2, T), bool)
MASK = np.random.default_rng(1).random((2, T)) < 0.6
IDS = np.array([[0] * 5 + [1] * 6 + [-1] * 2, [-1, -1] + [4] * 4 + [-1] + [4] * 2 + [2] * 4])

every_kernel = pytest.mark.parametrize("kernel", KERNELS)
causal_or_not = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def weights(query, key, projection, allowed, *, kernel="softmax", epsilon=None, overlooks=False):
    """phi(q_i) . phi(k_j) `[..., N, T, S]`, and what its gradient takes, from the definition.

    The stabiliser of the keys is the largest w . k that row i sees, so every row has features of its own for the keys.
    It `overlooks` what is allowed if it is taken over all keys, as in the authors' code.
    """
    epsilon = query.dtype.type(EPSILON[kernel] if epsilon is None else epsilon)
    root = query.dtype.type(query.shape[-1] ** -0.25)
    query, key = (np.swapaxes(x, -2, -3) * root for x in (query, np.repeat(key, query.shape[-2] // key.shape[-2], -2)))
    left, right = query @ projection.T, (key @ projection.T)[..., None, :, :]  # [..., N, T, M], [..., N, 1, S, M]
    if kernel == "relu":
        plain = np.maximum(left, 0), np.maximum(right, 0)
    else:
        seen = np.where(np.True_ if overlooks else allowed, right.max(-1), -np.inf).max(-1)[..., None, None]
        seen = np.where(np.isfinite(seen), seen, 0)
        half = (key**2).sum(-1)[..., None, :, None] / 2
        plain = (
            np.exp(left - (query**2).sum(-1, keepdims=True) / 2 - left.max(-1, keepdims=True)),
            np.exp(np.where(allowed[..., None], right - half - seen, -np.inf)),
        )
    features = [x + epsilon for x in plain]
    score = np.einsum("...im,...ijm->...ij", *features)
    return np.where(allowed, score, 0), (query, key, plain, features, root)


def definition(query, key, value, projection, allowed, **settings):
    weight, _ = weights(query, key, projection, allowed, **settings)
    total = weight.sum(-1, keepdims=True)
    return np.einsum("...nts,...snv->...tnv", weight / np.where(total == 0, 1, total), oracle._spread(value, query))


def definition_vjp(query, key, value, projection, cotangent, allowed, *, kernel, **settings):
    """Output and gradients by hand; the stabilisers are constants."""
    weight, (left, right, plain, features, root) = weights(query, key, projection, allowed, kernel=kernel, **settings)
    spread = oracle._spread(value, query)
    total = weight.sum(-1, keepdims=True)
    total = np.where(total == 0, 1, total)
    out = np.einsum("...nts,...snv->...tnv", weight / total, spread)
    change = np.einsum("...tnv,...snv->...nts", cotangent, spread)
    change = (change - np.swapaxes((cotangent * out).sum(-1), -1, -2)[..., None]) * allowed / total
    slopes = [x > 0 for x in plain] if kernel == "relu" else plain
    to_left = np.einsum("...ij,...ijm->...im", change, features[1]) * slopes[0]
    to_right = np.einsum("...ij,...im,...ijm->...jm", change, features[0], slopes[1])
    d_projection = sum(np.einsum("bntm,bnth->mh", g, x) for g, x in ((to_left, left), (to_right, right)))
    halves = 0 if kernel == "relu" else 1
    d_query, d_key = (
        np.swapaxes(g @ projection - halves * g.sum(-1, keepdims=True) * x, -2, -3) * root
        for g, x in ((to_left, left), (to_right, right))
    )
    d_value = oracle._gather(np.einsum("...nts,...tnv->...snv", weight / total, cotangent), value)
    return out, d_query, oracle._gather(d_key, key), d_value, d_projection


def pairs(key_mask=REAL, ids=None, causal=False):
    """Which pairs may attend, `[2, 1, T, T]`."""
    allowed = key_mask[:, None] & (np.tri(T, dtype=bool) | (not causal))
    if ids is not None:
        allowed = allowed & (ids[:, :, None] == ids[:, None]) & (ids >= 0)[:, None]
    return allowed[:, None]


@functools.cache
def program(kernel, causal, packed, **settings):
    """The compiled output and gradients, of the projection too; masks and ids are data."""

    @jax.jit
    def run(arrays, projection, d_out, key_mask, ids):
        ids = dict(query_segment_ids=ids, key_segment_ids=ids) if packed else {}

        def attend(*arrays):
            masks = dict(key_mask=key_mask, chunk_size=4) | ids
            return performer_attention(*arrays, kernel=kernel, causal=causal, **masks, **settings)

        out, pullback = jax.vjp(attend, *arrays, projection)
        return out, *pullback(d_out)

    return run


def run(kernel, causal, arrays=ARRAYS, d_out=D_OUT, key_mask=REAL, ids=None, **settings):
    fn = program(kernel, causal, ids is not None, **settings)
    return [np.asarray(x) for x in fn(arrays, PROJECTION, d_out, key_mask, 0 if ids is None else ids)]


def at(tokens, x, fill):
    return np.where(tokens[..., None, None], np.float32(fill), x)


@every_kernel
def test_published_values_and_gradients(kernel):
    arrays, meta = golden.load(f"performer_{kernel}")
    given, gradients = ([golden.heads_inside(arrays[f"{at}.{x}"]) for x in "qkv"] for at in ("in", "grad.in"))
    attend = functools.partial(performer_attention, projection=arrays["b.projection_matrix"], kernel=kernel)
    cotangent, out = (golden.heads_inside(arrays[name]) for name in ("cot", "out"))
    golden.assert_matches(attend, given, cotangent, out, gradients, meta["f32_vs_f64_max_abs"])


@every_kernel
def test_published_causal_values_and_gradients(kernel):
    """The peer's causal form is ours with a past: its two departures are a state before the first token.

    It adds 1e-6 to every sum of key features, which carry a factor M ** -0.5 there and none here; and it takes the
    stabiliser of the keys over all of them, so that from the first row on the largest exponent is already known.
    Without that state the outputs differ, and by more than the noise.
    """
    arrays, meta = golden.load(f"performer_{kernel}_causal")
    given, gradients = ([golden.heads_inside(arrays[f"{at}.{x}"]) for x in "qkv"] for at in ("in", "grad.in"))
    projection = arrays["b.projection_matrix"]
    (B, _, heads, width), features = given[0].shape, projection.shape[0]
    if kernel == "softmax":
        highest, added = (given[1] * width**-0.25 @ projection.T).max((1, 3)), 1e-6 * features**0.5
    else:
        highest, added = np.zeros((B, heads)), 1e-6
    past = PerformerState(
        sums=np.zeros((B, heads, features, width)),
        normalizer=np.full((B, heads, features), added),
        values=np.zeros((B, heads, width)),
        count=np.zeros((B, heads)),
        maximum=highest,
    )
    attend = functools.partial(performer_attention, projection=projection, kernel=kernel, causal=True, chunk_size=7)
    cotangent, out = (golden.heads_inside(arrays[name]) for name in ("cot", "out"))
    noise = meta["f32_vs_f64_max_abs"]
    golden.assert_matches(functools.partial(attend, initial_state=past), given, cotangent, out, gradients, noise)
    assert np.abs(attend(*given) - out).max() > 10 * noise


@every_kernel
@causal_or_not
@pytest.mark.parametrize("masks", [{}, {"key_mask": MASK}, {"ids": IDS}, {"ids": IDS, "key_mask": MASK}], ids=str)
def test_equals_the_dense_kernel(kernel, causal, masks):
    """Grouped heads, odd lengths; what is hidden is NaN."""
    hidden = ~masks.get("key_mask", REAL) | (masks.get("ids", np.zeros(1)) < 0)
    query, key, value = ARRAYS
    poisoned = [query, at(hidden, key, np.nan), at(hidden, value, np.inf)]
    got = run(kernel, causal, poisoned, **masks)
    allowed = pairs(**masks, causal=causal)
    oracle.assert_exact(got, lambda *a: definition_vjp(*a, allowed, kernel=kernel), *ARRAYS, PROJECTION, D_OUT)
    assert not got[2][hidden].any() and not got[3][hidden].any()
    assert not got[0][~np.broadcast_to(allowed.any((1, 3)), (2, T))].any()


@every_kernel
def test_cross_attention(kernel):
    query, key, value, cotangent, _ = oracle.inputs(3, T, N, K)
    fn = functools.partial(performer_attention, kernel=kernel)
    out, gradients = oracle.value_and_vjp(fn, [query, key, value, PROJECTION], cotangent)
    allowed = np.ones((1, 1, 3, T), bool)
    want = functools.partial(definition_vjp, allowed=allowed, kernel=kernel)
    oracle.assert_exact((out, *gradients), want, query, key, value, PROJECTION, cotangent)


@every_kernel
@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_chunks_change_nothing(kernel, chunk_size):
    attend = jax.jit(functools.partial(performer_attention, kernel=kernel, causal=True, chunk_size=chunk_size))
    out = attend(*ARRAYS, PROJECTION)
    oracle.assert_exact(out, lambda *a: definition(*a, pairs(causal=True), kernel=kernel), *ARRAYS, PROJECTION)


@every_kernel
@causal_or_not
def test_hidden_and_other_documents_have_no_influence(kernel, causal):
    """Bit for bit, on outputs and on all gradients, those of the projection included."""
    d_out = at(~MASK, D_OUT, 0)
    for given, hidden in (({"key_mask": MASK}, ~MASK), ({"ids": IDS}, IDS < 0)):
        want = run(kernel, causal, d_out=d_out, **given)
        for fill in (50, np.nan, np.inf):
            got = run(kernel, causal, [at(hidden, x, fill) for x in ARRAYS], d_out, **given)
            for x, y in zip(got[:4], want, strict=False):
                np.testing.assert_array_equal(x[~hidden], y[~hidden])
            np.testing.assert_array_equal(got[4], want[4])
    want = run(kernel, causal, ids=IDS)
    for document in (0, 1, 2, 4):
        inside = IDS == document
        for factor in (50, 0.02):  # its stabiliser rises, its stabiliser falls
            got = run(kernel, causal, [np.where(inside[..., None, None], factor * x, x) for x in ARRAYS], ids=IDS)
            for x, y in zip(got[:4], want, strict=False):
                np.testing.assert_array_equal(x[~inside], y[~inside])
            assert (got[0][inside] != want[0][inside]).any()


def test_a_later_key_does_not_move_the_stabiliser_of_earlier_rows():
    """It does in the authors' code, and epsilon makes it show; here nothing moves, bit for bit."""
    louder = [ARRAYS[0], ARRAYS[1].copy(), ARRAYS[2]]
    louder[1][:, -1] *= 8
    early = slice(0, T - 1)
    before, after = (
        definition(*oracle.as_float64([*arrays, PROJECTION]), pairs(causal=True), overlooks=True)[:, early]
        for arrays in (ARRAYS, louder)
    )
    assert np.abs(after - before).max() > 0.1
    for kernel in KERNELS:
        out, moved = run(kernel, True), run(kernel, True, louder)
        np.testing.assert_array_equal(moved[0][:, early], out[0][:, early])
        assert (moved[0][:, -1] != out[0][:, -1]).any()
        late = at(np.broadcast_to(np.arange(T) >= T - 2, (2, T)), D_OUT, 0)
        assert not any(x[:, T - 2 :].any() for x in run(kernel, True, d_out=late)[1:4])


@every_kernel
@causal_or_not
def test_rows_with_nothing_to_attend_are_zero(kernel, causal):
    key_mask = np.array([[True], [False]]) & (np.arange(T) >= 4)
    got = run(kernel, causal, key_mask=key_mask)
    want = functools.partial(definition_vjp, allowed=pairs(key_mask, causal=causal), kernel=kernel)
    oracle.assert_exact(got, want, *ARRAYS, PROJECTION, D_OUT)
    for x in got[:4]:
        assert not x[1].any() and x[0, 5:].any()
        assert not causal or not x[0, :4].any()


@every_kernel
@causal_or_not
def test_any_magnitude_stays_finite(kernel, causal):
    """Exponents of some thousands, rising and falling: at the worst every weight is epsilon's."""
    swell = 300 * np.float32([0, 0, 1, 0.1, 0.01, 2, 1, 1, 0, 5, 1, 0.5, 3])[:, None, None]
    arrays = [ARRAYS[0], ARRAYS[1] * swell, ARRAYS[2]]
    for x in run(kernel, causal, arrays):
        assert np.isfinite(x).all()
    loud = run(kernel, causal, [x * 300 for x in ARRAYS])
    assert np.isfinite(loud[0]).all() and np.abs(loud[0]).max() <= 300 * np.abs(ARRAYS[2]).max() * (1 + 64 * oracle.ULP)
    zero = run(kernel, causal, [ARRAYS[0] * 1e4, *ARRAYS[1:]], epsilon=0.0)[0]
    assert np.isfinite(zero).all() and (kernel == "relu" or not zero.any())  # exp underflows, relu does not


@functools.cache
def in_parts(kernel, *cuts):
    """Output, last state and gradients of a causal pass, cut before some tokens with the state handed over."""
    key_mask = np.arange(T) % 4 != 0  # the first token is hidden: a first part of length 1 holds no key at all
    settings = dict(kernel=kernel, causal=True, chunk_size=4, return_state=True)

    def attend(query, key, value, projection):
        state, outs = None, []
        for start, stop in zip((0, *cuts), (*cuts, T), strict=True):
            part = [x[:, start:stop] for x in (query, key, value)]
            masks = dict(key_mask=key_mask[start:stop], initial_state=state)
            out, state = performer_attention(*part, projection, **masks, **settings)
            outs.append(out)
        return jnp.concatenate(outs, axis=1), state

    @jax.jit
    def run(*arrays):
        out, pullback, state = jax.vjp(attend, *arrays, has_aux=True)
        return out, state, pullback(D_OUT)

    return run(*ARRAYS, PROJECTION)


@every_kernel
@pytest.mark.parametrize("cuts", [(1,), (6, 7)], ids=str)
def test_state_hand_over(kernel, cuts):
    """Parts with a state between are the whole: outputs, last state, and gradients through the state."""
    whole, parts = in_parts(kernel), in_parts(kernel, *cuts)
    for got, want in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP * np.abs(want).max())
    _, state, _ = parts
    assert [x.shape for x in state] == [(2, K, M, 7), (2, K, M), (2, K, 7), (2, K), (2, K)]
    assert all(x.dtype == jnp.float32 for x in state)
    np.testing.assert_array_equal(state.count, 9)


@every_kernel
def test_the_state_of_all_keys_is_the_state_after_the_last(kernel):
    full, causal = (
        performer_attention(*ARRAYS, PROJECTION, kernel=kernel, causal=causal, key_mask=MASK, return_state=True)[1]
        for causal in (False, True)
    )
    for got, want in zip(full, causal, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=32 * oracle.ULP * np.abs(want).max())


def test_scale_and_epsilon():
    """A scale is a factor on q . k; features of one epsilon more are what the definition says."""
    query, key, value = ARRAYS
    twice = performer_attention(query, key, value, PROJECTION, scale=4 * H**-0.5)
    np.testing.assert_array_equal(twice, performer_attention(2 * query, 2 * key, value, PROJECTION))
    for kernel in KERNELS:
        out = performer_attention(*ARRAYS, PROJECTION, kernel=kernel, epsilon=0.3)
        want = functools.partial(definition, allowed=pairs(), kernel=kernel, epsilon=0.3)
        oracle.assert_exact(out, want, *ARRAYS, PROJECTION)


@causal_or_not
def test_dtypes(causal):
    attend = functools.partial(performer_attention, causal=causal, chunk_size=4, return_state=True)
    half = [jnp.asarray(x, jnp.bfloat16) for x in ARRAYS]
    out, state = attend(*half, PROJECTION)
    assert out.dtype == jnp.bfloat16 and {x.dtype for x in state} == {jnp.dtype("float32")}
    exact, _ = attend(*(x.astype(jnp.float32) for x in half), PROJECTION)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, rtol=2.0**-8, atol=64 * oracle.ULP)
    with jax.enable_x64(True):
        double = oracle.as_float64([*ARRAYS, PROJECTION])
        out, state = attend(*double)
        assert {x.dtype for x in (out, *state)} == {jnp.dtype("float64")}
        exact = definition(*double, pairs(causal=causal))
        np.testing.assert_allclose(out, exact, rtol=0, atol=256 * 2.0**-53 * np.abs(exact).max())


@causal_or_not
def test_transforms(causal):
    """vmap and remat equal the batch; a projection for each batch entry goes by vmap."""
    attend = functools.partial(performer_attention, causal=causal, chunk_size=4)
    mapped = jax.checkpoint(jax.vmap(attend, in_axes=(0, 0, 0, None)))
    out, gradients = oracle.value_and_vjp(mapped, [*ARRAYS, PROJECTION], D_OUT)
    for got, want in zip((out, *gradients), run("softmax", causal), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * oracle.ULP * np.abs(want).max())
    one = attend(*(x[0, :1] for x in ARRAYS), PROJECTION)
    np.testing.assert_allclose(one, np.repeat(ARRAYS[2][0, :1], N // K, -2), rtol=8 * oracle.ULP)


def test_a_query_that_is_not_finite_spoils_its_own_row():
    query = ARRAYS[0].copy()
    query[0, 3, 2, 1] = np.inf
    d_out = D_OUT.copy()
    d_out[0, 3, 2] = 0
    for causal in (False, True):
        got, want = run("softmax", causal, [query, *ARRAYS[1:]], d_out), run("softmax", causal, d_out=d_out)
        assert np.isnan(got[0][0, 3, 2]).all() and np.isfinite(got[0]).sum() == got[0].size - 7
        for x, y in zip(got[1:], want[1:], strict=True):
            np.testing.assert_array_equal(x, y)


# The projection.


def gram(rows):
    return np.asarray(rows, np.float64) @ np.asarray(rows, np.float64).T


@pytest.mark.parametrize("features, width", [(11, 5), (16, 16), (3, 7), (1, 1)])
def test_rows_are_orthogonal_in_blocks(features, width):
    rows = np.asarray(performer_projection(jax.random.key(3), features, width))
    assert rows.shape == (features, width) and rows.dtype == np.float32
    for start in range(0, features, width):
        block = rows[start : start + width]
        lengths = np.linalg.norm(block, axis=-1)
        inner = gram(block / lengths[:, None])
        np.testing.assert_allclose(inner, np.eye(len(block)), rtol=0, atol=4 * width * oracle.ULP)
    even = np.asarray(performer_projection(jax.random.key(3), features, width, regularized=True))
    np.testing.assert_allclose(np.linalg.norm(even, axis=-1), width**0.5, rtol=8 * oracle.ULP)
    np.testing.assert_allclose(even / width**0.5 * np.linalg.norm(rows, axis=-1, keepdims=True), rows, rtol=1e-5)


def test_published_projections_have_the_same_properties():
    """What holds for ours holds for the peer's, by the same measure."""
    arrays, _ = golden.load("performer_projection")
    for scaling, regularized in ((0, False), (1, True)):
        ours = performer_projection(jax.random.key(0), 32, 16, regularized=regularized)
        for rows in (arrays[f"aux.scaling{scaling}"], ours):
            for block in np.split(np.asarray(rows), 2):
                off = gram(block) - np.diag(np.diag(gram(block)))
                assert np.abs(off).max() < 32 * 16 * oracle.ULP
            squares = np.diag(gram(rows))
            spread = 4 * np.sqrt(2 * 16 / 32)  # the mean of 32 chi-squares of 16 degrees, four standard errors
            assert abs(squares.mean() - 16) < (16 * 16 * oracle.ULP if regularized else spread)
            assert (squares.std() < 1e-4) == regularized


@pytest.mark.parametrize("orthogonal", [False, True])
def test_every_row_is_gaussian(orthogonal):
    """By its moments over many draws: each entry, each norm, and the place of a direction whatever its sign in QR."""
    draws, features, width = 4000, 5, 3
    keys = jax.random.split(jax.random.key(0), draws)
    draw = functools.partial(performer_projection, num_features=features, head_dim=width, orthogonal=orthogonal)
    rows = np.asarray(jax.jit(jax.vmap(draw))(keys), np.float64)
    error = 4.5 / np.sqrt(draws)  # 45 comparisons: 4.5 standard errors
    assert np.abs(rows.mean(0)).max() < error
    assert np.abs((rows**2).mean(0) - 1).max() < error * np.sqrt(2)
    assert np.abs((rows**4).mean(0) - 3).max() < error * np.sqrt(96)
    squares = (rows**2).sum(-1)
    assert np.abs(squares.mean(0) - width).max() < error * np.sqrt(2 * width)
    assert np.abs(((squares - width) ** 2).mean(0) - 2 * width).max() < error * np.sqrt(
        12 * width * (width + 4) - 4 * width**2
    )
    products = np.einsum("dmh,dnh->dmn", rows, rows)
    assert (np.abs(products[:, 0, 1]).max() < 1e-4) == orthogonal and np.abs(products[:, 0, 4]).max() > 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rng": None}, "rng: wanted a typed key from jax.random.key, got NoneType"),
        ({"rng": np.zeros(2, np.uint32)}, "rng: wanted a typed key"),
        ({"num_features": 0}, "num_features: wanted an int >= 1, got 0"),
        ({"head_dim": 2.0}, "head_dim: wanted an int >= 1, got 2.0"),
    ],
)
def test_projection_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        performer_projection(**{"rng": jax.random.key(0), "num_features": 4, "head_dim": 2} | arguments)


# The laws of the error.


def estimates(x, y, features, draws, kernel="softmax", **settings):
    """Estimates of the kernel of x and y, one a draw of the projection, from the state after one key."""

    def draw(rng):
        projection = performer_projection(rng, features, len(x), **settings)

        def phi(x):
            key = x[None, None]
            _, state = performer_attention(key, key, key, projection, kernel=kernel, scale=1.0, return_state=True)
            return state.normalizer[0] * jnp.exp(state.maximum if kernel == "softmax" else 0)

        return (phi(jnp.float32(x)) * phi(jnp.float32(y))).mean()

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(7), draws)), np.float64)


def assert_mean(samples, want, errors=4):
    """The mean of the samples is `want`, within so many standard errors."""
    assert abs(samples.mean() - want) < errors * samples.std() / np.sqrt(len(samples))


def pair(square_of_sum, width=4):
    """Two vectors with the given |x + y|^2, and |x - y|^2 = 1."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
    return [(np.sqrt(square_of_sum) * basis[0] + sign * basis[1]) / 2 for sign in (1, -1)]


@pytest.mark.parametrize("square", [0.25, 1.0])
def test_kernel_error_of_independent_features(square):
    """Unbiased, with the variance of Choromanski et al. 2021, Lemma 2."""
    x, y = pair(square)
    softmax = np.exp(x @ y)
    found = estimates(x, y, 8, 40000, orthogonal=False)
    assert_mean(found, softmax)
    assert_mean((found - softmax) ** 2, np.exp(square) * softmax**2 * (1 - np.exp(-square)) / 8)


@pytest.mark.parametrize("square", [0.25, 1.0])
def test_kernel_error_of_orthogonal_features(square):
    """Unbiased, and smaller by exactly what two orthogonal rows share: a closed form, beside the bound of Theorem 2.

    The square of a row's coordinate along x + y is r^2 s, r^2 chi-square with d degrees and independent of s. Two rows of
    one rotation have (s, s') as two coordinates of Dirichlet(1/2, ..., 1/2), whose moments follow from rising
    factorials; the series of exp then gives the covariance of two features.
    """
    width = features = 4
    x, y = pair(square, width)
    softmax, apart = np.exp(x @ y), np.exp(-(x @ x + y @ y) / 2)

    def rising(a):
        return math.gamma(width / 2 + a) / math.gamma(width / 2)

    covariance = apart**2 * sum(
        (square / 2) ** (a + b) / (math.factorial(a) * math.factorial(b)) * (rising(a) * rising(b) / rising(a + b) - 1)
        for a in range(25)
        for b in range(25)
    )
    independent = np.exp(square) * softmax**2 * (1 - np.exp(-square)) / features
    exact = independent + (1 - 1 / features) * covariance
    assert exact <= independent - (1 - 1 / features) * 2 / (width + 2) * (softmax - apart) ** 2
    found = estimates(x, y, features, 200000)
    assert_mean(found, softmax)
    assert_mean((found - softmax) ** 2, exact)
    if square == 1:  # and the draws are enough to tell the two apart
        errors = (found - softmax) ** 2
        assert errors.mean() + 4 * errors.std() / np.sqrt(len(errors)) < independent


def test_positive_features_beat_trigonometric_ones_where_weights_are_small():
    """Lemma 2 again: sin and cos have the error that matters at small weights, up to signs; ours vanishes with them."""
    x = np.array([0.9, -0.3, 0.6, 0.2])
    y = -1.1 * x
    softmax = np.exp(x @ y)
    rows = np.random.default_rng(0).standard_normal((20000, 8, 4))
    trigonometric = np.exp((x @ x + y @ y) / 2) * np.cos(rows @ (x - y)).mean(-1)
    total, apart = (x + y) @ (x + y), (x - y) @ (x - y)
    assert_mean((trigonometric - softmax) ** 2, np.exp(total) / softmax**2 * (1 - np.exp(-apart)) ** 2 / (2 * 8))
    ours = estimates(x, y, 8, 20000, orthogonal=False)
    assert_mean((ours - softmax) ** 2, np.exp(total) * softmax**2 * (1 - np.exp(-total)) / 8)
    assert ((ours - softmax) ** 2).mean() < 0.01 * ((trigonometric - softmax) ** 2).mean()


def test_relu_features_estimate_the_arc_cosine_kernel():
    """E relu(w . x) relu(w . y) = |x| |y| (sin t + (pi - t) cos t) / (2 pi), t the angle (Cho and Saul 2009, n = 1)."""
    x, y = np.array([0.9, -0.3, 0.6, 0.2]), np.array([0.1, 0.5, 0.7, -0.4])
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    angle = np.arccos(x @ y / norms)
    want = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    for orthogonal in (False, True):
        assert_mean(estimates(x, y, 8, 20000, "relu", orthogonal=orthogonal), want)


@causal_or_not
def test_error_of_the_output_falls_with_the_number_of_features(causal):
    """Against exact softmax attention the squared error falls like 1 / M; orthogonal rows make it smaller."""
    T, width, draws = 16, 8, 64
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((T, 2, width), np.float32) for _ in "qkv")
    # Unit vectors: the variance of a weight grows like exp(|q' + k'|^2), here at most exp(4 / sqrt(8)) = 4, and the law
    # is for where 1 / M of it is small.
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    exact, _ = oracle.attention(*oracle.as_float64([query, key, value]), 0.0, np.tri(T, dtype=bool) | (not causal))

    def error(features, orthogonal):
        def draw(rng):
            projection = performer_projection(rng, features, width, orthogonal=orthogonal)
            return performer_attention(query, key, value, projection, causal=causal, epsilon=0.0)

        out = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), draws))
        return ((np.asarray(out) - exact) ** 2).mean()

    features = np.array([32, 128, 512])
    errors = [error(int(m), False) for m in features]
    assert abs(np.polyfit(np.log(features), np.log(errors), 1)[0] + 1) < 0.2
    assert error(32, True) < errors[0]


# Cost.


def cost(T, causal, differentiate, N=2, H=16, M=32):
    """(reported FLOPs, temporary bytes) of the compiled program."""

    def loss(query, key, value, projection):
        out = performer_attention(query, key, value, projection, causal=causal)
        return (out * out).sum()

    fn = jax.grad(loss, (0, 1, 2)) if differentiate else loss
    shapes = [[1, T, N, H]] * 3 + [[M, H]]
    compiled = jax.jit(fn).lower(*[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@causal_or_not
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_cost_is_linear_in_length(causal, differentiate):
    N, H, M, C = 2, 16, 32, 64
    lengths = 1024 * 2 ** np.arange(4)
    reported, temporary = np.array([cost(int(T), causal, differentiate) for T in lengths]).T
    # XLA counts the body of the scan once. What it reports is body + outside * T, so two lengths tell the parts apart.
    outside = (reported[-1] - reported[0]) / (lengths[-1] - lengths[0])
    body = reported[0] - outside * lengths[0]
    flops = outside * lengths + (body * (lengths // C) if causal else body)
    assert abs(exponent(lengths, flops, constant=False) - 1) < 0.15
    assert abs(exponent(lengths, temporary, constant=False) - 1) < 0.15
    # The products of the docstring. The gradient goes back through each twice, but not to the projection.
    features, sums = 2 * M * H, 2 * M * (H + 1)
    scores = C * M + C * (H + 1) if causal else 0
    promised = 2 * N * ((2 * features + 3 * sums + 4 * scores) if differentiate else features + sums + scores)
    assert promised <= flops[-1] / lengths[-1] <= 1.7 * promised
    # In arrays of features: up to 14 measured, 16 more with a state per token.
    assert temporary[-1] < 16 * 4 * lengths[-1] * N * M


# Refusals.

QUERY, KEY, VALUE = ARRAYS
PAST = performer_attention(*ARRAYS, PROJECTION, return_state=True)[1]
ONE = np.zeros((2, T), np.int32)
WRONG = {
    "projection rank": ({"projection": PROJECTION[0]}, r"projection: wanted \[M, H\] with H = 5"),
    "projection width": ({"projection": PROJECTION[:, :4]}, r"projection: wanted \[M, H\] with H = 5.*got \(11, 4\)"),
    "no features": ({"projection": PROJECTION[:0]}, "projection: .*M >= 1"),
    "projection dtype": ({"projection": PROJECTION.astype(int)}, "projection: wanted a float dtype, got int"),
    "kernel": ({"kernel": "cos"}, "kernel: wanted one of softmax, relu, got 'cos'"),
    "epsilon": ({"epsilon": -1e-3}, "epsilon: wanted a number >= 0, got -0.001"),
    "scale": ({"scale": float("nan")}, "scale: wanted a number >= 0, got nan"),
    "chunk_size": ({"chunk_size": 0}, "chunk_size: wanted an int >= 1, got 0"),
    "causal": ({"causal": True, "key": KEY[:, :7], "value": VALUE[:, :7]}, "causal: wanted one key per query"),
    "state": ({"initial_state": PAST}, "initial_state: needs causal=True"),
    "state shape": ({"initial_state": PAST._replace(count=PAST.values), "causal": True}, "initial_state: wanted sums"),
    "state length": ({"initial_state": PAST[:2], "causal": True}, "initial_state: wanted sums"),
    "ids": ({"query_segment_ids": ONE, "key_segment_ids": ONE + 1}, "key_segment_ids: wanted the same ids"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_refusals(wrong):
    arguments, message = WRONG[wrong]
    given = dict(query=QUERY, key=KEY, value=VALUE, projection=PROJECTION) | arguments
    with pytest.raises(ValueError, match=message):
        performer_attention(**given)


def test_a_state_knows_no_documents():
    with pytest.raises(NotImplementedError, match="drop the segment ids"):
        performer_attention(*ARRAYS, PROJECTION, query_segment_ids=ONE, key_segment_ids=ONE, return_state=True)
