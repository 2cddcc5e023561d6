"""Loading image encoders from files and by name, and one-line errors when that is not possible."""

import json
import time
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from macrec_pipeline.embeddings import hub
from macrec_pipeline.embeddings.image_encoders import load_image_encoder, needs_quick_gelu
from macrec_pipeline.errors import EncoderError

TINY_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny_clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with random weights of a CLIP of 12 dimensions, registered with open_clip as `macrec-tiny-clip`."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "macrec-tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "macrec-tiny-clip.json")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = open_clip.create_model("macrec-tiny-clip")
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@pytest.fixture
def photograph() -> Image.Image:
    gradient = Image.linear_gradient("L").resize((50, 40))
    return Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))


def test_open_clip_weights_come_from_the_file(
    tiny_clip_weights: Path, photograph: Image.Image, cpu: torch.device, no_network: None
) -> None:
    """`open_clip:MODEL/ABSOLUTE_PATH` gives what the model computes from the weights with its own transform."""
    assert tiny_clip_weights.is_absolute()
    encoder = load_image_encoder(f"open_clip:macrec-tiny-clip/{tiny_clip_weights}", device=cpu)
    expected_model, _, expected_transform = open_clip.create_model_and_transforms("macrec-tiny-clip")
    expected_model.load_state_dict(torch.load(tiny_clip_weights, weights_only=True))
    with torch.inference_mode():
        features = encoder.forward(encoder.transform(photograph)[None])
        expected = expected_model.eval().encode_image(expected_transform(photograph)[None])
    assert features.shape == (1, 12)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    assert encoder.description["digest_of"] == "files"
    assert encoder.description["preprocessing"]["size"] == (32, 32)


def test_timm_weights_come_from_the_file(
    timm_weights: Path, photograph: Image.Image, cpu: torch.device, no_network: None
) -> None:
    """`timm:MODEL@FILE` gives the pooled features, although the file also contains a classifier."""
    encoder = load_image_encoder(f"timm:test_efficientnet@{timm_weights}", device=cpu)
    reference = timm.create_model("test_efficientnet", pretrained=False)
    reference.load_state_dict(load_file(timm_weights))
    image = encoder.transform(photograph)
    assert image.shape == (3, 160, 160)
    with torch.inference_mode():
        features = encoder.forward(image[None])
        expected = reference.eval().forward_head(reference.forward_features(image[None]), pre_logits=True)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert encoder.description["digest_of"] == "files"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "conv_stem.weight"}, "1 tensors are missing"),
        (lambda state: {**state, "other.weight": torch.zeros(1)}, "1 are unexpected"),
        (lambda state: {**state, "conv_stem.weight": torch.zeros(1, 3, 3, 3)}, "size mismatch"),
    ],
)
def test_timm_weights_of_another_model_are_an_error(
    timm_weights: Path, tmp_path: Path, cpu: torch.device, change: object, reason: str
) -> None:
    """A missing, unexpected or misshapen tensor is an error, so that no layer keeps its random weights."""
    save_file(change(load_file(timm_weights)), tmp_path / "w.safetensors")  # type: ignore[operator]
    with pytest.raises(EncoderError, match=reason) as caught:
        load_image_encoder(f"timm:test_efficientnet@{tmp_path / 'w.safetensors'}", device=cpu)
    assert "\n" not in str(caught.value)


def test_a_weights_file_cannot_run_code(tmp_path: Path, cpu: torch.device) -> None:
    """A pickled object in place of the tensors causes an error and is not executed."""

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"weights": Payload()}, tmp_path / "evil.pth")
    for name in (f"timm:test_efficientnet@{tmp_path / 'evil.pth'}", f"open_clip:RN50/{tmp_path / 'evil.pth'}"):
        with pytest.raises(EncoderError, match="cannot be loaded"):
            load_image_encoder(name, device=cpu)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip", "Expected packaged:efficientnet-lite0, timm:MODEL"),
        ("timm:", "Expected packaged:efficientnet-lite0, timm:MODEL"),
        ("keras:resnet50", "Expected packaged:efficientnet-lite0, timm:MODEL"),
        ("packaged:resnet", "no packaged image encoder 'resnet'. Use packaged:efficientnet-lite0."),
        ("timm:resnet1", "Did you mean"),
        ("timm:resnet18@/no/such/file.safetensors", "no file /no/such/file.safetensors. Give the path of a file."),
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-23/openai", "Did you mean"),
        ("open_clip:ViT-B-32//no/such/file.pt", "no file /no/such/file.pt"),
        ("open_clip:ViT-B-32/opnai", "Nor is it a pretrained tag; the tags of this model are: openai"),
    ],
)
def test_a_wrong_name_gives_a_one_line_error(name: str, message: str, cpu: torch.device, no_network: None) -> None:
    """The error about a malformed name, or an unknown model, tag or file, needs no hub and says what is expected."""
    with pytest.raises(EncoderError) as caught:
        load_image_encoder(name, device=cpu)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:resnet18", "open_clip:RN50/openai"])
def test_an_unreachable_hub_gives_a_one_line_error_quickly(
    name: str, cpu: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_network: None
) -> None:
    """Without a hub and with an empty cache, loading by name fails within seconds and says what to do."""
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(EncoderError, match=r"hub cannot be reached.*local path.*packaged") as caught:
        load_image_encoder(name, device=cpu)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 15


def test_openai_weights_are_used_with_their_activation() -> None:
    """OpenAI trained CLIP with QuickGELU, which the plain ViT-L-14 of open_clip lacks; other weights do not need it."""
    assert needs_quick_gelu("ViT-L-14", "openai")
    assert not needs_quick_gelu("ViT-L-14", "laion2b_s32b_b82k")
    assert not needs_quick_gelu("ViT-L-14-quickgelu", "openai")
