"""Dashed contours among others, drawn in many images at once: the pictures of Pathfinder.

Linsley et al. 2018, "Learning long-range spatial dependencies with horizontal gated recurrent units", arXiv:1805.08315,
section 4, and the code they published: two contours of as many paddles start near each other and grow by turns; each
paddle goes on from the one before it at a random angle, and bends are the rarer the sharper they are. Shorter contours
fill the rest. Two dots mark the start of one long contour and the end of the same or of the other one.

What an image shows decides its label: in rows or columns, whichever are more, the ink of a paddle is 2 to 2 margin
pixels away from that of the next one of its contour, and all other ink is farther, also that of a dot, for which there
is room at all four ends, marked or not.

Where a contour finds no way on, the published code draws the image anew, which at 32 x 32 takes a hundred attempts and
more. Here an image grows in a few versions at the same time, and one that is stuck goes on as a copy of another; the
image is drawn anew where all are stuck. No way leads to where the paddle after the next one would hinge near something
else. So one core draws more than 2,500 images a second of 32 x 32 with contours of 14 paddles, 400 of 128 x 128 (AMD
EPYC, processor time, 2026-11-29: `draw(np.random.default_rng(0), 2000, 32, 14, 5)` and `..., 150, 128, 14, 8)`).

The law of bends is the published one, in 32 even directions; `snakes.py` has the directions of whole pixels on a small
circle, always rounded towards the upper left, by which its mean bend with all the room there is becomes 25.2 degrees
in place of 26.8 (here 26.5) at 32 x 32, and 14.5 in place of 14.9 (here 14.4) at 128 x 128. What is in the way makes
bends sharper: 34.5 and 19.4 degrees in the images above. With one version, no look at the next hinge and no shorter
contours it is 35.0 and 18.7, with standard errors of 0.6 and 0.4.
"""

from typing import NamedTuple

import numpy as np

from tasks.paddles import ALONG, DIRECTIONS, QUARTERS, code, geometry, stamps

VERSIONS = 3  # of an image while it grows
TRIALS = 5  # of a shorter contour, as published; then the image does without it
SEEDS = 8  # places looked at for its first paddle in each trial
CHUNK = 256  # images at once: their grids stay in a processor's cache
HOPELESS = 2000  # images drawn anew for one that has room for both contours, until it is an error
LONGEST = 127  # paddles: two contours of them are numbered in a byte
BLOCKED = 255
HERE = np.zeros((1, 1, 1), int)  # a shape of the one cell


class Drawing(NamedTuple):
    """Images and what is in them.

    Attributes:
      images: uint8 [n, side, side], grey.
      labels: int32 [n], 1 where both dots are on one contour.
      dots: float32 [n, 2, 2], row and column of the start and of the end that are marked; a pixel is a unit square, the
        upper left one from (0, 0) to (1, 1).
      paddles: float32 [n, contours, paddles, 2, 2], row and column of where each begins and ends, in the order of the
        contour, the two long ones first; NaN where there is none.
    """

    images: np.ndarray
    labels: np.ndarray
    dots: np.ndarray
    paddles: np.ndarray


def draw(rng, rows, side, contour_length, num_distractors):
    """Images with two long contours and shorter ones; in half of them both dots are on one contour.

    Args:
      rng: `np.random.Generator`, the only source of chance.
      rows: how many images, n.
      side: rows, and columns, of each.
      contour_length: paddles of each long contour, 2 to 127.
      num_distractors: shorter contours, of a third as many paddles; an image that has no room for one does without it.

    Returns:
      `Drawing`; the two labels are equally many, but for one image where n is odd.

    Raises:
      ValueError: contours too long for images of this side.

    >>> drawing = draw(np.random.default_rng(0), 4, side=32, contour_length=6, num_distractors=3)
    >>> drawing.images.shape, drawing.paddles.shape, sorted(drawing.labels.tolist())
    ((4, 32, 32), (4, 5, 6, 2, 2), [0, 0, 1, 1])
    """
    if not 2 <= contour_length <= LONGEST:
        raise ValueError(f"contour_length: wanted 2 to {LONGEST} paddles, got {contour_length}")
    settings = geometry(side)
    margins = rng.integers(0, len(settings), rows)
    labels = rng.permutation((np.arange(rows) + rng.integers(0, 2)) % 2).astype(np.int32)
    begin = rng.integers(0, 2, rows)  # the contour whose start has a dot
    marked = np.stack([begin, np.where(labels, begin, 1 - begin)], 1)
    images, dots = np.zeros((rows, side, side), np.uint8), np.zeros((rows, 2, 2), np.float32)
    paddles = np.zeros((rows, 2 + num_distractors, contour_length, 2, 2), np.float32)
    for i, sizes in enumerate(settings):
        every = np.flatnonzero(margins == i)
        for now in (every[at : at + CHUNK] for at in range(0, len(every), CHUNK)):
            grown = _two_contours(rng, sizes, contour_length, len(now))
            cells, codes = _distractors(rng, sizes, *grown, num_distractors)
            images[now] = _render(sizes, cells, codes, marked[now])
            paddles[now] = _ends(sizes, cells, codes)
            at_dots = ((0, 0), (-1, 1))  # the first paddle's beginning, the last one's end
            dots[now] = np.stack([paddles[now, marked[now, dot], *at] for dot, at in enumerate(at_dots)], 1)
    return Drawing(images, labels, dots, paddles)


def _two_contours(rng, sizes, length, rows):
    """Two long contours in each of so many images: (grid, cells, codes), as `_grow` returns them."""
    parts, found, tried = [], 0, 0
    while found < rows:
        attempts = int(np.clip(1.2 * (rows - found) * (tried + 2) / (found + 1), 16, CHUNK))
        parts.append(_grow(rng, stamps(sizes), *_starts(rng, sizes, attempts), length, dots=True)[1:])
        found, tried = found + len(parts[-1][0]), tried + attempts
        if tried > HOPELESS * (found + 1):
            raise ValueError(f"no two contours of {length} paddles find room on {sizes.side} x {sizes.side} pixels")
    return [np.concatenate(each)[:rows] for each in zip(*parts, strict=True)]


def _starts(rng, sizes, rows):
    """Empty grids, and hinges and directions of the first paddles of two contours, so far apart as published."""
    stamp = stamps(sizes)
    edge = min(2 * sizes.seed_distance, 7 / 16 * sizes.side)  # the first contour starts about the middle
    first = rng.uniform(edge, sizes.side - edge, (rows, 2))
    angle = rng.uniform(0, 2 * np.pi, rows)
    second = first + sizes.seed_distance * np.stack([np.sin(angle), np.cos(angle)], 1)
    directions = rng.integers(0, DIRECTIONS, (rows, 2))
    hinges = np.stack([first, second], 1) - sizes.margin * ALONG[directions]
    grid = np.full((stamp.width, stamp.width), BLOCKED, np.uint8)
    inside = slice(stamp.border + 1, -stamp.border - 1)  # a line of pixels at each edge stays black
    grid[inside, inside] = 0
    return np.repeat(grid.reshape(1, -1), rows, 0), np.floor(QUARTERS * hinges).astype(int), directions


def _distractors(rng, sizes, grid, cells, codes, count):
    """Adds shorter contours where there is room: cells and codes [n, 2 + count, paddles], -1 where there is none."""
    stamp, length = stamps(sizes), max(1, codes.shape[2] // 3)
    more = ((0, 0), (0, count), (0, 0))
    cells, codes = (np.pad(each, more, constant_values=-1) for each in (cells, codes))
    for contour in range(2, 2 + count):
        grid[grid > 0] = BLOCKED  # the paddles so far are no longer told apart
        waiting = np.arange(len(grid))
        for _ in range(TRIALS):
            now = grid[waiting]
            hinges = rng.integers(0, QUARTERS * sizes.side, (len(now), SEEDS, 2))
            directions = rng.integers(0, DIRECTIONS, (len(now), SEEDS))
            ink = stamp.ink["plain"][:, code(hinges) + directions]
            first = _free(now, stamp.cell(hinges), ink, 0).argmax(1)[:, None]  # or any, which `_grow` then drops
            hinges = np.take_along_axis(hinges, first[..., None], 1)
            directions = np.take_along_axis(directions, first, 1)
            kept, *grown = _grow(rng, stamp, now, hinges, directions, length, dots=False)
            done, waiting = waiting[kept], np.delete(waiting, kept)
            grid[done] = grown[0]
            cells[done, contour, :length], codes[done, contour, :length] = (each[:, 0] for each in grown[1:])
    return cells, codes


def _grow(rng, stamp, grid, hinges, directions, length, dots):
    """Lets contours grow by turns, paddle by paddle, in images that are dropped when one of them finds no way on.

    Args:
      rng: the source of chance.
      stamp: `Stamps`.
      grid: uint8 [n, cells]: 0 where nothing is near, the number of the only paddle of these contours that is, counted
        from 1, or BLOCKED.
      hinges: int [n, contours, 2], where they start, in quarters of a pixel.
      directions: int [n, contours], of their first paddles.
      length: paddles of each.
      dots: the contours need room for dots at both ends; then images grow in VERSIONS.

    Returns:
      (kept, the rows that are left; their grids; cells and codes of the paddles, int [kept, contours, length]).
    """
    versions = VERSIONS if dots else 1
    kept, contours = np.arange(len(grid)), hinges.shape[1]
    grid, hinges, directions = (np.repeat(each, versions, 0) for each in (grid, hinges, directions))
    cells, codes = (np.zeros((len(grid), contours, length), int) for _ in range(2))
    for paddle, contour in np.ndindex(length, contours):
        kind = {0: "first", length - 1: "last"}.get(paddle, "plain") if dots else "plain"
        hinge, direction, own = hinges[:, contour], directions[:, contour], contour * length + paddle
        if paddle:
            hinge = hinge + stamp.steps[direction]
            turned = (direction[:, None] + stamp.bends) % DIRECTIONS
            free = _free(grid, stamp.cell(hinge)[:, None], stamp.ink[kind][:, code(hinge)[:, None] + turned], own)
            if paddle + 1 < length:
                free &= _free(grid, stamp.cell(hinge[:, None] + stamp.steps[turned]), HERE, own)
            sums = np.cumsum(stamp.weights[codes[:, contour, paddle - 1]] * free, 1)
            chosen = (sums > rng.random((len(grid), 1)) * sums[:, -1:]).argmax(1)
            direction, good = turned[np.arange(len(grid)), chosen], sums[:, -1] > 0
        else:
            good = _free(grid, stamp.cell(hinge), stamp.ink[kind][:, code(hinge) + direction], 0)
        hinges[:, contour], directions[:, contour] = hinge, direction
        cells[:, contour, paddle], codes[:, contour, paddle] = stamp.cell(hinge), code(hinge) + direction
        if not good.all():
            good = good.reshape(-1, versions)
            parents = np.where(good, np.arange(versions), good.argmax(1)[:, None])
            parents = (parents + versions * np.arange(len(good))[:, None])[good.any(1)].ravel()
            kept = kept[good.any(1)]
            grid, hinges, directions, cells, codes = (
                each[parents] for each in (grid, hinges, directions, cells, codes)
            )
        _take(grid, cells[:, contour, paddle], stamp.near[kind][:, codes[:, contour, paddle]], own + 1)
    return kept, grid[::versions], cells[::versions], codes[::versions]


def _flat(grid, cells, shape):
    """Where shapes [k, n, ...] at cells [n, ...] lie in the flattened grids."""
    return shape + (cells + (np.arange(len(grid)) * grid.shape[1]).reshape(-1, *[1] * (cells.ndim - 1)))


def _free(grid, cells, shape, own):
    """Whether no cell of a shape is near anything but the paddle `own`: bool [n, ...]."""
    taken = grid.reshape(-1)[_flat(grid, cells, shape)]
    return ~((taken != 0) & (taken != own)).any(0)


def _take(grid, cells, shape, number):
    """Gives the free cells of a shape to a paddle and blocks the others, which are near two paddles, in place."""
    flat, grid = _flat(grid, cells, shape), grid.reshape(-1)
    grid[flat] = np.where(grid[flat], np.uint8(BLOCKED), np.uint8(number))


def _render(sizes, cells, codes, marked):
    """uint8 [n, side, side]: all paddles, and dots on the start and the end of the contours `marked`, int [n, 2]."""
    stamp = stamps(sizes)
    image = np.zeros((len(cells), stamp.width**2), np.uint8)
    for contour, paddle in np.ndindex(*codes.shape[1:]):
        rows = np.flatnonzero(codes[:, contour, paddle] >= 0)
        places, grey = (each[:, codes[rows, contour, paddle]] for each in stamp.paint["plain"])
        image[rows, cells[rows, contour, paddle] + places] = grey
    rows = np.arange(len(image))
    for kind, contour, paddle in (("first", marked[:, 0], 0), ("last", marked[:, 1], -1)):
        places, grey = (each[:, codes[rows, contour, paddle]] for each in stamp.paint[kind])
        places = cells[rows, contour, paddle] + places
        image[rows, places] = np.maximum(image[rows, places], grey)
    inside = slice(stamp.border, stamp.border + sizes.side)
    return image.reshape(-1, stamp.width, stamp.width)[:, inside, inside]


def _ends(sizes, cells, codes):
    """float32 [n, contours, paddles, 2, 2]: where paddles begin and end."""
    stamp = stamps(sizes)
    phases, directions = np.divmod(codes, DIRECTIONS)
    hinges = np.stack(np.divmod(cells, stamp.width), -1) - stamp.border
    hinges = hinges + (np.stack(np.divmod(phases, QUARTERS), -1) + 0.5) / QUARTERS
    ends = [hinges + ALONG[directions] * distance for distance in (sizes.margin, sizes.margin + sizes.paddle)]
    return np.where((codes >= 0)[..., None, None], np.stack(ends, -2), np.nan)
