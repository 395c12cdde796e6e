"""The configs of ListOps and of long texts: every variant builds at every size, and the published one is as published."""

import pytest

from configs import listops, lra_text
from experiment import settings
from tasks import listops as task


@pytest.mark.parametrize("module", [listops, lra_text])
@pytest.mark.parametrize("size", ["small", "published"])
def test_every_variant_passes(module, size):
    config = module.get_config(size)
    settings.check(config)
    assert len(settings.variants(config)) >= 11


@pytest.mark.parametrize("module", [listops, lra_text])
def test_an_unknown_size_is_refused(module):
    with pytest.raises(ValueError, match="'large' behind the colon: want one of small, published, or no colon"):
        module.get_config("large")


@pytest.mark.parametrize("module, length", [(listops, 2000), (lra_text, 4096)])
def test_published_size(module, length):
    config = module.get_config("published")
    model = config.model
    assert (model.depth, model.width, model.num_heads, model.mlp_width) == (6, 512, 8, 2048)
    assert config.data.length == length and config.train.batch_size == 32


def test_trees_of_the_small_size_are_what_the_docstring_says():
    data = listops.get_config().data
    corpus = task.load(data)
    examples, _ = task.validation(corpus, data.length)
    assert 17 <= examples["sizes"].min() and examples["sizes"].max() <= 47
    found = task.baselines(corpus, data.length)
    assert found["majority"] < 0.13 and 0.3 < found["depth one"] < 0.37
