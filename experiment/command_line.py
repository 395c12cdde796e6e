"""What a command line says: flags, and the config file behind `--config`; every fault becomes one line."""

import difflib
import re
import runpy
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiment.settings import ATTENTIONS, SettingsError, flatten, only
from models.config import FIELDS


def parse(argv, values, usage, default_config=None):
    """Reads flags into `values`; every fault becomes one line.

    Args:
      argv: the command line, program name first.
      values: `absl.flags.FlagValues` that already hold the program's own flags.
      usage: text printed before the flags by `--help`.
      default_config: path of the config file behind `--config`, None for a program that takes no config.

    Raises:
      SettingsError: unknown flag, unknown config field, value of the wrong type, config file that does not load.
    """
    flags.DEFINE_boolean("help", False, "show this text", flag_values=values)
    try:
        if default_config:
            config = _load(config_path(argv, default_config))
            _check_fields(argv, config)
            argv = [item for item in argv if not re.match(r"--?config=", item)]
            config_flags.DEFINE_config_dict("config", config, "the config file", values, sys_argv=argv)
        rest = values(argv)
    except SettingsError:
        raise
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise SettingsError(f"{rest[1]!r}: not a flag, want --FLAG=VALUE")
    if values.help:
        print(f"{usage}\n{values.get_help()}")
        raise SystemExit(0)
    if default_config:
        _check_effect(argv, values.config)
    return values


def config_path(argv, default_config):
    """The config file that a command line names.

    >>> config_path(["train.py", "--config=configs/mine.py"], "configs/compare_text.py")
    'configs/mine.py'
    """
    return ([str(default_config)] + re.findall(r"^--?config=(.*)$", "\n".join(argv), re.MULTILINE))[-1]


def run_name(path):
    """What a run is called after its config.

    >>> run_name("configs/compare_text.py"), run_name("configs/compare_vision.py:fashion-mnist")
    ('compare_text', 'compare_vision-fashion-mnist')
    """
    file, _, text = str(path).partition(":")
    return Path(file).stem + (f"-{text}" if text else "")


def _load(path):
    """What `get_config()` of a config file returns, or for `FILE:TEXT` its `get_config("TEXT")`."""
    file, _, text = path.partition(":")
    if not Path(file).is_file():
        raise SettingsError(f"--config={path}: no such file")
    try:
        names = runpy.run_path(file)
        config = names["get_config"](*[text] if text else []) if "get_config" in names else None
    except Exception as error:  # the file is the user's program and may raise anything
        raise SettingsError(f"--config={path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not isinstance(config, ConfigDict):
        raise SettingsError(f"--config={path}: want a function get_config() that returns a ConfigDict")
    return config


def _check_fields(argv, config):
    """Names the first `--config.FIELD` that the config does not have, with the nearest name it has."""
    for field in _flagged(argv):
        node = config
        for name in field.split("."):
            if not isinstance(node, ConfigDict) or name not in node:
                known = list(node) if isinstance(node, ConfigDict) else []
                hint = difflib.get_close_matches(name, known, 1)
                instead = f"did you mean {hint[0]}" if hint else f"known here: {', '.join(known) or 'none'}"
                raise SettingsError(f"--config.{field}: unknown field {name!r}; {instead}")
            node = node[name]


def _check_effect(argv, config):
    """Refuses a flag for a field that variants set themselves: it would change none of them, or only some."""
    changes = {label: flatten(change.to_dict()) for label, change in config.variants.items()}
    for field in _flagged(argv):
        part = field.split(".")
        name = f"model.{part[1]}.name" if part[0] == "model" and len(part) > 1 and part[1] in ATTENTIONS else field
        own = [label for label, change in changes.items() if name in change or not _has(config, change, part)]
        if changes and len(own) == len(changes):
            raise SettingsError(
                f"--config.{field}: every variant sets its own; change config.variants.{own[0]}.{field}, or drop the "
                "variants with --config.variants={}"
            )
        wanted = only(config)
        if left := [label for label in own if not wanted or label in wanted]:
            raise SettingsError(
                f"--config.{field}: would not reach {', '.join(left)}, which differ in it; choose others with "
                f"--config.only, or change config.variants.{left[0]}.{field} and those of the rest"
            )


def _has(config, change, part):
    """Whether the model of a variant with these changes has the field at all."""
    name = change.get("model.name", config.model.get("name"))
    return part[0] != "model" or len(part) < 2 or name not in FIELDS or part[1] in FIELDS[name]


def _flagged(argv):
    return re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE)
