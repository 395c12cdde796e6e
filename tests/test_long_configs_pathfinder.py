"""The settings of Pathfinder: each can be run, and is what its name says."""

import pytest

from configs import pathfinder
from experiment import settings


@pytest.mark.parametrize("size", pathfinder.SIZES)
def test_every_variant_is_a_model(size):
    config = pathfinder.get_config(size)
    config.model.num_classes = 2  # what the data decide
    settings.check(config)
    side = round(config.data.length**0.5)
    assert config.variants.sparse_transformer.model.attention.stride == side and side**2 == config.data.length


def test_published_sizes():
    published, path_x = (pathfinder.get_config(size) for size in ("published", "path_x"))
    assert (published.data.length, path_x.data.length) == (32 * 32, 128 * 128)
    assert published.data.contour_length == path_x.data.contour_length == 14
    assert (published.data.num_distractors, path_x.data.num_distractors) == (20 // (14 // 3), 35 // (14 // 3))


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="'path_y' behind the colon: want one of small, published, path_x"):
        pathfinder.get_config("path_y")
