"""A config small enough to compile in a moment, shared by the tests of models."""

import pytest
from ml_collections import ConfigDict

OWN_FIELDS = {
    "transformer": {},
    "encoder": {"pool": "cls", "num_classes": 5},
    "encoder_decoder": {
        "encoder_depth": 2,
        "decoder_attention": {"name": "full"},
        "cross_attention": {"name": "full"},
    },
}


@pytest.fixture
def tiny():
    """Returns a function: fields to change, `name` among them -> config.model."""

    def build(name="transformer", **changes):
        fields = {
            "name": name,
            "vocab_size": 23,
            "width": 12,
            "depth": 3,
            "num_heads": 2,
            "num_kv_heads": 1,
            "mlp_width": 11,
            "mlp_chunks": 1,
            "norm": "rms",
            "norm_epsilon": 1e-6,
            "use_bias": False,
            "activation": "gelu_tanh",
            "position": "rope",
            "rope_base": 10000.0,
            "rope_scaling": {},
            "t5_buckets": 6,
            "t5_max_distance": 7,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "dtype": "float32",
            "tie_embeddings": True,
            "scan_layers": True,
            "remat": False,
            "reversible": False,
            "attention": {"name": "full"},
            "graph_attention": {},
            "graph_bias": 0,
            "num_relations": 0,
        }
        return ConfigDict(fields | OWN_FIELDS.get(name, {}) | changes)

    return build
