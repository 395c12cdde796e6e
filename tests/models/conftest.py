"""A config small enough to compile in a moment, shared by the tests of models."""

import pytest
from ml_collections import ConfigDict


@pytest.fixture
def tiny():
    """Returns a function: fields to change -> config.model."""

    def build(**changes):
        fields = {
            "name": "transformer",
            "vocab_size": 23,
            "width": 12,
            "depth": 3,
            "num_heads": 2,
            "num_kv_heads": 1,
            "mlp_width": 11,
            "position": "rope",
            "rope_base": 10000.0,
            "rope_scaling": {},
            "t5_buckets": 5,
            "t5_max_distance": 7,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "dtype": "float32",
            "tie_embeddings": True,
            "scan_layers": True,
            "remat": False,
            "attention": {"name": "full"},
        }
        return ConfigDict(fields | changes)

    return build
