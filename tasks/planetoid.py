"""Files of citation graphs as Cora, Citeseer and Pubmed have them: pickles, read without running what is in them."""

import dataclasses
import hashlib
import io
import itertools
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse

PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
PUBLISHED = ("cora", "citeseer", "pubmed")
PLACE = "folder data of https://github.com/kimiyoung/planetoid"
DEVELOPMENT = 500  # nodes after the training nodes, or all there are: the split of GCN and GAT
SPREAD = 10  # nodes from the first to the last in `test.index`, at most, for each in it; Citeseer has 1.015

# SHA-256 of the published files.
CORA = {
    "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
}


def read(directory, name):
    """A citation graph as arrays, with the split that GCN and GAT are judged on.

    Yang, Cohen and Salakhutdinov 2016, "Revisiting Semi-Supervised Learning with Graph Embeddings", arXiv:1603.08861.
    `allx`, `ally` are features and one-hot labels of nodes 0, 1, ...; the first of them, `x` and `y`, are trained on,
    the next 500, or all there are, for development. Row i of `tx`, `ty` is node `test.index[i]`; numbers left out
    there, of Citeseer's isolated nodes, are nodes without features and label. `graph` lists neighbours, some twice.

    Args:
      directory: folder that holds the files, in itself or in a folder NAME.
      name: of the graph, published or any other: the files are `ind.NAME.x`, `ind.NAME.y`, ...

    Returns:
      {"features" `scipy.sparse.csr_array` [V, F] float32, "edge_index" int64 [2, E], both directions of every edge,
      each once, without self-loops, sorted, "labels" int64 [V], -1 where there is none, "train_mask", "val_mask",
      "test_mask" bool [V]}.

    Raises:
      ValueError: a file that is missing, altered (Cora's are known), holds anything but such arrays, or does not fit
        the others.
    """
    if not directory:
        raise ValueError(
            f"config.data.dir is empty, want the folder that holds ind.{name}.x: --config.data.dir=DATA_DIR; "
            f"{remedy(name)}"
        )
    root = Path(directory).expanduser()
    folder = next((each for each in (root / name, root) if (each / f"ind.{name}.graph").is_file()), root / name)
    files = _Files(folder, name)
    features, labels = files.labelled("allx", "ally")
    _, answers = files.labelled("x", "y")
    count, start = len(labels), len(answers)
    if not np.array_equal(answers, labels[:start]):
        raise ValueError(f"{files.path('ally')}: wanted the rows of ind.{name}.y before others; {remedy(name)}")
    tested, answers = files.labelled("tx", "ty")
    if tested.shape[1] != features.shape[1]:
        raise ValueError(f"{files.path('tx')}: wanted {features.shape[1]} features, got {tested.shape[1]}")
    places = files.places(first=count, rows=len(answers))
    number = np.arange(places.max() + 1)
    labels = np.append(labels, np.full(len(number) - count, -1))
    labels[places] = answers
    return {
        "features": _stacked(features, tested, places),
        "edge_index": files.edge_index(len(number)),
        "labels": labels,
        "train_mask": number < start,
        "val_mask": (number >= start) & (number < min(start + DEVELOPMENT, count)),
        "test_mask": np.isin(number, places),
    }


def remedy(name):
    """What an error about the files of a graph says at its end."""
    if name in PUBLISHED:
        return f"get it from {PLACE}"
    return f"a graph in the format of Planetoid has {', '.join(f'ind.{name}.{part}' for part in PARTS)}"


@dataclasses.dataclass(frozen=True)
class _Files:
    """The eight files of a graph; every error names the file and where to get it."""

    folder: Path
    name: str

    def path(self, part):
        return self.folder / f"ind.{self.name}.{part}"

    def content(self, part):
        path = self.path(part)
        if not path.is_file():
            raise ValueError(f"{path} is missing; {remedy(self.name)}")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if self.name == "cora" and found != CORA[part]:
            raise ValueError(
                f"{path} is not the published file: SHA-256 {found}, want {CORA[part]}; get it from {PLACE}"
            )
        return content

    def loaded(self, part, kind):
        found = loads(self.content(part), self.path(part), remedy(self.name))
        if not isinstance(found, kind):
            raise ValueError(f"{self.path(part)}: wanted a {kind.__name__}, got {type(found).__name__}")
        return found

    def labelled(self, features, labels):
        """(features float32 [rows, F], labels int64 [rows], -1 for a row of zeros) of two files with the same rows."""
        sparse, one_hot = self.loaded(features, scipy.sparse.csr_array), self.loaded(labels, np.ndarray)
        if one_hot.ndim != 2 or len(one_hot) != sparse.shape[0]:
            raise ValueError(f"{self.path(labels)}: wanted [{sparse.shape[0]}, classes], got {list(one_hot.shape)}")
        if not np.isin(one_hot, (0, 1)).all() or one_hot.sum(1).max(initial=0) > 1:
            raise ValueError(f"{self.path(labels)}: wanted one 1 in each row and 0 elsewhere")
        return sparse.astype(np.float32), np.where(one_hot.any(1), one_hot.argmax(1), -1)

    def places(self, first, rows):
        """int64 [rows]: the node of each row of `tx`, numbers that go on after the `first` nodes."""
        path, last = self.path("test.index"), first + SPREAD * rows - 1
        lines = self.content("test.index").decode("latin1").split("\n")
        places, seen = [], set()
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line:
                continue
            place = int(line) if line.isdecimal() and len(line) < 20 else -1
            if not first <= place <= last or place in seen:
                got = line if len(line) < 20 else f"{line[:20]}..."
                raise ValueError(f"{path}:{number}: wanted a new node from {first} to {last}, got {got!r}")
            places.append(place)
            seen.add(place)
        if len(places) != rows or not rows:
            raise ValueError(
                f"{path}: wanted a line for each of the {rows} rows of ind.{self.name}.tx, got {len(places)}"
            )
        return np.array(places)

    def edge_index(self, num_nodes):
        """int64 [2, E] of the neighbours in `graph`."""
        path, neighbours = self.path("graph"), self.loaded("graph", dict)
        lists = all(isinstance(others, list) for others in neighbours.values())
        nodes = itertools.chain(neighbours, *neighbours.values()) if lists else ["no list"]
        if not all(type(node) is int and 0 <= node < num_nodes for node in nodes):
            raise ValueError(f"{path}: wanted nodes from 0 to {num_nodes - 1} and lists of them")
        pairs = [(node, other) for node, others in neighbours.items() for other in others]
        one, other = np.array(pairs, np.int64).reshape(-1, 2).T
        numbers = np.unique(np.append(one * num_nodes + other, other * num_nodes + one))
        edges = np.stack(np.divmod(numbers, num_nodes))
        return edges[:, edges[0] != edges[1]]


def _stacked(known, tested, places):
    """Rows of `known`, then those of `tested` at `places`, and rows of zeros between them."""
    known, tested = known.tocoo(), tested.tocoo()
    data = np.append(known.data, tested.data)
    rows, columns = np.append(known.row, places[tested.row]), np.append(known.col, tested.col)
    return scipy.sparse.csr_array((data, (rows, columns)), shape=(places.max() + 1, known.shape[1]))


def loads(content, name, remedy="want a pickle of arrays alone"):
    """What a pickle of arrays, sparse matrices, dicts, lists and numbers holds, without running any of it.

    A pickle is a program that calls whatever it can import. Here a name that it asks for is looked up in `GLOBALS`,
    whose values do no more than keep what they are given.

    Args:
      content: bytes of the pickle, of Python 2 or 3, any protocol.
      name: what an error calls it.
      remedy: what an error says at its end.

    Returns:
      The outermost object; arrays and matrices are NumPy's and SciPy's.

    Raises:
      ValueError: no such pickle, or one that asks for anything else.

    >>> loads(pickle.dumps({0: [1, 2]}), "graph")
    {0: [1, 2]}
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        return found.value() if isinstance(found, _Array | _Matrix) else found
    except Exception as error:  # bytes that are no such pickle may break it in any way
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} does not read as a pickle of arrays: {reason}; {remedy}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in GLOBALS:
            raise ValueError(f"it asks for {module}.{name}, which arrays do not need")
        return GLOBALS[module, name]


class _StandIn:
    """Keeps the state that a pickle gives it.

    All stand-ins are such classes, functions too: a pickle may give a state to whatever it has, and would set
    attributes of a class or function, for the whole process. Of a class it now finds `__setstate__`, which lacks its
    `self`, so that the pickle is refused.
    """

    state = None

    def __setstate__(self, state):
        self.state = state


class _Type(_StandIn):
    """Stands for `numpy.dtype`: its code and, in its state, its byte order."""

    def __init__(self, code, align=0, copy=0):
        self.code = code

    def value(self):
        order = self.state[1] if self.state else "="
        if self.code not in CODES or order not in "<>=|":
            raise ValueError(f"wanted numbers, got an array of {order!r}, {self.code!r}")
        return np.dtype(order + self.code)


class _Array(_StandIn):
    """Stands for `numpy.ndarray`, whose state is version, shape, dtype, whether columns come first, and bytes."""

    def __init__(self, kind=None, shape=None, code=None):
        pass

    def value(self):
        _, shape, kind, fortran, content = self.state
        return _numbers(kind, content).reshape(shape, order="F" if fortran else "C")


class _Buffer(_Array):
    """Stands for the function that makes an array of protocol 5."""

    def __init__(self, content, kind, shape, order):
        if order not in ("C", "F"):
            raise ValueError(f"wanted an array of order C or F, got {order!r}")
        self.state = 1, shape, kind, order == "F", content


class _Matrix(_StandIn):
    """Stands for `scipy.sparse.csr_matrix` and `csr_array`, whose state is their attributes."""

    def value(self):
        arrays = [self.state[name].value() for name in ("data", "indices", "indptr")]
        matrix = scipy.sparse.csr_array(tuple(arrays), shape=self.state["_shape"])
        matrix.check_format()
        return matrix


class _Scalar(_StandIn):
    """Stands for the function that makes NumPy's numbers, and makes Python's."""

    def __new__(cls, kind, content):
        return _numbers(kind, content)[0].item()


class _Bytes(_StandIn):
    """Stands for `_codecs.encode` and `bytes`, by which Python 3 writes bytes, and none of them, for Python 2."""

    def __new__(cls, text="", encoding="latin1"):
        if type(text) is not str or encoding != "latin1":
            raise ValueError(f"wanted text in latin1, got {type(text).__name__} in {encoding!r}")
        return text.encode("latin1")


class _Rebuilt(_StandIn):
    """Stands for `copyreg._reconstructor`, by which protocols 0 and 1 make matrices."""

    def __new__(cls, kind, base, state):
        if kind is not _Matrix or base is not object or state is not None:
            raise ValueError("it rebuilds something else than a sparse matrix")
        return kind()


def _numbers(kind, content):
    content = content.encode("latin1") if isinstance(content, str) else content  # as Python 2's bytes come here
    return np.frombuffer(content, kind.value())


CODES = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
# (module, name) that a pickle may ask for -> what it gets.
GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # NumPy 2
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("scipy.sparse.csr", "csr_matrix"): _Matrix,
    ("scipy.sparse._csr", "csr_matrix"): _Matrix,  # SciPy 1.8
    ("scipy.sparse._arrays", "csr_array"): _Matrix,
    ("scipy.sparse._csr", "csr_array"): _Matrix,  # SciPy 1.11
    ("_codecs", "encode"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("copy_reg", "_reconstructor"): _Rebuilt,
    ("copyreg", "_reconstructor"): _Rebuilt,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}
