"""The fields of a link-prediction model's config and their rules; without Flax."""

from ml_collections import ConfigDict

from models.fields import check_given, check_least, check_rates, check_types

FIELDS = {
    "link_prediction": {
        "name": str,
        "num_entities": int,  # 0 = as the data have
        "num_relations": int,  # without their inverses; 0 = as the data have
        "width": int,
        "depth": int,  # layers of graph attention; 0 = DistMult alone
        "num_heads": int,
        "dropout": float,
        "attention_dropout": float,
        "attention": ConfigDict,
    }
}
ATTENTIONS = ("gat", "gatv2", "constant", "none")  # none of them has settings


def check(config, length):
    """Raises ValueError, in one line that says what to write, if no model can be built from `config`.

    Args:
      config: a mapping with the fields of `FIELDS[config.name]`.
      length: questions that are asked at once; the model takes any number.
    """
    check_given(config, length)
    check_types(config, FIELDS[config.name])
    check_least(config, {"num_entities": 0, "num_relations": 0, "width": 1, "depth": 0, "num_heads": 1})
    check_rates(config, ("dropout", "attention_dropout"))
    if config.width % config.num_heads:
        raise ValueError(
            f"model.width: wanted a multiple of num_heads = {config.num_heads}, got {config.width}; change one"
        )
    _check_attention(config)


def _check_attention(config):
    name = config.attention.get("name")
    if name not in ATTENTIONS:
        raise ValueError(f"model.attention.name: got {name!r}; write one of {', '.join(ATTENTIONS)}")
    for extra in sorted(set(config.attention) - {"name"}):
        raise ValueError(f"model.attention.{extra}: {name!r} has no such setting; drop it")
    if (name == "none") != (config.depth == 0):
        raise ValueError(
            f"model.attention.name: got {name!r} with depth={config.depth}; 'none' goes with depth=0, others with more"
        )
    if name in ("none", "constant") and config.attention_dropout:
        raise ValueError(f"model.attention_dropout: {name!r} learns no weights to drop; write 0.0")
