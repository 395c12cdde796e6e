"""Passkey: five tokens hidden in repeated noise, and decoders that must tell them at the end, also of longer rows.

python train.py --config=configs/passkey.py                                    # everything below; no download
python eval.py --workdir=runs/passkey --tasks=passkey --lengths=64,128,256,512,1024,2048,4096   # how far it reaches
python train.py --config=configs/passkey.py --config.data.name=niah_single_1 --workdir=runs/niah_single_1
python train.py --config=configs/passkey.py --config.only=rope,window --config.seeds=3

Mohtashami and Jaggi 2023, "Landmark Attention", arXiv:2305.16300, train language models of billions of parameters on
text, and only ask for pass keys; here a small decoder learns nothing but the task. At a larger size, and trained on
eight kinds of needles of RULER (Hsieh et al. 2024, arXiv:2404.06654) at once:
python train.py --config=configs/passkey.py:published --workdir=runs/needles

Measured by the first command with --config.seeds=3 on 2026-11-29, AMD EPYC, one core of two, 21 minutes for 27 runs;
share of the key's tokens told, three seeds: linear, retention and gated_linear 1.000, delta_rule 0.998, rope 0.909 +-
0.083 (1.000, 0.982, 0.743), alibi 0.552 +- 0.008, none 0.449 +- 0.003, longformer 0.213 +- 0.004, window 0.191 +-
0.002: two layers of a window of 8 reach 16 tokens, and the global tokens of a causal Longformer stand before the key
and learn nothing of it. Then by eval.py --tasks=passkey --lengths=64,128,256,512,1024,4096,32768 --examples=16, 9
minutes of CPU time, standard errors over seeds in brackets:
                      64           128           256           512         1,024         4,096        32,768
    rope          0.925 (0.075) 0.671 (0.154) 0.462 (0.180) 0.387 (0.214) 0.338 (0.232) 0.167 (0.117) 0.050 (0.037)
    alibi         0.567 (0.023) 0.542 (0.033) 0.467 (0.034) 0.458 (0.017) 0.442 (0.017) 0.308 (0.023) 0.129 (0.008)
    none          0.433 (0.027) 0.425 (0.013) 0.392 (0.033) 0.333 (0.037) 0.263 (0.062) 0.117 (0.061) 0.013 (0.000)
    linear        1.000         0.992 (0.008) 0.767 (0.051) 0.521 (0.065) 0.325 (0.083) 0.067 (0.004) 0.017 (0.004)
    retention     1.000         0.904 (0.037) 0.475 (0.151) 0.192 (0.110) 0.071 (0.046) 0.025 (0.004) 0.004 (0.004)
    gated_linear  1.000         1.000         0.713 (0.234) 0.487 (0.224) 0.275 (0.232) 0.096 (0.084) 0.008 (0.004)
    delta_rule    1.000         1.000         1.000         0.996 (0.004) 0.963 (0.007) 0.533 (0.137) 0.333 (0.166)
    one of the row's values 0.210, one of those not yet told 0.463
The tokens of a key are told one after the other, the right ones before each standing in the row. Who knows which five
tokens are the key's, but not their order, gets 0.463: so "none" shows no skill beyond that, and "alibi" little at 64
and none from 256 on. The delta rule finds the key at sixteen times the length of training; linear attention and gates
hold for twice it. Of RoPE's seeds one still tells 0.80 at 1,024, the others fall below 0.463 by 256.
"""

from ml_collections import ConfigDict

from configs import compare_text
from configs.parts import check_name

SIZES = {  # name behind the colon -> the fields that differ
    "small": {},
    "published": {
        "data.name": "passkey,niah_single_1,niah_single_2,niah_single_3,niah_multikey_1,niah_multikey_2,"
        "niah_multivalue,niah_multiquery",
        "data.length": 4096,
        "data.validation_examples": 2048,
        "model.width": 512,
        "model.depth": 8,
        "model.num_heads": 8,
        "model.num_kv_heads": 8,
        "model.mlp_width": 2048,
        "model.dtype": "bfloat16",
        "train.steps": 50_000,
        "train.batch_size": 32,
        "train.warmup_steps": 1000,
        "train.evaluate_every": 1000,
        "train.checkpoint_every": 1000,
        "scaling.lengths": (1024, 2048, 4096, 8192),
    },
}


def get_config(size="small") -> ConfigDict:
    """The fields of `compare_text`, changed for the task; a flag `--config.FIELD=VALUE` changes one.

    Args:
      size: one of SIZES.
    """
    check_name(size, SIZES)
    config = compare_text.get_config()
    config.task = "recall"
    config.data = ConfigDict()
    config.data.name = "passkey"  # or other kinds of `tasks.recall`, joined by commas
    config.data.length = 64  # T
    config.data.vocabulary = 256
    config.data.num_pairs = 0  # this and the next three are of other kinds of recall
    config.data.num_symbols = 0
    config.data.power = 1.0
    config.data.filler = ""
    config.data.validation_examples = 512

    config.model.width = 64
    config.model.num_heads = 2
    config.model.num_kv_heads = 2
    config.model.mlp_width = 128
    config.model.tie_embeddings = False

    config.train.steps = 1500
    config.train.batch_size = 32
    config.train.weight_decay = 0.0
    config.train.evaluate_every = 100
    config.train.evaluate_examples = 128
    config.train.checkpoint_every = 500

    config.scaling.lengths = (64, 128, 256, 512)
    config.scaling.seconds = 3.0

    config.variants = ConfigDict(
        {
            "rope": _attention("full", position="rope"),
            "alibi": _attention("full", position="alibi"),
            "none": _attention("full", position="none"),
            "window": _attention("window", position="rope", window=8),
            "longformer": _attention(
                "longformer", position="rope", window=8, dilation=1, num_global=4, global_projections=0
            ),
            "linear": _attention("linear", position="none", chunk_size=64, feature_map="elu_plus_one"),
            "retention": _attention("retention", position="rope", chunk_size=64),
            "gated_linear": _attention("gated_linear", position="none", chunk_size=64),
            "delta_rule": _attention("delta_rule", position="none", chunk_size=64),
        },
        sort_keys=False,  # the table keeps this order
    )
    config.update_from_flattened_dict(SIZES[size])
    return config


def _attention(name, position, **settings):
    """What a variant changes: its positions, and its kind of attention, which stands with all of its settings."""
    return {"model": {"position": position, "attention": {"name": name, **settings}}}
