"""Graph files: Planetoid's as Python 2 wrote them, hostile ones and arrays, and what wrong ones are told."""

import builtins
import functools
import io
import os
import pickle
import zipfile
from collections import defaultdict

import numpy as np
import pytest
import scipy.sparse
from ml_collections import ConfigDict

from tasks import graph_files, graphs, planetoid
from tasks.graph_files import SOURCES

KNOWN, TRAIN, FEATURES, CLASSES = 521, 13, 7, 3
PLACES = [526, 522, 525, 521, 527]  # 523 and 524 are in no file
NODES = 528


class Python2(pickle._Pickler):
    """Writes what cPickle of Python 2.7 wrote, with the names of its time: byte strings and short module names."""

    MODULES = {
        "builtins": "__builtin__",
        "numpy._core.multiarray": "numpy.core.multiarray",
        "scipy.sparse._csr": "scipy.sparse.csr",
    }

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)

    def save_text(self, text):
        self.save_bytes(text.encode("latin1"))

    def save_global(self, thing, name=None):
        module = self.MODULES.get(thing.__module__, thing.__module__)
        self.write(pickle.GLOBAL + f"{module}\n{thing.__name__}\n".encode())
        self.memoize(thing)

    dispatch = pickle._Pickler.dispatch | {
        bytes: save_bytes,
        str: save_text,
        type: save_global,
        type(len): save_global,
        type(lambda: 0): save_global,
    }


def python2(thing):
    out = io.BytesIO()
    Python2(out, protocol=2).dump(thing)
    return out.getvalue()


@pytest.fixture
def citations(tmp_path):
    """A folder with a graph of Citeseer's kind, and what it must read as."""
    rng = np.random.default_rng(0)
    features = (rng.random((NODES, FEATURES)) < 0.4).astype(np.float32)
    labels = rng.integers(0, CLASSES, NODES)
    features[523:525], labels[523:525] = 0, -1
    one_hot = np.eye(CLASSES, dtype=np.int32)[labels]
    rows = {"": range(TRAIN), "all": range(KNOWN), "t": PLACES}
    parts = {f"{name}x": scipy.sparse.csr_matrix(features[list(nodes)]) for name, nodes in rows.items()}
    parts |= {f"{name}y": one_hot[list(nodes)] for name, nodes in rows.items()}
    graph = defaultdict(list, {0: [1, 1, 2, 0], 1: [0], 2: [0], 526: [2], 3: []})  # doubled, a loop, one direction
    for name, part in (parts | {"graph": graph}).items():
        (tmp_path / f"ind.citeseer.{name}").write_bytes(python2(part))
    (tmp_path / "ind.citeseer.test.index").write_text("".join(f"{place}\n" for place in PLACES))
    edges = [[0, 0, 1, 2, 2, 526], [1, 2, 0, 0, 526, 2]]
    return tmp_path, features, labels, np.array(edges)


def config(**changes):
    fields = {"name": "digits", "path": "", "dir": "", "num_nodes": 0, "num_neighbours": 0, "labels_per_class": 0}
    return ConfigDict(fields | changes)


def rename(folder, name):
    """Calls the graph of the folder so."""
    for path in folder.glob("ind.*"):
        path.rename(folder / path.name.replace("citeseer", name))
    return folder


def refused(function, *args):
    """The one line of a refusal."""
    with pytest.raises(ValueError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestPlanetoid:
    def test_reads_what_python_2_wrote(self, citations):
        folder, features, labels, edges = citations
        assert b"scipy.sparse.csr\ncsr_matrix" in (folder / "ind.citeseer.x").read_bytes()
        assert b"numpy.core.multiarray\n_reconstruct" in (folder / "ind.citeseer.y").read_bytes()
        found = planetoid.read(str(folder), "citeseer")
        np.testing.assert_array_equal(found["features"].toarray(), features)
        np.testing.assert_array_equal(found["labels"], labels)
        np.testing.assert_array_equal(found["edge_index"], edges)
        for mask, nodes in (
            ("train_mask", range(TRAIN)),
            ("val_mask", range(TRAIN, TRAIN + 500)),
            ("test_mask", PLACES),
        ):
            assert np.flatnonzero(found[mask]).tolist() == sorted(nodes)

    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("kind", ["csr_matrix", "csr_array"])
    def test_reads_what_python_3_writes(self, citations, kind, protocol):
        folder, features, labels, edges = citations
        wanted = planetoid.read(str(folder), "citeseer")
        for name in planetoid.PARTS[:-1]:
            path = folder / f"ind.citeseer.{name}"
            part = planetoid.loads(path.read_bytes(), name)
            part = getattr(scipy.sparse, kind)(part) if scipy.sparse.issparse(part) else part
            path.write_bytes(pickle.dumps(part, protocol))
        found = planetoid.read(str(folder), "citeseer")
        np.testing.assert_array_equal(found.pop("features").toarray(), features)
        for name, array in found.items():
            np.testing.assert_array_equal(array, wanted[name])

    @pytest.mark.parametrize(
        "new, old",
        [
            (b"scipy.sparse._csr\ncsr_matrix", b"scipy.sparse.csr\ncsr_matrix"),
            (b"scipy.sparse._csr\ncsr_array", b"scipy.sparse._arrays\ncsr_array"),
            (b"numpy._core.multiarray\n_reconstruct", b"numpy.core.multiarray\n_reconstruct"),
        ],
    )
    def test_reads_names_of_older_and_newer_packages(self, new, old):
        dense = np.eye(3, dtype=np.float32)
        kind = scipy.sparse.csr_array if b"array" in new else scipy.sparse.csr_matrix
        content = pickle.dumps(kind(dense), 2)
        other = old if new in content else new
        content = content.replace(new, old) if new in content else content.replace(old, new)
        assert other in content
        np.testing.assert_array_equal(planetoid.loads(content, "x").toarray(), dense)

    @pytest.mark.parametrize("dump", [python2, *(functools.partial(pickle.dumps, protocol=n) for n in range(6))])
    def test_columns_first_and_other_numbers(self, dump):
        for array in (
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(12)[::3],
            np.arange(4, dtype=">i4"),
            np.zeros((0, 3), bool),
        ):
            found = planetoid.loads(dump(array), "array")
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype

    def test_any_other_graph_in_this_format(self, citations):
        folder, features, labels, edges = citations
        rename(folder, "mine")
        graph = graphs.load(config(name="mine", dir=str(folder))).graph
        np.testing.assert_array_equal(graph.labels, labels)
        assert np.stack([graph.senders, graph.receivers]).T.tolist() == sorted(edges.T.tolist(), key=lambda e: e[::-1])

    def test_a_small_graph_is_developed_on_all_that_is_there(self, citations):
        folder, features, labels, _ = citations
        one_hot = np.eye(CLASSES, dtype=np.int32)[labels]
        known, tested = np.arange(40), [41, 40, 43]  # 42 is in no file
        parts = {"x": features[:TRAIN], "y": one_hot[:TRAIN], "allx": features[known], "ally": one_hot[known]}
        parts |= {"tx": features[tested], "ty": one_hot[tested]}
        for name, part in parts.items():
            part = scipy.sparse.csr_matrix(part) if name.endswith("x") else part
            (folder / f"ind.citeseer.{name}").write_bytes(pickle.dumps(part))
        (folder / "ind.citeseer.graph").write_bytes(pickle.dumps({0: [43]}))
        (folder / "ind.citeseer.test.index").write_text("41\n40\n43\n")
        found = planetoid.read(str(rename(folder, "small")), "small")
        assert np.flatnonzero(found["val_mask"]).tolist() == list(range(TRAIN, 40))
        assert np.flatnonzero(found["test_mask"]).tolist() == [40, 41, 43] and len(found["labels"]) == 44

    def test_numbers_of_numpy_are_numbers(self, citations):
        folder, _, _, edges = citations
        graph = {int(node): list(edges[1, edges[0] == node]) for node in edges[0]}
        assert type(graph[0][0]) is np.int64
        (folder / "ind.citeseer.graph").write_bytes(python2(graph))
        np.testing.assert_array_equal(planetoid.read(str(folder), "citeseer")["edge_index"], edges)

    def test_the_folder_may_hold_the_graph_s_own(self, citations):
        folder, features, *_ = citations
        own = folder / "citeseer"
        own.mkdir()
        for path in folder.glob("ind.*"):
            path.rename(own / path.name)
        assert planetoid.read(str(folder), "citeseer")["features"].shape == features.shape

    def test_rows_are_divided_by_their_sums_and_unlabelled_nodes_are_never_asked_about(self, citations):
        folder, features, labels, _ = citations
        graph = SOURCES["citeseer"][0](config(name="citeseer", dir=str(folder)))
        sums = features.sum(1, keepdims=True)
        np.testing.assert_allclose(graph.features.toarray(), features / np.where(sums, sums, 1), rtol=1e-7)
        np.testing.assert_array_equal(graph.labels, labels)
        asked = graph.train | graph.development | graph.test
        assert not asked[523:525].any() and asked.sum() == TRAIN + 500 + len(PLACES)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class TestHostilePickles:
    @pytest.mark.parametrize(
        "function, args, named",
        [
            (os.system, ("touch {}",), "posix.system"),
            (eval, ("open({!r}, 'w')",), "builtins.eval"),
            (builtins.open, ("{}", "w"), "io.open"),
        ],
    )
    def test_run_nothing_and_are_named(self, tmp_path, function, args, named):
        made = tmp_path / "made"
        args = [arg.format(str(made)) for arg in args]
        content = pickle.dumps([Attack(function, *args)])
        pickle.loads(content)  # it is a working attack,
        assert made.exists()
        made.unlink()
        message = refused(planetoid.loads, content, "ind.cora.graph")  # and does nothing here
        assert not made.exists()
        assert (
            message.startswith("ind.cora.graph does not read as a pickle of arrays: it asks for ") and named in message
        )

    def test_dotted_names_and_extension_codes_reach_nothing(self):
        dotted = b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__reduce\x93."
        assert "it asks for numpy.ndarray.__reduce" in refused(planetoid.loads, dotted, "x")
        assert "unregistered extension code" in refused(planetoid.loads, b"\x80\x02\x82\x07.", "x")
        assert "persistent" in refused(planetoid.loads, b"Pid\n.", "x")

    @pytest.mark.parametrize("name", sorted(planetoid.GLOBALS))
    @pytest.mark.parametrize("state", [{"value": 1, "state": 1}, (None, {"value": 1, "__init__": 1, "__name__": "x"})])
    def test_nothing_that_a_pickle_gets_can_be_changed(self, name, state):
        thing = planetoid.GLOBALS[name]
        before = dict(vars(thing))
        content = b"c%s\n%s\n" % tuple(map(str.encode, name)) + pickle.dumps(state, 2)[2:-1] + b"b."
        assert "x does not read as a pickle of arrays" in refused(planetoid.loads, content, "x")
        assert dict(vars(thing)) == before

    @pytest.mark.parametrize("args", [("id", "rot13"), (10**12,), (b"0", "latin1"), ("0", "latin1", "strict")])
    def test_encode_takes_text_in_latin1_alone(self, args):
        content = b"c_codecs\nencode\n" + pickle.dumps(args, 4)[2:-1] + b"R."
        assert "x does not read as a pickle of arrays" in refused(planetoid.loads, content, "x")

    @pytest.mark.parametrize("made", ["numpy\nndarray", "builtins\nlist", "numpy\ndtype"])
    def test_only_matrices_are_rebuilt(self, made):
        content = f"ccopy_reg\n_reconstructor\n(c{made}\nc__builtin__\nobject\nNtR.".encode()
        assert "it rebuilds something else than a sparse matrix" in refused(planetoid.loads, content, "x")

    def test_arrays_of_objects_are_refused(self):
        message = refused(planetoid.loads, pickle.dumps(np.array([{}, None], object)), "x")
        assert "wanted numbers, got an array of '|', 'O8'" in message

    def test_matrices_that_point_outside_are_refused(self):
        matrix = scipy.sparse.csr_matrix(np.eye(3, dtype=np.float32))
        matrix.indices[1] = 9
        assert "x does not read as a pickle of arrays" in refused(planetoid.loads, python2(matrix), "x")

    @pytest.mark.parametrize("content", [b"", b"\x80\x02", b"no pickle", b"(" * 10_000])
    def test_what_is_no_pickle(self, content):
        assert "x does not read as a pickle of arrays" in refused(planetoid.loads, content, "x")


class TestPlanetoidRefuses:
    @pytest.mark.parametrize("name", ["cora", "citeseer", "pubmed"])
    def test_no_folder_and_missing_files(self, tmp_path, name):
        message = refused(planetoid.read, "", name)
        assert f"ind.{name}.x" in message and "--config.data.dir=" in message and planetoid.PLACE in message
        message = refused(planetoid.read, str(tmp_path), name)
        assert message == f"{tmp_path / name / f'ind.{name}.allx'} is missing; get it from {planetoid.PLACE}"

    def test_files_of_another_graph_are_not_looked_for_on_the_net(self, tmp_path):
        message = refused(planetoid.read, str(tmp_path), "mine")
        assert "ind.mine.allx is missing; a graph in the format of Planetoid has ind.mine.x, ind.mine.y," in message

    def test_another_cora_than_the_published_one(self, citations):
        folder = rename(citations[0], "cora")
        message = refused(planetoid.read, str(folder), "cora")
        assert (
            f"{folder / 'ind.cora.allx'} is not the published file: SHA-256" in message and planetoid.PLACE in message
        )

    @pytest.mark.parametrize(
        "part, content, message",
        [
            ("test.index", b"526\n520\n", "ind.citeseer.test.index:2: wanted a new node from 521 to 570, got '520'"),
            ("test.index", b"526\n\n526\n", "ind.citeseer.test.index:3: wanted a new node from 521 to 570, got '526'"),
            ("test.index", b"526\n571\n", "ind.citeseer.test.index:2: wanted a new node from 521 to 570, got '571'"),
            (
                "test.index",
                b"9" * 12,
                "ind.citeseer.test.index:1: wanted a new node from 521 to 570, got '999999999999'",
            ),
            ("test.index", b"9" * 5000, f"test.index:1: wanted a new node from 521 to 570, got '{'9' * 20}...'"),
            ("test.index", b"526\n", "wanted a line for each of the 5 rows of ind.citeseer.tx, got 1"),
            ("graph", python2({0: [600]}), "ind.citeseer.graph: wanted nodes from 0 to 527"),
            ("graph", python2({0: ["1"]}), "ind.citeseer.graph: wanted nodes from 0 to 527"),
            ("graph", python2({0: 1}), "ind.citeseer.graph: wanted nodes from 0 to 527 and lists of them"),
            ("graph", python2([1]), "ind.citeseer.graph: wanted a dict, got list"),
            ("x", python2({}), "ind.citeseer.x: wanted a csr_array, got dict"),
            ("ally", python2(np.zeros((4, 3))), "ind.citeseer.ally: wanted [521, classes], got [4, 3]"),
            ("ty", python2(np.ones((5, 3))), "ind.citeseer.ty: wanted one 1 in each row"),
            ("y", python2(np.eye(3)[np.arange(TRAIN) % 3]), "ind.citeseer.ally: wanted the rows of ind.citeseer.y"),
            ("tx", python2(scipy.sparse.csr_matrix((5, 8))), "ind.citeseer.tx: wanted 7 features, got 8"),
        ],
    )
    def test_what_does_not_fit(self, citations, part, content, message):
        folder, *_ = citations
        (folder / f"ind.citeseer.{part}").write_bytes(content)
        assert message in refused(planetoid.read, str(folder), "citeseer")


def arrays(**changes):
    """Two graphs of 3 and 2 nodes, interleaved; 4 features in CSR."""
    found = {"indptr": [0, 2, 2, 3, 4, 5], "indices": [0, 3, 1, 2, 2], "data": np.array([1, 3, 2, 5, 1], np.float32)}
    found |= {"shape": [5, 4], "labels": [0, 1, -1, 1, 0], "edge_index": [[0, 2, 2, 4, 1, 3, 2], [2, 0, 4, 2, 3, 3, 0]]}
    found |= {"train_mask": [True, False, True, False, False], "val_mask": np.arange(5) == 4}
    found |= {"test_mask": np.arange(5) % 2 == 1, "graph_id": [3, 8, 3, 8, 3]}
    return {name: np.asarray(array) for name, array in (found | changes).items() if array is not None}


class TestNpz:
    def test_graphs_are_put_side_by_side(self, tmp_path):
        np.savez(tmp_path / "two.npz", **arrays())
        graph = SOURCES["path"][0](config(path=str(tmp_path / "two.npz")))
        order = [0, 2, 4, 1, 3]
        dense = [[0.25, 0, 0, 0.75], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
        np.testing.assert_array_equal(graph.features.toarray(), np.array(dense)[order])
        assert graph.labels.tolist() == [0, -1, 0, 1, 1] and graph.graph_ids.tolist() == [0, 0, 0, 1, 1]
        assert graph.train.tolist() == [True, False, False, False, False]  # node 2 has no label
        assert graph.development.tolist() == [False, False, True, False, False]
        assert graph.test.tolist() == [False, False, False, True, True]
        pairs = list(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
        assert pairs == [(1, 0), (0, 1), (2, 1), (1, 2), (3, 4)]  # by receiver, once each, without loops
        assert graph.classes == ("0", "1") and graph.features.dtype == np.float32 and graph.senders.dtype == np.int32

    def test_dense_features_are_as_they_are(self, tmp_path):
        features = np.random.default_rng(0).normal(size=(5, 3))
        np.savez(
            tmp_path / "dense.npz", features=features, **{k: v for k, v in arrays().items() if k not in graph_files.CSR}
        )
        graph = graph_files.read_npz(tmp_path / "dense.npz")
        np.testing.assert_array_equal(graph.features, features[[0, 2, 4, 1, 3]].astype(np.float32))

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"labels": None}, "'labels' is missing, got indptr"),
            ({"weights": [1]}, "'weights' is no key of a graph; drop it"),
            ({"labels": [0.0] * 5}, "labels: wanted int or unsigned [5], got float64 [5]"),
            ({"labels": [0] * 4}, "labels: wanted int or unsigned [5], got int64 [4]"),
            ({"labels": [0, 1, -2, 1, 0]}, "labels: wanted -1 to 4, got -2"),
            ({"labels": [0, 1, 5, 1, 0]}, "labels: wanted -1 to 4, got 5"),
            ({"edge_index": [0, 1]}, "edge_index: wanted int or unsigned [2, 'any'], got int64 [2]"),
            ({"edge_index": [[0], [5]]}, "edge_index: wanted 0 to 4, got 5"),
            ({"edge_index": [[-1], [2]]}, "edge_index: wanted 0 to 4, got -1"),
            ({"edge_index": [[0], [1]]}, "an edge joins two graphs"),
            ({"test_mask": [0, 1, 0, 1, 0]}, "test_mask: wanted bool [5], got int64 [5]"),
            ({"test_mask": [True] * 5}, "a node is in two parts of the split"),
            ({"val_mask": [False] * 5}, "got 2 classes and [1, 0, 2] labelled nodes"),
            ({"data": [1, np.nan, 1, 1, 1]}, "data: wanted finite numbers, got nan"),
            ({"data": [1, -2, 1, 1, 1]}, "data: want counts, got -2"),
            ({"indices": [0, 3, 1, 2, 4]}, "indptr, indices, data and shape are no CSR matrix"),
            ({"indptr": [0, 2, 2, 3, 4, 6]}, "indptr, indices, data and shape are no CSR matrix"),
            ({"shape": [6, 4]}, "indptr, indices, data and shape are no CSR matrix"),
        ],
    )
    def test_refuses(self, tmp_path, changes, message):
        np.savez(tmp_path / "wrong.npz", **arrays(**changes))
        found = refused(graph_files.read_npz, tmp_path / "wrong.npz")
        assert found.startswith(f"{tmp_path / 'wrong.npz'}: ") and message in found

    def test_runs_no_pickle(self, tmp_path):
        hostile = np.array([Attack(os.system, f"touch {tmp_path / 'made'}")], object)
        np.savez(tmp_path / "hostile.npz", **arrays(labels=hostile))
        assert "does not read as .npz without pickles" in refused(graph_files.read_npz, tmp_path / "hostile.npz")
        assert not (tmp_path / "made").exists()

    def test_another_file_under_that_name(self, tmp_path):
        path = tmp_path / "one.npz"
        for content in (npy(np.arange(3)), b"", b"text"):
            path.write_bytes(content)
            assert f"{path} does not read as .npz without pickles: it is no archive" in refused(
                graph_files.read_npz, path
            )

    def test_other_files_in_the_archive(self, tmp_path):
        path = tmp_path / "other.npz"
        np.savez(path, **arrays(labels=None))
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("labels", "0 1 1 0 0")
        assert "labels: wanted int or unsigned [5], got |S9 []" in refused(graph_files.read_npz, path)

    def test_a_split_of_its_own_takes_no_other(self, tmp_path):
        np.savez(tmp_path / "two.npz", **arrays())
        for field in ("labels_per_class", "num_neighbours"):
            found = refused(SOURCES["path"][0], config(path=str(tmp_path / "two.npz"), **{field: 3}))
            assert f"config.data.{field}=3" in found and "write 0" in found


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_digits_are_joined_to_those_that_look_alike():
    graph = SOURCES["digits"][0](config())
    assert len(graph.labels) == 1797 and np.bincount(graph.labels[graph.train]).tolist() == [5] * 10
    assert graph.development.sum() == 500 and graph.test.sum() == 1247
    assert (graph.labels[graph.senders] == graph.labels[graph.receivers]).mean() > 0.9
    sparser = SOURCES["digits"][0](config(num_neighbours=2, labels_per_class=3))
    assert len(sparser.senders) < len(graph.senders) and sparser.train.sum() == 30
    assert not (sparser.train & ~graph.train).any()  # fewer labels are some of the same


def test_neighbours_are_those_of_all_distances(monkeypatch):
    monkeypatch.setattr(graph_files, "CHUNK", 7)
    points = np.random.default_rng(0).integers(0, 4, (31, 2)).astype(np.float32)  # on a grid: many are equally near
    distances = ((points[:, None] - points) ** 2).sum(-1) + np.where(np.eye(31), np.inf, 0)
    near = distances <= np.sort(distances, 1)[:, 2:3]
    found = np.zeros((31, 31), bool)
    found[tuple(graph_files.nearest_neighbours(points, 3))] = True
    np.testing.assert_array_equal(found, near | near.T)
    assert not (near.sum(1) == 3).all()
