"""Models from other people's weights: folders in the format of Hugging Face's transformers."""

import json
import pkgutil
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open

from models import MODELS
from models.vision_config import preset


def load(folder):
    """The model that a folder of transformers holds, with its weights.

    A folder is what `save_pretrained` writes: `config.json`, whose `model_type` is a key of FORMATS, and
    `model.safetensors`. Their names and ours stand side by side in `SWIN` and its like; `reordered` says how a tensor
    of theirs becomes ours.

    Args:
      folder: path of the folder.

    Returns:
      The model, in the dtype of its config.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ValueError: a kind of model, or a setting of it, that we do not have; tensors that are missing, of another size,
        or that nobody asked for, by name.

    >>> model = load("tests/goldens/hf/swin")
    >>> model.config.depths
    (2, 2)
    """
    folder = Path(folder)
    settings = json.loads((folder / "config.json").read_text())
    kind = settings.get("model_type")
    if kind not in FORMATS:
        raise ValueError(f"{folder / 'config.json'}: model_type {kind!r} is unknown; known are {', '.join(FORMATS)}")
    config_of, names = FORMATS[kind]
    config, length = config_of(settings)
    model = pkgutil.resolve_name(MODELS[config.name])
    graph, state = nnx.split(nnx.eval_shape(lambda: model(config, length=length, rngs=nnx.Rngs(0))))
    tensors = read_tensors(folder / "model.safetensors")
    return nnx.merge(graph, filled(state, tensors, names))


def read_tensors(path):
    """Name -> array of a safetensors file, without those that are no weights: what a config already says."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys() if not BUFFERS.search(name)}


def filled(state, tensors, names):
    """`state` with the arrays of `tensors`.

    Args:
      state: of a model, its leaves with shapes only.
      tensors: name of theirs -> array.
      names: name of ours, numbers written as {stage} -> name of theirs. A name of theirs with {block} is one of many
        that ours stacks on its first axis.

    Raises:
      ValueError: see `load`.
    """
    unused, missing, flat = dict(tensors), [], {}
    for path, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        stage = re.search(r"\.(\d+)\.", name)
        theirs = names[re.sub(r"\.\d+\.", ".{stage}.", name)]
        stacked = "{block}" in theirs
        wanted = [theirs.format(stage=stage and stage[1], block=i) for i in range(leaf.shape[0] if stacked else 1)]
        missing += [name for name in wanted if name not in unused]
        if not missing:
            arrays = [reordered(n, unused.pop(n), leaf.shape[1:] if stacked else leaf.shape) for n in wanted]
            flat[path] = leaf.replace(jnp.asarray(np.stack(arrays) if stacked else arrays[0], leaf.dtype))
    if missing:
        raise ValueError(f"model.safetensors: missing {', '.join(missing)}")
    if unused:
        raise ValueError(f"model.safetensors: {', '.join(unused)} belong to no parameter of this model")
    return nnx.from_flat_state(flat)


def reordered(name, tensor, shape):
    """A tensor of theirs as a parameter of ours with this shape.

    A `weight` of a linear layer is [out, in] and ours [in, out], where `in` or `out` may be heads of some width; that
    of a convolution is [out, in, rows, columns] and ours [rows * columns * in, out]. Everything else differs at most in
    axes of length 1.
    """
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}.get(tensor.ndim) if name.endswith(".weight") else None
    if tensor.size != np.prod(shape, dtype=int):
        raise ValueError(f"model.safetensors: {name} has shape {list(tensor.shape)}, the config wants {list(shape)}")
    return (tensor if axes is None else tensor.transpose(axes)).reshape(shape)


def supported(settings, name, *values):
    """`settings[name]`, where it is one of `values`; the first of them where it is missing."""
    value = settings.get(name, values[0])
    if value not in values:
        raise ValueError(f"config.json: {name} = {value!r} is not supported; {' or '.join(map(repr, values))} is")
    return value


def swin_config(settings):
    """Our config of a Swin of either version, and the side of its images; `settings` are theirs."""
    version = {"swin": 1, "swinv2": 2}[settings["model_type"]]
    supported(settings, "hidden_act", "gelu")
    supported(settings, "qkv_bias", True)
    supported(settings, "use_absolute_embeddings", False)
    if any(settings.get("pretrained_window_sizes", ())):
        raise ValueError("config.json: pretrained_window_sizes other than 0 are not supported")
    config = preset(
        "swin",
        "T",  # every field in which sizes differ has their number
        **_shared(settings),
        version=version,
        width=settings["embed_dim"],
        depths=tuple(settings["depths"]),
        num_heads=tuple(settings["num_heads"]),
        mlp_ratio=float(settings["mlp_ratio"]),
        drop_path=settings["drop_path_rate"],
    )
    config.attention.window = settings["window_size"]
    return config, settings["image_size"]


def vit_config(settings):
    """Our config of a ViT, and the side of its images; `settings` are theirs."""
    supported(settings, "qkv_bias", True)
    activations = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
    config = preset(
        "vit",
        "B",  # every field in which sizes differ has their number
        **_shared(settings),
        width=settings["hidden_size"],
        depth=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        num_kv_heads=settings["num_attention_heads"],
        mlp_width=settings["intermediate_size"],
        activation=activations[supported(settings, "hidden_act", *activations)],
    )
    return config, settings["image_size"]


def _shared(settings):
    """Our fields that both kinds of model have under the same names of theirs."""
    return {
        "channels": settings["num_channels"],
        "num_classes": len(settings.get("id2label", "01")),  # transformers leaves out its default, two classes
        "patch_size": settings["patch_size"],
        "dropout": settings["hidden_dropout_prob"],
        "attention_dropout": settings["attention_probs_dropout_prob"],
        "norm_epsilon": settings["layer_norm_eps"],
    }


# Tensors that follow from the config; older files hold them.
BUFFERS = re.compile(r"relative_(position_index|coords_table)$")


def _block(ours, theirs, inner, more=()):
    """Names of the parameters of a block: before them `ours` and `theirs`; `inner` is their module of the heads."""
    linear = {
        **{f"attention.{name}": f"attention.{inner}.{name}" for name in ("query", "key", "value")},
        "attention.out": "attention.output.dense",
        "mlp.into": "intermediate.dense",
        "mlp.out": "output.dense",
    }
    norms = {"attention_norm": "layernorm_before", "mlp_norm": "layernorm_after"}
    names = {f"{name}_bias": f"{module}.bias" for name, module in linear.items()}
    names |= {name: f"{module}.weight" for name, module in linear.items()}
    names |= {f"{name}.scale": f"{module}.weight" for name, module in norms.items()}
    names |= {f"{name}.bias": f"{module}.bias" for name, module in norms.items()}
    more = {f"attention.{name}": f"attention.{inner}.{module}" for name, module in dict(more).items()}
    return {ours + name: theirs + module for name, module in (names | more).items()}


SWIN = {
    "embedding.embedding": "swin.embeddings.patch_embeddings.projection.weight",
    "embedding.bias": "swin.embeddings.patch_embeddings.projection.bias",
    "embedding_norm.scale": "swin.embeddings.norm.weight",
    "embedding_norm.bias": "swin.embeddings.norm.bias",
    "merges.{stage}.norm.scale": "swin.encoder.layers.{stage}.downsample.norm.weight",
    "merges.{stage}.norm.bias": "swin.encoder.layers.{stage}.downsample.norm.bias",
    "merges.{stage}.reduction": "swin.encoder.layers.{stage}.downsample.reduction.weight",
    "norm.scale": "swin.layernorm.weight",
    "norm.bias": "swin.layernorm.bias",
    "head.classes": "classifier.weight",
    "head.bias": "classifier.bias",
} | _block(
    "stages.{stage}.blocks.",
    "swin.encoder.layers.{stage}.blocks.{block}.",
    "self",
    {
        "position.relative_bias": "relative_position_bias_table",  # version 1
        "log_scale": "logit_scale",  # version 2, like the next three
        "position.position_into": "continuous_position_bias_mlp.0.weight",
        "position.position_into_bias": "continuous_position_bias_mlp.0.bias",
        "position.position_out": "continuous_position_bias_mlp.2.weight",
    },
)
SWIN_V2 = {ours: theirs.replace("swin.", "swinv2.", 1) for ours, theirs in SWIN.items()}

VIT = {
    "embedding.embedding": "vit.embeddings.patch_embeddings.projection.weight",
    "embedding.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "class_token": "vit.embeddings.cls_token",
    "positions": "vit.embeddings.position_embeddings",
    "norm.scale": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "head.classes": "classifier.weight",
    "head.bias": "classifier.bias",
} | _block("blocks.", "vit.encoder.layer.{block}.", "attention")

# `model_type` of a config.json -> (its settings -> (our config, side of the images), our names -> theirs).
FORMATS = {
    "swin": (swin_config, SWIN),
    "swinv2": (swin_config, SWIN_V2),
    "vit": (vit_config, VIT),
}
