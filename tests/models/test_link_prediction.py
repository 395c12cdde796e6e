"""Link prediction: the layer against dense sums in float64, DistMult alone, graphs apart, configs that cannot be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harness import EPS, assert_everything_learns
from ml_collections import ConfigDict

from configs import compare_knowledge_graph
from experiment import settings
from experiment.learner import make_learner, make_step, weights
from models.config import check
from models.edges import Edges
from models.link_prediction import LinkPrediction
from tasks import knowledge_graph

V, R, E, B, Q = 11, 3, 37, 2, 5
ATTENTIVE = ("gat", "gatv2", "constant")


def config(name="gat", depth=2, **changes):
    fields = {"name": "link_prediction", "num_entities": V, "num_relations": R, "width": 6, "num_heads": 2}
    fields |= {"dropout": 0.0, "attention_dropout": 0.0, "depth": depth, "attention": {"name": name}}
    return ConfigDict(fields | changes)


@functools.cache
def built(name, depth=2):
    """(jitted (state, edges, subjects, relations) -> scores, state), every parameter random."""
    graph, state = nnx.split(LinkPrediction(config(name, depth), length=Q, rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(state)
    noise = np.random.default_rng(0)
    state = jax.tree.unflatten(
        tree, [jnp.asarray(x + 0.4 * noise.standard_normal(x.shape), jnp.float32) for x in leaves]
    )
    return jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs)), state


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    senders, receivers = rng.integers(0, V - 1, (2, B, E))  # the last entity has no edge
    edges = Edges(senders, receivers, rng.integers(0, 2 * R, (B, E)), rng.random((B, E)) < 0.7)
    return edges, rng.integers(0, V, (B, Q)), rng.integers(0, 2 * R, (B, Q))


def one_graph(inputs, b):
    return jax.tree.map(lambda x: x[b], inputs)


def dense(state, name, edges, subjects, relations):
    """The definition for one graph, node by node in float64."""
    state = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(state))
    leaky = lambda x: np.where(x > 0, x, 0.2 * x)  # noqa: E731
    x = state["entities"]
    for layer in state.get("layers", {}).values():
        z = np.einsum("ud,dnh->unh", x, layer["into"])
        new = np.empty_like(x)
        for v in range(V):
            incoming = [(s, r) for s, o, r, real in zip(*map(list, (edges.senders, edges.receivers, edges.relations, edges.mask)), strict=True) if real and o == v]  # fmt: skip
            messages = np.stack([z[s] * layer["composition"][r] for s, r in [*incoming, (v, 2 * R)]])  # E N H
            if name == "gat":
                scores = leaky((messages * layer["sender_vector"]).sum(-1) + (z[v] * layer["receiver_vector"]).sum(-1))
            elif name == "gatv2":
                own = np.einsum("d,dnh->nh", x[v], layer["into_receivers"])
                scores = (leaky(messages + own) * layer["vector"]).sum(-1)
            else:
                scores = np.zeros(messages.shape[:2])
            weights = np.exp(scores) / np.exp(scores).sum(0)
            out = (weights[..., None] * messages).sum(0).reshape(-1) + layer["bias"]
            new[v] = np.where(out > 0, out, np.exp(out) - 1)
        x = x + new
    return x[subjects] * state["relations"][relations] @ x.T


@pytest.mark.parametrize("name", ATTENTIVE)
def test_scores_are_the_definition_s_and_graphs_stay_apart(name, inputs):
    apply, state = built(name)
    found = apply(state, *inputs)
    assert found.shape == (B, Q, V) and found.dtype == jnp.float32
    for b in range(B):
        wanted = dense(state, name, *one_graph(inputs, b))
        np.testing.assert_allclose(found[b], wanted, rtol=0, atol=100 * EPS * np.abs(wanted).max())


def test_depth_0_is_distmult_and_reads_no_edge(inputs):
    apply, state = built("none", 0)
    edges, subjects, relations = inputs
    found = apply(state, *inputs)
    wanted = [dense(state, "none", *one_graph(inputs, b)) for b in range(B)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=10 * EPS * np.abs(wanted).max())
    np.testing.assert_array_equal(found, apply(state, edges._replace(mask=~edges.mask), subjects, relations))
    assert sum(x.size for x in jax.tree.leaves(state)) == (V + 2 * R) * 6


@pytest.mark.parametrize("name", ATTENTIVE)
def test_hidden_edges_have_no_influence_and_real_ones_reach_as_far_as_the_depth(name, inputs):
    apply, state = built(name)
    (senders, receivers, relations, mask), subjects, asked = inputs
    before = apply(state, *inputs)
    other = [np.where(mask, x, (x + 1) % high) for x, high in ((senders, V), (receivers, V), (relations, 2 * R))]
    np.testing.assert_array_equal(before, apply(state, Edges(*other, mask), subjects, asked))
    # A path 0 -> 1 -> 2 -> 3: two layers carry entity 0 to 2, not to 3.
    path = Edges(*np.array([[[0, 1, 2]], [[1, 2, 3]], [[0, 1, 2]]]), mask=np.ones((1, 3), bool))
    moved = jax.tree.map(lambda x: x, state)
    moved["entities"] = state["entities"].replace(state["entities"][...].at[0].add(1.0))
    one = [apply(s, path, np.full((1, Q), 3), asked[:1]) for s in (state, moved)]  # subject 3, score of each entity
    changed = (one[0] != one[1]).any((0, 1))
    assert changed[:3].all() and not changed[3:].any()


@pytest.mark.parametrize("name", ATTENTIVE)
def test_every_parameter_learns(name, inputs):
    apply, state = built(name)
    assert_everything_learns(jax.grad(lambda state: jnp.mean(jnp.square(apply(state, *inputs))))(state))


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_dropout_is_drawn_in_training_alone(rate, inputs):
    apply, state = built("gat", 1)
    graph, _ = nnx.split(LinkPrediction(config("gat", 1, **{rate: 0.5}), length=Q, rngs=nnx.Rngs(0)))
    call = jax.jit(lambda state, rng: nnx.merge(graph, state)(*inputs, rng=rng))
    still, *drawn = call(state, None), *(call(state, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_allclose(still, apply(state, *inputs), rtol=0, atol=10 * EPS * np.abs(still).max())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2]) and not np.allclose(drawn[0], still)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention": {"name": "dot"}}, "model.attention.name: got 'dot'; write one of gat, gatv2, constant, none"),
        ({"attention": {"name": "gat", "heads": 2}}, "model.attention.heads: 'gat' has no such setting; drop it"),
        ({"depth": 0}, "model.attention.name: got 'gat' with depth=0; 'none' goes with depth=0"),
        ({"attention": {"name": "none"}}, "model.attention.name: got 'none' with depth=2"),
        ({"attention": {"name": "constant"}, "attention_dropout": 0.1}, "model.attention_dropout: 'constant' learns no"),
        ({"width": 7}, "model.width: wanted a multiple of num_heads = 2, got 7"),
        ({"dropout": 1.0}, "model.dropout: wanted a rate in"),
        ({"num_entities": -1}, "model.num_entities: wanted at least 0, got -1"),
        ({"vocab_size": 5}, "model.vocab_size: unknown field"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_says_what_to_write(changes, message):
    with pytest.raises(ValueError, match=message):
        check(config(**changes), Q)


def test_what_only_the_data_know_must_be_filled_in():
    check(config(num_relations=0), Q)
    with pytest.raises(ValueError, match="model.num_relations: 0 stands for what the data have"):
        LinkPrediction(config(num_relations=0), length=Q, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_graph_attention_tells_kin_that_distmult_alone_does_not():
    """Filtered MRR on the development facts after the same 300 steps: with edges and without."""
    found = {label: trained_mrr(label, steps=300) for label in ("distmult", "gat")}
    assert found["gat"] > found["distmult"] + 0.05 and found["distmult"] > 0.4


def trained_mrr(label, steps):
    shared = compare_knowledge_graph.get_config()
    shared.train.steps = steps
    corpus = knowledge_graph.load(shared.data)
    settings.fill(shared, knowledge_graph.fields(corpus))
    variant = settings.variants(shared)[label]
    learner = make_learner(variant, 0)
    step, state, length = make_step(learner, knowledge_graph.score), learner.state, variant.data.questions
    for i in range(steps):
        examples = knowledge_graph.batch(corpus, 0, i, 1, length)
        state, _ = step(state, {name: array[None] for name, array in examples.items()})
    ranks = knowledge_graph.judged_ranks(learner.model(weights(state)), knowledge_graph.development(corpus, length)[0])
    return np.mean(1 / ranks)
