"""Swin: attention in shifted windows, at resolutions that halve from stage to stage; versions 1 and 2."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import FrozenConfigDict

from attention.checks import split_rng
from attention.swin import fit_window
from models.block import drop_path, drop_path_rates
from models.dense_head import DenseHead
from models.layers import dropout, gelu, layer_norm, normal, product, zeros
from models.vision import Classifier, PatchEmbedding, check_images, pad_to_multiple
from models.vision_config import check, check_filled, patch_of
from models.window_attention import WindowAttention


class Swin(nnx.Module):
    """Swin Transformer: stages of blocks whose attention stays in windows, at half the resolution from stage to stage.

        x = norm(embed(patches));   x = stage_1(x);   x = stage_s(merge(x)) for s > 1
        block 0, 2, ... of a stage: windows of M x M;   block 1, 3, ...: the same windows, moved by M // 2
        logits = mean(norm(x)) W + b

    Liu et al. 2021, "Swin Transformer", arXiv:2103.14030; version 2: Liu et al. 2022, "Swin Transformer V2",
    arXiv:2111.09883. The paper's C is `width`, its M `attention.window`. Stage s has width C 2^s and the window of its
    grid, if that is smaller than M: then M is the grid's shorter side and nothing is shifted. Other sizes than those of
    training may be given; M stays, and tokens that fill up a window are never attended. (transformers' Swin lets them
    take part as keys; it makes no difference where M divides the grid.)

    Time O(T M^2 C + T C^2) for T = (height / P) (width / P) patches: linear in the image. Every weight starts as
    N(0, 0.02^2): the authors' "truncated" normal is cut at 2, a hundred standard deviations away.

    Args:
      config: a ConfigDict with the fields of `models.vision_config.FIELDS["swin"]`.
      length: side of the training images in pixels.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.vision_config.check(config, length)` refuses.

    >>> from models.vision_config import preset
    >>> model = Swin(preset("swin", "tiny", channels=1, num_classes=10), length=28, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jnp.zeros((2, 28, 28, 1))).shape  # a shape only: nothing is computed
    (2, 10)
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config)
        self.config = config = FrozenConfigDict(config)  # hashable, so jit can tell two models apart
        self.embedding = PatchEmbedding(config, length=length, rngs=rngs)
        self.embedding_norm = layer_norm(config.width, config, rngs)
        widths = [config.width * 2**s for s in range(len(config.depths))]
        grids = [-(-length // (patch_of(config, length) * 2**s)) for s in range(len(config.depths))]
        self.stages = nnx.List([Stage(config, s, grid=grid, rngs=rngs) for s, grid in enumerate(grids)])
        self.merges = nnx.List([PatchMerging(width, config, rngs=rngs) for width in widths[:-1]])
        if config.head == "pixels":
            self.head = DenseHead(widths, config, rngs=rngs)
        else:
            self.norm = layer_norm(widths[-1], config, rngs)
            self.head = Classifier(widths[-1], config.num_classes, rngs=rngs)

    def __call__(self, images, *, rng=None):
        """Scores of the classes, of each image or of each pixel.

        Args:
          images: float [B, height, width, channels], of any height and width.
          rng: the training step's typed key, for dropout and stochastic depth; None = evaluation.

        Returns:
          [B, num_classes], or [B, height, width, num_classes] for head="pixels"; float32.

        Raises:
          ValueError: images of another kind.
        """
        features = self.features(images, rng=rng)
        if self.config.head == "pixels":
            return self.head(features[1:], images.shape[1:3])
        return self.head(self.norm(features[-1]).mean((1, 2)))

    def features(self, images, *, rng=None):
        """The normed embedding and what leaves each stage, before patches are merged: [B, h, w, C 2^s] each."""
        embed_rng, *rngs = split_rng(rng, 1 + len(self.stages))
        features = [self.embed(images, embed_rng)]
        for s, stage in enumerate(self.stages):
            x = self.merges[s - 1](features[-1]) if s else features[-1]
            features.append(stage(x, rngs[s]))
        return features

    def attention_maps(self, images):
        """The weights of every block's attention: float32 [B, N, T, T] each, T = h w tokens row by row.

        They are dense, zeros outside the windows and all: T^2 N numbers a block, for small images to look at.
        """
        maps, x = [], self.embed(images, None)
        for s, stage in enumerate(self.stages):
            x = self.merges[s - 1](x) if s else x
            for i in range(len(stage)):
                maps.append(stage.attention_map(i, x))
                x = stage.block(i)(x, None, 0.0, *stage.window_and_shift(i, x))
        return maps

    def embed(self, images, rng):
        """[B, height, width, channels] -> [B, h, w, C]."""
        check_images(images, self.config.channels)
        return dropout(self.embedding_norm(self.embedding(images)), self.config.dropout, rng)


class Stage(nnx.Module):
    """Blocks at one resolution: windows in place and windows moved, by turns.

    The parameters of all blocks lie in one `Block`, stacked on a leading axis. A loop runs a pair of blocks at a time,
    so that the program does not grow with depth; a last block without a partner follows it.

    Args:
      config: the model's config.
      index: which stage it is, from 0.
      grid: rows and columns of its tokens in training.
      rngs: draws the parameters.
    """

    def __init__(self, config, index, *, grid, rngs):
        self.config = config
        depth, before = config.depths[index], sum(config.depths[:index])
        self.window, _ = fit_window((grid, grid), config.attention.window)
        self.rates = drop_path_rates(config, sum(config.depths))[before : before + depth]
        block = functools.partial(Block, config, config.width * 2**index, config.num_heads[index], window=self.window)
        self.blocks = jax.vmap(lambda rng: block(rngs=nnx.Rngs(params=rng)))(jax.random.split(rngs.params(), depth))

    def __len__(self):
        return len(self.rates)

    def __call__(self, x, rng):
        """Runs the blocks on `x [B, rows, columns, width]`."""

        def run(i, x, each):
            window_and_shift = self.window_and_shift(i, x)
            step = lambda x, block, rate, rng: block(x, rng, rate, *window_and_shift)  # noqa: E731
            return (jax.checkpoint(step) if self.config.remat else step)(x, *each)

        def pair(x, both):
            for i in range(2):
                x = run(i, x, _take(both, i))
            return x, None

        pairs, left_over = divmod(len(self), 2)
        rngs = None if rng is None else jax.random.split(rng, len(self))
        each = self.blocks, jnp.asarray(self.rates, jnp.float32), rngs
        in_pairs = lambda leaf: leaf[: 2 * pairs].reshape(pairs, 2, *leaf.shape[1:])  # noqa: E731
        x, _ = lax.scan(pair, x, jax.tree.map(in_pairs, each))
        return run(0, x, _take(each, -1)) if left_over else x

    def window_and_shift(self, i, x):
        """What block i uses on `x [B, rows, columns, width]`: windows no larger than the grid, then unmoved."""
        shift = self.window // 2 if i % 2 and self.config.attention.shift else 0
        return fit_window(x.shape[1:3], self.window, shift)

    def block(self, i):
        """Block i, out of the stack."""
        return _take(self.blocks, i)

    def attention_map(self, i, x):
        """The weights of block i's attention for `x [B, rows, columns, width]`, its input: float32 [B, N, T, T]."""
        block = self.block(i)
        return block.attention.weights(block.before(x), *self.window_and_shift(i, x))


def _take(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


class Block(nnx.Module):
    """Attention in windows and an MLP, each added to its input.

        version 1:  x = x + attention(norm(x));   x = x + mlp(norm(x))
        version 2:  x = x + norm(attention(x));   x = x + norm(mlp(x))

    Version 2 norms what a branch adds, so that activations do not grow with depth (Liu et al. 2022, section 3.2); those
    norms' scales start at 0, as in the authors' code, so that every block starts as the identity.

    Args:
      config: the model's config.
      width: features of a token.
      num_heads: heads of the attention.
      window: the largest window.
      rngs: draws the parameters.
    """

    def __init__(self, config, width, num_heads, *, window, rngs):
        self.config, self.after = config, config.version == 2
        scale = 0.0 if self.after else 1.0
        self.attention_norm = layer_norm(width, config, rngs, scale=scale)
        self.attention = WindowAttention(config, width, num_heads, window=window, rngs=rngs)
        self.mlp_norm = layer_norm(width, config, rngs, scale=scale)
        self.mlp = MLP(width, int(config.mlp_ratio * width), rngs=rngs)

    def __call__(self, x, rng, rate, window, shift):
        """Applies the block to `x [B, rows, columns, width]`.

        Args:
          x: [B, rows, columns, width].
          rng: the block's key in training, None in evaluation.
          rate: of stochastic depth, a scalar.
          window: rows and columns of a window.
          shift: by how much the windows are moved.
        """
        attention_rng, dropout_rng, path_rng, mlp_dropout_rng, mlp_path_rng = split_rng(rng, 5)
        if not self.config.drop_path:  # known now, where `rate` is traced and would be drawn for
            rate = 0.0
        added = self.attention(self.before(x), window, shift, attention_rng)
        added = dropout(added, self.config.dropout, dropout_rng)
        x = x + drop_path(self.attention_norm(added) if self.after else added, rate, path_rng)
        added = dropout(self.mlp(x if self.after else self.mlp_norm(x)), self.config.dropout, mlp_dropout_rng)
        return x + drop_path(self.mlp_norm(added) if self.after else added, rate, mlp_path_rng)

    def before(self, x):
        """What the attention reads."""
        return x if self.after else self.attention_norm(x)


class MLP(nnx.Module):
    """Two matrices with an exact GELU between: gelu(x W_in + b_in) W_out + b_out.

    Args:
      width: features of a token.
      hidden: features between the matrices.
      rngs: draws the parameters.
    """

    def __init__(self, width, hidden, *, rngs):
        self.into, self.into_bias = normal(rngs, (width, hidden)), zeros(hidden)
        self.out, self.out_bias = normal(rngs, (hidden, width)), zeros(width)

    def __call__(self, x):
        hidden = gelu(product(x, self.into) + self.into_bias.astype(x.dtype))
        return product(hidden, self.out) + self.out_bias.astype(x.dtype)


class PatchMerging(nnx.Module):
    """Half the resolution, twice the features: the four tokens of a 2 x 2 square become one.

        version 1:  out = norm([x_00, x_10, x_01, x_11]) W          version 2:  out = norm([x_00, x_10, x_01, x_11] W)

    x_rc is the token in row r and column c of the square, in the order of the authors' code, so that their weights fit.
    Odd sizes are padded with zeros.

    Args:
      width: C of the input; the output has 2 C.
      config: reads version, norm_epsilon, dtype.
      rngs: draws W, which has no bias.
    """

    def __init__(self, width, config, *, rngs):
        self.after = config.version == 2
        self.norm = layer_norm((2 if self.after else 4) * width, config, rngs)
        self.reduction = normal(rngs, (4 * width, 2 * width))

    def __call__(self, x):
        """[B, rows, columns, C] -> [B, ceil(rows / 2), ceil(columns / 2), 2 C]."""
        x = pad_to_multiple(x, 2)
        squares = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = jnp.concatenate(squares, -1)
        return self.norm(product(x, self.reduction)) if self.after else product(self.norm(x), self.reduction)
