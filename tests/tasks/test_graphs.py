"""Graph tasks: what is asked of which row, padding, scores by hand, baselines, and one small graph learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse
from ml_collections import ConfigDict

from tasks import graphs
from tasks.graph_files import Graph

FEATURES, CLASSES = 5, 3
SIZES = 7, 11, 4, 13  # nodes of four graphs: two to train on, one to look at, one to judge on
NODES = sum(SIZES)
HALVES = ("train", "train", "development", "test")


def config(**changes):
    fields = {"name": "digits", "path": "", "dir": "", "num_nodes": 0, "num_neighbours": 0, "labels_per_class": 0}
    return ConfigDict(fields | changes)


def write(path, *, dense=False, halves=HALVES):
    """Several random graphs as `.npz`, in a random order of nodes; with one half per node, one graph."""
    rng = np.random.default_rng(0)
    graph_id = np.repeat(np.arange(len(SIZES)), SIZES)
    half = np.array(halves)[graph_id] if len(halves) == len(SIZES) else np.array(halves)
    if len(halves) != len(SIZES):
        graph_id = np.zeros(NODES, int)
    pairs = rng.integers(0, NODES, (2, 200))
    pairs = pairs[:, graph_id[pairs[0]] == graph_id[pairs[1]]]
    words = rng.integers(0, 4, (NODES, FEATURES)) * (rng.random((NODES, FEATURES)) < 0.4)
    arrays = {"labels": rng.integers(0, CLASSES, NODES), "edge_index": pairs, "graph_id": graph_id}
    arrays |= {
        f"{name}_mask": half == part for name, part in (("train", "train"), ("val", "development"), ("test", "test"))
    }
    if dense:
        arrays["features"] = words.astype(np.float32)
    else:
        matrix = scipy.sparse.csr_array(words)
        arrays |= {name: getattr(matrix, name) for name in ("indptr", "indices", "data")} | {"shape": matrix.shape}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return graphs.load(config(path=str(write(tmp_path_factory.mktemp("several") / "graphs.npz"))))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    halves = np.random.default_rng(1).permutation(["train"] * 5 + ["development"] * 4 + ["test"] * (NODES - 9))
    return graphs.load(config(path=str(write(tmp_path_factory.mktemp("single") / "graph.npz", halves=halves))))


class Sum:
    """Scores of a node: features of itself and of its neighbours, added up; shows what a row holds."""

    num_features = FEATURES

    def __call__(self, nodes, edges, rng=None):
        dense = nodes.todense() if isinstance(nodes, sparse.BCOO) else nodes
        heard = jax.vmap(lambda x, senders, receivers, mask: x.at[receivers].add(x[senders] * mask[:, None]))
        return heard(dense, edges.senders, edges.receivers, edges.mask)[..., :CLASSES]


def answers(corpus, nodes):
    """The scores of `Sum` for some nodes of a corpus, from its whole graph in NumPy."""
    graph = corpus.graph
    dense = graph.features.toarray() if hasattr(graph.features, "toarray") else graph.features
    heard = dense.copy()
    np.add.at(heard, graph.receivers, dense[graph.senders])
    return heard[nodes, :CLASSES]


class TestRows:
    def test_one_graph_is_asked_about_in_parts(self, single):
        examples, owners = graphs.validation(single, NODES)
        asked = examples["asked"]
        assert asked.shape == (20, NODES) and owners.tolist() == list(range(20))
        np.testing.assert_array_equal(asked.sum(0), single.graph.test)  # every node once
        assert set(asked.sum(1)) == {1, 2}
        for name, array in examples.items():
            assert name == "asked" or (array == array[:1]).all() and array.strides[0] == 0  # twenty rows, one memory

    def test_training_rows_of_one_graph_are_the_same_object(self, single):
        first = graphs.batch(single, 0, 0, 1, NODES)
        assert graphs.batch(single, 1, 7, 1, NODES) is first
        np.testing.assert_array_equal(first["asked"][0], single.graph.train)
        examples, owners = graphs.development(single, NODES)
        np.testing.assert_array_equal(examples["asked"][0], single.graph.development)
        assert owners.tolist() == [0]
        assert len(graphs.batch(single, 0, 0, 3, NODES)["asked"]) == 3

    def test_several_graphs_keep_apart(self, several):
        seen = {step: graphs.batch(several, 0, step, 1, 13)["labels"].tobytes() for step in range(20)}
        assert len(set(seen.values())) == 2
        both = graphs.batch(several, 0, 0, 2, 13)
        assert sorted(both["asked"].sum(1)) == [7, 11] and both["labels"].shape == (2, 13)
        assert graphs.batch(several, 0, 0, 5, 13)["labels"].shape == (5, 13)
        examples, owners = graphs.development(several, 13)
        assert examples["asked"].sum(1).tolist() == [4] and owners.tolist() == [0]
        examples, _ = graphs.validation(several, 13)
        np.testing.assert_array_equal(examples["asked"].sum(0), np.ones(13))  # the one graph judged on, in parts

    def test_several_judged_graphs_are_a_piece_each(self, tmp_path):
        corpus = graphs.load(
            config(path=str(write(tmp_path / "g.npz", halves=("train", "test", "development", "test"))))
        )
        examples, owners = graphs.validation(corpus, 13)
        assert examples["asked"].sum(1).tolist() == [11, 13] and owners.tolist() == [0, 1]

    def test_a_larger_size_pads_and_a_smaller_one_is_refused(self, single):
        small, large = (graphs.development(single, size)[0] for size in (NODES, NODES + 6))
        for name in ("labels", "asked"):
            np.testing.assert_array_equal(large[name][:, :NODES], small[name])
            assert not large[name][:, NODES:].any()
        with pytest.raises(ValueError, match=f"num_nodes=9: the largest graph has {NODES} nodes, none is cut"):
            graphs.validation(single, 9)

    @pytest.mark.parametrize("dense, size", [(False, 17), (True, 13)])
    def test_scores_are_those_of_each_graph_by_itself(self, tmp_path, dense, size):
        corpus = graphs.load(config(path=str(write(tmp_path / "g.npz", dense=dense))))
        examples = graphs.batch(corpus, 0, 0, 2, size)
        loss, count, right, weight = graphs.score(Sum(), {name: jnp.asarray(array) for name, array in examples.items()})
        for row, (first, last) in enumerate([(0, 7), (7, 18)] if count[0] == 7 else [(7, 18), (0, 7)]):
            scores, labels = answers(corpus, np.arange(first, last)), corpus.graph.labels[first:last]
            logs = scores - np.log(np.exp(scores.astype(np.float64)).sum(1, keepdims=True))
            np.testing.assert_allclose(loss[row], -logs[np.arange(last - first), labels].sum(), rtol=1e-5)
            assert right[row] == (scores.argmax(1) == labels).sum() and count[row] == weight[row] == last - first


def test_what_is_not_asked_has_no_gradient(single):
    examples = graphs.development(single, NODES)[0]
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, NODES, CLASSES)), jnp.float32)

    def loss(logits):
        model = lambda nodes, edges, rng=None: logits  # noqa: E731
        model.num_features = FEATURES
        return graphs.score(model, examples)[0].sum()

    moved = np.abs(jax.grad(loss)(logits)[0]).sum(1) > 0
    np.testing.assert_array_equal(moved, single.graph.development)


class TestBaselines:
    def corpus(self, edges, labels, train):
        """A graph whose features are a one at the label of every second node."""
        labels, train = np.array(labels), np.array(train)
        features = np.eye(2, dtype=np.float32)[labels] * (np.arange(len(labels)) % 2 == 0)[:, None]
        senders, receivers = np.array(edges + [(b, a) for a, b in edges], np.int32).reshape(-1, 2).T
        halves = train, ~train, ~train
        return graphs.Corpus(Graph(("a", "b"), features, senders, receivers, labels, *halves, 0 * labels), "")

    def test_by_hand(self):
        # Two paths, 0-1-2-3 and 4-5-6, each with one label at its end, and node 7 alone.
        corpus = self.corpus([(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)], [0, 0, 0, 0, 1, 1, 1, 0], np.arange(8) % 4 == 0)
        found = graphs.baselines(corpus)
        assert found["majority"] == 4 / 6  # of 1, 2, 3, 7 and 5, 6 the first four
        assert found["label propagation"] == 1.0
        assert found["features alone"] in (4 / 6, 5 / 6)  # nodes 2 and 6 tell their label, the others nothing

    def test_propagation_is_the_closed_form(self, single):
        graph = single.graph
        matrix = np.zeros((NODES, NODES))
        matrix[graph.receivers, graph.senders] = 1
        into, out = (np.maximum(matrix.sum(axis), 1) ** -0.5 for axis in (1, 0))
        given = np.eye(CLASSES)[graph.labels] * graph.train[:, None]
        limit = np.linalg.solve(np.eye(NODES) - graphs.KEPT * into[:, None] * matrix * out, given)
        clear = np.diff(np.sort(limit, 1)[:, -2:], axis=1)[:, 0] > 0.1 * limit.max(1)
        assert clear.sum() > NODES // 2
        np.testing.assert_array_equal(graphs._propagated(graph, 0)[clear], limit.argmax(1)[clear])

    def test_no_propagation_between_graphs(self, several):
        assert set(graphs.baselines(several)) == {"majority", "features alone"}

    def test_neighbours_of_digits_say_more_than_pixels(self):
        found = graphs.baselines(graphs.load(config()))
        assert found["majority"] < 0.12 < 0.8 < found["features alone"] < found["label propagation"] < 0.97


def test_the_data_decide_the_model_s_ends(several):
    assert graphs.fields(several) == {
        "data.num_nodes": 13,
        "model.num_features": FEATURES,
        "model.num_classes": CLASSES,
    }
    found = graphs.describe(several, 13)
    assert (found["graphs"], found["nodes"], found["features"]) == (4, NODES, FEATURES)
    assert (found["train_nodes"], found["development_nodes"], found["validation_nodes"]) == (18, 4, 13)
    assert found["edges"] == len(several.graph.senders) and graphs.tokens(13) == 13


@pytest.mark.parametrize("dense", [False, True])
def test_describing_leaves_the_features_alone(tmp_path, dense):
    """Baselines rescale features; the models must not see that, nor may eval.py, which describes nothing."""
    write(tmp_path / "graph.npz", dense=dense)
    corpus = graphs.load(config(path=str(tmp_path / "graph.npz")))
    whole = lambda: np.asarray(scipy.sparse.csr_matrix(corpus.graph.features).todense())  # noqa: E731
    before = whole().copy()
    graphs.describe(corpus, corpus.num_nodes)
    np.testing.assert_array_equal(whole(), before)


def test_fingerprint_is_of_every_part(tmp_path):
    path = write(tmp_path / "graphs.npz")
    arrays = dict(np.load(path))
    prints = {graphs.load(config(path=str(path))).sha256}
    other = {
        "data": np.append(2, arrays["data"][1:]),
        "labels": arrays["labels"][::-1],
        "edge_index": arrays["edge_index"][:, 1:],
    }
    other |= {"test_mask": arrays["test_mask"] & (np.arange(NODES) != NODES - 1)}
    for name, changed in other.items():
        assert (arrays[name].shape != changed.shape) or (arrays[name] != changed).any()
        np.savez(tmp_path / "changed.npz", **arrays | {name: changed})
        prints.add(graphs.load(config(path=str(tmp_path / "changed.npz"))).sha256)
    assert len(prints) == 5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "karate"}, "config.data.name='karate': unknown, want one of digits, cora"),
        ({"name": "karate"}, "name the folder of its files, ind.karate.x and so on: --config.data.dir=FOLDER"),
        (
            {"name": "karate", "dir": "absent"},
            "absent/karate/ind.karate.allx is missing; a graph in the format of Planetoid",
        ),
        ({"name": "karate", "dir": "absent", "path": "x.npz"}, "config.data.path='x.npz': karate does not read it"),
        ({"name": "cora", "path": "x.npz"}, "config.data.path='x.npz': cora does not read it"),
        ({"name": "cora", "num_neighbours": 3}, "config.data.num_neighbours=3: cora does not read it"),
        ({"dir": "data"}, "config.data.dir='data': digits does not read it"),
        ({"path": "absent.npz"}, "config.data.path='absent.npz': want a .npz file, or a folder that holds nodes.csv"),
        ({"name": "path"}, "config.data.path='': want a .npz file"),
        ({"name": "pubmed"}, "config.data.dir is empty, want the folder that holds ind.pubmed.x"),
        ({"num_neighbours": 2000}, "config.data.num_neighbours=2000: want fewer than the 1797 nodes"),
        ({"path": "one_class.npz"}, "all nodes to train on are of one class"),
        ({"labels_per_class": 200}, "labelled nodes to train on, to look at on the way and to judge on"),
    ],
)
def test_wrong_config_is_refused_in_one_line(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    arrays = dict(np.load(write(tmp_path / "graphs.npz")))
    np.savez("one_class.npz", **arrays | {"labels": arrays["labels"] * ~arrays["train_mask"]})
    with pytest.raises(ValueError) as caught:
        graphs.load(config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
