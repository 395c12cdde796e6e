"""The configs of needles: every variant of every size can be built, and says what is claimed of it."""

import pytest

from configs import needle_classification, passkey
from experiment import settings
from tasks import TASKS
from tasks.needle_classification import reach


@pytest.mark.parametrize("config", [passkey, needle_classification])
@pytest.mark.parametrize("size", ["small", "published"])
def test_every_variant_passes_the_check(config, size):
    chosen = config.get_config(size)
    settings.check(chosen)
    corpus = TASKS[chosen.task].load(chosen.data)
    settings.fill(chosen, TASKS[chosen.task].fields(corpus))
    assert set(settings.variants(chosen)) == set(chosen.variants)


@pytest.mark.parametrize("config", [passkey, needle_classification])
def test_an_unknown_size_is_refused(config):
    with pytest.raises(ValueError, match="'huge' behind the colon: want one of small, published, or no colon"):
        config.get_config("huge")


@pytest.mark.parametrize("size", ["small", "published"])
def test_the_window_does_not_reach_but_for_a_small_share(size):
    config = needle_classification.get_config(size)
    share = reach(config.data.length, config.variants.window.model.attention.window, config.model.depth)
    assert share < 0.125 and config.model.pool == "cls" and config.variants.longformer.model.attention.num_global == 1


def test_the_docstring_says_the_reach():
    share = reach(256, 16, 2)
    assert f"{share:.3f}" in needle_classification.__doc__
    assert f"{share + (1 - share) / 10:.3f}" in needle_classification.__doc__
