"""Attention mechanisms as pure JAX functions under one contract.

Notation, the same in code, docs and tests:

    B  batch          T  queries         S  keys            W  window
    N  query heads    K  key heads       H  head width      Hv value width
    V  graph nodes    E  edges

Layout: query `[..., T, N, H]`, key `[..., S, K, H]`, value `[..., S, K, Hv]` -> `[..., T, N, Hv]`, with K dividing N.
Masks are True where attending is allowed. Causal means positions: query i sees key j iff
key_position[j] <= query_position[i]. A row with nothing to attend is exactly 0. What a function cannot do, it refuses.
"""

from . import biases, masks
from .biases import alibi_slopes, t5_bucket
from .bigbird import bigbird_attention, bigbird_pattern, bigbird_random_blocks
from .dot_product import dot_product_attention
from .linear import elu_plus_one, linear_attention
from .longformer import longformer_attention
from .merge import merge
from .rotary import apply_rotary, rotary_frequencies
from .sparse_transformer import sparse_transformer_attention

__all__ = [
    "alibi_slopes",
    "apply_rotary",
    "biases",
    "bigbird_attention",
    "bigbird_pattern",
    "bigbird_random_blocks",
    "dot_product_attention",
    "elu_plus_one",
    "linear_attention",
    "longformer_attention",
    "masks",
    "merge",
    "rotary_frequencies",
    "sparse_transformer_attention",
    "t5_bucket",
]
