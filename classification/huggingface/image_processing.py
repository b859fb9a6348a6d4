"""What `preprocessor_config.json` says: the evaluation transform in the words of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Resampling

_RESAMPLE = {
    "bicubic": Resampling.BICUBIC,
    "bilinear": Resampling.BILINEAR,
    "random": Resampling.BILINEAR,  # as the evaluation transform
    "nearest": Resampling.NEAREST,
    "lanczos": Resampling.LANCZOS,
    "hamming": Resampling.HAMMING,
    "box": Resampling.BOX,
}


def preprocessor_config(
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop: bool = True,
) -> dict[str, Any]:
    """The settings of a CLIPImageProcessor that prepares images as the evaluation does.

    Args:
        image_size: side of the model's input in pixels.
        mean: per channel, of images between 0 and 1.
        std: per channel.
        interpolation: name of the resampling filter (DATA.INTERPOLATION).
        crop: resize the short side and crop the centre; else resize both sides (TEST.CROP).
    """
    square = {"height": image_size, "width": image_size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",  # the name in older versions
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size} if crop else square,
        "resample": int(_RESAMPLE[interpolation]),
        "do_center_crop": crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def image_size_of(settings: dict[str, Any]) -> int:
    """The side in pixels of the images that such settings give."""
    crop = settings.get("crop_size", settings.get("size", 224))
    return crop if isinstance(crop, int) else next(iter(crop.values()))
