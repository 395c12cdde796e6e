"""Two towers: two texts, each read alone by one and the same encoder, and one class of the pair."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import check, tower_of
from models.fields import check_filled
from models.layers import normal, product, zeros
from models.transformer import Encoder


class TwoTowers(nnx.Module):
    """A model of whether two texts belong together, which sees them side by side only as two vectors.

        x, y = pool(layers(embed(first))), pool(layers(embed(second)))
        scores = relu(relu([x, y, x * y, x - y] W_1 + b_1) W_2 + b_2) W_3 + b_3

    Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section 2.2.3: no attention from one text to the other, so
    that a text must be pressed into its vector. The layers of the head have `mlp_width`, `mlp_width` // 2 and
    `num_classes` columns, drawn from N(0, 1 / rows), as in the code of its authors; that code has the four parts under
    the name of "NLI", and without the name only [x, y], from which its configs train. Here they are always four, as the
    paper writes.

    Time and memory are those of the encoder on twice the batch.

    Args:
      config: a ConfigDict with the fields of `models.config.FIELDS["two_towers"]`, those of the encoder.
      length: the training length T of either text; variants and positions with parameters over the length go no
        further.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.config.check(config, length)` refuses; `num_classes` of 0.
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config, ("num_classes",))
        self.encoder = Encoder(tower_of(config), length=length, rngs=rngs)
        sizes = 4 * config.width, config.mlp_width, max(1, config.mlp_width // 2), config.num_classes
        steps = zip(sizes[:-1], sizes[1:], strict=True)
        self.head = nnx.List([_Affine(rows, columns, rngs=rngs) for rows, columns in steps])

    def __call__(self, first, second, *, first_mask=None, second_mask=None, rng=None):
        """Scores of the classes of each pair.

        Args:
          first: [B, T] int.
          second: [B, T] int.
          first_mask: [B, T] bool, True = real token; None for no padding.
          second_mask: likewise.
          rng: the training step's typed key, for dropout and what variants draw at random; None = evaluation.

        Returns:
          [B, num_classes], float32.

        Raises:
          ValueError: an input does not fit, named.
        """
        for name, tokens in {"first": first, "second": second}.items():
            self.encoder.check_tokens(name, tokens, self.encoder.before)
        for name, array in {"second": second, "first_mask": first_mask, "second_mask": second_mask}.items():
            if array is not None and array.shape != first.shape:
                raise ValueError(f"{name}: wanted the shape of first {list(first.shape)}, got {list(array.shape)}")
        key_mask = None
        if first_mask is not None or second_mask is not None:
            every = jnp.ones(first.shape, bool)
            key_mask = jnp.concatenate([every if mask is None else mask for mask in (first_mask, second_mask)])
        x, y = jnp.split(self.encoder.vectors(jnp.concatenate([first, second]), key_mask=key_mask, rng=rng), 2)
        pair = jnp.concatenate([x, y, x * y, x - y], axis=-1)
        *hidden, scores = self.head
        for layer in hidden:
            pair = jax.nn.relu(layer(pair))
        return scores(pair).astype(jnp.float32)


class _Affine(nnx.Module):
    """x W + b."""

    def __init__(self, rows, columns, *, rngs):
        self.weight, self.bias = normal(rngs, (rows, columns), rows**-0.5), zeros(columns)

    def __call__(self, x):
        return product(x, self.weight[...]) + self.bias[...].astype(x.dtype)
