"""What a finished run can be asked at any length: its own task, recall of every kind, text beyond its training."""

import functools
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiment import settings
from tasks import TASKS, extrapolation, text

# Fields of `config.data` that some kinds of recall read -> what they get where the run was not trained on such a kind.
TYPICAL = {"num_pairs": 4, "num_symbols": 10, "power": 0.01, "filler": "zero"}
TEXT_EXAMS = {"extrapolation": extrapolation.windows, "extrapolation_sliding": extrapolation.sliding}


class Asked(NamedTuple):
    """What models are asked at one length.

    Attributes:
      examples: {name: array [rows, ...]}.
      owners: int [rows], the piece that each row comes from.
      groups: {name: (labels, index [rows])}, as the task's `groups`.
      baselines: {name: value} of models without a network.
      sha256: fingerprint of all this.
    """

    examples: dict
    owners: np.ndarray
    groups: dict
    baselines: dict
    sha256: str


class Exam(NamedTuple):
    """A task as it is put to finished models.

    Attributes:
      name: in `--tasks`.
      metric: {"name", "higher_is_better"}.
      ask: length -> `Asked`; raises ValueError where the task has no such length.
      score: (model, examples) -> (loss, count, metric, weight) of each row, or with `edges` of each of its stretches of
        places, [rows, len(edges(length)) - 1].
      tokens: length -> how many tokens an example has.
      refusal: the config of a variant -> why it cannot be asked, "" if it can.
      edges: length -> the places that stretches begin and end at, or None.
      trained: whether the run was trained on it.
      rows: how many `ask` draws before it picks as many as it is told to; 0 = it takes all that was loaded.
    """

    name: str
    metric: dict
    ask: Callable
    score: Callable
    tokens: Callable
    refusal: Callable
    edges: Callable | None = None
    trained: bool = False
    rows: int = 0


def own(config):
    """Names of what a run was trained on."""
    if config.task == "recall":
        return [name.strip() for name in config.data.name.split(",")]
    return ["extrapolation"] if config.task == "text" else [config.task]


def find(names, config, examples, data_sha256):
    """The exams of these names.

    Args:
      names: of exams.
      config: the run's.
      examples: how many rows of each length.
      data_sha256: fingerprint of the data that the run was trained on.

    Raises:
      SettingsError: an unknown name.
    """
    corpus = functools.cache(lambda: _own_corpus(config, data_sha256))
    trained = {*own(config), *(TEXT_EXAMS if config.task == "text" else ())}
    return [_exam(name, config, examples, corpus)._replace(trained=name in trained) for name in names]


def _exam(name, config, examples, corpus):
    if name in TEXT_EXAMS:
        return _text_exam(name, config.task, corpus)
    if name == config.task and name not in ("recall", "text"):
        return _own_exam(name, config, corpus, examples)
    if name in TASKS["recall"].KINDS:
        return _recall_exam(name, config, examples)
    known = [] if config.task in ("recall", "text") else [config.task]
    known += [*(TEXT_EXAMS if config.task == "text" else ()), *TASKS["recall"].KINDS]
    raise settings.SettingsError(f"--tasks={name}: unknown for this run, want some of {', '.join(known)}")


def edges(length):
    """Where stretches of places begin and end: two an octave, the same ones at every length.

    >>> edges(20)
    [0, 1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    octaves = [2**n * k // 2 for n in range(1, length.bit_length()) for k in (2, 3)]
    return [0, 1, *(edge for edge in octaves if 1 < edge < length)] + [length] * (length > 1)


def by_stretch(profile):
    """`profile(model, examples)` -> arrays [rows, T], summed over the stretches of `edges(T)`: as `Exam.score`."""

    def score(model, examples):
        return tuple(_sums(each) for each in profile(model, examples))

    return score


def whole(profile):
    """`profile(model, examples)` -> arrays [rows, T], summed over all places, as the `score` of a task."""
    return lambda model, examples: tuple(each.sum(1) for each in profile(model, examples))


def _sums(rows):
    cuts = edges(rows.shape[1])
    return jnp.stack([rows[:, a:b].sum(1) for a, b in zip(cuts[:-1], cuts[1:], strict=True)], axis=1)


def _own_corpus(config, data_sha256):
    corpus = TASKS[config.task].load(config.data)
    if corpus.sha256 != data_sha256:
        raise settings.SettingsError("--workdir: the data it was trained on have changed since")
    return corpus


def _own_exam(name, config, corpus, examples):
    task = TASKS[name]

    def ask(length):
        rows, owners = task.validation(corpus(), length)
        groups = task.groups(corpus(), length) if hasattr(task, "groups") else {}
        return _asked(rows, owners, groups, task.describe(corpus(), length)["baselines"], examples)

    told = {"refusal": lambda variant: "", "rows": config.data.get("validation_examples", examples)}
    return Exam(name, task.METRIC, ask, tokens=task.tokens, **_scored(task), **told)


def _recall_exam(name, config, examples):
    task, loaded = TASKS["recall"], []

    def ask(length):
        if not loaded:  # rows of any length come from what was loaded for the first that is long enough
            loaded.append(task.load(recall_data(name, config, length, examples)))
        rows, owners = task.validation(loaded[0], length)
        baselines = task.KINDS[name].baselines(loaded[0].data, length)
        return _asked(rows, owners, task.groups(loaded[0], length), baselines, examples)

    def refusal(variant):
        wanted = _vocabulary(config)
        if variant.model.name not in task.MODELS:
            return f"{name} is asked token by token, of a {' or '.join(task.MODELS)}; this is {variant.model.name!r}"
        if variant.model.vocab_size < wanted:
            return f"model.vocab_size={variant.model.vocab_size}: {name} wants {wanted} tokens"
        return ""

    return Exam(name, task.METRIC, ask, tokens=task.tokens, **_scored(task), refusal=refusal, rows=examples)


def recall_data(name, config, length, examples):
    """The `config.data` that asks a run for one kind of recall, with the run's own settings where it was told any.

    Args:
      name: of the kind.
      config: the run's; one that was not trained on recall has `model.vocab_size` tokens.
      length: T.
      examples: rows.
    """
    task = TASKS["recall"]
    told = {field for kind in own(config) for field in task.KINDS[kind].reads} if config.task == "recall" else ()
    data = {"name": name, "length": length, "vocabulary": _vocabulary(config), "validation_examples": examples}
    for field, neutral in task.OWN.items():
        typical = config.data[field] if field in told else TYPICAL[field]
        data[field] = typical if field in task.KINDS[name].reads else neutral
    return ConfigDict(data)


def _vocabulary(config):
    return config.data.vocabulary if config.task == "recall" else config.model.get("vocab_size", 0)


def _text_exam(name, task, corpus):
    def ask(length):
        rows, owners = TEXT_EXAMS[name](corpus(), length)
        return _asked(rows, owners, {}, extrapolation.baselines(corpus()), len(owners))

    def refusal(variant):
        return "" if task == "text" else f"{name} is asked of models of the task 'text', not {task!r}"

    # Of sliding windows the last quarter counts: its places tell nothing that one number does not.
    scored = _scored(extrapolation) if name == "extrapolation" else {"score": whole(extrapolation.profile)}
    return Exam(name, extrapolation.METRIC, ask, tokens=text.tokens, **scored, refusal=refusal)


def _scored(task):
    """How a task's answers are scored: by place where it has a `profile`."""
    if hasattr(task, "profile"):
        return {"score": by_stretch(task.profile), "edges": edges}
    return {"score": task.score}


def _asked(rows, owners, groups, baselines, most):
    """`most` rows at the most, evenly spread."""
    some = np.linspace(0, len(owners) - 1, min(most, len(owners))).round().astype(int)
    _, owners = np.unique(owners[some], return_inverse=True)
    rows = {name: array[some] for name, array in rows.items()}
    groups = {name: (labels, np.asarray(index)[some]) for name, (labels, index) in groups.items()}
    digest = hashlib.sha256(repr(sorted(baselines.items())).encode())
    for name, array in [*rows.items(), ("", owners), *((name, index) for name, (_, index) in groups.items())]:
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return Asked(rows, owners, groups, baselines, digest.hexdigest())
