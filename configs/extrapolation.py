"""Five kinds of positions, trained on short texts and tested on long ones: at what length does a model stop to read?

python train.py --config=configs/extrapolation.py                                      # trained at T = 64; no download
python eval.py --workdir=runs/extrapolation --tasks=extrapolation,extrapolation_sliding --lengths=64,96,128,256,512,1024

On other text, and over seeds:
python train.py --config=configs/extrapolation.py --config.data.name=tinyshakespeare --config.data.dir=DATA_DIR \
    --workdir=runs/extrapolation-tinyshakespeare
python train.py --config=configs/extrapolation.py --config.seeds=3

Press et al. 2022, "Train Short, Test Long", arXiv:2108.12409, at a small scale: theirs is WikiText-103 with 16 layers
of width 1,024 and 8 heads, trained at 512 and at 1,024 words, sinusoidal positions, rope, T5's buckets and ALiBi. The
nearest to it, on a real machine:
python train.py --config=configs/extrapolation.py:published --config.data.dir=DATA_DIR --workdir=runs/extrapolation-512
python eval.py --workdir=runs/extrapolation-512 --tasks=extrapolation,extrapolation_sliding \
    --lengths=512,640,1024,1536,3584

Longer windows have fewer bytes with little before them, so that bits per byte fall with the length even where a model
makes nothing of the longer context; sliding windows tell the two apart.

Measured by the first command with --config.seeds=3, then the second, on 2026-11-29, AMD EPYC, one core each on a busy
machine, 25 minutes of training (16 of CPU time) and 14 of evaluation; bits per byte, three seeds:
    windows of        64             128            256            512            1,024
    alibi        1.921 +- 0.002 1.872 +- 0.003 1.850 +- 0.002 1.846 +- 0.002 1.842 +- 0.002
    t5           1.875 +- 0.003 2.159 +- 0.008 3.000 +- 0.033 3.807 +- 0.065 4.340 +- 0.101
    rope         1.913 +- 0.005 2.026 +- 0.007 3.191 +- 0.014 3.991 +- 0.010 4.474 +- 0.041
    sinusoidal   1.972 +- 0.001 3.430 +- 0.022 4.317 +- 0.028 4.794 +- 0.023 5.036 +- 0.030
    none         2.313 +- 0.006 2.516 +- 0.013 3.089 +- 0.024 3.661 +- 0.027 4.044 +- 0.032
At four times the length of training ALiBi < T5 < RoPE < sinusoidal, as published, with 95 % intervals (Student's t) of
+- 0.011, 0.143, 0.061 and 0.120; the steps, seed by seed, are 1.151 +- 0.135, 0.191 +- 0.186 and 1.125 +- 0.128. At
1,024 T5 and RoPE are not told apart (0.135 +- 0.313). Up to 1.5 times RoPE still gains (1.894 at 96) and sinusoidal is
lost (2.891). By sliding windows ALiBi goes from 1.822 to 1.841: nothing of its gain is left, which was the early bytes
of each window, but it does not break either. T5 is the best at the length of training.
"""

from ml_collections import ConfigDict

from configs import compare_text
from configs.parts import check_name

SIZES = {  # behind the colon -> the fields that differ
    "small": {},
    "published": {
        "data.name": "wikitext-2",
        "data.length": 512,
        "data.validation_bytes": 1_048_576,
        "model.width": 1024,
        "model.depth": 16,
        "model.mlp_width": 4096,
        "model.dtype": "bfloat16",
        "train.steps": 20_000,
        "train.batch_size": 32,
        "train.warmup_steps": 1000,
        "train.evaluate_every": 1000,
        "train.checkpoint_every": 1000,
    },
}
POSITIONS = ("sinusoidal", "rope", "t5", "alibi", "none")


def get_config(size: str = "small") -> ConfigDict:
    """The fields of `compare_text`, changed for short windows; a flag `--config.FIELD=VALUE` changes one.

    Args:
      size: one of SIZES; "published" is the paper's model and length, on the bytes of WikiText-2.
    """
    check_name(size, SIZES)
    config = compare_text.get_config()
    config.data.length = 64
    config.data.validation_bytes = 65_536  # judged at every length, and by sliding windows four times over

    config.model.depth = 4
    config.model.num_heads = 8
    config.model.num_kv_heads = 8
    config.model.position = "alibi"

    config.train.steps = 1000
    config.train.batch_size = 16
    config.train.evaluate_every = 100
    config.train.evaluate_examples = 128
    config.train.checkpoint_every = 500

    config.scaling.lengths = (64, 128, 256, 512, 1024)
    config.scaling.seconds = 5.0

    config.variants = ConfigDict(
        {position: {"model": {"position": position}} for position in POSITIONS}, sort_keys=False
    )
    config.update_from_flattened_dict(SIZES[size])
    return config
