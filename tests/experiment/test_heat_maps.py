"""The heat maps of an evaluation: rows are groups, one scale for all variants, and numbers that can be read."""

import copy

from test_evaluation_findings import DEPTHS, cell, needles, text_task

from experiment import heat_maps


def test_long_lengths_stand_aslant_under_a_heat_map():
    task = needles()
    assert heat_maps.of_one(task, 0, "depth", DEPTHS).axes[0].get_xticklabels()[0].get_rotation() == 0
    task["variants"][0]["cells"] = [cell(10**9 + n, 0.5) for n in range(3)]
    assert heat_maps.of_one(task, 0, "depth", DEPTHS).axes[0].get_xticklabels()[0].get_rotation() == 45


def test_long_names_stay_different():
    task, start = needles(), "attention_with_a_long_name bucket_size="
    for i, each in enumerate(task["variants"]):
        each["name"] = f"{start}{8 * i}, num_hashes=1"
    titles = [axes.get_title("left") for axes in heat_maps.of_all(task, "depth").axes[:4]]
    assert len(set(titles)) == 4 and all("\n" in title for title in titles)


def test_grid_by_depth():
    task = needles()
    places = heat_maps.group_labels(task, "depth")
    assert places == list(DEPTHS)
    assert heat_maps.numbers(task["variants"][0]["cells"], "depth", places) == [
        [0.99, 0.98, 0.97],
        ["no needle", 0.98, 0.97],
    ]
    assert heat_maps.numbers(task["variants"][2]["cells"], "depth", places)[0] == [0.95, 0.93, "error"]


def test_labels_of_all_lengths_in_order():
    task = copy.deepcopy(needles())
    for c, labels in zip(task["variants"][0]["cells"], ("9 10", "10 11", "2"), strict=True):
        c["groups"] = {
            "depth of the tree": [{"label": n, "mean": 0.5, "stderr": None, "size": 1} for n in labels.split()]
        }
    assert heat_maps.group_labels(task, "depth of the tree") == ["2", "9", "10", "11"]
    grid = heat_maps.numbers(task["variants"][0]["cells"], "depth of the tree", ["2", "9"])
    assert grid == [["none", "none", 0.5], [0.5, "none", "none"]]


def test_one_scale_for_all_variants():
    assert heat_maps.ends(needles(), "depth") == (0.0, 1.0)
    task = needles() | {"metric": {"name": "bits", "higher_is_better": False}}
    assert heat_maps.ends(task, "depth") == (0.10, 0.99)
    assert heat_maps.ends(text_task(), "depth") == (0.0, 1.0)  # nothing to draw


def test_numbers_stand_out_from_their_cells():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    for n in range(11):
        back = colormaps[heat_maps.SCALE](n / 10)
        dim, bright = sorted((luminance(back[:3]), luminance(to_rgb(heat_maps._legible(back)))))
        assert (bright + 0.05) / (dim + 0.05) >= 4.5  # WCAG 2, level AA
