"""The decoder: causality, packing, positions, scan and remat against their plain forms, refusals."""

import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, CAUSAL, EXACT_CAUSAL, can
from flax import nnx
from harness import EPS, assert_everything_learns, assert_trees_agree, build, value_and_gradient

from models import MODELS
from models.axial import AxialResNet
from models.config import FIELDS, POSITIONS, check
from models.gat import GraphNetwork
from models.layers import sinusoids
from models.link_prediction import LinkPrediction
from models.swin import Swin
from models.transformer import Encoder, EncoderDecoder, Transformer
from models.two_towers import TwoTowers
from models.vit import ViT

B, T, V = 2, 13, 23


def pairs():
    """Every variant with every position it can have. Slow: all but each variant's hardest and what full can have."""
    for attention in EXACT_CAUSAL:
        bias = can(attention).bias and not ATTENTION[attention].get("summary_per_head")
        for position in POSITIONS:
            if bias or position not in ("alibi", "t5"):
                quick = attention == "full" or position == ("alibi" if bias else "rope")
                yield pytest.param(attention, position, marks=() if quick else pytest.mark.slow)


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(0), (B, T), 0, V)


def test_models_names_it():
    assert {name: pkgutil.resolve_name(path) for name, path in MODELS.items()} == {
        "transformer": Transformer,
        "encoder": Encoder,
        "encoder_decoder": EncoderDecoder,
        "vit": ViT,
        "swin": Swin,
        "axial": AxialResNet,
        "graph_network": GraphNetwork,
        "link_prediction": LinkPrediction,
        "two_towers": TwoTowers,
    }
    assert FIELDS.keys() == MODELS.keys()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_number_of_parameters(tiny, tied, position):
    config = tiny(position=position, tie_embeddings=tied)
    D, M, N, K, H = 12, 11, 2, 1, 6
    layer = D * (2 * N + 2 * K) * H + 2 * D * M + 2 * D
    wanted = (1 if tied else 2) * V * D + 3 * layer + D + {"learned": T * D, "t5": 6 * N}.get(position, 0)
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, length=T, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == wanted
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("attention, position", list(pairs()))
def test_no_look_ahead(tiny, tokens, attention, position):
    apply, state = build(tiny(attention=ATTENTION[attention], position=position, depth=2))
    changed = tokens.at[:, 7].set((tokens[:, 7] + 1) % V)
    before, after = apply(state, tokens), apply(state, changed)
    assert before.shape == (B, T, V) and before.dtype == jnp.float32
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7] != after[:, 7]).any(-1).all()
    later = 7 + ATTENTION[attention].get("dilation", 1)  # every variant sees the token before
    assert (before[:, later] != after[:, later]).any(-1).all()


@pytest.mark.parametrize("attention", CAUSAL)
def test_packed_documents_are_isolated(tiny, tokens, attention):
    apply, state = build(tiny(attention=ATTENTION[attention], depth=2))
    documents = jnp.broadcast_to(jnp.repeat(jnp.array([0, 1, -1]), jnp.array([5, 6, 2])), (B, T))
    first_changed = tokens.at[:, :5].set((tokens[:, :5] + 1) % V)
    before = apply(state, tokens, segment_ids=documents)
    after = apply(state, first_changed, segment_ids=documents)
    np.testing.assert_array_equal(before[:, 5:], after[:, 5:])
    assert (before[:, :5] != after[:, :5]).any(-1).all()
    assert (before[:, 6:11] != apply(state, tokens)[:, 6:11]).any(-1).all()  # the ids are not ignored


@pytest.mark.parametrize("attention", ["full", "window", "linear"])
def test_a_packed_document_reads_as_if_alone(tiny, tokens, attention):
    apply, state = build(tiny(attention=ATTENTION[attention], depth=2))
    documents = jnp.broadcast_to((jnp.arange(T) >= 5).astype(int), (B, T))
    places = jnp.broadcast_to(jnp.where(jnp.arange(T) >= 5, jnp.arange(T) - 5, jnp.arange(T)), (B, T))
    packed = apply(state, tokens, segment_ids=documents, positions=places)[:, 5:]
    assert_trees_agree(packed, apply(state, tokens[:, 5:]), roundings=64)


@pytest.mark.slow
@pytest.mark.parametrize("attention", CAUSAL)
def test_one_token(tiny, tokens, attention):
    apply, state = build(tiny(attention=ATTENTION[attention], depth=2))
    one = apply(state, tokens[:, :1])
    assert one.shape == (B, 1, V)
    assert_trees_agree(one, apply(state, tokens)[:, :1], roundings=64)


UNROLLED, REMAT = {"scan_layers": False}, {"remat": True}


@pytest.mark.parametrize("position, changes", [("rope", [UNROLLED, REMAT]), ("t5", [UNROLLED | REMAT])])
@pytest.mark.slow
def test_scan_and_remat_change_nothing(tiny, tokens, position, changes):
    base = {"position": position, "dropout": 0.3, "attention_dropout": 0.2}
    wanted = value_and_gradient(tiny(**base), tokens, rng=jax.random.key(3))
    for change in changes:
        got = value_and_gradient(tiny(**base, **change), tokens, rng=jax.random.key(3))
        assert_trees_agree(got, wanted, roundings=64)


def test_scanned_layers_differ(tiny):
    query = Transformer(tiny(), length=T, rngs=nnx.Rngs(0)).blocks.attention.query
    assert query.shape == (3, 12, 2, 6)
    assert (query[0] != query[1]).all()


def test_program_does_not_grow_with_depth(tiny, tokens):
    def lines(**changes):
        config = tiny(**changes)
        graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, length=T, rngs=nnx.Rngs(0))))
        loss = jax.grad(lambda state: nnx.merge(graph, state)(tokens).sum())
        return jax.jit(loss).lower(state).as_text().count("\n")

    assert lines(depth=8) == lines(depth=2)
    assert lines(depth=8, remat=True) == lines(depth=2, remat=True)
    assert lines(depth=8, scan_layers=False) > lines(depth=2, scan_layers=False)


def test_remat_keeps_less(tiny, tokens):
    def kept(**changes):
        """Numbers that the forward pass hands to the backward pass."""
        apply, state = build(tiny(depth=7, **changes))
        residuals = jax.eval_shape(lambda state: jax.vjp(lambda state: apply(state, tokens), state)[1], state)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    parameters = sum(leaf.size for leaf in jax.tree.leaves(build(tiny(depth=7))[1]))
    inputs_of_layers = 7 * B * T * 12
    assert inputs_of_layers < kept(remat=True) < parameters + 2 * inputs_of_layers < kept()


@pytest.mark.parametrize("position", ["t5", "learned"])
def test_every_parameter_learns(tiny, tokens, position):
    assert_everything_learns(value_and_gradient(tiny(position=position, tie_embeddings=False), tokens)[1])


@pytest.mark.slow
@pytest.mark.parametrize("attention", CAUSAL)
def test_every_variant_learns(tiny, tokens, attention):
    config = tiny(attention=ATTENTION[attention], depth=2)
    logits, gradient = value_and_gradient(config, tokens, rng=jax.random.key(3))
    assert logits.shape == (B, T, V)
    assert_everything_learns(gradient)


@pytest.mark.parametrize("attention", ["lsh", "performer"])
def test_training_draws_anew_and_evaluation_by_the_seed(tiny, tokens, attention):
    apply, state = build(tiny(attention=ATTENTION[attention], depth=2))
    other, _ = build(tiny(attention=ATTENTION[attention] | {"seed": 6}, depth=2))
    first, second = jax.random.split(jax.random.key(5))
    np.testing.assert_array_equal(apply(state, tokens), apply(state, tokens))
    np.testing.assert_array_equal(apply(state, tokens, rng=first), apply(state, tokens, rng=first))
    for drawn in (apply(state, tokens, rng=first), apply(state, tokens, rng=second), other(state, tokens)):
        assert (drawn != apply(state, tokens)).any()
    assert (apply(state, tokens, rng=first) != apply(state, tokens, rng=second)).any()


def test_performer_without_redraw_keeps_its_features(tiny, tokens):
    apply, state = build(tiny(attention=ATTENTION["performer relu"], depth=2))
    np.testing.assert_array_equal(apply(state, tokens, rng=jax.random.key(1)), apply(state, tokens))


@pytest.mark.parametrize("attention", ["full", "linear"])
def test_bfloat16_computes_in_half_and_keeps_float32_parameters(tiny, tokens, attention):
    apply, state = build(tiny(dtype="bfloat16", attention=ATTENTION[attention]))
    exact, _ = build(tiny(attention=ATTENTION[attention]))
    half, full = apply(state, tokens), exact(state, tokens)
    assert half.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
    error = np.abs(half - full).max() / np.abs(full).max()
    # bfloat16 keeps 8 bits. Each of the 3 layers rounds the stream a few times: more than one rounding, less than 16.
    assert 2.0**-9 < error < 16 * 2.0**-8


def test_grouped_heads_are_repeated_heads(tiny, tokens):
    grouped, state = build(tiny(num_heads=6, num_kv_heads=3))
    plain, _ = build(tiny(num_heads=6, num_kv_heads=6))
    heads = state.blocks.attention
    repeated = jax.tree.map(lambda w: w, state)
    repeated.blocks.attention.key = jax.tree.map(lambda w: jnp.repeat(w, 2, axis=2), heads.key)
    repeated.blocks.attention.value = jax.tree.map(lambda w: jnp.repeat(w, 2, axis=2), heads.value)
    assert_trees_agree(grouped(state, tokens), plain(repeated, tokens), roundings=64)


def test_untied_embeddings_are_their_own(tiny, tokens):
    tied, state = build(tiny())
    untied, own = build(tiny(tie_embeddings=False))
    same = jax.tree.map(lambda w: w, own)
    same.embedding, same.blocks, same.norm = state.embedding, state.blocks, state.norm
    assert (untied(same, tokens) != tied(state, tokens)).any()
    same.unembedding = state.embedding
    assert_trees_agree(untied(same, tokens), tied(state, tokens), roundings=4)


def test_dropout_follows_its_key(tiny, tokens):
    apply, state = build(tiny(dropout=0.3))
    off, _ = build(tiny())
    first, second = jax.random.split(jax.random.key(5))
    np.testing.assert_array_equal(apply(state, tokens, rng=first), apply(state, tokens, rng=first))
    assert (apply(state, tokens, rng=first) != apply(state, tokens, rng=second)).any()
    np.testing.assert_array_equal(apply(state, tokens), off(state, tokens))
    np.testing.assert_array_equal(off(state, tokens, rng=first), off(state, tokens))


def test_rope_sees_distances_only(tiny, tokens):
    apply, state = build(tiny())
    places = jnp.broadcast_to(jnp.arange(T), (B, T))
    here = apply(state, tokens, positions=places)
    assert_trees_agree(here, apply(state, tokens), roundings=64)
    # Angles up to 64 radians carry 64 times the rounding of angles of order 1.
    assert_trees_agree(apply(state, tokens, positions=places + 50), here, roundings=64 * 64)
    assert (np.abs(apply(state, tokens, positions=places * 2) - here) > 1e-3 * np.abs(here).max()).any()


@pytest.mark.parametrize("rope_type", ["linear", "dynamic"])
def test_rope_scaling_stretches(tiny, tokens, rope_type):
    scaling = {"rope_type": rope_type, "factor": 2.0}
    scaling |= {"original_max_position_embeddings": 5} if rope_type == "dynamic" else {}
    scaled, state = build(tiny(rope_scaling=scaling))
    plain, _ = build(tiny())
    assert (np.abs(scaled(state, tokens) - plain(state, tokens)) > 1e-3).any()
    if rope_type == "linear":  # positions divided by the factor
        doubled = jnp.broadcast_to(2 * jnp.arange(T), (B, T))
        assert_trees_agree(scaled(state, tokens, positions=doubled), plain(state, tokens), roundings=64)


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_added_positions_follow_the_argument(tiny, tokens, position):
    apply, state = build(tiny(position=position))
    places = jnp.broadcast_to(jnp.arange(T), (B, T))
    np.testing.assert_array_equal(apply(state, tokens, positions=places), apply(state, tokens))
    assert (apply(state, tokens, positions=places[:, ::-1]) != apply(state, tokens)).any()


def test_sinusoids_match_the_paper():
    positions = np.arange(7)
    angles = positions[:, None] / 10000.0 ** (2 * np.arange(5) / 10)
    wanted = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(sinusoids(jnp.arange(7), 10), wanted, atol=8 * EPS)


def test_learned_positions_end_at_the_training_length(tiny, tokens):
    apply, state = build(tiny(position="learned"), length=7)
    apply(state, tokens[:, :7])
    with pytest.raises(ValueError, match="tokens: T = 13 is beyond the 7 learned positions"):
        apply(state, tokens)
    beyond = apply(state, tokens[:, :3], positions=jnp.full((B, 3), 7))
    assert np.isnan(beyond).all()  # traced positions cannot raise; they must not borrow the last row


@pytest.mark.parametrize("position", ["rope", "t5"])
def test_other_positions_go_beyond_the_training_length(tiny, tokens, position):
    apply, state = build(tiny(position=position, depth=1), length=7)
    assert np.isfinite(apply(state, tokens)).all()


def test_refuses_wrong_inputs(tiny, tokens):
    apply, state = build(tiny(position="alibi"))
    places = jnp.broadcast_to(jnp.arange(T), (B, T))
    for inputs, message in [
        ({"tokens": tokens[0]}, r"tokens: wanted integers \[B, T\], got int32\[13\]"),
        ({"tokens": tokens.astype(jnp.float32)}, r"tokens: wanted integers \[B, T\], got float32\[2, 13\]"),
        ({"tokens": tokens, "positions": places}, "positions: a model with position='alibi' has no use for them"),
        (
            {"tokens": tokens, "segment_ids": places[:, 1:]},
            r"segment_ids: wanted the shape of tokens \[2, 13\], got \[2, 12\]",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            apply(state, **inputs)


def test_an_unknown_token_is_loud(tiny, tokens):
    apply, state = build(tiny(depth=1))
    logits = apply(state, tokens.at[0, 5].set(V))
    assert np.isnan(logits[0, 5]).all() and np.isfinite(logits[1]).all()


def test_runs_in_tree_mode(tiny, tokens):
    wanted = Transformer(tiny(), length=T, rngs=nnx.Rngs(0))(tokens)
    with nnx.set_graph_mode(False):
        graph, state = nnx.split(Transformer(tiny(), length=T, rngs=nnx.Rngs(0)))
        np.testing.assert_array_equal(nnx.merge(graph, state)(tokens), wanted)


def test_equal_configs_share_a_compilation(tiny):
    first, second = (nnx.split(Transformer(tiny(), length=T, rngs=nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert first == second and hash(first) == hash(second)


WRONG = [
    ({"widht": 12}, T, "model.widht: unknown field; the fields are name, vocab_size, width"),
    ({"width": "12"}, T, "model.width: wanted int, got '12'"),
    ({"depth": True}, T, "model.depth: wanted int, got True"),
    ({"dropout": "0"}, T, "model.dropout: wanted float, got '0'"),
    ({"remat": 1}, T, "model.remat: wanted bool, got 1"),
    ({"depth": 0}, T, "model.depth: wanted at least 1, got 0"),
    ({"num_kv_heads": 0}, T, "model.num_kv_heads: wanted at least 1, got 0"),
    ({"width": 13}, T, "model.width: 13 is not a multiple of num_heads = 2"),
    ({"num_heads": 4, "num_kv_heads": 3}, T, "model.num_heads: 4 is not a multiple of num_kv_heads = 3"),
    ({"position": "rotary"}, T, "model.position: got 'rotary'; write one of rope, alibi"),
    ({"dtype": "float16"}, T, "model.dtype: got 'float16'; write one of float32, bfloat16"),
    ({"dropout": 1.0}, T, "model.dropout: wanted a rate in [0, 1), got 1.0"),
    ({"attention_dropout": -0.1}, T, "model.attention_dropout: wanted a rate in [0, 1), got -0.1"),
    ({"width": 10}, T, "model.width: rope turns pairs, and width / num_heads = 5 is odd"),
    ({"width": 9, "num_heads": 3, "position": "sinusoidal"}, T, "model.width: sinusoidal positions want an even width"),
    ({"name": "mamba"}, T, "model.name: got 'mamba'; write one of transformer"),
    ({"rope_base": 0.5}, T, "model.rope_base: wanted a number above 1, got 0.5; write 10000.0"),
    ({"rope_base": float("inf")}, T, "model.rope_base: wanted a number above 1, got inf"),
    ({"rope_scaling": {"rope_type": "linear"}}, T, "model.rope_scaling: "),
    ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, T, "model.rope_scaling: "),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, T, "model.rope_scaling: "),
    ({"rope_scaling": {"rope_type": "spiral"}}, T, "model.rope_scaling: "),
    (
        {"position": "none", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        T,
        "model.rope_scaling: given, but position='none' does not rotate",
    ),
    ({"position": "t5", "t5_buckets": 1}, T, "model.t5_buckets: wanted 2 <= t5_buckets < 2 * t5_max_distance, got 1"),
    ({"position": "t5", "t5_buckets": 16}, T, "model.t5_buckets: wanted 2 <= t5_buckets < 2 * t5_max_distance, got 16"),
    ({"mlp_chunks": 0}, T, "model.mlp_chunks: wanted at least 1, got 0"),
    ({"pool": "cls"}, T, "model.pool: unknown field; the fields are name"),
    ({"reversible": True, "remat": True}, T, "model.remat: reversible layers recompute everything already"),
    ({"attention": ATTENTION["linformer"]}, T, "model.attention.name: 'linformer' cannot be causal"),
    ({"attention": ATTENTION["efficient"]}, T, "model.attention.name: 'efficient' cannot be causal"),
    (
        {"attention": ATTENTION["axial"]},
        T,
        "model.attention.name: 'axial' wants a grid of patches, as images have; write",
    ),
    ({"norm": "batch"}, T, "model.norm: got 'batch'; write one of rms, layer"),
    ({"norm_epsilon": 0.0}, T, "model.norm_epsilon: wanted a number in (0, 1), got 0.0; write 1e-6"),
    ({"activation": "swish"}, T, "model.activation: got 'swish'; write one of gelu, gelu_tanh, relu"),
    ({"use_bias": 1}, T, "model.use_bias: wanted bool, got 1"),
    ({"attention": {"name": "spare"}}, T, "model.attention.name: unknown variant 'spare'"),
    ({"attention": ATTENTION["linear"], "position": "t5"}, T, "model.position: 'linear' has no scores for 't5'"),
    (
        {"attention": ATTENTION["linear"], "attention_dropout": 0.1},
        T,
        "model.attention_dropout: 'linear' has no weights",
    ),
    ({}, 0, "length: wanted a positive integer, got 0"),
    ({}, 5.0, "length: wanted a positive integer, got 5.0"),
]


@pytest.mark.parametrize("changes, length, message", WRONG)
def test_check_refuses(tiny, changes, length, message):
    with pytest.raises(ValueError) as error:
        check(tiny(**changes), length)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_check_wants_every_field(tiny):
    for name in tiny():
        config = tiny()
        del config[name]
        with pytest.raises(ValueError, match=f"model.{name}: missing; write {name}: "):
            check(config, T)


def test_check_wants_a_config(tiny):
    with pytest.raises(ValueError, match="model: wanted a ConfigDict, got dict"):
        check(tiny().to_dict(), T)


def test_the_model_checks_its_config(tiny):
    with pytest.raises(ValueError, match="model.depth: wanted at least 1"):
        Transformer(tiny(depth=0), length=T, rngs=nnx.Rngs(0))
