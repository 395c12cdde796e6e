"""Multi-query associative recall: twelve pairs of a key and a value, then every key again; which value does it have?

python train.py --config=configs/mqar.py                                           # everything below; no data needed
python train.py --config=configs/mqar.py --config.only=full,linear,window_16 --config.seeds=3
python train.py --config=configs/mqar.py:published --workdir=runs/mqar_published   # T = 512, 64 pairs; wants a GPU
python train.py --config=configs/mqar.py:published --config.data.length=64 --config.data.num_pairs=4 \
    --config.model.width=64 --config.train.batch_size=512 --workdir=runs/mqar_64   # figure 2: also 128, 8 and 256, 16

Arora, Eyuboglu et al. 2023, "Zoology", arXiv:2312.04927, figure 2: attention recalls everything at any width, what
keeps a state of fixed size only as much as fits into it. Through two layers of a window a query learns of the pairs
that stand within twice the window before it, whose share is `tasks.associative.reach`: 15 % with 8 tokens and 69 % with
16 in the small setting, and it can but guess the others. One layer, without a token between them to pass a pair on,
reaches 2 % and 15 %.

Where this differs from the paper: its layers have no MLP, ours one of width 1, the least there is; all variants have
learned positions, in the paper attention alone, and none a short convolution before it; training rows never repeat,
where the paper goes over 100,000 of them up to 64 times; one learning rate, where it takes the best of four.
"published" has its vocabulary, lengths, numbers of layers and heads, dropout, tied embeddings and AdamW. "small" has
embeddings that are not tied, and Muon, with which full attention needs some hundred steps.

Measured by the first command with --config.seeds=3 on 2026-11-29, AMD EPYC, one core of a busy machine, 15 minutes for
27 runs; accuracy, standard error over seeds:
    full 1.000, window_16 0.595 +- 0.076, retention 0.284 +- 0.170, lsh 0.132 +- 0.023, gated_linear 0.119, delta_rule
    0.117, linear 0.113, performer 0.104 (these four +- 0.001), window_8 0.046; one of the row's values 0.083, any value
    0.016; who knows the places alone, for early pairs are asked early, 0.127
Attention recalls everything, elu + 1 nothing that a guess would not. A window of 16 ends at its reach of 0.69 with two
seeds of three (0.670, 0.672, 0.443); one of 8 finds none of its 0.15 in these steps. Of
retention's three seeds one found the way (0.625), and the delta rule, of which the paper's successors report much, has
no convolution here that would show it the key beside its value.
"""

from ml_collections import ConfigDict

from configs import compare_text
from configs.parts import attention, check_name

SIZES = {  # behind the colon -> the fields that differ
    "small": {},
    "published": {
        "data.length": 512,
        "data.vocabulary": 8192,
        "data.num_pairs": 64,
        "data.validation_examples": 3000,
        "model.vocab_size": 8192,
        "model.width": 128,  # or 64, 256, 512
        "model.tie_embeddings": True,
        "model.dropout": 0.1,
        "train.steps": 50_000,  # 64 times 100,000 rows
        "train.batch_size": 128,
        "train.optimizer": "adamw",
        "train.learning_rate": 0.00215,  # the paper takes the best of 0.0001, 0.00046, 0.00215 and 0.01
        "train.warmup_steps": 1000,
        "train.weight_decay": 0.1,
        "train.evaluate_every": 500,
        "train.checkpoint_every": 5000,
        "scaling.lengths": (512, 1024, 2048, 4096),
        "scaling.seconds": 15.0,
    },
}


def get_config(size="small") -> ConfigDict:
    """The fields of `compare_text`, changed for recall; `size` is one of SIZES."""
    check_name(size, SIZES)
    config = compare_text.get_config()
    config.task = "recall"

    config.data = ConfigDict()
    config.data.name = "mqar"  # or another of tasks.recall.KINDS, or several joined by commas
    config.data.length = 64  # T
    config.data.vocabulary = 128  # half of it keys, half values
    config.data.num_pairs = 12
    config.data.num_symbols = 0  # of other kinds
    config.data.power = 0.01  # of the law that the gaps between pairs and queries follow; 1 = uniform
    config.data.filler = "zero"  # or random
    config.data.validation_examples = 1024

    config.model.vocab_size = 128
    config.model.width = 64
    config.model.num_heads = 1
    config.model.num_kv_heads = 1
    config.model.mlp_width = 1
    config.model.position = "learned"
    config.model.tie_embeddings = False

    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.weight_decay = 0.0
    config.train.evaluate_every = 50
    config.train.evaluate_examples = 128
    config.train.checkpoint_every = 500

    config.scaling.lengths = (64, 128, 256, 512)
    config.scaling.seconds = 3.0

    config.variants = ConfigDict(
        {
            "full": attention("full"),
            "window_8": attention("window", window=8),
            "window_16": attention("window", window=16),
            "lsh": attention("lsh", num_hashes=4, bucket_size=8, num_buckets=0, correct_duplicates=0, seed=0),
            "linear": attention("linear", chunk_size=64, feature_map="elu_plus_one"),
            "performer": attention("performer", num_features=64, kernel="softmax", redraw=0, seed=0),
            "retention": attention("retention", chunk_size=64),
            "gated_linear": attention("gated_linear", chunk_size=64),
            "delta_rule": attention("delta_rule", chunk_size=64),
        },
        sort_keys=False,  # the table keeps this order
    )
    config.update_from_flattened_dict(SIZES[size])
    return config
