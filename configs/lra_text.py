"""Byte text: which class a long stretch belongs to, kinds of attention as encoders, one budget.

python train.py --config=configs/lra_text.py                                        # no download: 1,024 bytes
python train.py --config=configs/lra_text.py --config.data.path=FOLDER              # yours: one folder a class
python train.py --config=configs/lra_text.py --config.data.name=imdb --config.data.dir=DATA_DIR \
    --config.data.validation_bytes=25_600_000 --workdir=runs/lra_text-imdb          # film reviews, their first 1,024
python train.py --config=configs/lra_text.py:published --config.data.dir=DATA_DIR   # their first 4,096: a GPU

The "Text" task of Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section 2.2.2. "published" has the size of the
paper: the reviews of IMDB, positive or negative, cut or padded to 4,096 bytes, 6 layers of width 512, 8 heads, an MLP
of 2,048. The released config is smaller: 1,000 bytes, 4 layers of width 256, 4 heads, an MLP of 1,024. Batch, steps,
weight decay, dropout, warm-up and the peak of the learning rate are the released ones, but for dropout on attention
weights, which linear variants have none of; the rate falls as a cosine, not as one over the root of the step.

"small" asks which of six packages of Python's own library 1,024 bytes of source come from.

Measured by the first command with --config.seeds=3 on 2026-11-29, AMD EPYC, one core of two, 12 minutes for 36 runs;
accuracy, three seeds: efficient 0.594 +- 0.010, strided 0.589 +- 0.007, performer 0.587 +- 0.017, full 0.586 +- 0.010,
local 0.585 +- 0.009, linear 0.583 +- 0.009, window 0.582 +- 0.010, lsh 0.566 +- 0.008, longformer 0.551 +- 0.014,
bigbird 0.526 +- 0.003, fixed 0.490 +- 0.010, linformer 0.414 +- 0.029; naive Bayes on bytes 0.641, majority 0.172. None
beats counting bytes at this budget, and most are not told apart; "fixed" is behind "strided", as in
`configs/sparse_patterns.py`.
"""

from ml_collections import ConfigDict

from configs import compare_classification
from configs.parts import attention, check_name

SIZES = {  # name behind the colon -> the fields that differ
    "small": {},
    "published": {
        "data.name": "imdb",
        "data.length": 4096,
        "data.validation_bytes": 25_000 * 4096,  # all reviews of the test half
        "model.pool": "cls",
        "model.position": "sinusoidal",
        "model.norm": "layer",
        "model.width": 512,
        "model.depth": 6,
        "model.num_heads": 8,
        "model.num_kv_heads": 8,
        "model.mlp_width": 2048,
        "model.dropout": 0.1,
        "train.steps": 20_000,
        "train.batch_size": 32,
        "train.optimizer": "adamw",
        "train.learning_rate": 0.00056,  # 0.05 / sqrt(8000)
        "train.warmup_steps": 8000,
        "train.beta2": 0.98,
        "train.evaluate_every": 1000,
        "train.evaluate_examples": 1024,
        "train.checkpoint_every": 1000,
        "scaling.lengths": (1024, 2048, 3072, 4096),
        "scaling.seconds": 15.0,
        "variants.window.model.attention.window": 64,
        "variants.local.model.attention.window": 64,
        "variants.longformer.model.attention.window": 256,
        "variants.longformer.model.attention.num_global": 1,
        "variants.bigbird.model.attention.block_size": 64,
        "variants.bigbird.model.attention.num_random_blocks": 3,
        "variants.strided.model.attention.stride": 64,
        "variants.fixed.model.attention.stride": 64,
        "variants.fixed.model.attention.summary": 8,
        "variants.lsh.model.attention.bucket_size": 64,
        "variants.performer.model.attention.num_features": 256,
        "variants.linformer.model.attention.rank": 256,
    },
}


def get_config(size: str = "small") -> ConfigDict:
    """The fields of `compare_classification`, changed for longer texts; a flag `--config.FIELD=VALUE` changes one.

    Args:
      size: what stands behind the colon of `--config=FILE:NAME`, one of SIZES.
    """
    check_name(size, SIZES)
    config = compare_classification.get_config()
    config.data.length = 1024  # T, the bytes of one example
    config.data.validation_bytes = 262_144  # of held-out examples

    config.model.width = 32  # small, so that many bytes are read
    config.model.depth = 1
    config.model.mlp_width = 128

    config.train.steps = 400
    config.train.batch_size = 4
    config.train.evaluate_every = 100
    config.train.evaluate_examples = 64
    config.train.checkpoint_every = 200

    config.scaling.lengths = (1024, 2048, 4096)
    config.scaling.seconds = 5.0

    strided = {"pattern": "strided", "stride": 32, "summary": 0, "heads": "merged", "summary_per_head": 0}
    config.variants = ConfigDict(
        {
            "full": attention("full"),
            "window": attention("window", window=32),
            "local": attention("local", window=32, neighbours=1),
            "longformer": attention("longformer", window=32, dilation=1, num_global=8, global_projections=0),
            "bigbird": attention("bigbird", block_size=32, num_random_blocks=2, num_global_blocks=1, seed=0),
            "strided": attention("sparse_transformer", **strided),
            "fixed": attention("sparse_transformer", **strided | {"pattern": "fixed", "summary": 4}),
            "lsh": attention("lsh", num_hashes=2, bucket_size=32, num_buckets=0, correct_duplicates=0, seed=0),
            "linear": attention("linear", chunk_size=64, feature_map="elu_plus_one"),
            "efficient": attention("efficient"),
            "performer": attention("performer", num_features=64, kernel="softmax", redraw=0, seed=0),
            "linformer": attention("linformer", rank=64, sharing="headwise"),
        },
        sort_keys=False,  # the table keeps this order
    )
    config.update_from_flattened_dict(SIZES[size])
    return config
