"""How every figure looks: palette, type, and the two forms it is saved in."""

import functools
import io
import re
import warnings
from pathlib import Path

# Okabe and Ito's colour-blind-safe palette, https://jfly.uni-koeln.de/color, without the yellow and black that vanish
# on one of the two page backgrounds. Past six variants the colours repeat with dashed lines and hollow markers.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX<>ph*"
INK, MUTED, FAINT, PAPER = "#1f2328", "#667085", "#e4e7ec", "#ffffff"
PAGE_COLORS = {INK: "--ink", MUTED: "--muted", FAINT: "--line", PAPER: "--card"} | {
    color: f"--s{i}" for i, color in enumerate(PALETTE)
}
LONGEST_LABEL = 28
LOOK = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": FAINT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 1.2,
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, sharp
    "text.color": INK,
    "text.parse_math": False,  # a label may hold a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def styled(function):
    """Runs `function` under our look, which matplotlib reads when it draws as well as when it creates."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(LOOK), warnings.catch_warnings():
            # Words in a script that the font lacks: boxes in the file, while the page has its reader's fonts.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            return function(*args, **kwargs)

    return run


def new_figure(width, height):
    """A figure of this size in inches, and its axes."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def series(i, line=False, ms=4.5):
    """Colour, marker and dash of the i-th variant, as keyword arguments of a plot."""
    color, repeat = PALETTE[i % len(PALETTE)], i // len(PALETTE)
    return {
        "color": color,
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": ms,
        "markerfacecolor": color if repeat == 0 else PAPER,
        "linestyle": ("-", "--", ":")[repeat % 3] if line else "none",
    }


def key_svg(i: int) -> str:
    """The i-th variant's line and marker as a small SVG element, for a legend in the page's own text."""
    from matplotlib.markers import MarkerStyle

    style, drawn = MarkerStyle(MARKERS[i % len(MARKERS)]), series(i, line=True)
    outline = style.get_path().transformed(style.get_transform()).to_polygons()[0]
    points = " ".join(f"{8 * x:.1f},{-8 * y:.1f}" for x, y in outline)
    color = f"var(--s{i % len(PALETTE)})"
    fill = color if drawn["markerfacecolor"] == drawn["color"] else "var(--card)"
    dash = {"-": "none", "--": "7 4", ":": "2 3"}[drawn["linestyle"]]
    return (
        f'<svg class="line" viewBox="-16 -6 32 12" aria-hidden="true"><g style="stroke: {color}; stroke-width: 2">'
        f'<path d="M-16 0H16" stroke-dasharray="{dash}"/><polygon points="{points}" style="fill: {fill}"/></g></svg>'
    )


@styled
def save_png(figure, path: Path) -> None:
    """Writes the figure at a resolution that also prints well."""
    figure.savefig(path, dpi=180)
    figure.set_layout_engine("none")  # it is laid out now; the SVG need not do it again


@styled
def to_svg(figure, name: str) -> str:
    """The figure as an SVG element for an HTML page: colours follow the page's light and dark variables.

    Args:
      figure: what one of the functions above returned.
      name: seeds the ids inside, so that two figures on one page never share one.
    """
    import matplotlib

    out = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    # matplotlib numbers its groups from 1 in every figure, and HTML needs neither the ids nor the XML name spaces.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg .*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"(font-size: [\d.]+px; )?font-family: [^;]*;", lambda m: m[1] or "", text)
    return re.sub("|".join(PAGE_COLORS), lambda m: f"var({PAGE_COLORS[m[0]]})", re.sub(r"\s+", " ", text))


def shorten(label: str, longest: int = LONGEST_LABEL) -> str:
    """The label, with its middle left out where it is longer than `longest`.

    >>> shorten("sparse_transformer_fixed_stride_32", 20)
    'sparse_tr…_stride_32'
    """
    if len(label) <= longest:
        return label
    head = (longest - 1) // 2
    return f"{label[:head]}…{label[head + 1 - longest :]}"
