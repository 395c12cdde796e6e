"""ViT: an image as a sequence of patches, read by the same layers as text, with any variant that sees both sides."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from attention import apply_rotary, rotary_frequencies
from attention.checks import split_rng
from models.layers import Grid, dropout, normal, sinusoids
from models.stack import Stack
from models.vision import Classifier, PatchEmbedding, check_images
from models.vision_config import check, check_filled, patch_of


class ViT(Stack):
    """A Vision Transformer: scores of the classes of an image.

        x = [class_token; registers; patches W + b] + positions;   scores = pool(layers(x)) W_classes + b_classes

    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929, eqs. 1 to 4; their E, x_class, E_pos and
    L are our PatchEmbedding, class_token, positions and depth. The layers are those of `models.stack.Stack`. Tokens
    stand in the order of rows, special ones before them, and variants of sequences attend along that order; "axial" and
    "grid_window" attend on the grid itself, which has no place for special tokens.

    * `pool`: "cls" reads the class token, "mean" averages the patches and does without one.
    * `registers`: so many more learned tokens, which nothing reads out: layers keep what is global there instead of in
      patches of the background (Darcet et al. 2024, "Vision Transformers Need Registers", arXiv:2309.16588).
    * `position`: "learned" adds a table, for the class token too, at another resolution resized as `resized` says;
      "sincos" adds fixed sines and cosines of column and row, half of the features each (Chen et al. 2021, MoCo v3,
      arXiv:2104.02057, section 4.3); "rope" turns half of the pairs of each query and key by its row and half by its
      column (Heo et al. 2024, arXiv:2403.13298, section 3.2, there with a `rope_base` of 100), special tokens by
      nothing; "none" leaves a bag of patches.

    Time O(T width^2) a layer and what the variant takes, T = rows x columns + special tokens.

    Args:
      config: a ConfigDict with the fields of `models.vision_config.FIELDS["vit"]`; see `models.vision_config.preset`.
      length: side of the training images in pixels; parameters over the length are made for it.
      rngs: draws the parameters.

    Raises:
      ValueError: what `models.vision_config.check(config, length)` refuses; channels or num_classes are 0.

    >>> from flax import nnx
    >>> from models.vision_config import preset
    >>> model = ViT(preset("vit", "tiny", channels=1, num_classes=10), length=8, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """

    def __init__(self, config, *, length, rngs):
        check(config, length)
        check_filled(config)
        self.side = -(-length // patch_of(config, length))  # patches along each side of a training image
        self.special = int(config.pool == "cls") + config.registers
        text = {"reversible": False}  # what a stack of text layers may have besides
        tokens = self.special + self.side**2
        super().__init__(FrozenConfigDict(config.to_dict() | text), length=tokens, rngs=rngs)
        self.embedding = PatchEmbedding(config, length=length, rngs=rngs)
        if config.pool == "cls":
            self.class_token = normal(rngs, (config.width,))
        if config.registers:
            self.registers = normal(rngs, (config.registers, config.width))
        if config.position == "learned":  # the class token's first; as large as big_vision draws them: with patches of
            # a pixel or two, where something stands says most, and at 0.02 digits were hardly learned in 150 steps
            count = int(config.pool == "cls") + self.side**2
            self.positions = normal(rngs, (count, config.width), config.width**-0.5)
        self.head = Classifier(config.width, config.num_classes, rngs=rngs)

    def __call__(self, images, *, rng=None):
        """Scores of the classes.

        Args:
          images: [B, height, width, channels], floats, of any height and width.
          rng: the training step's typed key, for dropout, stochastic depth and what variants draw at random; None =
            evaluation.

        Returns:
          [B, num_classes], float32.

        Raises:
          ValueError: images do not fit; they are larger than parameters over the length reach.
        """
        embed_rng, layers_rng = split_rng(rng, 2)
        x, grid = self._embed(images, embed_rng)
        x = self.layers(x, self._places(grid), layers_rng, grid=grid)
        return self.head(x[:, 0] if self.config.pool == "cls" else x[:, self.special :].mean(1))

    def features(self, images, *, rng=None):
        """The patches after the embedding and after each layer, before the last norm: depth + 1 x [B, h, w, width]."""
        embed_rng, layers_rng = split_rng(rng, 2)
        x, grid = self._embed(images, embed_rng)
        places = self._places(grid)
        inputs, last = self.watch_layers(x, places, layers_rng, lambda block, x, context: x, grid=grid)
        return [x[:, self.special :].reshape(len(x), *grid, -1) for x in (*inputs, last)]

    def attention_maps(self, images):
        """What the tokens of each layer attend to: depth x [B, N, T, T] float32, special tokens first."""
        x, grid = self._embed(images, None)
        look = lambda block, x, context: block.weights(x, context)  # noqa: E731
        return self.watch_layers(x, self._places(grid), None, look, grid=grid)[0]

    def _embed(self, images, rng):
        """[B, height, width, channels] -> the tokens [B, T, width], and the `Grid` of the patches among them."""
        config = self.config
        check_images(images, config.channels)
        x = self.embedding(images)
        grid = Grid(*x.shape[1:3])
        patches = x.reshape(len(x), -1, config.width) + self._positions(grid).astype(x.dtype)
        special = jnp.broadcast_to(self._special_tokens().astype(x.dtype), (len(x), self.special, config.width))
        return dropout(jnp.concatenate([special, patches], axis=1), config.dropout, rng), grid

    def _special_tokens(self):
        """The class token and the registers, as far as there are any: [special, width]."""
        config = self.config
        tokens = [jnp.zeros((0, config.width))]
        if config.pool == "cls":
            first = self.positions[:1] if config.position == "learned" else 0
            tokens.append(self.class_token[...][None] + first)
        if config.registers:
            tokens.append(self.registers[...])
        return jnp.concatenate(tokens)

    def _positions(self, grid):
        """What is added to the patches, [rows x columns, width]; 0 where positions are told otherwise."""
        config = self.config
        if config.position == "learned":
            table = self.positions[int(config.pool == "cls") :].reshape(self.side, self.side, -1)
            return resized(table, grid).reshape(-1, config.width)
        if config.position == "sincos":
            rows, columns = np.indices(grid).reshape(2, -1)
            return jnp.concatenate([sinusoids(x, config.width // 2) for x in (columns, rows)], axis=-1)
        return jnp.zeros(())

    def _places(self, grid):
        """Row and column of every token, [T, 2]; (0, 0), which turns nothing, for special ones."""
        return np.pad(np.indices(grid).reshape(2, -1).T, ((self.special, 0), (0, 0)))

    def _rotation(self, places):
        config = self.config
        if config.position != "rope":
            return None
        frequencies, _ = rotary_frequencies(config.width // config.num_heads // 2, base=config.rope_base)
        return jax.tree_util.Partial(_rotate, places, frequencies)


def _rotate(places, frequencies, x):
    """The first half of the features of each head turns by the row, the second by the column."""
    halves = zip(jnp.split(x, 2, axis=-1), places.T, strict=True)
    return jnp.concatenate([apply_rotary(half, place, frequencies=frequencies) for half, place in halves], axis=-1)


def resized(table, grid):
    """A table of positions made for one grid, resized to another by cubic convolution (Keys 1981, with a = -0.75).

    As DeiT (Touvron et al. 2021, arXiv:2012.12877, section 4) and Hugging Face do, with PyTorch's numbers: its `a`,
    cells in their centres, the border repeated, no smoothing when it shrinks.

    Args:
      table: [rows, columns, width].
      grid: the `Grid` that is wanted.

    Returns:
      [rows', columns', width]; `table` itself where nothing changes.

    >>> resized(jnp.ones((3, 3, 1)), Grid(2, 5)).shape
    (2, 5, 1)
    """
    if table.shape[:2] == grid:
        return table
    rows, columns = (_cubic(size, wanted) for size, wanted in zip(table.shape[:2], grid, strict=True))
    return jnp.einsum("ri,cj,ijd->rcd", rows, columns, table)


def _cubic(size, wanted, a=-0.75):
    """[wanted, size] float32: the weights of cubic convolution between two numbers of evenly spaced cells."""
    center = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    taps = np.floor(center)[:, None].astype(int) + np.arange(-1, 3)
    far = np.abs(center[:, None] - taps)
    near = (a + 2) * far**3 - (a + 3) * far**2 + 1
    weights = np.where(far <= 1, near, a * (far**3 - 5 * far**2 + 8 * far - 4))
    matrix = np.zeros((wanted, size), np.float32)
    np.add.at(matrix, (np.arange(wanted)[:, None], np.clip(taps, 0, size - 1)), weights)
    return matrix
