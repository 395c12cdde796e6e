"""GraphNetwork: goldens, definitions, batches, padding, sparse features, dropout, sizes, refusals."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harness import EPS, assert_everything_learns, build
from jax.experimental.sparse import BCOO
from ml_collections import ConfigDict

from attention.checks import split_rng
from experiment.scaling import scaling
from models.config import check
from models.edges import Edges
from models.gat import GraphNetwork
from models.graph_layers import LAYERS
from models.layers import dropout
from models.sparse_features import bag_of, drop_per_head, project

B, V, E, F, CLASSES = 2, 7, 19, 5, 3
GOLDENS = Path(__file__).parents[1] / "goldens"
KINDS = {
    "gat": {"name": "gat"},
    "gatv2": {"name": "gatv2", "share_weights": 0},
    "gatv2 shared": {"name": "gatv2", "share_weights": 1},
    "dot_product": {"name": "dot_product", "share_weights": 0},
    "dot_product shared": {"name": "dot_product", "share_weights": 1},
    "gcn": {"name": "gcn"},
    "constant": {"name": "constant"},
}
SCORED = [kind for kind in KINDS if kind not in ("gcn", "constant")]
OFTEN = ("gat", "gcn")  # the default suite; all kinds are held to their definition in any case
EACH = [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


def tiny(kind="gat", **changes):
    fields = {"name": "graph_network", "num_features": F, "num_classes": CLASSES, "num_relations": 0, "input_width": 0}
    fields |= {"num_heads": (2, 3), "head_dim": (4,), "readout": False, "activation": "elu", "residual": False}
    fields |= {"self_loops": True, "dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
    return ConfigDict(fields | {"attention": KINDS[kind]} | changes)


def random(config):
    """The model as a function of its state, and a state whose biases count, too."""
    run, state = build(config)
    noise = np.random.default_rng(2)
    return run, jax.tree.map(lambda w: w / 10 + 0.3 * noise.standard_normal(w.shape).astype(np.float32), state)


def value_and_gradient(config, *inputs, **others):
    """The scores of `random`, and the gradient of their mean square."""
    run, state = random(config)

    def loss(state):
        scores = run(state, *inputs, **others)
        return jnp.mean(scores**2), scores

    (_, scores), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    return scores, gradient


@pytest.fixture
def nodes():
    x = np.random.default_rng(0).standard_normal((B, V, F)).astype(np.float32)
    return jnp.asarray(np.where(np.abs(x) < 0.5, 0, x))


@pytest.fixture
def edges():
    """Random edges, some of them double, some loops, the last two of the second graph padding; no edge at node 6."""
    noise = np.random.default_rng(1)
    senders, receivers, relations = noise.integers(0, [[[V - 1]], [[V - 1]], [[2]]], (3, B, E)).astype(np.int32)
    mask = np.arange(E) < np.array([[E], [E - 2]])
    return Edges(*map(jnp.asarray, (senders, receivers, relations, mask)))


# The definitions, in float64.


def oracle(config, state, x, edges):
    """What a graph network makes of one graph, with every pair of nodes looked at."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(state))
    x, last = np.asarray(x, np.float64), len(config.num_heads) - 1
    count, relation = adjacency(config, edges)
    if config.input_width:
        x = np.maximum(x @ params["into"][:, 0], 0)
    for number in range(last + 1):
        heads = oracle_heads(config, params["layers"][number], x, count, relation)
        if number == last and not config.readout:
            return heads.mean(1)
        out = heads.reshape(V, -1)
        if config.residual and number:
            shortcut = params["shortcuts"].get(str(number))
            out = out + (x if shortcut is None else x @ shortcut[:, 0])
        x = np.maximum(out, 0) if config.activation == "relu" else np.where(out > 0, out, np.expm1(out))
    return x @ params["classes"][:, 0]


def adjacency(config, edges):
    """How often each receiver (row) hears each sender by each relation, [V, V, relations]; and the relations' number."""
    count = np.zeros((V, V, config.num_relations + 1))
    for sender, receiver, relation, real in zip(*map(np.asarray, edges), strict=True):
        if real and not (config.self_loops and sender == receiver):
            count[receiver, sender, relation if config.num_relations else 0] += 1
    if config.self_loops:
        count[np.arange(V), np.arange(V), config.num_relations] += 1
    return count, np.arange(config.num_relations + 1)


def oracle_heads(config, p, x, count, relation):
    """[V, N, H] of one layer."""
    name, into = config.attention.name, lambda name: np.einsum("vf,fnh->vnh", x, p[name])
    value = into("value")
    shared = config.attention.get("share_weights", 1)
    if name == "gcn":
        degree = count.sum((1, 2))
        weights = (count.sum(2) / np.sqrt(np.maximum(np.outer(degree, degree), 1)))[..., None]
        return np.einsum("ijn,jnh->inh", weights * np.ones(value.shape[1]), value) + p["bias"]
    table = p.get("relation_table")
    table = np.zeros((len(relation), 1)) if table is None else table[: len(relation)]  # R N, or R N H
    if config.num_relations and not config.self_loops:
        table = np.concatenate([table, np.zeros_like(table[:1])])
    if name == "gatv2":
        value = value + p["value_bias"]
        receiver = value if shared else into("receiver") + p["receiver_bias"]
        table = table if table.ndim == 3 else table[..., None]
        hidden = value[None, :, None] + receiver[:, None, None] + table  # i j r n h
        score = (np.where(hidden > 0, hidden, 0.2 * hidden) * p["vector"]).sum(-1)
    elif name == "gat":
        sender, receiver = ((value * p[f"{end}_vector"]).sum(-1) + p[f"{end}_bias"] for end in ("sender", "receiver"))
        score = sender[None, :, None] + receiver[:, None, None] + table
        score = np.where(score > 0, score, 0.2 * score)
    elif name == "dot_product":
        query, key = (value, value) if shared else (into("query"), into("key"))
        score = np.einsum("inh,jnh->ijn", query, key)[:, :, None] / np.sqrt(value.shape[-1]) + table
    else:
        score = np.zeros((V, V, len(relation), value.shape[1]))
    mass = count[..., None] * np.exp(score - score.max((1, 2), keepdims=True))
    total = mass.sum((1, 2), keepdims=True)
    weights = (mass / np.where(total > 0, total, 1)).sum(2)  # i j n
    return np.einsum("ijn,jnh->inh", weights, value) + p["bias"]


def assert_is_the_definition(config, nodes, edges):
    run, state = random(config)
    scores = run(state, nodes, edges)
    assert scores.shape == (B, V, CLASSES) and scores.dtype == jnp.float32
    for graph in range(B):
        wanted = oracle(config, state, nodes[graph], jax.tree.map(lambda x, b=graph: x[b], edges))
        np.testing.assert_allclose(scores[graph], wanted, rtol=0, atol=64 * EPS * np.abs(wanted).max())


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.slow) if kind in ("gatv2", "dot_product", "constant") else kind
    for kind in KINDS
])  # fmt: skip
def test_is_its_definition(kind, nodes, edges):
    assert_is_the_definition(tiny(kind), nodes, edges)


@pytest.mark.parametrize("kind", [
    kind if kind in ("gat", "gatv2 shared") else pytest.param(kind, marks=pytest.mark.slow) for kind in SCORED
])  # fmt: skip
def test_relations_change_scores(kind, nodes, edges):
    config = tiny(kind, num_relations=2, num_heads=(2,), head_dim=())
    run, state = random(config)
    scores = run(state, nodes, edges)
    wanted = oracle(config, state, nodes[0], jax.tree.map(lambda x: x[0], edges))
    np.testing.assert_allclose(scores[0], wanted, rtol=0, atol=64 * EPS * np.abs(wanted).max())
    alike = run(state, nodes, edges._replace(relations=jnp.zeros_like(edges.relations)))
    assert np.abs(alike - scores).max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"readout": True, "head_dim": (4, 3), "input_width": 6, "self_loops": False, "activation": "relu"},
        pytest.param(
            {"residual": True, "num_heads": (2, 4, 3, 1), "head_dim": (4, 2, 5)},  # of equal width, then of another
            marks=pytest.mark.slow,
        ),
        {"num_heads": (2,), "head_dim": ()},
    ],
    ids=["readout", "residual", "one layer"],
)
def test_the_network_around_the_layers(changes, nodes, edges):
    assert_is_the_definition(tiny(**changes), nodes, edges)


# Other people's numbers.


def golden_case(case):
    arrays = dict(np.load(GOLDENS / f"{case}.npz"))
    senders, receivers = arrays["aux.edge_index"]
    edges = Edges(*(jnp.asarray(x)[None] for x in (senders, receivers, 0 * senders, senders >= 0)))
    split = lambda matrix: jnp.asarray(matrix).reshape(4, 8, -1).transpose(2, 0, 1)  # noqa: E731
    return arrays, edges, split


@pytest.mark.parametrize("kind", ["gat", "gatv2"])
def test_agrees_with_torch_geometric(kind):
    """The whole network of one layer whose heads are averaged."""
    arrays, edges, split = golden_case(f"{kind}_mean")
    config = tiny(kind, num_features=12, num_classes=8, num_heads=(4,), head_dim=())
    graph, state = nnx.split(GraphNetwork(config, length=20, rngs=nnx.Rngs(0)))
    layer = state.layers[0]
    layer.bias[...] = jnp.broadcast_to(arrays["w.bias"], (4, 8))
    if kind == "gat":
        layer.value[...] = split(arrays["w.lin.weight"])
        layer.sender_vector[...], layer.receiver_vector[...] = arrays["w.att_src"][0], arrays["w.att_dst"][0]
    else:
        layer.value[...], layer.receiver[...] = split(arrays["w.lin_l.weight"]), split(arrays["w.lin_r.weight"])
        layer.value_bias[...] = arrays["w.lin_l.bias"].reshape(4, 8)
        layer.receiver_bias[...] = arrays["w.lin_r.bias"].reshape(4, 8)
        layer.vector[...] = arrays["w.att"][0]

    @jax.jit
    def run(state, x):
        out, pull = jax.vjp(lambda x: nnx.merge(graph, state)(x[None], edges)[0], x)
        return out, *pull(arrays["cot"])

    for got, wanted in zip(run(state, arrays["in.x"]), (arrays["out"], arrays["grad.in.x"]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=8 * EPS * np.abs(wanted).max())


def test_hidden_layers_concatenate_heads_as_torch_geometric_does():
    arrays, edges, split = golden_case("gat_concat")
    config = tiny("gat", num_features=12, num_heads=(4, 1), head_dim=(8,))
    graph, state = nnx.split(GraphNetwork(config, length=20, rngs=nnx.Rngs(0)))
    layer = state.layers[0]
    layer.value[...], layer.bias[...] = split(arrays["w.lin.weight"]), arrays["w.bias"].reshape(4, 8)
    layer.sender_vector[...], layer.receiver_vector[...] = arrays["w.att_src"][0], arrays["w.att_dst"][0]
    hidden = jax.jit(lambda state, x: nnx.merge(graph, state).features(x[None], edges)[0][0])(state, arrays["in.x"])
    wanted = np.where(arrays["out"] > 0, arrays["out"], np.expm1(arrays["out"]))
    np.testing.assert_allclose(hidden, wanted, rtol=0, atol=8 * EPS * np.abs(wanted).max())


# Batches, padding, sparse features.


@pytest.mark.parametrize("kind", ["gat", "gcn"])
def test_graphs_of_a_batch_do_not_meet(kind, nodes, edges):
    run, state = random(tiny(kind))
    together = run(state, nodes, edges)
    alone = [run(state, nodes[b : b + 1], jax.tree.map(lambda x, b=b: x[b : b + 1], edges))[0] for b in range(B)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=0, atol=8 * EPS * np.abs(together).max())


@pytest.mark.parametrize("kind", EACH)
def test_padding_has_no_influence(kind, nodes, edges):
    """Neither where padding edges lead nor what node 6, which has no edge, holds."""
    config = tiny(kind)
    elsewhere = jnp.where(edges.mask, 0, 3)
    others = edges._replace(senders=edges.senders + elsewhere, receivers=(edges.receivers + elsewhere) % V)
    run, state = random(config)

    @jax.jit
    def grads(state, nodes, edges):
        scores = lambda state: run(state, nodes, edges)[:, : V - 1]  # noqa: E731
        return scores(state), jax.grad(lambda state: (scores(state) ** 2).sum())(state)

    first, second = grads(state, nodes, edges), grads(state, nodes.at[:, V - 1].set(9.0), others)
    np.testing.assert_array_equal(first[0], second[0])
    assert_gradients_agree(second[1], first[1])


def assert_gradients_agree(got, wanted):
    """Up to a few roundings of the largest entry of all: what cancels in one parameter was as large in another."""
    got, wanted = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (got, wanted))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=16 * EPS * np.abs(wanted).max())


def sparse(nodes, capacity):
    """As a BCOO whose entries are shuffled, one of them in two halves, and padded both ways."""
    places = np.argwhere(np.asarray(nodes) != 0)
    data, indices = np.zeros((B, capacity), np.float32), np.full((B, capacity, 2), (V, F), np.int32)
    for graph in range(B):
        own = np.random.default_rng(graph).permutation(places[places[:, 0] == graph][:, 1:])
        values = np.asarray(nodes)[graph][tuple(own.T)]
        rows = [*zip(own, values, strict=True)][1:] + [(own[0], values[0] / 2)] * 2 + [((0, 0), 0.0)]
        for entry, (place, value) in enumerate(rows):
            data[graph, entry], indices[graph, entry] = value, place
    return BCOO((jnp.asarray(data), jnp.asarray(indices)), shape=nodes.shape)


@pytest.mark.parametrize("input_width", [0, pytest.param(6, marks=pytest.mark.slow)])
def test_sparse_features_are_the_same_features(input_width, nodes, edges):
    config = tiny(input_width=input_width)
    dense, gradient = value_and_gradient(config, nodes, edges)
    scores, others = value_and_gradient(config, sparse(nodes, 40), edges)
    np.testing.assert_allclose(scores, dense, rtol=0, atol=16 * EPS * np.abs(dense).max())
    assert_gradients_agree(others, gradient)


def test_sparse_features_hold_no_dense_array():
    """A projection takes memory for what is stored, not for all that could be."""
    num_nodes, num_features, stored = 1009, 1013, 17

    def loss(matrix, data, indices):
        bag = bag_of(BCOO((data, indices), shape=(1, num_nodes, num_features)), "float32")
        return (project(drop_per_head(bag, 2, 0.5, jax.random.key(0)), matrix) ** 2).sum()

    shapes = (num_features, 2, 3), (1, stored), (1, stored, 2)
    args = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, (float, float, int), strict=True)]
    memory = jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < num_nodes * num_features / 4  # of 4 bytes each the dense array has 16 times this


# Dropout.


def test_every_head_drops_inputs_of_its_own():
    x = jnp.ones((211, 13))
    dropped = np.asarray(drop_per_head(x, 2, 0.6, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.4)}
    share = (dropped > 0).mean((0, 2))
    np.testing.assert_allclose(share, 0.4, atol=4 * np.sqrt(0.24 / x.size))
    both = (dropped > 0).all(1).mean()
    np.testing.assert_allclose(both, 0.16, atol=4 * np.sqrt(0.16 * 0.84 / x.size))


@pytest.mark.parametrize("kind", EACH)
def test_what_is_summed_is_dropped_again_and_scores_are_not(kind, nodes, edges):
    """GAT's published code: softmax of scores of W h, times W h dropped once more. GCN's: nothing is dropped again."""
    config = tiny(kind, dropout=0.5)
    layer = LAYERS[config.attention.name](config, F, 2, 3, rngs=nnx.Rngs(0))
    one, x, rng = jax.tree.map(lambda x: x[0], edges), nodes[0], jax.random.key(5)
    out, weights = layer(x, one, rng)
    input_rng, _, value_rng = split_rng(rng, 3)
    seen = drop_per_head(x, 2, 0.5, input_rng)
    tail = {"edge_mask": one.mask, "dropout_rate": 0.0, "rng": None, "return_weights": True}
    given = dict(tail)
    _, wanted = layer.attend(seen, one, lambda values: values, tail)
    assert tail == given  # the caller's still
    np.testing.assert_allclose(weights, wanted, rtol=0, atol=4 * EPS)
    values = project(seen, layer.value[...]) + (layer.value_bias[...] if "gatv2" in kind else 0)
    values = dropout(values, 0.0 if kind == "gcn" else 0.5, value_rng)
    summed = jax.ops.segment_sum(weights[..., None] * values[one.senders], one.receivers, V)
    np.testing.assert_allclose(out, summed, rtol=0, atol=16 * EPS * np.abs(summed).max())


def test_attention_dropout_is_for_training_alone(nodes, edges):
    run, state = random(tiny(attention_dropout=0.5))
    still, again = run(state, nodes, edges), run(state, nodes, edges)
    np.testing.assert_array_equal(still, again)
    first, second = (run(state, nodes, edges, rng=jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - still).max() > 1e-3 and np.abs(first - second).max() > 1e-3


# What the weights are.


@pytest.mark.parametrize("kind", EACH)
def test_weights_of_the_edges(kind, nodes, edges):
    graph, state = nnx.split(GraphNetwork(tiny(kind), length=V, rngs=nnx.Rngs(0)))
    look = jax.jit(lambda state, nodes, edges: nnx.merge(graph, state).attention_weights(nodes, edges))
    union, weights = look(state, nodes, edges)
    assert [w.shape for w in weights] == [(B * (E + V), 2), (B * (E + V), 3)]
    assert union.senders.shape == (B * (E + V),)
    into = functools.partial(jax.ops.segment_sum, segment_ids=union.receivers, num_segments=B * V)
    degree = into(union.mask.astype(jnp.float32))
    for w in weights:
        np.testing.assert_array_equal(np.asarray(w)[~np.asarray(union.mask)], 0)
        if kind == "gcn":
            wanted = union.mask / jnp.sqrt(degree[union.senders] * degree[union.receivers])
            np.testing.assert_allclose(w, jnp.broadcast_to(wanted[:, None], w.shape), rtol=8 * EPS)
        else:
            np.testing.assert_allclose(into(w), 1, rtol=8 * EPS)
        if kind == "constant":
            wanted = union.mask / degree[union.receivers]
            np.testing.assert_allclose(w, jnp.broadcast_to(wanted[:, None], w.shape), rtol=4 * EPS)


def test_a_node_without_edges_gets_the_bias(nodes, edges):
    run, state = random(tiny(self_loops=False, num_heads=(2,), head_dim=()))
    state.layers[0].bias[...] = jnp.arange(2.0 * CLASSES).reshape(2, CLASSES)
    np.testing.assert_array_equal(run(state, nodes, edges)[:, V - 1], [[1.5, 2.5, 3.5]] * B)


# Sizes, gradients, settings.


@pytest.mark.parametrize(
    "kind, changes, count",
    [
        ("gat", {}, (1433 * 64 + 2 * 64 + 2 * 8 + 64) + (64 * 7 + 2 * 7 + 2 + 7)),
        ("gatv2 shared", {}, (1433 * 64 + 64 + 64 + 64) + (64 * 7 + 7 + 7 + 7)),
        ("gatv2", {}, (2 * (1433 * 64 + 64) + 64 + 64) + (2 * (64 * 7 + 7) + 7 + 7)),
        ("dot_product shared", {}, (1433 * 64 + 64) + (64 * 7 + 7)),
        ("dot_product", {}, (3 * 1433 * 64 + 64) + (3 * 64 * 7 + 7)),
        ("constant", {}, (1433 * 64 + 64) + (64 * 7 + 7)),
        ("gcn", {"num_heads": (1, 1), "head_dim": (16,)}, (1433 * 16 + 16) + (16 * 7 + 7)),
        # Pubmed's eight output heads; each has a bias, as in the published code.
        ("gat", {"num_heads": (8, 8)}, (1433 * 64 + 2 * 64 + 2 * 8 + 64) + (64 * 56 + 2 * 56 + 2 * 8 + 56)),
        (  # the protein graphs' network
            "gat",
            {"num_features": 50, "num_classes": 121, "num_heads": (4, 4, 6), "head_dim": (256, 256), "residual": True},
            (50 * 1024 + 3 * 1024 + 8) + (1024 * 1024 + 3 * 1024 + 8) + (1024 * 726 + 3 * 726 + 12),
        ),
        ("gat", {"input_width": 16, "num_heads": (1,), "head_dim": (32,), "readout": True}, None),
    ],
)
def test_numbers_of_parameters(kind, changes, count):
    fields = {"num_features": 1433, "num_classes": 7, "num_heads": (8, 1), "head_dim": (8,)}
    config = tiny(kind, **fields | changes)
    state = nnx.state(nnx.eval_shape(lambda: GraphNetwork(config, length=V, rngs=nnx.Rngs(0))))
    count = count or 1433 * 16 + (16 * 32 + 3 * 32 + 2) + 32 * 7
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == count


def test_draws_from_glorots_distribution():
    layer = LAYERS["gat"](tiny(), 97, 5, 31, rngs=nnx.Rngs(0))
    for drawn, limit in ((layer.value, (6 / 128) ** 0.5), (layer.sender_vector, (6 / 32) ** 0.5)):
        assert np.abs(drawn).max() <= limit and np.abs(drawn).max() > 0.95 * limit
        np.testing.assert_allclose(np.std(drawn), limit / 3**0.5, rtol=0.1)


@pytest.mark.parametrize("kind", EACH)
def test_everything_learns(kind, nodes, edges):
    relations = {"num_relations": 2} if kind in SCORED else {}
    drop = {"dropout": 0.2, "attention_dropout": 0.0 if kind == "gcn" else 0.2}
    config = tiny(kind, readout=True, head_dim=(4, 3), input_width=6, **relations, **drop)
    _, gradient = value_and_gradient(config, nodes, edges, rng=jax.random.key(1))
    assert_everything_learns(gradient)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind, nodes, edges):
    relations = {"num_relations": 2} if kind in SCORED else {}
    run, state = random(tiny(kind, **relations))
    narrow, _ = random(tiny(kind, dtype="bfloat16", dropout=0.2, **relations))
    scores, wanted = narrow(state, nodes, edges), run(state, nodes, edges)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=2**-8 * 8 * np.abs(wanted).max())
    assert np.isfinite(narrow(state, nodes, edges, rng=jax.random.key(0))).all()


@pytest.mark.slow
def test_the_layer_alone_at_growing_size():
    settings = ConfigDict({"lengths": (64, 128), "batch_size": 2, "seconds": 1e6})
    found = scaling(tiny(), settings)
    assert found["lengths"] == [64, 128]
    small, large = found["temporary_bytes"]
    assert small < large < 2.5 * small  # in proportion to the nodes, and not to their pairs


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"attention": {"name": "full"}}, r"attention.name: got 'full'; write one of gat, gatv2"),
        ({"attention": {"name": "gatv2"}}, "share_weights: missing for 'gatv2'; write share_weights=0"),
        ({"attention": {"name": "gatv2", "share_weights": 2}}, "wanted an integer from 0 to 1, got 2"),
        ({"attention": {"name": "gat", "window": 3}}, "'gat' has no such setting; it takes no settings"),
        ({"num_heads": (2, 0)}, "num_heads: wanted positive integers"),
        ({"num_heads": ()}, "num_heads: wanted a number for each layer"),
        ({"head_dim": (4, 4)}, "head_dim: wanted 1 numbers, one for each layer but the last, which has num_classes"),
        ({"readout": True}, "head_dim: wanted 2 numbers, one for each layer, got"),
        ({"residual": True}, "residual: no layer stands between"),
        ({"attention": {"name": "constant"}, "num_relations": 3}, "'constant' has no scores for relations"),
        ({"attention": {"name": "gcn"}, "attention_dropout": 0.5}, "attention_dropout: 'gcn' does not attend"),
        ({"dropout": 1.0}, r"dropout: wanted a rate in \[0, 1\)"),
        ({"activation": "gelu"}, "activation: got 'gelu'; write one of elu, relu"),
        ({"width": 8}, "width: unknown field"),
    ],
)
def test_refuses_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        check(tiny(**changes), V)
    assert "\n" not in str(error.value)


def test_refuses_what_the_data_did_not_say():
    for name in ("num_features", "num_classes"):
        config = tiny(**{name: 0})
        check(config, V)
        with pytest.raises(ValueError, match=f"{name}: 0 stands for what the data have"):
            GraphNetwork(config, length=V, rngs=nnx.Rngs(0))


def test_refuses_graphs_that_do_not_fit(nodes, edges):
    model = GraphNetwork(tiny(), length=V, rngs=nnx.Rngs(0))
    wrong = [
        ((nodes[0], edges), r"nodes: wanted \[B, V, 5\], got shape \[7, 5\]"),
        ((nodes[..., 1:], edges), r"nodes: wanted \[B, V, 5\], got shape \[2, 7, 4\]"),
        ((nodes.astype(int), edges), "nodes: wanted floats, got int32"),
        ((BCOO.fromdense(nodes), edges), "nodes: wanted a BCOO with n_batch=1 and n_dense=0, got 0 and 0"),
        ((nodes, edges._replace(mask=edges.mask[0])), r"edges.mask: wanted \[2, E\], got shape \[19\]"),
        ((nodes[:1], edges), r"edges.senders: wanted \[1, E\], got shape \[2, 19\]"),
    ]
    for inputs, words in wrong:
        with pytest.raises(ValueError, match=words):
            model(*inputs)
