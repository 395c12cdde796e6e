"""Sums over the edges of a graph that hold a cache's worth of edge rows at a time, with backward passes that do too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .tile import plain_promotion

NOBODY = np.iinfo(np.int32).max  # the index of no node: reads as zeros, and what is added to it is dropped

# Numbers in the edge rows [edges, N, H] that are alive at once. On CPU a gathered row is best used before it leaves the
# cache, and fresh memory for all rows of a graph costs several times the arithmetic; a GPU wants as many at once as its
# memory bears.
NUMBERS_AT_ONCE, NUMBERS_AT_ONCE_ELSEWHERE = {"cpu": 2**19}, 2**27


def take(nodes, index):
    """Rows of `nodes [V, ...]` at `index [E]`, zeros for `NOBODY`."""
    if not len(nodes):  # XLA has no row to clamp to
        return jnp.zeros((*index.shape, *nodes.shape[1:]), nodes.dtype)
    return nodes.at[index].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def add(sums, index, rows):
    """`sums [V, ...]` and on top the `rows [E, ...]`, each at its index; those of `NOBODY` are dropped."""
    return sums.at[index].add(rows, mode="drop", wrap_negative_indices=False)


def in_pieces(step, sums, edges, row_size):
    """`step(sums, edges) -> (sums, results)` over one piece of the edges after the other.

    Args:
      step: adds to the sums of the nodes what a piece says, and returns arrays with one row an edge of the piece.
      sums: arrays of the nodes.
      edges: arrays `[E, ...]`, which are cut.
      row_size: numbers that a step holds for each edge.

    Returns:
      `sums` in the end, and the results of all pieces as arrays `[E, ...]`.
    """
    E = len(jax.tree.leaves(edges)[0])
    size = max(NUMBERS_AT_ONCE.get(jax.default_backend(), NUMBERS_AT_ONCE_ELSEWHERE) // max(row_size, 1), 1)
    if size >= E:
        return step(sums, edges)

    def visit(start, count, state):
        sums, results = state
        sums, rows = step(sums, jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, count), edges))
        return sums, jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, 0), results, rows)

    shapes = jax.eval_shape(step, sums, edges)[1]
    state = sums, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    state = lax.fori_loop(0, E // size, lambda i, state: visit(i * size, size, state), state)
    return visit(E // size * size, E % size, state) if E % size else state


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def softmax(scores, receivers, num_nodes):
    """The softmax of `scores [E, ...]` over the edges of each receiver; 0 for edges to `NOBODY`, whatever they hold."""
    real = (receivers != NOBODY).reshape(-1, *[1] * (scores.ndim - 1))
    low = jnp.full((num_nodes, *scores.shape[1:]), jnp.finfo(scores.dtype).min)
    top = low.at[receivers].max(scores, mode="drop", wrap_negative_indices=False)
    weight = jnp.where(real, jnp.exp(scores - take(top, receivers)), 0)
    total = add(jnp.zeros_like(top), receivers, weight)
    return weight * take(1 / jnp.maximum(total, 0.5), receivers)  # at least 1, or 0 where there is nothing to attend


@plain_promotion
def _softmax_forward(scores, receivers, num_nodes):
    weight = softmax(scores, receivers, num_nodes)
    return weight, (weight, receivers)


@plain_promotion
def _softmax_backward(num_nodes, saved, d_weight):
    weight, receivers = saved
    passed = jnp.where(weight == 0, 0, weight * d_weight)  # a hidden edge's cotangent may be anything
    mean = add(jnp.zeros((num_nodes, *weight.shape[1:]), weight.dtype), receivers, passed)
    return passed - weight * take(mean, receivers), None


softmax.defvjp(_softmax_forward, _softmax_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def send(weight, values, sources, targets, num_targets):
    """Each target's sum of the values that its edges bring, weighted.

        out[v] = sum over edges e with targets[e] = v of weight[e] * values[sources[e]]

    Time O((V + E) N H), memory O(V N H + E N).

    Args:
      weight: `[E, N]`, in the precision of the sums.
      values: `[V, N, H]`.
      sources: int32 `[E]`.
      targets: int32 `[E]`.
      num_targets: how many there are.

    Returns:
      `[num_targets, N, H]` in weight's dtype.
    """

    def step(sums, piece):
        weight, source, target = piece
        return add(sums, target, weight[..., None] * take(values, source).astype(weight.dtype)), ()

    sums = jnp.zeros((num_targets, *values.shape[1:]), weight.dtype)
    return in_pieces(step, sums, (weight, sources, targets), values[:1].size)[0]


@plain_promotion
def _send_forward(weight, values, sources, targets, num_targets):
    return send(weight, values, sources, targets, num_targets), (weight, values, sources, targets)


@plain_promotion
def _send_backward(num_targets, saved, d_out):
    weight, values, sources, targets = saved

    def step(d_values, piece):
        weight, source, target = piece
        d_rows = take(d_out, target)
        d_weight = (take(values, source).astype(d_rows.dtype) * d_rows).sum(-1)
        return add(d_values, source, weight[..., None] * d_rows), d_weight

    sums = jnp.zeros(values.shape, weight.dtype)
    d_values, d_weight = in_pieces(step, sums, (weight, sources, targets), values[:1].size)
    return d_weight, d_values.astype(values.dtype), None, None


send.defvjp(_send_forward, _send_backward)


@jax.custom_vjp
def dots(x, y, x_index, y_index):
    """The product of two nodes on every edge: `out[e] = x[x_index[e]] . y[y_index[e]]`, the gradient of `send`.

    Time O((V + E) N H), memory O(V N H + E N).

    Args:
      x: `[U, N, H]`.
      y: `[V, N, H]` in x's dtype.
      x_index: int32 `[E]`.
      y_index: int32 `[E]`.

    Returns:
      `[E, N]`, at least float32.
    """

    def step(nothing, piece):
        rows, others = (take(nodes, index) for nodes, index in zip((x, y), piece, strict=True))
        return nothing, (rows.astype(dtype) * others.astype(dtype)).sum(-1)

    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return in_pieces(step, (), (x_index, y_index), x[:1].size)[1]


@plain_promotion
def _dots_forward(x, y, x_index, y_index):
    return dots(x, y, x_index, y_index), (x, y, x_index, y_index)


@plain_promotion
def _dots_backward(saved, d_out):
    x, y, x_index, y_index = saved
    d_x = send(d_out, y, y_index, x_index, len(x))
    d_y = send(d_out, x, x_index, y_index, len(y))
    return d_x.astype(x.dtype), d_y.astype(y.dtype), None, None


dots.defvjp(_dots_forward, _dots_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def additive_scores(sender_nodes, receiver_nodes, edge_features, vector, senders, receivers, negative_slope):
    """GATv2's score of every edge: `vector . leaky_relu(sender_nodes[s] + receiver_nodes[r] + edge_features)`.

    Time O((V + E) N H), memory O(V N H + E N), and its gradient's with edge features.

    Args:
      sender_nodes: `[V, N, H]`.
      receiver_nodes: `[U, N, H]`.
      edge_features: `[E, N, H]`, or None.
      vector: `[N, H]`.
      senders: int32 `[E]`.
      receivers: int32 `[E]`.
      negative_slope: of the leaky ReLU.

    Returns:
      `[E, N]` in vector's dtype, which is that of the sums.
    """

    def step(nothing, piece):
        hidden = _hidden(sender_nodes, receiver_nodes, piece, vector.dtype)
        return nothing, (vector * leaky_relu(hidden, negative_slope)).sum(-1)

    return in_pieces(step, (), (edge_features, senders, receivers), vector.size)[1]


@plain_promotion
def _additive_forward(*args):
    return additive_scores(*args), args[:-1]


@plain_promotion
def _additive_backward(negative_slope, saved, d_score):
    sender_nodes, receiver_nodes, edge_features, vector, senders, receivers = saved
    dtype = vector.dtype

    def step(sums, piece):
        (d_senders, d_receivers, d_vector), (d_score, piece) = sums, piece
        hidden = _hidden(sender_nodes, receiver_nodes, piece, dtype)
        d_vector += (d_score[..., None] * leaky_relu(hidden, negative_slope)).sum(0)
        d_hidden = d_score[..., None] * jnp.where(hidden >= 0, vector, vector * jnp.asarray(negative_slope, dtype))
        d_features = None if edge_features is None else d_hidden.astype(edge_features.dtype)
        return (add(d_senders, piece[1], d_hidden), add(d_receivers, piece[2], d_hidden), d_vector), d_features

    sums = tuple(jnp.zeros(x.shape, dtype) for x in (sender_nodes, receiver_nodes, vector))
    edges = d_score, (edge_features, senders, receivers)
    (d_senders, d_receivers, d_vector), d_features = in_pieces(step, sums, edges, vector.size)
    d_nodes = d_senders.astype(sender_nodes.dtype), d_receivers.astype(receiver_nodes.dtype)
    return *d_nodes, d_features, d_vector, None, None


additive_scores.defvjp(_additive_forward, _additive_backward)


def _hidden(sender_nodes, receiver_nodes, piece, dtype):
    edge_features, senders, receivers = piece
    hidden = take(sender_nodes, senders).astype(dtype) + take(receiver_nodes, receivers).astype(dtype)
    if edge_features is None:
        return hidden
    return hidden + jnp.where((senders != NOBODY)[:, None, None], edge_features, 0).astype(dtype)


def leaky_relu(x, negative_slope):
    return jnp.where(x >= 0, x, x * jnp.asarray(negative_slope, x.dtype))
