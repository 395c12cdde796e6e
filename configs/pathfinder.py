"""Pathfinder: are two dots joined by a dashed contour? Kinds of attention as encoders of a row of pixels, one budget.

python train.py --config=configs/pathfinder.py                                # 16 x 16 pixels, contours of 3 paddles
python train.py --config=configs/pathfinder.py --config.only=full,window --config.seeds=3
python train.py --config=configs/pathfinder.py:published                      # 32 x 32, 14 paddles: a GPU
python train.py --config=configs/pathfinder.py:path_x                         # Path-X, 128 x 128 = 16,384 tokens: GPUs

Every picture is drawn when it is asked for, 2,500 of the published ones a second on one core.

Measured by the first command on 2026-11-29, AMD EPYC, one core of a busy machine, 12 minutes of CPU time, one seed;
accuracy on 2,048 pictures, standard error 0.011: local 0.610, sparse_transformer 0.572, bigbird 0.550, window 0.543,
longformer 0.541; linformer 0.509, linear 0.499, full 0.497 and performer 0.496 are at chance. It is no budget to learn
it: what looks at few pixels begins to, the others not. With --config.only=window --config.train.steps=2500
--config.train.batch_size=64, 8 minutes of CPU time: 0.906 +- 0.006; full attention with 3,000 such steps and learned
positions 0.514. The distance of the two dots alone tells 0.756, the directions of the paddles at the dots 0.990 (with
14 paddles on 32 x 32 pixels 0.66): at this size nothing need be traced, and no score here shows that anything was.
"""

from ml_collections import ConfigDict

from configs import compare_classification
from configs.parts import attention, check_name

# Size -> the fields that differ. The published models have 1 to 4 layers, 2 to 8 heads and widths of 32 to 128, others
# for each kind of attention; here all have the largest. Steps, batch and rate are those of the published code, in
# `lra_benchmarks/image/configs/pathfinder32` and `pathfinder128`: 200 times 160,000 pictures, none twice here.
SIZES = {
    "small": {},
    "published": {
        "data.length": 1024,
        "data.contour_length": 14,
        "data.num_distractors": 5,
        "data.validation_examples": 8192,
        "model.width": 128,
        "model.depth": 4,
        "model.num_heads": 8,
        "model.num_kv_heads": 8,
        "model.mlp_width": 128,
        "model.position": "sinusoidal",
        "model.dropout": 0.1,
        "train.steps": 62_400,
        "train.batch_size": 512,
        "train.optimizer": "adam",
        "train.learning_rate": 0.001,
        "train.warmup_steps": 312,
        "train.final_fraction": 0.0,
        "train.weight_decay": 0.0,
        "train.beta2": 0.98,
        "train.clip_norm": float("inf"),
        "train.evaluate_every": 1560,
        "train.evaluate_examples": 2048,
        "train.checkpoint_every": 1560,
        "scaling.lengths": (1024, 2048, 4096),
    },
}
SIZES["path_x"] = SIZES["published"] | {
    "data.length": 16_384,
    "data.num_distractors": 8,
    "data.validation_examples": 2048,
    "model.position": "learned",
    "train.steps": 500_000,
    "train.batch_size": 64,
    "train.warmup_steps": 2500,
    "train.clip_norm": 1.0,
    "train.evaluate_every": 12_500,
    "train.evaluate_examples": 512,
    "train.checkpoint_every": 2500,
    "scaling.lengths": (4096, 16_384),
}


def get_config(size="small") -> ConfigDict:
    """The fields of `compare_classification`, changed for one of SIZES; a flag `--config.FIELD=VALUE` changes one."""
    check_name(size, SIZES)
    config = compare_classification.get_config()
    config.task = "pathfinder"
    config.data = ConfigDict()
    config.data.name = "pathfinder"
    config.data.length = 256  # T, pixels: the square of the pictures' side
    config.data.contour_length = 3  # paddles of the two long contours
    config.data.num_distractors = 2  # shorter ones, as many as find room
    config.data.validation_examples = 2048

    config.model.width = 32
    config.model.num_heads = 2
    config.model.num_kv_heads = 2
    config.model.mlp_width = 128
    config.model.position = "rope"  # a pixel's neighbours are as far in every row
    config.train.steps = 600
    config.train.batch_size = 32
    config.train.learning_rate = 0.01
    config.train.evaluate_every = 50
    config.train.evaluate_examples = 256
    config.train.checkpoint_every = 150
    config.scaling.lengths = (256, 1024, 4096)
    config.scaling.seconds = 2.0
    config.update_from_flattened_dict(SIZES[size])
    side = round(config.data.length**0.5)
    config.variants = ConfigDict(
        {
            "full": attention("full"),
            "window": attention("window", window=2 * side),
            "local": attention("local", window=2 * side, neighbours=1),
            "longformer": attention("longformer", window=2 * side, dilation=1, num_global=8, global_projections=0),
            "sparse_transformer": attention(
                "sparse_transformer", pattern="strided", stride=side, summary=0, heads="merged", summary_per_head=0
            ),
            "bigbird": attention("bigbird", block_size=side, num_random_blocks=2, num_global_blocks=1, seed=0),
            "linear": attention("linear", chunk_size=64, feature_map="elu_plus_one"),
            "performer": attention("performer", num_features=64, kernel="softmax", redraw=0, seed=0),
            "linformer": attention("linformer", rank=64, sharing="headwise"),
        },
        sort_keys=False,  # the table keeps this order
    )
    return config
