"""The head of semantic segmentation: a class for every pixel, from the feature maps of a backbone."""

import jax
from flax import nnx

from models.layers import gelu, layer_norm
from models.vision import Classifier


class DenseHead(nnx.Module):
    """Feature maps of several resolutions -> a class for every pixel.

        y = sum_i resize(f_i W_i + b_i);   logits = resize(gelu(norm(y)) W_classes + b_classes)

    Every map is projected to one width and brought to the size of the largest, so that coarse maps say what and fine
    ones where, as in feature pyramids (Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", arXiv:1901.02446,
    section 3, there with 3 x 3 convolutions between the steps of the resizing). Resizing is bilinear between the
    centres of cells.

    Time O(h w (sum of widths + classes) head_width) for a largest map of h x w, and O(height width classes) at the end.

    Args:
      widths: channels of each feature map, in the order of the call.
      config: reads num_classes, head_width (channels between the maps and the classes), norm_epsilon and dtype, that
        of the activations; the logits are float32.
      rngs: draws the parameters.
    """

    def __init__(self, widths, config, *, rngs):
        self.dtype, head_width = config.dtype, config.head_width
        self.projections = nnx.List([nnx.Linear(width, head_width, dtype=self.dtype, rngs=rngs) for width in widths])
        self.norm = layer_norm(head_width, config, rngs)
        self.classes = Classifier(head_width, config.num_classes, rngs=rngs)

    def __call__(self, features, shape):
        """Logits of every pixel.

        Args:
          features: list of [B, h, w, C], one for each of `widths`.
          shape: (height, width) of the images.

        Returns:
          [B, height, width, num_classes], float32.

        Raises:
          ValueError: another number of feature maps than of widths.
        """
        if len(features) != len(self.projections):
            raise ValueError(f"features: wanted {len(self.projections)} maps, one for each width, got {len(features)}")
        finest = max((x.shape[1:3] for x in features), key=lambda size: size[0] * size[1])
        maps = [
            resize(project(x.astype(self.dtype)), finest) for project, x in zip(self.projections, features, strict=True)
        ]
        return resize(self.classes(gelu(self.norm(sum(maps)))), shape)


def resize(x, shape):
    """`x [B, h, w, C]` at another (height, width), bilinear; the same array if it has that size already."""
    return x if x.shape[1:3] == tuple(shape) else jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), "bilinear")
