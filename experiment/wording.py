"""How a report speaks of what the models of a comparison read: text, images or graphs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """What differs in the words of a report.

    Attributes:
      compared: what the variants are, in the plural.
      topic: what they are compared on, from the `name` of the data and the `task`.
      unseen: the validation data, and what of them training has not seen.
      pieces: what the validation data consist of, in the plural, where the data do not say.
      cost: title of the section about growing cost.
      size: what grows there.
      growing: how one layer is put through it.
      letter: the size in formulas.
      axis: the size on the axis of a chart.
      sees: what is drawn of each variant: "pairs" that may attend, the "grid" of patches that one query sees, or
        nothing: "".
    """

    compared: str = "kinds of attention"
    topic: str = "{name} ({task})"
    unseen: str = "validation data never seen in training"
    pieces: str = "files"
    cost: str = "Cost against length"
    size: str = "length"
    growing: str = "at growing length T"
    letter: str = "T"
    axis: str = "sequence length T"
    sees: str = "pairs"


_TEXT = Wording()
_IMAGES = Wording(
    compared="image models",
    topic="{name}",
    pieces="images",
    cost="Cost against image size",
    size="number of patches",
    growing="on growing grids of T = rows × columns patches",
    axis="patches, T = rows × columns",
    sees="grid",
)
_GRAPHS = Wording(
    compared="graph models",
    topic="{name}",
    unseen="validation data whose answers were never seen in training",  # of one graph, nodes and edges were
    pieces="node groups",
    cost="Cost against graph size",
    size="number of nodes",
    growing="on growing random graphs of V nodes",
    letter="V",
    axis="nodes V",
    sees="",  # who may attend to whom is the graph itself, and the same for all
)
# What speed is counted in -> the words; whatever stands not here is read as text.
_OF_UNIT = {"images": _IMAGES, "nodes": _GRAPHS, "questions": _GRAPHS}


def unit(comparison) -> str:
    """What speed is counted in: "tokens", "images", "nodes", ..."""
    return (comparison.get("unit") or {}).get("name", "tokens")


def wording(comparison) -> Wording:
    """The words for this comparison, which follow from its unit.

    >>> wording({"unit": {"name": "nodes"}}).compared, wording({}).compared
    ('graph models', 'kinds of attention')
    """
    return _OF_UNIT.get(unit(comparison), _TEXT)
