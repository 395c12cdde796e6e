"""report.html: one self-contained page that a person enjoys reading, and the figures as files."""

import json
from dataclasses import replace
from html import escape
from pathlib import Path

from experiment import figures, gallery, look, patterns, sentences
from experiment.findings import (
    compact,
    findings,
    in_units,
    listed,
    metric_name,
    not_better_than_baseline,
    number,
    pieces,
    ranking,
    with_error,
)
from experiment.page import section, whole_page
from experiment.report_charts import sections
from experiment.report_groups import details_section, group_sections
from experiment.report_table import results_table, swatch
from experiment.table import PEAK_MEMORY, TIME_EXPONENT, TRAIN_SPEED, print_table, write_csv
from experiment.wording import unit, wording

__all__ = ["print_table", "write_csv", "write_report"]

_SPENT = "step", "tokens"  # the columns of metrics.jsonl that count up
_COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
_TIMES = (
    "Medians after a warm-up. Compilation and evaluation are excluded, and every timing waits until the device has "
    "finished its work. Times belong to this machine and what else it was doing; compare them within this page only."
)
_MEMORY = "Arguments, results and temporaries of the compiled training step, as the compiler plans them."
_SCALING = (
    "One attention layer of each variant on its own, projections included, {growing}; temporary memory is "
    "what the compiled training pass sets aside besides its arguments and results. An exponent is the slope of the "
    "line fitted to the longer half on log axes: 1 means twice the {size} costs twice as much, 2 means four times."
)
_ROLLOUT = (
    "Attention rollout (Abnar and Zuidema 2020) follows the attention weights from the last layer back to the image: "
    "each layer's weights, averaged over heads and mixed half and half with the path around the layer, multiplied "
    "together. What comes out is the share of each patch in what the model reads its answer from, here as a multiple "
    "of an even share, on one scale for all models and images. It shows where a model looked, not why it answered: "
    "what values, MLPs and convolutions make of a patch, and whether it spoke for the answer or against it, does not "
    "enter."
)
_PAIRS = (
    "A row is a query, a column a key, a coloured cell a pair that may attend. Each pattern is scaled down to "
    f"{patterns.SIDE} tokens, proportions kept."
)
_SHARES = (
    "Attention tells where a model looked, not why it answered: what values and MLPs make of a word, and whether it "
    "spoke for the answer or against it, does not enter."
)
# What the data call a tree -> the words.
_TREES = {
    "labelled": "the annotators' dependency tree",
    "unlabelled": "the annotators' dependency tree",
    "predicted": "the dependency tree that a parser predicted",
}
_GRIDS = (
    "The grid of patches of the first layers, at training size. The dot is one query near the middle, a coloured cell "
    "what it may attend to in one layer."
)
_ERROR_BARS = (
    "One standard error, over {over}. Two results count as resolved when they differ by more than two standard errors "
    "of the difference. That error is paired, over the same {pieces} or seeds, where the comparison recorded it; else "
    "the two errors count as independent: cautious."
)
_FLOPS = "Operations in the matrix products of one training step, loops counted as often as they run."


def write_report(
    workdir: Path, comparison: dict, curves: dict[str, dict[int, list[dict]]], config, pictures: dict | None = None
) -> Path:
    """Writes `figures/*.png` and `report.html` and returns the page's path.

    The page needs no network: figures stand in it as SVG, style and script are its own.

    Args:
      workdir: folder of the comparison; exists.
      comparison: the content of comparison.json.
      curves: `curves[label][seed]`, the rows of metrics.jsonl.
      config: the run's config, a ConfigDict or nested mapping; `config["data"]["length"]` is the training length, or
        `config["data"]["image_size"]` the side of the training images.
      pictures: `pictures[label]`, what the task's `pictures` gave of each model; see `gallery.gallery`.

    Returns:
      `workdir / "report.html"`.
    """
    folder = Path(workdir) / "figures"
    folder.mkdir(exist_ok=True)
    settings = json.loads(config.to_json_best_effort()) if hasattr(config, "to_json_best_effort") else dict(config)
    masks = _masks(comparison, settings)
    shown, seen = _shown(comparison, pictures or {})
    for name, figure in {"masks": figures.masks(masks), **seen}.items():
        if figure is not None:
            look.save_png(figure, folder / f"{name}.png")
    title = _title(comparison, settings)
    body = [
        _lead(comparison, curves, settings, title),
        _cards(comparison),
        section("results", "Results", "Click a column to sort by it.", results_table(comparison)),
        details_section(comparison),
        *group_sections(comparison, folder),
        shown,
        *sections(comparison, curves, folder),
        _mask_section(masks),
        _method_section(comparison, settings),
    ]
    path = Path(workdir) / "report.html"
    path.write_text(whole_page(title, body, comparison), "utf-8")
    return path


def _masks(comparison, settings):
    """(i, `patterns.Pattern`) of each picture of the i-th variant's mask."""
    size, sees = _size(comparison, settings), wording(comparison).sees
    if size is None or not sees:
        return []
    model, found = settings.get("model") or {}, []
    for i, variant in enumerate(comparison["variants"]):
        name, attention = variant["name"], variant.get("attention") or {}
        if sees == "grid":
            own = ((settings.get("variants") or {}).get(name) or {}).get("model") or {}
            kind = {"name": variant["model"]} if variant.get("model") else {}
            found += [(i, p) for p in patterns.grid_patterns(name, attention, {**model, **own, **kind}, size)]
        else:
            causal = model.get("name", "transformer") == "transformer"
            found.append((i, patterns.pattern(name, attention, size, causal)))
    return _merged(found)


def _merged(found):
    """Equal pictures as one under all their labels, such as those of variants that differ in positions alone."""
    alike = {}
    for i, picture in found:
        cells = None if picture.allowed is None else (picture.allowed.shape, picture.allowed.tobytes())
        alike.setdefault((cells, picture.note, picture.query), []).append((i, picture))
    return [
        (some[0][0], replace(some[0][1], label=", ".join(picture.label for _, picture in some)))
        for some in alike.values()
    ]


def _size(comparison, settings):
    """Tokens, or pixels along a side, of a training example; the config's 0 stands for what the data have."""
    if wording(comparison).sees != "grid":
        return number(settings, "data", "length")
    return number(settings, "data", "image_size") or number(comparison, "data", "image_size")


def _title(comparison, settings):
    count, data = len(comparison["variants"]), settings.get("data") or {}
    # The user's own text is named by its file or folder.
    name, task = Path(data.get("path") or "").name or data.get("name"), comparison["task"]
    topic = wording(comparison).topic.format(name=name, task=task) if name else task
    if count == 1:
        return f"{comparison['variants'][0]['name']} on {topic}"
    return f"{_COUNTS[count] if count < len(_COUNTS) else count} {wording(comparison).compared} on {topic}"


def _lead(comparison, curves, settings, title):
    seeds = max((len(seeds) for seeds in curves.values()), default=0)
    better = "higher" if comparison["metric"]["higher_is_better"] else "lower"
    budget = _budget(comparison, curves, settings) + (f", {seeds} seeds" if seeds > 1 else "")
    unseen = f" on {wording(comparison).unseen}" if "validation" in comparison["metric"]["name"] else ""
    what = (
        f"{budget}. The score is {metric_name(comparison)}{unseen}; {better} is better. "
        f"Measured on {comparison['device']}."
    )
    troubled = {"Failed"} | ({"Baselines"} if not_better_than_baseline(comparison) else set())

    def tone(topic):
        return "warn" if topic in troubled else "plain"

    told = "".join(
        f'<dt>{topic}</dt><dd class="{tone(topic)}">{escape(text)}</dd>' for topic, text in findings(comparison)
    )
    return (
        f'<header><p class="kicker">Attention comparison</p><h1>{escape(title)}</h1>'
        f'<p class="what">{escape(what)}</p></header>\n<dl class="findings">{told}</dl>'
    )


def _budget(comparison, curves, settings):
    """What every variant was given, and with early stopping what it took of it."""
    runs = [run for seeds in curves.values() for run in seeds.values()]
    steps, tokens = ([max((number(row, key) or 0 for row in run), default=0) for run in runs] for key in _SPENT)
    same = "All had the same data, the same order and the same budget" if len(comparison["variants"]) > 1 else "Budget"
    if not max(steps, default=0) or not max(tokens):
        return same
    if (patience := number(settings, "train", "patience")) and min(steps) < max(steps):
        taken = f"{min(steps):,} to {max(steps):,} steps"
        return f"{same}; training stopped {patience} evaluations after the last improvement: {taken}"
    return f"{same}: {max(steps):,} steps, {compact(in_units(comparison, max(tokens)))} {unit(comparison)} each"


def _cards(comparison):
    ranked = ranking(comparison)
    if len(ranked) < 2:
        return ""
    cards = [("Best quality", ranked[0], f"{with_error(ranked[0])} {metric_name(comparison)}")]
    for title, column, words in (
        ("Fastest in training", TRAIN_SPEED.within(comparison), f"{{}} {unit(comparison)} per second"),
        ("Least peak memory", PEAK_MEMORY, "{} MB"),
        ("Slowest growth of time", TIME_EXPONENT, f"proportional to {wording(comparison).letter}^{{}}"),
    ):
        known = [v for v in ranked if column.of(v) is not None]
        if known:
            best = max(known, key=lambda v: column.better * column.of(v))
            cards.append((title, best, words.format(column.text(best))))
    return f'<div class="cards">{"".join(_card(comparison, *card) for card in cards)}</div>'


def _card(comparison, title, variant, text):
    name = swatch(comparison, variant) + escape(variant["name"])
    return f'<div class="card"><p>{title}</p><p class="name">{name}</p><p>{escape(text)}</p></div>'


def _shown(comparison, pictures):
    """(section, {name: figure}) of what the task's `pictures` gave, empty where it gave none."""
    try:
        if any("words" in arrays for arrays in pictures.values()):
            return _shown_sentences(comparison, pictures)
        return _shown_images(comparison, pictures)
    except (LookupError, TypeError, ValueError) as error:  # a picture must not cost a finished comparison its report
        hint = escape(f"Pictures not available ({type(error).__name__}: {error}).")
        return section("pictures", "What the models see", hint, ""), {}


def _shown_sentences(comparison, pictures):
    found = sentences.sentences(comparison, pictures)
    body = sentences.to_html(found, lambda i: swatch(comparison, comparison["variants"][i]))
    tree = _TREES.get((comparison.get("data") or {}).get("tree"), "its dependency tree")
    hint = (
        f"A validation sentence under {tree}, an arrow from each head to its dependent. The framed word is "
        "the one in question. Bars are the share of its attention that each word gets, mean over heads and layers, on "
        "one scale for all models; the largest are written out."
    )
    told = f'<p class="key prose">{_SHARES}</p>'
    return section("pictures", "Where each model looks", hint, body + told), {"sentence": sentences.to_figure(found[0])}


def _shown_images(comparison, pictures):
    found = gallery.gallery(comparison, pictures)
    if not found:
        return "", {}
    body = gallery.to_html(found, lambda i: swatch(comparison, comparison["variants"][i]))
    if found.kind == "attention":
        title, told = "What each model looks at", f'<p class="key prose">{_ROLLOUT}</p>'
        hint = "Validation images under each model's attention, and its answer with the confidence it had."
    else:
        title, told = "What each model makes of a scene", ""
        hint = (
            "Validation images, the true class of every pixel, and what each model answered; IoU is intersection over "
            "union, the mean over the classes in the image or the answer."
        )
    return section("pictures", title, hint, body + told), {found.kind: gallery.to_figure(found)}


def _mask_section(pictures):
    if not pictures:
        return ""
    on_grid = any(picture.query for _, picture in pictures)
    shown, told, what = [], [], "What a query sees in" if on_grid else "Mask of"
    for i, picture in pictures:
        label, note = escape(picture.label), escape(picture.note)
        if picture.allowed is None:
            told.append(f"<dt>{label}</dt><dd>{note}</dd>")
            continue
        svg = patterns.to_svg(picture, f"var(--s{i % len(look.PALETTE)})")
        image = f'<div role="img" aria-label="{what} {label}: {note}">{svg}</div>'
        shown.append(f"<figure>{image}<figcaption><b>{label}</b>{note}</figcaption></figure>")
    title = "What one patch sees" if on_grid else "Who may attend to whom"
    hint = _GRIDS if on_grid else _PAIRS
    drawn = f'<div class="masks">{"".join(shown)}</div>' if shown else ""
    words = f'<dl class="facts">{"".join(told)}</dl>' if told else ""
    return section("masks", title, hint if shown else "", drawn + words)


def _method_section(comparison, settings):
    over = {number_of for v in ranking(comparison) if (number_of := v["quality"].get("stderr_over"))}
    over = {pieces(comparison) if name == "files" else name for name in over}
    words = wording(comparison)
    versions = comparison.get("versions") or {}
    facts = {
        "Command": f"<code>{escape(str(comparison.get('command') or 'not recorded'))}</code>",
        "Date": escape(str(comparison.get("date") or "not recorded")),
        "Device": escape(str(comparison["device"])),
        "Versions": escape(", ".join(f"{name} {version}" for name, version in versions.items())) or "not recorded",
        "Error bars": escape(
            _ERROR_BARS.format(over=listed(sorted(over)) or "an unrecorded source", pieces=pieces(comparison))
        ),
        "Times": _TIMES,
        "Peak memory": _MEMORY,
        words.cost: _SCALING.format(growing=words.growing, size=words.size),
        "FLOPs": _FLOPS,
    }
    told = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    lines = escape("\n".join(_flat(settings)))
    config = f"<details><summary>The exact config</summary><pre>{lines}</pre></details>"
    return section("method", "How this was measured", "", f'<dl class="facts">{told}</dl>{config}')


def _flat(settings, prefix="config"):
    """The config as the flags that would set it.

    >>> list(_flat({"seed": 0, "model": {"width": 128}}))
    ['--config.seed=0', '--config.model.width=128']
    """
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"--{prefix}.{name}={value}"
