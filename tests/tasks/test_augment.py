"""Augmentation: each change against a slow version of it, and what it must not change."""

import numpy as np
import pytest

from tasks import augment


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def draw(seed=1):
    return np.random.default_rng(seed)


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_comes():
    images = np.repeat(images_of(1, 5, 7, 3), 400, axis=0)
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 5, j : j + 7].tobytes(): (i, j) for i in range(5) for j in range(5)}
    found = [windows[image.tobytes()] for image in augment.random_crop(images, 2, draw())]
    assert len(windows) == 25 and set(found) == set(windows.values())


def test_a_crop_of_nothing_is_the_image():
    images = images_of(3, 5, 5, 1)
    assert augment.random_crop(images, 0, draw()) is images


def test_half_are_mirrored_and_twice_is_once_more_the_image():
    images = images_of(1000, 3, 5, 1)
    once = augment.random_flip(images, draw())
    mirrored = (once == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (once == images).all((1, 2, 3))).all() and 420 < mirrored.sum() < 580  # five deviations
    np.testing.assert_array_equal(augment.random_flip(once, draw()), images)  # the same draws again


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.9])
def test_soft_targets_sum_to_one_and_the_label_is_largest(smoothing):
    labels = np.array([3, 0, 6, 3])
    targets = augment.soft_targets(labels, 7, smoothing)
    assert targets.dtype == np.float32 and targets.argmax(1).tolist() == labels.tolist()
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[0, 0], smoothing / 7, rtol=1e-6)


class TestMixup:
    def mixed(self, rows=500, alpha=0.4):
        """Images whose only pixel says which they are, each with a target of its own."""
        return augment.mixup(
            np.arange(rows, dtype=np.float32).reshape(-1, 1, 1, 1), np.eye(rows, dtype=np.float32), alpha, draw()
        )

    def test_image_and_target_are_blended_by_the_same_share(self):
        images, targets = self.mixed()
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        assert (targets >= 0).all() and ((targets > 0).sum(1) <= 2).all()
        np.testing.assert_allclose(images.ravel(), targets @ np.arange(500), rtol=1e-5)

    def test_no_image_is_the_partner_of_two(self):
        _, targets = self.mixed()
        partners = self.partners(targets)[np.diag(targets) < 1]
        assert len(partners) > 300 and len(set(partners)) == len(partners)

    def partners(self, targets):
        return np.argmax(targets - np.diag(np.diag(targets)), 1)

    def test_shares_follow_the_beta_distribution(self):
        _, targets = self.mixed(rows=2000)
        shares = np.diag(targets)[self.partners(targets) != np.arange(2000)]
        variance = 0.25 / (2 * 0.4 + 1)  # of Beta(a, a)
        assert abs(shares.mean() - 0.5) < 5 * (variance / 2000) ** 0.5
        assert abs(shares.var() - variance) < 0.01

    def test_alpha_0_changes_nothing(self):
        images, targets = self.mixed(alpha=0)
        assert images.ravel().tolist() == list(range(500)) and (targets == np.eye(500)).all()


def test_resizing_keeps_flat_images_and_means_and_does_nothing_at_the_same_size():
    images = images_of(2, 8, 8, 3)
    assert augment.resize(images, 8) is images
    half = augment.resize(images, 4)
    assert half.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(half.mean((1, 2)), images.mean((1, 2)), atol=8)  # a plain subset of pixels misses by 20
    flat = np.full((2, 5, 5, 1), [[[[9]]], [[[200]]]], np.uint8)
    np.testing.assert_array_equal(augment.resize(flat, 13), np.broadcast_to(flat[:, :1, :1], (2, 13, 13, 1)))
