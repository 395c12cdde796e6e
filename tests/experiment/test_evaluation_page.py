"""The page of an evaluation at many lengths: its tables and charts hold the numbers, in words and pictures."""

import re

import pytest
from test_evaluation_findings import LENGTHS, TOO_LONG, cell, evaluation, needles, text_task, variant
from test_report import Page

from experiment.evaluation_page import write_page


def shown(html):
    return " ".join(" ".join(Page(html).text).split())


def render(folder, *tasks, **other):
    return write_page(folder, evaluation(*tasks, **other)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return folder, render(folder)


class TestPage:
    def test_stands_alone(self, page):
        html = Page(page[1])
        assert len(html.ids) == len(set(html.ids))
        assert all(ref.startswith(("#", "data:")) for ref in html.references)
        assert {ref[1:] for ref in html.references if ref[0] == "#"} <= set(html.ids)

    def test_writes_its_figures(self, page):
        names = {path.name for path in (page[0] / "figures").iterdir()}
        assert names == {
            "evaluation_passkey_length.png", "evaluation_passkey_depth.png",
            "evaluation_extrapolation_length.png", "evaluation_extrapolation_positions.png",
        }  # fmt: skip

    def test_labels_are_escaped(self, page):
        assert not re.search(r"<window>|<mine>|<256>|chance & co", page[1])
        assert "<window>" in shown(page[1]) and "chance & co" in shown(page[1])

    def test_table_holds_every_number(self, page):
        first = page[1][page[1].index('aria-label="passkey over length"') :]
        table = re.sub(r"<[^>]*>", " ", first[: first.index("</table>")])
        for v in needles()["variants"]:
            for c in v["cells"]:
                assert c["mean"] is None or f"{c['mean']:.3f}" in table
        assert "[0.390, 0.430]" in table and "[0.970, 1.000]" in table
        assert "95% confidence intervals of the mean, by the normal law over the examples" in shown(page[1])
        assert "–" in table and "≥ 512" in table and "none" in table and "0.125" in table

    def test_a_cell_without_a_number_points_to_its_reason(self, page):
        assert '<td data-value="">–<sup>1</sup></td>' in page[1]
        assert "0.110</span><sup>2</sup>" in page[1]
        assert f"<li>{TOO_LONG.format(512)}</li>".replace("<256>", "&lt;256&gt;") in page[1]

    def test_pictures_are_told_in_words(self, page):
        told = re.findall(r'role="img" aria-label="([^"]*)"', page[1])
        assert len(told) == 1 + 4 + 1 + 3  # chart, heat maps; chart, positions of each length
        assert any(
            "learned: 0.950 [0.930, 0.970] at 128, 0.930 [0.910, 0.950] at 256, not judged at 512" in text
            for text in told
        )
        assert any("50–100 %: no needle at 128, 0.98 at 256, 0.97 at 512" in text for text in told)
        assert any("alibi: 4.00 at 1 to 1, 2.71 at 2 to 64" in text for text in told)

    def test_effective_lengths_of_several_tasks_side_by_side(self, page, tmp_path):
        assert "Effective lengths" not in shown(page[1])  # one task has any
        html = render(tmp_path, needles(), needles() | {"name": "mqar"})
        assert "Effective lengths" in shown(html) and 'href="#mqar"' in html

    def test_how_it_was_measured(self, page):
        text = shown(page[1])
        assert "python eval.py --tasks=passkey" in text and "a small CPU" in text and "jax 0.10.2" in text

    def test_one_length_one_variant_one_seed(self, tmp_path):
        alone = variant("full", 256, cell(256, 0.9, None) | {"values": [0.9], "stderr_over": "examples"})
        only = {"lengths": [256], "asked": [256], "command": None}
        task = needles() | {"variants": [alone], "baselines": {}} | only
        text = shown(render(tmp_path, task, trained_length=0, versions=None))
        assert "1 variant, 256 tokens." in text and "No intervals" in text
        assert "full stays at 0.85 or above up to 256; nothing longer was asked." in text

    def test_what_the_run_was_not_trained_on_stands_in_the_heading(self, page, tmp_path):
        assert "not trained on" not in shown(page[1])
        elsewhere = needles() | {"name": "m<qar", "trained": False}
        html = render(tmp_path, needles(), elsewhere)
        (heading,) = re.findall("<h2>m&lt;qar(.*?)</h2>", html)
        assert "not trained on m&lt;qar: what it learned elsewhere" in heading
        assert html.count("not trained on it</small>") == 1  # in the table of all tasks

    def test_each_task_keeps_what_it_was_asked(self, tmp_path):
        other = needles() | {
            "name": "mqar",
            "threshold": 0.5,
            "examples": 1024,
            "command": "python eval.py --tasks=mqar",
        }
        text = shown(render(tmp_path, needles(), other))
        assert "python eval.py --tasks=passkey (passkey); python eval.py --tasks=mqar (mqar)" in text
        assert "At most 64 (passkey); 1,024 (mqar) a length" in text and "reach 0.85 (passkey); 0.5 (mqar)" in text

    def test_effective_lengths_say_how_many_times_that_of_training(self, page):
        assert "≥ 512<small>2 × training</small>" in page[1]

    def test_only_losses(self, tmp_path):
        assert "Effective length" not in shown(render(tmp_path, text_task()))

    def test_the_best_is_marked_only_above_the_baselines(self, page, tmp_path):
        assert '<span class="best">0.970</span>' in page[1]
        html = render(tmp_path, needles() | {"baselines": {"guess": [0.1, 0.1, 0.96]}})
        assert '<span class="bad">0.970</span>' in html and '<span class="best">0.970</span>' not in html
        assert "no better than the strongest baseline by two standard errors" in shown(html)

    def test_nothing_judged(self, tmp_path):
        task = needles() | {"variants": [variant("full", None, *(cell(n, None, error="no") for n in LENGTHS))]}
        html = render(tmp_path, task, device="")
        assert "could not be judged" in shown(html) and "<figure>" not in html
