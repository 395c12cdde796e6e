"""What trained image models see and answer: a column an image, a row a variant, for the page and as a file.

Two kinds, told apart by what a task's `pictures` gave: `attention`, a heat map of attention over each image, and
`segmentation`, the class that each pixel was given. matplotlib and Pillow are imported inside the functions.
"""

import base64
import io
from dataclasses import dataclass
from html import escape
from textwrap import fill

import numpy as np

from experiment.look import MUTED, new_figure, shorten, styled

# The classes of a segmentation, background first; light and dark pages show them alike.
CLASS_COLORS = ("#2b303a", "#3d9fe0", "#f07b2e", "#1fc196", "#dd93bb", "#f0b432", "#f5f5f5", "#8b6fd6")
_LARGEST = 128  # pixels of a side; larger images are thinned out, or a page would weigh megabytes
_MAP, _MAP_SHARE = "viridis", 0.72  # perceptually even and safe for the colour-blind; the rest is the image in grey
_WHERE = (("upper left", "top", "upper right"), ("left", "middle", "right"), ("lower left", "bottom", "lower right"))


@dataclass(frozen=True)
class Cell:
    """One picture of a row.

    Attributes:
      pixels: uint8 [height, width, 3].
      text: what stands under it.
      alt: what it shows, for who cannot see it.
      right: whether the answer is right, or None where there is no answer to mark.
    """

    pixels: np.ndarray
    text: str
    alt: str
    right: bool | None = None


@dataclass(frozen=True)
class Gallery:
    """All pictures of a comparison.

    Attributes:
      kind: "attention" or "segmentation".
      rows: (name, index of the variant or None for the data themselves, cells).
      legend: (name, colour) of each class of a segmentation.
      reach: on an attention map, how many times an even share the brightest colour stands for; None = there is no map.
      note: why some rows have no map, or empty.
    """

    kind: str
    rows: list[tuple[str, int | None, list[Cell]]]
    legend: list[tuple[str, str]]
    reach: float | None = None
    note: str = ""


def gallery(comparison: dict, pictures: dict) -> Gallery | None:
    """Arranges what the variants' models gave for a few images.

    Args:
      comparison: the comparison, for the order of variants and `comparison["data"]["classes"]`, their names if known.
      pictures: `pictures[label]`, arrays of one model: "images" [n, height, width, 1 or 3] in 0..1 and either "labels",
        "answers", "confidence" [n] and "maps" [n, rows, columns], each of which sums to 1, or "labels" and "answers"
        [n, height, width]. The images and labels are the same for all. "maps" is left out where a model's attention
        weights are no shares; its row shows plain images.

    Returns:
      The Gallery, or None where no variant has pictures.
    """
    shown = [(i, v["name"], pictures[v["name"]]) for i, v in enumerate(comparison["variants"]) if v["name"] in pictures]
    classified = [item for item in shown if "confidence" in item[2]]
    if not shown:
        return None
    classes = (comparison.get("data") or {}).get("classes") or []
    return _attention(classified, classes) if classified else _segmentation(shown, classes)


def heat(image: np.ndarray, attention: np.ndarray, reach: float) -> np.ndarray:
    """The image in grey under a heat map, uint8 [height, width, 3].

    The colour tells how many times an even share each patch got, on a logarithmic scale: the middle is an even share,
    the ends are 1 / reach and reach.

    Args:
      image: [height, width, 1 or 3] in 0..1.
      attention: [rows, columns], sums to 1; patches cover the image from the upper left, the last ones may stick out.
      reach: above 1.
    """
    from matplotlib import colormaps

    height, width = image.shape[:2]
    levels = 0.5 + 0.5 * np.log2(np.maximum(attention * attention.size, 1e-9)) / np.log2(reach)
    rows, columns = -(-height // levels.shape[0]), -(-width // levels.shape[1])  # pixels a patch
    levels = levels.repeat(rows, 0).repeat(columns, 1)[:height, :width]
    colors = colormaps[_MAP](np.clip(levels, 0, 1))[..., :3]
    grey = image.mean(-1, keepdims=True)
    return _bytes(_MAP_SHARE * colors + (1 - _MAP_SHARE) * grey)


def reach_of(maps) -> float:
    """How far from an even share the scale must reach, a power of two: all but 2% of all patches fit."""
    shares = np.concatenate([(m * m[0].size).ravel() for m in maps])
    spread = np.quantile(np.abs(np.log2(np.maximum(shares, 2.0**-10))), 0.98)
    return 2.0 ** np.clip(np.ceil(spread), 1, 5)


def mean_iou(labels: np.ndarray, answers: np.ndarray) -> float:
    """Intersection over union of one image, the mean over the classes that truth or answer holds.

    >>> mean_iou(np.array([[0, 1]]), np.array([[0, 0]]))
    0.25
    """
    present = np.union1d(labels, answers)
    ratios = [((labels == c) & (answers == c)).sum() / ((labels == c) | (answers == c)).sum() for c in present]
    return float(np.mean(ratios))


def to_html(pictures: Gallery, swatch) -> str:
    """The gallery as a table, and the key under it.

    Args:
      pictures: what `gallery` returned.
      swatch: index of a variant -> the HTML that stands before its name.
    """
    rows = "".join(
        f'<tr><th scope="row">{"" if i is None else swatch(i)}{escape(name).replace("_", "_<wbr>")}</th>'
        + "".join(f"<td>{_image(cell)}{_words(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, i, cells in pictures.rows
    )
    table = f'<div class="table gallery" tabindex="0" role="region" aria-label="Pictures"><table>{rows}</table></div>'
    scale = _scale_html(pictures.reach) if pictures.reach else ""
    legend = _legend_html(pictures.legend) if pictures.legend else ""
    return table + scale + legend + (f'<p class="key">{escape(pictures.note)}</p>' if pictures.note else "")


def class_name(classes, index) -> str:
    """The name of a class, its number where it has none."""
    return str(classes[index]) if index < len(classes) else str(index)


@styled
def to_figure(pictures: Gallery):
    """The gallery as a matplotlib Figure: all cells in one Axes, because a hundred of them take 15 seconds."""
    columns, count = max(len(cells) for _, _, cells in pictures.rows), len(pictures.rows)
    figure, axes = new_figure(0.9 * (1.9 + 1.08 * columns), 0.9 * 1.25 * count + 0.5)
    style = {"ha": "center", "va": "bottom", "fontsize": 7}
    for row, (name, _, cells) in enumerate(pictures.rows):
        top = -1.25 * row
        axes.text(-0.1, top - 0.5, shorten(name, 20), ha="right", va="center", fontsize=8)
        for column, cell in enumerate(cells):
            height, width = np.array(cell.pixels.shape[:2]) / max(cell.pixels.shape[:2])
            left = 1.08 * column
            axes.imshow(cell.pixels, extent=(left, left + width, top - height, top), interpolation="nearest")
            mark = {True: "✓ ", False: "✗ ", None: ""}[cell.right]
            axes.text(
                left + 0.5, top + 0.03, mark + " ".join(shorten(line, 14) for line in cell.text.split("\n")), **style
            )
    axes.set(xlim=(-1.9, 1.08 * columns), ylim=(0.2 - 1.25 * count, 0.2), aspect="equal")
    axes.set_axis_off()
    if pictures.legend:
        _draw_legend(figure, pictures.legend)
    if pictures.reach:
        _draw_scale(figure, pictures.reach)
    if pictures.note:
        figure.supxlabel(
            fill(pictures.note, int(18 * figure.get_figwidth())), fontsize=7, color=MUTED
        )  # letters an inch
    return figure


def _attention(shown, classes):
    """The gallery of classified images: each image itself, then each model's heat map over it and its answer."""
    images, labels = shown[0][2]["images"], shown[0][2]["labels"]
    truth = [class_name(classes, label) for label in labels]
    maps = [arrays["maps"] for _, _, arrays in shown if "maps" in arrays]
    reach = reach_of(maps) if maps else None
    rows = [
        ("image", None, [_data_cell(x, name, f"image of class {name}") for x, name in zip(images, truth, strict=True)])
    ]
    for i, label, arrays in shown:
        cells, no_maps = [], [None] * len(images)
        for image, name, answer, sure, attention, wanted in zip(
            images, truth, arrays["answers"], arrays["confidence"], arrays.get("maps", no_maps), labels, strict=True
        ):
            text = f"{class_name(classes, answer)}\n{sure:.0%}"
            pixels, alt = _looked_at(image, attention, reach)
            cells.append(Cell(pixels, text, f"{label} on the {name}: {alt}", bool(answer == wanted)))
        rows.append((label, i, cells))
    return Gallery("attention", rows, [], reach, _why([label for _, label, arrays in shown if "maps" not in arrays]))


def _looked_at(image, attention, reach):
    """The image under its heat map, and the map in words; or the image alone."""
    if attention is None:
        return _thin(_colored(image)), "no map: its attention weights are no shares, or too many"
    peak = attention.max() * attention.size
    words = f"most attention {_where(attention)}, up to {peak:.1f} times an even share"
    return _thin(heat(image, attention, reach)), words


def _why(without) -> str:
    if not without:
        return ""
    return (
        f"No heat for {', '.join(without)}: in some layer the weights of a query are below 0 or do not sum to 1, and "
        "rollout has no shares to follow; or the image has too many tokens for a weight of each pair."
    )


def _segmentation(shown, classes):
    """The gallery of labelled pixels: image, truth, each model's answer with its intersection over union."""
    images, labels = shown[0][2]["images"], shown[0][2]["labels"]
    count = 1 + max(int(arrays[name].max()) for _, _, arrays in shown for name in ("labels", "answers"))
    colors = _class_colors(max(count, len(classes)))
    palette = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors], np.uint8)

    def painted(answer, what, text=""):
        names = ", ".join(class_name(classes, c) for c in np.unique(answer))
        return Cell(_thin(palette[answer]), text, f"{what}: {names}")

    rows = [
        ("image", None, [_data_cell(x, "", f"image {n + 1}") for n, x in enumerate(images)]),
        ("truth", None, [painted(truth, f"truth of image {n + 1}") for n, truth in enumerate(labels)]),
    ]
    for i, label, arrays in shown:
        pairs = zip(labels, arrays["answers"], strict=True)
        cells = [
            painted(answer, f"{label} on image {n + 1}", f"IoU {mean_iou(truth, answer):.2f}")
            for n, (truth, answer) in enumerate(pairs)
        ]
        rows.append((label, i, cells))
    return Gallery("segmentation", rows, [(class_name(classes, c), color) for c, color in enumerate(colors)])


def _data_cell(image, text, alt):
    return Cell(_thin(_colored(image)), text, alt)


def _where(attention) -> str:
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    return "in the " + _WHERE[3 * row // attention.shape[0]][3 * column // attention.shape[1]]


def _class_colors(count) -> list[str]:
    from matplotlib import colormaps, colors

    more = count - len(CLASS_COLORS)
    return [*CLASS_COLORS[:count], *(colors.to_hex(colormaps["turbo"]((i + 0.5) / more)) for i in range(more))]


def _colored(image):
    return _bytes(np.broadcast_to(image, (*image.shape[:2], 3)))


def _bytes(pixels):
    return np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _thin(pixels):
    """Every k-th pixel, so that no side is longer than `_LARGEST`."""
    step = -(-max(pixels.shape[:2]) // _LARGEST)
    return pixels[::step, ::step]


def _image(cell, kind="") -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(cell.pixels).save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img{kind} src="data:image/png;base64,{data}" alt="{escape(cell.alt)}">'


def _words(cell) -> str:
    if cell.right is None:
        return f"<p>{escape(cell.text)}</p>" if cell.text else ""
    style, mark, word = ("", "✓", "right") if cell.right else (' class="wrong"', "✗", "wrong")
    told = f'<span aria-hidden="true">{mark}</span><span class="unseen">{word}:</span> {escape(cell.text)}'
    return f"<p{style}>{told}</p>"


def _scale_bar(reach):
    """The scale, from 1 / reach to reach, over a white and a black image: uint8 [2, 96, 3]."""
    shares = np.exp2(np.linspace(-1, 1, 96) * np.log2(reach))
    image = np.repeat([[[1.0]], [[0.0]]], 96, 1)
    return heat(image, np.repeat(shares[None], 2, 0) / (2 * 96), reach)


def _ticks(reach) -> list[str]:
    return [f"1/{reach:g}×", "even share", f"{reach:g}×"]


def _scale_html(reach) -> str:
    alt = f"Scale of colours, from dark, 1/{reach:g} of an even share, to bright, {reach:g} times an even share"
    bar = _image(Cell(_scale_bar(reach), "", alt))
    return f'<div class="scale">{bar}{"".join(f"<span>{tick}</span>" for tick in _ticks(reach))}</div>'


def _legend_html(legend) -> str:
    items = (
        f'<span><i class="swatch square" style="background: {color}"></i>{escape(name)}</span>'
        for name, color in legend
    )
    return f'<p class="key classes">{"".join(items)}</p>'


def _draw_scale(figure, reach):
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(cmap=_MAP), ax=figure.axes, location="bottom", fraction=0.02, pad=0.01, aspect=60, shrink=0.4
    )
    bar.set_ticks([0, 0.5, 1], labels=_ticks(reach), fontsize=7)
    bar.outline.set_edgecolor(MUTED)


def _draw_legend(figure, legend):
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, edgecolor=MUTED, linewidth=0.5, label=name) for name, color in legend]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8)
