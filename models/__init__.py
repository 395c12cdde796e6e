"""Models that a config may name: small Flax NNX modules that own the parameters."""

from models.transformer import Transformer

MODELS = {"transformer": Transformer}
