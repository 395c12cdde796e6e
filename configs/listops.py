"""ListOps: what nested operations on digits give, kinds of attention as encoders, one budget.

python train.py --config=configs/listops.py                                   # everything below; no data needed
python train.py --config=configs/listops.py --config.only=full,linear --config.seeds=3
python train.py --config=configs/listops.py:published                         # up to 2,000 tokens: a GPU

The task of Nangia & Bowman 2018, arXiv:1804.06028, as in Tay et al. 2021, "Long Range Arena", arXiv:2011.04006, section
2.2.1. "published" has its trees, 500 to 2,000 tokens, and the size of the paper's models: 6 layers of width 512, 8
heads, an MLP of 2,048. A variant is what its own paper says; the released models differ from that in places. Batch,
steps, weight decay, dropout, warm-up and the peak of the learning rate are the released ones, but for dropout on
attention weights, which linear variants have none of; the rate falls as a cosine, not as one over the root of the step.

"small" keeps the generator and has narrower trees, of up to three arguments and four nested operations, 17 to 47
tokens, whose answers are nearly uniform: one level gives a third of them, where with ten arguments it gives a half.

Measured by the first command with --config.seeds=3 on 2026-11-29, AMD EPYC, one core of two, 19 minutes for 33 runs;
accuracy, three seeds, beside majority 0.120, the root operator alone 0.172 and one level 0.337:
    longformer 0.380 +- 0.011, full 0.369 +- 0.006, bigbird 0.364 +- 0.011, efficient 0.333 +- 0.013, linear 0.331 +-
    0.009, linformer 0.318 +- 0.003, lsh 0.317 +- 0.011, sparse_transformer 0.315 +- 0.018, window 0.266 +- 0.006, local
    0.255 +- 0.002, performer 0.218 +- 0.002
What has a path from every token to "cls" beats one level, by a little; a window of 4 does not, and Performer learns
hardly more than the root. On the published trees (":published" with --config.data.validation_examples=12000) majority
gets 0.170, the root operator 0.366 and one level 0.479: the published scores of 0.36 to 0.37 are those of who reads one
token.
"""

from ml_collections import ConfigDict

from configs import compare_classification
from configs.parts import attention, check_name

SIZES = {  # name behind the colon -> the fields that differ
    "small": {},
    "published": {
        "data.length": 2000,
        "data.min_length": 500,
        "data.max_depth": 10,
        "data.max_args": 10,
        "model.position": "sinusoidal",
        "model.norm": "layer",
        "model.width": 512,
        "model.depth": 6,
        "model.num_heads": 8,
        "model.num_kv_heads": 8,
        "model.mlp_width": 2048,
        "model.dropout": 0.1,
        "train.steps": 5000,
        "train.batch_size": 32,
        "train.optimizer": "adamw",
        "train.learning_rate": 0.0016,  # 0.05 / sqrt(1000)
        "train.warmup_steps": 1000,
        "train.beta2": 0.98,
        "train.evaluate_every": 250,
        "train.evaluate_examples": 512,
        "train.checkpoint_every": 250,
        "scaling.lengths": (500, 1000, 2000, 4000),
        "scaling.seconds": 15.0,
        "variants.window.model.attention.window": 64,
        "variants.local.model.attention.window": 64,
        "variants.longformer.model.attention.window": 256,
        "variants.longformer.model.attention.num_global": 1,
        "variants.bigbird.model.attention.block_size": 64,
        "variants.bigbird.model.attention.num_random_blocks": 3,
        "variants.sparse_transformer.model.attention.stride": 45,  # the root of T
        "variants.lsh.model.attention.bucket_size": 64,
        "variants.performer.model.attention.num_features": 256,
        "variants.linformer.model.attention.rank": 256,
    },
}


def get_config(size: str = "small") -> ConfigDict:
    """The fields of `compare_classification`, changed for ListOps; a flag `--config.FIELD=VALUE` changes one.

    Args:
      size: what stands behind the colon of `--config=FILE:NAME`, one of SIZES.
    """
    check_name(size, SIZES)
    config = compare_classification.get_config()
    config.task = "listops"
    config.data = ConfigDict()
    config.data.name = "listops"
    config.data.length = 48  # T; trees are shorter
    config.data.min_length = 16  # trees are longer
    config.data.max_depth = 5  # levels, digits of the last one included
    config.data.max_args = 3  # of an operation
    config.data.validation_examples = 2000

    config.model.vocab_size = 16
    config.model.pool = "cls"  # as published; it stands before the root
    config.model.depth = 3

    config.train.steps = 1600
    config.train.batch_size = 16
    config.train.learning_rate = 0.01
    config.train.warmup_steps = 50
    config.train.evaluate_every = 200
    config.train.evaluate_examples = 500
    config.train.checkpoint_every = 800

    config.scaling.lengths = (64, 256, 1024)
    config.scaling.seconds = 3.0

    strided = {"pattern": "strided", "stride": 7, "summary": 0, "heads": "merged", "summary_per_head": 0}
    config.variants = ConfigDict(
        {
            "full": attention("full"),
            "window": attention("window", window=4),
            "local": attention("local", window=4, neighbours=1),
            "longformer": attention("longformer", window=4, dilation=1, num_global=1, global_projections=0),
            "bigbird": attention("bigbird", block_size=4, num_random_blocks=2, num_global_blocks=1, seed=0),
            "sparse_transformer": attention("sparse_transformer", **strided),
            "lsh": attention("lsh", num_hashes=2, bucket_size=8, num_buckets=0, correct_duplicates=0, seed=0),
            "linear": attention("linear", chunk_size=64, feature_map="elu_plus_one"),
            "efficient": attention("efficient"),
            "performer": attention("performer", num_features=64, kernel="softmax", redraw=0, seed=0),
            "linformer": attention("linformer", rank=16, sharing="headwise"),
        },
        sort_keys=False,  # the table keeps this order
    )
    config.update_from_flattened_dict(SIZES[size])
    return config
