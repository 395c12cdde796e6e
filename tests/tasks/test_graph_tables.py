"""Graphs from tables: headers or none, commas or tabs, several graphs, and what wrong lines are told."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from tasks.graph_files import SOURCES, read_tables

TABLE = "node,size,label,colour,split\na,1,x,5,train\nb,2,y,5,dev\nc,6,x,5,test\nd,3,,5,\n"
EDGES = "sender,receiver\na,b\nb,a\nb,a\nc,c\nd,c\n"


def refused(function, *args):
    """The one line of a refusal."""
    with pytest.raises(ValueError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix, mark", [("csv", ","), ("tsv", "\t")])
def test_header_names_the_columns(tmp_path, suffix, mark):
    (tmp_path / f"nodes.{suffix}").write_text("\ufeff" + TABLE.replace(",", mark), encoding="utf-8")
    (tmp_path / f"edges.{suffix}").write_text(EDGES.replace(",", mark))
    graph = SOURCES["path"][0](ConfigDict({"path": str(tmp_path), "num_neighbours": 0, "labels_per_class": 0}))
    sizes = np.array([1, 2, 6, 3])
    np.testing.assert_allclose(graph.features[:, 0], (sizes - 3) / sizes.std(), rtol=1e-6)
    np.testing.assert_array_equal(graph.features[:, 1], 0)  # a column without variance
    assert graph.classes == ("x", "y") and graph.labels.tolist() == [0, 1, 0, -1]
    assert [part.tolist().index(True) for part in (graph.train, graph.development, graph.test)] == [0, 1, 2]
    assert list(zip(graph.senders, graph.receivers, strict=True)) == [(1, 0), (0, 1), (3, 2)]


def test_without_headers_and_edges(tmp_path):
    lines = [f"{node},{node // 10 + 0.001 * node},{node},class {node // 10}" for node in range(30)]
    (tmp_path / "nodes.csv").write_text("\n".join(lines))
    graph = read_tables(tmp_path, labels_per_class=2, num_neighbours=3)
    labels = graph.labels
    assert graph.classes == ("class 0", "class 1", "class 2") and np.bincount(labels).tolist() == [10, 10, 10]
    assert np.bincount(labels[graph.train]).tolist() == [2, 2, 2]
    assert graph.development.sum() == 8 and graph.test.sum() == 16
    assert (labels[graph.senders] == labels[graph.receivers]).mean() > 0.8
    pairs = set(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
    assert {(b, a) for a, b in pairs} == pairs and np.bincount(graph.receivers).min() >= 3


@pytest.mark.parametrize("name", ["node", "id", "Node"])
def test_a_node_may_have_the_name_of_a_header(tmp_path, name):
    lines = [f"{node or name},{node},{node % 7},{node % 2}" for node in range(30)]
    (tmp_path / "nodes.csv").write_text("\n".join(lines))
    graph = read_tables(tmp_path, labels_per_class=2, num_neighbours=3)
    assert graph.labels.tolist() == [0, 1] * 15 and graph.features.shape == (30, 2)


def test_columns_may_be_capitalized(tmp_path):
    for text in (TABLE, TABLE.replace("node,size,label,colour,split", "Node,Size,Label,Colour,Split")):
        (tmp_path / "nodes.csv").write_text(text)
        (tmp_path / "edges.csv").write_text(EDGES)
        graph = read_tables(tmp_path)
        assert graph.labels.tolist() == [0, 1, 0, -1] and graph.features.shape == (4, 2)


def test_several_graphs(tmp_path):
    (tmp_path / "nodes.csv").write_text(
        "id,f,graph,split,label\n1,1,q,dev,a\n2,2,p,train,b\n3,3,q,dev,b\n4,4,p,train,a\n5,0,r,test,a\n"
    )
    (tmp_path / "edges.csv").write_text("1,3\n4,2\n")
    graph = read_tables(tmp_path)
    assert graph.graph_ids.tolist() == [0, 0, 1, 1, 2] and graph.labels.tolist() == [1, 0, 0, 1, 0]
    assert list(zip(graph.senders, graph.receivers, strict=True)) == [(1, 0), (2, 3)]


@pytest.mark.parametrize(
    "nodes, edges, message",
    [
        (None, EDGES, "nodes.csv is missing, and so is nodes.tsv"),
        ("", EDGES, "nodes.csv: no nodes in it"),
        ("node,label,split\n", EDGES, "nodes.csv: no nodes in it"),
        (TABLE.replace("label", "class"), EDGES, "nodes.csv:1: no column is called label, got node, size, class,"),
        (
            "node,size,2\na,1,x\n",
            EDGES,
            "nodes.csv:1: feature 'size': want a number; a header begins with node and has",
        ),
        ("a,x\nb,y\n", EDGES, "nodes.csv:1: got 2 columns, want a name, numbers and a label"),
        (TABLE.replace("c,6", "c,six"), EDGES, "nodes.csv:4: feature 'six': want a number"),
        (TABLE.replace("c,6", "c,inf"), EDGES, "nodes.csv:4: feature 'inf': want a number"),
        (TABLE.replace("c,6", "c"), EDGES, "nodes.csv:4: got 4 columns, want 5"),
        (TABLE.replace("c,6", "a,6"), EDGES, "nodes.csv:4: node 'a' stands twice"),
        (
            TABLE.replace("test", "judge"),
            EDGES,
            "nodes.csv:4: split: got 'judge', want train, dev, test or nothing",
        ),
        (TABLE.replace("5,test", "5,dev"), EDGES, "got 2 classes and [1, 2, 0] labelled nodes"),
        (TABLE, EDGES + "d,e\n", "edges.csv:7: 'e' is no node of the table of nodes"),
        (TABLE, EDGES + "d\n", "edges.csv:7: got 1 columns, want 2"),
        (TABLE, "from,to\na,b\n", "edges.csv:1: 'from' is no node of the table of nodes"),
        (TABLE.replace(",split", ",graph"), EDGES, "several graphs want a column split"),
        (TABLE.encode() + b"\xff,1,x,5,\n", EDGES, "codec can't decode"),
    ],
)
def test_refuses(tmp_path, nodes, edges, message):
    for name, text in (("nodes", nodes), ("edges", edges)):
        if text is not None:
            (tmp_path / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(read_tables, tmp_path)


def test_what_is_not_read_is_refused(tmp_path):
    (tmp_path / "nodes.csv").write_text(TABLE)
    (tmp_path / "edges.csv").write_text(EDGES)
    assert "labels_per_class=2" in refused(read_tables, tmp_path, 2)
    assert "num_neighbours=2" in refused(read_tables, tmp_path, 0, 2)
    (tmp_path / "edges.csv").unlink()
    assert "num_neighbours=4: want fewer than the 4 nodes" in refused(read_tables, tmp_path, 0, 4)
