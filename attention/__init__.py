"""Attention mechanisms as pure JAX functions under one contract.

Notation, the same in code, docs and tests:

    B  batch          T  queries         S  keys            W  window
    N  query heads    K  key heads       H  head width      Hv value width
    V  graph nodes    E  edges

Layout: query `[..., T, N, H]`, key `[..., S, K, H]`, value `[..., S, K, Hv]` -> `[..., T, N, Hv]`, with K dividing N.
Images and volumes keep their grid: `[B, *spatial, N, H]` for `axial_attention` and whatever runs `along_axis`, and
`[..., rows, columns, N, H]` for `shifted_window_attention`; a window's M x M pixels are read row by row.
Masks are True where attending is allowed. Causal means positions: query i sees key j iff
key_position[j] <= query_position[i]. A row with nothing to attend is exactly 0. What a function cannot do, it refuses.
"""

from . import biases, masks
from .axial import along_axis, axial_attention, axial_positions, position_sensitive_scores, position_sensitive_values
from .biases import alibi_slopes, t5_bucket
from .bigbird import bigbird_attention, bigbird_pattern, bigbird_random_blocks
from .cache import KeyValueCache, cached_attention
from .delta_rule import delta_rule_attention
from .dot_product import dot_product_attention
from .flax_adapter import flax_attention_fn
from .gated_linear import gated_linear_attention, retention
from .graph import edge_softmax, gat_attention, gatv2_attention, graph_dot_product_attention
from .linear import efficient_attention, elu_plus_one, linear_attention, softmax_features, taylor_features
from .linformer import linformer_attention
from .local import local_attention
from .longformer import longformer_attention
from .merge import merge
from .performer import PerformerState, performer_attention, performer_projection
from .reformer import lsh_attention, lsh_buckets, lsh_rotations
from .rotary import apply_rotary, rotary_frequencies
from .sparse_transformer import sparse_pattern, sparse_transformer_attention
from .swin import (
    fit_window,
    shifted_window_attention,
    window_attention,
    window_merge,
    window_partition,
    window_regions,
)
from .swin_bias import (
    cosine_queries_and_keys,
    log_spaced_coordinates,
    relative_position_bias,
    relative_position_index,
)

__all__ = [
    "KeyValueCache",
    "PerformerState",
    "alibi_slopes",
    "along_axis",
    "apply_rotary",
    "axial_attention",
    "axial_positions",
    "biases",
    "bigbird_attention",
    "bigbird_pattern",
    "bigbird_random_blocks",
    "cached_attention",
    "cosine_queries_and_keys",
    "delta_rule_attention",
    "dot_product_attention",
    "edge_softmax",
    "efficient_attention",
    "elu_plus_one",
    "fit_window",
    "flax_attention_fn",
    "gat_attention",
    "gated_linear_attention",
    "gatv2_attention",
    "graph_dot_product_attention",
    "linear_attention",
    "linformer_attention",
    "local_attention",
    "log_spaced_coordinates",
    "longformer_attention",
    "lsh_attention",
    "lsh_buckets",
    "lsh_rotations",
    "masks",
    "merge",
    "performer_attention",
    "performer_projection",
    "position_sensitive_scores",
    "position_sensitive_values",
    "relative_position_bias",
    "relative_position_index",
    "retention",
    "rotary_frequencies",
    "shifted_window_attention",
    "softmax_features",
    "sparse_pattern",
    "sparse_transformer_attention",
    "t5_bucket",
    "taylor_features",
    "window_attention",
    "window_merge",
    "window_partition",
    "window_regions",
]
