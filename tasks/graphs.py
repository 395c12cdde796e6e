"""Node classification: which class a node belongs to, told by its features and the nodes around it.

One graph, of which a few nodes are labelled (transductive: the model sees all features and edges in training, Yang et
al. 2016, arXiv:1603.08861), or several, some of which no training step sees (inductive, Hamilton et al. 2017,
arXiv:1706.02216).
"""

import dataclasses
import functools
import hashlib

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import sparse

from models.edges import Edges
from tasks.graph_files import CITATION, SOURCES, Graph
from tasks.source import check_read
from tasks.text import cross_entropy

METRIC = {"name": "validation accuracy", "higher_is_better": True}
MODELS = ("graph_network",)
VOCABULARY = 0  # nodes are no tokens
DATA = ("name", "path", "dir", "num_nodes", "num_neighbours", "labels_per_class")
SIZE, UNIT = "num_nodes", "nodes"
PIECES = 20  # the error bar of a judgement on one graph is the spread over so many parts of its nodes
KEPT, ROUNDS = 0.9, 50  # label propagation: share of what neighbours say, and how often they are asked
STRENGTH = 100.0  # of the logistic regression, C for features of mean square 1 a node


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A graph, or several, and their fingerprint.

    Attributes:
      graph: `Graph`.
      sha256: of everything in it.
    """

    graph: Graph
    sha256: str

    @property
    def num_nodes(self):
        """V: nodes of the largest graph."""
        return int(np.bincount(self.graph.graph_ids).max())


def load(config) -> Corpus:
    """Reads the graph that `config.data` names.

    Args:
      config: `name` (one of SOURCES, or any other whose files `ind.NAME.x`, ..., in the format of Planetoid, are in
        `dir`), `path` (a `.npz` file or a folder of the user's own; non-empty replaces the default source), `dir`
        (folder that holds a citation graph's files), `num_nodes` (0 = as the data have),
        `num_neighbours` (each node of a graph without edges is joined to so many; 0 = 8) and `labels_per_class` (how
        many are trained on where the data say nothing of it; 0 = 5 of digits, else 20).

    Returns:
      The corpus, the same for the same files, in any process.

    Raises:
      ValueError: unknown source, settings that the source does not take, files that are missing or wrong.
    """
    if config.name not in SOURCES and not config.dir:
        raise ValueError(
            f"config.data.name={config.name!r}: unknown, want one of {', '.join(SOURCES)}; of another citation graph "
            f"name the folder of its files, ind.{config.name}.x and so on: --config.data.dir=FOLDER"
        )
    name = "path" if config.path and config.name == "digits" else config.name
    read, settings = SOURCES.get(name, CITATION)
    check_read(config, name, ("path", "dir", "num_neighbours", "labels_per_class"), settings)
    graph = read(config)
    if len(np.unique(graph.labels[graph.train])) < 2:
        raise ValueError(f"config.data.name={name!r}: all nodes to train on are of one class; label some of another")
    digest = hashlib.sha256("\n".join(graph.classes).encode())
    for field in dataclasses.fields(graph)[1:]:
        array = getattr(graph, field.name)
        parts = (array.indptr, array.indices, array.data) if scipy.sparse.issparse(array) else (array,)
        for part in (np.array(array.shape), *parts):
            digest.update(np.ascontiguousarray(part))
    return Corpus(graph, digest.hexdigest())


def describe(corpus, length):
    """What `data.json` keeps of a corpus: its fingerprint, classes and sizes, and baselines on the nodes judged on."""
    graph = corpus.graph
    return {
        "sha256": corpus.sha256,
        "classes": list(graph.classes),
        "graphs": int(graph.graph_ids.max()) + 1,
        "nodes": len(graph.labels),
        "edges": len(graph.senders),
        "features": graph.features.shape[1],
        "train_nodes": int(graph.train.sum()),
        "development_nodes": int(graph.development.sum()),
        "validation_nodes": int(graph.test.sum()),
        "validation_examples": int(graph.test.sum()),
        "baselines": baselines(corpus),
    }


def tokens(length):
    """An example has `length` nodes."""
    return length


def fields(corpus):
    """The model takes nodes with as many features as these have, and answers with one score for each class."""
    return {
        "data.num_nodes": corpus.num_nodes,
        "model.num_features": corpus.graph.features.shape[1],
        "model.num_classes": len(corpus.graph.classes),
    }


def batch(corpus, seed, step, batch_size, length):
    """Graphs drawn at random, a pure function of (seed, step); of one graph and batch_size 1 the same object each time.

    Returns:
      {"senders", "receivers" int32 [batch_size, E], "edge_mask" bool [batch_size, E], "labels" int32 [batch_size, V],
      "asked" bool [batch_size, V], the training nodes, and the features: "features" float32 [batch_size, V, F], or of
      a sparse matrix "feature_values" float32 [batch_size, M], "feature_places" int32 [batch_size, M, 2], node and
      feature of each}. Graphs smaller than others are padded with 0 and False.
    """
    examples = _examples(corpus, "train", length)
    count = len(examples["labels"])
    if count == batch_size == 1:
        return examples
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    rows = np.resize(rng.permutation(count), batch_size)
    return {name: array[rows] for name, array in examples.items()}


def validation(corpus, length):
    """The nodes that are judged on; those of a single graph in PIECES rows, each of which asks about some of them.

    Returns:
      (as `batch`, owners [rows]: each row is a piece of its own). Rows of one graph share its memory.
    """
    examples = _examples(corpus, "test", length)
    if len(examples["labels"]) == 1:
        nodes = np.flatnonzero(examples["asked"][0])
        order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(nodes))
        pieces = min(PIECES, len(nodes))
        asked = np.zeros((pieces, length), bool)
        asked[order % pieces, nodes] = True
        examples = {name: np.broadcast_to(array, (pieces, *array.shape[1:])) for name, array in examples.items()}
        examples["asked"] = asked
    return examples, np.arange(len(examples["labels"]))


def development(corpus, length):
    """The nodes that training looks at on the way, a row for each graph; (as `batch`, owners [rows])."""
    examples = _examples(corpus, "development", length)
    return examples, np.arange(len(examples["labels"]))


@functools.lru_cache(maxsize=8)
def _examples(corpus, part, length):
    """A row for each graph with nodes in that part of the split; kept because every step of training asks for it."""
    graph, asked = corpus.graph, getattr(corpus.graph, part)
    if length < corpus.num_nodes:
        raise ValueError(f"config.data.num_nodes={length}: the largest graph has {corpus.num_nodes} nodes, none is cut")
    starts = np.append(0, np.bincount(graph.graph_ids).cumsum())
    rows = [_row(graph, asked, *starts[one : one + 2]) for one in np.unique(graph.graph_ids[asked])]
    sizes = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    sizes |= dict.fromkeys(("labels", "asked", "features") & sizes.keys(), length)
    return {name: np.stack([_padded(row[name], size) for row in rows]) for name, size in sizes.items()}


def _row(graph, asked, start, stop):
    """The graph of the nodes from `start` up to `stop`, without padding."""
    edges = slice(*np.searchsorted(graph.receivers, (start, stop)))
    senders, receivers = graph.senders[edges] - start, graph.receivers[edges] - start
    row = {"senders": senders.astype(np.int32), "receivers": receivers.astype(np.int32)}
    row["edge_mask"] = np.ones(len(senders), bool)
    row["labels"], row["asked"] = np.maximum(graph.labels[start:stop], 0), asked[start:stop]
    features = graph.features[start:stop]
    if not scipy.sparse.issparse(features):
        return row | {"features": features}
    features = features.tocoo()
    places = np.stack([features.row, features.col], 1).astype(np.int32)
    return row | {"feature_values": features.data, "feature_places": places}


def _padded(array, size):
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def score(model, examples, rng=None):
    """Nats, nodes asked about, those answered rightly, and nodes again, from a model that scores the classes of nodes.

    Args:
      model: `model(nodes, edges, rng=rng)` -> [B, V, classes]; `num_features` is its F.
      examples: as `batch`.
      rng: for dropout.
    """
    labels, asked = examples["labels"], examples["asked"].astype(jnp.float32)
    edges = Edges(
        examples["senders"], examples["receivers"], jnp.zeros_like(examples["senders"]), examples["edge_mask"]
    )
    logits = model(_nodes(examples, model), edges, rng=rng)
    right = (logits.argmax(-1) == labels) * asked
    return (cross_entropy(logits, labels) * asked).sum(1), asked.sum(1), right.sum(1), asked.sum(1)


def _nodes(examples, model):
    if "features" in examples:
        return examples["features"]
    shape = (*examples["labels"].shape, model.num_features)
    return sparse.BCOO((examples["feature_values"], examples["feature_places"]), shape=shape)


def baselines(corpus):
    """Accuracy of models without a network, on exactly the nodes the variants are judged on.

    "majority" answers the class most frequent in training. "features alone" is a logistic regression that sees no edge;
    "label propagation" sees no feature: every node takes over what its neighbours say (Zhou et al. 2004, "Learning with
    local and global consistency"), which needs training nodes in the graphs that are judged.
    """
    from sklearn.linear_model import LogisticRegression

    graph = corpus.graph
    labels, most = graph.labels[graph.test], np.bincount(graph.labels[graph.train]).argmax()
    features = scipy.sparse.csr_matrix(graph.features)
    features = features / np.sqrt(features.power(2).sum(1).mean() or 1)  # a new matrix: the models read the other
    regression = LogisticRegression(C=STRENGTH, max_iter=1000).fit(features[graph.train], graph.labels[graph.train])
    answers = {"majority": most, "features alone": regression.predict(features[graph.test])}
    if np.isin(graph.graph_ids[graph.test], graph.graph_ids[graph.train]).any():
        answers["label propagation"] = _propagated(graph, most)[graph.test]
    return {name: float(np.mean(answer == labels)) for name, answer in answers.items()}


def _propagated(graph, most):
    """int [V]: the class that F = KEPT D^-1/2 A D^-1/2 F + (1 - KEPT) Y says, `most` where no label comes near."""
    count = len(graph.labels)
    matrix = scipy.sparse.csr_array((np.ones(len(graph.senders)), (graph.receivers, graph.senders)), (count, count))
    into, out = (1 / np.sqrt(np.maximum(matrix.sum(axis), 1)) for axis in (1, 0))
    given = np.eye(len(graph.classes))[graph.labels] * graph.train[:, None]
    found = given
    for _ in range(ROUNDS):
        found = KEPT * into[:, None] * (matrix @ (out[:, None] * found)) + (1 - KEPT) * given
    return np.where(found.any(1), found.argmax(1), most)
