"""The edges of a batch of graphs, as arrays of one shape, and the one graph that they are together."""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Edges(NamedTuple):
    """The edges of B graphs with V nodes each, a pytree; graphs with fewer are padded.

    Args:
      senders: [B, E] int, the node that each edge leaves, in 0..V - 1 of its own graph.
      receivers: [B, E] int, the node that it reaches.
      relations: [B, E] int, what kind of edge it is.
      mask: [B, E] bool, True = real edge.
    """

    senders: Any
    receivers: Any
    relations: Any
    mask: Any


def disjoint_union(edges, num_nodes):
    """The same edges in one graph of B V nodes, where node v of graph b is b V + v: no message crosses graphs.

    Args:
      edges: `Edges` of [B, E].
      num_nodes: V.

    Returns:
      `Edges` of [B E].

    >>> two = Edges(*jnp.array([[[0], [0]], [[1], [1]], [[0], [0]]]), mask=jnp.ones((2, 1), bool))
    >>> union = disjoint_union(two, 3)
    >>> union.senders.tolist(), union.receivers.tolist()
    ([0, 3], [1, 4])
    """
    first = num_nodes * jnp.arange(len(edges.senders))[:, None]
    shifted = edges._replace(senders=edges.senders + first, receivers=edges.receivers + first)
    return Edges(*(array.reshape(-1) for array in shifted))
