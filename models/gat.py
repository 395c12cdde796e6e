"""A graph network: a class for every node, from its features and those of its neighbours."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.sparse import BCOO
from ml_collections import FrozenConfigDict

from attention.checks import split_rng
from models.edges import Edges, disjoint_union, with_self_loops, without_self_loops
from models.fields import check_filled
from models.graph_config import check
from models.graph_layers import LAYERS, glorot
from models.sparse_features import bag_of, drop_per_head, project

ACTIVATIONS = {"elu": jax.nn.elu, "relu": jax.nn.relu}


class GraphNetwork(nnx.Module):
    """Scores of the classes of every node of a graph.

        x = activation(concat_heads(layer(x)))      for each layer but the last
        scores = mean_heads(layer(x))               whose heads have num_classes features

    Velickovic et al. 2018, "Graph Attention Networks", arXiv:1710.10903, eqs. 4 to 6. A layer is one of
    `models.graph_layers.LAYERS`, by `config.attention`: "gat", "gatv2", "dot_product", "gcn" or "constant". Further:

    * `self_loops`: every node sends to itself once, whatever loops the edges hold.
    * `residual`: x + layer(x) for layers between the first and the one that gives the classes, as for protein graphs in
      the paper (section 3.3); a matrix changes the width where it differs.
    * `readout`: the last layer is like the others, and a matrix without bias makes classes of its features.
    * `input_width`: relu(x W) before the first layer; of features that are one-hot, a sum of embeddings.

    Nothing depends on the number of nodes: a model trained on some graphs reads others. Padding nodes have no edges and
    are read by nobody, and padding edges lead nowhere.

    Time O(V F N H + E N H) a layer; features in a `BCOO` cost only those stored.

    Args:
      config: a ConfigDict with the fields of `models.graph_config.FIELDS["graph_network"]`.
      length: nodes of a training graph; any number may be given.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.graph_config.check(config, length)` refuses; num_features or num_classes are 0.

    >>> from ml_collections import ConfigDict
    >>> from models.edges import Edges
    >>> config = ConfigDict({"name": "graph_network", "num_features": 5, "num_classes": 3, "num_relations": 0,
    ...                      "input_width": 0, "num_heads": (2, 1), "head_dim": (4,), "readout": False,
    ...                      "activation": "elu", "residual": False, "self_loops": True, "dropout": 0.0,
    ...                      "attention_dropout": 0.0, "dtype": "float32", "attention": {"name": "gat"}})
    >>> model = GraphNetwork(config, length=7, rngs=nnx.Rngs(0))
    >>> edges = Edges(*jnp.zeros((3, 1, 6), int), mask=jnp.ones((1, 6), bool))
    >>> jax.eval_shape(model, jnp.zeros((1, 7, 5)), edges).shape  # nothing is computed
    (1, 7, 3)
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config, ("num_features", "num_classes"))
        self.config = config = FrozenConfigDict(config)  # hashable, so jit can tell two models apart
        self.num_features, width = config.num_features, config.num_features
        if config.input_width:
            self.into = glorot(rngs, (width, 1, config.input_width))
            width = config.input_width
        layer, layers, shortcuts = LAYERS[config.attention.name], [], {}
        for number, (num_heads, head_dim) in enumerate(self._sizes()):
            layers.append(layer(config, width, num_heads, head_dim, rngs=rngs))
            if self._adds_input(number) and width != num_heads * head_dim:
                shortcuts[str(number)] = glorot(rngs, (width, 1, num_heads * head_dim))
            width = num_heads * head_dim
        self.layers, self.shortcuts = nnx.List(layers), nnx.Dict(shortcuts)
        if config.readout:
            self.classes = glorot(rngs, (width, 1, config.num_classes))

    def __call__(self, nodes, edges, *, rng=None):
        """Scores of the classes.

        Args:
          nodes: [B, V, num_features], floats, or a `jax.experimental.sparse.BCOO` of that shape with n_batch=1, whose
            entries may repeat a place and be padded with 0.
          edges: `models.edges.Edges` of [B, E], with mask=False on padding.
          rng: the training step's typed key, for dropout; None = evaluation.

        Returns:
          [B, V, num_classes], float32.

        Raises:
          ValueError: nodes or edges do not fit.
        """
        x = self._through_layers(nodes, edges, rng)[-1]
        if self.config.readout:
            x = project(x, self.classes[...])[:, 0]
        return x.astype(jnp.float32).reshape(*nodes.shape[:2], -1)

    def features(self, nodes, edges, *, rng=None):
        """Every node after each layer, [B, V, width] each; the last are the scores, unless there is a readout."""
        return [x.reshape(*nodes.shape[:2], -1) for x in self._through_layers(nodes, edges, rng)]

    def attention_weights(self, nodes, edges):
        """What every edge carries, and the edges that the model adds as `self_loops`.

        Returns:
          (`Edges` of [E'] of the disjoint union, list over layers of float32 [E', N]).
        """
        weights = []
        self._through_layers(nodes, edges, None, weights)
        return self._union(nodes, edges)[1], weights

    def _through_layers(self, nodes, edges, rng, weights=None):
        """Every node after each layer, [B V, width] each; appends the layers' weights to `weights`."""
        config, outputs = self.config, []
        input_rng, *rngs = split_rng(rng, 1 + len(self.layers))
        x, edges = self._union(nodes, edges)
        if config.input_width:
            x = jax.nn.relu(project(drop_per_head(x, 1, config.dropout, input_rng), self.into[...])[:, 0])
        for number, (layer, layer_rng) in enumerate(zip(self.layers, rngs, strict=True)):
            out, alpha = layer(x, edges, layer_rng)
            if self._gives_classes(number):
                x = out.mean(1)
            else:
                out = out.reshape(len(out), -1)
                x = ACTIVATIONS[config.activation](out + self._shortcut(number, x) if self._adds_input(number) else out)
            outputs.append(x)
            if weights is not None:
                weights.append(alpha)
        return outputs

    def _union(self, nodes, edges):
        """The batch as one graph: its features, [B V, F] or a `Bag`, and its `Edges`, with the model's loops."""
        _check_graphs(nodes, edges, self.num_features)
        batch, num_nodes, width = nodes.shape
        edges = disjoint_union(edges, num_nodes)
        if self.config.self_loops:
            edges = with_self_loops(without_self_loops(edges), batch * num_nodes, self.config.num_relations)
        if isinstance(nodes, BCOO):
            return bag_of(nodes, self.config.dtype), edges
        return nodes.reshape(batch * num_nodes, width).astype(self.config.dtype), edges

    def _sizes(self):
        """(heads, features of each) of every layer."""
        config = self.config
        last = () if config.readout else (config.num_classes,)
        return list(zip(config.num_heads, (*config.head_dim, *last), strict=True))

    def _gives_classes(self, number):
        return not self.config.readout and number == len(self.config.num_heads) - 1

    def _adds_input(self, number):
        return self.config.residual and number > 0 and not self._gives_classes(number)

    def _shortcut(self, number, x):
        name = str(number)
        return project(x, self.shortcuts[name][...])[:, 0] if name in self.shortcuts else x


def _check_graphs(nodes, edges, num_features):
    if nodes.ndim != 3 or nodes.shape[-1] != num_features or 0 in nodes.shape:
        raise ValueError(f"nodes: wanted [B, V, {num_features}], got shape {list(nodes.shape)}")
    if not jnp.issubdtype(nodes.dtype, jnp.floating):
        raise ValueError(f"nodes: wanted floats, got {nodes.dtype}; write nodes.astype(jnp.float32)")
    if isinstance(nodes, BCOO) and (nodes.n_batch, nodes.n_dense) != (1, 0):
        raise ValueError(f"nodes: wanted a BCOO with n_batch=1 and n_dense=0, got {nodes.n_batch} and {nodes.n_dense}")
    for name, array in zip(Edges._fields, edges, strict=True):
        if array.ndim != 2 or array.shape[0] != nodes.shape[0]:
            raise ValueError(f"edges.{name}: wanted [{nodes.shape[0]}, E], got shape {list(array.shape)}")
