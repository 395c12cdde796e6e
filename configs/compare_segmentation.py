"""Semantic segmentation in the small: which shape does each pixel of a generated scene show? Swin and Axial-ResNet.

python train.py --config=configs/compare_segmentation.py                       # no download: scenes are drawn
python train.py --config=configs/compare_segmentation.py --config.data.image_size=64 --config.train.steps=4000 \
    --workdir=runs/large_scenes

Axial-DeepLab (Wang et al. 2020, arXiv:2003.07853) is a segmentation model; here its backbone and Swin's carry the same
dense head.
"""

from ml_collections import ConfigDict

from configs import compare_vision
from models.vision_config import preset


def get_config() -> ConfigDict:
    """The fields of `compare_vision`, changed for segmentation; a flag `--config.FIELD=VALUE` changes one."""
    config = compare_vision.get_config()
    config.task = "scenes"
    config.data = ConfigDict()
    config.data.name = "scenes"
    config.data.image_size = 32  # rows and columns in pixels
    config.data.num_shapes = 4  # in a scene, at most
    config.data.noise = 0.1  # standard deviation of what is added to each pixel
    config.data.validation_images = 256

    config.train.steps = 400
    config.train.batch_size = 16
    config.train.evaluate_examples = 64

    labels = "swin", "swin_no_shift", "swin_no_bias", "axial", "axial_content_only"
    variants = {label: config.variants[label].to_dict() for label in labels}
    for change in variants.values():
        change["model"] |= {"head": "pixels", "head_width": 32}
    config.variants = ConfigDict(variants, sort_keys=False)
    config.model = preset("swin", "tiny", head="pixels", head_width=32)
    return config
