"""Each variant's mask as a small picture: which query (row) may attend which key (column), or what one patch sees."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

SIDE = 64
# Settings that count tokens: they shrink with the length, so that the picture keeps the proportions of the real mask.
_IN_TOKENS = ("window", "num_global", "stride", "summary", "block_size")
# Above this length the exact share of pairs would need a [T, T] array of more than 16 MB.
_LONGEST_COUNTED = 4096
_UNDRAWABLE = (ImportError, AttributeError, LookupError, TypeError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Pattern:
    """What there is to draw of one variant.

    Attributes:
      label: the variant's label.
      allowed: bool [T, T], True = may attend, T about 64; on a grid bool [rows, columns], True = the query sees it;
        None where there is nothing to draw.
      note: one line to stand under the picture, or in its place.
      query: (row, column) of the query on the grid, or None where the picture is a mask.
    """

    label: str
    allowed: np.ndarray | None
    note: str
    query: tuple[int, int] | None = None


def pattern(label: str, settings: dict, length: int, causal: bool = True) -> Pattern:
    """The picture of one variant's mask, scaled from training length to about 64 tokens.

    Args:
      label: the variant's label.
      settings: `{"name": ..., **settings}`, the variant's entry `attention` in the comparison.
      length: the training length that the settings belong to.
      causal: whether the model was a decoder.

    Returns:
      The Pattern. A variant without fixed pairs gets a note that says what a query sees instead, and one that cannot be
      drawn why, never an exception: a picture must not cost a finished comparison its report.
    """
    try:
        mask = _mask(settings, length, causal)
        if mask is None:
            return Pattern(label, None, f"no mask to draw: {_sees(settings)}")
        drawn = _mask(_shrunk(settings, length), min(SIDE, length), causal)
        allowed = np.asarray(drawn.dense(min(SIDE, length), min(SIDE, length)))
        note = _share(mask, length, causal) + (", head 0 of " + str(allowed.shape[0]) if allowed.ndim == 3 else "")
        return Pattern(label, allowed[0] if allowed.ndim == 3 else allowed, note)
    except _UNDRAWABLE as error:
        return _unavailable(label, error)


def grid_patterns(label: str, settings: dict, model: dict, image_size: int) -> list[Pattern]:
    """What one query near the middle of the grid of patches sees in one layer of an image model.

    Args:
      label: the variant's label.
      settings: the variant's entry `attention` in the comparison.
      model: the fields of its `config.model`.
      image_size: side of the images in pixels.

    Returns:
      One Pattern, or one for each kind of layer where layers differ; never an exception, as in `pattern`.
    """
    try:
        side = _grid_side(model, image_size)
        seen = _ON_GRID.get(settings["name"], _in_sequence)(settings, model, side)
        if seen is None:
            return [Pattern(label, None, f"no mask to draw: {_sees(settings)}")]
        return [
            Pattern(f"{label}{kind}", cells, f"{cells.sum()} of {cells.size} patches{words}", _middle(side))
            for kind, cells, words in seen
        ]
    except _UNDRAWABLE as error:
        return [_unavailable(label, error)]


def to_svg(picture: Pattern, color: str) -> str:
    """The picture, which has something to draw, as an SVG element; `color` is any CSS colour.

    The query of a grid is a dot in the page's ink.
    """
    rows, columns = picture.allowed.shape
    marks = ""
    if picture.query:
        if max(rows, columns) <= 32:  # beyond, the lines would cover the cells
            lines = [f"M0 {y}h{columns}" for y in range(1, rows)] + [f"M{x} 0v{rows}" for x in range(1, columns)]
            marks = f'<path d="{"".join(lines)}" style="stroke: var(--card)" vector-effect="non-scaling-stroke"/>'
        row, column = picture.query
        marks += f'<circle cx="{column + 0.5}" cy="{row + 0.5}" r="0.35" style="fill: var(--ink)"/>'
    path = "".join(
        f"M{start} {row}h{stop - start}v1h{start - stop}z"
        for row, line in enumerate(picture.allowed)
        for start, stop in _runs(line)
    )
    return (
        f'<svg viewBox="0 0 {columns} {rows}" shape-rendering="crispEdges" aria-hidden="true">'
        f'<path d="{path}" style="fill: {color}"/>{marks}</svg>'
    )


def _unavailable(label, error):
    reason = (str(error).splitlines() or [""])[0]
    return Pattern(label, None, f"mask not available ({type(error).__name__}: {reason})")


def _mask(settings: dict, length: int, causal: bool):
    from models.variants import VARIANTS

    options = {name: value for name, value in settings.items() if name != "name"}
    return VARIANTS[settings["name"]].mask(options, length, causal=causal)


def _sees(settings: dict) -> str:
    from models.variants import VARIANTS

    return VARIANTS[settings["name"]].can.sees.replace("`", "")


def _shrunk(settings: dict, length: int) -> dict:
    ratio = min(SIDE, length) / length
    counted = {name: settings[name] for name in _IN_TOKENS if settings.get(name)}
    return settings | {name: max(1, round(value * ratio)) for name, value in counted.items()}


def _share(mask, length: int, causal: bool) -> str:
    """How many of the pairs the real mask keeps, counted at the training length."""
    if length > _LONGEST_COUNTED:
        return f"scaled from T = {length}"
    allowed = np.asarray(mask.dense(length, length))
    pairs = length * (length + 1) // 2 if causal else length**2
    share = allowed.mean() * length**2 / pairs
    return f"{share:.1%} of {'the causal' if causal else 'all'} pairs at T = {length}"


def _runs(line: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of True.

    >>> _runs(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _grid_side(model: dict, image_size: int) -> int:
    """Patches along a side of the grid that the first layer attends over."""
    from models.vision_config import patch_of

    if (model.get("name"), model.get("stem")) == ("axial", "conv"):  # a convolution and a pooling, each of stride 2
        return -(-image_size // 4)
    return -(-image_size // patch_of(SimpleNamespace(patch_size=model.get("patch_size") or 0), image_size))


def _middle(side: int) -> tuple[int, int]:
    """A query near the middle, but off it, where windows of half the side would have a border."""
    return 2 * side // 5, 2 * side // 5


def _shifted_windows(settings, model, side):
    """Swin: windows, shifted by half a window in every other layer; a grid no larger than a window has only one."""
    from attention.swin import fit_window

    window, shift = fit_window((side, side), settings["window"], settings["window"] // 2)
    plain = _window_of_query(side, window, 0)
    if window == side:
        return [("", plain, ": the window is the grid")]
    if not settings["shift"]:
        return [("", plain, ", in every layer")]
    shifted = _window_of_query(side, window, shift)
    return [("", plain, ", in layers 1, 3, …"), (", shifted", shifted, ", in layers 2, 4, …")]


def _grid_window(settings, model, side):
    return [("", _window_of_query(side, settings["window"], 0), ", in every layer")]


def _window_of_query(side, window, shift):
    """The window that holds the query: what a shift moves across the border forms windows of its own."""
    of = (np.arange(side) - shift) // window
    row, column = _middle(side)
    return (of == of[row])[:, None] & (of == of[column])


def _cross(settings, model, side):
    """Row and column of the query: at once by halves of the heads (ViT), or column first, then row (Axial-ResNet)."""
    distance = np.abs(np.arange(side) - _middle(side)[0])
    here, near = distance == 0, distance <= ((settings.get("span") or 2 * side) - 1) // 2
    cells = (here[:, None] & near) | (near[:, None] & here)
    split = model.get("name") == "vit"
    return [("", cells, ": half of the heads see the row, half the column" if split else ": column first, then row")]


def _in_sequence(settings, model, side):
    """A variant on the row-major grid as a sequence, special tokens first; None where it has no fixed pairs."""
    special = (model.get("pool") == "cls") + (model.get("registers") or 0)
    length = side * side + special
    if length > _LONGEST_COUNTED:
        raise NotImplementedError(f"the mask of {side} x {side} patches is too large to draw")
    mask = _mask(settings, length, causal=False)
    if mask is None:
        return None
    allowed = np.asarray(mask.dense(length, length))
    words = f", head 0 of {allowed.shape[0]}" if allowed.ndim == 3 else ""
    row, column = _middle(side)
    seen = allowed.reshape(-1, length, length)[0, special + row * side + column, special:]
    return [("", seen.reshape(side, side), words)]


# Variants that know rows and columns, by `config.model.attention.name`; all others see a sequence.
_ON_GRID = {"shifted_window": _shifted_windows, "grid_window": _grid_window, "axial": _cross}
