"""The configs of recall: every variant builds at every size, and the windows reach what the docstrings say."""

import numpy as np
import pytest

from configs import duplication, mqar
from experiment import settings
from tasks import recall
from tasks.associative import reach


@pytest.mark.parametrize("module", [mqar, duplication])
@pytest.mark.parametrize("size", ["small", "published"])
def test_every_variant_passes(module, size):
    config = module.get_config(size)
    settings.check(config)
    assert set(settings.variants(config)) == set(config.variants)
    corpus = recall.load(config.data)
    assert recall.batch(corpus, 0, 0, 2, config.data.length)["tokens"].max() < config.model.vocab_size


@pytest.mark.parametrize("module", [mqar, duplication])
def test_an_unknown_size_is_refused(module):
    with pytest.raises(ValueError, match="'large' behind the colon: want one of small, published, or no colon"):
        module.get_config("large")


def test_windows_reach_what_the_docstring_says():
    config = mqar.get_config()
    examples, _ = recall.validation(recall.load(config.data), config.data.length)
    windows = [config.variants[name].model.attention.window for name in ("window_8", "window_16")]
    one, two = ([round(100 * reach(**examples, window=layers * w - 1)) for w in windows] for layers in (1, 2))
    assert config.model.depth == 2 and windows == [8, 16]
    assert "{} % with 8 tokens and {} % with\n16 in the small setting".format(*two) in mqar.__doc__
    assert "reaches {} % and {} %".format(*one) in mqar.__doc__


def test_a_window_of_duplication_sees_no_answer():
    """The symbol asked for stands T/2 - 1 places before, and one layer of a window looks no further than it is wide."""
    for size in ("small", "published"):
        config = duplication.get_config(size)
        tokens, targets = recall.validation(recall.load(config.data), config.data.length)[0].values()
        rows, places = np.nonzero(targets >= 0)
        distance = config.data.length // 2 - 1
        np.testing.assert_array_equal(tokens[rows, places - distance], targets[rows, places])
        assert config.model.depth * config.variants.window.model.attention.window < distance
