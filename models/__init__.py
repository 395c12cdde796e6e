"""Models that a config may name: small Flax NNX modules that own the parameters."""

# Name in `config.model.name` -> module:class; as text, so that a config is checked before Flax is imported.
MODELS = {
    "transformer": "models.transformer:Transformer",  # a decoder: the next token after each token
    "encoder": "models.transformer:Encoder",  # a class of the whole text, or the masked tokens
    "encoder_decoder": "models.transformer:EncoderDecoder",  # one text, given another
}
