"""What a run is told: the config and its rules, the variants, and the folder that remembers them."""

import contextlib
import fcntl
import json
import math
import re
import shutil

from ml_collections import ConfigDict, FrozenConfigDict

from experiment.records import read_json, write_json
from experiment.rules import RULES
from models.config import FIELDS
from models.config import check as check_model
from tasks import TASKS

# Fields that choose how much of a comparison is run, not what any part of it gives: free to change between runs.
FREE = ("only", "seeds")
# Fields of config.model that name a variant.
ATTENTIONS = ("attention", "decoder_attention", "cross_attention", "graph_attention")


class SettingsError(ValueError):
    """What the user asked for cannot be; the message is one line that says what to write instead."""


def check(config):
    """Refuses a config that no run can be made from, the shared one and that of each variant; compiles nothing.

    Raises:
      SettingsError: a field that is missing, unknown, of the wrong type or out of range, or two that do not fit.
    """
    for field in ("model", "variants"):
        if not isinstance(config.get(field), ConfigDict):
            raise SettingsError(f"config.{field} is missing, want a ConfigDict")
    if config.get("task") not in TASKS:
        raise SettingsError(f"config.task={config.get('task')!r}: unknown, want one of {', '.join(TASKS)}")
    _check_rules(config)
    if config.seed + config.seeds > 2**31:
        raise SettingsError(f"config.seeds={config.seeds}: want config.seed + config.seeds at most 2**31")
    selected(config)
    for label, variant in variants(config).items():
        with _naming(f"variant {label}"):
            _check_rules(variant)
            _check_task(variant)
            check_model(variant.model, size(config) or 1024)  # 0: known once data are read, when all is checked again
            _check_vocabulary(variant)


def size(config):
    """The size of an example that a config asks for, T of a text or the side of an image; 0 leaves it to the data."""
    return config.data[TASKS[config.task].SIZE]


def fill(config, fields):
    """Writes into the config what the data decide, and checks it again; 0 in the config leaves it to the data.

    Args:
      config: the config, changed in place.
      fields: the task's `fields`, such as {"model.num_classes": 10}.

    Raises:
      SettingsError: the config, or one of its variants, says something else, or cannot be with this value.
    """
    for field, value in fields.items():
        part, name = field.split(".")
        for label, variant in variants(config).items():
            if name in variant[part] and variant[part][name] not in (0, value):
                free = ", or 0" if isinstance(value, int) else ""
                raise SettingsError(
                    f"variant {label}: {field}={variant[part][name]}: the data want {value}; write {value}{free}"
                )
        for tree in (config, *config.variants.values()):
            if name in tree.get(part, {}):
                tree[part][name] = value
    if fields:
        check(config)


@contextlib.contextmanager
def _naming(what):
    """Puts the name of what was being checked before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise SettingsError(f"{what}: {error}") from error


def variants(config):
    """The full config of each variant, by label: the shared one with the variant's few fields changed.

    A variant may change `model` and `train`; the data, seeds and measurements are one for all. Fields are merged name
    by name, except those of ATTENTIONS, which are replaced as a whole because settings belong to the named variant.
    One that names another model has that model's fields: its own, and for the rest the shared ones. A config without
    variants is a comparison of one.

    >>> config = ConfigDict({"model": {"width": 8, "attention": {"name": "full"}}, "train": {}, "variants": {}})
    >>> config.variants = ConfigDict({"wide": {"model": {"width": 16}}})
    >>> variants(config)["wide"].model.width
    16
    """
    shared = config.to_dict()
    changes = shared.pop("variants") or {shared["model"]["attention"]["name"]: {}}
    result = {}
    for label, change in changes.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", label) or label in ("figures", "evaluation", "config.json"):
            raise SettingsError(f"config.variants: label {label!r} names a folder, want letters, digits and _ . + -")
        for field in change.keys() - {"model", "train"}:
            raise SettingsError(f"config.variants.{label}.{field}: a variant may only change model and train")
        base = shared | {"model": _adopted(shared["model"], change.get("model", {}))}
        result[label] = FrozenConfigDict(_merge(base, change, f"config.variants.{label}"))
    return result


def _adopted(shared, change):
    """The shared fields of `config.model` that a variant with these changes starts from."""
    name = change.get("name", shared.get("name"))
    if name == shared.get("name") or name not in FIELDS:
        return shared
    return {field: change.get(field, shared.get(field)) for field in FIELDS[name] if field in change or field in shared}


def selected(config):
    """Labels that `config.only` picks, in the order of the config."""
    labels = list(variants(config))
    wanted = only(config) or labels
    for label in wanted:
        if label not in labels:
            raise SettingsError(
                f"config.only={config.only!r}: unknown variant {label!r}, want some of {', '.join(labels)}"
            )
    return [label for label in labels if label in wanted]


def only(config):
    """The labels in `config.only`; none for all."""
    return [label.strip() for label in config.only.split(",") if label.strip()]


def seeds(config):
    """The seeds that every variant is trained with."""
    return list(range(config.seed, config.seed + config.seeds))


def claim(workdir, config, fingerprint, overwrite):
    """Makes `workdir` the home of this config, or finds that it is already.

    Args:
      workdir: folder of the run, made if missing.
      config: the config, written to `config.json`.
      fingerprint: {"sha256": ...} of the data, written to `data.json`; other data is refused like another config.
      overwrite: removes what an earlier run wrote there.

    Returns:
      An open file that holds the lock on the folder until the process ends, however it ends.

    Raises:
      SettingsError: a run with another config or other data, files that are no run, or a process already at work.
    """
    stored = read_json(workdir / "config.json")
    begun = {".lock", "config.json.part"}  # what a run leaves that was killed before it had written its config
    if stored is None and workdir.exists() and any(item.name not in begun for item in workdir.iterdir()):
        raise SettingsError(f"--workdir={workdir}: holds files that are not a run; name a new or empty folder")
    if stored is not None and "variants" not in stored:
        raise SettingsError(f"--workdir={workdir}: its config.json is not from a comparison; name another folder")
    workdir.mkdir(parents=True, exist_ok=True)
    lock = _lock(workdir)
    if overwrite and stored is not None:
        _remove_run(workdir, stored)
        stored = None
    config = as_json(config)
    known = read_json(workdir / "data.json")
    if stored is not None:
        changes = difference(stored, config) + difference(known or fingerprint, fingerprint, "data")
        if changes:
            more = f"; {len(changes) - 5} more" if len(changes) > 5 else ""
            raise SettingsError(
                f"--workdir={workdir} holds a run with other settings ({'; '.join(changes[:5])}{more}); give "
                "--overwrite to start anew, another --workdir, or the --config of that run"
            )
    if stored != config or known is None:
        write_json(workdir / "config.json", config)
        write_json(workdir / "data.json", fingerprint)
    return lock


def as_json(config):
    """A config as `config.json` holds it: lists for tuples, and "inf" for a number without end, which JSON has not.

    >>> as_json(ConfigDict({"clip_norm": math.inf, "lengths": (1, 2)}))
    {'clip_norm': 'inf', 'lengths': [1, 2]}
    """
    return _replaced(json.loads(json.dumps(config.to_dict())), math.inf, "inf")


def from_json(stored):
    """The fields of a config from `config.json`, None where there is none: the other way round, but for the lists."""
    return _replaced(stored, "inf", math.inf)


def difference(old, new, prefix="config"):
    """What changed, as lines `path: old -> new`; the fields of FREE are not looked at.

    >>> difference({"seed": 0, "data": {"length": 512}}, {"seed": 0, "data": {"length": 256}})
    ['config.data.length: 512 -> 256']
    """
    old, new = flatten(old), flatten(new)
    fields = [field for field in old | new if field not in FREE and old.get(field) != new.get(field)]
    show = lambda fields, field: json.dumps(fields[field]) if field in fields else "(absent)"  # noqa: E731
    return [f"{prefix}.{field}: {show(old, field)} -> {show(new, field)}" for field in fields]


def flatten(tree, prefix=""):
    """Nested dicts -> {"a.b": leaf}; an empty dict is a leaf.

    >>> flatten({"model": {"width": 8, "attention": {"name": "full"}}, "variants": {}})
    {'model.width': 8, 'model.attention.name': 'full', 'variants': {}}
    """
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, (dict, ConfigDict, FrozenConfigDict)) and len(value)
        flat.update(flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return flat


def _check_rules(config):
    given = flatten({name: value for name, value in config.items() if name not in ("model", "variants")})
    read = TASKS[config.task].DATA
    rules = {field: rule for field, rule in RULES.items() if field[:5] != "data." or field[5:] in read}
    for field in given.keys() - rules.keys():
        raise SettingsError(f"config.{field}: unknown field, want one of {', '.join(rules)}")
    for field, (kind, good, wanted) in rules.items():
        if field not in given:
            raise SettingsError(f"config.{field} is missing, want {kind.__name__}, {wanted}")
        if type(given[field]) is not kind or not good(given[field]):
            raise SettingsError(f"config.{field}={given[field]!r}: want {kind.__name__}, {wanted}")
    sides = [math.isqrt(length) for length in config.scaling.lengths]
    if TASKS[config.task].SIZE == "image_size" and [side**2 for side in sides] != list(config.scaling.lengths):
        raise SettingsError(f"config.scaling.lengths={config.scaling.lengths}: want squares, patches of a square image")
    train = config.train
    if train.warmup_steps >= train.steps:
        raise SettingsError(
            f"config.train.warmup_steps={train.warmup_steps}: want fewer than train.steps={train.steps}"
        )
    if train.batch_size % train.accumulate:
        raise SettingsError(
            f"config.train.batch_size={train.batch_size}: want a multiple of train.accumulate={train.accumulate}"
        )
    if train.patience and not hasattr(TASKS[config.task], "development"):
        raise SettingsError(
            f"config.train.patience={train.patience}: the task {config.task!r} has no development data apart from "
            "those of the judgement; write 0"
        )


def _check_task(config):
    able = TASKS[config.task].MODELS
    if config.model.get("name") not in able:
        raise SettingsError(
            f"model.name: got {config.model.get('name')!r}; the task {config.task!r} trains {' or '.join(able)}"
        )


def _check_vocabulary(config):
    vocabulary, needed = config.model.get("vocab_size", 0), config.data.get("vocabulary", TASKS[config.task].VOCABULARY)
    if vocabulary < needed:
        raise SettingsError(f"config.model.vocab_size={vocabulary}: the task {config.task!r} needs {needed}")


def _merge(base, change, path):
    result = dict(base)
    for name, new in change.items():
        if name not in base:
            raise SettingsError(f"{path}.{name}: unknown field, want one of {', '.join(base)}")
        old, kind = base[name], type(base[name])
        if isinstance(new, int) and not isinstance(new, bool) and kind is float:
            new = float(new)
        if type(new) is not kind:
            raise SettingsError(f"{path}.{name}={new!r}: want {kind.__name__}")
        whole = not isinstance(new, dict) or path.endswith(".model") and name in (*ATTENTIONS, "rope_scaling")
        result[name] = new if whole else _merge(old, new, f"{path}.{name}")
    return result


def _replaced(tree, old, new):
    if isinstance(tree, dict):
        return {name: _replaced(value, old, new) for name, value in tree.items()}
    return new if tree == old else tree


def _lock(workdir):
    handle = open(workdir / ".lock", "a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(f"--workdir={workdir}: another process is at work there; wait for it or stop it") from None
    return handle


def _remove_run(workdir, stored):
    """Removes what a run writes, and nothing else: a mistyped folder must not lose the user's files."""
    labels = list(stored["variants"]) or [stored["model"]["attention"]["name"]]
    for name in ["figures", "evaluation", *labels]:
        shutil.rmtree(workdir / name, ignore_errors=True)
    tables = [f"{name}.{ending}" for name in ("comparison", "evaluation") for ending in ("json", "csv")]
    for name in [*tables, "groups.csv", "report.html", "evaluation.html", "data.json", "config.json"]:
        (workdir / name).unlink(missing_ok=True)
