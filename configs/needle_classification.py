"""Needle classification: encoders whose "cls" must learn of one token far away, with and without a token that sees all.

python train.py --config=configs/needle_classification.py                               # everything below; no download
python train.py --config=configs/needle_classification.py --config.only=window,longformer --config.seeds=3
python train.py --config=configs/needle_classification.py:published --workdir=runs/needle_classification-4096

Two layers of a window of 16 tokens see the first 32 of 256: a share of 0.122 of the needles
(`tasks.needle_classification.reach`), so that by construction "window" gets at most 0.209 right, but for chance.
Longformer (Beltagy et al. 2020, arXiv:2004.05150) adds one global token, "cls" itself. Its authors' base model has
width 768, 12 heads and windows of 256 tokens on either side at T = 4096, as ":published" has, with two layers of their
twelve.

Measured by the first command with --config.seeds=3 on 2026-11-29, AMD EPYC, one core, about 8 CPU minutes a seed;
accuracy, three seeds: full 1.000, longformer 1.000, bigbird 1.000, performer 0.970 +- 0.030, linear 0.805 +- 0.195,
local 0.160 +- 0.024 (its two blocks of 16 and their neighbours), window 0.110 +- 0.003, linformer 0.102 +- 0.001; any
class 0.100, majority 0.108. A window alone cannot, a window and one token that sees all can. Linformer's mixtures of
all places did not learn to keep one token apart, and one of linear attention's three seeds stayed behind.
"""

from ml_collections import ConfigDict

from configs import compare_classification
from configs.parts import attention, check_name

SIZES = {  # name behind the colon -> the fields that differ
    "small": {},
    "published": {
        "data.length": 4096,
        "data.validation_examples": 2048,
        "model.width": 768,
        "model.num_heads": 12,
        "model.num_kv_heads": 12,
        "model.mlp_width": 3072,
        "model.dtype": "bfloat16",
        "train.steps": 20_000,
        "train.batch_size": 32,
        "train.warmup_steps": 500,
        "train.evaluate_every": 1000,
        "train.checkpoint_every": 1000,
        "scaling.lengths": (1024, 2048, 4096, 8192),
    },
}
WINDOW = {"small": 16, "published": 256}


def get_config(size="small") -> ConfigDict:
    """The fields of `compare_classification`, changed for the task; a flag `--config.FIELD=VALUE` changes one.

    Args:
      size: one of SIZES.
    """
    check_name(size, SIZES)
    config = compare_classification.get_config()
    config.task = "needle_classification"
    config.data = ConfigDict()
    config.data.name = "needle"
    config.data.length = 256  # T
    config.data.vocabulary = 64
    config.data.validation_examples = 1024

    config.model.vocab_size = 64
    config.model.pool = "cls"  # a vector before the tokens, which a window must carry the needle to
    config.model.mlp_width = 128

    config.train.steps = 600
    config.train.batch_size = 16
    config.train.weight_decay = 0.0
    config.train.evaluate_every = 50
    config.train.evaluate_examples = 256
    config.train.checkpoint_every = 300

    config.scaling.lengths = (256, 512, 1024)
    config.scaling.seconds = 5.0

    window = WINDOW[size]
    config.variants = ConfigDict(
        {
            "full": attention("full"),
            "window": attention("window", window=window),
            "local": attention("local", window=window, neighbours=1),
            "longformer": attention("longformer", window=window, dilation=1, num_global=1, global_projections=0),
            "bigbird": attention("bigbird", block_size=window, num_random_blocks=2, num_global_blocks=1, seed=0),
            "linear": attention("linear", chunk_size=64, feature_map="elu_plus_one"),
            "performer": attention("performer", num_features=64, kernel="softmax", redraw=0, seed=0),
            "linformer": attention("linformer", rank=64, sharing="headwise"),
        },
        sort_keys=False,  # the table keeps this order
    )
    config.update_from_flattened_dict(SIZES[size])
    return config
