"""Link prediction: entities that look at their neighbours by graph attention, and DistMult to score them."""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import FrozenConfigDict

from attention import gat_attention, gatv2_attention
from attention.checks import split_rng
from models.edges import disjoint_union, with_self_loops
from models.fields import check_filled
from models.layers import dropout, normal, product, zeros
from models.link_config import check

# Of vectors of entities and relations: a score is a product of three, and with GPT-2's 0.02 training starts with
# gradients near 0.
EMBEDDING_STD = 0.1


class LinkPrediction(nnx.Module):
    """Scores of all entities as the answer to (subject, relation, ?), with every entity's neighbourhood in view.

        x = X + layer_1(X), then x = x + layer_l(x)              a row of X for each entity
        score(s, r, o) = sum_d x_s[d] w_r[d] x_o[d]              DistMult

    Yang et al. 2015, "Embedding Entities and Relations for Learning and Inference in Knowledge Bases", arXiv:1412.6575,
    eq. 2 for M_r diagonal. An encoder of the graph before it: Schlichtkrull et al. 2018, "Modeling Relational Data with
    Graph Convolutional Networks", arXiv:1703.06103, section 4. Every relation has an inverse with a vector of its own,
    so that the score is not the same from both ends (Lacroix et al. 2018, arXiv:1806.07297). `depth=0` is DistMult
    alone and reads no edge: what the other depths gain over it is what graph attention buys.

    Time O(depth (V width^2 + E width) + Q V width) for Q questions about V entities, memory O((V + E) width + Q V).

    Args:
      config: a ConfigDict with the fields of `models.link_config.FIELDS["link_prediction"]`.
      length: of a training row, in questions; any number may be asked.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.link_config.check(config, length)` refuses.

    >>> from ml_collections import ConfigDict
    >>> from models.edges import Edges
    >>> config = ConfigDict({"name": "link_prediction", "num_entities": 7, "num_relations": 2, "width": 4, "depth": 1,
    ...                      "num_heads": 2, "dropout": 0.0, "attention_dropout": 0.0, "attention": {"name": "gat"}})
    >>> model = LinkPrediction(config, length=3, rngs=nnx.Rngs(0))
    >>> edges = Edges(*jnp.zeros((3, 1, 5), int), mask=jnp.ones((1, 5), bool))
    >>> jax.eval_shape(model, edges, jnp.zeros((1, 3), int), jnp.zeros((1, 3), int)).shape  # nothing is computed
    (1, 3, 7)
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config, ("num_entities", "num_relations"))
        self.config = config = FrozenConfigDict(config)  # hashable, so jit can tell two models apart
        self.entities = normal(rngs, (config.num_entities, config.width), EMBEDDING_STD)
        self.relations = normal(rngs, (2 * config.num_relations, config.width), EMBEDDING_STD)
        self.layers = nnx.List([GraphLayer(config, rngs=rngs) for _ in range(config.depth)])

    def __call__(self, edges, subjects, relations, *, rng=None):
        """Scores of every entity for each question.

        Args:
          edges: `Edges` of [B, E], B graphs over the same entities; relations in 0..2 num_relations - 1.
          subjects: [B, Q] int, entities.
          relations: [B, Q] int, likewise in 0..2 num_relations - 1.
          rng: the training step's typed key, for dropout; None = evaluation.

        Returns:
          float32 [B, Q, num_entities].
        """
        encode_rng, answer_rng = split_rng(rng, 2)
        return self.answer(self.encode(edges, rng=encode_rng), subjects, relations, rng=answer_rng)

    def encode(self, edges, *, rng=None):
        """The vectors of all entities in each graph: `Edges` of [B, E] -> [B, num_entities, width]."""
        batch, count = len(edges.senders), self.config.num_entities
        x = jnp.tile(self.entities[...], (batch, 1))
        if self.layers:
            edges = with_self_loops(disjoint_union(edges, count), batch * count, 2 * self.config.num_relations)
        for layer, layer_rng in zip(self.layers, split_rng(rng, len(self.layers)), strict=True):
            x = x + layer(x, edges, layer_rng)
        return x.reshape(batch, count, self.config.width)

    def answer(self, entities, subjects, relations, *, rng=None):
        """DistMult: vectors [B, num_entities, width] and questions [B, Q] -> scores [B, Q, num_entities]."""
        asked = jnp.take_along_axis(entities, subjects[..., None], axis=1) * self.relations[relations]
        return jnp.einsum("bqd,bvd->bqv", dropout(asked, self.config.dropout, rng), entities)


class GraphLayer(nnx.Module):
    """Each entity's attention to its neighbours, by relation.

        m_e = (W x_s) * c_r                                      a message along the edge e = (s, r, v)
        out_v = ELU(concat_heads(sum_e softmax_e(score_e) m_e) + b)

    where score_e = LeakyReLU(a_1 m_e + a_2 W x_v) for "gat" (Velickovic et al. 2018, arXiv:1710.10903),
    a LeakyReLU(m_e + W_2 x_v) for "gatv2" (Brody et al. 2022, arXiv:2105.14491), and 0 for "constant", the mean of the
    messages. Composing a neighbour with its relation, entry by entry, before W or after it: Vashishth et al. 2020,
    "Composition-based Multi-Relational Graph Convolutional Networks", arXiv:1911.03082, section 4. c_r starts as 1.

    Args:
      config: the model's config; reads width, num_heads, num_relations, dropout, attention_dropout, attention.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, rngs):
        width, num_heads = config.width, config.num_heads
        head_dim = width // num_heads
        self.config = config
        self.into = normal(rngs, (width, num_heads, head_dim), width**-0.5)
        self.composition = nnx.Param(jnp.ones((2 * config.num_relations + 1, num_heads, head_dim), jnp.float32))
        self.bias = zeros(width)
        if config.attention.name == "gat":
            self.sender_vector = normal(rngs, (num_heads, head_dim), head_dim**-0.5)
            self.receiver_vector = normal(rngs, (num_heads, head_dim), head_dim**-0.5)
        if config.attention.name == "gatv2":
            self.into_receivers = normal(rngs, (width, num_heads, head_dim), width**-0.5)
            self.vector = normal(rngs, (num_heads, head_dim), head_dim**-0.5)

    def __call__(self, x, edges, rng=None):
        """`x [U, width]` and `Edges` of [E] with self-loops -> [U, width]."""
        input_rng, weight_rng = split_rng(rng, 2)
        x = dropout(x, self.config.dropout, input_rng)
        projected = product(x, self.into[...])  # U N H
        messages = projected[edges.senders] * self.composition[edges.relations]  # E N H
        out = ATTEND[self.config.attention.name](self, x, projected, messages, edges, weight_rng)
        return jax.nn.elu(out.reshape(len(x), -1) + self.bias)


def _gat(layer, x, projected, messages, edges, rng):
    # Every message is a node of its own that sends along its one edge; what the receiver adds to the score is looked
    # up here.
    receiving = jnp.einsum("unh,nh->un", projected, layer.receiver_vector[...])[edges.receivers]
    return _over_messages(layer, messages, layer.sender_vector[...], edges, len(x), rng, edge_scores=receiving)


def _constant(layer, x, projected, messages, edges, rng):
    return _over_messages(layer, messages, jnp.zeros(messages.shape[1:], messages.dtype), edges, len(x), None)


def _over_messages(layer, messages, sender_vector, edges, num_nodes, rng, **scores):
    own = jnp.arange(len(messages))
    return gat_attention(
        messages,
        own,
        edges.receivers,
        sender_vector,
        jnp.zeros_like(sender_vector),
        edge_mask=edges.mask,
        num_nodes=num_nodes,
        dropout_rate=layer.config.attention_dropout if rng is not None else 0.0,
        rng=rng,
        **scores,
    )


def _gatv2(layer, x, projected, messages, edges, rng):
    return gatv2_attention(
        messages,
        product(x, layer.into_receivers[...]),
        jnp.arange(len(messages)),
        edges.receivers,
        layer.vector[...],
        edge_mask=edges.mask,
        dropout_rate=layer.config.attention_dropout if rng is not None else 0.0,
        rng=rng,
    )


ATTEND = {"gat": _gat, "gatv2": _gatv2, "constant": _constant}
