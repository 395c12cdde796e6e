"""Kinds of attention as encoders, one budget: which package of Python's own library does this source text belong to?

python train.py --config=configs/compare_classification.py                             # everything below; no download
python train.py --config=configs/compare_classification.py --config.data.path=FOLDER   # yours: one folder a class
python train.py --config=configs/compare_classification.py --config.data.name=imdb --config.data.dir=DATA_DIR \
    --config.data.length=1024 --config.data.validation_bytes=25_600_000 --config.train.steps=20000 --workdir=runs/imdb
python train.py --config=configs/compare_classification.py --config.only=full,linear --config.seeds=3

The same encoders as masked language models:
python train.py --config=configs/compare_classification.py --config.task=masked_text --config.data.name=python_stdlib \
    --config.model.vocab_size=257 --workdir=runs/masked_text

Measured by the first command on 2026-11-24, two cores (AMD EPYC) shared with other work, ten minutes of training, one
seed; accuracy on held-out files, standard error over files 0.034 to 0.039: performer 0.562, full 0.557,
sparse_transformer 0.549, linear 0.547, window 0.543, local 0.541, efficient 0.539, bigbird 0.533, longformer 0.529,
lsh 0.525, linformer 0.307; naive Bayes on bytes 0.504, majority 0.166. At this budget the variants are not told apart.
"""

from ml_collections import ConfigDict

from configs import compare_text
from configs.parts import attention


def get_config() -> ConfigDict:
    """The fields of `compare_text`, changed for an encoder; a flag `--config.FIELD=VALUE` changes one."""
    config = compare_text.get_config()
    config.task = "classification"
    config.data.name = "python_packages"  # or path, imdb
    config.data.length = 256  # T, the bytes of one example
    config.data.validation_bytes = 131_072  # of held-out examples

    config.model.name = "encoder"
    config.model.pool = "mean"  # of all tokens; "cls", a vector before them, is out of reach of most tokens of a window
    config.model.num_classes = 0  # as many as the data have
    config.model.width = 64
    config.model.mlp_width = 256

    config.train.steps = 800
    config.train.batch_size = 4
    config.train.learning_rate = 0.005
    config.train.evaluate_every = 80
    config.train.evaluate_examples = 128
    config.train.checkpoint_every = 400

    config.scaling.lengths = (256, 512, 1024)
    config.scaling.seconds = 15.0

    config.variants = ConfigDict(
        {
            "full": attention("full"),
            "window": attention("window", window=32),
            "local": attention("local", window=32, neighbours=1),
            "longformer": attention("longformer", window=32, dilation=1, num_global=8, global_projections=0),
            "sparse_transformer": attention(
                "sparse_transformer", pattern="strided", stride=16, summary=0, heads="merged", summary_per_head=0
            ),
            "bigbird": attention("bigbird", block_size=16, num_random_blocks=2, num_global_blocks=1, seed=0),
            "lsh": attention("lsh", num_hashes=2, bucket_size=32, num_buckets=0, correct_duplicates=0, seed=0),
            "linear": attention("linear", chunk_size=64, feature_map="elu_plus_one"),
            "efficient": attention("efficient"),
            "performer": attention("performer", num_features=64, kernel="softmax", redraw=0, seed=0),
            "linformer": attention("linformer", rank=64, sharing="headwise"),
        },
        sort_keys=False,  # the table keeps this order
    )
    return config
