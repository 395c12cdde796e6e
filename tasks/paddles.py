"""Paddles, the dashes of Pathfinder's contours: their published sizes and how each looks on a grid of pixels."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

DIRECTIONS = 32  # that a paddle may have, evenly spaced
QUARTERS = 4  # places a pixel and axis where a paddle may be hinged
FITTING = 100  # rounds until bends are as frequent as published, to a hundred-thousandth
FAINT = 0.08  # of white: what is darker is left black, so that every pixel that is not black is ink
ANGLES = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
ALONG = np.stack([np.sin(ANGLES), np.cos(ANGLES)], 1)  # rows and columns a pixel of way, [directions, 2]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of what is drawn, in pixels.

    Attributes:
      side: rows, and columns, of the image.
      paddle: length of a paddle.
      thickness: of a paddle.
      margin: from a paddle to a hinge; where a contour is straight the gap between two paddles is twice as long.
      radius: of a dot.
      seed_distance: between the starts of the two long contours.
      continuity: a bend by the angle d has the weight cos(min(continuity |d|, pi / 2))^2 (`get_coords_cmf` in the
        `snakes.py` of Linsley et al., at the pixels on a circle about the hinge; here at evenly spaced directions).
      contrast: grey of a pixel that a paddle covers, where 1 is white, which more than 1 is too; dots are white.
    """

    side: int
    paddle: float
    thickness: float
    margin: int
    radius: float
    seed_distance: float
    continuity: float
    contrast: float


# Side -> settings of the data of Long Range Arena (Tay et al. 2021, arXiv:2011.04006, section 2.2.5), as they stand in
# its `data/pathfinder.py`; 128, Path-X, has two margins, and each image has one of them.
PUBLISHED = {
    32: [Geometry(32, 2, 0.5, 1, 1.5, 7, 1.0, 1.5)],
    64: [Geometry(64, 5, 1, 1, 2.5, 12, 1.8, 0.8)],
    128: [Geometry(128, 5, 1.5, margin, 3, 20, 1.8, 0.9) for margin in (2, 3)],
    256: [Geometry(256, 5, 2, 3, 5, 27, 1.8, 1.0)],
}


def geometry(side):
    """The settings for images of this side, one for each margin.

    A side that was not published has those of the next smaller one that was, or else of the smallest, with the distance
    of the two starts in proportion, though never so small that two dots would be near each other.

    >>> geometry(48)[0].paddle, geometry(48)[0].seed_distance
    (2, 10.5)
    """
    known = max((size for size in PUBLISHED if size <= side), default=min(PUBLISHED))
    settings = []
    for each in PUBLISHED[known]:
        distance = max(each.seed_distance * side / known, 2 * each.radius + 2 * each.margin + 1.5)
        settings.append(dataclasses.replace(each, side=side, seed_distance=distance))
    return settings


class Stamps(NamedTuple):
    """All paddles on a grid of cells, one a pixel, which has a border on each side that no shape reaches across.

    The code of a paddle is (phase of its hinge within a cell) DIRECTIONS + its direction; shapes of fewer than k cells
    repeat their first one. Kinds are "plain", "first" (with a dot where the paddle begins), "last" (with a dot where it
    ends).

    Attributes:
      border: cells on each side.
      width: cells a row of the grid.
      ink: {kind: int [k, codes]}, the shape's cells, relative to the hinge's.
      near: {kind: int [k, codes]}, cells from which the ink is 2 margin away, or less, in rows and in columns.
      paint: {kind: (int [k, codes], uint8 [k, codes])}, cells and their grey; for "first" and "last" of the dot alone.
      bends: int [bends], how a contour may go on, in directions.
      weights: float [codes, bends], how often after this paddle; 0 where the gap is not as it must be.
      steps: int [directions, 2], from hinge to hinge, in quarters of a pixel.
    """

    border: int
    width: int
    ink: dict
    near: dict
    paint: dict
    bends: np.ndarray
    weights: np.ndarray
    steps: np.ndarray

    def cell(self, hinges):
        """The cells of places in quarters of a pixel, int [..., 2]."""
        cells = hinges // QUARTERS + self.border
        return cells[..., 0] * self.width + cells[..., 1]


def code(hinges):
    """The code of direction 0 at places in quarters of a pixel, int [..., 2]."""
    phases = hinges % QUARTERS
    return (phases[..., 0] * QUARTERS + phases[..., 1]) * DIRECTIONS


@functools.lru_cache(maxsize=8)
def stamps(sizes):
    """The `Stamps` of a `Geometry`."""
    length, margin = sizes.paddle, sizes.margin
    reach = int(np.ceil(length + margin + max(sizes.thickness / 2, sizes.radius))) + 1
    border = reach + 2 * margin + 1
    width = sizes.side + 2 * border
    bar, first, last = _greys(sizes, reach)
    shapes = {"plain": bar, "first": np.maximum(bar, first), "last": np.maximum(bar, last)}
    steps = np.rint(QUARTERS * (length + 2 * margin) * ALONG).astype(int)
    return Stamps(
        border,
        width,
        {kind: _cells(grey > 0, width) for kind, grey in shapes.items()},
        {kind: _cells(_dilated(grey > 0, 2 * margin), width) for kind, grey in shapes.items()},
        {kind: _paint(grey, width) for kind, grey in {"plain": bar, "first": first, "last": last}.items()},
        *_bends(sizes, bar > 0, steps),
        steps,
    )


def _greys(sizes, reach):
    """Grey of the paddle, of a dot where it begins and of one where it ends, each uint8 [codes, window, window].

    A pixel has the grey of the share of it that is covered, as if it were turned as the paddle is.
    """
    hinges = (np.arange(QUARTERS)[:, None] + 0.5) / QUARTERS
    middles = np.arange(-reach, reach + 1) + 0.5 - hinges  # of the pixels, seen from the hinge
    rows, columns = middles[:, None, None, :, None], middles[None, :, None, None, :]
    down, right = ALONG.T.reshape(2, DIRECTIONS, 1, 1)
    along, across = rows * down + columns * right, rows * right - columns * down  # [4, 4, directions, window, window]
    begin, end = sizes.margin, sizes.margin + sizes.paddle
    bar = _overlap(along, begin, end) * _overlap(across, -sizes.thickness / 2, sizes.thickness / 2)
    dots = [np.clip(sizes.radius + 0.5 - np.hypot(along - at, across), 0, 1) for at in (begin, end)]
    shares = [np.minimum(bar * sizes.contrast, 1), *dots]
    return [np.where(x < FAINT, 0, np.rint(255 * x)).astype(np.uint8).reshape(-1, *x.shape[3:]) for x in shares]


def _overlap(middle, low, high):
    """How much of the unit interval around `middle` lies between `low` and `high`."""
    return np.maximum(np.minimum(middle + 0.5, high) - np.maximum(middle - 0.5, low), 0)


def _places(mask):
    """int [codes, k]: where a mask [codes, window, window] is true, in its flattened window."""
    flat = mask.reshape(len(mask), -1)
    counts = flat.sum(1, keepdims=True)
    order = np.argsort(~flat, axis=1, kind="stable")[:, : counts.max()]
    return np.where(np.arange(counts.max()) < counts, order, order[:, :1])


def _cells(mask, width):
    """int [k, codes]: the same on a grid with rows of `width` cells, relative to the middle of the window."""
    rows, columns = np.divmod(_places(mask).T, mask.shape[2])
    middle = mask.shape[2] // 2
    return np.ascontiguousarray((rows - middle) * width + columns - middle)


def _paint(grey, width):
    value = np.take_along_axis(grey.reshape(len(grey), -1), _places(grey > 0), 1)
    return _cells(grey > 0, width), np.ascontiguousarray(value.T)


def _dilated(mask, by):
    """Cells whose rows and columns differ by so much at most from those of one that is true; the window grows by it."""
    mask = np.pad(mask, ((0, 0), (by, by), (by, by)))
    for axis in (1, 2):
        mask = np.any([np.roll(mask, shift, axis) for shift in range(-by, by + 1)], 0)
    return mask


def _bends(sizes, ink, steps):
    """(bends, weights) of `Stamps`: none where there is no black pixel between, or a wide gap, else as published.

    What a paddle loses for the sake of its gap others get, so that over all paddles bends are as frequent as published
    and no paddle becomes more frequent than another, whatever its direction (iterative proportional fitting).
    """
    angles = np.minimum(ANGLES, 2 * np.pi - ANGLES) * sizes.continuity
    bends = np.flatnonzero(angles < np.pi / 2 - 1e-9)
    phases, directions = np.divmod(np.arange(len(ink)), DIRECTIONS)
    hinges = np.stack(np.divmod(phases, QUARTERS), 1) + steps[directions]  # of the next paddle
    after = code(hinges)[:, None] + (directions[:, None] + bends) % DIRECTIONS  # [codes, bends]
    here = np.stack(np.divmod(_places(ink), ink.shape[2]), -1)  # [codes, k, 2]
    there = here[after] + (hinges // QUARTERS)[:, None, None]
    apart = abs(here[:, None, :, None] - there[:, :, None]).max(-1).min((2, 3))
    shares = np.cos(angles[bends]) ** 2 / (np.cos(angles[bends]) ** 2).sum()
    weights = ((apart >= 1) & (apart <= 2 * sizes.margin)) * shares
    for _ in range(FITTING):
        weights *= shares / weights.mean(0)
        weights /= np.bincount(after.ravel(), weights.ravel())[after]
        weights /= weights.sum(1, keepdims=True)
    return bends, weights
