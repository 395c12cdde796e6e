"""comparison.json: error bars over pieces or seeds, paired differences, and what is kept when a part is missing."""

import numpy as np
import pytest

from configs.compare_text import get_config
from experiment import comparison
from experiment.records import write_json
from tasks import TASKS

METRIC = {"name": "validation bits per byte", "higher_is_better": False}
BASELINES = {"uniform": 8.0, "unigram": 4.5, "bigram": 3.0}


def result(label, seed, amounts, **changes):
    sizes = np.full(len(amounts), 10.0)
    return {
        "label": label,
        "seed": seed,
        "error": None,
        "steps": 5,
        "best_step": 5,
        "groups": {},
        "details": {},
        "parameters": 7,
        "compile_seconds": 1.0,
        "peak_memory_bytes": 5,
        "flops_per_step": 3,
        "train_tokens": 100,
        "step_seconds": {"median": 0.5, "p95": 0.75},
        "device": "a cpu",
        "versions": {"jax": "0.10"},
        "quality": float(np.sum(amounts) / sizes.sum()),
        "stderr": 0.25,
        "amounts": list(amounts),
        "sizes": sizes.tolist(),
        "forward_tokens": 100,
        "forward_seconds": 0.125,
    } | changes


@pytest.fixture
def compare(tmp_path):
    """Returns a function: results -> comparison of them, with as many seeds as they have."""

    def build(*results, metric=METRIC):
        config = get_config()
        config.seeds = 1 + max(one["seed"] for one in results)
        data = {"sha256": "a", "baselines": BASELINES}
        for one in results:
            folder = comparison.folder(tmp_path, one["label"], one["seed"])
            folder.mkdir(parents=True)
            write_json(folder / "result.json", one)
        table = comparison.compare(tmp_path, config, metric, data, comparison.results(tmp_path, config))
        return {variant["name"]: variant for variant in table["variants"]} | {"table": table}

    return build


def test_rates_are_tokens_over_median_seconds(compare):
    full = compare(result("full", 0, [20.0, 30.0]))["full"]
    assert full["train_tokens_per_second"] == 200 and full["forward_tokens_per_second"] == 800
    assert full["step_ms"] == {"median": 500.0, "p95": 750.0}
    assert full["attention"] == {"name": "full"}


def test_one_seed_takes_the_error_bar_from_the_pieces(compare):
    quality = compare(result("full", 0, [20.0, 30.0]))["full"]["quality"]
    assert quality == {"mean": 2.5, "stderr": 0.25, "stderr_over": "files", "values": [2.5]}


def test_several_seeds_take_it_from_the_seeds(compare):
    runs = [result("full", seed, [bits, bits]) for seed, bits in enumerate((20.0, 24.0, 31.0))]
    quality = compare(*runs)["full"]["quality"]
    assert quality["stderr_over"] == "seeds" and quality["values"] == [2.0, 2.4, 3.1]
    assert quality["stderr"] == pytest.approx(np.std([2.0, 2.4, 3.1], ddof=1) / 3**0.5)


def test_further_numbers_are_averaged_over_seeds(compare):
    runs = [result("full", seed, [20.0], details={"Hits@1": hits}) for seed, hits in enumerate((0.25, 0.75))]
    details = compare(*runs)["full"]["details"]
    assert details == {"Hits@1": {"mean": 0.5, "stderr": pytest.approx(0.25), "values": [0.25, 0.75]}}


@pytest.mark.parametrize("task, tokens", [("text", 1), ("images", 64), ("knowledge_graph", 1)])
def test_only_a_unit_of_whole_examples_has_many_tokens(task, tokens):
    config = get_config()
    config.task, config.data = task, {TASKS[task].SIZE: 8}
    assert comparison.unit(config) == {"name": TASKS[task].UNIT, "tokens": tokens}


def test_difference_is_paired_over_pieces(compare):
    # Pieces differ wildly, the two variants by exactly 0.1 bit on each: a difference without doubt.
    found = compare(result("full", 0, [10.0, 80.0, 31.0]), result("window", 0, [11.0, 81.0, 32.0]))
    surely = {"stderr": pytest.approx(0.0, abs=1e-12), "stderr_over": "files"}
    assert found["full"]["differences"] == {"window": {"mean": pytest.approx(-0.1), **surely}}
    assert found["window"]["differences"] == {"full": {"mean": pytest.approx(0.1), **surely}}


def test_difference_is_paired_over_common_seeds(compare):
    full = [result("full", seed, [bits]) for seed, bits in enumerate((20.0, 24.0, 31.0))]
    window = [result("window", seed, [bits]) for seed, bits in enumerate((21.0, 27.0))]
    difference = compare(*full, *window)["window"]["differences"]["full"]
    assert (difference["mean"], difference["stderr_over"]) == (pytest.approx(0.2), "seeds")
    assert difference["stderr"] == pytest.approx(np.std([0.1, 0.3], ddof=1) / 2**0.5)


def test_diverged_variant_keeps_its_place_without_quality(compare):
    error = {"error": "loss became nan at step 3", "quality": None, "stderr": None, "amounts": None}
    found = compare(result("full", 0, [10.0, 20.0]), result("linear", 0, [10.0, 20.0]) | error)
    assert found["linear"]["quality"] == {"mean": None, "stderr": None, "stderr_over": "files", "values": []}
    assert found["linear"]["error"] == "loss became nan at step 3"
    assert found["linear"]["train_tokens_per_second"] is None and found["linear"]["differences"] == {}


def test_one_diverged_seed_is_told_and_the_others_count(compare):
    found = compare(result("full", 0, [20.0]), result("full", 1, [9.0], error="loss became inf at step 9"))
    assert found["full"]["quality"]["values"] == [2.0] and "inf" in found["full"]["error"]


def test_the_strongest_baseline_decides(compare):
    found = compare(result("full", 0, [29.0]), result("window", 0, [31.0]))
    assert found["full"]["beats_baselines"] is True and found["window"]["beats_baselines"] is False


def test_the_strongest_baseline_decides_where_more_is_better(compare):
    accuracy = {"name": "validation accuracy", "higher_is_better": True}
    found = compare(result("full", 0, [79.0]), result("window", 0, [81.0]), metric=accuracy)
    assert found["full"]["beats_baselines"] is False and found["window"]["beats_baselines"] is True


def test_every_device_that_took_part_is_named(compare):
    found = compare(result("full", 0, [29.0]), result("window", 0, [31.0], device="another cpu"))
    assert found["table"]["device"] == "a cpu and another cpu"


def test_versions_and_devices_are_told():
    import jax

    assert comparison.versions()["jax"] == jax.__version__
    assert "cores" in comparison.describe_devices(jax.local_devices()[:1])
