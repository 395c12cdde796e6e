"""Texts whose tokens are the nodes of a graph: branch, variant, bias by distance, what has no influence, refusals."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, BIDIRECTIONAL, can, kind
from flax import nnx
from harness import EPS, assert_everything_learns, assert_trees_agree, build, trained

from attention import dot_product_attention
from attention.biases import GraphDistance
from experiment.optimizers import is_matrix
from models.attend import no_mask
from models.config import check
from models.edges import Edges, between_real, graph_distances
from models.layers import Attention, variant_of
from models.transformer import Encoder, EncoderDecoder, Transformer

B, T, V, R, E = 2, 13, 23, 4, 29
BRANCH = {"graph_attention": {"name": "graph", "score": "dot_product"}, "num_relations": R}
BIAS = {"graph_bias": 2, "num_relations": R}
ALONE = {"attention": {"name": "graph", "score": "dot_product"}, "num_relations": R, "position": "none"}
ALONE_V2 = {**ALONE, "attention": {"name": "graph", "score": "gatv2"}}
KINDS = {"branch and bias": BRANCH | BIAS, "alone": ALONE, "gatv2 alone": ALONE_V2}
WORDS = {"name": "encoder", "pool": "tokens", "num_classes": 5, "depth": 2}
every_kind = pytest.mark.parametrize("fields", [
    pytest.param(fields, id=name, marks=pytest.mark.slow if name == "alone" else ()) for name, fields in KINDS.items()
])  # fmt: skip


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(0), (B, T), 0, V)


@pytest.fixture
def graph():
    """Both rows have a doubled edge, self edges, a token that nothing reaches (the last) and edges of padding."""
    senders, receivers, relations = (
        np.random.default_rng(0).integers(0, (T - 1, T - 1, R), (B, E, 3)).transpose(2, 0, 1)
    )
    senders[:, 1], receivers[:, 1] = senders[:, 0], receivers[:, 0]
    receivers[:, 2] = senders[:, 2]
    mask = np.ones((B, E), bool)
    mask[0, 20:] = mask[1, 25:] = False
    return Edges(*(jnp.asarray(x, jnp.int32) for x in (senders, receivers, relations)), jnp.asarray(mask))


@pytest.fixture
def key_mask():
    """One row ends early, the other has a hole."""
    return jnp.stack([jnp.arange(T) < 9, jnp.arange(T) != 4])


def layer_of(config, **changes):
    """An attention layer with weights large enough for scores to differ."""
    layer = Attention(config, length=T, rngs=nnx.Rngs(0), **changes)
    graph, state = nnx.split(layer)
    return nnx.merge(graph, jax.tree.map(lambda w: 10 * w, state))


def by_hand(layer, x, edges, score, num_kv_heads=1, causal=False):
    """Output and weights [B, N, T, T] from the definition, edge by edge, in float64."""
    w = {
        name: np.asarray(x, np.float64)
        for name, x in [*vars(layer).items(), *layer.learned.items()]
        if isinstance(x, nnx.Param)
    }
    x = np.asarray(x, np.float64)
    heads = {name: np.einsum("btd,dnh->btnh", x, w[name]) for name in ("query", "key", "value") if name in w}
    heads = {name: np.repeat(h, 2 // h.shape[2], axis=2) for name, h in heads.items()}
    relations = np.repeat(w["relation_table"], 2 // w["relation_table"].shape[1], axis=1)
    out, weights = np.zeros_like(heads["query"]), np.zeros((B, 2, T, T))
    for b, n, t in np.ndindex(B, 2, T):
        incoming = [
            (s, r) for s, i, r, m in zip(*(np.asarray(a[b]) for a in edges), strict=True)
            if m and i == t and (s <= t or not causal)
        ]  # fmt: skip
        scores, sent = [], []
        for s, r in incoming:
            key, vector = heads["key"][b, s, n], relations[r, n]
            if score == "gatv2":
                total = heads["query"][b, t, n] + key + vector
                scores.append(w["vector"][n] @ np.where(total > 0, total, 0.2 * total))
                sent.append(key)
            else:
                scores.append(heads["query"][b, t, n] @ (key + vector) / 6**0.5)
                sent.append(heads["value"][b, s, n] + vector)
        if incoming:
            p = np.exp(np.array(scores) - np.max(scores))
            p /= p.sum()
            out[b, t, n] = p @ np.array(sent)
            np.add.at(weights, (b, n, t, [s for s, _ in incoming]), p)
    return np.einsum("btnh,nhd->btd", out, w["out"]), weights


@pytest.mark.parametrize("score", ["dot_product", "gatv2"])
@pytest.mark.parametrize("name", ["encoder", "transformer"])
def test_the_layer_is_its_definition_over_the_edges(tiny, graph, name, score):
    pool = {"pool": "mean"} if name == "encoder" else {}
    config = tiny(name=name, attention={"name": "graph", "score": score}, num_relations=R, **pool)
    layer = layer_of(config)
    x = jax.random.normal(jax.random.key(1), (B, T, 12))
    out, maps = jax.jit(lambda x: (layer(x, edges=graph), layer.weights(x, edges=graph)))(x)
    wanted, weights = by_hand(layer, x, graph, score, causal=name == "transformer")
    np.testing.assert_allclose(out, wanted, atol=64 * EPS * np.abs(wanted).max())
    np.testing.assert_allclose(maps, weights, atol=64 * EPS)
    assert (np.asarray(out[:, T - 1]) == 0).all() and (weights.sum(-1) > 0.5).any()


@pytest.mark.parametrize("score", ["dot_product", "gatv2"])
def test_padding_may_hold_anything(graph, key_mask, score):
    variant, settings = variant_of({"name": "graph", "score": score})
    sizes = [(B, T, 2, 6), (B, T, 1, 6), (B, T, 1, 6), *[(R, 2 if score == "gatv2" else 1, 6), (2, 6)]]
    arrays = [jax.random.normal(jax.random.key(n), size) for n, size in enumerate(sizes)]
    arrays = arrays if score == "gatv2" else arrays[:4]

    def run(arrays, edges):
        given = {"settings": settings, "causal": False, "key_mask": key_mask, "edges": edges}
        out = variant.attend(*arrays, **given)
        return jnp.sum(jnp.where(key_mask[..., None, None], out, 0) ** 2), out

    run = jax.jit(jax.value_and_grad(run, has_aux=True))
    hide = lambda fill: [*(jnp.where(key_mask[..., None, None], x, fill) for x in arrays[:3]), *arrays[3:]]  # noqa: E731
    junk = Edges(*(jnp.where(graph.mask, x, 10**6) for x in graph[:3]), graph.mask)
    clean, dirty = run(hide(0), graph), run(hide(jnp.nan), junk)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(clean))


@every_kind
def test_padding_has_no_influence_on_the_model_and_everything_learns(tiny, tokens, graph, key_mask, fields):
    run = trained(tiny(**WORDS | fields, dropout=0.2, attention_dropout=0.1 if "attention" not in fields else 0.0))
    junk = Edges(*(jnp.where(graph.mask, x, 10**6) for x in graph[:3]), graph.mask)
    clean = run(jnp.where(key_mask, tokens, 3), graph=graph, key_mask=key_mask, rng=jax.random.key(1))
    dirty = run(jnp.where(key_mask, tokens, -7), graph=junk, key_mask=key_mask, rng=jax.random.key(1))
    assert clean[0].shape == (B, T, 5) and clean[0].dtype == jnp.float32
    keep = jnp.broadcast_to(key_mask[..., None], clean[0].shape)
    np.testing.assert_array_equal(clean[0][keep], dirty[0][keep])
    assert_everything_learns(clean[1])


@every_kind
def test_rows_do_not_mix_and_edges_matter(tiny, tokens, graph, fields):
    apply, state = build(tiny(**WORDS | fields))
    both = apply(state, tokens, graph=graph)
    turned = apply(state, tokens[::-1], graph=jax.tree.map(lambda x: x[::-1], graph))[::-1]
    assert_trees_agree(turned, both, roundings=64)
    other = apply(state, tokens.at[1].set(0), graph=jax.tree.map(lambda x: x.at[1].set(x[0]), graph))
    assert_trees_agree(other[0], both[0], roundings=64)
    fewer = graph._replace(mask=graph.mask.at[:, 5].set(False))
    assert (apply(state, tokens, graph=fewer) != both).any((1, 2)).all()
    relations = graph._replace(relations=(graph.relations + 1) % R)
    assert (apply(state, tokens, graph=relations) != both).any((1, 2)).all()


@pytest.mark.slow
@pytest.mark.parametrize("fields", [BRANCH | BIAS, ALONE_V2], ids=["branch and bias", "gatv2 alone"])
def test_scan_and_remat_change_nothing_and_reversible_learns(tiny, tokens, graph, fields):
    base = WORDS | fields | {"dropout": 0.3}
    given = {"graph": graph, "rng": jax.random.key(3)}
    wanted = trained(tiny(**base))(tokens, **given)
    got = trained(tiny(**base, scan_layers=False, remat=True))(tokens, **given)
    assert_trees_agree(got, wanted, roundings=64)
    scores, gradient = trained(tiny(**base, reversible=True))(tokens, **given)
    assert scores.shape == wanted[0].shape
    assert_everything_learns(gradient)


@pytest.mark.slow
def test_reversible_gradients_reach_the_table_of_distances(tiny, tokens, graph):
    """One layer: both streams are x, so that an ordinary layer and the reversible one differ by what the MLP reads."""
    config = tiny(**WORDS | BRANCH | BIAS | {"depth": 3, "reversible": True})
    apply, state = build(config)
    value = lambda state: (apply(state, tokens, graph=graph) ** 2).mean()  # noqa: E731
    gradient = jax.jit(jax.grad(value))(state).graph_bias[...]
    step = jnp.zeros_like(gradient).at[1, 0].set(1.0)

    def along(t):
        changed = jax.tree.map(lambda x: x, state)
        changed.graph_bias = jax.tree.map(lambda x: x + t * step, state.graph_bias)
        return float(value(changed))

    slope = (along(1e-2) - along(-1e-2)) / 2e-2
    # Central differences: the error of the cube of the step and of rounding, 1e-4 and EPS / 1e-2 of the value.
    assert float(gradient[1, 0]) == pytest.approx(slope, abs=1e-2 * float(np.abs(gradient).max()))


@pytest.mark.slow
def test_bfloat16_computes_in_half(tiny, tokens, graph):
    fields = WORDS | BRANCH | BIAS
    half, state = build(tiny(**fields, dtype="bfloat16"))
    full, _ = build(tiny(**fields))
    wanted = full(state, tokens, graph=graph)
    error = np.abs(half(state, tokens, graph=graph) - wanted).max() / np.abs(wanted).max()
    assert 2.0**-9 < error < 16 * 2.0**-8  # as in test_transformer.py


def test_dropout_follows_its_key_in_the_branch(tiny, graph):
    layer = Attention(
        tiny(**WORDS | BRANCH, attention_dropout=0.5), length=T, rngs=nnx.Rngs(0), field="graph_attention"
    )
    x = jax.random.normal(jax.random.key(1), (B, T, 12))
    first, second = jax.random.split(jax.random.key(2))
    dropped = jax.jit(lambda rng: layer(x, edges=graph, rng=rng))
    np.testing.assert_array_equal(dropped(first), dropped(first))
    assert (dropped(first) != dropped(second)).any(-1).mean() > 0.5


def test_a_branch_that_adds_nothing_leaves_the_model_as_it_is(tiny, tokens, graph):
    plain, state = build(tiny(**WORDS))
    branched, own = build(tiny(**WORDS | BRANCH | BIAS))
    own.graph_bias = jax.tree.map(jnp.zeros_like, own.graph_bias)
    own.blocks.graph.out = jax.tree.map(jnp.zeros_like, own.blocks.graph.out)
    own.embedding, own.norm, own.classes = state.embedding, state.norm, state.classes
    for name in ("attention_norm", "attention", "mlp_norm", "mlp"):
        own.blocks[name] = state.blocks[name]
    assert_trees_agree(branched(own, tokens, graph=graph), plain(state, tokens), roundings=4)


@pytest.mark.parametrize("fields", [
    BRANCH, ALONE, pytest.param(ALONE_V2, marks=pytest.mark.slow)
], ids=["branch", "alone", "gatv2 alone"])  # fmt: skip
def test_decoders_do_not_look_ahead_along_edges(tiny, tokens, fields):
    apply, state = build(
        tiny(**fields | {"attention": fields.get("attention", {"name": "window", "window": 0})}, depth=2)
    )
    chain = jnp.broadcast_to(jnp.arange(T - 1), (B, T - 1))
    both_ways = [jnp.concatenate(ends, axis=1) for ends in ((chain, chain + 1), (chain + 1, chain))]
    graph = Edges(*both_ways, jnp.zeros((B, 2 * T - 2), int), jnp.ones((B, 2 * T - 2), bool))
    before = apply(state, tokens, graph=graph)
    after = apply(state, tokens.at[:, 7].set((tokens[:, 7] + 1) % V), graph=graph)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 8] != after[:, 8]).any(-1).all() and before.shape == (B, T, V)
    documents = jnp.broadcast_to((jnp.arange(T) >= 8).astype(int), (B, T))
    packed = [apply(state, x, graph=graph, segment_ids=documents) for x in (tokens, tokens.at[:, 7].set(0))]
    np.testing.assert_array_equal(packed[0][:, 8:], packed[1][:, 8:])  # the edge 7 -> 8 joins two documents


def test_decoders_with_a_graph_cannot_decode(tiny):
    model = Transformer(tiny(**BRANCH), length=T, rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="graph: the edges of tokens to come are not known"):
        model.start(1, T)


@pytest.mark.slow
def test_the_encoder_of_an_encoder_decoder_reads_the_graph_of_the_source(tiny, tokens, graph):
    config = tiny(name="encoder_decoder", depth=2, **BRANCH | BIAS)
    run = trained(config)
    logits, gradient = run(tokens, tokens[:, :5], source_graph=graph)
    assert logits.shape == (B, 5, V)
    assert_everything_learns(gradient)
    model = EncoderDecoder(config, length=T, rngs=nnx.Rngs(0))
    assert model.reads_graph and not hasattr(model.blocks, "graph") and not hasattr(model, "graph_bias")
    with pytest.raises(ValueError, match="source_graph: this model reads one, got None"):
        model(tokens, tokens)


def test_a_vector_before_the_tokens_has_no_edges(tiny, tokens, graph):
    model = Encoder(tiny(**WORDS | BRANCH | BIAS | {"pool": "cls"}), length=T, rngs=nnx.Rngs(0))
    maps = jax.jit(lambda: model.attention_maps(tokens, graph=graph))()
    assert [x.shape for x in maps] == [(B, 4, T + 1, T + 1)] * 2
    branch = np.asarray(maps[0][:, 2:])
    assert (branch[:, :, 0] == 0).all() and (branch[:, :, :, 0] == 0).all() and (maps[0][:, :2, 0] > 0).all()
    seen = (branch[:, 0, 1:, 1:] > 0).nonzero()
    real = np.nonzero(graph.mask)
    wanted = real[0], graph.receivers[real], graph.senders[real]
    assert set(zip(*(x.tolist() for x in seen), strict=True)) == set(zip(*(x.tolist() for x in wanted), strict=True))


def test_attention_maps_hold_bias_padding_and_the_branch(tiny, tokens, graph, key_mask):
    apply, state = build(tiny(**WORDS | BRANCH | BIAS))
    model = Encoder(tiny(**WORDS | BRANCH | BIAS), length=T, rngs=nnx.Rngs(0))
    nnx.update(model, state)
    maps = jax.jit(lambda: model.attention_maps(tokens, graph=graph, key_mask=key_mask))()
    own, branch = np.split(np.asarray(maps), 2, axis=2)
    real = np.asarray(key_mask)
    assert (own.swapaxes(2, 4)[:, ~real] == 0).all() and (branch.swapaxes(2, 4)[:, ~real] == 0).all()
    np.testing.assert_allclose(own.sum(-1), 1, atol=T * EPS)
    for b, n in np.ndindex(B, 2):
        total = branch[0, b, n].sum(-1)
        np.testing.assert_allclose(total[total > 0], 1, atol=T * EPS)
    without = Encoder(tiny(**WORDS | BRANCH), length=T, rngs=nnx.Rngs(0))
    nnx.update(without, nnx.State({name: x for name, x in state.items() if name != "graph_bias"}))
    other = jax.jit(lambda: without.attention_maps(tokens, graph=graph, key_mask=key_mask))()
    assert (np.abs(np.asarray(other)[0, :, :2] - own[0]) > 1e-3).any()
    np.testing.assert_array_equal(np.asarray(other)[0].shape, maps[0].shape)


TAKES_BIAS = [
    case for case in BIDIRECTIONAL
    if can(case).bias and kind(case).mask is not no_mask and case not in ("longformer projected", "fixed per head")
]  # fmt: skip
QUICK = ("full", "strided")


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in TAKES_BIAS
])  # fmt: skip
def test_every_variant_with_scores_follows_the_bias(case):
    variant, settings = variant_of(ATTENTION[case])
    heads = [jax.random.normal(jax.random.key(n), (B, T, n, 3)) for n in (2, 1, 1)]
    distance = jax.random.randint(jax.random.key(3), (B, T, T), 0, 5)
    mask = variant.mask(settings, T, num_heads=2, causal=False).dense(T, T)

    def attend(table):
        return variant.attend(*heads, settings=settings, causal=False, bias=[GraphDistance(table, distance)])

    def wanted(table):
        return dot_product_attention(*heads, jnp.moveaxis(table[distance], -1, -3), mask, implementation="reference")

    def results(attend):
        return jax.jit(lambda table: (attend(table), jax.grad(lambda t: (attend(t) ** 2).sum())(table)))

    table = jax.random.normal(jax.random.key(4), (5, 2))
    assert_trees_agree(results(attend)(table), results(wanted)(table), roundings=64)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["alibi", "t5"])
def test_a_bias_by_distance_stands_beside_one_by_position(tiny, tokens, graph, position):
    run = trained(tiny(**WORDS | BIAS, position=position))
    scores, gradient = run(tokens, graph=graph)
    assert_everything_learns(gradient)
    apply, state = build(tiny(**WORDS | BIAS, position="none"))
    _, own = build(tiny(**WORDS | BIAS, position=position))
    same = jax.tree.map(lambda x: x, own)
    if position == "t5":
        del same["t5_table"]
    assert (np.abs(apply(same, tokens, graph=graph) - scores) > 1e-3 * np.abs(scores).max()).any()


def breadth_first(edges, b, farthest):
    """[T, T] distances from each token, 0 to farthest, farther, unreachable."""
    near = collections.defaultdict(set)
    for s, r, _, m in zip(*(np.asarray(x[b]).tolist() for x in edges), strict=True):
        if m:
            near[s].add(r)
            near[r].add(s)
    table = np.full((T, T), farthest + 2)
    for start in range(T):
        seen, border, steps = {start}, {start}, 0
        while border:
            table[start, list(border)] = min(steps, farthest + 1)
            border = set().union(*(near[node] for node in border)) - seen
            seen, steps = seen | border, steps + 1
    return table


@pytest.mark.parametrize("farthest", [1, 2, 5, 40])
def test_distances_are_those_of_a_search(farthest):
    chain = [(i, i + 1) for i in range(9)] + [(11, 10)]  # ten in a line, two, and one alone
    random = np.random.default_rng(1).integers(0, T, (10, 2)).tolist()
    senders, receivers = np.array([chain, random]).transpose(2, 0, 1)
    mask = np.ones((2, 10), bool)
    mask[1, 7:] = False
    edges = Edges(*(jnp.asarray(x) for x in (senders, receivers, 0 * senders, mask)))
    got = jax.jit(lambda edges: graph_distances(edges, T, farthest))(edges)
    assert got.dtype == jnp.int32
    for b in range(2):
        np.testing.assert_array_equal(got[b], breadth_first(edges, b, farthest))


def test_edges_that_a_text_does_not_allow_are_padding():
    edges = Edges(*jnp.array([[[0, 1, 2, 3, 9]], [[1, 0, 3, 4, 9]], [[5, 6, 7, 8, 9]]]), jnp.arange(5)[None] < 4)
    assert between_real(edges).mask.tolist() == [[True] * 4 + [False]]
    assert [x.tolist()[0][-1] for x in between_real(edges)] == [0, 0, 0, False]
    key_mask = jnp.array([[True, True, True, False, True]])
    assert between_real(edges, key_mask=key_mask).mask.tolist() == [[True, True, False, False, False]]
    ids = jnp.array([[0, 0, -1, -1, 4]])
    assert between_real(edges, segment_ids=ids).mask.tolist() == [[True, True, False, False, False]]
    assert between_real(edges, causal=True).mask.tolist() == [[True, False, True, True, False]]


def test_vectors_of_relations_and_numbers_of_distances_do_not_decay(tiny):
    config = tiny(**WORDS | BIAS | {"graph_attention": {"name": "graph", "score": "gatv2"}})
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Encoder(config, length=T, rngs=nnx.Rngs(0)))))
    decays = is_matrix(params)
    graph = decays["blocks"]["graph"]
    assert graph["query"] and graph["key"] and graph["out"] and graph["learned"]["vector"]
    assert not graph["learned"]["relation_table"] and not decays["graph_bias"]
    assert "value" not in graph and params["blocks"]["graph"]["learned"]["relation_table"].shape == (2, R, 2, 6)


def test_pools_of_tokens_agree_with_their_mean(tiny, tokens, key_mask):
    apply, state = build(tiny(**WORDS))
    mean, _ = build(tiny(**WORDS | {"pool": "mean"}))
    words = np.asarray(apply(state, tokens, key_mask=key_mask), np.float64)
    wanted = np.stack([row[real].mean(0) for row, real in zip(words, np.asarray(key_mask), strict=True)])
    np.testing.assert_allclose(mean(state, tokens, key_mask=key_mask), wanted, atol=T * EPS * np.abs(wanted).max() * 8)
    documents = jnp.broadcast_to((jnp.arange(T) >= 8).astype(int), (B, T))
    packed = [apply(state, x, segment_ids=documents) for x in (tokens, tokens.at[:, 7].set(0))]
    np.testing.assert_array_equal(packed[0][:, 8:], packed[1][:, 8:])


WRONG = [
    (
        "encoder",
        {"graph_attention": {"name": "full"}},
        "model.graph_attention.name: 'full' reads no graph; write graph",
    ),
    (
        "encoder",
        {"graph_attention": {"name": "graph"}},
        "model.graph_attention.score: missing for 'graph'; write score=",
    ),
    ("encoder", {"graph_bias": -1}, "model.graph_bias: wanted at least 0, got -1"),
    ("encoder", {"num_relations": -1}, "model.num_relations: wanted at least 0, got -1"),
    ("encoder", {"pool": "words"}, "model.pool: got 'words'; write one of cls, mean, tokens"),
    ("encoder", ALONE | {"pool": "cls"}, "model.pool: no edge reaches the vector of 'cls' in graph attention alone"),
    ("encoder", ALONE | {"position": "alibi"}, "model.position: 'graph' has no scores for 'alibi' to add to"),
    ("encoder", ALONE | {"pool": "mean", "graph_bias": 1}, "model.graph_bias: 'graph' has no scores for it to add to"),
    ("encoder", ALONE_V2 | {"position": "rope"}, "model.attention.score: 'gatv2' adds query and key"),
    ("encoder", {"attention": ATTENTION["linear"], "graph_bias": 1}, "model.graph_bias: 'linear' has no scores"),
    (
        "encoder",
        {"attention": ATTENTION["fixed per head"], "graph_bias": 1},
        "model.graph_bias: 'sparse_transformer' has",
    ),
    (
        "transformer",
        {"graph_bias": 1},
        "model.graph_bias: a path may run through later words, so no decoder can use it",
    ),
    (
        "encoder_decoder",
        {"decoder_attention": ATTENTION["graph"]},
        "model.decoder_attention.name: 'graph' wants a graph of tokens, and here is none",
    ),
    ("encoder_decoder", {"cross_attention": ATTENTION["graph"]}, "model.cross_attention.name: 'graph' wants a graph"),
]


@pytest.mark.parametrize("name, changes, message", WRONG)
def test_check_refuses(tiny, name, changes, message):
    with pytest.raises(ValueError) as error:
        check(tiny(name=name, **changes), T)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_model_is_not_built_before_the_number_of_relations_is_known(tiny):
    for name, fields in (("encoder", WORDS | BRANCH), ("encoder", WORDS | ALONE), ("transformer", BRANCH)):
        config = tiny(**{"name": name} | fields | {"num_relations": 0})
        check(config, T)
        with pytest.raises(ValueError, match="model.num_relations: 0 stands for what the data have"):
            (Encoder if name == "encoder" else Transformer)(config, length=T, rngs=nnx.Rngs(0))
    Encoder(tiny(**WORDS | BIAS | {"num_relations": 0}), length=T, rngs=nnx.Rngs(0))  # a bias asks for no kinds


@pytest.mark.parametrize("change, message", [
    (lambda graph: None, "graph: this model reads one, got None; give models.edges.Edges"),
    (lambda graph: tuple(graph), "graph: wanted models.edges.Edges, got tuple"),
    (lambda graph: graph._replace(senders=graph.senders[:1]), r"graph.senders: wanted integers \[B, E\] with B = 2"),
    (lambda graph: graph._replace(relations=graph.relations[:, 1:]), r"graph.relations: wanted integers .*, got int32\[2, 28\]"),
    (lambda graph: graph._replace(mask=graph.senders), r"graph.mask: wanted bool \[B, E\]"),
])  # fmt: skip
def test_refuses_graphs(tiny, tokens, graph, change, message):
    model = Encoder(tiny(**WORDS | BRANCH), length=T, rngs=nnx.Rngs(0))
    for call in (model, model.attention_maps):
        with pytest.raises(ValueError, match=message):
            call(tokens, graph=change(graph))


def test_refuses_a_graph_that_nothing_reads(tiny, tokens, graph):
    assert not Encoder(tiny(**WORDS), length=T, rngs=nnx.Rngs(0)).reads_graph
    for model in (Encoder(tiny(**WORDS), length=T, rngs=nnx.Rngs(0)), Transformer(tiny(), length=T, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match="graph: this model reads none; leave it out"):
            model(tokens, graph=graph)
    layer = Attention(tiny(**WORDS | ALONE), length=T, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="edges: this variant wants those of a graph of the tokens, got None"):
        layer(jnp.ones((B, T, 12)))
