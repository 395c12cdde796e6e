"""Kinds of attention from decoder to encoder, one budget: write random letters backwards.

python train.py --config=configs/compare_rewriting.py                                 # everything below; no data needed
python train.py --config=configs/compare_rewriting.py --config.only=full,linear --config.seeds=3
python train.py --config=configs/compare_rewriting.py --config.data.length=128 --config.train.steps=5000 \
    --workdir=runs/rewriting_128
"""

from ml_collections import ConfigDict

from configs import compare_text


def get_config() -> ConfigDict:
    """The fields of `compare_text`, changed for an encoder-decoder; a flag `--config.FIELD=VALUE` changes one."""
    config = compare_text.get_config()
    config.task = "rewriting"
    config.data.name = "reversed"
    config.data.length = 32  # T, letters of source and target
    config.data.validation_bytes = 32_768  # of held-out letters

    config.model.name = "encoder_decoder"
    config.model.vocab_size = 33  # 32 letters and the start token
    config.model.width = 64
    config.model.depth = 1  # layers of the decoder, with attention of their own and to the encoder
    config.model.encoder_depth = 1
    config.model.mlp_width = 128
    config.model.position = "learned"  # added to the embeddings: cross-attention has no positions of its own
    config.model.decoder_attention = ConfigDict({"name": "full"})
    config.model.cross_attention = ConfigDict({"name": "full"})

    config.train.steps = 400
    config.train.batch_size = 16
    config.train.evaluate_every = 40
    config.train.evaluate_examples = 256
    config.train.checkpoint_every = 200

    config.scaling.lengths = (256, 512, 1024)  # of the encoder's attention layer
    config.scaling.seconds = 5.0

    linear = {"name": "linear", "chunk_size": 32, "feature_map": "elu_plus_one"}
    performer = {"name": "performer", "num_features": 64, "kernel": "softmax", "redraw": 0, "seed": 0}
    linformer = {"name": "linformer", "rank": 16, "sharing": "headwise"}
    config.variants = ConfigDict(
        {
            "full": _attention({"name": "full"}),
            "window_encoder": _attention({"name": "window", "window": 8}, cross={"name": "full"}),
            "linear": _attention(linear),
            "efficient": _attention({"name": "efficient"}),
            "performer": _attention(performer),
            "linformer": _attention(linformer),
        },
        sort_keys=False,  # the table keeps this order
    )
    return config


def _attention(encoder, cross=None):
    """What a variant changes: attention in the encoder and, of the same kind if it can, from the decoder to it."""
    return {"model": {"attention": encoder, "cross_attention": cross or encoder}}
