"""What an evaluation at many lengths is told: its flags, the variants with a field swept, the exams, the lengths."""

import itertools
import pkgutil
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict

from experiment import exams, settings
from experiment.settings import SettingsError
from models.config import check as check_model

# Flag -> (kind, default, help), of `eval.py --tasks` and `--lengths`.
FLAGS = {
    "tasks": (flags.DEFINE_string, "", "what to ask at each length, comma-separated; empty = the run's own task"),
    "lengths": (
        flags.DEFINE_string,
        "",
        "T to judge at, comma-separated; empty = that of training times 1, 2, 4 and 8",
    ),
    "examples": (flags.DEFINE_integer, 64, "rows of each task and length"),
    "threshold": (flags.DEFINE_float, 0.85, "what counts as solved: the effective length is the longest one above it"),
    "sweep": (
        flags.DEFINE_multi_string,
        [],
        "judge with each value of a field: model.attention.num_hashes:1,2,4,8; of several fields with all combinations",
    ),
}


def define_flags(values):
    """Adds the flags of an evaluation at many lengths."""
    for name, (define, default, text) in FLAGS.items():
        define(name, default, text, flag_values=values)


def wanted(values):
    """Whether the flags ask for an evaluation at many lengths.

    Raises:
      SettingsError: a flag that has no effect, because there is none.
    """
    if values["tasks"].present or values["lengths"].present:
        return True
    for name in FLAGS:
        if values[name].present:
            raise SettingsError(f"--{name}: has no effect without --tasks or --lengths; give one of them, or drop it")
    return False


class Plan:
    """What is judged: variants, exams and lengths, read from flags.

    Attributes:
      variants: name -> (label it was trained under, config), one more for each value of a sweep.
      exams: a list of `exams.Exam`.
      lengths: T, ascending.
      threshold: what counts as solved.

    Args:
      values: the parsed flags.
      config: the run's.
      results: label -> its results, one a seed.
      data_sha256: fingerprint of the data that the run was trained on.

    Raises:
      SettingsError: a flag that cannot be, or that would have no effect.
    """

    def __init__(self, values, config, results, data_sha256):
        if values.examples < 1:
            raise SettingsError(f"--examples={values.examples}: want at least 1")
        if not 0 <= values.threshold <= 1:
            raise SettingsError(f"--threshold={values.threshold:g}: want 0 to 1")
        self.trained, self.threshold, self.examples = settings.size(config), values.threshold, values.examples
        names = _listed("tasks", values.tasks) if values.tasks else exams.own(config)
        self.exams = exams.find(names, config, values.examples, data_sha256)
        if values["examples"].present and not any(exam.rows for exam in self.exams):
            raise SettingsError("--examples: has no effect on extrapolation, which takes all of the validation text")
        if values["threshold"].present and not any(exam.metric["higher_is_better"] for exam in self.exams):
            raise SettingsError("--threshold: has no effect on a metric whose smaller values are better")
        self.lengths = _lengths(values, self.trained)
        self.variants = sweep(values.sweep, _chosen(values.variant, settings.variants(config), results))

    def count(self, results):
        """How many cells there are."""
        runs = sum(len(results[label]) for label, _ in self.variants.values())
        return runs * len(self.exams) * len(self.lengths)


def _listed(flag, text):
    items = [item.strip() for item in text.split(",")]
    for item in items:
        if not item or items.count(item) > 1:
            raise SettingsError(f"--{flag}={text}: want different items, comma-separated, got {item!r}")
    return items


def _lengths(values, trained):
    if not values.lengths:
        if not trained:
            raise SettingsError(
                "--lengths: is empty, and the run does not say at what length it was trained; give some"
            )
        return [trained * times for times in (1, 2, 4, 8)]
    items = _listed("lengths", values.lengths)
    if bad := [item for item in items if not item.isascii() or not item.isdigit() or int(item) < 1]:
        raise SettingsError(f"--lengths={values.lengths}: want integers of at least 1, got {bad[0]!r}")
    return sorted(map(int, _listed("lengths", ",".join(str(int(item)) for item in items))))


def _chosen(text, variants, results):
    labels = _listed("variant", text) if text else list(results)
    for label in labels:
        if label not in results:
            raise SettingsError(f"--variant={label}: not finished or unknown, want some of {', '.join(results)}")
    return {label: variants[label] for label in results if label in labels}


class Swept(NamedTuple):
    """A field that is swept: the flag as it was given, the names that lead to it in `model`, and its values."""

    flag: str
    path: tuple[str, ...]
    items: list[str]


def sweep(texts, variants):
    """The variants that are judged: each with all combinations of the values of those swept fields that it has.

    Args:
      texts: the flags, "model.FIELD:VALUE,VALUE" each.
      variants: label -> config.

    Returns:
      name -> (label, config). Names say the fields that have several values, or if none has, all.

    Raises:
      SettingsError: no such field, one given twice, a value that cannot be, or that would change the shape of a
        parameter.
    """
    swept = [_swept(text, variants) for text in texts]
    for each in swept:
        if sum(each.path == other.path for other in swept) > 1:
            raise SettingsError(f"{each.flag}: want each field once; give all of its values in one flag")
    found = {}
    for label, config in variants.items():
        own = [each for each in swept if _field(config.model, each.path) is not None]
        named = [each for each in own if len(each.items) > 1] or own
        for items in itertools.product(*(each.items for each in own)):
            words = [f"{each.path[-1]}={item}" for each, item in zip(own, items, strict=True) if each in named]
            found[" ".join([label, *words])] = label, _changed(label, config, own, items)
    return found


def _swept(text, variants):
    where, _, items = text.partition(":")
    part, *path = where.split(".")
    if part != "model" or not path or not items:
        raise SettingsError(f"--sweep={text}: want model.FIELD:VALUE,VALUE, such as model.attention.num_hashes:1,2,4")
    if all(_field(config.model, path) is None for config in variants.values()):
        raise SettingsError(f"--sweep={text}: none of {', '.join(variants)} has the field {where} with a single value")
    return Swept(f"--sweep={text}", tuple(path), _listed("sweep", items))


def _field(tree, path):
    """The value at a path of a config, None where there is no single value."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, (ConfigDict, FrozenConfigDict)) else None
    return tree if isinstance(tree, (bool, int, float, str)) else None


def _changed(label, config, swept, items):
    """The config with a value for each swept field."""
    if not swept:
        return config
    new = ConfigDict(config.to_dict())
    for each, item in zip(swept, items, strict=True):
        tree = new.model
        for name in each.path[:-1]:
            tree = tree[name]
        tree[each.path[-1]] = _value(_field(config.model, each.path), item, f"{each.flag}: {label}")
    what = f"{' '.join(each.flag for each in swept)}: {label}"
    try:
        check_model(new.model, settings.size(new) or 1024)
    except ValueError as error:
        raise SettingsError(f"{what}: {error}") from error
    if _shapes(new) != _shapes(config):
        raise SettingsError(f"{what}: {', '.join(items)} changes the shape of a trained parameter; train such a model")
    return FrozenConfigDict(new)


def _value(old, item, what):
    """A value of the type that the field has."""
    try:
        return {"True": True, "False": False}[item] if isinstance(old, bool) else type(old)(item)
    except (ValueError, KeyError):
        raise SettingsError(f"{what}: want {type(old).__name__} values, got {item!r}") from None


def _shapes(config):
    """Shapes of a model's parameters; nothing is computed."""
    import jax
    from flax import nnx  # which no wrong flag should wait for

    from models import MODELS

    build = pkgutil.resolve_name(MODELS[config.model.name])
    model = nnx.eval_shape(lambda: build(config.model, length=settings.size(config), rngs=nnx.Rngs(0)))
    return [(jax.tree_util.keystr(path), x.shape) for path, x in jax.tree.leaves_with_path(nnx.state(model))]
