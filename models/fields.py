"""The checks that the configs of all models share: a fault is one line that says what to write instead."""

from ml_collections import ConfigDict, FrozenConfigDict

from models import MODELS

DTYPES = ("float32", "bfloat16")
POOLS = ("cls", "mean")
NORMS = ("rms", "layer")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")  # gelu is exact, gelu_tanh the approximation that GPT-2 uses
LAYER_FIELDS = {  # what `models.block.Block` reads, in models of text and of images
    "width": int,
    "depth": int,
    "num_heads": int,
    "num_kv_heads": int,
    "mlp_width": int,
    "mlp_chunks": int,
    "norm": str,
    "norm_epsilon": float,
    "use_bias": bool,
    "activation": str,
    "dropout": float,
    "attention_dropout": float,
    "dtype": str,
}


def check_given(config, length):
    """Raises ValueError unless `config` is a ConfigDict that names a model, and `length` a positive integer."""
    if not isinstance(config, (ConfigDict, FrozenConfigDict)):
        raise ValueError(f"model: wanted a ConfigDict, got {type(config).__name__}; write ConfigDict(...)")
    if type(length) is not int or length < 1:
        raise ValueError(f"length: wanted a positive integer, got {length!r}; write one such as 512")
    if "name" not in config:
        raise ValueError(f"model.name: missing; write name: one of {', '.join(MODELS)}")
    check_choices(config, {"name": MODELS})


def check_types(config, fields):
    """Raises ValueError unless `config` has exactly these fields, with these types."""
    for name in config.keys() - fields.keys():
        raise ValueError(f"model.{name}: unknown field; the fields are {', '.join(fields)}")
    for name, wanted in fields.items():
        if name not in config:
            raise ValueError(f"model.{name}: missing; write {name}: {wanted.__name__}")
        value = config[name]
        allowed = {float: (float, int), ConfigDict: (ConfigDict, FrozenConfigDict)}.get(wanted, wanted)
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(f"model.{name}: wanted {wanted.__name__}, got {value!r}")


def check_choices(config, choices):
    """Raises ValueError unless each field that `choices` names and `config` has holds one of its words."""
    for name in choices.keys() & config.keys():
        if config[name] not in choices[name]:
            raise ValueError(f"model.{name}: got {config[name]!r}; write one of {', '.join(choices[name])}")


def check_least(config, least):
    """Raises ValueError unless each field that `least` names and `config` has is at least that."""
    for name, minimum in least.items():
        if name in config and config[name] < minimum:
            raise ValueError(f"model.{name}: wanted at least {minimum}, got {config[name]}")


def check_filled(config, names):
    """Raises ValueError where a field is still 0 that only the data know: a model cannot be built from it."""
    for name in names:
        if not config[name]:
            raise ValueError(f"model.{name}: 0 stands for what the data have, and none were read; write the number")


def check_layers(config):
    """Raises ValueError unless a stack of layers can have the `LAYER_FIELDS` of `config`."""
    check_choices(config, {"dtype": DTYPES, "norm": NORMS, "activation": ACTIVATIONS})
    check_least(config, dict.fromkeys(("width", "depth", "num_heads", "num_kv_heads", "mlp_width", "mlp_chunks"), 1))
    check_epsilon(config)
    check_rates(config, ("dropout", "attention_dropout"))
    for whole, part in (("width", "num_heads"), ("num_heads", "num_kv_heads")):
        if config[whole] % config[part]:
            raise ValueError(f"model.{whole}: {config[whole]} is not a multiple of {part} = {config[part]}; change one")


def check_epsilon(config):
    """Raises ValueError unless `norm_epsilon` keeps a vector of zeros from dividing by 0."""
    if not 0 < config.norm_epsilon < 1:
        raise ValueError(f"model.norm_epsilon: wanted a number in (0, 1), got {config.norm_epsilon}; write 1e-6")


def check_rates(config, names):
    """Raises ValueError unless each of the fields is a probability below 1."""
    for name in names:
        if not 0 <= config[name] < 1:
            raise ValueError(f"model.{name}: wanted a rate in [0, 1), got {config[name]}; write 0.0 for none")


def check_rope_base(config):
    """Raises ValueError unless `rope_base` gives frequencies that fall."""
    if not 1 < config.rope_base < float("inf"):
        raise ValueError(f"model.rope_base: wanted a number above 1, got {config.rope_base}; write 10000.0")
