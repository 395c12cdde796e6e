"""Pairs of texts, related or not: how they are kept, and the files in which the published ones come."""

import dataclasses
from pathlib import Path

import numpy as np

PARTS = ("train", "eval", "test")
PLACES = ("", "aan", "tsv_data", "lra_release/tsv_data", "lra_release/lra_release/tsv_data")  # under `dir`
TEXT_BYTES = 10_000  # of each text; the published pipeline reads no more
LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}
AAN = "new_aan_pairs.{train,eval,test}.tsv of lra_release.gz, github.com/google-research/long-range-arena"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Texts, one after the other, and which two of them are asked about together.

    Attributes:
      text: uint8 [bytes].
      edges: int [texts + 1], where each begins and the last one ends.
      owners: int [pairs, 2], the two texts of each pair.
      starts: int [pairs, 2], where in the text the pair's part of it begins.
      labels: int32 [pairs], 1 = related.
    """

    text: np.ndarray
    edges: np.ndarray
    owners: np.ndarray
    starts: np.ndarray
    labels: np.ndarray


def examples_of(pairs, rows, length):
    """Some of the pairs, each text cut to T bytes or padded.

    Args:
      pairs: `Pairs`.
      rows: int [rows], which ones.
      length: T.

    Returns:
      {"first", "second" uint8 [rows, T], padded with 0, "first_sizes", "second_sizes" int32 [rows], bytes that are no
      padding, "labels" int32 [rows]}.

    >>> pairs = Pairs(np.frombuffer(b"abcdefg", np.uint8), *map(np.array, ([0, 5, 7], [[0, 1]], [[1, 0]], [1])))
    >>> found = examples_of(pairs, np.array([0]), 3)
    >>> bytes(found["first"][0]), bytes(found["second"][0]), found["second_sizes"].tolist()
    (b'bcd', b'fg\\x00', [2])
    """
    owners = pairs.owners[rows]
    begins = pairs.edges[owners] + pairs.starts[rows]
    sizes = np.minimum(pairs.edges[owners + 1] - begins, length).astype(np.int32)
    places = np.arange(length)
    real = places < sizes[..., None]
    tokens = np.where(real, pairs.text[np.where(real, begins[..., None] + places, 0)], 0).astype(np.uint8)
    return {
        "first": tokens[:, 0],
        "second": tokens[:, 1],
        "first_sizes": sizes[:, 0],
        "second_sizes": sizes[:, 1],
        "labels": pairs.labels[rows],
    }


def read_published(directory):
    """The three `Pairs` of the published files, PARTS, somewhere under a folder of data sets.

    Raises:
      ValueError: no folder is given, a file is missing or does not read.
    """
    if not directory:
        raise ValueError(f"config.data.dir is empty, want the folder that holds {AAN}: --config.data.dir=DATA_DIR")
    folders = [Path(directory).expanduser() / place for place in PLACES]
    names = [f"new_aan_pairs.{part}.tsv" for part in PARTS]
    folder = next((folder for folder in folders if (folder / names[0]).is_file()), folders[0])
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; get {AAN}")
    return [read_tsv(folder / name) for name in names]


def read_folder(folder):
    """The three `Pairs` of a folder of the user's own: the files whose names end in train.tsv, eval.tsv, test.tsv.

    Raises:
      ValueError: no such folder, not one file of each kind, or one that does not read.
    """
    root = Path(folder).expanduser()
    if not folder or not root.is_dir():
        raise ValueError(f"config.data.path={folder!r}: want a folder that holds train.tsv, eval.tsv and test.tsv")
    found = []
    for part in PARTS:
        paths = sorted(path for path in root.glob(f"*{part}.tsv") if not path.name.startswith("."))
        if len(paths) != 1:
            raise ValueError(f"config.data.path={folder!r}: {len(paths)} files end in {part}.tsv, want one")
        found.append(read_tsv(paths[0]))
    return found


def read_tsv(path):
    """The `Pairs` in one file: a line is label, id of either text, either text, with tabs between them.

    The label is 0 or 1, also written as 0.0 or 1.0; quotation marks mean nothing. The first TEXT_BYTES of a text are
    kept, equal ones once. A line that is not so is an error, never skipped.

    Raises:
      ValueError: a line that is not so, named by its number, or a file without any.
      OSError: a file that cannot be read.
    """
    known, owners, labels = {}, [], []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) != 5:
                raise ValueError(
                    f"{path}, line {number}: want label, id1, id2, text1, text2 with tabs between them, "
                    f"found {len(fields)} fields"
                )
            label, _, _, *texts = fields
            if label not in LABELS:
                raise ValueError(f"{path}, line {number}: want a label of 0 or 1, found {_shown(label)}")
            if not all(texts):
                raise ValueError(f"{path}, line {number}: text{1 + texts.index(b'')} is empty, want some text")
            owners.append([known.setdefault(text[:TEXT_BYTES], len(known)) for text in texts])
            labels.append(LABELS[label])
    if not owners:
        raise ValueError(f"{path}: no line in it, want one a pair")
    owners = np.array(owners)
    edges = np.cumsum([0, *map(len, known)])
    text = np.frombuffer(b"".join(known), np.uint8)
    return Pairs(text, edges, owners, np.zeros_like(owners), np.array(labels, np.int32))


def _shown(field):
    return repr(field[:20].decode("utf-8", "replace"))
