"""The fields of the image models' configs, their published sizes and their rules; without Flax."""

from ml_collections import ConfigDict

from models import fields
from models.fields import (
    DTYPES,
    LAYER_FIELDS,
    POOLS,
    check_choices,
    check_epsilon,
    check_given,
    check_layers,
    check_least,
    check_rates,
    check_rope_base,
    check_types,
)
from models.variants import VARIANTS, Setting, check_attention

SHARED_FIELDS = {
    "name": str,
    "channels": int,  # of the images; 0 = as the data have
    "num_classes": int,  # 0 = as the data have
    "patch_size": int,  # 0 = see `patch_of`
    "dropout": float,
    "drop_path": float,  # stochastic depth: the rate of the last block; earlier ones rise linearly to it
    "norm_epsilon": float,
    "dtype": str,
    "remat": bool,
    "attention": ConfigDict,
}
FIELDS = {
    "vit": SHARED_FIELDS
    | LAYER_FIELDS
    | {
        "pool": str,
        "registers": int,
        "position": str,
        "rope_base": float,
        "scan_layers": bool,
    },
    "swin": SHARED_FIELDS
    | {
        "version": int,
        "width": int,
        "depths": tuple,
        "num_heads": tuple,
        "mlp_ratio": float,
        "attention_dropout": float,
        "head": str,
        "head_width": int,
    },
    "axial": SHARED_FIELDS
    | {
        "stem": str,
        "width": int,
        "depths": tuple,
        "num_heads": int,
        "head": str,
        "head_width": int,
    },
}

# Published sizes, and a tiny one for images of 8 to 32 pixels: the fields that differ between sizes.
SIZES = {
    "vit": {
        "tiny": {
            "width": 64,
            "depth": 4,
            "num_heads": 4,
            "num_kv_heads": 4,
            "mlp_width": 256,
            "pool": "mean",  # special tokens have no place on the grid of axial attention and of windows
        },
        "S": {"patch_size": 16, "width": 384, "depth": 12, "num_heads": 6, "num_kv_heads": 6, "mlp_width": 1536},
        "B": {"patch_size": 16, "width": 768, "depth": 12, "num_heads": 12, "num_kv_heads": 12, "mlp_width": 3072},
        "L": {"patch_size": 16, "width": 1024, "depth": 24, "num_heads": 16, "num_kv_heads": 16, "mlp_width": 4096},
    },
    # Liu et al. 2021, section 3.3, with windows of 7 at 224 pixels.
    "swin": {
        "tiny": {"width": 32, "depths": (2, 2), "num_heads": (2, 4)},
        "T": {"patch_size": 4, "width": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
        "S": {"patch_size": 4, "width": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
        "B": {"patch_size": 4, "width": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
        "L": {"patch_size": 4, "width": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
    },
    "axial": {
        "tiny": {"stem": "patch", "width": 16, "depths": (1, 1), "num_heads": 4},
        "S26": {"stem": "conv", "width": 32, "depths": (1, 2, 4, 1), "num_heads": 8},
        "S": {"stem": "conv", "width": 32, "depths": (3, 4, 6, 3), "num_heads": 8},
        "M": {"stem": "conv", "width": 48, "depths": (3, 4, 6, 3), "num_heads": 8},
        "L": {"stem": "conv", "width": 64, "depths": (3, 4, 6, 3), "num_heads": 8},
    },
}

# What the published models of a kind share.
PUBLISHED = {
    "vit": {
        "norm_epsilon": 1e-6,
        "mlp_chunks": 1,
        "norm": "layer",
        "use_bias": True,
        "activation": "gelu",
        "pool": "cls",
        "registers": 0,
        "position": "learned",
        "rope_base": 100.0,  # for position="rope" (Heo et al. 2024, arXiv:2403.13298)
        "attention_dropout": 0.0,
        "scan_layers": True,
        "attention": {"name": "full"},
    },
    "swin": {
        "norm_epsilon": 1e-5,
        "version": 1,
        "mlp_ratio": 4.0,
        "attention_dropout": 0.0,
        "head": "classes",
        "head_width": 0,
        "attention": {"name": "shifted_window", "window": 7, "shift": 1, "relative_bias": 1},
    },
    "axial": {
        "norm_epsilon": 1e-5,
        "head": "classes",
        "head_width": 0,
        "attention": {"name": "axial", "position_sensitive": 1, "span": 0},
    },
}


def preset(name, size, **changes):
    """The config of a published model, channels and classes as the data have, without dropout or stochastic depth.

    Args:
      name: of the model, a key of SIZES.
      size: a key of SIZES[name].
      **changes: fields with other values.

    Returns:
      A ConfigDict with the fields of FIELDS[name].

    >>> preset("vit", "B", num_classes=1000, channels=3).mlp_width
    3072
    """
    shared = {"name": name, "channels": 0, "num_classes": 0, "patch_size": 0}
    shared |= {"dropout": 0.0, "drop_path": 0.0, "dtype": "float32", "remat": False}
    return ConfigDict(shared | PUBLISHED[name] | SIZES[name][size] | changes)


def patch_of(config, length):
    """Side of a patch in pixels: `patch_size`, or for 0 the image's side / 14, so that there are about 14 x 14.

    >>> [patch_of(ConfigDict({"patch_size": 0}), side) for side in (8, 28, 32, 224)]
    [1, 2, 2, 16]
    """
    return config.patch_size or max(1, length // 14)


def check(config, length):
    """Raises ValueError, in one line that says what to write, if no model can be built from `config`.

    Args:
      config: a mapping with the fields of `FIELDS[config.name]`.
      length: side of the training images in pixels.
    """
    check_given(config, length)
    check_types(config, FIELDS[config.name])
    check_choices(config, {"dtype": DTYPES})
    check_least(config, {"channels": 0, "num_classes": 0, "patch_size": 0})
    if config.patch_size > length:
        raise ValueError(f"model.patch_size: wanted at most the image's {length} pixels, got {config.patch_size}")
    check_epsilon(config)
    check_rates(config, ("dropout", "drop_path"))
    CHECKS[config.name](config, length)


def check_filled(config):
    """Raises ValueError where a field is still 0 that only the data know: a model cannot be built from it."""
    fields.check_filled(config, ("channels", "num_classes"))


POSITIONS = ("learned", "sincos", "rope", "none")  # of a ViT


def _check_vit(config, length):
    check_choices(config, {"pool": POOLS, "position": POSITIONS})
    check_least(config, {"registers": 0})
    check_layers(config)
    if config.position == "sincos" and config.width % 4:
        raise ValueError(f"model.width: sincos wants a multiple of 4 (sine and cosine, two axes), got {config.width}")
    if config.position == "rope":
        check_rope_base(config)
        if (head_dim := config.width // config.num_heads) % 4:
            raise ValueError(
                f"model.width: rope turns pairs in two directions, and width / num_heads = {head_dim} is no multiple "
                "of 4; make it one"
            )
    shared = {name: config[name] for name in ("position", "attention_dropout", "num_heads")}
    check_attention(config.attention, use="encoder", grid=True, **shared)
    name = config.attention.name
    if VARIANTS[name].grid and (config.pool != "mean" or config.registers):
        wanted, got = ("registers", config.registers) if config.pool == "mean" else ("pool", repr(config.pool))
        instead = "0" if wanted == "registers" else "'mean'"
        raise ValueError(
            f"model.{wanted}: {name!r} has no place on the grid for special tokens, got {got}; write {instead}"
        )


HEADS = ("classes", "pixels")  # of Swin and Axial-ResNet
SHIFTED_WINDOW = {  # settings of Swin's attention
    "window": Setting(7, minimum=1),  # patches on a side
    "shift": Setting(1, maximum=1),  # 1: every other block moves the windows
    "relative_bias": Setting(1, maximum=1),  # 1: scores gain a number for each relative position
}


def _check_swin(config, length):
    if config.version not in (1, 2):
        raise ValueError(f"model.version: wanted 1 or 2, got {config.version}; write 1")
    check_settings(config.attention, "shifted_window", SHIFTED_WINDOW)
    check_rates(config, ("attention_dropout",))
    check_least(config, {"width": 1})
    _check_head(config)
    _check_stages(config, ("depths", "num_heads"))
    if len(config.depths) != len(config.num_heads):
        raise ValueError(
            f"model.num_heads: wanted one for each of the {len(config.depths)} stages in depths, got {config.num_heads}"
        )
    for s, heads in enumerate(config.num_heads):
        if (width := config.width * 2**s) % heads:
            raise ValueError(f"model.num_heads: stage {s} has a width of {width}, no multiple of {heads}; change one")
    if not config.mlp_ratio * config.width >= 1:
        raise ValueError(f"model.mlp_ratio: wanted at least 1 / width, got {config.mlp_ratio}; write 4.0")


def _check_head(config):
    """A class for the image, or for every pixel; only the second has a width between."""
    check_choices(config, {"head": HEADS})
    if config.head == "pixels":
        check_least(config, {"head_width": 1})
    elif config.head_width:
        raise ValueError(f"model.head_width: got {config.head_width}, but head={config.head!r} has none; write 0")


def _check_stages(config, names):
    for name in names:
        if not config[name] or not all(type(n) is int and n > 0 for n in config[name]):
            raise ValueError(
                f"model.{name}: wanted a positive integer for each stage, got {config[name]}; write (2, 2)"
            )


def check_settings(attention, name, settings):
    """Raises ValueError unless `attention` is {"name": name} with all of these settings, a dict of `Setting`s."""
    if attention.get("name") != name:
        raise ValueError(f"model.attention.name: this model has {name!r} only, got {attention.get('name')!r}")
    for extra in attention.keys() - settings.keys() - {"name"}:
        raise ValueError(f"model.attention.{extra}: {name!r} has no such setting; it takes {', '.join(settings)}")
    for wanted, setting in settings.items():
        if wanted not in attention:
            raise ValueError(f"model.attention.{wanted}: missing for {name!r}; write {wanted}={setting.example!r}")
        setting.check(f"model.attention.{wanted}", attention[wanted])


STEMS = ("conv", "patch")  # of an Axial-ResNet
AXIAL = {  # settings of its attention: whether distances have vectors, and how many keys a query sees, 0 = all
    "position_sensitive": Setting(1, maximum=1),
    "span": Setting(0),
}


def _check_axial(config, length):
    check_choices(config, {"stem": STEMS})
    check_settings(config.attention, "axial", AXIAL)
    check_least(config, {"width": 1, "num_heads": 1})
    _check_head(config)
    _check_stages(config, ("depths",))
    if config.width % config.num_heads:
        raise ValueError(
            f"model.width: wanted a multiple of num_heads = {config.num_heads}, got {config.width}; change one"
        )
    if config.stem == "conv" and config.patch_size:
        raise ValueError(f"model.patch_size: the conv stem cuts no patches, got {config.patch_size}; write 0")
    if (span := config.attention.span) and span % 2 == 0:
        raise ValueError(f"model.attention.span: wanted 0 (the whole axis) or an odd number, got {span}; add 1")


CHECKS = {"vit": _check_vit, "swin": _check_swin, "axial": _check_axial}
