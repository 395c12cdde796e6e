"""Where labelled graphs come from: published files, arrays, tables of the user's own, and digits that look alike."""

import dataclasses
import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.sparse

from tasks import graph_tables, planetoid

NUM_NEIGHBOURS = 8  # of a node in a graph that is made of its features
LABELS_PER_CLASS = 20  # trained on where the data bring no split, as many as Planetoid has
DIGIT_LABELS = 5  # of each digit: so few that a classifier of the features alone falls behind its neighbours' labels
CHUNK = 1024  # nodes whose distances to all others are in memory at once
DEVELOPMENT = 500  # nodes at most, and no more than a third of those that are left
CSR, MASKS = ("indptr", "indices", "data", "shape"), ("train_mask", "val_mask", "test_mask")


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A graph with labelled nodes, or several of them side by side, no edge between two.

    Attributes:
      classes: names of the labels.
      features: float32 [V, F], an array, or a `scipy.sparse.csr_array` where few are not 0.
      senders: int32 [E], sorted by receiver; each edge once, no self-loops.
      receivers: int32 [E].
      labels: int32 [V], index of the class, -1 where it is not known.
      train: bool [V], the nodes whose labels are learnt from.
      development: bool [V], those looked at on the way.
      test: bool [V], those judged on.
      graph_ids: int32 [V], which graph a node belongs to, 0, 1, ..., ascending.
    """

    classes: tuple[str, ...]
    features: np.ndarray | scipy.sparse.csr_array
    senders: np.ndarray
    receivers: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    development: np.ndarray
    test: np.ndarray
    graph_ids: np.ndarray


def _digits(config):
    """The 1,797 digits of 8 x 8 pixels that scikit-learn brings along, each joined to those that look most like it."""
    from sklearn.datasets import load_digits

    features = np.asarray(load_digits().data / 16, np.float32)  # ink counts of 0 to 16
    labels = load_digits().target
    edges = nearest_neighbours(features, config.num_neighbours or NUM_NEIGHBOURS)
    split = _few_labels(labels, config.labels_per_class or DIGIT_LABELS)
    return _graph("config.data.name='digits'", tuple("0123456789"), features, edges, labels, split)


def _citation(config):
    """A Planetoid graph, its words' weights divided by their sum in each paper, as GCN and GAT take them."""
    found = planetoid.read(config.dir, config.name)
    classes = tuple(map(str, range(found["labels"].max() + 1)))  # the files do not name them
    split = [found[name] for name in MASKS]
    features = divided_by_sums(found["features"])
    return _graph(f"config.data.name={config.name!r}", classes, features, found["edge_index"], found["labels"], split)


def _own(config):
    """A file `.npz`, or a folder with `nodes.csv` and `edges.csv`."""
    path = Path(config.path).expanduser()
    if path.suffix == ".npz" and path.is_file():
        for field in ("labels_per_class", "num_neighbours"):
            _refuse(field, config[field], f"{path} has its own")
        return read_npz(path)
    if not config.path or not path.is_dir():
        raise ValueError(f"config.data.path={config.path!r}: want a .npz file, or a folder that holds nodes.csv")
    return read_tables(path, config.labels_per_class, config.num_neighbours)


CITATION = (_citation, ("dir",))  # the three published graphs, and any other name where `config.data.dir` has its files
# Name in `config.data.name` -> (function of `config.data` that gives a `Graph`, the fields of it that it reads).
SOURCES = {
    "digits": (_digits, ("num_neighbours", "labels_per_class")),
    "cora": CITATION,
    "citeseer": CITATION,
    "pubmed": CITATION,
    "path": (_own, ("path", "num_neighbours", "labels_per_class")),
}


def read_npz(path):
    """A graph, or several, from NumPy arrays; nothing in the file is run.

    Keys: the features, `indptr`, `indices`, `data`, `shape` of a CSR matrix, whose rows are counts of words and are
    divided by their sums, or `features` [V, F], taken as they are; `labels` [V], integers, -1 = unknown; `edge_index`
    [2, E], senders and receivers, one direction each; `train_mask`, `val_mask`, `test_mask` bool [V]; where there are
    several graphs, `graph_id` [V], ascending integers.

    Args:
      path: of the file.

    Raises:
      ValueError: a key that is missing or unknown, an array of the wrong kind, shape or range.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive, which np.savez writes; np.save and a .npy file keep one array")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} does not read as .npz without pickles: {' '.join(str(error).split())}") from error
    own = CSR if "indptr" in arrays else ("features",)
    if missing := [name for name in (*own, "labels", "edge_index", *MASKS) if name not in arrays]:
        raise ValueError(f"{path}: {missing[0]!r} is missing, got {', '.join(arrays)}")
    if unknown := arrays.keys() - {*own, "labels", "edge_index", *MASKS, "graph_id"}:
        raise ValueError(f"{path}: {min(unknown)!r} is no key of a graph; drop it")
    features = _csr(path, arrays) if own is CSR else _checked(path, arrays, "features", "f", (None, None))
    num_nodes = features.shape[0]
    labels = _checked(path, arrays, "labels", "iu", (num_nodes,))
    edges = _checked(path, arrays, "edge_index", "iu", (2, None))
    split = [_checked(path, arrays, name, "b", (num_nodes,)) for name in MASKS]
    graph_ids = _checked(path, arrays, "graph_id", "iu", (num_nodes,)) if "graph_id" in arrays else None
    classes = tuple(map(str, range(min(labels.max(initial=0), num_nodes) + 1)))
    features = divided_by_sums(features) if own is CSR else features.astype(np.float32)
    return _graph(path, classes, features, edges, labels, split, graph_ids)


def read_tables(folder, labels_per_class=0, num_neighbours=0):
    """A graph from `nodes.csv` and `edges.csv` in a folder, or the same with tabs in `nodes.tsv` and `edges.tsv`.

    `nodes.csv` has a line for each node: its name, numbers, its label (empty = unknown). A header, which begins with
    `node` or `id` and has no numbers, says which column is the `label`, and may add `split` (train, dev, test or empty)
    and `graph`, the name of the graph that a node belongs to. Features are shifted and scaled to mean 0 and variance 1
    over all nodes.
    `edges.csv` has a line `sender,receiver` for each edge, after such a header or without; an edge that runs both ways
    needs two lines.

    Args:
      folder: `pathlib.Path`.
      labels_per_class: how many nodes of each class are trained on where there is no `split`; 0 = 20.
      num_neighbours: how many nearest nodes each is joined to, both ways, where there is no `edges.csv`; 0 = 8.

    Raises:
      ValueError: a file that is missing, or a line that is wrong: file and line are named.
    """
    path, table = graph_tables.find(folder, "nodes"), graph_tables.find(folder, "edges")
    if path is None:
        raise ValueError(
            f"{folder / 'nodes.csv'} is missing, and so is nodes.tsv; it wants a line NAME,NUMBERS,LABEL a node"
        )
    names, features, labels, columns = graph_tables.nodes(path)
    classes = tuple(sorted({label for label in labels if label}))
    answers = np.array([classes.index(label) if label else -1 for label in labels])
    scale = features.std(0)
    features = ((features - features.mean(0)) / np.where(scale > 0, scale, 1)).astype(np.float32)
    if "split" in columns:
        _refuse("labels_per_class", labels_per_class, f"{path} has a column split")
        split = [np.array([part == name for part in columns["split"]]) for name in graph_tables.SPLIT]
    elif "graph" in columns:
        raise ValueError(f"{path}: several graphs want a column split, which says what each node is for")
    else:
        split = _few_labels(answers, labels_per_class or LABELS_PER_CLASS)
    if table:
        _refuse("num_neighbours", num_neighbours, f"{table} has the edges")
        edges = graph_tables.edges(table, names)
    else:
        edges = nearest_neighbours(features, num_neighbours or NUM_NEIGHBOURS)
    graph_ids = np.unique(columns["graph"], return_inverse=True)[1] if "graph" in columns else None
    return _graph(path, classes, features, edges, answers, split, graph_ids)


def nearest_neighbours(features, count):
    """Edges [2, E] between each node and the `count` others whose features are nearest, in both directions.

    All that are as near as the last of them count too, so that no order of sorting decides. Time O(V^2 F).

    >>> nearest_neighbours(np.array([[0.0], [1.0], [3.0]]), 1).tolist()
    [[0, 1, 2, 1, 0, 1], [1, 0, 1, 0, 1, 2]]
    """
    if not count < len(features):
        raise ValueError(f"config.data.num_neighbours={count}: want fewer than the {len(features)} nodes")
    features = features.astype(np.float64)  # in which the distances of digits are exact
    squares, pairs = (features**2).sum(1), []
    for start in range(0, len(features), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(features)))
        distances = squares[rows, None] + squares - 2 * features[rows] @ features.T
        distances[rows - start, rows] = np.inf
        near = distances <= np.partition(distances, count - 1)[:, count - 1 : count]
        pairs.append(np.argwhere(near).T + [[start], [0]])
    pairs = np.concatenate(pairs, axis=1)
    return np.append(pairs, pairs[::-1], axis=1)


def divided_by_sums(features):
    """Each row of a `scipy.sparse.csr_array` divided by its sum; a row of zeros stays.

    >>> divided_by_sums(scipy.sparse.csr_array([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])).toarray().tolist()
    [[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]]
    """
    sums = features.sum(1)
    scale = np.divide(1, sums, out=np.zeros(len(sums)), where=sums != 0)
    return (scipy.sparse.diags_array(scale) @ features).tocsr().astype(np.float32)


def _graph(source, classes, features, edges, labels, split, graph_ids=None):
    """Puts nodes in the order of their graphs and edges in that of their receivers, and checks what all must hold."""
    num_nodes = len(labels)
    graph_ids = np.zeros(num_nodes, int) if graph_ids is None else np.unique(graph_ids, return_inverse=True)[1]
    for name, numbers, first in (("labels", labels, -1), ("edge_index", edges, 0)):
        if (wrong := numbers[(numbers < first) | (numbers >= num_nodes)]).size:
            raise ValueError(f"{source}: {name}: wanted {first} to {num_nodes - 1}, got {wrong[0]}")
    if (graph_ids[edges[0]] != graph_ids[edges[1]]).any():
        raise ValueError(f"{source}: an edge joins two graphs, want each inside one")
    order = np.argsort(graph_ids, kind="stable")
    senders, receivers = np.argsort(order)[edges]
    numbers = np.unique(receivers * np.int64(num_nodes) + senders)
    receivers, senders = np.divmod(numbers[numbers % num_nodes != numbers // num_nodes], num_nodes)
    known = labels >= 0
    train, development, test = (part[order] for part in (part & known for part in split))
    sizes = [int(part.sum()) for part in (train, development, test)]
    if len(classes) < 2 or not all(sizes):
        raise ValueError(
            f"{source}: got {len(classes)} classes and {sizes} labelled nodes to train on, to look at on the way and "
            "to judge on; want two or more classes and nodes of all three kinds"
        )
    if (train & test).any() or (train & development).any() or (development & test).any():
        raise ValueError(f"{source}: a node is in two parts of the split, want one")
    return Graph(
        classes,
        features[order],
        *(array.astype(np.int32) for array in (senders, receivers, labels[order])),
        *(train, development, test),
        graph_ids[order].astype(np.int32),
    )


def _few_labels(labels, per_class):
    """Train, development, test, bool [V]: `per_class` nodes of each class, by a hash of their number, and the rest."""
    ranks = [hashlib.sha256(str(node).encode()).digest() for node in range(len(labels))]
    order = np.array(sorted(np.flatnonzero(labels >= 0), key=ranks.__getitem__), int)
    places = np.empty(len(order), int)  # of each node among those of its class
    for label in np.unique(labels[order]):
        same = labels[order] == label
        places[same] = np.arange(same.sum())
    rest = order[places >= per_class]
    held = min(DEVELOPMENT, len(rest) // 3)
    parts = order[places < per_class], rest[:held], rest[held:]
    return [np.isin(np.arange(len(labels)), part) for part in parts]


def _refuse(field, value, reason):
    if value:
        raise ValueError(f"config.data.{field}={value}: {reason}; write 0")


def _csr(path, arrays):
    """The features of a `.npz` file, their structure checked in full."""
    shape = _checked(path, arrays, "shape", "iu", (2,))
    parts = [
        _checked(path, arrays, name, kinds, (None,)) for name, kinds in zip(CSR, ("iu", "iu", "fiu"), strict=False)
    ]
    try:
        features = scipy.sparse.csr_array((parts[2], parts[1], parts[0]), shape=tuple(map(int, shape)))
        features.check_format()
    except ValueError as error:
        raise ValueError(f"{path}: indptr, indices, data and shape are no CSR matrix: {error}") from error
    if parts[2].min(initial=0) < 0:
        raise ValueError(f"{path}: data: want counts, got {parts[2].min()}; write other numbers as features [V, F]")
    return features.astype(np.float32)


def _checked(path, arrays, name, kinds, shape):
    """An array of the kind, of numbers that are finite, whose shape is as given, None for any size."""
    array = np.asarray(arrays[name])  # an archive may hold other files, which come as bytes
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=False))
    if array.dtype.kind not in kinds or not fits:
        wanted = " or ".join({"b": "bool", "f": "float", "i": "int", "u": "unsigned"}[kind] for kind in kinds)
        sizes = ["any" if size is None else size for size in shape]
        raise ValueError(f"{path}: {name}: wanted {wanted} {sizes}, got {array.dtype} {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{path}: {name}: wanted finite numbers, got {array[~np.isfinite(array)][0]}")
    return array
