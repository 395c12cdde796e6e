"""The report of image models: what they look at and answer, what a patch sees, speeds in images."""

import base64
import csv
import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_report import Page, make, make_curves

from attention.axial import axial_attention
from attention.swin import shifted_window_attention
from experiment import gallery, patterns
from experiment.report import print_table, write_csv, write_report

PIXELS = 7 * 7
VIT, SWIN, AXIAL = {"name": "vit", "pool": "mean"}, {"name": "swin"}, {"name": "axial", "stem": "patch"}
SHIFTED = {"name": "shifted_window", "window": 4, "shift": 1, "relative_bias": 1}


def image_comparison(labels=("full", "window", "linear"), classes=("cat", "<dog>", "fox")):
    comparison = make(labels)
    comparison |= {"task": "images", "unit": {"name": "images", "tokens": PIXELS}}
    comparison |= {"metric": {"name": "validation accuracy", "higher_is_better": True}, "baselines": {"majority": 0.1}}
    comparison["data"] = {"classes": list(classes)}
    kinds = (("vit", {"name": "full"}), ("swin", SHIFTED), ("axial", {"name": "axial", "span": 0}))
    for v, (model, attention) in zip(comparison["variants"], kinds, strict=False):
        v |= {"model": model, "attention": attention}
    return comparison


def config(comparison):
    changes = {v["name"]: {"model": {"name": v["model"]}} for v in comparison["variants"]}
    return {"data": {"name": "digits", "image_size": 7}, "model": {"name": "vit", "pool": "mean"}, "variants": changes}


def classified(comparison, answers=(0, 2)):
    maps = np.full((2, 4, 4), 1 / 16)
    maps[1] = np.eye(4) / 4
    images = np.linspace(0, 1, 2 * PIXELS).reshape(2, 7, 7, 1)
    arrays = {"images": images, "labels": np.array([0, 1]), "answers": np.array(answers), "maps": maps}
    return {v["name"]: arrays | {"confidence": np.array([0.875, 0.5])} for v in comparison["variants"]}


def segmented(comparison):
    labels = np.arange(2 * PIXELS).reshape(2, 7, 7) % 3
    arrays = {"images": np.random.default_rng(0).random((2, 7, 7, 3)), "labels": labels, "answers": labels}
    return {v["name"]: arrays for v in comparison["variants"]}


def render(folder, comparison, pictures, curves):
    path = write_report(folder, comparison, curves, config(comparison), pictures)
    return path.read_text(encoding="utf-8")


def told(html):
    return " ".join(" ".join(Page(html.replace("<wbr>", "")).text).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder, comparison = tmp_path_factory.mktemp("images"), image_comparison()
    return folder, render(folder, comparison, classified(comparison), make_curves(comparison))


# Pictures.


def test_every_answer_is_marked_in_words_not_by_colour_alone(page):
    _, html = page
    rows = re.findall(r'<tr><th scope="row">(?:(?!</tr>).)*<img.*?</tr>', html, flags=re.S)
    assert len(rows) == 4 and "image" in rows[0] and "right" not in rows[0]
    for name, row in zip(("full", "window", "linear"), rows[1:], strict=True):
        assert name in row and row.count("✓") == row.count("✗") == 1
        assert re.search(r"right:</span> cat\n88%.*wrong:</span> fox\n50%", row, flags=re.S)
    assert "<dog>" not in html and "&lt;dog&gt;" in rows[0]


def test_pictures_need_no_network_and_say_what_they_show(page):
    folder, html = page
    images = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]{10,})">', html)
    assert len(images) == html.count("<img") == 4 * 2 + 1  # a row for the data, one a variant, and the scale
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data, _ in images]
    assert sizes == 8 * [(7, 7)] + [(96, 2)]
    assert images[2][1] == "full on the cat: most attention in the upper left, up to 1.0 times an even share"
    assert "most attention in the upper left, up to 4.0 times" in images[3][1]
    text = told(html)
    assert "Abnar and Zuidema 2020" in text and "1/32× even share 32×" in text
    assert (folder / "figures" / "attention.png").read_bytes()[:4] == b"\x89PNG"
    assert not (folder / "figures" / "segmentation.png").exists()


def test_the_heat_map_tells_shares_and_covers_the_patches_of_a_padded_image():
    dark = np.zeros((7, 5, 1))
    even = gallery.heat(dark, np.full((4, 3), 1 / 12), 4.0)
    assert even.shape == (7, 5, 3) and len(np.unique(even.reshape(-1, 3), axis=0)) == 1
    share = np.full((4, 3), 1e-12)
    share[3, 2] = 1.0  # the last patch: one pixel of it lies in the image
    colors = gallery.heat(dark, share, 4.0)
    assert (colors[6, 4] != colors[0, 0]).any() and (colors.reshape(-1, 3) != colors[0, 0]).any(1).sum() == 1
    assert gallery.heat(np.ones((7, 5, 1)), share, 4.0).sum() > colors.sum()  # the image shows through


def test_one_scale_reaches_all_maps():
    narrow, wide = np.full((1, 2, 2), 0.25), np.array([[[0.7, 0.1], [0.1, 0.1]]])
    assert gallery.reach_of([narrow]) == 2
    assert gallery.reach_of([narrow, wide]) == 4
    assert gallery.reach_of([np.eye(64)[None]]) == 32


def test_a_segmentation_shows_truth_answers_and_classes(tmp_path):
    comparison = image_comparison()
    pictures = segmented(comparison)
    wrong = pictures["full"]["labels"].copy()
    wrong[0, 0, 0] = 1 - wrong[0, 0, 0]
    pictures["window"] = pictures["window"] | {"answers": wrong}
    html = render(tmp_path, comparison, pictures, curves={})
    text = told(html)
    assert "truth" in text and text.count("IoU 1.00") == 5 and text.count("IoU 0.9") == 1
    assert 'alt="window on image 1: cat, &lt;dog&gt;, fox"' in html
    assert all(f"background: {color}" in html for color in gallery.CLASS_COLORS[:3])
    assert (tmp_path / "figures" / "segmentation.png").exists()


def test_mean_iou_is_the_definition():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 4, (2, 5, 7))
    ratios = []
    for c in range(4):
        both = sum((x == c) and (y == c) for x, y in zip(labels.flat, answers.flat, strict=True))
        one = sum((x == c) or (y == c) for x, y in zip(labels.flat, answers.flat, strict=True))
        ratios.append(both / one)
    assert gallery.mean_iou(labels, answers) == pytest.approx(np.mean(ratios))


def test_twenty_classes_have_twenty_colours():
    labels = np.arange(20).reshape(1, 4, 5)
    arrays = {"images": np.zeros((1, 4, 5, 1)), "labels": labels, "answers": labels}
    found = gallery.gallery({"variants": [{"name": "x"}]}, {"x": arrays})
    assert len({color for _, color in found.legend}) == 20
    assert [name for name, _ in found.legend] == [str(c) for c in range(20)]
    assert len(np.unique(found.rows[1][2][0].pixels.reshape(-1, 3), axis=0)) == 20


def test_large_images_are_thinned_out():
    arrays = {"images": np.zeros((1, 300, 200, 3)), "labels": [0], "answers": [0], "confidence": [1.0]}
    found = gallery.gallery({"variants": [{"name": "x"}]}, {"x": arrays | {"maps": np.full((1, 3, 2), 1 / 6)}})
    assert {cell.pixels.shape for _, _, cells in found.rows for cell in cells} == {(100, 67, 3)}


def test_a_variant_without_pictures_has_no_row_and_broken_ones_cost_no_report(tmp_path):
    comparison = image_comparison()
    pictures = classified(comparison)
    del pictures["window"]
    names = [name for name, _, _ in gallery.gallery(comparison, pictures).rows]
    assert names == ["image", "full", "linear"]
    assert gallery.gallery(comparison, {}) is None
    pictures["full"] = {"images": pictures["full"]["images"]}
    pictures["linear"] = {"maps": np.ones((2, 3, 3))}
    assert "Pictures not available (KeyError" in told(render(tmp_path, comparison, pictures, curves={}))


@pytest.mark.parametrize("without", [["linear"], ["full", "window", "linear"]])
def test_a_variant_whose_weights_are_no_shares_has_plain_images_and_a_word_why(tmp_path, without):
    comparison = image_comparison()
    pictures = classified(comparison)
    for name in without:
        del pictures[name]["maps"]
    found = gallery.gallery(comparison, pictures)
    data, *rows = [cells for _, _, cells in found.rows]
    for name, cells in zip(("full", "window", "linear"), rows, strict=True):
        assert [(cell.text, cell.right) for cell in cells] == [("cat\n88%", True), ("fox\n50%", False)]
        plain = [np.array_equal(cell.pixels, one.pixels) for cell, one in zip(cells, data, strict=True)]
        assert plain == [name in without] * 2
    html = render(tmp_path, comparison, pictures, curves={})
    assert f"No heat for {', '.join(without)}: in some layer the weights of a query are below 0" in told(html)
    assert html.count("no map: its attention weights are no shares") == 2 * len(without)
    assert ('<div class="scale">' in html) == (len(without) == 1)
    assert (tmp_path / "figures" / "attention.png").exists()


# Units and words.


def test_speeds_are_told_in_images(page):
    folder, html = page
    text = told(html)
    assert "<h1>Three image models on digits</h1>" in html
    assert "tokens" not in text.replace("--config", "")
    assert "images/s" in text and "linear trains fastest, at 210 images per second" in text  # 10300 / 49
    assert "120 steps, 5.02k images each" in text  # 120 * 2048 / 49
    assert "over images" in text and "over the same images or seeds" in text and "file" not in text
    assert "Cost against image size" in text and "patches, T = rows × columns" in text


def test_the_terminal_shows_images_and_the_csv_keeps_tokens(tmp_path):
    comparison = image_comparison()
    console = Console(width=200, record=True, file=io.StringIO())
    print_table(comparison, console)
    text = console.export_text()
    assert "images/s" in text and "tokens" not in text and re.search(r"^ *linear .* 210 ", text, flags=re.M)
    with write_csv(tmp_path, comparison).open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["linear"]["train_tokens_per_second"]) == 10300.0


# What one patch sees.


def seen(settings, model, size):
    return patterns.grid_patterns("x", settings, model, size)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 13])
def test_shifted_windows_are_those_that_the_published_mask_leaves(size):
    """The mask of the authors' code: regions of the rolled, padded image, cut into windows."""
    pictures, window, shift = seen(SHIFTED, SWIN, size), 4, 2
    query = pictures[0].query
    if size <= window:
        assert len(pictures) == 1 and pictures[0].allowed.all()
        return
    padded = -(-size // window) * window
    for picture, moved in zip(pictures, (0, shift), strict=True):
        region = np.zeros((padded, padded, 4), int)
        if moved:
            for axis, index in enumerate(np.indices((padded, padded))):
                region[..., axis] = (index >= padded - window).astype(int) + (index >= padded - moved)
        region[..., 2:] = np.stack(np.indices((padded, padded)), -1) // window
        region = np.roll(region, (moved, moved), (0, 1))[:size, :size]
        np.testing.assert_array_equal(picture.allowed, (region == region[query]).all(-1))
    assert [p.label for p in pictures] == ["x", "x, shifted"]


def test_the_pictures_are_where_the_function_attends():
    size = 6
    zeros, value = jnp.zeros((size, size, 1, 1)), jnp.eye(size * size).reshape(size, size, 1, -1)
    for picture, shift in zip(seen(SHIFTED, SWIN, size), (0, 2), strict=True):
        weights = shifted_window_attention(zeros, zeros, value, window=4, shift=shift)[picture.query][0]
        np.testing.assert_array_equal(picture.allowed.ravel(), weights > 0)
    (picture,) = seen({"name": "axial", "span": 3}, AXIAL, size)
    columns, rows = (axial_attention(zeros[None], zeros[None], value[None], axis=a, span=3)[0] for a in (1, 2))
    attended = (columns[picture.query][0] > 0) | (rows[picture.query][0] > 0)
    np.testing.assert_array_equal(picture.allowed.ravel(), attended)


def test_no_shift_is_one_picture():
    (picture,) = seen(SHIFTED | {"shift": 0}, SWIN, 8)
    assert picture.allowed.sum() == 16 and picture.note == "16 of 64 patches, in every layer"


@pytest.mark.parametrize(("model", "words"), [(VIT, "half of the heads"), (AXIAL, "column first, then row")])
def test_axial_sees_its_row_and_column(model, words):
    (picture,) = seen({"name": "axial"}, model, 7)
    row, column = picture.query
    assert picture.allowed[row].all() and picture.allowed[:, column].all() and picture.allowed.sum() == 13
    assert words in picture.note
    (near,) = seen({"name": "axial", "span": 3}, model, 7)
    assert near.allowed.sum() == 5 and near.allowed[row, column - 1 : column + 2].all()


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_sequence_variant_sees_its_neighbours_in_reading_order(pool):
    (picture,) = seen({"name": "window", "window": 3}, VIT | {"pool": pool, "registers": 2}, 5)
    near = np.abs(np.arange(25) - np.ravel_multi_index(picture.query, (5, 5))) <= 3
    np.testing.assert_array_equal(picture.allowed.ravel(), near)


def test_the_grid_follows_the_patches():
    grids = [VIT | {"patch_size": 4}, VIT | {"patch_size": 0}, {"name": "axial", "stem": "conv"}]
    sides = [seen({"name": "axial"}, model, 30)[0].allowed.shape[0] for model in grids]
    assert sides == [8, 15, 8]


def test_a_grid_window_holds_its_query():
    (picture,) = seen({"name": "grid_window", "window": 3}, VIT, 7)
    assert picture.query == (2, 2) and picture.allowed[:3, :3].all() and picture.allowed.sum() == 9


@pytest.mark.parametrize(
    "settings", [{}, {"name": "no_such"}, {"name": "shifted_window"}, {"name": "grid_window", "window": "wide"}]
)
def test_what_cannot_be_drawn_becomes_a_note(settings):
    (picture,) = seen(settings, VIT, 8)
    assert picture.allowed is None and picture.note.startswith("mask not available (")


def test_what_has_no_fixed_pairs_says_what_a_query_sees():
    (picture,) = seen({"name": "linear", "chunk_size": 64, "feature_map": "elu_plus_one"}, VIT, 8)
    assert picture.allowed is None and picture.note.startswith("no mask to draw: all keys")


def test_the_page_draws_grids_with_their_query(page):
    _, html = page
    section = html[html.index('<section id="masks">') : html.index('<section id="method">')]
    assert "What one patch sees" in section and section.count("<circle") == section.count("<figure>") == 4
    assert all(
        label in section for label in ("<b>full</b>", "<b>window</b>", "<b>window, shifted</b>", "<b>linear</b>")
    )
    assert len(re.findall(r'aria-label="What a query sees in [^"]+ of 49 patches', section)) == 4
