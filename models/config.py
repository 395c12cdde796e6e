"""The fields of a model's config and what they may hold; without Flax, so that a fault is found before its import."""

import functools

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from attention import rotary_frequencies
from models import graph_config, link_config, vision_config
from models.fields import (
    LAYER_FIELDS,
    POOLS,
    check_choices,
    check_given,
    check_layers,
    check_least,
    check_rope_base,
    check_types,
)
from models.variants import VARIANTS, check_attention

POSITIONS = ("rope", "alibi", "t5", "learned", "sinusoidal", "none")
TEXT_FIELDS = (
    {"name": str, "vocab_size": int}
    | LAYER_FIELDS
    | {
        "position": str,
        "rope_base": float,
        "rope_scaling": ConfigDict,
        "t5_buckets": int,
        "t5_max_distance": int,
        "tie_embeddings": bool,
        "scan_layers": bool,
        "remat": bool,
        "reversible": bool,
        "attention": ConfigDict,
        "graph_attention": ConfigDict,  # a branch of every layer; {} = none
        "graph_bias": int,  # distances in the graph that the scores of self-attention tell apart; 0 = none
        "num_relations": int,  # kinds of edges; 0 = as the data have
    }
)
# Name in `models.MODELS` -> the fields its config has, with their types. A field that a model does not read is refused.
FIELDS = (
    {
        "transformer": TEXT_FIELDS,
        "encoder": TEXT_FIELDS | {"pool": str, "num_classes": int},
        "two_towers": TEXT_FIELDS | {"pool": str, "num_classes": int},  # those of its encoder
        # `depth` and `decoder_attention` are the decoder's, `encoder_depth` and `attention` the encoder's.
        "encoder_decoder": TEXT_FIELDS
        | {"encoder_depth": int, "decoder_attention": ConfigDict, "cross_attention": ConfigDict},
    }
    | vision_config.FIELDS
    | graph_config.FIELDS
    | link_config.FIELDS
)
# Field of a config that names a variant -> what it is used for, per model (see `models.variants.USES`).
ATTENTIONS = {
    "transformer": {"attention": "decoder", "graph_attention": "decoder"},
    "encoder": {"attention": "encoder", "graph_attention": "encoder"},
    "two_towers": {"attention": "encoder"},
    "encoder_decoder": {
        "attention": "encoder",
        "graph_attention": "encoder",
        "decoder_attention": "decoder",
        "cross_attention": "cross",
    },
    "vit": {"attention": "encoder"},
}
ON_GRAPH = ("attention", "graph_attention")  # fields whose variant may read a graph


def check(config, length):
    """Raises ValueError, in one line that says what to write, if no model can be built from `config` at this length.

    Nothing is compiled.

    Args:
      config: a mapping with the fields of `FIELDS[config.name]`.
      length: the training length T, for models of images the side of the training images in pixels.
    """
    check_given(config, length)
    if config.name in vision_config.FIELDS:
        return vision_config.check(config, length)
    if config.name in graph_config.FIELDS:
        return graph_config.check(config, length)
    if config.name in link_config.FIELDS:
        return link_config.check(config, length)
    check_types(config, FIELDS[config.name])
    check_choices(config, {"position": POSITIONS, "pool": (*POOLS, "tokens")})
    check_least(config, {"vocab_size": 1, "encoder_depth": 1, "t5_buckets": 1, "num_classes": 0})
    check_least(config, {"graph_bias": 0, "num_relations": 0})
    check_layers(config)
    _check_positions(config)
    _check_rope(config, length)
    _check_memory(config)
    _check_head(config)
    _check_towers(config)
    for field, use in ATTENTIONS[config.name].items():
        shared = {name: config[name] for name in ("position", "attention_dropout", "num_heads")}
        if field == "graph_attention":
            if not config[field]:
                continue
            shared["position"] = "none"  # as in cross-attention, which has none of its own
        graph = field in ON_GRAPH and config.name != "two_towers"
        check_attention(config[field], use=use, field=field, graph=graph, **shared)
    _check_graph(config)


def _check_positions(config):
    if config.position == "t5":
        # In an encoder half of the buckets are for keys on the left, half for those on the right.
        both = "encoder" in ATTENTIONS[config.name].values()
        least, beyond = (4, config.t5_buckets // 4) if both else (2, config.t5_buckets // 2)
        if config.t5_buckets < least or both and config.t5_buckets % 2 or config.t5_max_distance <= beyond:
            wanted = "an even t5_buckets, 4 <= t5_buckets < 4 *" if both else "2 <= t5_buckets < 2 *"
            raise ValueError(
                f"model.t5_buckets: wanted {wanted} t5_max_distance, got {config.t5_buckets} and "
                f"{config.t5_max_distance}; write 32 and 128"
            )
    if config.position == "sinusoidal" and config.width % 2:
        raise ValueError(f"model.width: sinusoidal positions want an even width, got {config.width}")


def _check_rope(config, length):
    if config.position != "rope":
        if config.rope_scaling:
            raise ValueError(f"model.rope_scaling: given, but position={config.position!r} does not rotate; write {{}}")
        return
    head_dim = config.width // config.num_heads
    if head_dim % 2:
        raise ValueError(f"model.width: rope turns pairs, and width / num_heads = {head_dim} is odd; make it even")
    check_rope_base(config)
    try:
        jax.eval_shape(functools.partial(rotary_frequencies, **rope_settings(config, length)))  # no device is woken
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.rope_scaling: {error}") from None


def _check_memory(config):
    if config.reversible and config.remat:
        raise ValueError("model.remat: reversible layers recompute everything already; write remat=False")


def _check_head(config):
    classifier = config.name == "two_towers" or config.name == "encoder" and config.num_classes
    if classifier and not config.tie_embeddings:
        raise ValueError("model.tie_embeddings: a classifier has no scores of tokens to untie; write True")


def _check_towers(config):
    if config.name != "two_towers":
        return
    if config.pool == "tokens":
        raise ValueError("model.pool: a pair has one class, and 'tokens' gives each token its own; write mean or cls")
    for field, nothing in (("graph_attention", {}), ("graph_bias", 0)):
        if config[field]:
            raise ValueError(f"model.{field}: the two texts come without a graph; write {nothing}")


def _check_graph(config):
    if config.get("pool") == "cls" and VARIANTS[config.attention.name].graph:
        raise ValueError("model.pool: no edge reaches the vector of 'cls' in graph attention alone; write mean")
    if config.graph_attention and not VARIANTS[config.graph_attention.name].graph:
        name = config.graph_attention.name
        raise ValueError(f"model.graph_attention.name: {name!r} reads no graph; write graph, or {{}} for none")
    if not config.graph_bias:
        return
    if config.name == "transformer":
        raise ValueError(
            "model.graph_bias: a path may run through later words, so no decoder can use it; write 0, and "
            "graph_attention for a graph"
        )
    if not VARIANTS[config.attention.name].can.bias or config.attention.get("summary_per_head"):
        name = config.attention.name
        raise ValueError(f"model.graph_bias: {name!r} has no scores for it to add to; write 0, or another attention")


def reads_graph(config):
    """Whether a model with this config wants the edges of a graph of its tokens."""
    if "graph_bias" not in config:  # a model of images
        return False
    return bool(config.graph_attention or config.graph_bias or VARIANTS[config.attention.name].graph)


def check_filled(config):
    """Raises ValueError where a field is still 0 that only the data know: a model cannot be built from it."""
    named = (config[field].name for field in ON_GRAPH if config[field])
    if not config.num_relations and any(VARIANTS[name].graph for name in named):
        raise ValueError(
            "model.num_relations: 0 stands for what the data have, and none were read; write the number, 1 for edges "
            "all alike"
        )


def rope_settings(config, length):
    """Arguments of `attention.rotary_frequencies` for a model; only dynamic scaling looks at `length`."""
    scaling = dict(config.rope_scaling)
    dynamic = "dynamic" in (scaling.get("rope_type"), scaling.get("type"))
    head_dim = config.width // config.num_heads
    return {
        "head_dim": head_dim,
        "base": config.rope_base,
        "scaling": scaling,
        "length": length if dynamic else None,
    }


def encoder_of(config):
    """The config of an encoder-decoder's encoder: `encoder_depth` layers with `attention`."""
    view = {name: config[name] for name in TEXT_FIELDS}
    return FrozenConfigDict(view | {"name": "encoder", "depth": config.encoder_depth})


def tower_of(config):
    """The config of the encoder that reads both texts of two towers; the classes are those of the pair."""
    view = {name: config[name] for name in FIELDS["encoder"]}
    return FrozenConfigDict(view | {"name": "encoder", "num_classes": 0})


def decoder_of(config):
    """The config of an encoder-decoder's decoder: `depth` layers with `decoder_attention` and `cross_attention`."""
    view = {name: config[name] for name in (*TEXT_FIELDS, "cross_attention")}
    no_graph = {"graph_attention": {}, "graph_bias": 0}  # that is the source's
    return FrozenConfigDict(view | {"name": "transformer", "attention": config.decoder_attention} | no_graph)
