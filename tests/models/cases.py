"""Every variant at settings small enough for T = 13, by the name of the case."""

from models.variants import VARIANTS

_RANDOM_FEATURES = {"name": "performer", "num_features": 7, "redraw": 1, "seed": 3}
_STRIDED = {"name": "sparse_transformer", "pattern": "strided", "stride": 5, "summary": 0, "summary_per_head": 0}
_FIXED = {"name": "sparse_transformer", "pattern": "fixed", "stride": 5, "summary": 2, "heads": "merged"}
ATTENTION = {
    "full": {"name": "full"},
    "window": {"name": "window", "window": 3},
    "local": {"name": "local", "window": 3, "neighbours": 1},
    "longformer": {"name": "longformer", "window": 2, "dilation": 1, "num_global": 2, "global_projections": 0},
    "longformer dilated": {"name": "longformer", "window": 2, "dilation": 3, "num_global": 1, "global_projections": 0},
    "longformer projected": {
        "name": "longformer",
        "window": 2,
        "dilation": 1,
        "num_global": 2,
        "global_projections": 1,
    },
    "strided": {**_STRIDED, "heads": "merged"},
    "strided split": {**_STRIDED, "heads": "split"},
    "fixed": {**_FIXED, "summary_per_head": 0},
    "fixed per head": {**_FIXED, "summary_per_head": 1},
    "bigbird": {"name": "bigbird", "block_size": 2, "num_random_blocks": 1, "num_global_blocks": 1, "seed": 7},
    "lsh": {"name": "lsh", "num_hashes": 2, "bucket_size": 3, "num_buckets": 4, "correct_duplicates": 0, "seed": 5},
    "linear": {"name": "linear", "chunk_size": 5, "feature_map": "elu_plus_one"},
    "performer": {**_RANDOM_FEATURES, "kernel": "softmax"},
    "performer relu": {**_RANDOM_FEATURES, "kernel": "relu", "redraw": 0},
    "retention": {"name": "retention", "chunk_size": 5},
    "gated_linear": {"name": "gated_linear", "chunk_size": 5},
    "delta_rule": {"name": "delta_rule", "chunk_size": 5},
    "efficient": {"name": "efficient"},
    "linformer": {"name": "linformer", "rank": 5, "sharing": "headwise"},
    "linformer none": {"name": "linformer", "rank": 5, "sharing": "none"},
    "linformer key_value": {"name": "linformer", "rank": 5, "sharing": "key_value"},
    "linformer layerwise": {"name": "linformer", "rank": 5, "sharing": "layerwise"},
    "axial": {"name": "axial"},
    "grid_window": {"name": "grid_window", "window": 3},
    "graph": {"name": "graph", "score": "dot_product"},
    "graph gatv2": {"name": "graph", "score": "gatv2"},
}


def kind(case):
    """The `Variant` of a case."""
    return VARIANTS[ATTENTION[case]["name"]]


def can(case):
    """The capabilities of a case's variant."""
    return kind(case).can


GRAPH = [case for case in ATTENTION if kind(case).graph]  # what wants edges (test_graph_text.py); the others do not
CAUSAL = [case for case in ATTENTION if can(case).causal and case not in GRAPH]
IMAGE = [case for case in ATTENTION if can(case).bidirectional and case not in GRAPH]  # what a model of images takes
BIDIRECTIONAL = [case for case in IMAGE if not kind(case).grid]  # and what an encoder of texts takes
CROSS = [case for case in ATTENTION if can(case).cross]
EXACT_CAUSAL = [case for case in CAUSAL if case != "lsh"]  # no look-ahead bit for bit: LSH sorts the whole sequence
DECODING = [case for case in EXACT_CAUSAL if case != "longformer projected"]
