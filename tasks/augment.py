"""Changes of training images that keep their class: all draws from one generator, all rows of a batch at once."""

import numpy as np


def random_crop(images, margin, rng):
    """Moves each image by up to `margin` pixels each way; what comes in from outside is black.

    He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2, has margin 4 at 32 x
    32 pixels.

    Args:
      images: uint8 [B, rows, columns, channels].
      margin: pixels; 0 returns the images.
      rng: a NumPy generator.

    >>> image = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> random_crop(image, 1, np.random.default_rng(0))[0, :, :, 0].tolist()
    [[3, 4], [0, 0]]
    """
    if not margin:
        return images
    batch, rows, columns, _ = images.shape
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    places = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(1, 2))
    down, right = rng.integers(0, 2 * margin + 1, (2, batch))
    return np.moveaxis(places[np.arange(batch), down, right], 1, -1)


def random_flip(images, rng):
    """Mirrors every second image, left to right, by chance."""
    return np.where(rng.random(len(images))[:, None, None, None] < 0.5, images[:, :, ::-1], images)


def soft_targets(labels, num_classes, smoothing):
    """Probabilities to learn: 1 - smoothing for the label, and smoothing spread over all classes.

    Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567, section 7.

    Args:
      labels: int [B].
      num_classes: C.
      smoothing: the paper's epsilon, in [0, 1).

    Returns:
      float32 [B, C]; rows sum to 1.

    >>> soft_targets(np.array([2, 0]), 4, 0.5).tolist()
    [[0.125, 0.125, 0.625, 0.125], [0.625, 0.125, 0.125, 0.125]]
    """
    targets = np.full((len(labels), num_classes), smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] = 1 - smoothing + smoothing / num_classes
    return targets


def mixup(images, targets, alpha, rng):
    """Blends each image with another one of the batch, and their targets by the same share.

        x = lambda x_i + (1 - lambda) x_j,   y = lambda y_i + (1 - lambda) y_j,   lambda ~ Beta(alpha, alpha)

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412, section 2; 0.1 to 0.4 on ImageNet,
    1 on CIFAR-10. Each row draws its own lambda and, by a permutation of the batch, its own partner.

    Args:
      images: float32 [B, rows, columns, channels].
      targets: float32 [B, C].
      alpha: 0 returns both as they are.
      rng: a NumPy generator.

    Returns:
      (images, targets) of the same shapes.
    """
    if not alpha:
        return images, targets
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)[:, None]
    partner = rng.permutation(len(images))
    blend = lambda x, share: share * x + (1 - share) * x[partner]  # noqa: E731
    return blend(images, share[..., None, None]), blend(targets, share)


def resize(images, size):
    """Square images at another size, by Pillow's bicubic filter, which averages where they shrink.

    Args:
      images: uint8 [B, rows, columns, channels], 1 or 3 channels.
      size: rows and columns of the result.

    >>> resize(np.full((2, 8, 8, 1), 7, np.uint8), 3).shape
    (2, 3, 3, 1)
    """
    if images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    found = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for row, image in enumerate(images):
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        found[row] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).reshape(found.shape[1:])
    return found
