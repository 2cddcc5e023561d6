"""The transform of images is described in words, and its digest changes with every setting."""

import open_clip
import pytest
import timm
from PIL import Image
from timm.data.transforms_factory import create_transform

from macrec_pipeline.embeddings.cache import encoder_fingerprint
from macrec_pipeline.embeddings.efficientnet_lite0 import PREPROCESSING
from macrec_pipeline.embeddings.image_transforms import describe_transform

CLIP = "mean (0.4815, 0.4578, 0.4082), std (0.2686, 0.2613, 0.2758)"


def of_timm(name: str) -> dict[str, object]:
    config = timm.get_pretrained_cfg(name)
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return {key: getattr(config, key) for key in keys}


def of_open_clip(model: str, tag: str) -> dict[str, object]:
    config = {key: value for key, value in open_clip.get_pretrained_cfg(model, tag).items() if key in ("mean", "std")}
    defaults = {"size": (224, 224), "interpolation": "bicubic", "resize_mode": "shortest"}
    return {**defaults, **config}


def test_timm_crops_clip_and_open_clip_does_not() -> None:
    """The same weights of OpenAI see the middle in one library, and the whole shorter side in the other."""
    assert describe_transform(of_timm("vit_base_patch32_clip_224.openai"))["words"] == (
        f"timm: shorter side to 248, centre crop of 224 x 224, bicubic; {CLIP}"
    )
    whole = describe_transform(of_open_clip("ViT-B-32", "openai"))["words"]
    assert whole == f"open_clip: shorter side to 224, centre crop of 224 x 224, bicubic; {CLIP}"
    assert of_timm("vit_base_patch16_clip_224.openai")["crop_pct"] == 0.9
    assert of_timm("vit_base_patch16_siglip_224.webli")["crop_pct"] == 0.9
    assert of_timm("vit_large_patch14_clip_224.openai")["crop_pct"] == 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resize_mode": "squash", "size": 384}, "open_clip: both sides to 384, centre crop of 384 x 384, bicubic"),
        ({"resize_mode": "longest", "size": [8, 6]}, "open_clip: longer side to 8 x 6, border up to 8 x 6, bicubic"),
        ({"input_size": [3, 8, 6], "crop_pct": 0.5}, "timm: shorter side to 16 x 12, centre crop of 8 x 6, bicubic"),
        ({"input_size": [3, 9, 9], "crop_pct": 0.9}, "timm: shorter side to 10, centre crop of 9 x 9, bicubic"),
    ],
)
def test_other_modes_in_words(settings: dict[str, object], words: str) -> None:
    assert describe_transform({"interpolation": "bicubic", **settings})["words"] == words


def test_the_words_fit_what_the_library_does() -> None:
    """An image of 496 x 992 is scaled to 248 x 496, and the crop begins 12 pixels from the top."""
    transform = create_transform(**of_timm("vit_base_patch32_clip_224.openai"), is_training=False)
    resize, crop = transform.transforms[:2]
    assert resize(Image.new("RGB", (496, 992))).size == (248, 496)
    assert tuple(crop.size) == (224, 224)


@pytest.mark.parametrize(
    "change", [{"crop_pct": 0.9}, {"interpolation": "bilinear"}, {"mean": (0.4, 0.5, 0.5)}, {"crop_mode": "squash"}]
)
def test_every_setting_counts_in_the_digest_and_in_the_key_of_reused_vectors(change: dict[str, object]) -> None:
    changed = PREPROCESSING | change
    assert describe_transform(changed)["digest"] != describe_transform(PREPROCESSING)["digest"]
    described = {"name": "x", "digest": "y", "preprocessing": PREPROCESSING}
    assert encoder_fingerprint(described) != encoder_fingerprint({**described, "preprocessing": changed})
