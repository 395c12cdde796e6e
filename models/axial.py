"""Axial-ResNet: a residual network whose 3 x 3 convolutions are attention along the height, then along the width."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from ml_collections import FrozenConfigDict

from attention.checks import split_rng
from models.axial_layer import AxialLayer, batch_norm, normed
from models.block import drop_path, drop_path_rates
from models.dense_head import DenseHead
from models.layers import dropout, normal, product
from models.vision import Classifier, PatchEmbedding, check_images
from models.vision_config import check, check_filled


class AxialResNet(nnx.Module):
    """A backbone of stages of axial blocks, with a classifier or a head for every pixel.

        x = stem(images);   x = stage_s(x) for s = 0, 1, ...
        logits = mean(x) W + b                                 head="classes"
        logits = dense_head(features)                          head="pixels", see `models.dense_head`

    Wang et al. 2020, "Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation", arXiv:2003.07853, sections
    3.2 and 3.3; like the authors' code (github.com/csrhddlam/axial-deeplab) in widths, norms and first values. Stage s
    attends in 2^(s + 1) `width` channels and hands on twice as many; every stage but the first halves the grid, in its
    first block. Two stems: "conv" is the 7 x 7 convolution and the pooling of a ResNet, which leave a quarter of the
    side; "patch", for small images, projects patches and no more.

    The paper's S, M and L have a `width` of 32, 48 and 64. At 224 pixels and 1000 classes they have 11,586,216,
    25,179,400 and 43,973,480 parameters, as that code has; the paper's table says 12.5 million for S. Axial-ResNet-26-S
    has 5,944,936, in both 5.9 million.

    Batch norm stands where the paper has it (`Block`, `AxialLayer`). With a key the call uses the batch's own mean and
    variance and moves the running ones (`nnx.BatchStat`) a tenth of the way to them in place; without, it uses the
    running ones. The running variance is the batch's own, not n / (n - 1) times it as in PyTorch.

    Any size of image goes. Sides that a stride does not divide are rounded up. The vectors for distances reach as far
    as the training images needed; in a larger image a query sees no farther than that, as if `span` said so.

    Cost of a block on a grid of h x w: O(h w (h + w) width) time, O(h w (h + w) num_heads) memory.

    Args:
      config: a ConfigDict with the fields of `models.vision_config.FIELDS["axial"]`.
      length: side of the training images in pixels.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.vision_config.check(config, length)` refuses.

    >>> from models.vision_config import preset
    >>> config = preset("axial", "tiny", channels=1, num_classes=10)
    >>> build = lambda: AxialResNet(config, length=8, rngs=nnx.Rngs(0))
    >>> [x.shape for x in jax.eval_shape(lambda: build().features(jnp.zeros((2, 8, 8, 1))))]
    [(2, 8, 8, 16), (2, 8, 8, 64), (2, 4, 4, 128)]
    """

    maps_per_residual = 2  # a block's shortcut leads around both of its layers, see `tasks.rollout`

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config)
        self.config = FrozenConfigDict(config)
        self.stem = STEMS[config.stem](config, length=length, rngs=rngs)
        side, width = self.stem.side(length), config.width
        rates, stages, widths = drop_path_rates(config, sum(config.depths)), [], [width]
        for s, depth in enumerate(config.depths):
            stride = 1 if s == 0 else 2
            attended = 2 ** (s + 1) * config.width
            stages.append(Stage(self.config, width, attended, side, stride, rates[:depth], rngs=rngs))
            side, width, rates = -(-side // stride), 2 * attended, rates[depth:]
            widths.append(width)
        self.stages = nnx.List(stages)
        if config.head == "pixels":
            self.head = DenseHead(widths, config, rngs=rngs)
        else:
            self.head = Classifier(width, config.num_classes, rngs=rngs)

    def __call__(self, images, *, rng=None):
        """Scores of the classes of each image, or of each pixel.

        Args:
          images: [B, height, width, channels], floats.
          rng: the training step's typed key; None = evaluation, with the running averages of batch norm.

        Returns:
          [B, num_classes], or with head="pixels" [B, height, width, num_classes]; float32.

        Raises:
          ValueError: images of another shape or dtype.
        """
        maps = self.features(images, rng=rng)
        if self.config.head == "pixels":
            return self.head(maps, images.shape[1:3])
        return self.head(maps[-1].mean((1, 2)))

    def features(self, images, *, rng=None):
        """The feature maps [B, h, w, C]: what the stem makes of `images`, then the output of each stage."""
        check_images(images, self.config.channels)
        stem_rng, *rngs = split_rng(rng, 1 + len(self.stages))
        maps = [self.stem(images, stem_rng is not None)]
        for stage, stage_rng in zip(self.stages, rngs, strict=True):
            maps.append(stage(maps[-1], stage_rng))
        return maps

    def attention_maps(self, images):
        """The weights that every layer pays, in evaluation: two layers a block, along the height, along the width.

        Args:
          images: [B, height, width, channels], floats.

        Returns:
          A list of float32 [B, N, T, T], T = h w of the layer's grid, row-major. A pixel pays nothing outside its line.
        """
        check_images(images, self.config.channels)
        x, maps = self.stem(images, False), []
        for block in (block for stage in self.stages for block in stage.each()):
            x, (down, along) = block(x, 0.0, None)
            (B, columns, N, rows, _) = down.shape
            down = jnp.einsum("bcnij,cd->bnicjd", down, jnp.eye(columns))
            along = jnp.einsum("brnij,rs->bnrisj", along, jnp.eye(rows))
            maps += [each.reshape(B, N, rows * columns, rows * columns) for each in (down, along)]
        return maps


class ConvStem(nnx.Module):
    """What stands before the stages of a ResNet: 7 x 7 convolution of stride 2, batch norm, ReLU, 3 x 3 max pool of 2.

    Args:
      config: reads width, channels, norm_epsilon, dtype.
      length: not read; the other stem needs it.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs):
        self.dtype = config.dtype
        fan_out = 7 * 7 * config.width
        self.kernel = normal(rngs, (7, 7, config.channels, config.width), (2 / fan_out) ** 0.5)
        self.norm = batch_norm(config.width, config, rngs)

    def __call__(self, images, training):
        """[B, height, width, channels] -> [B, ceil(ceil(height / 2) / 2), ..., features]."""
        x = images.astype(self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, self.kernel.astype(x.dtype), (2, 2), [(3, 3), (3, 3)], dimension_numbers=layout)
        x = jax.nn.relu(normed(self.norm, x, training))
        return nnx.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])

    def side(self, length):
        """Side of the output for images of side `length`."""
        return -(-length // 4)  # rounding up twice is rounding up once


class PatchStem(PatchEmbedding):
    """Patches, projected: for images so small that a ResNet's stem would leave nothing to attend to.

    Without norm and ReLU, which the first block brings.
    """

    def __call__(self, images, training):
        """[B, height, width, channels] -> [B, ceil(height / patch), ceil(width / patch), features], training or not."""
        return super().__call__(images)

    def side(self, length):
        """Side of the output for images of side `length`."""
        return -(-length // self.patch)


STEMS = {"conv": ConvStem, "patch": PatchStem}


class Stage(nnx.Module):
    """Blocks of one width on one grid, of which the first comes from another.

    The blocks after the first have parameters of one shape. They lie in one `Block`, stacked on a leading axis, and run
    in a loop, so that the program does not grow with their number. `remat` recomputes each block in the backward pass.

    Args:
      config: the model's config.
      width_in: channels of the input.
      width: channels that attend.
      length: side of the input's grid for the training images.
      stride: of the first block.
      rates: stochastic depth of each block.
      rngs: draws the parameters.
    """

    def __init__(self, config, width_in, width, length, stride, rates, *, rngs):
        self.config, self.rates = config, tuple(rates)
        self.first = Block(config, width_in, width, length, stride, rngs=rngs)
        if len(rates) > 1:
            inner = functools.partial(Block, config, 2 * width, width, -(-length // stride), 1)
            keys = jax.random.split(rngs.params(), len(rates) - 1)
            self.blocks = jax.vmap(lambda rng: inner(rngs=nnx.Rngs(params=rng)))(keys)

    def __call__(self, x, rng):
        """[B, h, w, width_in] -> [B, ceil(h / stride), ceil(w / stride), 2 width]."""

        def run(x, block_and_rate_and_rng):
            block, rate, rng = block_and_rate_and_rng
            x, _ = block(x, rate, rng)
            return x, None if rng is None else nnx.state(block, nnx.BatchStat)

        first, *rest = split_rng(rng, len(self.rates))
        # Inside a scan XLA cannot undo the recomputation, so nothing has to prevent it there.
        wrap = functools.partial(jax.checkpoint, run) if self.config.remat else lambda prevent_cse: run
        x, statistics = wrap(prevent_cse=True)(x, (self.first, self.rates[0], first))
        self._keep(self.first, statistics)
        if rest:
            rngs = None if rng is None else jnp.stack(rest)
            blocks = self.blocks, jnp.array(self.rates[1:]), rngs
            x, statistics = lax.scan(wrap(prevent_cse=False), x, blocks)
            self._keep(self.blocks, statistics)
        return x

    def _keep(self, block, statistics):
        """Writes back what batch norm did to a copy of `block` inside a transformation."""
        if statistics is not None:
            nnx.update(block, statistics)

    def each(self):
        """The blocks, one after the other."""
        pick = lambda i: jax.tree.map(lambda leaf: leaf[i], self.blocks)  # noqa: E731
        return [self.first, *map(pick, range(len(self.rates) - 1))]


class Block(nnx.Module):
    """A bottleneck block of a ResNet with attention along both axes in place of its 3 x 3 convolution.

        y = relu(norm(x W_into))
        y = relu(pool(attend_width(attend_height(y))))
        out = relu(norm(y W_out) + shortcut(x))                shortcut: x, or norm(x[every stride-th pixel] W)

    The last norm of the branch starts with a scale of 0, so that the block starts as its shortcut (Goyal et al. 2017,
    arXiv:1706.02677, section 5.1). The stride is an average over stride x stride pixels; at an edge over those there
    are. Dropout and stochastic depth act on what the branch adds.

    Args:
      config: the model's config.
      width_in: channels of the input.
      width: channels that attend; the output has twice as many.
      length: side of the grid for the training images.
      stride: 1 or 2.
      rngs: draws the parameters.
    """

    def __init__(self, config, width_in, width, length, stride, *, rngs):
        self.config, self.stride = config, stride
        self.into = normal(rngs, (width_in, width), (2 / width) ** 0.5)  # He et al. 2015, by fan-out as the authors do
        self.into_norm = batch_norm(width, config, rngs)
        self.height = AxialLayer(config, width, length, rngs=rngs)
        self.width = AxialLayer(config, width, length, rngs=rngs)
        self.out = normal(rngs, (width, 2 * width), (2 / (2 * width)) ** 0.5)
        self.out_norm = batch_norm(2 * width, config, rngs, scale=0.0)
        self.shortcuts = stride > 1 or width_in != 2 * width
        if self.shortcuts:
            self.shortcut = normal(rngs, (width_in, 2 * width), (2 / (2 * width)) ** 0.5)
            self.shortcut_norm = batch_norm(2 * width, config, rngs)

    def __call__(self, x, rate, rng):
        """Applies the block.

        Args:
          x: [B, h, w, width_in].
          rate: of stochastic depth.
          rng: the training step's key, None in evaluation.

        Returns:
          ([B, ceil(h / stride), ceil(w / stride), 2 width], the weights of both layers: [B, w, N, h, h] along the
          height and [B, h, N, w, w] along the width).
        """
        training = rng is not None
        dropout_rng, path_rng = split_rng(rng, 2)
        y = jax.nn.relu(normed(self.into_norm, product(x, self.into), training))
        y, down = self.height(y.swapaxes(1, 2), training)
        y, along = self.width(y.swapaxes(1, 2), training)
        y = jax.nn.relu(average_pool(y, self.stride))
        y = normed(self.out_norm, product(y, self.out), training)
        y = dropout(y, self.config.dropout, dropout_rng)
        if self.config.drop_path:
            y = drop_path(y, rate, path_rng)
        if self.shortcuts:
            x = product(x[:, :: self.stride, :: self.stride], self.shortcut)
            x = normed(self.shortcut_norm, x, training)
        return jax.nn.relu(x + y), (down, along)


def average_pool(x, stride):
    """Means over stride x stride pixels of `x [B, h, w, C]`; at the lower and right edge over those there are."""
    if stride == 1:
        return x
    (_, rows, columns, _) = x.shape
    padding = [(0, -rows % stride), (0, -columns % stride)]
    pooled = nnx.avg_pool(x, (stride, stride), (stride, stride), padding, count_include_pad=False)
    return pooled.astype(x.dtype)
