"""Settings: one-line refusals, variants by merging, and a folder that remembers its config."""

import copy
import json
import pkgutil
import subprocess
import sys

import jax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import compare_classification, compare_rewriting, compare_segmentation, compare_vision
from configs.compare_text import get_config
from experiment import rules, settings
from models import MODELS


def changed(**fields):
    config = get_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


class TestCheck:
    @pytest.mark.parametrize("shipped", [get_config, compare_classification.get_config, compare_rewriting.get_config])
    def test_shipped_config_passes(self, shipped):
        settings.check(shipped())

    @pytest.mark.parametrize(
        "field, value, message",
        [
            ("data__length", 0, "config.data.length=0: want int, at least 1"),
            ("seed", 2**31, "config.seed=2147483648: want int, at least 0 and below 2**31"),
            ("train__steps", 10**20, "want int, at least 1 and below 2**31"),
            ("train__clip_norm", 0.0, "config.train.clip_norm=0.0: want float, above 0, or inf for no limit"),
            ("train__patience", 5, "the task 'text' has no development data apart from those of the judgement"),
            ("train__optimizer", "sgd", "config.train.optimizer='sgd': want str, one of adamw, adam, muon"),
            ("train__accumulate", 3, "config.train.batch_size=2: want a multiple of train.accumulate=3"),
            ("model__vocab_size", 100, "variant full: config.model.vocab_size=100: the task 'text' needs 256"),
            ("model__name", "mamba", "variant full: model.name: got 'mamba'; the task 'text' trains transformer"),
            ("model__name", "encoder", "variant full: model.name: got 'encoder'; the task 'text' trains transformer"),
            ("task", "masked_text", "model.name: got 'transformer'; the task 'masked_text' trains encoder"),
            ("task", "classification", "model.name: got 'transformer'; the task 'classification' trains encoder"),
            ("data__length", -512, "config.data.length=-512: want int, at least 1"),
            ("train__learning_rate", float("nan"), "config.train.learning_rate=nan: want float, above 0"),
            ("train__warmup_steps", 10**6, "config.train.warmup_steps=1000000: want fewer than train.steps"),
            ("train__keep_checkpoints", 1, "config.train.keep_checkpoints=1: want int, at least 2"),
            ("scaling__lengths", (64, 0), "want tuple, positive integers"),
            ("task", "txt", "config.task='txt': unknown, want one of text"),
            ("only", "full,windw", "unknown variant 'windw', want some of full, window"),
        ],
    )
    def test_out_of_range(self, field, value, message):
        with pytest.raises(settings.SettingsError) as caught:
            settings.check(changed(**{field: value}))
        assert message in str(caught.value)

    def test_seeds_end_where_int32_does(self):
        settings.check(changed(seed=2**31 - 3, seeds=3))
        with pytest.raises(settings.SettingsError, match=r"config.seeds=4: want config.seed \+ config.seeds at most"):
            settings.check(changed(seed=2**31 - 3, seeds=4))

    def test_unknown_and_missing_fields_of_a_config_file(self):
        config = get_config()
        config.train.momentum = 0.9
        with pytest.raises(settings.SettingsError, match="config.train.momentum: unknown field"):
            settings.check(config)
        config = get_config()
        del config.train.steps
        with pytest.raises(settings.SettingsError, match="config.train.steps is missing, want int"):
            settings.check(config)

    @pytest.mark.parametrize("config", [get_config(), compare_classification.get_config()], ids=["text", "classes"])
    def test_every_rule_has_its_field_in_the_shipped_config(self, config):
        flat = config.to_dict()
        flat.pop("model"), flat.pop("variants")
        others = {f"data.{name}" for task in settings.TASKS.values() for name in task.DATA}
        others -= {f"data.{name}" for name in settings.TASKS[config.task].DATA}
        assert set(settings.flatten(flat)) == set(rules.RULES) - others


class TestFill:
    def config(self, **changes):
        config = compare_classification.get_config()
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
        return config

    def test_the_data_decide_what_the_config_leaves_open(self):
        config = self.config()
        settings.fill(config, {"model.num_classes": 7})
        assert {variant.model.num_classes for variant in settings.variants(config).values()} == {7}
        settings.fill(config, {"model.num_classes": 7})  # a config that says the same

    def test_a_config_that_says_something_else_is_refused(self):
        with pytest.raises(settings.SettingsError, match="variant full: model.num_classes=3: the data want 7; write 7"):
            settings.fill(self.config(model__num_classes=3), {"model.num_classes": 7})
        config = self.config()
        config.variants = ConfigDict({"small": {"model": {"num_classes": 2}}})
        with pytest.raises(settings.SettingsError, match="variant small: model.num_classes=2"):
            settings.fill(config, {"model.num_classes": 7})


class TestImages:
    def test_shipped_configs_pass_before_and_after_the_data_are_known(self):
        for config in (compare_vision.get_config(), compare_vision.get_config("fashion-mnist")):
            settings.check(config)
            settings.fill(config, {"data.image_size": 28, "model.channels": 1, "model.num_classes": 10})
            assert {variant.model.num_classes for variant in settings.variants(config).values()} == {10}
        settings.check(compare_segmentation.get_config())

    def test_another_model_has_its_own_fields_and_the_shared_ones(self):
        config = compare_vision.get_config()
        config.model.dtype = "bfloat16"
        found = settings.variants(config)
        assert found["swin"].model.name == "swin" and found["axial"].model.name == "axial"
        assert {variant.model.dtype for variant in found.values()} == {"bfloat16"}
        assert set(found["swin"].model) == set(settings.FIELDS["swin"]) and "pool" not in found["swin"].model

    def test_field_of_the_other_model_only_is_refused(self):
        config = compare_vision.get_config()
        config.variants.swin.model.pool = "mean"
        with pytest.raises(settings.SettingsError, match="config.variants.swin.model.pool: unknown field"):
            settings.variants(config)

    @pytest.mark.slow
    def test_models_have_about_equally_many_parameters(self):
        config = compare_vision.get_config()
        settings.fill(config, {"data.image_size": 8, "model.channels": 1, "model.num_classes": 10})
        counts = {}
        for label, variant in settings.variants(config).items():
            build = pkgutil.resolve_name(MODELS[variant.model.name])
            model = nnx.eval_shape(lambda: build(variant.model, length=8, rngs=nnx.Rngs(0)))  # noqa: B023
            counts[label] = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
        assert max(counts.values()) < 1.08 * min(counts.values()), counts

    def test_lengths_of_the_scaling_are_grids(self):
        config = compare_vision.get_config()
        config.scaling.lengths = (64, 128)
        with pytest.raises(settings.SettingsError, match="want squares"):
            settings.check(config)

    def test_text_fields_of_the_data_are_unknown_to_images(self):
        config = compare_vision.get_config()
        config.data.length = 512
        with pytest.raises(settings.SettingsError, match="config.data.length: unknown field"):
            settings.check(config)


class TestVariants:
    def test_fields_merge_and_attention_is_replaced(self):
        config = get_config()
        config.variants = ConfigDict({"new": {"model": {"width": 64, "attention": {"name": "window", "window": 5}}}})
        config.model.attention = ConfigDict({"name": "linear", "chunk_size": 3})
        new = settings.variants(config)["new"]
        assert new.model.attention.to_dict() == {"name": "window", "window": 5}
        assert (new.model.width, new.model.depth) == (64, config.model.depth)

    def test_every_kind_of_attention_is_replaced_as_a_whole(self):
        config = compare_rewriting.get_config()
        for field in settings.ATTENTIONS:
            config.model[field] = ConfigDict({"name": "window", "window": 5})
            config.variants = ConfigDict({"new": {"model": {field: {"name": "linear", "chunk_size": 3}}}})
            assert settings.variants(config)["new"].model[field].to_dict() == {"name": "linear", "chunk_size": 3}

    def test_order_is_that_of_the_config(self):
        assert list(settings.variants(get_config())) == list(get_config().variants) != sorted(get_config().variants)
        assert settings.selected(changed(only="linear, full")) == ["full", "linear"]

    def test_no_variants_is_a_comparison_of_one(self):
        config = get_config()
        config.variants = ConfigDict()
        assert list(settings.variants(config)) == ["full"]

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"data": {"length": 3}}, "config.variants.x.data: a variant may only change model and train"),
            ({"model": {"widht": 3}}, "config.variants.x.model.widht: unknown field"),
            ({"model": {"width": "3"}}, "config.variants.x.model.width='3': want int"),
            ({"model": {"attention": "full"}}, "config.variants.x.model.attention='full': want dict"),
            ({"train": {"steps": True}}, "config.variants.x.train.steps=True: want int"),
            ({"train": {"steps": 0}}, "variant x: config.train.steps=0: want int, at least 1"),
        ],
    )
    def test_wrong_changes(self, change, message):
        config = get_config()
        config.variants = ConfigDict({"x": change})
        with pytest.raises(settings.SettingsError) as caught:
            settings.check(config)
        assert message in str(caught.value)

    @pytest.mark.parametrize("label", ["figures", "a/b", "-x", ""])
    def test_labels_must_name_a_folder(self, label):
        config = get_config()
        config.variants = ConfigDict({label: {}})
        with pytest.raises(settings.SettingsError, match="names a folder"):
            settings.variants(config)


class TestClaim:
    def claim(self, folder, config=None, sha256="a", overwrite=False):
        settings.claim(folder, config or get_config(), {"sha256": sha256}, overwrite).close()

    def test_same_config_goes_on(self, tmp_path):
        for _ in range(2):
            self.claim(tmp_path / "run")
        assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == get_config().train.steps

    def test_changed_config_is_refused_with_the_difference(self, tmp_path):
        self.claim(tmp_path / "run")
        with pytest.raises(settings.SettingsError, match=r"\(config.data.length: 512 -> 64; config.seed: 0 -> 3\)"):
            self.claim(tmp_path / "run", changed(data__length=64, seed=3))

    def test_of_many_differences_five_are_told_and_the_rest_counted(self, tmp_path):
        self.claim(tmp_path / "run")
        with pytest.raises(
            settings.SettingsError, match=r"; \d+ more\); give --overwrite .* --config of that run"
        ) as found:
            self.claim(tmp_path / "run", compare_classification.get_config())
        assert str(found.value).count(" -> ") == 5

    def test_a_number_without_end_is_stored_and_read_as_one(self, tmp_path):
        for _ in range(2):
            self.claim(tmp_path / "run", changed(train__clip_norm=float("inf")))
        stored = json.loads((tmp_path / "run" / "config.json").read_text(), parse_constant=pytest.fail)
        assert settings.from_json(stored)["train"]["clip_norm"] == float("inf")
        with pytest.raises(settings.SettingsError, match=r'config.train.clip_norm: "inf" -> 1.0'):
            self.claim(tmp_path / "run", changed(train__clip_norm=1.0))

    def test_changed_data_is_refused(self, tmp_path):
        self.claim(tmp_path / "run")
        with pytest.raises(settings.SettingsError, match='data.sha256: "a" -> "b"'):
            self.claim(tmp_path / "run", sha256="b")

    def test_how_much_to_run_may_change(self, tmp_path):
        self.claim(tmp_path / "run")
        self.claim(tmp_path / "run", changed(only="full", seeds=3))

    def test_overwrite_removes_the_run_and_nothing_else(self, tmp_path):
        self.claim(tmp_path / "run")
        (tmp_path / "run" / "full").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
        (tmp_path / "run" / "comparison.json").write_text("{}")
        self.claim(tmp_path / "run", changed(seed=3), overwrite=True)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
            ".lock", "config.json", "data.json", "notes.txt"
        ]  # fmt: skip

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_folder_that_is_no_run_is_left_alone(self, tmp_path, overwrite):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(settings.SettingsError, match="holds files that are not a run"):
            self.claim(tmp_path, overwrite=overwrite)
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(settings.SettingsError, match="not from a comparison"):
            self.claim(tmp_path, overwrite=overwrite)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "thesis.tex"]

    @pytest.mark.parametrize("lost", [("config.json", "data.json"), ("data.json",)])
    def test_killed_while_claiming_goes_on(self, tmp_path, lost):
        self.claim(tmp_path / "run")
        for name in lost:
            (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / "config.json.part").write_text('{"see')
        for _ in range(2):
            self.claim(tmp_path / "run")
        with pytest.raises(settings.SettingsError, match="data.sha256"):
            self.claim(tmp_path / "run", sha256="b")

    def test_second_process_is_refused_until_the_first_ends(self, tmp_path):
        code = (
            "import sys, pathlib; from experiment import settings; from configs.compare_text import get_config;"
            "settings.claim(pathlib.Path(sys.argv[1]), get_config(), {}, False)"
        )
        lock = settings.claim(tmp_path / "run", get_config(), {}, False)
        call = [sys.executable, "-c", code, str(tmp_path / "run")]
        assert "another process is at work there" in subprocess.run(call, capture_output=True, text=True).stderr
        lock.close()
        assert subprocess.run(call, capture_output=True).returncode == 0


def test_difference_shows_paths_that_came_and_went():
    old = {"model": {"width": 8, "attention": {"name": "window", "window": 3}}, "only": ""}
    new = copy.deepcopy(old) | {"only": "full"}
    new["model"]["attention"] = {"name": "linear"}
    assert settings.difference(old, new) == [
        'config.model.attention.name: "window" -> "linear"',
        "config.model.attention.window: 3 -> (absent)",
    ]
