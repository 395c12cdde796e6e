"""What the lines of `nodes.csv` and `edges.csv` say, and which are wrong; `tasks.graph_files` makes the graph."""

import csv

import numpy as np

SPLIT = ("train", "dev", "test")
COLUMNS = ("label", "split", "graph")
NODE_COLUMN, EDGE_HEADERS = ("node", "id"), (["sender", "receiver"], ["source", "target"])


def find(folder, name):
    """The path of the table of that name, with commas or with tabs; None without one."""
    return next((path for path in (folder / f"{name}.csv", folder / f"{name}.tsv") if path.is_file()), None)


def nodes(path):
    """({name: node}, features float64 [V, F], labels, {column: texts} for those of `split` and `graph` there are).

    Raises:
      ValueError: no nodes, or a line that is wrong, which is named.
    """
    rows = list(_rows(path))
    header = [field.lower() for field in rows.pop(0)[1]] if rows and _is_header(rows[0][1]) else None
    if not rows:
        raise ValueError(f"{path}: no nodes in it; it wants a line NAME,NUMBERS,LABEL a node")
    width = len(header or rows[0][1])
    if header and "label" not in header:
        raise ValueError(f"{path}:1: no column is called label, got {', '.join(header)}; call that of the labels so")
    places = {name: header.index(name) for name in COLUMNS if name in header} if header else {"label": width - 1}
    numbers = [place for place in range(1, width) if place not in places.values()]
    if not numbers or places["label"] == 0:
        raise ValueError(f"{path}:1: got {width} columns, want a name, numbers and a label")
    names, features = {}, np.empty((len(rows), len(numbers)))
    for node, (line, row) in enumerate(rows):
        if len(row) != width or row[0] in names:
            problem = f"node {row[0]!r} stands twice" if len(row) == width else f"got {len(row)} columns, want {width}"
            raise ValueError(f"{path}:{line}: {problem}")
        names[row[0]] = node
        features[node] = [_number(path, line, row[place]) for place in numbers]
        if "split" in places and row[places["split"]] not in (*SPLIT, ""):
            raise ValueError(f"{path}:{line}: split: got {row[places['split']]!r}, want {', '.join(SPLIT)} or nothing")
    columns = {name: [row[place] for _, row in rows] for name, place in places.items()}
    return names, features, columns.pop("label"), columns


def edges(path, names):
    """int64 [2, E] of the nodes that the lines name, by `names`, {name: node}.

    Raises:
      ValueError: a line that is wrong, which is named.
    """
    pairs = []
    for line, row in _rows(path):
        if not pairs and [field.lower() for field in row] in EDGE_HEADERS and row[0] not in names:
            continue
        if len(row) != 2:
            raise ValueError(f"{path}:{line}: got {len(row)} columns, want 2: sender,receiver")
        if unknown := [name for name in row if name not in names]:
            raise ValueError(f"{path}:{line}: {unknown[0]!r} is no node of the table of nodes")
        pairs.append([names[name] for name in row])
    return np.array(pairs, np.int64).reshape(-1, 2).T


def _rows(path):
    """(line, fields) of a table; its name says what parts them."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            yield from ((reader.line_num, [field.strip() for field in row]) for row in reader if row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{reader.line_num + 1}: {error}") from error


def _is_header(fields):
    """Whether they are names of columns: the first says so, and none of the others is a number."""
    return fields[0].lower() in NODE_COLUMN and all(_value(field) is None for field in fields[1:])


def _number(path, line, text):
    value = _value(text)
    if value is None or not np.isfinite(value):
        raise ValueError(f"{path}:{line}: feature {text!r}: want a number; a header begins with node and has none")
    return value


def _value(text):
    try:
        return float(text)
    except ValueError:
        return None
