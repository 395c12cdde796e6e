"""Each variant's mask as a small picture: which query (row) may attend which key (column)."""

from dataclasses import dataclass

import numpy as np

SIDE = 64
# Settings that count tokens: they shrink with the length, so that the picture keeps the proportions of the real mask.
_IN_TOKENS = ("window", "num_global", "stride", "summary", "block_size")
# Above this length the exact share of pairs would need a [T, T] array of more than 16 MB.
_LONGEST_COUNTED = 4096


@dataclass(frozen=True)
class Pattern:
    """What there is to draw of one variant.

    Attributes:
      label: the variant's label.
      allowed: bool [T, T], True = may attend, T about 64; None where there is nothing to draw.
      note: one line to stand under the picture, or in its place.
    """

    label: str
    allowed: np.ndarray | None
    note: str


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
    except (ImportError, AttributeError, LookupError, TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        return Pattern(label, None, f"mask not available ({type(error).__name__}: {reason})")


def to_svg(picture: Pattern, color: str) -> str:
    """The picture, which has something to draw, as an SVG element of one path; `color` is any CSS colour."""
    rows, columns = picture.allowed.shape
    path = "".join(
        f"M{start} {row}h{stop - start}v1h{start - stop}z"
        for row, line in enumerate(picture.allowed)
        for start, stop in _runs(line)
    )
    return (
        f'<svg viewBox="0 0 {columns} {rows}" shape-rendering="crispEdges" aria-hidden="true">'
        f'<path d="{path}" style="fill: {color}"/></svg>'
    )


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
