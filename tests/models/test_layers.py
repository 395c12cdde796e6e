"""Variants against dense attention under their own mask, and the layers against NumPy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, CAUSAL, can
from flax import nnx

from attention import biases, dot_product_attention, lsh_attention
from models.attend import no_mask
from models.layers import (
    MLP,
    Attention,
    dropout,
    norm_of,
    normal,
    residual_std,
    rms_normalized,
    variant_of,
)
from models.variants import VARIANTS, Setting, check_attention

EPS = np.finfo(np.float32).eps
T = 13
MASKED = [case for case in ATTENTION if VARIANTS[ATTENTION[case]["name"]].mask is not no_mask]


def heads(num_heads, seed=0):
    return jax.random.normal(jax.random.key(seed), (2, T, num_heads, 3))


def examples(name):
    return {setting: kind.example for setting, kind in VARIANTS[name].settings.items()}


def test_every_variant_is_covered():
    assert {attention["name"] for attention in ATTENTION.values()} == VARIANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("case", MASKED)
@pytest.mark.parametrize("length, causal", [(1, True), (7, False), (T, True), (T, False)])
def test_attends_where_its_mask_says(case, length, causal):
    kind, settings = variant_of(ATTENTION[case])
    query, key, value = (heads(n, seed)[:, :length] for seed, n in enumerate((2, 1, 1)))
    mask = kind.mask(settings, length, num_heads=2, causal=causal).dense(length, length)
    wanted = jax.jit(functools.partial(dot_product_attention, implementation="reference"))(query, key, value, mask=mask)
    got = jax.jit(lambda *qkv: kind.attend(*qkv, settings=settings, causal=causal))(query, key, value)
    # Two orders of summing at most T terms: error within T roundings of values of order 1.
    np.testing.assert_allclose(got, wanted, atol=T * np.finfo(np.float32).eps)


@pytest.mark.parametrize("case", MASKED)
def test_masks_are_causal_where_asked_and_hold_the_diagonal(case):
    kind, settings = variant_of(ATTENTION[case])
    causal, both = (np.asarray(kind.mask(settings, T, causal=c).dense(T, T)).reshape(-1, T, T) for c in (True, False))
    assert not np.triu(causal, 1).any()
    assert causal[:, np.arange(T), np.arange(T)].all() and both[:, np.arange(T), np.arange(T)].all()
    assert np.triu(both, 1).any()


def test_window_counts_the_keys_on_its_sides():
    causal, both = (np.asarray(VARIANTS["window"].mask({"window": 3}, T, causal=c).dense(T, T)) for c in (True, False))
    assert causal[9].nonzero()[0].tolist() == [6, 7, 8, 9]
    assert both[9].nonzero()[0].tolist() == [6, 7, 8, 9, 10, 11, 12]


def test_longformer_prefix_is_seen_by_all_and_in_an_encoder_sees_all():
    kind, settings = VARIANTS["longformer"], ATTENTION["longformer"]
    causal, both = (np.asarray(kind.mask(settings, T, causal=c).dense(T, T)) for c in (True, False))
    assert causal[10].nonzero()[0].tolist() == [0, 1, 8, 9, 10]
    assert both[:2].all() and both[:, :2].all()


def test_a_dilated_window_skips_keys():
    kind, settings = variant_of(ATTENTION["longformer dilated"])
    causal, both = (np.asarray(kind.mask(settings, T, causal=c).dense(T, T)) for c in (True, False))
    assert causal[8].nonzero()[0].tolist() == [0, 2, 5, 8]
    assert both[5].nonzero()[0].tolist() == [0, 2, 5, 8, 11]


def test_sparse_transformer_splits_its_heads_and_gives_them_columns_of_their_own():
    def seen(case):
        kind, settings = variant_of(ATTENTION[case])
        return [row.nonzero()[0].tolist() for row in np.asarray(kind.mask(settings, T, num_heads=2).dense(T, T))[:, 12]]

    assert seen("strided split") == [[8, 9, 10, 11, 12], [2, 7, 12]]
    assert seen("fixed per head") == [[3, 4, 8, 9, 10, 11, 12], [1, 2, 6, 7, 10, 11, 12]]


@pytest.mark.parametrize("name", ["transformer", "encoder"])
def test_only_the_rows_of_global_tokens_read_through_the_global_projections(tiny, name):
    layer, shared = (
        Attention(tiny(name=name, attention=ATTENTION[case]), length=T, rngs=nnx.Rngs(0))
        for case in ("longformer projected", "longformer")
    )
    assert {name: x.shape for name, x in layer.learned.items()} == {
        "global_query": (12, 2, 6), "global_key": (12, 1, 6), "global_value": (12, 1, 6)
    }  # fmt: skip
    x = jax.random.normal(jax.random.key(1), (2, T, 12))
    rotate = lambda x: x * jnp.arange(1.0, 1 + T)[:, None, None]  # noqa: E731
    got, wanted = (jax.jit(lambda x, layer=layer: layer(x, rotate=rotate))(x) for layer in (layer, shared))
    np.testing.assert_array_equal(got[:, 2:], wanted[:, 2:])
    assert (got[:, :2] != wanted[:, :2]).any(-1).all()
    ordinary = {f"global_{name}": getattr(layer, name)[...] for name in ("query", "key", "value")}
    same = jax.jit(lambda x: layer(x, rotate=rotate, shared=ordinary))(x)
    np.testing.assert_allclose(same, wanted, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(wanted).max())


@pytest.mark.parametrize("correct", [0, 1])
def test_lsh_counts_a_pair_as_its_setting_says(correct):
    kind, settings = variant_of(ATTENTION["lsh"] | {"correct_duplicates": correct})
    query, value = heads(2), heads(1, 1)
    rng = jax.random.key(3)
    sizes = {"num_hashes": 2, "bucket_size": 3, "num_buckets": 4, "rng": rng, "causal": True}
    got = kind.attend(query, query, value, rng, settings=settings, causal=True)
    wanted, other = (lsh_attention(query, value, correct_duplicates=c, **sizes) for c in (bool(correct), not correct))
    np.testing.assert_array_equal(got, wanted)
    assert (got != other).any()


def test_bigbird_pattern_is_a_function_of_the_seed():
    def blocks(seed):
        mask = VARIANTS["bigbird"].mask(ATTENTION["bigbird"] | {"seed": seed}, 40, num_heads=3)
        return np.asarray(mask.dense(40, 40))

    np.testing.assert_array_equal(blocks(7), blocks(7))
    assert (blocks(7) != blocks(8)).any()
    assert (blocks(7)[0] != blocks(7)[1]).any()  # heads draw their own


def test_bigbird_draws_the_same_pattern_while_traced():
    def pattern():
        return VARIANTS["bigbird"].mask(ATTENTION["bigbird"], 40, num_heads=3).dense(40, 40)

    np.testing.assert_array_equal(jax.jit(pattern)(), pattern())


@pytest.mark.parametrize("case", [case for case in ATTENTION if case not in MASKED])
def test_the_others_have_no_mask(case):
    kind, settings = variant_of(ATTENTION[case])
    assert kind.mask(settings, T) is None


@pytest.mark.parametrize("case", [case for case in CAUSAL if can(case).dropout])
def test_attention_dropout_is_honoured(tiny, case):
    layer = Attention(tiny(attention=ATTENTION[case], attention_dropout=0.5), length=T, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, T, 12))
    first, second = jax.random.split(jax.random.key(2))
    dropped = jax.jit(lambda rng: layer(x, rng=rng))
    np.testing.assert_array_equal(dropped(first), dropped(first))
    # All but the first token, which sees itself alone and may keep it or not.
    assert (dropped(first) != dropped(second)).any(-1).mean() > 0.5
    assert (dropped(first) != jax.jit(layer)(x)).any(-1).mean() > 0.5


# Rows of global tokens have values of their own, and heads with columns of their own take no bias.
@pytest.mark.parametrize(
    "case", [case for case in CAUSAL if can(case).bias and case not in ("longformer projected", "fixed per head")]
)
def test_bias_is_honoured(tiny, case):
    layer = Attention(tiny(attention=ATTENTION[case]), length=T, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, T, 12))
    # A slope this steep leaves each query with itself alone: the output is the projected value.
    steep = jax.jit(layer)(x, bias=biases.ALiBi(jnp.full(2, 1e4)))
    value = jnp.repeat(jnp.einsum("btd,dnh->btnh", x, layer.value[...]), 2, axis=2)
    wanted = jnp.einsum("btnh,nhd->btd", value, layer.out[...])
    np.testing.assert_allclose(steep, wanted, atol=12 * np.finfo(np.float32).eps * float(jnp.abs(wanted).max()))


def test_lsh_owns_one_projection_for_query_and_key(tiny):
    layer = Attention(tiny(attention=ATTENTION["lsh"]), length=T, rngs=nnx.Rngs(0))
    assert not hasattr(layer, "key")
    query, key, _ = layer.heads(*[jax.random.normal(jax.random.key(1), (2, T, 12))] * 2, None)
    np.testing.assert_array_equal(query, key)


@pytest.mark.parametrize("case", ["linformer none", "linformer", "linformer key_value", "linformer layerwise"])
def test_linformer_owns_what_its_sharing_says(tiny, case):
    layer = Attention(tiny(name="encoder", attention=ATTENTION[case]), length=T, rngs=nnx.Rngs(0))
    shapes = {name: array.shape for name, array in layer.learned.items()}
    matrices = {"linformer none": (2, T, 5), "linformer": (T, 5)}
    if case in matrices:
        assert shapes == dict.fromkeys(["key_projection", "value_projection"], matrices[case])
    else:
        assert shapes == {"projection": (T, 5)}


def test_gates_of_the_linear_family(tiny):
    x = 5 * jax.random.normal(jax.random.key(1), (2, T, 12))
    decays, betas = (
        VARIANTS[name].arrays({}, layer.sizes, layer.learned, x, None, None)[0]
        for name in ("gated_linear", "delta_rule")
        for layer in [Attention(tiny(attention=ATTENTION[name]), length=T, rngs=nnx.Rngs(0))]
    )
    assert decays.shape == (2, T, 1, 6) and (decays < 0).all() and decays.std() > 0
    assert betas.shape == (2, T, 1) and (betas > 0).all() and (betas < 1).all() and betas.std() > 0


def test_the_delta_rule_gets_keys_of_unit_length(tiny):
    layer = Attention(tiny(attention=ATTENTION["delta_rule"]), length=T, rngs=nnx.Rngs(0))
    query, key, _ = layer.heads(*[10 * jax.random.normal(jax.random.key(1), (2, T, 12))] * 2, None)
    for x in (query, key):  # 1e-6 keeps a vector of zeros from dividing by 0
        np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1, atol=2e-3)


@pytest.mark.parametrize("case", ["retention", "gated_linear", "delta_rule"])
def test_heads_without_a_normaliser_are_normed(tiny, case):
    layer = Attention(tiny(attention=ATTENTION[case]), length=T, rngs=nnx.Rngs(0))
    attended = jax.random.normal(jax.random.key(1), (2, T, 2, 6))
    np.testing.assert_allclose(layer.merge_heads(attended), layer.merge_heads(100 * attended), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(rms_normalized(jnp.zeros((2, 3))), 0)


@pytest.mark.parametrize("chunks", [2, 5, 40])
def test_a_chunked_mlp_equals_the_whole(tiny, chunks):
    whole, sliced = (MLP(tiny(mlp_chunks=n), rngs=nnx.Rngs(0)) for n in (1, chunks))
    x = jax.random.normal(jax.random.key(1), (2, T, 12))
    pull = lambda mlp: jax.jit(jax.value_and_grad(lambda mlp, x: (mlp(x) ** 2).sum(), argnums=(0, 1)))(mlp, x)  # noqa: E731
    wanted, got = pull(whole), pull(sliced)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        # Sums of 26 rows in another order.
        np.testing.assert_allclose(a, b, rtol=0, atol=26 * np.finfo(np.float32).eps * np.abs(b).max())


def test_a_chunked_mlp_keeps_less(tiny):
    def temporary(chunks):
        mlp = MLP(tiny(mlp_chunks=chunks, mlp_width=256), rngs=nnx.Rngs(0))
        gradient = jax.jit(jax.grad(lambda x: (mlp(x) ** 2).sum()))
        x = jax.ShapeDtypeStruct((1, 2048, 12), jnp.float32)
        return gradient.lower(x).compile().memory_analysis().temp_size_in_bytes

    hidden = 2048 * 256 * 4
    assert temporary(1) > hidden
    assert temporary(16) < hidden / 2


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
    for layer in (Attention(config, length=T, rngs=nnx.Rngs(0)), MLP(config, rngs=nnx.Rngs(0))):
        out = np.asarray(layer.out[...])
        assert abs(out.std() - 0.005) < 5 * 0.005 / (2 * out.size) ** 0.5


ACTIVATIONS = {
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def shaken(layer):
    """The layer with every parameter drawn anew, so that biases and scales count, and (name) -> it in float64."""
    graph, state = nnx.split(layer)
    keys = iter(jax.random.split(jax.random.key(7), 99))
    state = jax.tree.map(lambda w: jax.random.normal(next(keys), w.shape) / 2, state)
    layer = nnx.merge(graph, state)
    return layer, lambda name: np.asarray(getattr(layer, name)[...], np.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("use_bias", [False, True])
def test_mlp_matches_numpy(tiny, activation, use_bias):
    mlp, w = shaken(MLP(tiny(activation=activation, use_bias=use_bias), rngs=nnx.Rngs(0)))
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 12)), np.float64)
    hidden = ACTIVATIONS[activation](x @ w("into") + (w("into_bias") if use_bias else 0))
    wanted = hidden @ w("out") + (w("out_bias") if use_bias else 0)
    assert hasattr(mlp, "into_bias") == use_bias
    np.testing.assert_allclose(jax.jit(mlp)(jnp.float32(x)), wanted, atol=12 * EPS * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_norms_match_numpy(tiny, kind, epsilon):
    norm, w = shaken(norm_of(tiny(norm=kind, norm_epsilon=epsilon), nnx.Rngs(0)))
    x = 3 + np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 12)), np.float64)
    centered = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    wanted = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon) * w("scale")
    wanted = wanted + w("bias") if kind == "layer" else wanted
    np.testing.assert_allclose(norm(jnp.float32(x)), wanted, atol=12 * EPS * np.abs(wanted).max())


def test_biases_of_attention_are_added_to_each_projection(tiny):
    layer, w = shaken(Attention(tiny(name="encoder", use_bias=True), length=T, rngs=nnx.Rngs(0)))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, T, 12)), np.float64)
    query, key, value = (
        np.einsum("btd,dnh->btnh", x, w(name)) + w(f"{name}_bias") for name in ("query", "key", "value")
    )
    scores = np.einsum("btnh,bsh->bnts", query, key[:, :, 0]) / 6**0.5
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    attended = np.einsum("bnts,bsh->btnh", weights, value[:, :, 0])
    wanted = np.einsum("btnh,nhd->btd", attended, w("out")) + w("out_bias")
    got, maps = jax.jit(lambda x: (layer(x), layer.weights(x)))(jnp.float32(x))
    np.testing.assert_allclose(got, wanted, atol=64 * EPS * np.abs(wanted).max())
    np.testing.assert_allclose(maps, weights, atol=64 * EPS)


def test_a_shared_projection_has_one_bias(tiny):
    layer = Attention(tiny(name="encoder", use_bias=True, attention=ATTENTION["lsh"]), length=T, rngs=nnx.Rngs(0))
    assert not hasattr(layer, "key_bias") and layer.query_bias.shape == (2, 6) and layer.value_bias.shape == (1, 6)


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
        ATTENTION["strided"] | {"pattern": "diagonal"},
        "model.attention.pattern: got 'diagonal'; write one of strided, fixed",
    ),
    (
        ATTENTION["strided"] | {"stride": 0},
        "model.attention.stride: wanted an integer from 1 to 2147483647, got 0",
    ),
    (
        ATTENTION["strided"] | {"summary": 1},
        "model.attention.summary: 'strided' has no summary columns, got 1; write 0",
    ),
    (
        ATTENTION["bigbird"] | {"seed": 2**31},
        "model.attention.seed: wanted an integer from 0 to 2147483647, got 2147483648; write 0",
    ),
    (
        ATTENTION["fixed"] | {"summary": 6},
        "model.attention.summary: wanted 1 to stride = 5 for 'fixed', got 6",
    ),
    (
        {"name": "linear", "chunk_size": 5, "feature_map": "gelu"},
        "model.attention.feature_map: got 'gelu'; write one of elu_plus_one, relu",
    ),
    (
        ATTENTION["strided"] | {"summary_per_head": 1},
        "model.attention.summary_per_head: 'strided' has no summary columns, got 1; write 0",
    ),
    (
        ATTENTION["longformer projected"] | {"num_global": 0},
        "model.attention.global_projections: got 1 without a global token to use them; write 0",
    ),
    (
        ATTENTION["longformer"] | {"window": 2**20, "dilation": 2**11},
        "model.attention.dilation: wanted window * dilation below 2**31, got 2048; write 1",
    ),
    (ATTENTION["longformer"] | {"dilation": 0}, "model.attention.dilation: wanted an integer from 1 to"),
    (ATTENTION["lsh"] | {"num_buckets": 3}, "model.attention.num_buckets: wanted an even number, got 3; write 0"),
    (ATTENTION["performer"] | {"redraw": 2}, "model.attention.redraw: wanted an integer from 0 to 1, got 2; write 0"),
    (
        ATTENTION["linformer"],
        "model.attention.name: 'linformer' cannot be causal, so no decoder can use it; write one of full",
    ),
]


@pytest.mark.parametrize("attention, message", REFUSED)
def test_refuses_settings(attention, message):
    with pytest.raises(ValueError) as error:
        check_attention(attention, position="rope", attention_dropout=0.0, num_heads=2)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_refuses_settings_that_the_model_cannot_follow():
    for case, name, changes, message in (
        (
            "strided split",
            "heads",
            {"num_heads": 1},
            "'split' wants a head for each factor, got num_heads = 1; write 'merged'",
        ),
        (
            "fixed per head",
            "summary_per_head",
            {"position": "t5"},
            "cannot follow the bias of position='t5'; write 0, or rope",
        ),
    ):
        model = {"position": "rope", "attention_dropout": 0.0, "num_heads": 2}
        check_attention(ATTENTION[case], **model)
        with pytest.raises(ValueError, match=f"model.attention.{name}: {message}"):
            check_attention(ATTENTION[case], **model | changes)


@pytest.mark.parametrize("position", ["alibi", "t5"])
def test_refuses_a_bias_without_scores(position):
    with pytest.raises(ValueError, match=f"model.position: 'linear' has no scores for '{position}'"):
        check_attention(ATTENTION["linear"], position=position, attention_dropout=0.0, num_heads=2)


def test_refuses_dropout_without_weights():
    with pytest.raises(ValueError, match="model.attention_dropout: 'linear' has no weights to drop"):
        check_attention(ATTENTION["linear"], position="rope", attention_dropout=0.1, num_heads=2)


@pytest.mark.parametrize("use, names", [
    ("encoder", ["retention", "gated_linear", "delta_rule"]),
    ("decoder", ["linformer", "efficient"]),
    ("cross", ["window", "longformer", "sparse_transformer", "bigbird", "lsh", "retention", "gated_linear", "delta_rule"]),
])  # fmt: skip
def test_refuses_a_use_before_compiling(use, names):
    for name in names:
        with pytest.raises(
            ValueError, match=f"model.cross_attention.name: '{name}' .*, so no .* can use it; write one of"
        ):
            check_attention(
                {"name": name, **examples(name)},
                position="rope",
                attention_dropout=0.0,
                num_heads=2,
                use=use,
                field="cross_attention",
            )


def test_cross_attention_has_no_positions_to_refuse():
    check_attention(ATTENTION["linear"], position="alibi", attention_dropout=0.0, num_heads=2, use="cross")


@pytest.mark.parametrize("missing, argument", [
    ("packing", {"segment_ids": jnp.zeros((2, T), int)}), ("padding", {"key_mask": jnp.ones((2, T), bool)}),
])  # fmt: skip
def test_refuses_what_would_be_ignored(tiny, monkeypatch, missing, argument):
    less = dataclasses.replace(VARIANTS["full"].can, **{missing: False})
    monkeypatch.setitem(VARIANTS, "full", dataclasses.replace(VARIANTS["full"], can=less))
    layer = Attention(tiny(), length=T, rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match=f"{next(iter(argument))}: this variant cannot"):
        layer(jnp.ones((2, T, 12)), **argument)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_examples_are_accepted(name):
    kind, shared = VARIANTS[name], {"position": "rope", "attention_dropout": 0.0, "num_heads": 2}
    use = "decoder" if kind.can.causal else "encoder"
    check_attention({"name": name, **examples(name)}, **shared, use=use, grid=kind.grid, graph=kind.graph)
    assert all(isinstance(kind, Setting) for kind in VARIANTS[name].settings.values())
