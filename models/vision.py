"""Parts that image models share: patches in, classes out, and what they say of images of another kind."""

import jax.numpy as jnp
from flax import nnx

from models.layers import normal, product, zeros
from models.vision_config import patch_of


class PatchEmbedding(nnx.Module):
    """Cuts an image into patches and projects each: a convolution whose stride is its width, as one matrix product.

        out[i, j] = flatten(image[i P : (i + 1) P, j P : (j + 1) P]) W + b

    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929, eq. 1. An image that P does not divide
    is padded with zeros on its right and lower side. W starts at the variance that keeps the pixels' (LeCun et al.
    1998, "Efficient BackProp", section 4.6).

    Args:
      config: reads width, channels, patch_size, dtype.
      length: side of the training images in pixels, from which `models.vision_config.patch_of` knows P.
      rngs: draws the parameters.
    """

    def __init__(self, config, *, length, rngs):
        self.patch, self.dtype = patch_of(config, length), config.dtype
        fan_in = self.patch**2 * config.channels
        self.embedding = normal(rngs, (fan_in, config.width), fan_in**-0.5)  # row, column, channel within the patch
        self.bias = zeros(config.width)

    def __call__(self, images):
        """[B, height, width, channels] -> [B, ceil(height / P), ceil(width / P), features]."""
        x = pad_to_multiple(images.astype(self.dtype), self.patch)
        batch, height, width, channels = x.shape
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        x = x.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3).reshape(batch, rows, columns, -1)
        return product(x, self.embedding) + self.bias.astype(x.dtype)


class Classifier(nnx.Module):
    """Scores of the classes: x W + b, float32.

    Args:
      width: features of x.
      num_classes: scores.
      rngs: draws W; b starts as 0.
    """

    def __init__(self, width, num_classes, *, rngs):
        self.classes = normal(rngs, (width, num_classes))
        self.bias = zeros(num_classes)

    def __call__(self, x):
        """[..., width] -> [..., num_classes]."""
        return jnp.matmul(x, self.classes.astype(x.dtype), preferred_element_type=jnp.float32) + self.bias[...]


def pad_to_multiple(x, size):
    """Pads rows and columns of `x [B, rows, columns, C]` with zeros behind, to multiples of `size`."""
    (_, rows, columns, _) = x.shape
    return jnp.pad(x, ((0, 0), (0, -rows % size), (0, -columns % size), (0, 0)))


def check_images(images, channels):
    """Raises ValueError in one line unless `images` are floats [B, height, width, channels]."""
    if images.ndim != 4 or images.shape[-1] != channels or 0 in images.shape:
        raise ValueError(f"images: wanted [B, height, width, {channels}], got shape {list(images.shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: wanted floats, got {images.dtype}; divide pixels by 255.0")
