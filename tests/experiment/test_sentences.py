"""Sentences in the report: trees without crossed lines, bars as high as the shares, words that cannot break the page."""

import re
from html import unescape

import numpy as np
import pytest
from test_report import CONFIG, Page, make, make_curves

from experiment import look, sentence_layout, sentences
from experiment.report import _shown_sentences, write_report

ENGLISH = "The <b>keys</b> to the cabinet are & Donaudampfschifffahrtsgesellschaftskapitän .".split()
HEADS = [1, 5, 4, 4, 1, -1, 7, 5, 5]
ARABIC = "السيارات التي اشتراها الرجل قديمة".split()
SHARES = np.array([0.01, 0.5, 0.02, 0.03, 0.25, 0.1, 0.06, 0.02, 0.01])


def pictured(comparison, answers=(0, 1, 1)):
    """Arrays of three sentences, padded to the longest: labels plural, plural, singular."""
    words, heads, attention = np.full((3, 9), "", "<U60"), np.full((3, 9), -2), np.zeros((3, 9), np.float32)
    for n, (row, tree) in enumerate([(ENGLISH, HEADS), (ARABIC, [4, 2, 0, 2, -1]), (["Go", "!"], [-1, 0])]):
        words[n, : len(row)], heads[n, : len(row)] = row, tree
        attention[n, : len(row)] = SHARES if n == 0 else 1 / len(row)
    arrays = {"words": words, "heads": heads, "asked": np.array([5, 4, 0]), "attention": attention}
    arrays |= {"labels": np.array([0, 0, 1]), "answers": np.array(answers), "confidence": np.array([0.875, 0.5, 0.75])}
    return {v["name"]: arrays for v in comparison["variants"]}


@pytest.fixture(scope="module")
def comparison():
    return make(("full", "window")) | {"data": {"classes": ["plural", "<singular>"], "pieces": "sentences"}}


@pytest.fixture(scope="module")
def found(comparison):
    return sentences.sentences(comparison, pictured(comparison))


@pytest.fixture(scope="module")
def page(tmp_path_factory, comparison):
    folder = tmp_path_factory.mktemp("sentences")
    path = write_report(folder, comparison, make_curves(comparison), CONFIG, pictured(comparison))
    return folder, path.read_text(encoding="utf-8")


def random_tree(rng, size):
    """Heads of a random tree: in a random order each word hangs from an earlier one; it may cross itself."""
    order, heads = rng.permutation(size), np.full(size, -1)
    for n in range(1, size):
        heads[order[n]] = order[rng.integers(n)]
    return heads.tolist()


def test_padding_is_cut_off_and_answers_are_named(found):
    assert [sentence.words for sentence in found] == [tuple(ENGLISH), tuple(ARABIC), ("Go", "!")]
    assert found[1].heads == (4, 2, 0, 2, -1) and found[1].readings[0].shares.shape == (5,)
    assert [sentence.truth for sentence in found] == ["plural", "plural", "<singular>"]
    readings = [(r.label, r.index, r.answer, r.right) for sentence in found[:2] for r in sentence.readings]
    assert readings[:2] == [("full", 0, "plural", True), ("window", 1, "plural", True)]
    assert readings[2:] == [("full", 0, "<singular>", False), ("window", 1, "<singular>", False)]


@pytest.mark.parametrize("size", [1, 2, 7, 31])
def test_arcs_of_one_level_never_overlap(size):
    heads = random_tree(np.random.default_rng(size), size)
    arcs = sentence_layout.levels(heads)
    assert sorted((d, h) for h, d, _ in arcs) == [(d, h) for d, h in enumerate(heads) if h >= 0]
    for i, (h, d, level) in enumerate(arcs):
        for other_h, other_d, other_level in arcs[:i]:
            shared = min(max(h, d), max(other_h, other_d)) - max(min(h, d), min(other_h, other_d))
            assert shared <= 0 or level > other_level  # a longer arc, placed later, runs above


def test_a_chain_needs_one_level():
    assert {level for *_, level in sentence_layout.levels([-1, 0, 1, 2, 3])} == {1}


def test_words_stand_side_by_side_and_backwards_where_the_script_runs_so(found):
    for sentence, backwards in zip(found, (False, True, False), strict=True):
        place = sentence_layout.layout(sentence.words, sentence.heads)
        order = slice(None, None, -1) if backwards else slice(None)
        centers, rooms = place.centers[order], place.rooms[order]
        assert place.backwards == backwards
        np.testing.assert_allclose(centers[1:] - centers[:-1], (rooms[1:] + rooms[:-1]) / 2)
        np.testing.assert_allclose(
            [centers[0] - rooms[0] / 2, centers[-1] + rooms[-1] / 2], [0, place.width], atol=1e-9
        )


def test_no_word_is_wider_than_its_room():
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font, measure = FontProperties(family="DejaVu Sans", size=13), TextToPath()  # as wide as the fonts of pages come
    for word in ("The", "illicit", "MAMMALS", "WWW.MOM.COM", "a", "---", "1,234,567", "Ärzte", "e\u0301te\u0301"):
        width = measure.get_text_width_height_descent(word, font, ismath=False)[0]
        assert 0.5 * sentence_layout.text_width(word) < width < sentence_layout.text_width(word) + 8, word


def test_bars_are_as_high_as_the_shares(comparison, found):
    arrays = pictured(comparison)
    arrays["window"] = arrays["window"] | {"attention": arrays["window"]["attention"] / 2}
    html = sentences.to_html(sentences.sentences(comparison, arrays)[:1], str)
    full, window = re.findall(r'<path d="(M[^"]*z)" style="fill: var\(--s\d\)"', html)
    for path, shares in ((full, SHARES), (window, SHARES / 2)):
        heights = [float(height) for height in re.findall(r"v-([\d.]+)h", path)]
        np.testing.assert_allclose(heights, 30 * shares / 0.5, atol=0.06)  # printed with one digit
    written = re.findall(r'class="share"[^>]*>(\d+%)<', html)
    assert written == ["50%", "25%", "10%", "25%", "12%", "5%"]  # the three largest, none below a twentieth


def test_the_page_shows_one_sentence_and_folds_the_others(page):
    folder, html = page
    section = html[html.index('<section id="pictures">') : html.index('<section id="pareto">')]
    first, fold = section.split("<details", 1)
    assert "2 more sentences" in fold and fold.count('class="table sentence"') == 2
    assert first.count("<svg") == 3 and first.count('class="frame"') == 1 and first.count("✓") == 2
    assert "88%" in first and re.search(r'class="bad".*wrong:</span> &lt;singular&gt;, 50%', fold)
    assert (folder / "figures" / "sentence.png").read_bytes()[:4] == b"\x89PNG"
    parsed = Page(html)
    assert all(reference.startswith("#") for reference in parsed.references)
    assert "Donaudam…tskapitän" in first and "<title>Donaudampfschifffahrtsgesellschaftskapitän</title>" in first


@pytest.mark.parametrize(
    "tree, drawn",
    [
        ("predicted", "the dependency tree that a parser predicted"),
        ("labelled", "the annotators' dependency tree"),
        ("unlabelled", "the annotators' dependency tree"),
        (None, "its dependency tree"),
    ],
)
def test_the_hint_says_whose_tree_it_is(comparison, tree, drawn):
    data = comparison["data"] | ({"tree": tree} if tree else {})
    html, _ = _shown_sentences(comparison | {"data": data}, pictured(comparison))
    assert f"A validation sentence under {drawn}, an arrow" in unescape(html)


def test_words_cannot_break_the_page(page):
    _, html = page
    assert "<b>keys" not in html and "<singular>" not in html
    assert "&lt;b&gt;keys&lt;/b&gt;" in html and ">&amp;<" in html


def test_who_cannot_see_it_is_told_tree_question_and_attention(page):
    _, html = page
    assert "In question: are. Tree: The under &lt;b&gt;keys&lt;/b&gt;" in html and "are is the root" in html
    assert 'aria-label="full looks from are to: &lt;b&gt;keys&lt;/b&gt; 50%, cabinet 25%, are 10%"' in html


def test_a_variant_whose_weights_are_no_shares_has_no_bars(comparison):
    arrays = pictured(comparison)
    arrays["window"] = {name: array for name, array in arrays["window"].items() if name != "attention"}
    found = sentences.sentences(comparison, arrays)
    html = sentences.to_html(found[:1], str)
    assert html.count("no shares</text>") == 1 and len(re.findall(r'<path d="M[^"]*z" style', html)) == 1
    sentences.to_figure(found[0]).draw_without_rendering()


def test_a_variant_past_the_palette_is_hollow():
    many = make() | {"data": {}}
    many["variants"] += [v | {"name": v["name"] + "_2"} for v in many["variants"]]
    found = sentences.sentences(many, pictured(many))
    html = sentences.to_html(found[:1], str)
    assert html.count("fill: var(--card); stroke: var(--s") == 6
    assert found[0].truth == "0"  # classes without names


def test_a_script_that_the_font_lacks_is_no_warning(tmp_path, recwarn):
    sentence = sentences.Sentence(("彼女", "は"), (-1, 0), 0, "singular", ())
    look.save_png(sentences.to_figure(sentence), tmp_path / "sentence.png")
    assert not recwarn.list and (tmp_path / "sentence.png").exists()


def test_broken_sentences_cost_no_report(tmp_path, comparison):
    arrays = {"full": {"words": np.array([["Go"]])}}
    html = write_report(tmp_path, comparison, {}, CONFIG, arrays).read_text(encoding="utf-8")
    assert "Pictures not available (KeyError" in html
