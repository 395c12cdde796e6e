"""RoPE: published libraries' numbers, the properties that define it, every context extension, refusals."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.rotary import apply_rotary, rotary_frequencies

GOLDENS = Path(__file__).parents[1] / "goldens"
HALF = ("default", "linear", "dynamic", "yarn", "llama3")
ULP = 2.0**-23
B, T, N, H = 2, 7, 3, 10


def load(case):
    arrays = dict(np.load(GOLDENS / f"{case}.npz"))
    return arrays, json.loads(str(arrays.pop("__meta__")))


def settings(meta, length):
    """The scaling of a golden case as `rotary_frequencies` takes it, with the length where it counts."""
    scaling = dict(meta["attrs"]["rope_parameters"])
    if scaling["rope_type"] != "dynamic":
        return {"scaling": scaling}
    scaling["original_max_position_embeddings"] = meta["attrs"]["max_position_embeddings"]
    return {"scaling": scaling, "length": length}


def rotate(x, angles):
    """Float64 oracle in the half-split layout: x [..., T, N, R] as complex numbers, angles [T, R/2]."""
    x = np.asarray(x, np.float64)
    turned = (x[..., : x.shape[-1] // 2] + 1j * x[..., x.shape[-1] // 2 :]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), [B, T, N, H])


@pytest.mark.parametrize("length", [16, 96])
@pytest.mark.parametrize("rope_type", HALF)
def test_transformers_half_split(rope_type, length):
    arrays, meta = load(f"rope_half_{rope_type}")
    arrays = {name.removeprefix(f"L{length}."): x for name, x in arrays.items() if name.startswith(f"L{length}.")}
    frequencies, factor = rotary_frequencies(meta["attrs"]["head_dim"], **settings(meta, length))
    np.testing.assert_allclose(frequencies, arrays["inv_freq"], rtol=2 * ULP)
    np.testing.assert_allclose(factor, arrays["attention_scaling"], rtol=ULP)

    # Two units in the last place of a frequency turn the pair by as much times the position; the peer rounds as well.
    positions = arrays["position_ids"][0]
    angles = np.tile(np.outer(positions, arrays["inv_freq"].astype(np.float64)), 2)  # [T, R], one per feature
    for name in "qk":
        out = apply_rotary(
            arrays[f"in.{name}"].swapaxes(1, 2), positions, frequencies=frequencies, attention_factor=factor
        )
        error = np.abs(out.swapaxes(1, 2) - arrays[f"out.{name}"])
        largest = factor * np.abs(arrays[f"in.{name}"]).max()
        assert (error <= largest * ULP * (4 + 2 * angles)).all()


@pytest.mark.parametrize("case", ["rope_interleaved", "rope_interleaved_gptj"])
def test_interleaved_peers(case):
    arrays, meta = load(case)
    swap = (lambda a: a) if case.endswith("gptj") else (lambda a: a.swapaxes(1, 2))  # GPT-J is [B, L, H, D] already
    positions = arrays.get("aux.position_ids", np.arange(12))
    rotary_dim = meta["attrs"].get("rotary_dim", 16)
    frequencies, _ = rotary_frequencies(rotary_dim)
    for name in "qk":
        out, pullback = jax.vjp(
            lambda x: apply_rotary(x, positions, interleaved=True, frequencies=frequencies), swap(arrays[f"in.{name}"])
        )
        (gradient,) = pullback(swap(arrays[f"cot.{name}"]))
        noise = 2 * (meta["f32_vs_f64_max_abs"] or ULP * np.abs(out).max())  # one peer states none: one unit instead
        np.testing.assert_allclose(out, swap(arrays[f"out.{name}"]), rtol=0, atol=noise)
        np.testing.assert_allclose(gradient, swap(arrays[f"grad.in.{name}"]), rtol=0, atol=noise)


def test_equals_complex_multiplication_in_float64(x):
    with jax.enable_x64(True):
        positions = np.array([0, 1, 2, 5, 1000, 70001, 1000003])
        x64 = jnp.asarray(np.asarray(x), jnp.float64)
        out = apply_rotary(x64, positions)
        assert out.dtype == jnp.float64
        angles = np.outer(positions, 10000.0 ** (-np.arange(0, H, 2) / H))
        largest_angle_error = 4 * 2.0**-53 * positions.max()
        np.testing.assert_allclose(out, rotate(x64, angles), rtol=0, atol=8 * largest_angle_error)


def test_scores_see_only_the_distance(x):
    with jax.enable_x64(True):
        query, key = jnp.asarray(np.asarray(x), jnp.float64)
        positions = np.arange(T)

        def scores(shift):
            return jnp.einsum(
                "inh,jnh->nij", apply_rotary(query, positions + shift), apply_rotary(key, positions + shift)
            )

        np.testing.assert_allclose(scores(12345), scores(0), rtol=0, atol=1e5 * 2.0**-53 * 4 * H)
        assert np.abs(scores(0) - jnp.einsum("inh,jnh->nij", query, key)).max() > 0.1  # it does turn


@pytest.mark.parametrize("interleaved", [False, True])
def test_norm_is_kept_and_position_zero_is_the_identity(x, interleaved):
    out = apply_rotary(x, np.arange(T), interleaved=interleaved)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=8 * ULP)
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    assert np.abs(out[:, 1:] - x[:, 1:]).max() > 0.1


def test_layouts_are_permutations_of_each_other(x):
    order = np.arange(H).reshape(2, -1).T.reshape(-1)  # 0, H/2, 1, H/2 + 1, ...
    half = apply_rotary(x, np.arange(T))
    interleaved = apply_rotary(x[..., order], np.arange(T), interleaved=True)
    np.testing.assert_allclose(interleaved, half[..., order], rtol=0, atol=4 * ULP * np.abs(x).max())
    assert np.abs(apply_rotary(x, np.arange(T), interleaved=True) - half).max() > 0.1


@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_rotary_passes_the_rest_through(x, interleaved):
    frequencies, _ = rotary_frequencies(H, scaling={"partial_rotary_factor": 0.6})
    assert frequencies.shape == (3,)
    out = apply_rotary(x, np.arange(T), frequencies=frequencies, interleaved=interleaved, attention_factor=1.5)
    np.testing.assert_array_equal(out[..., 6:], x[..., 6:])
    expected = 1.5 * apply_rotary(x[..., :6], np.arange(T), interleaved=interleaved)
    np.testing.assert_allclose(out[..., :6], expected, rtol=0, atol=8 * ULP * np.abs(x).max())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_once(x, dtype):
    low = x.astype(dtype)
    out = apply_rotary(low, np.arange(T) + 1000)
    assert out.dtype == dtype
    exact = rotate(low, np.outer(np.arange(T) + 1000, 10000.0 ** (-np.arange(0, H, 2) / H)))
    # Half a unit of the output, and float32 angles near 1000.
    bound = 0.5 * jnp.finfo(dtype).eps * np.abs(exact) + 1000 * ULP * np.abs(x).max()
    assert (np.abs(np.asarray(out, np.float64) - exact) <= bound).all()


def test_positions_broadcast_vmap_and_jit(x):
    positions = jax.random.randint(jax.random.key(1), [B, T], 0, 100)
    whole = apply_rotary(x, positions)
    np.testing.assert_allclose(jax.vmap(apply_rotary)(x, positions), whole, rtol=0, atol=4 * ULP * np.abs(x).max())
    np.testing.assert_allclose(jax.jit(apply_rotary)(x, positions), whole, rtol=0, atol=400 * ULP * np.abs(x).max())
    np.testing.assert_array_equal(apply_rotary(x, positions[:1]), apply_rotary(x, positions[0]))
    np.testing.assert_array_equal(apply_rotary(x[:, :1], jnp.array([3])), apply_rotary(x[:, :1], jnp.array([[3], [3]])))


def test_linear_scaling_is_a_slower_clock(x):
    frequencies, factor = rotary_frequencies(H, scaling={"rope_type": "linear", "factor": 4.0})
    assert factor == 1.0
    slow = apply_rotary(x, 4 * np.arange(T), frequencies=frequencies)
    np.testing.assert_allclose(slow, apply_rotary(x, np.arange(T)), rtol=0, atol=8 * T * ULP * np.abs(x).max())


def test_dynamic_scaling_is_a_larger_base():
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}
    plain, _ = rotary_frequencies(H)
    for length in (1, 31, 32):
        np.testing.assert_array_equal(rotary_frequencies(H, scaling=scaling, length=length)[0], plain)
    base = 10000.0 * (2 * 97 / 32 - 1) ** (H / (H - 2))
    expected = base ** (-np.arange(0, H, 2) / H)
    traced = jax.jit(lambda length: rotary_frequencies(H, scaling=scaling, length=length)[0])(97)
    for frequencies in (rotary_frequencies(H, scaling=scaling, length=97)[0], traced):
        np.testing.assert_allclose(frequencies, expected, rtol=4 * ULP)
    assert rotary_frequencies(2, scaling=scaling, length=97)[0].tolist() == [
        1.0
    ]  # a single pair: no slowest to stretch


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    scaling = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}
    plain, _ = rotary_frequencies(128)
    frequencies, factor = rotary_frequencies(128, scaling=scaling)
    turns = 4096 * np.asarray(plain) / (2 * np.pi)
    # The ramp's ends are rounded outwards to whole pairs: look one pair beyond them.
    np.testing.assert_array_equal(frequencies[:-1][turns[1:] > 32], plain[:-1][turns[1:] > 32])
    np.testing.assert_allclose(frequencies[1:][turns[:-1] < 1], plain[1:][turns[:-1] < 1] / 16, rtol=ULP)
    assert ((frequencies <= plain) & (frequencies >= plain / 16 * (1 - ULP))).all()
    np.testing.assert_allclose(factor, 0.1 * math.log(16) + 1, rtol=1e-12)
    exact, _ = rotary_frequencies(128, scaling=scaling | {"truncate": False})
    np.testing.assert_array_equal(exact[turns > 32], plain[turns > 32])
    assert not np.array_equal(exact, frequencies)


@pytest.mark.parametrize(
    "extra, expected",
    [
        ({"attention_factor": 1.25}, 1.25),
        ({"mscale": 0.5, "mscale_all_dim": 1.0}, (0.05 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
        ({"factor": 1.0}, 1.0),
        ({"attention_factor": None}, 0.1 * math.log(4) + 1),
    ],
)
def test_yarn_attention_factor(extra, expected):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32} | extra
    assert rotary_frequencies(16, scaling=scaling)[1] == pytest.approx(expected, rel=1e-12)


def test_llama3_keeps_short_waves_and_stretches_long_ones():
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, _ = rotary_frequencies(128, base=500000.0)
    frequencies, _ = rotary_frequencies(128, scaling=scaling)
    wavelength = 2 * np.pi / np.asarray(plain)
    short, long = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_array_equal(frequencies[short], plain[short])
    np.testing.assert_allclose(frequencies[long], plain[long] / 8, rtol=ULP)
    between = ~short & ~long
    assert between.any() and ((frequencies < plain) & (frequencies > plain / 8))[between].all()


def test_names_of_the_type_and_the_base():
    new = rotary_frequencies(H, scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0})
    old = rotary_frequencies(H, base=500.0, scaling={"type": "linear", "factor": 2.0})
    both = rotary_frequencies(H, base=500.0, scaling={"type": "linear", "rope_type": "linear", "factor": 2.0})
    for frequencies, _ in (old, both):
        np.testing.assert_array_equal(frequencies, new[0])
    np.testing.assert_array_equal(rotary_frequencies(H, scaling={"rope_type": "default"})[0], rotary_frequencies(H)[0])


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DYNAMIC = YARN | {"rope_type": "dynamic"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scaling": {"rope_type": "longrope"}}, r"rope_type.*default, linear, dynamic, yarn, llama3, got 'longrope'"),
        ({"scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "'linear' and 'yarn'"),
        ({"scaling": {"factor": 2.0}}, "wanted a 'rope_type'"),
        ({"scaling": {"rope_type": "linear"}}, r"missing \['factor'\]"),
        ({"scaling": YARN | {"beta_quick": 3}}, r"unknown \['beta_quick'\]"),
        ({"scaling": {"rope_type": "default", "factor": 2.0}}, r"unknown \['factor'\]"),
        ({"scaling": YARN | {"factor": 0.5}}, "factor.*wanted a number >= 1, got 0.5"),
        ({"scaling": YARN | {"mscale": 1.0}}, "mscale and mscale_all_dim together"),
        ({"scaling": YARN | {"beta_fast": 1.0}}, "beta_fast.*more than beta_slow = 1"),
        ({"scaling": YARN | {"beta_slow": 40}}, "beta_fast.*more than beta_slow = 40"),
        ({"scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor.*more than low_freq_factor = 1.0"),
        ({"scaling": DYNAMIC}, r"length.*largest position \+ 1, got None"),
        ({"scaling": YARN, "length": 5}, "length.*only rope_type 'dynamic'"),
        ({"scaling": YARN | {"rope_theta": 500.0}, "base": 100.0}, "base: got 100.0 beside"),
        ({"base": 1.0}, "base: wanted a number > 1"),
        ({"head_dim": 7}, "head_dim.*even"),
        ({"scaling": {"partial_rotary_factor": 0.5}}, "head_dim.*got 5"),
        ({"scaling": {"partial_rotary_factor": 1.2}}, "head_dim.*got 12"),
    ],
)
def test_frequencies_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        rotary_frequencies(**{"head_dim": H} | arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": jnp.zeros([T, H])}, r"x: wanted a float array \[..., T, N, H\]"),
        ({"x": jnp.zeros([T, N, H], jnp.int32)}, "x: wanted a float array"),
        ({"x": jnp.zeros([T, N, 5])}, "head_dim.*even"),
        ({"positions": jnp.arange(T + 1)}, r"positions.*broadcastable to \[2, 7\].*got int32\[8\]"),
        ({"positions": jnp.zeros([3, B, T])}, "positions"),
        ({"positions": jnp.ones([T], bool)}, "positions: wanted numbers"),
        ({"frequencies": jnp.ones([H // 2 + 1])}, "frequencies.*at most the 10 features"),
        ({"frequencies": jnp.ones([2, 2])}, r"frequencies: wanted \[R/2\]"),
        ({"frequencies": jnp.ones([2]), "base": 500.0}, "base: got 500.0 beside frequencies"),
    ],
)
def test_apply_refuses(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        apply_rotary(**{"x": x, "positions": jnp.arange(T)} | arguments)
