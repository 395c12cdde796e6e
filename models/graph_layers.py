"""The layers of a graph network: GAT, its second version, dot products, and two that do not attend."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from attention import gat_attention, gatv2_attention, graph_dot_product_attention
from attention.checks import split_rng
from models.layers import dropout, zeros
from models.sparse_features import drop_per_head, project


class GraphLayer(nnx.Module):
    """What all kinds share: every node sums the projected features of the nodes that send to it.

        out_i = sum_{j -> i} drop(alpha_ij) drop(W drop(h_j)) + b                     for each of N heads

    The three dropouts are those of the published code of GAT; the last two leave the scores as they are. Each head
    has masks of its own, also on its inputs. b is added behind the sum, to each head.

    Args:
      config: reads dropout, attention_dropout, num_relations, self_loops, attention.
      width: F, features of an input.
      num_heads: N.
      head_dim: H.
      rngs: draws the parameters.
    """

    def __init__(self, config, width, num_heads, head_dim, *, rngs):
        self.config, self.num_heads = config, num_heads
        self.value = glorot(rngs, (width, num_heads, head_dim))
        self.bias = zeros(num_heads, head_dim)

    def __call__(self, x, edges, rng=None):
        """The layer's output, and what every edge carries.

        Args:
          x: [U, F], or a `models.sparse_features.Bag`.
          edges: `models.edges.Edges` of [E] over the U nodes.
          rng: the training step's typed key, for dropout; None = evaluation.

        Returns:
          ([U, N, H] in the dtype of `x`, alpha float32 [E, N]).
        """
        input_rng, weight_rng, value_rng = split_rng(rng, 3)
        x = drop_per_head(x, self.num_heads, self.config.dropout, input_rng)
        rate = 0.0 if weight_rng is None else self.config.attention_dropout
        tail = {"edge_mask": edges.mask, "dropout_rate": rate, "rng": weight_rng, "return_weights": True}
        out, weights = self.attend(x, edges, lambda values: dropout(values, self.config.dropout, value_rng), tail)
        return out + self.bias.astype(out.dtype), weights

    def attend(self, x, edges, drop, tail):
        """The sum and its weights.

        Args:
          x: the dropped inputs, see `models.sparse_features.project`.
          edges: as in the call.
          drop: dropout of what is summed, [U, N, H] -> the same.
          tail: further arguments of the functions of `attention.graph`.
        """
        raise NotImplementedError


class GAT(GraphLayer):
    """Graph attention: a neighbour's weight depends on a number of its own and one of the receiver.

        e_ij = LeakyReLU(a_1 W h_j + b_1 + a_2 W h_i + b_2 + r_ij);   alpha_ij = softmax_j(e_ij)

    Velickovic et al. 2018, "Graph Attention Networks", arXiv:1710.10903, eqs. 1 to 3; a_1, a_2 are our sender_vector
    and receiver_vector. b_1 and b_2, which the paper leaves out, are in its code, two biases for one sum. r_ij is a
    number for the edge's relation, if edges have any.
    """

    def __init__(self, config, width, num_heads, head_dim, *, rngs):
        super().__init__(config, width, num_heads, head_dim, rngs=rngs)
        self.sender_vector = glorot(rngs, (head_dim, num_heads, 1), squeeze=True)
        self.receiver_vector = glorot(rngs, (head_dim, num_heads, 1), squeeze=True)
        self.sender_bias, self.receiver_bias = zeros(num_heads), zeros(num_heads)
        self.relation_table = relation_table(config, num_heads)

    def attend(self, x, edges, drop, tail):
        """See `GraphLayer.attend`."""
        nodes = project(x, self.value)
        scores = self.sender_bias + self.receiver_bias
        scores = jnp.broadcast_to(scores, (len(edges.senders), self.num_heads))
        if self.relation_table is not None:
            scores = scores + self.relation_table[edges.relations]
        nodes, *vectors = with_values(nodes, drop(nodes), self.sender_vector, self.receiver_vector)
        out, weights = gat_attention(nodes, edges.senders, edges.receivers, *vectors, edge_scores=scores, **tail)
        return out[..., -self.bias.shape[-1] :], weights


class GATv2(GraphLayer):
    """Graph attention whose order of neighbours may differ from receiver to receiver.

        e_ij = a LeakyReLU(W h_j + W' h_i + r_ij);   alpha_ij = softmax_j(e_ij)

    Brody et al. 2022, "How Attentive are Graph Attention Networks?", arXiv:2105.14491, eq. 7, where GAT's nonlinearity
    stands behind the sum over features and so cannot change the order. `share_weights`: W' is W, and the layer has
    about as many parameters as GAT's. Both projections have a bias, as in the authors' code. r_ij is a vector for the
    edge's relation.
    """

    def __init__(self, config, width, num_heads, head_dim, *, rngs):
        super().__init__(config, width, num_heads, head_dim, rngs=rngs)
        self.value_bias = zeros(num_heads, head_dim)
        if not config.attention.share_weights:
            self.receiver = glorot(rngs, (width, num_heads, head_dim))
            self.receiver_bias = zeros(num_heads, head_dim)
        self.vector = glorot(rngs, (head_dim, num_heads, 1), squeeze=True)
        self.relation_table = relation_table(config, num_heads, head_dim)

    def attend(self, x, edges, drop, tail):
        """See `GraphLayer.attend`."""
        sending = receiving = project(x, self.value)
        sending = receiving = sending + self.value_bias.astype(sending.dtype)
        if not self.config.attention.share_weights:
            receiving = project(x, self.receiver)
            receiving = receiving + self.receiver_bias.astype(receiving.dtype)
        features = None if self.relation_table is None else self.relation_table[edges.relations]
        arrays = with_values(sending, drop(sending), receiving, self.vector, features)
        sending, receiving, vector, features = arrays
        indices = edges.senders, edges.receivers
        out, weights = gatv2_attention(sending, receiving, *indices, vector, edge_features=features, **tail)
        return out[..., -self.bias.shape[-1] :], weights


class DotProduct(GraphLayer):
    """The attention of Transformers, over the neighbours alone.

        alpha_ij = softmax_j((W_q h_i) . (W_k h_j) / sqrt(H) + r_ij)

    Shi et al. 2021, "Masked Label Prediction", arXiv:2009.03509, eqs. 3 and 4. `share_weights`: W_q = W_k = W, with as
    many parameters as the other kinds; then scores are those of similar features. r_ij is a number for the edge's
    relation.
    """

    def __init__(self, config, width, num_heads, head_dim, *, rngs):
        super().__init__(config, width, num_heads, head_dim, rngs=rngs)
        if not config.attention.share_weights:
            self.query = glorot(rngs, (width, num_heads, head_dim))
            self.key = glorot(rngs, (width, num_heads, head_dim))
        self.relation_table = relation_table(config, num_heads)

    def attend(self, x, edges, drop, tail):
        """See `GraphLayer.attend`."""
        query = key = value = project(x, self.value)
        if not self.config.attention.share_weights:
            query, key = project(x, self.query), project(x, self.key)
        scores = None if self.relation_table is None else self.relation_table[edges.relations]
        indices = edges.senders, edges.receivers
        return graph_dot_product_attention(query, key, drop(value), *indices, edge_scores=scores, **tail)


class Constant(GraphLayer):
    """GAT's layer without attention: alpha_ij = 1 / the number of edges that reach i. What attention adds is missing.

    The control of the GAT paper (section 3.3, "Const-GAT").
    """

    def attend(self, x, edges, drop, tail):
        """See `GraphLayer.attend`."""
        return mean(drop(project(x, self.value)), edges, tail)


class GCN(GraphLayer):
    """A graph convolution: alpha_ij = 1 / sqrt(d_i d_j), with d the number of edges that reach a node.

        H' = D^-1/2 A D^-1/2 drop(H) W + b

    Kipf & Welling 2017, "Semi-Supervised Classification with Graph Convolutional Networks", arXiv:1609.02907, eq. 2,
    whose A includes the loops. Of the dropouts it has the one on the inputs. Heads are but columns of W.
    """

    def attend(self, x, edges, drop, tail):
        """See `GraphLayer.attend`."""
        nodes = project(x, self.value)
        degree = jax.ops.segment_sum(edges.mask.astype(jnp.float32), edges.receivers, len(nodes))
        root = jnp.sqrt(jnp.maximum(degree, 1))  # 1: of a node without edges nothing is summed
        scaled, weights = mean(nodes / root[:, None, None].astype(nodes.dtype), edges, tail)
        return (
            scaled * root[:, None, None].astype(nodes.dtype),
            weights * (root[edges.receivers] / root[edges.senders])[:, None],
        )


# Name in `config.model.attention.name` -> the layer.
LAYERS = {"gat": GAT, "gatv2": GATv2, "dot_product": DotProduct, "gcn": GCN, "constant": Constant}


def relation_table(config, *shape):
    """A parameter [relations, *shape] that starts as 0, loops being the last; None where all edges are alike."""
    return zeros(config.num_relations + config.self_loops, *shape) if config.num_relations else None


def with_values(nodes, values, *others):
    """Nodes that send other features than those they are scored by: both side by side, [U, N, 2 H].

    Of the other arrays [..., N, H] that scores are made of (or None), the second half is 0, so that it scores nothing.
    Where the values are the nodes, as in evaluation, everything stays H wide.
    """
    others = [None if x is None else x.astype(nodes.dtype) for x in others]
    if values is nodes:
        return nodes, *others
    beside = lambda x, y: jnp.concatenate([x, y], axis=-1)  # noqa: E731
    return beside(nodes, values), *(None if x is None else beside(x, jnp.zeros_like(x)) for x in others)


def mean(nodes, edges, tail):
    """What each node receives on average: attention whose scores are all 0."""
    zero = jnp.zeros(nodes.shape[1:], nodes.dtype)
    return gat_attention(nodes, edges.senders, edges.receivers, zero, zero, **tail)


def glorot(rngs, shape, *, squeeze=False):
    """A parameter [F, N, H] from the uniform distribution up to sqrt(6 / (F + H)), which is that of each head.

    Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 16.

    Args:
      rngs: of the model.
      shape: (F, N, H).
      squeeze: for H = 1: [N, F], a vector for each head.
    """
    limit = (6 / (shape[0] + shape[-1])) ** 0.5
    drawn = jax.random.uniform(rngs.params(), (math.prod(shape),), jnp.float32, -limit, limit).reshape(shape)
    return nnx.Param(drawn[..., 0].T if squeeze else drawn)
