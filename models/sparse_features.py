"""Features of nodes of which few are not 0, as bags of words are: only those are stored, dropped and multiplied."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.layers import dropout, product


class Bag(NamedTuple):
    """The entries of a matrix [U, F] that are not 0, in any order; entries of one place add up.

    Args:
      entries: [M], or [M, N] where each of N heads has dropped others.
      nodes: [M] int, the row of each entry.
      features: [M] int, its column.
      num_nodes: U, a Python int.
    """

    entries: Any
    nodes: Any
    features: Any
    num_nodes: int


def bag_of(features, dtype):
    """The nodes of a batch of graphs, `BCOO [B, V, F]` with n_batch=1, as the B V rows of a `Bag` in `dtype`.

    An index past the end marks padding, as in all of `jax.experimental.sparse`; so does an entry that is 0.
    """
    batch, num_nodes, width = features.shape
    node, feature = features.indices[..., 0], features.indices[..., 1]
    real = (node < num_nodes) & (feature < width)
    entries, node, feature = (jnp.where(real, x, 0) for x in (features.data, node, feature))
    node = node + num_nodes * jnp.arange(batch)[:, None]
    return Bag(entries.reshape(-1).astype(dtype), node.reshape(-1), feature.reshape(-1), batch * num_nodes)


def drop_per_head(x, num_heads, rate, rng):
    """Dropout with a mask of its own for each head, before heads project: every layer of GAT begins with it.

    An entry that is 0 stays 0, so of a `Bag` the stored ones are enough.

    Args:
      x: [U, F], or a `Bag`.
      num_heads: N.
      rate: 0 <= rate < 1.
      rng: typed random key, or None to leave `x` as it is.

    Returns:
      [U, N, F], or a `Bag` with entries [M, N]; `x` itself where nothing is dropped.
    """
    if rng is None or rate == 0.0:
        return x
    entries = x.entries if isinstance(x, Bag) else x
    each = jnp.broadcast_to(jnp.expand_dims(entries, 1), (len(entries), num_heads, *entries.shape[1:]))
    dropped = dropout(each, rate, rng)
    return x._replace(entries=dropped) if isinstance(x, Bag) else dropped


def project(x, matrix):
    """Every node's features times the matrix of each head.

    Time O(U F N H) for an array; O(M N H) for a `Bag`, of which every entry adds its multiple of one row of the matrix.

    Args:
      x: [U, F] or [U, N, F] or a `Bag`, see `drop_per_head`.
      matrix: [F, N, H].

    Returns:
      [U, N, H] in the dtype of `x`.
    """
    if isinstance(x, Bag):
        rows = x.entries.reshape(len(x.entries), -1, 1) * matrix.astype(x.entries.dtype)[x.features]  # M N H
        return jax.ops.segment_sum(rows, x.nodes, x.num_nodes)
    if x.ndim == 3:
        return jnp.einsum("unf,fnh->unh", x, matrix.astype(x.dtype))
    return product(x, matrix)
