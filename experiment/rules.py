"""What each field of a config may hold, but for those of `config.model`, which `models.config` checks."""

OPTIMIZERS = ("adamw", "adam", "muon")  # the keys of experiment.optimizers.OPTIMIZERS, known before optax is imported


def _at_least(minimum):
    return int, lambda value: minimum <= value < 2**31, f"at least {minimum} and below 2**31"


_COUNT = _at_least(1)
_ANY_TEXT = (str, lambda value: True, "text")
_PROBABILITY = (float, lambda value: 0 <= value < 1, "in [0, 1)")
_POSITIVE = (float, lambda value: 0 < value < float("inf"), "above 0 and below inf")
_NOT_NEGATIVE = (float, lambda value: 0 <= value < float("inf"), "at least 0 and below inf")

# Field -> (type, test, what is wanted); of `config.data` those that the task reads (`DATA`). `config.model` is checked
# by `models.config`.
RULES = {
    "task": _ANY_TEXT,
    "seed": _at_least(0),
    "seeds": _COUNT,
    "only": _ANY_TEXT,
    "data.name": _ANY_TEXT,
    "data.path": _ANY_TEXT,
    "data.dir": _ANY_TEXT,
    "data.length": _COUNT,
    "data.validation_bytes": _at_least(2),
    "data.validation_examples": _COUNT,
    "data.image_size": _at_least(0),
    "data.crop": _at_least(0),
    "data.flip": (bool, lambda value: True, "True or False"),
    "data.mixup": _NOT_NEGATIVE,
    "data.label_smoothing": _PROBABILITY,
    "data.num_shapes": _COUNT,
    "data.noise": _NOT_NEGATIVE,
    "data.validation_images": _at_least(2),
    "data.questions": _COUNT,
    "data.num_nodes": _at_least(0),
    "data.num_neighbours": _at_least(0),
    "data.labels_per_class": _at_least(0),
    "data.num_keys": _at_least(2),
    "data.judge": _ANY_TEXT,
    "data.question": _ANY_TEXT,
    "data.tree": _ANY_TEXT,
    "data.vocabulary": _at_least(2),
    "data.num_pairs": _at_least(0),
    "data.num_symbols": _at_least(0),
    "data.power": (float, lambda value: 0 < value <= 4, "above 0 and at most 4"),  # slots^(power - 1) stay in float32
    "data.filler": _ANY_TEXT,
    "data.min_length": _at_least(0),
    "data.max_depth": _COUNT,
    "data.max_args": _at_least(2),
    "data.contour_length": _at_least(2),
    "data.num_distractors": _at_least(0),
    "train.steps": _COUNT,
    "train.batch_size": _COUNT,
    "train.accumulate": _COUNT,
    "train.optimizer": (str, lambda value: value in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    "train.learning_rate": _POSITIVE,
    "train.warmup_steps": _at_least(0),
    "train.final_fraction": (float, lambda value: 0 <= value <= 1, "in [0, 1]"),
    "train.weight_decay": _NOT_NEGATIVE,
    "train.beta1": _PROBABILITY,
    "train.beta2": _PROBABILITY,
    "train.clip_norm": (float, lambda value: value > 0, "above 0, or inf for no limit"),
    "train.evaluate_every": _COUNT,
    "train.evaluate_examples": _COUNT,
    "train.checkpoint_every": _COUNT,
    "train.keep_checkpoints": _at_least(2),
    "train.patience": _at_least(0),
    "scaling.lengths": (tuple, lambda value: all(type(n) is int and n > 0 for n in value), "positive integers"),
    "scaling.batch_size": _COUNT,
    "scaling.seconds": _NOT_NEGATIVE,
}
