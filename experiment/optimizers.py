"""The optimisers a config may name, built from optax, with one schedule and one rule for weight decay."""

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

# Matrices that Muon turns into orthogonal updates, by the parameter's name and number of axes in its layer: (axes
# summed over, axes produced). Every other parameter is left to AdamW.
MATRICES = {
    ("query", 3): (0, (1, 2)),  # [width, N, H]
    ("key", 3): (0, (1, 2)),
    ("value", 3): (0, (1, 2)),
    ("global_query", 3): (0, (1, 2)),
    ("global_key", 3): (0, (1, 2)),
    ("global_value", 3): (0, (1, 2)),
    ("out", 3): ((0, 1), 2),  # [N, H, width]
    ("into", 2): (0, 1),  # [width, mlp_width]
    ("out", 2): (0, 1),
    ("reduction", 2): (0, 1),  # [4 width, 2 width], between the stages of a Swin
    ("shortcut", 2): (0, 1),  # around a block of an Axial-ResNet that changes the width
}
# Ends of the names of parameters that do not decay, however many axes they have.
ADDED = (
    "bias",
    "query_table",
    "key_table",
    "value_table",
    "position_into",
    "position_out",
    "positions",
    "registers",
    "relation_table",  # a vector for each kind of edge, added to keys and values
)


def make(config):
    """The optimiser and its learning-rate schedule.

    Linear warm-up, then a cosine down to `final_fraction` of the peak (Loshchilov & Hutter 2017, arXiv:1608.03983);
    gradients clipped by their global norm, unless `clip_norm` is inf; decoupled weight decay (arXiv:1711.05101) on
    matrices only, not on norms, but for "adam". `warmup_steps` 0 and `final_fraction` 1 keep the rate constant.

    Args:
      config: `config.train`, which names one of OPTIMIZERS.

    Returns:
      (gradient transformation, schedule: step -> learning rate).
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (config.warmup_steps + 1),  # the first step moves, too
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=config.learning_rate * config.final_fraction,
    )
    transformation = OPTIMIZERS[config.optimizer](config, schedule)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), transformation), schedule


def _adamw(config, schedule):
    return optax.adamw(schedule, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=is_matrix)


def _adam(config, schedule):
    """Adam on the loss and an L2 penalty, weight_decay / 2 * sum w^2 over every parameter, biases too.

    The penalty's gradient, weight_decay * w, joins before the moments (Kingma & Ba 2015, arXiv:1412.6980), as in the
    published code of graph networks; what AdamW takes off goes past them.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.adam(schedule, b1=config.beta1, b2=config.beta2)
    )


def _muon(config, schedule):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) on the matrices of the blocks, AdamW on the rest.

    Updates are scaled to the size AdamW's have (Liu et al. 2025, arXiv:2502.16982, factor 0.2), so that both optimisers
    take the same learning rates and weight decay.
    """
    return muon(
        schedule,
        weight_decay=config.weight_decay,
        weight_decay_mask=is_matrix,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=_dimension_numbers,
        consistent_rms=0.2,
    )


OPTIMIZERS = {"adamw": _adamw, "adam": _adam, "muon": _muon}


def is_matrix(params):
    """True for each parameter that is a matrix in its layer and no bias of one: `blocks` stack layers on one more axis.

    A bias per head and feature, or per head and distance, is added to what a matrix gives, whatever its axes; so are
    the vectors for distances of axial attention, and the biases that a network computes in Swin's version 2.
    """

    def decays(path, x):
        names = _names(path)
        return x.ndim - ("blocks" in names) >= 2 and not names[-1].endswith(ADDED)

    return jax.tree_util.tree_map_with_path(decays, params)


def _dimension_numbers(params):
    return jax.tree_util.tree_map_with_path(_matrix, params)


def _matrix(path, x):
    """The `MuonDimensionNumbers` of a parameter, None for AdamW; `blocks` stack layers on a first axis."""
    names = _names(path)
    stacked = int("blocks" in names)
    axes = MATRICES.get((names[-1], x.ndim - stacked))
    return axes and MuonDimensionNumbers(*jax.tree.map(lambda axis: axis + stacked, axes))


def _names(path):
    return [str(entry.key) for entry in path if hasattr(entry, "key")]
