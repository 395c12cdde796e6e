"""The edges of a batch of graphs, as arrays of one shape: which count, their union, loops, distances."""

from typing import Any, NamedTuple

import jax
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


def check_edges(name, edges, tokens, wanted):
    """Raises ValueError unless the argument `name` is what a model of `tokens [B, T]` wants: `Edges`, or None.

    Args:
      name: of the argument, for the message.
      edges: what was given.
      tokens: [B, T].
      wanted: whether the model reads a graph.
    """
    if wanted != (edges is not None):
        lack = "this model reads one, got None; give models.edges.Edges of [B, E]"
        excess = "this model reads none; leave it out, or write model.graph_attention = {'name': 'graph', ...}"
        raise ValueError(f"{name}: {lack if wanted else excess}")
    if edges is None:
        return
    if not isinstance(edges, Edges):
        raise ValueError(f"{name}: wanted models.edges.Edges, got {type(edges).__name__}")
    shape = (len(tokens), *edges.senders.shape[1:])
    for field, array in edges._asdict().items():
        kind, known = ("bool", jnp.bool_) if field == "mask" else ("integers", jnp.integer)
        if array.ndim != 2 or array.shape != shape or not jnp.issubdtype(array.dtype, known):
            wanted, got = f"{kind} [B, E] with B = {len(tokens)}", f"{array.dtype}{list(array.shape)}"
            raise ValueError(f"{name}.{field}: wanted {wanted}, one E for all, got {got}")


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


def with_self_loops(edges, num_nodes, relation):
    """The same edges, and behind them one from every node to itself, of its own relation.

    Args:
      edges: `Edges` of [E], one graph.
      num_nodes: V.
      relation: of the new edges.

    Returns:
      `Edges` of [E + V].

    >>> loops = with_self_loops(Edges(*jnp.zeros((3, 1), int), mask=jnp.ones(1, bool)), 2, 4)
    >>> loops.senders.tolist(), loops.receivers.tolist(), loops.relations.tolist()
    ([0, 0, 1], [0, 0, 1], [0, 4, 4])
    """
    nodes = jnp.arange(num_nodes, dtype=edges.senders.dtype)
    loops = Edges(nodes, nodes, jnp.full_like(nodes, relation), jnp.ones_like(nodes, bool))
    return Edges(*map(jnp.append, edges, loops))


def without_self_loops(edges):
    """The same edges, where those from a node to itself are padding: mask False.

    >>> without_self_loops(Edges(*jnp.array([[0, 1], [1, 1], [0, 0]]), mask=jnp.ones(2, bool))).mask.tolist()
    [True, False]
    """
    return edges._replace(mask=edges.mask & (edges.senders != edges.receivers))


def between_real(edges, *, key_mask=None, segment_ids=None, causal=False):
    """The same edges, where those that a text does not allow are padding: all indices 0, and mask False.

    Args:
      edges: `Edges` of [B, E] over T tokens.
      key_mask: [B, T] bool, True = real token; both ends of an edge must be.
      segment_ids: [B, T] int, documents of a packed row, negative = padding; both ends must be in one document.
      causal: an edge may not come from a later token.

    Returns:
      `Edges` of [B, E].
    """
    of = jax.vmap(lambda array, index: array[index])
    mask = edges.mask
    senders, receivers = (jnp.where(mask, ends, 0) for ends in (edges.senders, edges.receivers))
    if key_mask is not None:
        mask &= of(key_mask, senders) & of(key_mask, receivers)
    if segment_ids is not None:
        document = of(segment_ids, receivers)
        mask &= (of(segment_ids, senders) == document) & (document >= 0)
    if causal:
        mask &= senders <= receivers
    senders, receivers, relations = (jnp.where(mask, x, 0) for x in (senders, receivers, edges.relations))
    return Edges(senders, receivers, relations, mask)


def graph_distances(edges, num_nodes, farthest):
    """How many edges lie between each two nodes, whichever way they point.

    Breadth-first from all nodes at once: r_d = r_(d - 1) (A + I), boolean products of matrices, where A is the
    adjacency of the undirected graph. Beyond `farthest` the steps double, only to tell what is far from what is apart.
    Time O((farthest + log V) B V^3), memory O(B V^2): meant for sentences, not for networks.

    Args:
      edges: `Edges` of [B, E].
      num_nodes: V.
      farthest: D >= 1, the largest distance that is counted.

    Returns:
      [B, V, V] int32: 0 to D, D + 1 for more than D edges, D + 2 where no path leads.

    >>> chain = Edges(*jnp.array([[[0, 1, 2]], [[1, 2, 3]], [[0, 0, 0]]]), mask=jnp.ones((1, 3), bool))
    >>> graph_distances(chain, 5, 2)[0, 0].tolist()
    [0, 1, 2, 3, 4]
    """
    rows = jnp.arange(len(edges.senders))[:, None]
    ends = [jnp.where(edges.mask, x, num_nodes) for x in (edges.senders, edges.receivers)]  # beyond the end: dropped
    reached = near = jnp.broadcast_to(jnp.eye(num_nodes), (len(rows), num_nodes, num_nodes))
    for one, other in (ends, ends[::-1]):
        near = near.at[rows, one, other].set(1.0, mode="drop")
    distance = jnp.where(reached > 0, 0, farthest + 2)
    for step in range(1, farthest + 1):
        reached = _product(reached, near)
        distance = jnp.where(reached > 0, jnp.minimum(distance, step), distance)
    steps = farthest
    while steps < num_nodes - 1:
        reached, steps = _product(reached, reached), 2 * steps
    return jnp.where(reached > 0, jnp.minimum(distance, farthest + 1), distance).astype(jnp.int32)


def _product(a, b):
    """The boolean product of [B, V, V] matrices of 0.0 and 1.0: whether any k has a[i, k] and b[k, j]."""
    return (a @ b > 0).astype(a.dtype)
