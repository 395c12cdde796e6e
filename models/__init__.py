"""Models that a config may name: small Flax NNX modules that own the parameters."""

# Name in `config.model.name` -> module:class; as text, so that a config is checked before Flax is imported.
MODELS = {
    "transformer": "models.transformer:Transformer",  # a decoder: the next token after each token
    "encoder": "models.transformer:Encoder",  # a class of the whole text, or the masked tokens
    "two_towers": "models.two_towers:TwoTowers",  # a class of two texts, by one encoder that reads each
    "encoder_decoder": "models.transformer:EncoderDecoder",  # one text, given another
    "vit": "models.vit:ViT",  # an image as a sequence of patches
    "swin": "models.swin:Swin",  # attention in shifted windows, coarser from stage to stage
    "axial": "models.axial:AxialResNet",  # a residual network whose layers attend along rows and columns
    "graph_network": "models.gat:GraphNetwork",  # a class for every node of a graph
    "link_prediction": "models.link_prediction:LinkPrediction",  # the entity that completes a fact
}
