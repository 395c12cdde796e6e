"""Sentences under their dependency trees, and where each model looks in them: for the page and as a file.

Both are drawn from one `Layout`: the page as SVG of its own, so that names stay in view while a long sentence scrolls,
the file by matplotlib.
"""

from dataclasses import dataclass
from html import escape

import numpy as np

from experiment.gallery import class_name
from experiment.look import FAINT, INK, MUTED, PALETTE, new_figure, shorten, styled
from experiment.sentence_layout import layout, short

_BASELINE = 26  # pixels from the feet of the arcs to the lower edge of the words; all sizes here are pixels
_BAR, _WIDE_BAR, _ROW = 30, 20, 50  # the highest bar, its width, and the row it stands in
_WRITTEN, _LEAST = 3, 0.05  # so many shares of a row are written out, if they are not smaller


@dataclass(frozen=True)
class Reading:
    """What one model made of a sentence.

    Attributes:
      label: of the variant.
      index: of the variant.
      answer: the class it gave.
      right: whether that is the true one.
      confidence: the probability it gave its answer.
      shares: [T], what the word in question pays to each word, or None where the weights are no shares.
    """

    label: str
    index: int
    answer: str
    right: bool
    confidence: float
    shares: np.ndarray | None


@dataclass(frozen=True)
class Sentence:
    """A sentence, its tree, the question about one of its words, and what each model answered.

    Attributes:
      words: T words.
      heads: index of each word's head, -1 for the root.
      asked: index of the word in question.
      truth: the right answer.
      readings: one a variant.
    """

    words: tuple[str, ...]
    heads: tuple[int, ...]
    asked: int
    truth: str
    readings: tuple[Reading, ...]


def sentences(comparison: dict, pictures: dict) -> list[Sentence]:
    """Arranges what the variants' models gave for a few sentences.

    Args:
      comparison: the comparison, for the order of variants and `comparison["data"]["classes"]`, their names if known.
      pictures: `pictures[label]`, arrays of one model: "words" text [n, T], "heads" [n, T] (-1 the root, -2 padding),
        "asked" [n], "labels", "answers", "confidence" [n], and "attention" [n, T], what the word in question pays to
        each word, left out where the weights are no shares. Words, heads, questions and labels are the same for all.

    Returns:
      The sentences in the order given.
    """
    classes = (comparison.get("data") or {}).get("classes") or []
    shown = [(i, v["name"], pictures[v["name"]]) for i, v in enumerate(comparison["variants"]) if v["name"] in pictures]
    same, found = shown[0][2], []
    for n, (words, heads) in enumerate(zip(same["words"], same["heads"], strict=True)):
        size, label = int((heads != -2).sum()), int(same["labels"][n])
        readings = tuple(
            Reading(
                name,
                i,
                class_name(classes, arrays["answers"][n]),
                bool(arrays["answers"][n] == label),
                float(arrays["confidence"][n]),
                arrays["attention"][n, :size] if "attention" in arrays else None,
            )
            for i, name, arrays in shown
        )
        words = tuple(" ".join(str(word).split()) for word in words[:size])
        asked = int(same["asked"][n])
        found.append(Sentence(words, tuple(map(int, heads[:size])), asked, class_name(classes, label), readings))
    return found


def to_html(found: list[Sentence], swatch) -> str:
    """The first sentence, and the others in a fold.

    Args:
      found: what `sentences` returned.
      swatch: index of a variant -> the HTML that stands before its name.
    """
    first, *others = (_table(sentence, swatch) for sentence in found)
    if not others:
        return first
    title = f"{len(others)} more sentence{'s' if len(others) > 1 else ''}"
    return f'{first}<details class="sentences"><summary>{title}</summary>{"".join(others)}</details>'


@styled
def to_figure(sentence: Sentence):
    """One sentence with its tree and all readings as a matplotlib Figure."""
    from matplotlib.patches import PathPatch, Rectangle

    place, left = layout(sentence.words, sentence.heads), 190
    height = place.base + _BASELINE + _ROW * len(sentence.readings) + 8
    figure, axes = new_figure((place.width + left + 20) / 96, (height + 16) / 96)
    axes.set(xlim=(-left, place.width), ylim=(height, -8))
    axes.set_axis_off()
    for head, dependent, level in place.arcs:
        ours = sentence.asked in (head, dependent)
        style = {"edgecolor": INK if ours else MUTED, "linewidth": 1.4 if ours else 0.8}
        axes.add_patch(PathPatch(_mpl_path(place.corners(head, dependent, level)), facecolor="none", **style))
        axes.plot(place.centers[dependent], place.base - 3, marker="v", ms=3.5, color=style["edgecolor"])
    center, room = place.centers[sentence.asked], place.rooms[sentence.asked]
    band = height - place.base - 4
    axes.add_patch(Rectangle((center - room / 2, place.base + 3), room, band, facecolor=FAINT, alpha=0.6, linewidth=0))
    for at, word in enumerate(sentence.words):
        bold = {"fontweight": "bold"} if at == sentence.asked else {}
        text = short(word)
        axes.text(place.centers[at], place.base + 15, text, ha="center", va="center", fontsize=8.5, **bold)
    axes.text(-left, place.base + 15, f"right answer: {shorten(sentence.truth)}", va="center", color=MUTED, fontsize=8)
    scale = _scale(sentence)
    for row, reading in enumerate(sentence.readings):
        _draw_reading(axes, reading, place, place.base + _BASELINE + _ROW * (row + 1), scale, left)
    return figure


def _draw_reading(axes, reading, place, floor, scale, left):
    color = PALETTE[reading.index % len(PALETTE)]
    axes.plot([0, place.width], [floor, floor], color=FAINT, linewidth=0.8)
    axes.text(-left, floor - 22, shorten(reading.label, 24), va="center", fontsize=8.5, fontweight="bold", color=color)
    answer = f"{'✓' if reading.right else '✗'} {shorten(reading.answer, 22)}, {reading.confidence:.0%}"
    axes.text(-left, floor - 7, answer, va="center", fontsize=8, color=INK if reading.right else MUTED)
    if reading.shares is None:
        return
    hollow = reading.index >= len(PALETTE)
    fill = {"facecolor": "none" if hollow else color, "edgecolor": color, "linewidth": 0.9 if hollow else 0}
    axes.bar(place.centers, -_BAR * reading.shares / scale, _WIDE_BAR, bottom=floor, **fill)
    for at in _largest(reading.shares):
        y = floor - _BAR * reading.shares[at] / scale - 6
        axes.text(place.centers[at], y, f"{reading.shares[at]:.0%}", ha="center", va="center", fontsize=7)


def _table(sentence, swatch):
    place, scale = layout(sentence.words, sentence.heads), _scale(sentence)
    rows = [(f"right answer<small>{escape(sentence.truth)}</small>", _tree_svg(sentence, place))]
    for reading in sentence.readings:
        label = swatch(reading.index) + escape(reading.label).replace("_", "_<wbr>")
        rows.append((f"{label}<small>{_answer(reading)}</small>", _bars_svg(sentence, reading, place, scale)))
    body = "".join(f'<tr><th scope="row">{head}</th><td>{svg}</td></tr>' for head, svg in rows)
    return (
        '<div class="table sentence" tabindex="0" role="region" aria-label="A sentence and where models look in it">'
        f"<table><tbody>{body}</tbody></table></div>"
    )


def _answer(reading):
    mark, word, style = ("✓", "right", "") if reading.right else ("✗", "wrong", ' class="bad"')
    told = f'<span aria-hidden="true">{mark}</span><span class="unseen">{word}:</span> {escape(reading.answer)}'
    return f"<span{style}>{told}, {reading.confidence:.0%}</span>"


def _tree_svg(sentence, place):
    parts, ours = [], []
    for head, dependent, level in place.arcs:
        d = "M{} L{} Q{} {} L{} Q{} {} L{}".format(
            *(f"{x:.1f} {y:.1f}" for x, y in place.corners(head, dependent, level))
        )
        x, y = place.centers[dependent], place.base
        drawn = f'<path d="{d}"/><path class="tip" d="M{x - 3:.1f} {y - 6:.1f}h6l-3 6z"/>'
        (ours if sentence.asked in (head, dependent) else parts).append(drawn)
    roots = [at for at, head in enumerate(sentence.heads) if head == -1]
    parts += [f'<path d="M{place.centers[at]:.1f} 12V{place.base:.1f}" stroke-dasharray="2 3"/>' for at in roots]
    notes = "".join(f'<text class="note" x="{place.centers[at]:.1f}" y="9">root</text>' for at in roots)
    height = place.base + _BASELINE
    words = "".join(_word_svg(word, at == sentence.asked, place, at) for at, word in enumerate(sentence.words))
    alt = f"{' '.join(sentence.words)} In question: {sentence.words[sentence.asked]}. " + _tree_words(sentence)
    direction = ' direction="rtl"' if place.backwards else ""
    return _svg(
        place.width,
        height,
        alt,
        f'<g class="tree">{"".join(parts)}</g><g class="tree ours">{"".join(ours)}</g>{notes}<g{direction}>{words}</g>',
    )


def _word_svg(word, asked, place, at):
    x, y = place.centers[at], place.base + 18
    frame = ""
    if asked:
        left, wide = x - place.rooms[at] / 2 + 2, place.rooms[at] - 4
        frame = f'<rect class="frame" x="{left:.1f}" y="{place.base + 3:.1f}" width="{wide:.1f}" height="21" rx="4"/>'
    shown = short(word)
    full = f"<title>{escape(word)}</title>" if shown != word else ""
    return f'{frame}<text x="{x:.1f}" y="{y:.1f}">{escape(shown)}{full}</text>'


def _tree_words(sentence):
    edges = (
        f"{word} is the root" if head == -1 else f"{word} under {sentence.words[head]}"
        for word, head in zip(sentence.words, sentence.heads, strict=True)
    )
    return f"Tree: {', '.join(edges)}."


def _bars_svg(sentence, reading, place, scale):
    center, room = place.centers[sentence.asked], place.rooms[sentence.asked] - 4
    band = f'<rect class="band" x="{center - room / 2:.1f}" y="-{_ROW}" width="{room:.1f}" height="{2 * _ROW}"/>'
    line = f'<path class="line" d="M0 {_ROW - 1}H{place.width:.1f}"/>'
    if reading.shares is None:
        alt = f"{reading.label}: its attention weights are no shares"
        return _svg(place.width, _ROW, alt, f'{band}{line}<text class="note start" x="8" y="32">no shares</text>')
    heights = _BAR * reading.shares / scale
    bars = "".join(
        f"M{x - _WIDE_BAR / 2:.1f} {_ROW - 1}v{-high:.1f}h{_WIDE_BAR}v{high:.1f}z"
        for x, high in zip(place.centers, heights, strict=True)
    )
    color = f"var(--s{reading.index % len(PALETTE)})"
    look = f"fill: var(--card); stroke: {color}" if reading.index >= len(PALETTE) else f"fill: {color}"
    largest = _largest(reading.shares)
    texts = {at: f"{reading.shares[at]:.0%}" for at in largest}
    numbers = "".join(
        f'<text class="share" x="{place.centers[at]:.1f}" y="{_ROW - 5 - heights[at]:.1f}">{text}</text>'
        for at, text in texts.items()
    )
    told = ", ".join(f"{sentence.words[at]} {text}" for at, text in texts.items()) or "many words alike"
    alt = f"{reading.label} looks from {sentence.words[sentence.asked]} to: {told}"
    drawn = f'<path d="{bars}" style="{look}"/>'
    return _svg(place.width, _ROW, alt, f"{band}{line}{drawn}{numbers}")


def _svg(width, height, alt, body):
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {size} role="img" aria-label="{escape(alt)}">{body}</svg>'


def _mpl_path(corners):
    from matplotlib.path import Path

    move, line, curve = Path.MOVETO, Path.LINETO, Path.CURVE3
    return Path(corners, [move, line, curve, curve, line, curve, curve, line])


def _scale(sentence):
    """The largest share of all readings, which the highest bar stands for."""
    return max((float(r.shares.max()) for r in sentence.readings if r.shares is not None), default=1.0) or 1.0


def _largest(shares):
    """The words whose shares are written out."""
    return [int(at) for at in np.argsort(-shares, kind="stable")[:_WRITTEN] if shares[at] >= _LEAST]
