"""Two towers: one encoder for both texts, the head by hand, padding, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ATTENTION, BIDIRECTIONAL
from flax import nnx
from harness import EPS, assert_everything_learns, assert_trees_agree, build, trained

from experiment.optimizers import is_matrix
from models.config import check, tower_of
from models.transformer import Encoder
from models.two_towers import TwoTowers

B, T, V, D, M, C = 3, 13, 23, 12, 11, 5
FIELDS = {"name": "two_towers", "pool": "mean", "num_classes": C, "depth": 2}


@pytest.fixture
def pair():
    return [jax.random.randint(jax.random.key(i), (B, T), 0, V) for i in range(2)]


@pytest.fixture
def masks():
    """Texts of different sizes."""
    return [jnp.arange(T) < jnp.array(sizes)[:, None] for sizes in ([9, 13, 5], [13, 7, 11])]


def test_the_encoder_is_there_once_and_the_head_has_the_published_sizes(tiny):
    config = tiny(**FIELDS)
    count = lambda build: sum(x.size for x in jax.tree.leaves(nnx.state(nnx.eval_shape(build))))  # noqa: E731
    encoder = count(lambda: Encoder(tower_of(config), length=T, rngs=nnx.Rngs(0)))
    head = (4 * D + 1) * M + (M + 1) * (M // 2) + (M // 2 + 1) * C
    assert count(lambda: TwoTowers(config, length=T, rngs=nnx.Rngs(0))) == encoder + head


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_scores_by_hand(tiny, pair, masks, pool):
    model = TwoTowers(tiny(**FIELDS | {"pool": pool}), length=T, rngs=nnx.Rngs(0))
    read = lambda tokens, mask: np.asarray(model.encoder.vectors(tokens, key_mask=mask), np.float64)  # noqa: E731
    x, y = (read(tokens, mask) for tokens, mask in zip(pair, masks, strict=True))
    h = np.concatenate([x, y, x * y, x - y], axis=1)
    weights = [(np.asarray(layer.weight[...], np.float64), np.asarray(layer.bias[...])) for layer in model.head]
    for weight, bias in weights[:2]:
        h = np.maximum(h @ weight + bias, 0)
    wanted = h @ weights[2][0] + weights[2][1]
    found = model(*pair, first_mask=masks[0], second_mask=masks[1])
    assert found.shape == (B, C) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=64 * EPS * np.abs(wanted).max())


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_vectors_are_what_a_classifier_scores(tiny, pair, masks, pool):
    model = Encoder(tiny(name="encoder", pool=pool, num_classes=C, depth=2), length=T, rngs=nnx.Rngs(0))
    vectors = model.vectors(pair[0], key_mask=masks[0])
    assert vectors.shape == (B, D)
    wanted = np.asarray(vectors, np.float64) @ np.asarray(model.classes[...], np.float64).T
    np.testing.assert_allclose(model(pair[0], key_mask=masks[0]), wanted, atol=64 * EPS * np.abs(wanted).max())


def test_a_model_of_every_token_has_no_vector_of_the_row(tiny, pair):
    model = Encoder(tiny(name="encoder", pool="tokens", num_classes=C, depth=1), length=T, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="model.pool: 'tokens' gives each token its vector and the row none"):
        model.vectors(pair[0])


def test_no_text_sees_the_other(tiny, pair):
    model = TwoTowers(tiny(**FIELDS), length=T, rngs=nnx.Rngs(0))
    alone = model.encoder.vectors(pair[0])
    both = model.encoder.vectors(jnp.concatenate([pair[0], pair[1]]))[:B]
    assert_trees_agree(both, alone, roundings=64)


SOME = ["full", "bigbird", "linformer"]  # the rest only among the slow tests


@pytest.mark.parametrize(
    "attention", [pytest.param(case, marks=() if case in SOME else pytest.mark.slow) for case in BIDIRECTIONAL]
)
def test_padding_has_no_influence_and_everything_learns(tiny, pair, masks, attention):
    run = trained(tiny(**FIELDS, attention=ATTENTION[attention]))

    def filled(junk):
        tokens = [jnp.where(mask, text, junk) for text, mask in zip(pair, masks, strict=True)]
        return run(*tokens, first_mask=masks[0], second_mask=masks[1], rng=jax.random.key(1))

    clean, dirty = filled(3), filled(-7)  # -7 is no token of the vocabulary
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    if attention != "longformer projected":  # whose ordinary queries of a global token nothing reads
        assert_everything_learns(clean[1])


def test_either_mask_may_be_left_out(tiny, pair, masks):
    apply, state = build(tiny(**FIELDS))
    every = jnp.ones((B, T), bool)
    plain = apply(state, *pair)
    assert_trees_agree(apply(state, *pair, first_mask=every, second_mask=every), plain, roundings=64)
    one = apply(state, *pair, second_mask=masks[1])
    assert_trees_agree(apply(state, *pair, first_mask=every, second_mask=masks[1]), one, roundings=64)
    assert (one != plain).any()


def test_sides_differ_and_each_counts(tiny, pair):
    apply, state = build(tiny(**FIELDS))
    scores = apply(state, *pair)
    assert (apply(state, *pair[::-1]) != scores).any(-1).all()
    for side in (0, 1):
        other = [tokens.at[:, 4].set((tokens[:, 4] + 1) % V) if i == side else tokens for i, tokens in enumerate(pair)]
        assert (apply(state, *other) != scores).any(-1).all()


def test_biases_do_not_decay(tiny):
    params = nnx.to_pure_dict(nnx.state(TwoTowers(tiny(**FIELDS), length=T, rngs=nnx.Rngs(0)), nnx.Param))
    for layer in is_matrix(params)["head"].values():
        assert layer == {"weight": True, "bias": False}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"pool": "tokens"},
            "model.pool: a pair has one class, and 'tokens' gives each token its own; write mean or cls",
        ),
        ({"tie_embeddings": False}, "model.tie_embeddings: a classifier has no scores of tokens to untie; write True"),
        ({"graph_bias": 2}, "model.graph_bias: the two texts come without a graph; write 0"),
        (
            {"graph_attention": ATTENTION["graph"]},
            "model.graph_attention: the two texts come without a graph; write {}",
        ),
        ({"attention": ATTENTION["graph"]}, "model.attention.name: 'graph' wants a graph of tokens, and here is none"),
        ({"attention": ATTENTION["retention"]}, "model.attention.name: 'retention' never looks ahead"),
        ({"num_classes": -1}, "model.num_classes: wanted at least 0"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(tiny, changes, message):
    with pytest.raises(ValueError) as caught:
        check(tiny(**FIELDS | changes), T)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_classes_that_only_the_data_know_are_asked_for(tiny):
    config = tiny(**FIELDS | {"num_classes": 0})
    check(config, T)
    with pytest.raises(ValueError, match="model.num_classes: 0 stands for what the data have"):
        TwoTowers(config, length=T, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("first", lambda x: x[0], r"first: wanted integers \[B, T\], got int32\[13\]"),
        ("first", lambda x: x.astype(float), r"first: wanted integers \[B, T\], got float32"),
        ("second", lambda x: x[:, 1:], r"second: wanted the shape of first \[3, 13\], got \[3, 12\]"),
        ("second", lambda x: x.astype(float), r"second: wanted integers \[B, T\], got float32"),
        ("first_mask", lambda x: x[:, 1:], r"first_mask: wanted the shape of first \[3, 13\], got \[3, 12\]"),
    ],
)
def test_a_wrong_input_is_named(tiny, pair, masks, name, change, message):
    model = TwoTowers(tiny(**FIELDS, position="learned"), length=T, rngs=nnx.Rngs(0))
    given = {"first": pair[0], "second": pair[1], "first_mask": masks[0]}
    with pytest.raises(ValueError, match=message):
        model(**given | {name: change(given[name])})
