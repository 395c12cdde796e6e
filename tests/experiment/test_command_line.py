"""The command line: flags that change the config, and faults that become one line."""

import functools

import pytest
from absl import flags
from ml_collections import ConfigDict

from experiment import command_line, settings

CONFIG = "configs/compare_text.py"


def parse(*args):
    return command_line.parse(["train.py", *args], flags.FlagValues(), "usage", CONFIG).config


class TestParse:
    def test_flags_change_the_config(self):
        config = parse("--config.train.steps=7", "--config.scaling.lengths=3,5", "--config.only=full")
        assert (config.train.steps, config.scaling.lengths, config.only) == (7, (3, 5), "full")

    def test_config_file_may_be_named_last(self, tmp_path):
        (tmp_path / "mine.py").write_text("from configs.compare_text import get_config")
        assert parse("--config.train.steps=7", f"--config={tmp_path / 'mine.py'}").train.steps == 7

    @pytest.mark.parametrize(
        "argument, message",
        [
            ("--config.train.step=3", "--config.train.step: unknown field 'step'; did you mean steps"),
            ("--config.xyz=3", "--config.xyz: unknown field 'xyz'; known here: "),
            ("--config.seed.deeper=3", "--config.seed.deeper: unknown field 'deeper'; known here: none"),
            ("--config.variants.windw.model=3", "unknown field 'windw'; did you mean window"),
            ("--config.train.steps=many", "--config.train.steps=many: invalid literal for int()"),
            ("--config.train.steps=3.5", "--config.train.steps=3.5"),
            ("--config.model.remat=perhaps", "--config.model.remat=perhaps"),
            ("--config=nowhere.py", "--config=nowhere.py: no such file"),
            (
                "--config.model.attention={'name': 'linear'}",
                "every variant sets its own; change config.variants.full.model.",
            ),
            ("--config.model.attention.name=linear", "every variant sets its own; change config.variants.full.model."),
            ("--wrkdir=x", "Unknown command line flag 'wrkdir'"),
            ("runs/x", "'runs/x': not a flag, want --FLAG=VALUE"),
        ],
    )
    def test_faults_are_one_line(self, argument, message):
        with pytest.raises(settings.SettingsError) as caught:
            parse(argument)
        assert message in str(caught.value) and "\n" not in str(caught.value)

    def test_config_file_that_does_not_load(self, tmp_path):
        (tmp_path / "broken.py").write_text("def get_config(:\n")
        with pytest.raises(settings.SettingsError, match="broken.py: invalid syntax") as caught:
            parse(f"--config={tmp_path / 'broken.py'}")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("body", ["x = 3", "def get_config():\n    return {}"])
    def test_config_file_without_a_config(self, tmp_path, body):
        (tmp_path / "empty.py").write_text(body)
        with pytest.raises(settings.SettingsError, match="empty.py: want a function get_config"):
            parse(f"--config={tmp_path / 'empty.py'}")

    def test_config_file_runs_once_and_takes_text(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "from configs import compare_text\n"
            "def get_config(text):\n"
            f"    open({str(tmp_path / 'runs')!r}, 'a').write(text)\n"
            "    return compare_text.get_config()\n"
        )
        assert parse(f"--config={tmp_path / 'mine.py'}:hello", "--config.seed=3").seed == 3
        assert (tmp_path / "runs").read_text() == "hello"

    def test_fields_that_only_sound_like_attention_are_for_all_variants(self):
        config = parse("--config.model.attention_dropout=0.1")
        assert {variant.model.attention_dropout for variant in settings.variants(config).values()} == {0.1}
        with pytest.raises(settings.SettingsError, match="variant linear: model.attention_dropout: 'linear' has no w"):
            settings.check(config)
        config.variants = ConfigDict({"full": config.variants.full})
        settings.check(config)

    @pytest.mark.parametrize("field", ["cross_attention.name=linear", "attention={'name': 'linear'}"])
    def test_attention_that_every_variant_sets_is_refused_in_any_field(self, field):
        with pytest.raises(settings.SettingsError, match="every variant sets its own; change config.variants.full.mod"):
            parse("--config=configs/compare_rewriting.py", f"--config.model.{field}")
        parse(
            "--config=configs/compare_rewriting.py", "--config.model.decoder_attention={'name': 'window', 'window': 5}"
        )

    def test_attention_can_be_chosen_once_the_variants_are_dropped(self):
        config = parse("--config.variants={}", "--config.model.attention={'name': 'window', 'window': 5}")
        assert list(settings.variants(config)) == ["window"]

    def test_help_shows_usage_and_flags(self, capsys):
        with pytest.raises(SystemExit) as caught:
            parse("--help")
        assert caught.value.code == 0 and "usage" in capsys.readouterr().out

    def test_flag_that_would_reach_some_variants_only_is_refused(self):
        read = functools.partial(parse, "--config=configs/compare_vision.py")
        with pytest.raises(settings.SettingsError, match="config.model.width: would not reach swin, swin_no_shift"):
            read("--config.model.width=64")
        with pytest.raises(settings.SettingsError, match="config.model.pool: would not reach swin"):
            read("--config.model.pool=mean")
        assert read("--config.model.width=64", "--config.only=vit_full,vit_axial").model.width == 64
        assert read("--config.model.patch_size=2").model.patch_size == 2
