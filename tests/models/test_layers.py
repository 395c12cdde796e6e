"""Variants against dense attention under their own mask, and the layers against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import biases, dot_product_attention
from models.layers import MLP, Attention, dropout, normal, residual_std, rms_norm
from models.variants import VARIANTS, Setting, check_attention

T = 13
SETTINGS = {
    "full": {},
    "window": {"window": 3},
    "longformer": {"window": 2, "num_global": 2},
    "sparse_transformer": {"pattern": "strided", "stride": 5, "summary": 0},
    "sparse_transformer fixed": {"pattern": "fixed", "stride": 5, "summary": 2},
    "bigbird": {"block_size": 2, "num_random_blocks": 1, "num_global_blocks": 1, "seed": 7},
    "linear": {"chunk_size": 5, "feature_map": "elu_plus_one"},
}
MASKED = [case for case in SETTINGS if case != "linear"]


def variant(case):
    return VARIANTS[case.split()[0]], SETTINGS[case]


def heads(num_heads, seed=0):
    return jax.random.normal(jax.random.key(seed), (2, T, num_heads, 3))


def test_every_variant_is_covered():
    assert {case.split()[0] for case in SETTINGS} == VARIANTS.keys()


@pytest.mark.parametrize("case", MASKED)
@pytest.mark.parametrize("length", [1, 7, T])
def test_attends_where_its_mask_says(case, length):
    kind, settings = variant(case)
    query, key, value = (heads(n, seed)[:, :length] for seed, n in enumerate((2, 1, 1)))
    mask = kind.mask(settings, length, num_heads=2).dense(length, length)
    wanted = jax.jit(functools.partial(dot_product_attention, implementation="reference"))(query, key, value, mask=mask)
    got = jax.jit(lambda *qkv: kind.attend(*qkv, settings))(query, key, value)
    # Two orders of summing at most T terms: error within T roundings of values of order 1.
    np.testing.assert_allclose(got, wanted, atol=T * np.finfo(np.float32).eps)


@pytest.mark.parametrize("case", MASKED)
def test_masks_are_causal_and_hold_the_diagonal(case):
    kind, settings = variant(case)
    mask = np.asarray(kind.mask(settings, T).dense(T, T)).reshape(-1, T, T)
    assert not np.triu(mask, 1).any()
    assert mask[:, np.arange(T), np.arange(T)].all()


def test_window_counts_the_keys_before_the_query():
    mask = np.asarray(VARIANTS["window"].mask({"window": 3}, T).dense(T, T))
    assert mask[10].nonzero()[0].tolist() == [7, 8, 9, 10]


def test_longformer_prefix_is_seen_by_all():
    mask = np.asarray(VARIANTS["longformer"].mask({"window": 2, "num_global": 2}, T).dense(T, T))
    assert mask[10].nonzero()[0].tolist() == [0, 1, 8, 9, 10]


def test_bigbird_pattern_is_a_function_of_the_seed():
    def blocks(seed):
        mask = VARIANTS["bigbird"].mask(SETTINGS["bigbird"] | {"seed": seed}, 40, num_heads=3)
        return np.asarray(mask.dense(40, 40))

    np.testing.assert_array_equal(blocks(7), blocks(7))
    assert (blocks(7) != blocks(8)).any()
    assert (blocks(7)[0] != blocks(7)[1]).any()  # heads draw their own


def test_bigbird_draws_the_same_pattern_while_traced():
    def pattern():
        return VARIANTS["bigbird"].mask(SETTINGS["bigbird"], 40, num_heads=3).dense(40, 40)

    np.testing.assert_array_equal(jax.jit(pattern)(), pattern())


def test_linear_has_no_mask():
    assert VARIANTS["linear"].mask(SETTINGS["linear"], T) is None


@pytest.mark.parametrize("case", [c for c in SETTINGS if variant(c)[0].attention_dropout])
def test_attention_dropout_is_honoured(tiny, case):
    config = tiny(attention={"name": case.split()[0], **SETTINGS[case]}, attention_dropout=0.5)
    layer = Attention(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, T, 12))
    first, second = jax.random.split(jax.random.key(2))
    dropped = jax.jit(lambda rng: layer(x, rng=rng))
    np.testing.assert_array_equal(dropped(first), dropped(first))
    # All but the first token, which sees itself alone and may keep it or not.
    assert (dropped(first) != dropped(second)).any(-1).mean() > 0.5
    assert (dropped(first) != jax.jit(layer)(x)).any(-1).mean() > 0.5


@pytest.mark.parametrize("case", [c for c in SETTINGS if variant(c)[0].bias])
def test_bias_is_honoured(tiny, case):
    layer = Attention(tiny(attention={"name": case.split()[0], **SETTINGS[case]}), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, T, 12))
    # A slope this steep leaves each query with itself alone: the output is the projected value.
    steep = jax.jit(layer)(x, bias=biases.ALiBi(jnp.full(2, 1e4)))
    value = jnp.repeat(jnp.einsum("btd,dnh->btnh", x, layer.value[...]), 2, axis=2)
    wanted = jnp.einsum("btnh,nhd->btd", value, layer.out[...])
    np.testing.assert_allclose(steep, wanted, atol=12 * np.finfo(np.float32).eps * float(jnp.abs(wanted).max()))


def test_dropout_keeps_the_mean_and_scales_what_it_keeps():
    x = jnp.ones((101, 103), jnp.bfloat16)
    y = dropout(x, 0.25, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    kept = np.asarray(y != 0)
    np.testing.assert_array_equal(np.asarray(y, np.float32)[kept], np.float32(jnp.bfloat16(4 / 3)))
    assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / kept.size) ** 0.5  # five standard errors
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_initial_standard_deviations():
    assert residual_std(8) == 0.02 / 4
    drawn = np.asarray(normal(nnx.Rngs(0), (101, 7, 13))[...])
    assert drawn.dtype == np.float32
    # The standard error of a standard deviation over n draws is std / sqrt(2 n).
    assert abs(drawn.std() - 0.02) < 5 * 0.02 / (2 * drawn.size) ** 0.5
    assert abs(drawn.mean()) < 5 * 0.02 / drawn.size**0.5


def test_residual_projections_start_smaller(tiny):
    config = tiny(width=48, mlp_width=53, depth=8)
    for layer in (Attention(config, rngs=nnx.Rngs(0)), MLP(config, rngs=nnx.Rngs(0))):
        out = np.asarray(layer.out[...])
        assert abs(out.std() - 0.005) < 5 * 0.005 / (2 * out.size) ** 0.5


def test_mlp_and_norm_match_numpy(tiny):
    config = tiny()
    mlp, norm = MLP(config, rngs=nnx.Rngs(0)), rms_norm(config, nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 12)), np.float64)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    hidden = normed @ np.asarray(mlp.into[...], np.float64)
    gelu = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    wanted = gelu @ np.asarray(mlp.out[...], np.float64)
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(norm(jnp.float32(x)), normed, rtol=12 * eps)
    np.testing.assert_allclose(mlp(norm(jnp.float32(x))), wanted, atol=12 * eps * np.abs(wanted).max())


REFUSED = [
    ({"name": "sparse"}, "model.attention.name: unknown variant 'sparse'; write one of full, window"),
    ({}, "model.attention.name: unknown variant None"),
    ({"name": "full", "window": 3}, "model.attention.window: 'full' has no such setting; it takes no settings"),
    ({"name": "window", "windows": 3}, "model.attention.windows: 'window' has no such setting; it takes window"),
    ({"name": "window"}, "model.attention.window: missing for 'window'; write window=64"),
    ({"name": "window", "window": -1}, "model.attention.window: wanted an integer from 0 to 2147483647, got -1"),
    ({"name": "window", "window": 2.0}, "model.attention.window: wanted an integer from 0 to 2147483647, got 2.0"),
    ({"name": "window", "window": True}, "model.attention.window: wanted an integer from 0 to 2147483647, got True"),
    (
        {"name": "sparse_transformer", "pattern": "diagonal", "stride": 5, "summary": 0},
        "model.attention.pattern: got 'diagonal'; write one of strided, fixed",
    ),
    (
        {"name": "sparse_transformer", "pattern": "strided", "stride": 0, "summary": 0},
        "model.attention.stride: wanted an integer from 1 to 2147483647, got 0",
    ),
    (
        {"name": "sparse_transformer", "pattern": "strided", "stride": 5, "summary": 1},
        "model.attention.summary: 'strided' has no summary columns, got 1; write 0",
    ),
    (
        {"name": "bigbird", **SETTINGS["bigbird"], "seed": 2**31},
        "model.attention.seed: wanted an integer from 0 to 2147483647, got 2147483648; write 0",
    ),
    (
        {"name": "sparse_transformer", "pattern": "fixed", "stride": 5, "summary": 6},
        "model.attention.summary: wanted 1 to stride = 5 for 'fixed', got 6",
    ),
    (
        {"name": "linear", "chunk_size": 5, "feature_map": "relu"},
        "model.attention.feature_map: got 'relu'; write one of elu_plus_one",
    ),
]


@pytest.mark.parametrize("attention, message", REFUSED)
def test_refuses_settings(attention, message):
    with pytest.raises(ValueError) as error:
        check_attention(attention, position="rope", attention_dropout=0.0)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("position", ["alibi", "t5"])
def test_refuses_a_bias_without_scores(position):
    with pytest.raises(ValueError, match=f"model.position: 'linear' has no scores for '{position}'"):
        check_attention({"name": "linear", **SETTINGS["linear"]}, position=position, attention_dropout=0.0)


def test_refuses_dropout_without_weights():
    with pytest.raises(ValueError, match="model.attention_dropout: 'linear' has no weights to drop"):
        check_attention({"name": "linear", **SETTINGS["linear"]}, position="rope", attention_dropout=0.1)


def test_refuses_packing_where_documents_would_mix(tiny, monkeypatch):
    monkeypatch.setitem(VARIANTS, "full", dataclasses.replace(VARIANTS["full"], packing=False))
    layer = Attention(tiny(), rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="segment_ids: this variant cannot keep documents apart"):
        layer(jnp.ones((2, T, 12)), segment_ids=jnp.zeros((2, T), int))


def test_refuses_a_variant_that_cannot_be_causal(monkeypatch):
    monkeypatch.setitem(VARIANTS, "both_ways", dataclasses.replace(VARIANTS["full"], causal=False))
    with pytest.raises(
        ValueError, match="'both_ways' cannot be causal, so no decoder can use it; attention.name one of full"
    ):
        check_attention({"name": "both_ways"}, position="rope", attention_dropout=0.0)
    check_attention({"name": "both_ways"}, position="rope", attention_dropout=0.0, decoder=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_examples_are_accepted(name):
    examples = {setting: kind.example for setting, kind in VARIANTS[name].settings.items()}
    check_attention({"name": name, **examples}, position="rope", attention_dropout=0.0)
    assert all(isinstance(kind, Setting) for kind in VARIANTS[name].settings.values())
