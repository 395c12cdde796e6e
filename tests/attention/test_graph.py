"""Attention along edges: equal to dense attention under the adjacency counts, and the contract in the terms of a graph."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import ULP

from attention import (
    dot_product_attention,
    edge_softmax,
    gat_attention,
    gatv2_attention,
    graph_dot_product_attention,
    graph_segments,
)

V, U, E, N, K, H, HV = 13, 11, 61, 6, 3, 5, 7  # U of the V nodes receive
ISOLATED = 4  # neither sends nor receives
RANDOM = np.random.default_rng(0)
SENDERS = np.where((s := RANDOM.integers(0, V, E)) == ISOLATED, 0, s)
RECEIVERS = np.where((r := RANDOM.integers(0, U, E)) == ISOLATED, 0, r)
SENDERS[:3], RECEIVERS[:3] = 7, 9  # one edge three times
SEED = jax.random.key(1)


class Form(NamedTuple):
    """A function of (arrays, senders, receivers), its arrays' shapes, and the dense scores it must equal.

    Args:
      fn: `(arrays by name, senders, receivers, **settings)`.
      shapes: of the arrays; those of edges are named `edge_*`, those of nodes `*nodes`, `query`, `key` or `value`.
      dense: `arrays -> (scores [U, V, N], values [V, N, Hv])`, without what edges say.
      width: of the values.
    """

    fn: Any
    shapes: dict
    dense: Any
    width: int = H


def gat(a, senders, receivers, **settings):
    vectors = a["sender_vector"], a["receiver_vector"]
    return gat_attention(
        a["nodes"], senders, receivers, *vectors, edge_scores=a.get("edge_scores"), num_nodes=U, **settings
    )


def gatv2(a, senders, receivers, **settings):
    nodes = a["sender_nodes"], a["receiver_nodes"]
    return gatv2_attention(*nodes, senders, receivers, a["vector"], edge_features=a.get("edge_features"), **settings)


def dot_product(a, senders, receivers, **settings):
    arrays, of_edges = (a[n] for n in ("query", "key", "value")), {n: x for n, x in a.items() if n.startswith("edge")}
    return graph_dot_product_attention(*arrays, senders, receivers, **of_edges, **settings)


def leaky(x, slope=0.2):
    return jnp.where(x > 0, x, slope * x)


def dense_gat(a):
    from_sender, from_receiver = ((a["nodes"] * a[f"{n}_vector"]).sum(-1) for n in ("sender", "receiver"))
    return leaky(from_receiver[:U, None] + from_sender), a["nodes"]


def dense_gatv2(a):
    hidden = leaky(a["receiver_nodes"][:, None] + a["sender_nodes"])
    return (hidden * a["vector"]).sum(-1), a["sender_nodes"]


def dense_dot_product(a):
    key, value = (jnp.repeat(a[n], N // K, 1) for n in ("key", "value"))
    return jnp.einsum("unh,vnh->uvn", a["query"], key) * H**-0.5, value


GAT = {"nodes": (V, N, H), "sender_vector": (N, H), "receiver_vector": (N, H)}
GATV2 = {"sender_nodes": (V, N, H), "receiver_nodes": (U, N, H), "vector": (N, H)}
DOT = {"query": (U, N, H), "key": (V, K, H), "value": (V, K, HV)}
FORMS = {
    "gat": Form(gat, GAT, dense_gat),
    "gatv2": Form(gatv2, GATV2, dense_gatv2),
    "dot_product": Form(dot_product, DOT, dense_dot_product, HV),
    "gat_edges": Form(gat, GAT | {"edge_scores": (E, N)}, None),
    "gatv2_edges": Form(gatv2, GATV2 | {"edge_features": (E, N, H)}, None),
    "dot_product_edges": Form(
        dot_product, DOT | {"value": (V, K, H), "edge_scores": (E, N), "edge_features": (E, K, H)}, None
    ),
}
MASK = np.arange(E) % 4 > 0  # the edges that are real
every = pytest.mark.parametrize("name", FORMS)
# What the plain forms compute is part of what those with edge arrays do.
fullest_first = pytest.mark.parametrize(
    "name", [name if form.dense is None else pytest.param(name, marks=pytest.mark.slow) for name, form in FORMS.items()]
)
plain = pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.dense])
fullest = pytest.mark.parametrize("name", [name for name in FORMS if name.endswith("_edges")])


@pytest.fixture(params=["whole", "pieces"])
def pieces(request, monkeypatch):
    """All edges at once, as on a GPU, or nine at a time and seven in the end."""
    if request.param == "pieces":
        monkeypatch.setattr(graph_segments, "NUMBERS_AT_ONCE", {"cpu": 9 * N * H})
    assert (graph_segments.NUMBERS_AT_ONCE["cpu"] < E * N * H) == (request.param == "pieces")
    return request.param


def arrays_of(name, dtype=np.float32, seed=2):
    rng = np.random.default_rng(seed)
    return {array: rng.standard_normal(shape).astype(dtype) for array, shape in FORMS[name].shapes.items()}


def cotangent_of(name, dtype=np.float32):
    return np.random.default_rng(5).standard_normal((U, N, FORMS[name].width)).astype(dtype)


def of_edges(array):
    return array.startswith("edge")


def of_nodes(array):
    return "nodes" in array or array in ("query", "key", "value")


def value_and_vjp(fn, arrays, d_out, *rest):
    out, pullback = jax.vjp(lambda arrays: fn(arrays, *rest), arrays)
    return out, pullback(d_out)[0]


@functools.cache
def program(name, numbers_at_once):
    """The compiled output and gradients, edges and mask being data: one program serves most tests."""

    @jax.jit
    def run(arrays, d_out, senders, receivers, edge_mask):
        assert graph_segments.NUMBERS_AT_ONCE.get("cpu") == numbers_at_once
        return value_and_vjp(functools.partial(FORMS[name].fn, edge_mask=edge_mask), arrays, d_out, senders, receivers)

    return run


def run(name, arrays=None, senders=SENDERS, receivers=RECEIVERS, d_out=None, edge_mask=MASK):
    arrays = arrays_of(name) if arrays is None else arrays
    d_out = cotangent_of(name) if d_out is None else d_out
    compiled = program(name, graph_segments.NUMBERS_AT_ONCE.get("cpu"))
    return jax.tree.map(np.asarray, compiled(arrays, d_out, senders, receivers, edge_mask))


def assert_close(got, want, ulps=64):
    """Leaf by leaf, in units of the largest number's last place: sums in another order."""
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=ulps * ULP * max(np.abs(y).max(initial=0), 1))


# Against the definition


def dense_attention(name, arrays):
    """Softmax over all nodes, where an edge that is listed m times counts m times, in the precision of the arrays."""
    counts = np.zeros((U, V, 1))
    np.add.at(counts, (RECEIVERS[MASK], SENDERS[MASK]), 1)
    assert counts.max() > 1
    scores, values = FORMS[name].dense(arrays)
    top = jnp.where(counts > 0, scores, -1e300).max(1, keepdims=True)
    weight = jnp.where(counts > 0, counts * jnp.exp(jnp.where(counts > 0, scores - top, 0)), 0)
    weight /= jnp.where(counts.any(1, keepdims=True), weight.sum(1, keepdims=True), 1)
    return jnp.einsum("uvn,vnh->unh", weight, values)


def edge_by_edge(name, a):
    """The formulas of the docstrings with edge arrays: the same softmax over `[U, E]`."""
    scores, rows = score_by_score(name, a)
    reaches = ((np.arange(U)[:, None] == RECEIVERS) & MASK)[..., None]
    top = jnp.where(reaches, scores, -1e300).max(1, keepdims=True)
    weight = jnp.where(reaches, jnp.exp(jnp.where(reaches, scores - top, 0)), 0)
    weight /= jnp.where(reaches.any(1, keepdims=True), weight.sum(1, keepdims=True), 1)
    return jnp.einsum("uen,enh->unh", weight, rows)


@functools.cache
def exact(name):
    """Output and gradients in float64."""
    definition = functools.partial(dense_attention if FORMS[name].dense else edge_by_edge, name)
    with jax.enable_x64(True):
        arrays, d_out = arrays_of(name, np.float64), cotangent_of(name, np.float64)
        return jax.tree.map(np.asarray, jax.jit(functools.partial(value_and_vjp, definition))(arrays, d_out))


@every
def test_equals_dense_attention_under_the_counts(name, pieces):
    """To the precision of float64, and in float32 to the rounding of its largest number."""
    with jax.enable_x64(True):
        got = run(name, arrays_of(name, np.float64), d_out=cotangent_of(name, np.float64))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(exact(name)), strict=True):
        assert x.dtype == np.float64 and np.abs(y).max() > 0.1
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-13 * np.abs(y).max())
    if pieces == "whole":
        assert_close(run(name), exact(name), ulps=16)


def score_by_score(name, a):
    """What each edge scores and sends, edge by edge, `[E, N]` and `[E, N, H]`, from the formulas of the docstrings."""
    if name == "gat_edges":
        of_node = (a["nodes"] * a["sender_vector"]).sum(-1), (a["nodes"] * a["receiver_vector"]).sum(-1)
        return leaky(of_node[0][SENDERS] + of_node[1][RECEIVERS] + a["edge_scores"]), a["nodes"][SENDERS]
    if name == "gatv2_edges":
        hidden = a["sender_nodes"][SENDERS] + a["receiver_nodes"][RECEIVERS] + a["edge_features"]
        return (leaky(hidden) * a["vector"]).sum(-1), a["sender_nodes"][SENDERS]
    key, value = (jnp.repeat(a[x][SENDERS] + a["edge_features"], N // K, 1) for x in ("key", "value"))
    return (a["query"][RECEIVERS] * key).sum(-1) * H**-0.5 + a["edge_scores"], value


def test_on_all_pairs_it_is_dot_product_attention():
    a = arrays_of("dot_product")
    receivers, senders = np.indices((U, V)).reshape(2, -1)
    for scale in (None, 0.3):
        want = jax.jit(functools.partial(dot_product_attention, scale=scale, implementation="reference"))
        ours = jax.jit(functools.partial(graph_dot_product_attention, scale=scale))
        assert_close(ours(*a.values(), senders, receivers), want(*a.values()))


@pytest.mark.parametrize("shape", [(E,), (E, N), (E, 2, 3)])
def test_edge_softmax(shape):
    scores = 1e4 * RANDOM.standard_normal(shape).astype(np.float32)
    weight = np.asarray(edge_softmax(scores, RECEIVERS, V))
    for node in range(V):
        inside = scores[node == RECEIVERS].astype(np.float64)
        powers = np.exp(inside - inside.max(0)) if len(inside) else inside
        np.testing.assert_allclose(weight[node == RECEIVERS], powers / powers.sum(0), rtol=0, atol=4 * ULP)
    hidden = np.asarray(edge_softmax(np.where(scores > 0, scores, -np.inf), RECEIVERS, V))
    masked = np.asarray(edge_softmax(scores, RECEIVERS, V, edge_mask=np.ones(E, bool)))
    assert not hidden[scores <= 0].any() and np.isfinite(hidden).all()  # also where every edge of a node is -inf
    np.testing.assert_array_equal(masked, weight)


@plain
def test_scores_of_any_size_are_safe(name):
    arrays = arrays_of(name)
    large = next(n for n in arrays if n in ("sender_vector", "vector", "query"))
    arrays[large] = arrays[large] * np.float32(1e4)
    got = run(name, arrays)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    with jax.enable_x64(True):
        want = dense_attention(name, {n: np.asarray(x, np.float64) for n, x in arrays.items()})
    np.testing.assert_allclose(got[0], want, rtol=0, atol=1e4 * 8 * ULP * np.abs(want).max())


# The contract


@fullest_first
def test_padding_has_no_influence(name, pieces):
    """Padding edges may hold anything and lead nowhere, and so may nodes that only they touch: bit for bit the same."""
    sends, receives = (np.isin(np.arange(V), index[MASK]) for index in (SENDERS, RECEIVERS))
    real = {n: MASK for n in arrays_of(name) if of_edges(n)} | {
        n: sends | receives if n == "nodes" else receives[:U] if n in ("receiver_nodes", "query") else sends
        for n in arrays_of(name) if of_nodes(n)
    }  # fmt: skip
    assert not any(rows.all() for rows in real.values())
    d_out = np.where(receives[:U, None, None], cotangent_of(name), np.float32(np.nan))
    want = run(name)
    for fill, nowhere in ((np.nan, -7), (np.inf, 10**6), (1e30, np.iinfo(np.int32).max)):
        arrays = {
            n: np.where(real[n].reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(fill)) if n in real else x
            for n, x in arrays_of(name).items()
        }
        ends = (np.where(MASK, index, nowhere) for index in (SENDERS, RECEIVERS))
        got = run(name, arrays, *ends, d_out)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(x, y)
    assert not any(gradient[~real[n]].any() for n, gradient in got[1].items() if n in real)


@every
def test_nodes_without_edges_are_exactly_zero(name):
    out, gradients = run(name, edge_mask=np.ones(E, bool))
    assert not out[ISOLATED].any() and out.any((1, 2)).sum() == len(set(RECEIVERS))
    assert all(not gradient[ISOLATED].any() for array, gradient in gradients.items() if of_nodes(array))
    none, gradients = run(name, edge_mask=np.zeros(E, bool))
    assert not none.any() and not any(gradient.any() for gradient in gradients.values())


@fullest_first
def test_order_of_edges_does_not_matter(name):
    """Sorted by receiver, by sender, or as they come: there is no order to promise, hence none to promise wrongly."""
    want = run(name)
    for order in (np.argsort(RECEIVERS, kind="stable"), np.argsort(SENDERS, kind="stable")):
        arrays = {n: x[order] if of_edges(n) else x for n, x in arrays_of(name).items()}
        out, gradients = run(name, arrays, SENDERS[order], RECEIVERS[order], edge_mask=MASK[order])
        back = np.argsort(order)
        assert_close((out, {n: x[back] if of_edges(n) else x for n, x in gradients.items()}), want)


@pytest.mark.parametrize("name", ["gat", "gatv2_edges", "dot_product_edges"])
def test_disjoint_union_is_graph_by_graph(name):
    """Two graphs in one call, with edges of their own: each as if alone."""
    one, two = arrays_of(name), arrays_of(name, seed=8)
    two = {n: x if of_nodes(n) or of_edges(n) else one[n] for n, x in two.items()}
    other = np.roll(SENDERS, 1), np.roll(RECEIVERS, 2)
    fn = whole_gat if name == "gat" else FORMS[name].fn
    receiving = V if name == "gat" else U

    @jax.jit
    def all_three(one, two):
        joined = {n: jnp.concatenate([x, two[n]]) if of_nodes(n) or of_edges(n) else x for n, x in one.items()}
        ends = np.concatenate([SENDERS, other[0] + V]), np.concatenate([RECEIVERS, other[1] + receiving])
        return fn(joined, *ends), fn(one, SENDERS, RECEIVERS), fn(two, *other)

    together, first, second = map(np.asarray, all_three(one, two))
    assert_close((together[:receiving], together[receiving:]), (first, second))
    assert np.abs(first - second).max() > 0.1


def test_only_the_first_nodes_receive():
    a = arrays_of("gat")
    first, whole = jax.jit(lambda a: (gat(a, SENDERS, RECEIVERS), whole_gat(a, SENDERS, RECEIVERS)))(a)
    assert_close(first, whole[:U], ulps=0)


@fullest
def test_weights(name):
    @jax.jit
    def both(a):
        attend = functools.partial(FORMS[name].fn, a, SENDERS, RECEIVERS)
        return attend(return_weights=True), attend()

    (out, weights), alone = jax.tree.map(np.asarray, both(arrays_of(name)))
    assert weights.shape == (E, N) and weights.dtype == np.float32
    assert_close(out, alone, ulps=0)
    total = np.zeros((U, N))
    np.add.at(total, RECEIVERS, weights)
    np.testing.assert_allclose(total[np.unique(RECEIVERS)], 1, rtol=8 * ULP)
    passed = jax.jit(jax.grad(lambda a: (both(a)[0][1] ** 2).sum()))(arrays_of(name))
    assert all(np.isfinite(x).all() for x in passed.values()) and any(x.any() for x in passed.values())


@fullest
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_narrow_types(name, dtype):
    """Inputs that the narrow type holds exactly: the result is rounded once, a gradient once for each use of its array."""
    arrays = {n: np.round(4 * x) / 4 for n, x in arrays_of(name).items()}
    d_out = np.round(4 * cotangent_of(name)) / 4
    want = run(name, arrays, d_out=d_out)
    got = run(name, {n: x.astype(dtype) for n, x in arrays.items()}, d_out=d_out.astype(dtype))
    unit = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(got[0].astype(np.float32), want[0], rtol=1.01 * unit, atol=64 * ULP)
    for n, x in got[1].items():
        assert x.dtype == dtype
        np.testing.assert_allclose(x.astype(np.float32), want[1][n], rtol=0, atol=4 * unit * np.abs(want[1][n]).max())
    assert got[0].dtype == dtype


@fullest
def test_transforms(name):
    """vmap over graphs of the same shape with edges of their own, and remat, change nothing; indices may be traced."""
    form, arrays = FORMS[name], [arrays_of(name), arrays_of(name, seed=3)]
    stacked = {n: np.stack([a[n] for a in arrays]) for n in arrays[0]}
    ends = np.stack([SENDERS, SENDERS[::-1]]), np.stack([RECEIVERS, RECEIVERS[::-1]])
    mask = np.stack([np.arange(E) % 3 > 0, np.arange(E) % 4 > 0])

    def attend(a, senders, receivers, mask):
        return form.fn(a, senders, receivers, edge_mask=mask)

    def loss(a, *edges):
        return (jax.checkpoint(attend)(a, *edges) * cotangent_of(name)).sum()

    out = jax.jit(jax.vmap(attend))(stacked, *ends, mask)
    gradients = jax.jit(jax.vmap(jax.grad(loss)))(stacked, *ends, mask)
    for i, a in enumerate(arrays):
        want = run(name, a, ends[0][i], ends[1][i], edge_mask=mask[i])
        assert_close((out[i], {n: x[i] for n, x in gradients.items()}), want)


@fullest_first
def test_traced_edges_to_nowhere_count_as_masked(name):
    lost = np.arange(E) % 4 == 0
    far = np.where(lost, np.where(np.arange(E) % 8, -1, 99), SENDERS).astype(np.int32)
    got, want = run(name, senders=far, edge_mask=np.ones(E, bool)), run(name, edge_mask=~lost)
    assert_close(got, want, ulps=0)
    got = run(name, receivers=np.where(lost, U, RECEIVERS), edge_mask=np.ones(E, bool))
    assert_close(got, want, ulps=0)


@fullest
def test_dropout(name):
    form, arrays = FORMS[name], arrays_of(name)
    draw = jax.jit(
        jax.vmap(lambda rng: form.fn(arrays, SENDERS, RECEIVERS, dropout_rate=0.5, rng=rng, return_weights=True))
    )
    outputs, weights = (np.asarray(x) for x in draw(jax.random.split(SEED, 400)))
    want, want_weights = form.fn(arrays, SENDERS, RECEIVERS, return_weights=True)
    error = np.abs(outputs.mean(0) - want)
    assert len({x.tobytes() for x in outputs}) == 400
    assert (error < 6 * outputs.std(0) / 20 + 1e-5).all()
    assert_close(weights, np.broadcast_to(want_weights, weights.shape))
    alone = np.setdiff1d(
        RECEIVERS, RECEIVERS[:3]
    )  # nodes with one edge or more: an edge is kept or dropped, head by head
    assert 0.2 < (outputs[:, alone] == 0).mean() * 2**4 and outputs[:, ISOLATED].any() == 0


@fullest
def test_few_edges_and_few_nodes(name):
    form, arrays = FORMS[name], arrays_of(name)
    for count in (0, 1):
        few = {n: x[:count] if of_edges(n) else x for n, x in arrays.items()}
        out, gradients = run(name, few, SENDERS[:count], RECEIVERS[:count], edge_mask=MASK[-count - 1 : -1])
        assert (out.any((1, 2)).sum(), np.isfinite(out).all()) == (count, True)
        assert all(np.isfinite(x).all() for x in gradients.values())
    if "nodes" not in arrays:
        empty = {n: x[:0] if of_nodes(n) or of_edges(n) else x for n, x in arrays.items()}
        assert form.fn(empty, SENDERS[:0], RECEIVERS[:0]).shape == (0, N, form.width)


def test_no_nodes():
    nodes, vector, none = jnp.zeros((0, N, H)), jnp.zeros((N, H)), jnp.zeros(0, int)
    assert gat_attention(nodes, none, none, vector, vector).shape == (0, N, H)
    assert edge_softmax(jnp.zeros((0, N)), none, 0).shape == (0, N)
    padding = jnp.zeros(3, int)
    assert gat_attention(nodes, padding, padding, vector, vector, edge_mask=jnp.zeros(3, bool)).shape == (0, N, H)


@fullest
def test_strict_flags_and_narrow_indices(name):
    """Also for a gradient that is taken of a jitted function, whose backward pass is traced late."""
    form, ends = FORMS[name], (SENDERS.astype(np.uint8), RECEIVERS.astype(np.int16))
    loss = jax.grad(jax.jit(lambda a: form.fn(a, *ends, dropout_rate=0.3, rng=SEED).sum()))
    plain = loss(arrays_of(name))
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        strict = jax.grad(jax.jit(lambda a: form.fn(a, *ends, dropout_rate=0.3, rng=SEED).sum()))(arrays_of(name))
    assert_close(strict, plain, ulps=0)


# Refusals

NODES, VECTOR = jnp.ones((V, N, H)), jnp.ones((N, H))
GIVEN = {
    gat_attention: dict(nodes=NODES, senders=SENDERS, receivers=RECEIVERS, sender_vector=VECTOR, receiver_vector=VECTOR),
    gatv2_attention: dict(sender_nodes=NODES, receiver_nodes=NODES, senders=SENDERS, receivers=RECEIVERS, vector=VECTOR),
    graph_dot_product_attention: dict(query=NODES, key=NODES[:, :K], value=NODES[:, :K], senders=SENDERS, receivers=RECEIVERS),
    edge_softmax: dict(scores=jnp.ones((E, N)), receivers=RECEIVERS, num_nodes=V),
}  # fmt: skip
REFUSED = [
    (gat_attention, dict(nodes=NODES[0]), r"^nodes: wanted \[nodes, heads, width\], got shape \(6, 5\)"),
    (gat_attention, dict(nodes=jnp.ones((V, N, H), int)), "^nodes: wanted a float dtype, got int32"),
    (gat_attention, dict(sender_vector=VECTOR[:2]), r"^sender_vector: wanted shape \(6, 5\), got \(2, 5\)"),
    (gat_attention, dict(receiver_vector=VECTOR[:, :2]), r"^receiver_vector: wanted shape \(6, 5\), got \(6, 2\)"),
    (gat_attention, dict(edge_scores=jnp.ones((E, 1))), r"^edge_scores: wanted shape \(61, 6\), got \(61, 1\)"),
    (gat_attention, dict(num_nodes=V + 1), "^num_nodes: wanted at most the 13 rows of nodes"),
    (gat_attention, dict(num_nodes=2.0), "^num_nodes: wanted an int >= 0, got 2.0"),
    (gat_attention, dict(num_nodes=5), r"^receivers: wanted nodes in 0..4, got \d+ at edge 0"),
    (
        gat_attention,
        dict(senders=SENDERS - 1),
        r"^senders: wanted nodes in 0..12, got -1 at edge \d+; padding edges need an edge_mask",
    ),
    (gat_attention, dict(senders=SENDERS * 1.0), "^senders: wanted integers, got dtype float32"),
    (gat_attention, dict(senders=SENDERS[None]), r"^senders: wanted shape \(1,\), one node an edge, got \(1, 61\)"),
    (gat_attention, dict(receivers=RECEIVERS[:-1]), r"^receivers: wanted shape \(61,\), one node an edge, got \(60,\)"),
    (
        gat_attention,
        dict(receivers=RECEIVERS + V, edge_mask=np.arange(E) > 3),
        "^receivers: wanted nodes in 0..12, got .* at edge 4",
    ),
    (gat_attention, dict(edge_mask=np.ones(E)), r"^edge_mask: wanted bools of shape \(61,\), got float32 \(61,\)"),
    (gat_attention, dict(edge_mask=np.ones(V, bool)), r"^edge_mask: wanted bools of shape \(61,\), got bool \(13,\)"),
    (gat_attention, dict(negative_slope="0.2"), "^negative_slope: wanted a finite number, got '0.2'"),
    (gat_attention, dict(negative_slope=float("nan")), "^negative_slope: wanted a finite number, got nan"),
    (gat_attention, dict(senders=np.full(E, 2**32)), "^senders: wanted nodes in 0..12, got .* at edge 0"),
    (gat_attention, dict(dropout_rate=1.0, rng=SEED), r"^dropout_rate: wanted a number in \[0, 1\), got 1.0"),
    (gat_attention, dict(dropout_rate=0.1), "^rng: wanted a jax.random.key"),
    (
        gatv2_attention,
        dict(receiver_nodes=NODES[:, :2]),
        "^receiver_nodes: wanted the heads, width and dtype of sender_nodes",
    ),
    (gatv2_attention, dict(receiver_nodes=NODES.astype(jnp.bfloat16)), "^receiver_nodes: wanted .* got bfloat16"),
    (
        gatv2_attention,
        dict(edge_features=jnp.ones((E, N))),
        r"^edge_features: wanted shape \(61, 6, 5\), got \(61, 6\)",
    ),
    (gatv2_attention, dict(vector=VECTOR[0]), r"^vector: wanted shape \(6, 5\), got \(5,\)"),
    (graph_dot_product_attention, dict(key=NODES[:, :4]), "^value: wanted key's"),
    (
        graph_dot_product_attention,
        dict(key=NODES[:, :4], value=NODES[:, :4]),
        "^key: wanted a number of heads that divides query's 6, got 4",
    ),
    (graph_dot_product_attention, dict(key=NODES[:, :K, :2]), "^key: wanted query's head width 5, got 2"),
    (
        graph_dot_product_attention,
        dict(value=NODES[:, :K].astype(jnp.float16)),
        "^value: wanted query's dtype float32, got float16",
    ),
    (
        graph_dot_product_attention,
        dict(value=NODES[:, :K, :2], edge_features=jnp.ones((E, K, H))),
        "^edge_features: wanted values of head width 5",
    ),
    (edge_softmax, dict(scores=jnp.ones(())), r"^scores: wanted \[E, ...\], got shape \(\)"),
    (edge_softmax, dict(scores=jnp.ones((E, N), int)), "^scores: wanted a float dtype"),
    (edge_softmax, dict(num_nodes=-1), "^num_nodes: wanted an int >= 0, got -1"),
    (edge_softmax, dict(num_nodes=4), "^receivers: wanted nodes in 0..3, got"),
    (edge_softmax, dict(receivers=RECEIVERS[:-1]), r"^receivers: wanted shape \(61,\), one node an edge, got \(60,\)"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refusals(case):
    fn, changed, message = REFUSED[case]
    fn(**GIVEN[fn])
    with pytest.raises(ValueError, match=message):
        fn(**GIVEN[fn] | changed)


# Cost


def compiled(name, nodes, degree, differentiate):
    shapes = {n: (nodes, *shape[1:]) if of_nodes(n) else shape for n, shape in FORMS[name].shapes.items()}
    shapes = {n: (degree * nodes, *shape[1:]) if of_edges(n) else shape for n, shape in shapes.items()}
    arrays = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}
    ends = [jax.ShapeDtypeStruct((degree * nodes,), jnp.int32)] * 2

    def program(a, *ends):
        attend = FORMS[name].fn if "nodes" not in a else whole_gat
        return jax.grad(lambda a: attend(a, *ends).sum())(a) if differentiate else attend(a, *ends)

    return jax.jit(program).lower(arrays, *ends).compile()


def whole_gat(a, senders, receivers):
    vectors = a["sender_vector"], a["receiver_vector"]
    return gat_attention(a["nodes"], senders, receivers, *vectors, edge_scores=a.get("edge_scores"))


cost = pytest.mark.parametrize(
    "name", [name if name in ("gat", "gatv2") else pytest.param(name, marks=pytest.mark.slow) for name in FORMS]
)
passes = pytest.mark.parametrize(
    "differentiate", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["gradient", "forward"]
)


@passes
@cost
def test_memory_is_of_nodes_and_edges(name, differentiate):
    """Twice of both, or of the edges, takes twice the temporary memory at most, and less than one array `[N, V, V]`."""
    sizes = (2048, 16), (4096, 16), (2048, 32)
    small, both, edges = (compiled(name, *s, differentiate).memory_analysis().temp_size_in_bytes for s in sizes)
    assert both < 2.05 * small and edges < 2.05 * small
    assert small < 4 * N * 2048**2


@passes
@cost
def test_work_is_of_nodes_and_edges(name, differentiate, monkeypatch):
    """By the compiled program's FLOPs, all edges at once: XLA counts the body of a loop once."""
    monkeypatch.setattr(graph_segments, "NUMBERS_AT_ONCE", {})
    small, both, edges = (
        compiled(name, *size, differentiate).cost_analysis()["flops"] for size in ((128, 4), (256, 4), (128, 8))
    )
    assert abs(both / small - 2) < 0.05 and 1 < edges / small < 2.05


@pytest.mark.parametrize("name", ["gat", "gatv2"])
def test_no_array_holds_the_rows_of_all_edges(name, monkeypatch):
    """`[E, N, H]` is what the pieces are for: the gradient's temporary memory is a fraction of one such array."""
    wide, nodes, degree = 97, 256, 64
    shapes = {n: (*shape[:-1], wide) for n, shape in FORMS[name].shapes.items()}
    monkeypatch.setitem(FORMS, name, FORMS[name]._replace(shapes=shapes))
    monkeypatch.setattr(graph_segments, "NUMBERS_AT_ONCE", {"cpu": 2**14})
    temporary = compiled(name, nodes, degree, True).memory_analysis().temp_size_in_bytes
    assert temporary < 4 * nodes * degree * N * wide / 3
