"""Attention along the edges of a graph: each node attends to those that send it an edge.

Gradients of any order, in reverse mode only: forward mode (`jax.jvp`) is refused by JAX.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from . import dropout
from .checks import accumulation_dtype, check_dropout, check_int
from .graph_segments import NOBODY, additive_scores, dots, leaky_relu, send, softmax, take
from .tile import Tile, plain_promotion


@plain_promotion
def edge_softmax(scores, receivers, num_nodes: int, *, edge_mask=None):
    """Softmax over the incoming edges of each node.

        out_e = exp(scores_e - top_r) / sum over edges f to r of exp(scores_f - top_r),   r = receivers_e

    where top_r is the largest score of an edge to r, so that scores of any size are safe.

    Velickovic et al. 2018, "Graph Attention Networks", arXiv:1710.10903, eq. 2.

    Time and memory O(V + E) for each score of an edge.

    Args:
      scores: `[E, ...]`, one or several scores an edge.
      receivers: int `[E]`, the node that each edge reaches, in any order.
      num_nodes: V, how many nodes there are.
      edge_mask: bool `[E]`, True = real edge. The others get 0, whatever they hold.

    Returns:
      `[E, ...]` in the dtype of scores; computed in float32 (float64 for float64).

    Raises:
      ValueError: arguments that do not fit, named. Where receivers are traced, an edge to a node outside of
        0..num_nodes - 1 counts as masked.

    >>> edge_softmax(jnp.array([0.0, 0.0, 5.0]), jnp.array([1, 1, 0]), 3)
    Array([0.5, 0.5, 1. ], dtype=float32)
    """
    scores = jnp.asarray(scores)
    if scores.ndim < 1:
        raise ValueError(f"scores: wanted [E, ...], got shape {scores.shape}")
    _check_float("scores", scores)
    check_int("num_nodes", num_nodes, 0)
    (receivers,) = _check_edges({"receivers": (receivers, num_nodes)}, edge_mask, len(scores))
    weight = softmax(scores.astype(accumulation_dtype(scores.dtype)), receivers, num_nodes)
    return weight.astype(scores.dtype)


@plain_promotion
def gat_attention(
    nodes,
    senders,
    receivers,
    sender_vector,
    receiver_vector,
    *,
    edge_scores=None,
    edge_mask=None,
    negative_slope: float = 0.2,
    num_nodes: int | None = None,
    dropout_rate: float = 0.0,
    rng=None,
    return_weights: bool = False,
):
    """Graph attention with GAT's scores, which are a sum of what the sender says and what the receiver says.

        score_e = leaky_relu(sender_vector . nodes_s + receiver_vector . nodes_r + edge_scores_e),   e from s to r
        out_r = sum over edges e to r of softmax_r(score)_e nodes_s

    Velickovic et al. 2018, "Graph Attention Networks", arXiv:1710.10903, eqs. 1 to 4: their W h_i is our nodes, the two
    halves of a are receiver_vector (i) and sender_vector (j). Slope 0.2 is theirs. The paper's N_i includes i: no
    self-loops are added here, append them to the edge list. The order of the senders is the same for every receiver
    (Brody et al. 2022): `gatv2_attention` lifts that.

    Time O((V + E) N H), memory O(V N H + E N): scores are computed by node, and no array `[E, N, H]` is held.

    Args:
      nodes: `[V, N, H]`, features already projected, N heads.
      senders: int `[E]`, the node that each edge leaves. Edges may come in any order; doubled ones count twice.
      receivers: int `[E]`, the node that it reaches.
      sender_vector: `[N, H]`.
      receiver_vector: `[N, H]`.
      edge_scores: `[E, N]`, joins the sum before the leaky ReLU, as projected edge features do.
      edge_mask: bool `[E]`, True = real edge. Padding edges may hold anything, also indices that do not exist.
      negative_slope: of the leaky ReLU.
      num_nodes: how many nodes receive, the first of all V; None = V.
      dropout_rate: each weight is zeroed with this probability, the others grow by 1 / (1 - rate).
      rng: a `jax.random.key`, wanted with dropout.
      return_weights: also return the weights of the edges, before dropout.

    Returns:
      `[num_nodes, N, H]` in the dtype of nodes, exactly 0 for a node that no edge reaches. With return_weights a pair
      of that and `[E, N]`, 0 for masked edges, in float32 (float64 for float64), as scores, softmax and sums are.

    Raises:
      ValueError: arguments that do not fit, named. Where indices are traced, an edge from or to a node that does not
        exist counts as masked.

    >>> nodes = jnp.arange(6.0).reshape(3, 1, 2)
    >>> senders, receivers = jnp.array([0, 2, 1]), jnp.array([1, 1, 2])
    >>> gat_attention(nodes, senders, receivers, jnp.zeros((1, 2)), jnp.zeros((1, 2)))[:, 0]
    Array([[0., 0.],
           [2., 3.],
           [2., 3.]], dtype=float32)
    """
    nodes = jnp.asarray(nodes)
    _check_nodes("nodes", nodes)
    V, N, H = nodes.shape
    num_nodes = _check_num_nodes(num_nodes, V)
    dtype = accumulation_dtype(nodes.dtype)
    ends = {"senders": (senders, V), "receivers": (receivers, num_nodes)}
    senders, receivers = _check_edges(ends, edge_mask)
    vectors = [
        _check_shape(name, x, (N, H)).astype(dtype)
        for name, x in (("sender_vector", sender_vector), ("receiver_vector", receiver_vector))
    ]
    # A node without edges may be padding and hold NaN, which would reach the gradient of the vectors as 0 * NaN.
    met = jnp.zeros(V, bool).at[senders].set(True, mode="drop").at[receivers].set(True, mode="drop")
    nodes = jnp.where(met[:, None, None], nodes, jnp.zeros((), nodes.dtype))
    from_sender, from_receiver = (jnp.einsum("vnh,nh->vn", nodes.astype(dtype), vector) for vector in vectors)
    score = take(from_sender, senders) + take(from_receiver, receivers)
    if edge_scores is not None:
        score += _check_shape("edge_scores", edge_scores, (len(senders), N)).astype(dtype)
    score = leaky_relu(score, _check_slope(negative_slope))
    return _attend(score, nodes, senders, receivers, num_nodes, dropout_rate, rng, return_weights)


@plain_promotion
def gatv2_attention(
    sender_nodes,
    receiver_nodes,
    senders,
    receivers,
    vector,
    *,
    edge_features=None,
    edge_mask=None,
    negative_slope: float = 0.2,
    dropout_rate: float = 0.0,
    rng=None,
    return_weights: bool = False,
):
    """Graph attention with GATv2's scores, which rank the senders anew for every receiver.

        score_e = vector . leaky_relu(sender_nodes_s + receiver_nodes_r + edge_features_e),   e from s to r
        out_r = sum over edges e to r of softmax_r(score)_e sender_nodes_s

    Brody et al. 2022, "How Attentive are Graph Attention Networks?", arXiv:2105.14491, eq. 7: their W [h_i | h_j] is
    our receiver_nodes (i) plus sender_nodes (j), their a is vector. Slope 0.2 is theirs. No self-loops are added.

    Time O((V + E) N H), memory O(V N H + E N): what stands inside the leaky ReLU is computed anew on the way back.

    Args:
      sender_nodes: `[V, N, H]`, features projected for sending: they score and they are what is summed.
      receiver_nodes: `[num_nodes, N, H]`, projected for receiving. May be another kind of node.
      senders: int `[E]`, the row of sender_nodes that each edge leaves. Any order; doubled edges count twice.
      receivers: int `[E]`, the row of receiver_nodes that it reaches.
      vector: `[N, H]`.
      edge_features: `[E, N, H]`, already projected.
      edge_mask: bool `[E]`, True = real edge. Padding edges may hold anything, also indices that do not exist.
      negative_slope: of the leaky ReLU.
      dropout_rate: each weight is zeroed with this probability, the others grow by 1 / (1 - rate).
      rng: a `jax.random.key`, wanted with dropout.
      return_weights: also return the weights of the edges, before dropout.

    Returns:
      As `gat_attention`.

    Raises:
      ValueError: as `gat_attention`.

    >>> nodes = jnp.arange(6.0).reshape(3, 1, 2)
    >>> senders, receivers = jnp.array([0, 2, 1]), jnp.array([1, 1, 2])
    >>> _, weights = gatv2_attention(nodes, nodes, senders, receivers, jnp.ones((1, 2)), return_weights=True)
    >>> weights[:, 0] > 0.9
    Array([False,  True,  True], dtype=bool)
    """
    sender_nodes, receiver_nodes = jnp.asarray(sender_nodes), jnp.asarray(receiver_nodes)
    _check_nodes("sender_nodes", sender_nodes)
    _check_nodes("receiver_nodes", receiver_nodes)
    (V, *row), (U, *other) = sender_nodes.shape, receiver_nodes.shape
    if row != other or receiver_nodes.dtype != sender_nodes.dtype:
        wanted, got = (f"{x.dtype}{x.shape}" for x in (sender_nodes, receiver_nodes))
        raise ValueError(f"receiver_nodes: wanted the heads, width and dtype of sender_nodes {wanted}, got {got}")
    dtype = accumulation_dtype(sender_nodes.dtype)
    senders, receivers = _check_edges({"senders": (senders, V), "receivers": (receivers, U)}, edge_mask)
    vector = _check_shape("vector", vector, tuple(row)).astype(dtype)
    if edge_features is not None:
        edge_features = _check_shape("edge_features", edge_features, (len(senders), *row))
    score = additive_scores(
        sender_nodes, receiver_nodes, edge_features, vector, senders, receivers, _check_slope(negative_slope)
    )
    return _attend(score, sender_nodes, senders, receivers, U, dropout_rate, rng, return_weights)


@plain_promotion
def graph_dot_product_attention(
    query,
    key,
    value,
    senders,
    receivers,
    *,
    edge_scores=None,
    edge_features=None,
    edge_mask=None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rng=None,
    return_weights: bool = False,
):
    """Softmax attention of the Transformer over the senders of each node's incoming edges.

        score_e = scale * query_r . (key_s + edge_features_e) + edge_scores_e,   e from s to r
        out_r = sum over edges e to r of softmax_r(score)_e (value_s + edge_features_e)

    Shi et al. 2021, "Masked Label Prediction: Unified Message Passing Model for Semi-Supervised Classification",
    arXiv:2009.03509, eqs. 3 and 4: their e_c,ij is edge_features, and d its width. On all pairs of nodes as edges it is
    `dot_product_attention`. No self-loops are added.

    Time O((V + E) N H), memory O(V N H + E N).

    Args:
      query: `[U, N, H]`, of the U nodes that receive.
      key: `[V, K, H]`, K divides N; query head n reads key head n // (N / K).
      value: `[V, K, Hv]`.
      senders: int `[E]`, the row of key and value that each edge leaves. Any order; doubled edges count twice.
      receivers: int `[E]`, the row of query that it reaches.
      edge_scores: `[E, N]`, added to the scaled scores, as a bias is.
      edge_features: `[E, K, H]`, already projected, added to the keys and to the values, which must have width H too.
      edge_mask: bool `[E]`, True = real edge. Padding edges may hold anything, also indices that do not exist.
      scale: factor on the scores; None = H ** -0.5.
      dropout_rate: each weight is zeroed with this probability, the others grow by 1 / (1 - rate).
      rng: a `jax.random.key`, wanted with dropout.
      return_weights: also return the weights of the edges, before dropout.

    Returns:
      `[U, N, Hv]` in the dtype of query; otherwise as `gat_attention`.

    Raises:
      ValueError: as `gat_attention`.

    >>> query, key = jnp.zeros((2, 1, 4)), jnp.ones((3, 1, 4))
    >>> value = jnp.arange(3.0).reshape(3, 1, 1)
    >>> graph_dot_product_attention(query, key, value, jnp.array([0, 2, 1]), jnp.array([1, 1, 0])).ravel()
    Array([1., 1.], dtype=float32)
    """
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    _check_query_key_value(query, key, value)
    (U, N, H), (V, K, Hv) = query.shape, value.shape
    dtype = accumulation_dtype(query.dtype)
    senders, receivers = _check_edges({"senders": (senders, V), "receivers": (receivers, U)}, edge_mask)
    E = len(senders)
    key, value = (jnp.repeat(x, N // K, axis=1) for x in (key, value))
    query = query.astype(dtype) * jnp.asarray(H**-0.5 if scale is None else scale, dtype)
    score = dots(query, key, receivers, senders)
    features = None
    if edge_features is not None:
        if H != Hv:
            raise ValueError(f"edge_features: wanted values of head width {H}, which they join too, got {Hv}")
        features = jnp.repeat(_check_shape("edge_features", edge_features, (E, K, H)), N // K, axis=1)
        score += dots(query, features, receivers, _own(senders))
    if edge_scores is not None:
        score += _check_shape("edge_scores", edge_scores, (E, N)).astype(dtype)
    return _attend(score, value, senders, receivers, U, dropout_rate, rng, return_weights, features)


def _own(senders):
    """The index of each edge itself, of `NOBODY` where it is masked."""
    return jnp.where(senders == NOBODY, NOBODY, jnp.arange(len(senders), dtype=jnp.int32))


def _attend(score, values, senders, receivers, num_nodes, dropout_rate, rng, return_weights, features=None):
    """Softmax, dropout and the weighted sum, which every kind of score shares."""
    check_dropout(dropout_rate, rng)
    weight = dropped = softmax(score, receivers, num_nodes)
    if dropout_rate:
        E, N = weight.shape
        tile = Tile(0, E, 0, 1, 0, N)  # one column: an edge's draw depends on its place in the list and on the head
        dropped = dropout.drop(weight.T[..., None], dropout.seeds(rng), float(dropout_rate), tile, N)[..., 0].T
    out = send(dropped, values, senders, receivers, num_nodes)
    if features is not None:
        out += send(dropped, features, _own(senders), receivers, num_nodes)
    out = out.astype(values.dtype)
    return (out, weight) if return_weights else out


def _check_edges(ends, edge_mask, E=None):
    """The indices as int32 `[E]`, with `NOBODY` at both ends of an edge that is masked or has an end nowhere."""
    ends = {name: (_as_index(index), size) for name, (index, size) in ends.items()}
    for name, (index, _) in ends.items():
        if not jnp.issubdtype(index.dtype, jnp.integer):
            raise ValueError(f"{name}: wanted integers, got dtype {index.dtype}")
        E = index.shape[0] if E is None and index.ndim else E
        if index.shape != (E,):
            raise ValueError(f"{name}: wanted shape ({'E' if E is None else E},), one node an edge, got {index.shape}")
    real = True
    if edge_mask is not None:
        edge_mask = jnp.asarray(edge_mask)
        if edge_mask.dtype != bool or edge_mask.shape != (E,):
            raise ValueError(f"edge_mask: wanted bools of shape ({E},), got {edge_mask.dtype} {edge_mask.shape}")
        real = edge_mask
    exists = True
    for name, (index, size) in ends.items():
        inside = (index >= 0) & (index < size)
        _refuse_outside(name, index, inside | ~real if edge_mask is not None else inside, size)
        exists &= inside
    return tuple(jnp.where(exists & real, index, NOBODY).astype(jnp.int32) for index, _ in ends.values())


def _as_index(index):
    """An array; NumPy's 64-bit numbers, which JAX would wrap to 32, stay beyond all nodes where they were."""
    if isinstance(index, jax.Array):
        return index
    index = np.asarray(index)
    if index.size == 0:  # NumPy calls an empty list floats
        index = index.astype(np.int32) if index.dtype == np.float64 else index
    wide = np.issubdtype(index.dtype, np.integer) and index.dtype.itemsize > 4
    return jnp.asarray(np.clip(index, -NOBODY, NOBODY).astype(np.int32) if wide else index)


def _refuse_outside(name, index, fine, size):
    """Raises ValueError for an edge whose node does not exist, if that can be known: nothing here is traced."""
    if isinstance(fine, jax.core.Tracer) or np.all(fine):
        return
    edge = int(np.argmin(fine))
    raise ValueError(
        f"{name}: wanted nodes in 0..{size - 1}, got {int(index[edge])} at edge {edge}; padding edges need an edge_mask"
    )


def _check_slope(negative_slope):
    if (
        isinstance(negative_slope, bool)
        or not isinstance(negative_slope, (int, float, np.number))
        or not np.isfinite(negative_slope)
    ):
        raise ValueError(f"negative_slope: wanted a finite number, got {negative_slope!r}")
    return float(negative_slope)


def _check_num_nodes(num_nodes, V):
    if num_nodes is None:
        return V
    check_int("num_nodes", num_nodes, 0)
    if num_nodes > V:
        raise ValueError(
            f"num_nodes: wanted at most the {V} rows of nodes, the first of which receive, got {num_nodes}"
        )
    return int(num_nodes)


def _check_nodes(name, x):
    if x.ndim != 3:
        raise ValueError(f"{name}: wanted [nodes, heads, width], got shape {x.shape} (for a batch: one disjoint union)")
    _check_float(name, x)


def _check_float(name, x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: wanted a float dtype, got {x.dtype}")


def _check_shape(name, x, shape):
    """`x` as a float array of exactly this shape."""
    x = jnp.asarray(x)
    _check_float(name, x)
    if x.shape != shape:
        raise ValueError(f"{name}: wanted shape {shape}, got {x.shape}")
    return x


def _check_query_key_value(query, key, value):
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_nodes(name, x)
        if x.dtype != query.dtype:
            raise ValueError(f"{name}: wanted query's dtype {query.dtype}, got {x.dtype}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key: wanted query's head width {query.shape[-1]}, got {key.shape[-1]}")
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(f"value: wanted key's [V, K] = {key.shape[:2]}, got {value.shape[:2]}")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(f"key: wanted a number of heads that divides query's {query.shape[1]}, got {key.shape[1]}")
