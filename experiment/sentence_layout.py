"""Where the words of a sentence and the arcs of its dependency tree lie in a picture, in pixels."""

import unicodedata
from dataclasses import dataclass

import numpy as np

from experiment.look import shorten

_FONT = 13
_LONGEST = 18  # characters of a word that are shown
_GAP, _NARROWEST = 14, 34  # between two words; the room of the shortest
_STEP, _CORNER, _ROOT = 15, 7, 20  # between two levels of arcs; the radius of their corners; the arrow to the root
_NARROW, _WIDE = frozenset("fijlrtI.,;:!|-'`()[] "), frozenset("mwMW@%—…")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a sentence lie.

    Attributes:
      centers: x of each word.
      rooms: width that each word has.
      width: of the whole.
      base: y of the feet of the arcs, from the top.
      arcs: (head, dependent, level) of each edge of the tree; arcs of one level never overlap.
      backwards: whether the sentence is written from right to left.
    """

    centers: np.ndarray
    rooms: np.ndarray
    width: float
    base: float
    arcs: list[tuple[int, int, int]]
    backwards: bool

    def corners(self, head: int, dependent: int, level: int) -> list[tuple[float, float]]:
        """The eight points of an arc: up from the head, round a corner, along, round another, down to the dependent."""
        top, (start, stop) = self.base - _STEP * level, self.centers[[head, dependent]]
        side = 1 if stop > start else -1
        start += 5 * side  # beside the arrow that comes into the head
        return [
            (start, self.base),
            (start, top + _CORNER),
            (start, top),
            (start + side * _CORNER, top),
            (stop - side * _CORNER, top),
            (stop, top),
            (stop, top + _CORNER),
            (stop, self.base),
        ]


def layout(words, heads) -> Layout:
    """Places words in a row, each in its own room, and above them the arcs of their tree; a head of -1 is the root."""
    rooms = np.array([max(_NARROWEST, _GAP + text_width(short(word))) for word in words])
    centers, width = rooms.cumsum() - rooms / 2, float(rooms.sum())
    backwards = _runs_backwards(words)
    arcs = levels(heads)
    base = _ROOT + _STEP * max((level for *_, level in arcs), default=0)
    return Layout(width - centers if backwards else centers, rooms, width, base, arcs, backwards)


def levels(heads) -> list[tuple[int, int, int]]:
    """(head, dependent, level) of each edge of a tree, short ones first and low, so that no two of a level overlap.

    >>> levels([1, 3, 1, -1])
    [(1, 0, 1), (1, 2, 1), (3, 1, 2)]
    """
    edges = [(head, dependent) for dependent, head in enumerate(heads) if head >= 0]
    placed = []
    for head, dependent in sorted(edges, key=lambda edge: abs(edge[0] - edge[1])):
        low, high = sorted((head, dependent))
        under = [level for one, other, level in placed if max(low, min(one, other)) < min(high, max(one, other))]
        placed.append((head, dependent, 1 + max(under, default=0)))
    return placed


def short(word: str) -> str:
    """As much of a word as a picture has room for."""
    return shorten(word, _LONGEST)


def text_width(text: str) -> float:
    """About how many pixels a word takes, rather too many: a page does not say before it is drawn.

    >>> text_width("ill") < text_width("was") < text_width("MOM") and text_width("e\\u0301") == text_width("e")
    True
    """
    return _FONT * sum(map(_letter_width, text))


def _letter_width(letter):
    if unicodedata.category(letter).startswith("M"):
        return 0.0  # an accent over the letter before it
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.05
    if letter in _NARROW:
        return 0.38
    return 0.98 if letter in _WIDE else 0.76 if letter.isupper() else 0.62


def _runs_backwards(words):
    """Whether most letters belong to a script that is written from right to left."""
    kinds = [unicodedata.bidirectional(letter) for word in words for letter in word]
    return sum(kind in ("R", "AL") for kind in kinds) > kinds.count("L")
