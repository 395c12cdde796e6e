"""The encoder and the encoder-decoder: padding, pooling, both sides, memory, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, BIDIRECTIONAL, CROSS, can
from flax import nnx
from harness import EPS, assert_everything_learns, assert_trees_agree, build, trained, value_and_gradient

from models.config import check
from models.transformer import Encoder

B, T, V = 2, 13, 23
MASKED_LM = {"pool": "mean", "num_classes": 0}


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(0), (B, T), 0, V)


@pytest.fixture
def key_mask():
    """One row ends early, the other has a hole and no first token."""
    return (jnp.arange(T) < 9).astype(bool)[None] & jnp.array([[True], [False]]) | (
        (jnp.arange(T) % 5 != 0)[None] & jnp.array([[False], [True]])
    )


@pytest.mark.parametrize("pool, num_classes, tied", [("cls", 5, True), ("mean", 5, True), ("mean", 0, False)])
@pytest.mark.parametrize("position", ["learned", "t5", "rope"])
def test_number_of_parameters(tiny, pool, num_classes, tied, position):
    config = tiny(name="encoder", pool=pool, num_classes=num_classes, tie_embeddings=tied, position=position)
    D, M, N, K, H = 12, 11, 2, 1, 6
    layer = D * (2 * N + 2 * K) * H + 2 * D * M + 2 * D
    first = int(pool == "cls")
    wanted = (1 if tied else 2) * V * D + 3 * layer + D + first * D + num_classes * D
    wanted += {"learned": (T + first) * D, "t5": 6 * N}.get(position, 0)
    state = nnx.state(nnx.eval_shape(lambda: Encoder(config, length=T, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == wanted


SOME = BIDIRECTIONAL[::6]  # the rest only among the slow tests


@pytest.mark.parametrize(
    "attention", [pytest.param(case, marks=() if case in SOME else pytest.mark.slow) for case in BIDIRECTIONAL]
)
def test_padding_has_no_influence(tiny, tokens, key_mask, attention):
    # The last layer's row of a first vector, a global token, never reads the ordinary projections.
    pool = "mean" if attention == "longformer projected" else "cls"
    config = tiny(name="encoder", attention=ATTENTION[attention], pool=pool, depth=2)
    junk = jnp.where(key_mask, tokens, -7)  # no token of the vocabulary
    run = trained(config)
    clean = run(jnp.where(key_mask, tokens, 3), key_mask=key_mask, rng=jax.random.key(1))
    dirty = run(junk, key_mask=key_mask, rng=jax.random.key(1))
    assert clean[0].shape == (B, 5) and clean[0].dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert_everything_learns(clean[1])


@pytest.mark.parametrize("attention", BIDIRECTIONAL)
def test_the_mask_is_not_ignored_and_both_sides_are_seen(tiny, tokens, key_mask, attention):
    apply, state = build(tiny(name="encoder", attention=ATTENTION[attention], depth=2, **MASKED_LM))
    every = jnp.ones((B, T), bool)
    scores = apply(state, tokens, key_mask=every)
    assert scores.shape == (B, T, V)
    assert (apply(state, tokens, key_mask=key_mask) != scores).any()
    later = apply(state, tokens.at[:, 7].set((tokens[:, 7] + 1) % V), key_mask=every)
    assert (later[:, 6] != scores[:, 6]).any() and (later[:, 8] != scores[:, 8]).any()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["full", "window", "linear", "linformer"])
def test_a_padded_text_reads_as_if_alone(tiny, tokens, attention, pool):
    apply, state = build(tiny(name="encoder", attention=ATTENTION[attention], pool=pool, depth=2))
    alone = apply(state, tokens[:, :9])
    padded = apply(state, tokens, key_mask=jnp.broadcast_to(jnp.arange(T) < 9, (B, T)))
    assert_trees_agree(padded, alone, roundings=64)


def test_mean_pooling_counts_real_tokens_only(tiny, tokens, key_mask):
    config = tiny(name="encoder", pool="mean", depth=1)
    graph, state = nnx.split(Encoder(config, length=T, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, state)
    hidden = model.layers(model.embed(tokens, jnp.arange(T), None, key_mask), jnp.arange(T), None, key_mask=key_mask)
    pooled = np.stack([np.asarray(h, np.float64)[m].mean(0) for h, m in zip(hidden, np.asarray(key_mask), strict=True)])
    wanted = pooled @ np.asarray(model.classes[...], np.float64).T
    np.testing.assert_allclose(model(tokens, key_mask=key_mask), wanted, atol=T * EPS * np.abs(wanted).max())


def test_a_row_of_padding_is_finite(tiny, tokens):
    for pool in ("cls", "mean"):
        scores, gradient = value_and_gradient(
            tiny(name="encoder", pool=pool, depth=1), tokens, key_mask=jnp.zeros((B, T), bool)
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((scores, gradient)))
    assert (scores == 0).all()


@pytest.mark.parametrize("position", ["alibi", "t5", "learned", "sinusoidal", "none"])
def test_positions_tell_left_from_right(tiny, tokens, position):
    apply, state = build(tiny(name="encoder", position=position, depth=2, **MASKED_LM))
    forward, backward = apply(state, tokens), apply(state, tokens[:, ::-1])[:, ::-1]
    if position in ("alibi", "none"):  # distances alone, and nothing at all, read the same from either end
        assert_trees_agree(forward, backward, roundings=64)
    else:
        assert (np.abs(forward - backward) > 1e-3 * np.abs(forward).max()).any()


@pytest.mark.slow
def test_packed_documents_of_a_masked_language_model_are_isolated(tiny, tokens):
    for attention in [case for case in BIDIRECTIONAL if can(case).packing]:
        apply, state = build(tiny(name="encoder", attention=ATTENTION[attention], depth=1, **MASKED_LM))
        documents = jnp.broadcast_to(jnp.repeat(jnp.array([0, 1, -1]), jnp.array([5, 6, 2])), (B, T))
        before = apply(state, tokens, segment_ids=documents)
        after = apply(state, tokens.at[:, :5].set((tokens[:, :5] + 1) % V), segment_ids=documents)
        np.testing.assert_array_equal(before[:, 5:11], after[:, 5:11], err_msg=attention)
        assert (before[:, :5] != after[:, :5]).any(-1).all(), attention


@pytest.mark.slow
def test_reversible_and_scan_and_remat_compute_what_they_should(tiny, tokens, key_mask):
    base = {"name": "encoder", "dropout": 0.3, "attention_dropout": 0.2}
    wanted = value_and_gradient(tiny(**base), tokens, key_mask=key_mask, rng=jax.random.key(3))
    got = value_and_gradient(
        tiny(**base, scan_layers=False, remat=True), tokens, key_mask=key_mask, rng=jax.random.key(3)
    )
    assert_trees_agree(got, wanted, roundings=64)


ENCODER_DECODER = {"name": "encoder_decoder", "depth": 2}


@pytest.mark.slow
@pytest.mark.parametrize("cross", CROSS)
def test_the_decoder_reads_the_source_and_not_its_padding(tiny, tokens, key_mask, cross):
    config = tiny(**ENCODER_DECODER, cross_attention=ATTENTION[cross])
    source, target = tokens, tokens[:, 3:10]
    run = trained(config)
    clean = run(jnp.where(key_mask, source, 3), target, source_mask=key_mask)
    dirty = run(jnp.where(key_mask, source, -7), target, source_mask=key_mask)
    assert clean[0].shape == (B, 7, V)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert_everything_learns(clean[1])
    other = jnp.where(key_mask, source.at[:, 4].set((source[:, 4] + 1) % V), 3)
    assert (run(other, target, source_mask=key_mask)[0] != clean[0]).any(-1).all()


@pytest.mark.parametrize("inside", ["window", "delta_rule", "performer"])
def test_the_decoder_does_not_look_ahead(tiny, tokens, inside):
    apply, state = build(tiny(**ENCODER_DECODER, decoder_attention=ATTENTION[inside], position="rope"))
    source, target = tokens, tokens[:, ::-1]
    before, after = apply(state, source, target), apply(state, source, target.at[:, 7].set((target[:, 7] + 1) % V))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


@pytest.mark.slow
def test_encoder_decoder_parts_differ_as_the_config_says(tiny, tokens):
    """Source and target may have their own lengths, depths and variants; reversible layers reach the encoder too."""
    config = tiny(
        **ENCODER_DECODER,
        encoder_depth=3,
        attention=ATTENTION["linformer layerwise"],
        cross_attention=ATTENTION["linformer layerwise"],
        decoder_attention=ATTENTION["retention"],
        reversible=True,
        dropout=0.2,
    )
    logits, gradient = value_and_gradient(config, tokens, tokens[:, :5], rng=jax.random.key(1))
    assert logits.shape == (B, 5, V)
    assert_everything_learns(gradient)
    assert jax.tree.leaves(gradient.encoder.blocks.mlp)[0].shape[0] == 3
    assert jax.tree.leaves(gradient.blocks.mlp)[0].shape[0] == 2


@pytest.mark.parametrize("inputs, error, message", [
    ({"key_mask": jnp.ones((B, 3), bool)}, ValueError, r"key_mask: wanted the shape of tokens \[2, 13\], got \[2, 3\]"),
    ({"segment_ids": jnp.zeros((B, T), int)}, NotImplementedError, "segment_ids: one class or one vector a row"),
])  # fmt: skip
def test_refuses_inputs(tiny, tokens, inputs, error, message):
    apply, state = build(tiny(name="encoder", depth=1))
    with pytest.raises(error, match=message):
        apply(state, tokens, **inputs)


def test_linformer_refuses_packing_and_longer_texts(tiny, tokens):
    apply, state = build(tiny(name="encoder", depth=1, attention=ATTENTION["linformer"], **MASKED_LM), length=7)
    apply(state, tokens[:, :7])
    with pytest.raises(ValueError, match="key_projection: wanted"):
        apply(state, tokens)
    with pytest.raises(NotImplementedError, match="segment_ids: this variant cannot keep documents apart"):
        apply(state, tokens[:, :7], segment_ids=jnp.zeros((B, 7), int))


WRONG = [
    ("encoder", {"pool": "max"}, "model.pool: got 'max'; write one of cls, mean"),
    ("encoder", {"num_classes": -1}, "model.num_classes: wanted at least 0, got -1"),
    ("encoder", {"tie_embeddings": False}, "model.tie_embeddings: a classifier has no scores of tokens to untie"),
    ("encoder", {"position": "t5", "t5_buckets": 5}, "model.t5_buckets: wanted an even t5_buckets"),
    ("encoder", {"position": "t5", "t5_buckets": 2}, "model.t5_buckets: wanted an even t5_buckets"),
    ("encoder", {"position": "t5", "t5_buckets": 28}, "model.t5_buckets: wanted an even t5_buckets"),
    ("encoder", {"encoder_depth": 2}, "model.encoder_depth: unknown field"),
    ("encoder", {"attention": ATTENTION["retention"]}, "model.attention.name: 'retention' never looks ahead"),
    ("encoder", {"attention": ATTENTION["grid_window"]}, "model.attention.name: 'grid_window' wants a grid of patches"),
    ("encoder_decoder", {"encoder_depth": 0}, "model.encoder_depth: wanted at least 1, got 0"),
    ("encoder_decoder", {"pool": "cls"}, "model.pool: unknown field"),
    (
        "encoder_decoder",
        {"decoder_attention": ATTENTION["linformer"]},
        "model.decoder_attention.name: 'linformer' cannot be causal, so no decoder can use it",
    ),
    (
        "encoder_decoder",
        {"cross_attention": ATTENTION["window"]},
        "model.cross_attention.name: 'window' attends within one sequence, so no cross-attention can use it",
    ),
    (
        "encoder_decoder",
        {"cross_attention": ATTENTION["linear"], "attention_dropout": 0.1},
        "model.attention_dropout: 'linear' has no weights to drop",
    ),
]


@pytest.mark.parametrize("name, changes, message", WRONG)
def test_check_refuses(tiny, name, changes, message):
    with pytest.raises(ValueError) as error:
        check(tiny(name=name, **changes), T)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("position", ["t5", "rope", "learned"])
@pytest.mark.parametrize("name", ["encoder", "encoder_decoder"])
def test_check_accepts(tiny, name, position):
    check(tiny(name=name, position=position), T)
