"""Semantic segmentation in the small: which shape does each pixel of a generated scene show? Swin and Axial-ResNet.

python train.py --config=configs/compare_segmentation.py                       # no download: scenes are drawn
python train.py --config=configs/compare_segmentation.py --config.data.image_size=64 --config.train.steps=4000 \
    --workdir=runs/large_scenes

Axial-DeepLab (Wang et al. 2020, arXiv:2003.07853) is a segmentation model; here its backbone and Swin's carry the same
dense head.

Measured by the first command on 2026-11-24, AMD EPYC, two cores, 6 min 40 s, 522 s of CPU time, one seed; mean IoU over
six classes on 256 scenes: axial 0.413 +- 0.008, swin 0.288, swin_no_bias 0.271, swin_no_shift 0.255,
axial_content_only 0.254 (errors 0.004 to 0.008); all background, or the class of the pixel's colour, 0.133. Position
is what pays here, as on digits: the vectors for distances +0.159, Swin's shift +0.033, its relative bias +0.017.
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
