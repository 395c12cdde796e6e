"""Exact softmax attention against the numbers of published libraries, values and gradients, in both implementations."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from golden import GOLDENS, assert_matches, heads_inside, load

from attention import alibi_slopes, dot_product_attention, t5_bucket
from attention.biases import T5, ALiBi
from attention.masks import Causal, Dilated, Window

IMPLEMENTATIONS = {"reference": {}, "blockwise": {"block_sizes": (8, 8)}}  # 8: several blocks at lengths 9 to 22


@pytest.fixture(params=IMPLEMENTATIONS)
def attend(request):
    return functools.partial(dot_product_attention, implementation=request.param, **IMPLEMENTATIONS[request.param])


def sdpa_settings(case, arrays, meta):
    """Each mask as its structure where we have one; the bias of `sdpa_bias_grad` is an input of its own."""
    attrs = meta["attrs"]
    if case == "sdpa_causal_bottom_right":
        return {"is_causal": True, "query_positions": np.arange(5) + 7}
    if case == "sdpa_sliding_window":
        return {"mask": Causal() & Window(attrs["window_each_side"], 0)}
    if case == "sdpa_dilated_window":
        return {"mask": Dilated(attrs["window_each_side"], attrs["window_each_side"], attrs["dilation"])}
    settings = {name: attrs[name] for name in ("scale", "is_causal") if name in attrs}
    return settings | {name: arrays[f"aux.{name}"] for name in ("mask", "bias") if f"aux.{name}" in arrays}


SDPA = sorted(path.stem for path in GOLDENS.glob("sdpa_*.npz"))


@pytest.mark.parametrize("case", SDPA)
def test_torch_scaled_dot_product_attention(case, attend):
    arrays, meta = load(case)
    settings = sdpa_settings(case, arrays, meta)
    names = [name.removeprefix("in.") for name in arrays if name.startswith("in.")]
    inside = [heads_inside(arrays[f"in.{name}"]) if name in "qkv" else arrays[f"in.{name}"] for name in names]
    gradients = [arrays[f"grad.in.{name}"] for name in names]
    gradients = [heads_inside(g) if name in "qkv" else g for name, g in zip(names, gradients, strict=True)]
    assert_matches(
        lambda *given: attend(*given, **settings),
        *(inside, heads_inside(arrays["cot"]), heads_inside(arrays["out"]), gradients, meta["f32_vs_f64_max_abs"]),
    )


def test_all_sdpa_cases_are_here():
    assert len(SDPA) == 11


@pytest.mark.parametrize("case", ["sdpa_sliding_window", "sdpa_dilated_window", "sdpa_causal_bottom_right"])
def test_structures_equal_the_stored_masks(case):
    arrays, meta = load(case)
    settings = sdpa_settings(case, arrays, meta)
    if "mask" in settings:
        np.testing.assert_array_equal(settings["mask"].dense(17, 17), arrays["aux.mask"])
    else:
        np.testing.assert_array_equal(settings["query_positions"][:, None] >= np.arange(12), arrays["aux.mask"])


def test_alibi_slopes():
    arrays, _ = load("alibi_slopes")
    counts = [int(name.removeprefix("slopes.h")) for name in arrays if name.startswith("slopes.")]
    assert len(counts) == 9
    for count in counts:
        # The peer raises a float32 base to powers up to `count`, and half a unit of the base grows with the power.
        np.testing.assert_allclose(alibi_slopes(count), arrays[f"slopes.h{count}"], rtol=(count + 1) * 2.0**-24)


def test_t5_buckets():
    arrays, _ = load("t5_buckets")
    cases = [name for name in arrays if name.startswith("bucket.")]
    assert len(cases) == 4
    for name in cases:
        _, buckets, distance, kind = name.split(".")
        settings = {"num_buckets": int(buckets[2:]), "max_distance": int(distance[3:]), "bidirectional": kind == "bi"}
        np.testing.assert_array_equal(t5_bucket(arrays["relative_position"], **settings), arrays[name])


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_t5_attention(direction, attend):
    arrays, meta = load(f"t5_attention_{direction}")
    heads, causal = meta["attrs"]["heads"], meta["attrs"]["causal"]
    names = ["in.x", *(f"w.{name}.weight" for name in ("q", "k", "v", "o", "relative_attention_bias"))]

    def fn(x, q, k, v, o, table):
        query, key, value = (jnp.einsum("ble,fe->blf", x, w).reshape(*x.shape[:2], heads, -1) for w in (q, k, v))
        bias = T5(table, bidirectional=not causal, max_distance=meta["attrs"]["max_distance"])
        out = attend(query, key, value, bias, scale=1.0, is_causal=causal)
        return jnp.einsum("blf,ef->ble", out.reshape(*x.shape[:2], -1), o)

    gradients = [arrays[f"grad.{name}"] for name in names]
    given = [arrays[name] for name in names]
    assert_matches(fn, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"])


def test_bloom_attention(attend):
    arrays, meta = load("bloom_attention")
    heads, real = meta["attrs"]["heads"], arrays["aux.pad_mask"].astype(bool)
    names = ["in.x", *(f"w.{layer}.{kind}" for layer in ("query_key_value", "dense") for kind in ("weight", "bias"))]
    # Padding is on the left and positions count real tokens: distances between those are the same either way.
    np.testing.assert_array_equal(arrays["aux.mask"][:, 0], np.tri(11, dtype=bool) & real[:, None])
    np.testing.assert_allclose(
        arrays["aux.alibi"][:, :, -1], alibi_slopes(heads) * (real.sum(1)[:, None] - 1), rtol=1e-6
    )

    def fn(x, in_weight, in_bias, out_weight, out_bias):
        packed = (jnp.einsum("ble,fe->blf", x, in_weight) + in_bias).reshape(*x.shape[:2], heads, 3, -1)
        query, key, value = jnp.moveaxis(packed, 3, 0)
        out = attend(query, key, value, ALiBi(alibi_slopes(heads)), is_causal=True, key_mask=real)
        out = jnp.einsum("blf,ef->ble", out.reshape(x.shape), out_weight) + out_bias
        return jnp.where(real[..., None], out, 0)

    gradients = [arrays[f"grad.{name}"] for name in names]
    given = [arrays[name] for name in names]
    assert_matches(fn, given, arrays["cot"], arrays["out"], gradients, meta["f32_vs_f64_max_abs"])


def test_torch_multihead_attention(attend):
    """Output and probabilities: the weights are read off by attending to the identity in place of the values."""
    arrays, meta = load("torch_multihead_attention")
    heads, key_mask = meta["attrs"]["num_heads"], ~arrays["aux.key_padding_mask"]
    names = ["in.q", "in.k", "in.v", "w.in_proj_weight", "w.in_proj_bias", "w.out_proj.weight", "w.out_proj.bias"]
    batch, length, _ = arrays["in.q"].shape

    def fn(q, k, v, in_weight, in_bias, out_weight, out_bias):
        weights, biases = jnp.split(in_weight, 3), jnp.split(in_bias, 3)
        projected = (jnp.einsum("ble,fe->blf", x, w) + b for x, w, b in zip((q, k, v), weights, biases, strict=True))
        query, key, value = (x.reshape(batch, length, heads, -1) for x in projected)
        out = attend(query, key, value, key_mask=key_mask).reshape(q.shape)
        identity = jnp.broadcast_to(jnp.eye(length)[:, None], (batch, length, heads, length))
        probabilities = attend(query, key, identity, key_mask=key_mask)
        out = jnp.einsum("blf,ef->ble", out, out_weight) + out_bias
        return jnp.concatenate([out, probabilities.reshape(batch, length, -1)], axis=-1)

    def joined(prefix):
        probabilities = heads_inside(arrays[f"{prefix}.attn"]).reshape(batch, length, -1)
        return np.concatenate([arrays[prefix], probabilities], axis=-1)

    gradients = [arrays[f"grad.{name}"] for name in names]
    given = [arrays[name] for name in names]
    assert_matches(fn, given, joined("cot"), joined("out"), gradients, meta["f32_vs_f64_max_abs"])
