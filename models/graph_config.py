"""The fields of a graph network's config and their rules; without Flax."""

from ml_collections import ConfigDict

from models.fields import DTYPES, check_choices, check_given, check_least, check_rates, check_types
from models.variants import Setting, check_settings

FIELDS = {
    "graph_network": {
        "name": str,
        "num_features": int,  # of a node; 0 = as the data have
        "num_classes": int,  # 0 = as the data have
        "num_relations": int,  # kinds of edges that scores tell apart; 0 = all edges are alike
        "input_width": int,  # features of a projection and ReLU before the first layer; 0 = none
        "num_heads": tuple,  # of each layer
        "head_dim": tuple,  # of each layer but the last, whose heads have num_classes; with `readout` of each
        "readout": bool,  # a matrix turns the last layer's features into classes; else its heads, averaged, are they
        "activation": str,  # after every layer but one whose heads are the classes
        "residual": bool,  # a layer adds its input to its output, but for the first and one whose heads are the classes
        "self_loops": bool,  # every node attends to itself, too
        "dropout": float,
        "attention_dropout": float,
        "dtype": str,
        "attention": ConfigDict,
    }
}
ACTIVATIONS = ("elu", "relu")
SHARE = {"share_weights": Setting(0, maximum=1)}  # 1: one projection for senders and receivers
# Kind of attention -> its settings.
ATTENTION = {"gat": {}, "gatv2": SHARE, "dot_product": SHARE, "gcn": {}, "constant": {}}
WITHOUT_SCORES = ("gcn", "constant")


def check(config, length):
    """Raises ValueError, in one line that says what to write, if no model can be built from `config`.

    Args:
      config: a mapping with the fields of `FIELDS[config.name]`.
      length: nodes of a graph; the model takes any number.
    """
    check_given(config, length)
    check_types(config, FIELDS[config.name])
    check_choices(config, {"dtype": DTYPES, "activation": ACTIVATIONS})
    check_least(config, dict.fromkeys(("num_features", "num_classes", "num_relations", "input_width"), 0))
    check_rates(config, ("dropout", "attention_dropout"))
    _check_layers(config)
    _check_attention(config)


def _check_layers(config):
    for name in ("num_heads", "head_dim"):
        if not all(type(n) is int and n > 0 for n in config[name]):
            raise ValueError(f"model.{name}: wanted positive integers, got {config[name]}; write (8, 8)")
    if not config.num_heads:
        raise ValueError("model.num_heads: wanted a number for each layer, got (); write (8, 1)")
    wanted = len(config.num_heads) - (not config.readout)
    if len(config.head_dim) != wanted:
        layers = "each layer" if config.readout else "each layer but the last, which has num_classes"
        raise ValueError(
            f"model.head_dim: wanted {wanted} numbers, one for {layers}, got {config.head_dim}; "
            f"write {(8,) * wanted}, or change num_heads = {config.num_heads}"
        )
    if config.residual and wanted < 2:
        raise ValueError("model.residual: no layer stands between the first and the classes; write False")


def _check_attention(config):
    given = dict(config.attention)
    name = given.pop("name", None)
    if name not in ATTENTION:
        raise ValueError(f"model.attention.name: got {name!r}; write one of {', '.join(ATTENTION)}")
    check_settings("model.attention", name, given, ATTENTION[name])
    if name in WITHOUT_SCORES and config.num_relations:
        raise ValueError(f"model.num_relations: {name!r} has no scores for relations to change; write 0")
    if name == "gcn" and config.attention_dropout:
        raise ValueError("model.attention_dropout: 'gcn' does not attend, and drops inputs alone; write 0.0")
