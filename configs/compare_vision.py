"""Image models under one budget: ViT with three kinds of attention, Swin and Axial-ResNet with and without their parts.

python train.py --config=configs/compare_vision.py                            # scikit-learn's digits, no download
python train.py --config=configs/compare_vision.py:fashion-mnist --config.data.dir=DATA_DIR    # its own budget, below
python train.py --config=configs/compare_vision.py --config.data.name=path --config.data.path=FOLDER \
    --config.data.image_size=32 --workdir=runs/mine                           # yours: one folder a class

Measured by the first command on 2026-11-24, AMD EPYC, two cores in a slow hour, one seed, 8 min 28 s, 686 s of CPU
time; accuracy on 382 digits by other writers: axial 0.974 +- 0.008, vit_axial 0.948, swin 0.908, swin_no_shift 0.898,
vit_full 0.898, axial_content_only 0.746, vit_window 0.644, swin_no_bias 0.592; linear 0.864. So position pays most at
this budget: the vectors for distances of the axial model +0.228, Swin's relative bias +0.316; the shift's +0.010 is
within the error. Earlier the same day, on an idle machine, 400 steps took 6 min 17 s and 510 s of CPU time.

Fashion-MNIST, 10,000 test images, the same day, each on one crowded core, compiling and judging included:
python train.py --config=configs/compare_vision.py:fashion-mnist --config.data.dir=DATA_DIR --config.scaling.seconds=0
    --config.only=vit_full --config.model.patch_size=4 --config.train.steps=8000    0.887 +- 0.003, 961 s of CPU time
    --config.only=swin --config.train.steps=8000                                    0.909 +- 0.003, 1,271 s of CPU time
Three seeds of 1,000 steps: swin 0.8471 +- 0.0036, swin_no_shift 0.8470 +- 0.0011: the shift is not resolved;
swin_no_bias 0.8346 +- 0.0017.
"""

from ml_collections import ConfigDict

from configs.parts import check_name
from models.vision_config import PUBLISHED, SIZES, preset

# What `compare_vision.py:NAME` changes for a data set: larger images, more of them, so a longer budget.
LARGER = {  # 28 or 32 pixels a side, hence 14 x 14 or 16 x 16 patches; too few epochs to learn any image by heart
    "data.crop": 0,
    "data.label_smoothing": 0.0,
    "train.steps": 3000,
    "train.evaluate_every": 500,
    "train.evaluate_examples": 1000,
    "train.checkpoint_every": 500,
}
DATA_SETS = {
    "digits": {},
    "fashion-mnist": LARGER | {"data.name": "fashion-mnist"},
    "mnist": LARGER | {"data.name": "mnist"},
    "cifar-10": LARGER | {"data.name": "cifar-10", "data.flip": True},
    "cifar-100": LARGER | {"data.name": "cifar-100", "data.flip": True},
}


def get_config(data_set: str = "digits") -> ConfigDict:
    """Every field with its default; a flag `--config.FIELD=VALUE` changes one.

    Args:
      data_set: what stands behind the colon of `--config=FILE:NAME`, one of DATA_SETS.
    """
    check_name(data_set, DATA_SETS)
    config = ConfigDict()
    config.task = "images"
    config.seed = 0  # first seed: initial weights, data order, dropout
    config.seeds = 1  # how many seeds; with more than one the error bar is over seeds
    config.only = ""  # labels to train now, comma-separated; empty = all

    config.data = ConfigDict()
    config.data.name = "digits"  # or fashion-mnist, mnist, cifar-10, cifar-100, path
    config.data.path = ""  # a folder of your own, with one folder a class
    config.data.dir = ""  # where the published data sets lie
    config.data.image_size = 0  # rows and columns in pixels; 0 = as the files have them
    config.data.crop = 1  # pixels that an image may move by, in training
    config.data.flip = False  # mirror half of the training images
    config.data.mixup = 0.0  # alpha of the share at which two training images are mixed; 0 = never
    config.data.label_smoothing = 0.1  # of the answer's probability, spread over all classes

    # Channels, classes and, by the size of the images, patches: as the data have. The three models have about equally
    # many parameters.
    config.model = preset("vit", "tiny", width=48, depth=5, mlp_width=176, position="rope")

    config.train = ConfigDict()
    config.train.steps = 320
    config.train.batch_size = 32
    config.train.accumulate = 1
    config.train.optimizer = "muon"  # or adamw
    config.train.learning_rate = 0.02
    config.train.warmup_steps = 20
    config.train.final_fraction = 0.01
    config.train.weight_decay = 0.05
    config.train.beta1 = 0.9
    config.train.beta2 = 0.99
    config.train.clip_norm = 1.0
    config.train.evaluate_every = 80
    config.train.evaluate_examples = 382
    config.train.checkpoint_every = 160
    config.train.keep_checkpoints = 2
    config.train.patience = 0

    config.scaling = ConfigDict()
    config.scaling.lengths = (64, 256, 1024)  # patches, the squares of the grid's sides
    config.scaling.batch_size = 1
    config.scaling.seconds = 10.0

    window = 4 if data_set == "digits" else 7  # half of the grid of patches, about
    config.variants = ConfigDict(
        {
            "vit_full": _vit("full"),
            "vit_axial": _vit("axial"),
            "vit_window": _vit("grid_window", window=window),
            "swin": _other("swin", {}, window=window),
            "swin_no_shift": _other("swin", {}, window=window, shift=0),
            "swin_no_bias": _other("swin", {}, window=window, relative_bias=0),
            "axial": _other("axial", {"width": 20, "depths": (1, 2)}),
            "axial_content_only": _other("axial", {"width": 20, "depths": (1, 2)}, position_sensitive=0),
        },
        sort_keys=False,  # the table keeps this order
    )
    config.update_from_flattened_dict(DATA_SETS[data_set])
    return config


def _vit(name, **settings):
    """A ViT with another kind of attention."""
    return {"model": {"attention": {"name": name, **settings}}}


def _other(name, size, **settings):
    """Another model, with some settings of its attention changed; what all models have stays as it is shared."""
    own = {"name": name, **PUBLISHED[name], **SIZES[name]["tiny"], **size}
    return {"model": own | {"attention": own["attention"] | settings}}
