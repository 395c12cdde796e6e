"""The attention layer of an Axial-ResNet, along the lines of a grid, and the batch norm inside it and around it."""

import jax
import jax.numpy as jnp
from flax import nnx

from attention.axial import position_sensitive_scores, position_sensitive_values
from models.layers import normal, product


class AxialLayer(nnx.Module):
    """Attention along the lines of a grid, position-sensitive or not, with batch norm inside.

        q, k, v = norm(x W_q), norm(x W_k), norm(x W_v)
        w_o = softmax_p(norm(q_o . k_p) + norm(q_o . r^q_{p-o}) + norm(k_p . r^k_{p-o}))
        y_o = norm(sum_p w_op v_p) + norm(sum_p w_op r^v_{p-o})

    Wang et al. 2020, arXiv:2003.07853, eq. 4; the norms of the scores take the place of 1 / sqrt(H) and have one mean
    per head and term. Queries and keys are half as wide as values. The vectors r for distances serve all heads. Some
    shifts of norms cancel: of scores in the softmax, of values because weights sum to 1 and a norm follows. They are
    there because they are in the published counts.

    `position_sensitive` = 0 drops the three terms with r and their norms: content alone, so that a layer treats the
    pixels of its line as a set. That is less than the paper's own baseline (Ramachandran et al. 2019,
    arXiv:1906.05909), which keeps q_o . r^q_{p-o}.

    `span` = m, odd: a query sees the m pixels at most (m - 1) / 2 away, and norms count no others; 0 = the whole line.
    All scores of a line are computed even so.

    Args:
      config: the model's config; reads num_heads, norm_epsilon, attention.
      width: channels in and out.
      length: of the lines of the training images.
      rngs: draws the parameters.
    """

    def __init__(self, config, width, length, *, rngs):
        num_heads = config.num_heads
        head_dim = width // num_heads  # of values
        sizes = {"query": head_dim // 2, "key": head_dim // 2, "value": head_dim}
        sensitive, span = config.attention.position_sensitive, config.attention.span
        self.reach = span // 2 if span else length - 1
        for name, size in sizes.items():
            setattr(self, name, normal(rngs, (width, num_heads, size), width**-0.5))
            setattr(self, f"{name}_norm", batch_norm(num_heads * size, config, rngs))
            table = normal(rngs, (2 * self.reach + 1, size), head_dim**-0.5) if sensitive else None
            setattr(self, f"{name}_table", nnx.data(table))
        self.score_norms = nnx.List(
            [batch_norm(num_heads, config, rngs, axis=-3) for _ in range(3 if sensitive else 1)]
        )
        self.out_norms = nnx.List([batch_norm(width, config, rngs) for _ in range(2 if sensitive else 1)])

    def __call__(self, x, training):
        """Attends within lines `x [..., T, width]`.

        Returns:
          (what it attended to [..., T, width], the weights [..., N, T, T] in float32).
        """
        length = x.shape[-2]
        query, key, value = (self._heads(name, x, training) for name in ("query", "key", "value"))
        near = _near(length, self.reach)
        terms = position_sensitive_scores(query, key, self._table("query", length), self._table("key", length))
        scores = _normed_sum(self.score_norms, terms, training, near)
        weights = jax.nn.softmax(scores if near is None else jnp.where(near, scores, -jnp.inf), axis=-1)
        terms = position_sensitive_values(weights, value, self._table("value", length))
        terms = [term if term is None else term.reshape(x.shape) for term in terms]
        return _normed_sum(self.out_norms, terms, training).astype(x.dtype), weights

    def _heads(self, name, x, training):
        """`x [..., T, width]` projected and normalised, [..., T, N, H]."""
        heads = product(x, getattr(self, name))
        flat = heads.reshape(*x.shape[:-1], -1)
        return normed(getattr(self, f"{name}_norm"), flat, training).reshape(heads.shape)

    def _table(self, name, length):
        """The vectors for distances in a line of `length`, 0 beyond `reach`; None without."""
        table = getattr(self, f"{name}_table")
        if table is None:
            return None
        beyond = max(length - 1 - self.reach, 0)
        return jnp.pad(table[...], ((beyond, beyond), (0, 0)))


def _normed_sum(norms, terms, training, mask=None):
    """The sum of the terms that there are, each after its norm."""
    terms = [term for term in terms if term is not None]
    return sum(normed(norm, term, training, mask) for norm, term in zip(norms, terms, strict=True))


def _near(length, reach):
    """[length, length]: which pairs of a line are at most `reach` apart; None if all are."""
    if reach >= length - 1:
        return None
    places = jnp.arange(length)
    return abs(places - places[:, None]) <= reach


def batch_norm(features, config, rngs, *, axis=-1, scale=1.0):
    """(x - mean) / sqrt(variance + norm_epsilon) * a + b (Ioffe & Szegedy 2015, arXiv:1502.03167), for `normed`.

    Args:
      features: length of the feature axis; means are over all the others.
      config: reads norm_epsilon.
      rngs: of the model; nothing is drawn.
      axis: the feature axis.
      scale: where a starts.
    """
    return nnx.BatchNorm(
        features,
        axis=axis,
        momentum=0.9,
        epsilon=config.norm_epsilon,
        scale_init=nnx.initializers.constant(scale),
        use_fast_variance=False,  # mean(x^2) - mean(x)^2 loses digits where the mean is large
        rngs=rngs,
    )


def normed(norm, x, training, mask=None):
    """`norm(x)` in float32, returned in the dtype of `x`.

    Args:
      norm: from `batch_norm`.
      x: an array.
      training: whether to use the batch's mean and variance, and move the running ones in place.
      mask: bool, broadcastable to `x`: which entries count for mean and variance. None = all.
    """
    return norm(x, use_running_average=not training, mask=mask).astype(x.dtype)
