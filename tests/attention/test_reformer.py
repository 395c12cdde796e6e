"""LSH attention: published numbers, the pairs that meet, the law of what is missed, the last resort, cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from golden import assert_matches, load

from attention.reformer import lsh_attention, lsh_buckets, lsh_rotations

N, H, HV = 2, 5, 7
SETTINGS = ("num_hashes", "bucket_size", "num_buckets", "causal", "same_bucket", "correct_duplicates", "dropout_rate")
lsh = jax.jit(lsh_attention, static_argnames=SETTINGS)
VECTORS = ("key_mask", "query_segment_ids", "key_segment_ids")


@pytest.mark.parametrize("case", ["causal", "bidirectional", "padding"])
def test_published_values_and_gradients(case):
    arrays, meta = load(f"reformer_lsh_{case}")
    settings = {name: meta["attrs"][name] for name in ("num_hashes", "num_buckets", "causal")}
    settings |= {name: meta["attrs"][name] for name in ("chunks_before", "chunks_after")}
    settings |= {"bucket_size": meta["attrs"]["chunk_length"], "rotations": arrays["aux.rotations"]}
    heads, shape = meta["attrs"]["num_heads"], arrays["in.x"].shape
    real = arrays["aux.pad_mask"].astype(bool) if case == "padding" else np.ones(shape[:2], bool)

    def split(x, weight):
        return jnp.einsum("ble,fe->blf", x, weight).reshape(*shape[:2], heads, -1)

    def fn(x, to_query_key, to_value):
        given = split(x, to_query_key), split(x, to_value)
        return lsh_attention(*given, key_mask=real if case == "padding" else None, **settings).reshape(shape)

    names = ["in.x", "w.query_key.weight", "w.value.weight"]
    given = [arrays[name] for name in names]
    buckets = np.asarray(lsh_buckets(split(*given[:2]), arrays["aux.rotations"], settings["num_buckets"]))
    offsets = np.arange(settings["num_hashes"]) * (settings["num_buckets"] + (case == "padding"))
    everyone = np.broadcast_to(real[:, None, None], buckets.shape)
    np.testing.assert_array_equal(buckets[everyone], (arrays["aux.buckets"] - offsets[:, None])[everyone])
    # The noise of the other two cases is that of -1e5 in the peer's float32 mask; we write no such number.
    noise = load("reformer_lsh_bidirectional")[1]["f32_vs_f64_max_abs"]
    assert_matches(fn, given, arrays["cot"], arrays["out"], [arrays[f"grad.{name}"] for name in names], noise)


def meetings(buckets, hidden, ids, size, before=1, after=0, same_bucket=False):
    """How often each pair meets, `[N, T, T]`, by walking over the chunks. One batch entry; `buckets [N, rounds, T]`."""
    heads, rounds, T = buckets.shape
    padded = -(-T // size) * size
    count = np.zeros((heads, padded, padded), int)
    for n in range(heads):
        slots = []
        for r in range(rounds):
            bucket = [int(b) if not h else 10**6 for b, h in zip(buckets[n, r], hidden, strict=True)]
            document = [int(d) if d >= 0 else 10**6 for d in ids]
            keys = [(document[t], bucket[t], t) if t < T else (10**7, 10**7, t) for t in range(padded)]
            slots += [(r, keys[t][1], t) for t in sorted(range(padded), key=keys.__getitem__)]
        chunks = [slots[i : i + size] for i in range(0, len(slots), size)]
        for c, chunk in enumerate(chunks):
            for o in range(-before, after + 1):
                for r, bucket, i in chunk:
                    for s, other, j in chunks[(c + o) % len(chunks)]:
                        count[n, i, j] += not same_bucket or (r, bucket) == (s, other)
    return count[:, :T, :T]


def last_resort(query_key, value, d_out, bias, allowed, scale=None):
    """Dense attention with shared, normalised keys; a row without keys is its own value. Output and gradients."""
    rms = 1 / np.sqrt((query_key**2).mean(-1, keepdims=True) + query_key.dtype.type(1e-6))
    key, alone = query_key * rms, ~np.moveaxis(allowed.any(-1), -2, -1)[..., None]
    out, _ = oracle.attention(query_key, key, value, bias, allowed, scale=scale)
    groups = query_key.shape[-2] // value.shape[-2]
    out = np.where(alone, np.repeat(value, groups, axis=-2), out)
    d_query, d_key, d_value, _ = oracle.gradients(
        query_key, key, value, bias, np.where(alone, 0, d_out), 0.0, allowed, scale=scale
    )
    d_value = d_value + np.where(alone, d_out, 0).reshape(*value.shape[:-1], groups, -1).sum(-2).reshape(value.shape)
    d_query = d_query + rms * d_key - query_key * rms**3 * (query_key * d_key).mean(-1, keepdims=True)
    return out, (d_query, d_value)


HIDDEN = np.random.default_rng(3).random((2, 23)) < 0.3
DOCUMENTS = np.array([[1] * 6 + [-1] + [0] * 11 + [7] * 3 + [-2] * 2, [5, 3] * 11 + [-1]])
CASES = {  # length, heads of the values, settings
    "causal": (23, N, {"causal": True}),
    "both_sides": (23, N, {"chunks_after": 1, "scale": 0.3}),
    "no_neighbours": (23, N, {"chunks_before": 0}),
    "one_round_wraps": (7, N, {"num_hashes": 1, "chunks_after": 1}),
    "wraps_far": (11, N, {"num_hashes": 1, "chunks_before": 3, "chunks_after": 4}),
    "shared_values": (16, 1, {"causal": True, "num_hashes": 3}),
    "factors": (23, N, {"num_buckets": (2, 4)}),
    "padded": (23, N, {"key_mask": ~HIDDEN, "causal": True}),
    "padded_and_packed": (
        23, 1, {"key_mask": ~HIDDEN, "query_segment_ids": DOCUMENTS, "key_segment_ids": DOCUMENTS, "chunks_after": 1},
    ),
}  # fmt: skip


COUNTED = [("plain", False, False), ("once", False, True), ("own_bucket_once", True, True)]
COUNTED = [(case, *rest) for case in CASES for rest in COUNTED] + [("both_sides", "own_bucket", True, False)]


@pytest.mark.parametrize("case, name, same_bucket, once", COUNTED, ids=[f"{c[0]}-{c[1]}" for c in COUNTED])
def test_is_dense_attention_over_those_met(case, name, same_bucket, once):
    """Pairs counted once: the union exactly. Else each weighs as often as it meets: log of that added to its score."""
    T, K, given = CASES[case]
    given = {"num_hashes": 2, "bucket_size": 4, "num_buckets": 4} | given
    query_key, _, value, d_out, _ = oracle.inputs(T, None, N, K, H, HV)
    if K < N:
        query_key = oracle.inputs(T, None, N, N, H, HV)[0]
    vectors = {name: given.pop(name) for name in VECTORS if name in given}
    rotations = lsh_rotations(jax.random.key(1), N, H, given["num_hashes"], given["num_buckets"])
    buckets = np.asarray(lsh_buckets(query_key, rotations, given["num_buckets"]))
    ids = vectors.get("query_segment_ids", np.zeros((2, T), int))
    real = vectors.get("key_mask", np.ones((2, T), bool)) & (ids >= 0)
    reach = given.get("chunks_before", 1), given.get("chunks_after", 0), same_bucket
    met = np.stack([meetings(buckets[b], ~real[b], ids[b], given["bucket_size"], *reach) for b in range(2)])
    allowed = (met > 0) & ~np.eye(T, dtype=bool) & (real[:, :, None] & real[:, None])[:, None]
    allowed &= (ids[:, :, None] == ids[:, None])[:, None]
    if given.get("causal"):
        allowed &= np.tri(T, dtype=bool)
    bias = np.log(np.maximum(met, 1)) if not once else np.zeros(met.shape)
    d_out = np.where(real[..., None, None], d_out, 0)  # rows of masked tokens are unspecified

    def attend(query_key, value):
        settings = dict(same_bucket=same_bucket, correct_duplicates=once)
        return lsh_attention(query_key, value, rotations=rotations, **vectors, **given, **settings)

    out, gradients = oracle.value_and_vjp(attend, (query_key, value), d_out)

    def wanted(query_key, value, d_out):
        out, gradients = last_resort(query_key, value, d_out, bias, allowed, given.get("scale"))
        return np.where(real[..., None, None], out, 0), gradients

    value = np.where(real[..., None, None], value, 0)
    oracle.assert_exact((np.where(real[..., None, None], out, 0), gradients), wanted, query_key, value, d_out)


@pytest.mark.parametrize("causal", [False, True])
def test_one_chunk_is_full_attention(causal):
    """Whatever the rounds; and then, nothing depending on hashes, no token sees a later one, bit for bit."""
    query_key, _, value, d_out, _ = oracle.inputs(13, None, N, N, H, HV)
    allowed = ~np.eye(13, dtype=bool) & (np.tri(13, dtype=bool) if causal else True)
    allowed = np.broadcast_to(allowed, (2, N, 13, 13))
    settings = dict(bucket_size=16, num_hashes=3, rng=jax.random.key(0), causal=causal)
    attend = functools.partial(lsh_attention, **settings)
    results = oracle.value_and_vjp(attend, (query_key, value), d_out)
    oracle.assert_exact(results, functools.partial(last_resort, bias=0.0, allowed=allowed), query_key, value, d_out)
    if causal:
        for t in (1, 6, 12):
            late = (np.arange(13) >= t)[:, None, None]
            out = jax.jit(attend)(*(np.where(late, x + 3, x) for x in (query_key, value)))
            np.testing.assert_array_equal(out[:, :t], results[0][:, :t])


def test_itself_only_as_a_last_resort():
    """Then the output is the own value to the last bit, with its gradient; else not a trace of it, at any score."""
    query_key, _, value, d_out, _ = oracle.inputs(13, None, N, N, H, HV)
    settings = dict(num_hashes=2, bucket_size=4, num_buckets=4, rng=jax.random.key(0), causal=True)
    attend = functools.partial(lsh, **settings)
    out, (d_query_key, _) = oracle.value_and_vjp(
        attend, (query_key, value), np.where(np.arange(13)[:, None, None], 0, d_out)
    )
    np.testing.assert_array_equal(out[:, 0], value[:, 0])
    assert not np.asarray(d_query_key).any()
    loud = np.array(value)
    loud[:, 5] *= 1e6
    for scale in (1.0, 1e6):  # the own score is by far the largest: x . x / rms(x)
        moved = np.asarray(attend(query_key, loud, scale=scale)) != np.asarray(attend(query_key, value, scale=scale))
        assert not moved[:, :6].any()


def collisions(num_hashes, num_heads=256, T=11, seed=0):
    """Full attention's weights `[T, T]`, the angles, a value, what LSH makes of it, and which pairs met.

    Every head hashes the same vectors by rotations of its own. Buckets: the two sides of a plane, cut by no chunk.
    """
    rng = np.random.default_rng(seed)
    x, value = rng.standard_normal((T, 1, H)).astype(np.float32), rng.standard_normal((T, 1, HV)).astype(np.float32)
    unit = x[:, 0] / np.linalg.norm(x[:, 0], axis=-1, keepdims=True)
    angle = np.arccos(np.clip(unit @ unit.T, -1, 1))
    weight = oracle._weights(x, x / np.sqrt((x**2).mean(-1, keepdims=True)), 0.0, ~np.eye(T, dtype=bool), None, None)[
        0
    ][0]
    tagged = np.concatenate([value[:, 0], np.eye(T, dtype=np.float32)], axis=-1)[:, None]
    settings = dict(num_hashes=num_hashes, bucket_size=T, num_buckets=2, same_bucket=True, correct_duplicates=True)
    out = lsh(x.repeat(num_heads, 1), tagged, rng=jax.random.key(num_hashes), **settings)
    out = np.moveaxis(np.asarray(out), 1, 0)  # heads, T, HV + T
    return weight, angle, value[:, 0], out[..., :HV], (out[..., HV:] > 0) & ~np.eye(T, dtype=bool)


def test_what_is_missed_falls_as_a_power_of_the_rounds():
    """Two vectors at angle a fall on different sides of a random plane with probability a / pi, in R rounds always so
    with (a / pi)^R: full attention's weight on that pair is missed. The output is then off by no more than the missed
    weight times the range of the values, as full = (1 - missed) found + missed * rest. The mean error falls with R.
    """
    errors = []
    for rounds in (1, 2, 4, 8):
        weight, angle, value, out, met = collisions(rounds)
        missed = (weight * ~met).sum(-1)  # [heads, T]
        law = (weight * (angle / np.pi) ** rounds).sum(-1)
        standard_error = missed.std(0, ddof=1) / np.sqrt(len(missed))
        assert (np.abs(missed.mean(0) - law) < 5 * standard_error).all()
        error = np.abs(out - weight @ value)
        spread = value.max(0) - value.min(0)
        assert (error <= missed[..., None] * spread + 16 * oracle.ULP * np.abs(value).max()).all()
        errors.append(error.mean())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 4


def test_more_rounds_come_closer_in_chunks_too():
    """As it is used, with chunks and neighbours: the mean error against full attention falls with every doubling."""
    query_key, _, value, *_ = oracle.inputs(64, None, 1, 1, H, HV, lead=())
    settings = dict(bucket_size=8, num_buckets=8, causal=True, correct_duplicates=True)
    full = lsh_attention(query_key, value, num_hashes=1, rng=jax.random.key(0), **settings | {"bucket_size": 64})

    @functools.partial(jax.jit, static_argnums=0)
    def error(rounds):
        many = [x.repeat(32, 1) for x in (query_key, value)]  # heads of the same vectors, hashed apart
        return jnp.abs(lsh_attention(*many, num_hashes=rounds, rng=jax.random.key(rounds), **settings) - full).mean()

    errors = [float(error(rounds)) for rounds in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)


def test_buckets():
    x = np.random.default_rng(0).standard_normal((3, 13, N, H)).astype(np.float32)
    for num_buckets, factors in ((6, (6,)), ((4, 2, 6), (4, 2, 6))):
        rotations = np.asarray(lsh_rotations(jax.random.key(0), N, H, 3, num_buckets))
        assert rotations.shape == (N, H, 3, sum(factors) // 2)
        rotated = np.einsum("btnh,nhrf->bnrtf", x, rotations)
        bucket, step, start = 0, 1, 0
        for factor in factors:
            part = rotated[..., start : start + factor // 2]
            bucket = bucket + step * np.concatenate([part, -part], axis=-1).argmax(-1)
            step, start = step * factor, start + factor // 2
        got = lsh_buckets(x, rotations, num_buckets)
        np.testing.assert_array_equal(got, bucket)
        np.testing.assert_array_equal(lsh_buckets(x * 7, rotations, num_buckets), got)  # directions alone
    zero = lsh_buckets(np.zeros((1, N, H), np.float32), rotations, num_buckets)
    assert not np.asarray(zero).any()  # ties: the first


def test_drawn_rotations_and_the_default_number_of_buckets():
    query_key, _, value, *_ = oracle.inputs(24, None, N, N, H, HV)
    attend = functools.partial(lsh, query_key, value, num_hashes=2, bucket_size=4)
    rotations = lsh_rotations(jax.random.key(3), N, H, 2, 12)  # 2 * ceil(24 / 4)
    np.testing.assert_array_equal(attend(rng=jax.random.key(3)), attend(rotations=rotations))
    assert (np.asarray(attend(rng=jax.random.key(4))) != np.asarray(attend(rotations=rotations))).any()
    with pytest.raises(ValueError, match=r"rotations: .*= \(2, 5, 2, 26\), got"):  # 2 * 325 = 650 <= 26 * 26
        lsh_attention(*(jnp.zeros((1300, N, H)),) * 2, num_hashes=2, bucket_size=4, rotations=rotations)


def test_masked_tokens_and_other_documents_have_no_influence():
    """Bit for bit, gradients too, through chunks that hold both; the masked may be NaN on every side."""
    given = oracle.inputs(23, None, N, N, H, HV)
    query_key, value, d_out = given[0], given[2], np.where(HIDDEN[..., None, None], 0, given[3])

    @jax.jit
    def run(query_key, value, d_out):
        ids = dict(query_segment_ids=DOCUMENTS, key_segment_ids=DOCUMENTS, key_mask=~HIDDEN)
        settings = dict(num_hashes=3, bucket_size=4, rotations=rotations, chunks_after=1, correct_duplicates=True)
        out, pullback = jax.vjp(lambda *a: lsh_attention(*a, **settings, **ids), query_key, value)
        return out, *pullback(d_out)

    rotations = lsh_rotations(jax.random.key(0), N, H, 3, 12)
    expected = [np.asarray(x) for x in run(query_key, value, d_out)]
    padding = DOCUMENTS < 0
    assert not expected[0][padding].any()
    assert not any(x[padding | HIDDEN].any() for x in expected[1:])
    for inside, fill in [(HIDDEN | padding, np.nan)] + [(DOCUMENTS == d, None) for d in (0, 1, 3, 5, 7)]:
        changed = [
            np.where(inside[..., None, None], -3 * x + 1 if fill is None else fill, x) for x in (query_key, value)
        ]
        got = [np.asarray(x) for x in run(*changed, d_out)]
        rest = ~inside & ~HIDDEN
        for x, want in zip(got, expected, strict=True):
            np.testing.assert_array_equal(x[rest], want[rest])
        assert fill is not None or (got[0][inside & ~HIDDEN] != expected[0][inside & ~HIDDEN]).any()


def test_dropout():
    """Weights are zeroed or grown by 1 / 0.6 after the softmax; the last resort is no weight and stays."""
    x, tags = jnp.zeros((17, N, H)), jnp.eye(17)[:, None].repeat(N, 1)
    attend = functools.partial(lsh, x, tags, num_hashes=1, bucket_size=17, rng=jax.random.key(0))
    whole, dropped, again, other = (
        np.asarray(attend(causal=True, dropout_rate=rate, dropout_rng=key and jax.random.key(key)))
        for rate, key in ((0.0, None), (0.4, 1), (0.4, 1), (0.4, 2))
    )
    np.testing.assert_array_equal(dropped, again)
    assert (dropped != other).any()
    np.testing.assert_array_equal(dropped[0], whole[0])
    live = whole[1:] > 0
    kept = dropped[1:][live] > 0
    np.testing.assert_allclose(dropped[1:][live][kept], whole[1:][live][kept] / 0.6, rtol=16 * oracle.ULP)
    assert abs(kept.mean() - 0.6) < 4 * np.sqrt(0.24 / kept.size)


def test_transforms():
    """vmap, remat and traced masks, ids and rotations equal the batched call."""
    query_key, _, value, d_out, _ = oracle.inputs(23, None, N, N, H, HV)
    rotations = lsh_rotations(jax.random.key(0), N, H, 2, 6)

    def attend(query_key, value, key_mask, ids, rotations):
        settings = dict(num_hashes=2, bucket_size=4, num_buckets=6, causal=True)
        ids = dict(query_segment_ids=ids, key_segment_ids=ids)
        return lsh_attention(query_key, value, key_mask=key_mask, rotations=rotations, **settings, **ids)

    rest = jnp.asarray(~HIDDEN), jnp.asarray(DOCUMENTS), rotations
    expected = oracle.value_and_vjp(attend, (query_key, value), d_out, *rest)
    mapped = jax.checkpoint(jax.vmap(attend, (0, 0, 0, 0, None)))
    got = oracle.value_and_vjp(mapped, (query_key, value), d_out, *rest)
    for x, want in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, want, rtol=0, atol=32 * oracle.ULP * np.abs(want).max())
    tangent = jnp.ones_like(query_key)
    forward = jax.jit(lambda x: jax.jvp(lambda x: attend(x, value, *rest), [x], [tangent])[1])(query_key)
    backward = expected[1][0]
    np.testing.assert_allclose(
        (forward * d_out).sum(), backward.sum(), rtol=0, atol=1024 * oracle.ULP * np.abs(backward).sum()
    )


def cost(T, differentiate, width=32, **settings):
    """(FLOPs, temporary bytes) of the compiled program, which has no loop."""
    settings = dict(num_hashes=2, bucket_size=16, num_buckets=8, rotations=jnp.zeros((1, width, 2, 4))) | settings

    def loss(query_key, value):
        return lsh_attention(query_key, value, **settings).sum()

    fn = jax.grad(loss, (0, 1)) if differentiate else loss
    compiled = jax.jit(fn).lower(*[jax.ShapeDtypeStruct([T, 1, width], jnp.float32)] * 2).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradient"])
def test_cost_is_linear_in_length(differentiate, corrected):
    lengths, width, pairs = 512 * 2 ** np.arange(3), 32, 2 * 32  # rounds times keys a query
    costs = [cost(int(T), differentiate, width, causal=True, correct_duplicates=corrected) for T in lengths]
    flops, temporary = np.array(costs).T
    for amounts in (flops, temporary):
        assert abs(np.polyfit(np.log(lengths), np.log(amounts), 1)[0] - 1) < 0.15
    # Two products of the pairs, six with the gradient; masks, softmax and counting on top weigh as much at width 32.
    products = 2 * width * pairs * (6 if differentiate else 2)
    assert products <= flops[-1] / lengths[-1] < (4 if corrected else 2) * products
    # A handful of numbers a pair, and of copies of the sorted tokens.
    assert temporary[-1] / lengths[-1] < 4 * (8 * pairs + 8 * 2 * 2 * width)


def test_default_buckets_cost_less_than_the_square():
    """2 T / bucket_size buckets in two factors: hashing is O(T sqrt T), and no more than the attention at T = 2048."""
    flops = [cost(T, False, num_buckets=None, rotations=None, rng=jax.random.key(0))[0] for T in (2048, 8192)]
    assert np.log2(flops[1] / flops[0]) / 2 < 1.3


X = np.zeros((2, 13, N, H), np.float32)
IDS = np.zeros((2, 13), np.int32)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"query_key": X[0, 0]}, r"query_key: wanted \[..., length, heads, width\], got shape \(2, 5\)"),
        ({"query_key": X.astype(int)}, "query_key: wanted a float dtype, got int"),
        ({"value": X.astype(np.float16)}, "value: wanted query_key's dtype float32, got float16"),
        ({"value": X[:, :7]}, r"value: wanted query_key's \[..., T\] = \(2, 13\), got \(2, 7\)"),
        ({"value": X[:, :, [0, 1, 0]]}, "value: wanted a number of heads that divides query_key's 2, got 3"),
        ({"query_key": X[:, :0], "value": X[:, :0]}, "query_key: wanted lengths of at least 1"),
        ({"num_hashes": 0}, "num_hashes: wanted an int >= 1, got 0"),
        ({"bucket_size": 4.0}, "bucket_size: wanted an int >= 1, got 4.0"),
        ({"chunks_before": -1}, "chunks_before: wanted an int >= 0, got -1"),
        ({"num_buckets": 5}, "num_buckets: wanted an even int or even factors, each >= 2, got 5"),
        ({"num_buckets": (4, 0)}, r"num_buckets: wanted .* got \(4, 0\)"),
        ({"num_buckets": ()}, "num_buckets: wanted"),
        ({"rng": None}, "rng, rotations: wanted exactly one of the two, got none"),
        ({"rotations": np.zeros((N, H, 2, 4))}, "rng, rotations: wanted exactly one of the two, got both"),
        ({"rng": np.zeros(2, np.uint32)}, "rng: wanted a typed key"),
        ({"rng": None, "rotations": X, "num_buckets": 4}, r"rotations: wanted floats .* = \(2, 5, 2, 2\), got float32"),
        ({"key_mask": np.ones((2, 13))}, "key_mask: wanted bools"),
        ({"query_segment_ids": IDS}, "key_segment_ids: wanted together with its partner"),
        ({"query_segment_ids": IDS, "key_segment_ids": IDS + 1}, "key_segment_ids: wanted the same ids"),
        ({"dropout_rate": 0.5}, "dropout_rng: wanted a jax.random.key"),
        ({"dropout_rate": 1.0, "dropout_rng": KEY}, r"dropout_rate: wanted a number in \[0, 1\)"),
    ],
)  # fmt: skip
def test_refusals(given, message):
    settings = {"query_key": X, "value": X, "num_hashes": 2, "bucket_size": 4, "rng": KEY}
    with pytest.raises(ValueError, match=message):
        lsh_attention(**settings | given)
