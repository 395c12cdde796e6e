"""Decoding from a state: the numbers of the whole text at once, in whatever pieces it comes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, DECODING, EXACT_CAUSAL, can
from flax import nnx
from harness import assert_trees_agree, build

from models.transformer import Transformer

B, T, V = 2, 13, 23


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(0), (B, T), 0, V)


def model_of(config):
    graph, _ = nnx.split(Transformer(config, length=T, rngs=nnx.Rngs(0)))
    return nnx.merge(graph, build(config)[1])


def decoded(model, tokens, pieces, capacity=T):
    """Logits of all tokens, `pieces` of them at a time, and how often a step was compiled."""
    step, state, parts = jax.jit(model.step), model.start(len(tokens), capacity), []
    for piece in jnp.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        logits, state = step(piece, state)
        parts.append(logits)
    assert int(state.length) == tokens.shape[1]
    return jnp.concatenate(parts, axis=1), step._cache_size()


@pytest.mark.parametrize("case", DECODING)
def test_steps_equal_the_whole(tiny, tokens, case):
    """A prompt, then token by token; BigBird's last block is the capacity's, which here is the text's."""
    model = model_of(tiny(attention=ATTENTION[case], depth=2))
    logits, compiled = decoded(model, tokens, [5] + [1] * 8)
    assert_trees_agree(logits, model(tokens), roundings=256)
    assert compiled == 2  # the prompt, and one program for every token


@pytest.mark.parametrize("case", ["window", "local", "longformer", "longformer dilated", "retention"])
def test_what_forgets_decodes_beyond_the_capacity(tiny, tokens, case):
    model = model_of(tiny(attention=ATTENTION[case], depth=2))
    logits, _ = decoded(model, tokens, [4, 5, 4], capacity=1)
    assert_trees_agree(logits, model(tokens), roundings=256)


def test_a_full_cache_refuses_more_than_it_holds(tiny, tokens):
    model = model_of(tiny(depth=1, scan_layers=False))
    with pytest.raises(ValueError, match="cache: wanted a capacity of at least 13 tokens, got 7"):
        model.step(tokens, model.start(B, 7))
    logits, _ = decoded(model, tokens, [7, 6], capacity=7)  # traced, it cannot raise
    assert np.isfinite(logits[:, :7]).all() and np.isnan(logits[:, 7:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"position": "alibi"}, {"position": "t5", "scan_layers": False}, {"position": "learned"}, {"position": "sinusoidal"},
    {"position": "none", "reversible": True}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"mlp_chunks": 3, "tie_embeddings": False}, {"num_heads": 6, "num_kv_heads": 3},
])  # fmt: skip
def test_every_option_decodes(tiny, tokens, changes):
    model = model_of(tiny(**changes, depth=2))
    logits, _ = decoded(model, tokens, [5, 1, 7])
    assert_trees_agree(logits, model(tokens), roundings=256)


@pytest.mark.parametrize("case", ["full", "retention"])
def test_bfloat16_decodes(tiny, tokens, case):
    model = model_of(tiny(attention=ATTENTION[case], depth=2, dtype="bfloat16"))
    logits, _ = decoded(model, tokens, [12, 1])
    error = np.abs(logits - model(tokens)).max() / np.abs(logits).max()
    assert error < 16 * 2.0**-8  # bfloat16 keeps 8 bits; some roundings fall elsewhere


@pytest.mark.parametrize("attention", [{"name": "full"}, {"name": "window", "window": 4095}])
def test_steps_write_in_place_when_the_state_is_donated(tiny, tokens, attention):
    """Every byte of the state is written over, and a step sets aside less than a copy of one layer's keys."""
    model = model_of(tiny(depth=2, width=96, num_kv_heads=2, scan_layers=False, attention=attention))
    state = model.start(B, 4096)
    memory = jax.jit(model.step, donate_argnums=1).lower(tokens[:, :1], state).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    scores = 4 * B * 2 * 4096  # float32, one a query head and slot
    assert memory.temp_size_in_bytes < 8 * scores < state.layers[0].key.nbytes


@pytest.mark.slow
def test_states_are_ordinary_trees_by_row(tiny, tokens):
    """Beam search: a step after reordering rows equals the reordering of the step."""
    model = model_of(tiny(depth=1, scan_layers=False))
    _, state = model.step(tokens[:, :6], model.start(B, T))
    swapped = state._replace(layers=jax.tree.map(lambda x: x[::-1], state.layers))
    wanted, _ = model.step(tokens[:, 6:7], state)
    got, _ = model.step(tokens[::-1, 6:7], swapped)
    np.testing.assert_array_equal(got[::-1], wanted)


def test_refuses_to_decode(tiny):
    for changes, message in [
        ({"attention": ATTENTION["lsh"]}, "model.attention.name: 'lsh' has no state to decode from"),
        ({"attention": ATTENTION["longformer projected"]}, "global_projections: the rows of global tokens read keys"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 5}},
            "model.rope_scaling: dynamic scaling would turn earlier keys anew",
        ),
    ]:
        with pytest.raises(NotImplementedError, match=message):
            model_of(tiny(**changes, depth=1)).start(B, T)
    with pytest.raises(ValueError, match="capacity: wanted at most the 13 learned positions, got 14"):
        model_of(tiny(position="learned", depth=1)).start(B, T + 1)


def test_every_other_causal_variant_decodes():
    assert all(can(case).decoding for case in EXACT_CAUSAL)
