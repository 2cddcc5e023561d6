"""Evidence from real images that the packaged weights are used as they were trained (docs/decisions/003)."""

from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import timm
import torch
from matplotlib import cbook
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform
from torch import nn

from macrec_pipeline.embeddings.efficientnet_lite0 import (
    PREPROCESSING,
    load_efficientnet_lite0,
    timm_name,
    weights_path,
)
from macrec_pipeline.errors import EncoderError

IMAGENET_COLOURS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_efficientnet_lite0(weights_path())


@pytest.fixture(scope="module")
def plain_padding_model(model: nn.Module) -> nn.Module:
    """The same weights in the timm variant with symmetric padding."""
    plain: nn.Module = timm.create_model("efficientnet_lite0", pretrained=False, bn_eps=1e-3)
    plain.load_state_dict(model.state_dict())
    return plain.eval()


@pytest.fixture(scope="module")
def photographs() -> dict[str, Path]:
    """Photographs from installed packages, by the ImageNet class that a person would choose."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    return {
        "daisy": folder / "flower.jpg",
        "palace": folder / "china.jpg",
        "military uniform": Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))),
    }


@pytest.fixture(scope="module")
def log_probabilities_as_chosen(model: nn.Module, photographs: dict[str, Path]) -> torch.Tensor:
    """Log-probabilities of the photographs with the chosen padding and preprocessing: float32 [B, 1000]."""
    return log_probabilities(model, list(photographs.values()))


def log_probabilities(model: nn.Module, paths: list[Path], **changes: Any) -> torch.Tensor:
    """Log-probabilities of the classes, with changes to the preprocessing: float32 [B, 1000]."""
    transform = create_transform(**{**PREPROCESSING, **changes}, is_training=False)
    batch = []
    for path in paths:
        with Image.open(path) as image:
            batch.append(transform(image.convert("RGB")))
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.stack(batch))
    return logits.log_softmax(1)


def class_index(name: str) -> int:
    info = ImageNetInfo()
    return next(i for i in range(1000) if info.index_to_description(i).split(",")[0] == name)


def test_tensor_names_are_mapped_one_to_one_and_in_order(model: nn.Module) -> None:
    """The mapped names are those of timm, in the order of the file: two independent ways to pair the tensors agree."""
    packaged = torch.load(weights_path(), map_location="cpu", weights_only=True)
    assert [timm_name(name) for name in packaged] == list(model.state_dict())


def test_two_photographs_get_the_right_class(log_probabilities_as_chosen: torch.Tensor) -> None:
    """The ImageNet classifier in the file recognizes the daisy and the palace."""
    assert log_probabilities_as_chosen[:2].argmax(dim=1).tolist() == [class_index("daisy"), class_index("palace")]


def test_the_chosen_padding_and_preprocessing_fit_the_photographs_best(
    model: nn.Module,
    plain_padding_model: nn.Module,
    photographs: dict[str, Path],
    log_probabilities_as_chosen: torch.Tensor,
) -> None:
    """Any other combination of padding and colour range makes the right classes less probable."""
    paths, classes = list(photographs.values()), [class_index(name) for name in photographs]

    def score(logs: torch.Tensor) -> float:
        return float(logs[range(len(paths)), classes].mean())

    chosen = score(log_probabilities_as_chosen)
    assert chosen > score(log_probabilities(model, paths, **IMAGENET_COLOURS)) + 0.2
    assert chosen > score(log_probabilities(plain_padding_model, paths)) + 0.2
    assert chosen > score(log_probabilities(plain_padding_model, paths, **IMAGENET_COLOURS)) + 0.2


def test_predictions_for_posters_are_more_certain_than_with_other_padding(
    model: nn.Module, plain_padding_model: nn.Module, shared_data: Path
) -> None:
    """On real posters, predictions have a lower entropy than with symmetric padding."""
    posters = sorted((shared_data / "movielens-100k" / "posters").glob("*.jpg"))[::150]

    def entropy(candidate: nn.Module) -> float:
        logs = log_probabilities(candidate, posters)
        return float(-(logs.exp() * logs).sum(1).mean())

    assert entropy(model) < entropy(plain_padding_model) - 0.2


def test_a_file_of_another_model_is_an_error(tmp_path: Path) -> None:
    """Tensors of another model cause an error and do not leave layers with random weights."""
    torch.save({"_fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(EncoderError, match=r"other\.pth does not contain the tensors of EfficientNet-Lite0"):
        load_efficientnet_lite0(tmp_path / "other.pth")
    torch.save({"_blocks.16._bn0.bias": torch.zeros(3)}, tmp_path / "longer.pth")
    with pytest.raises(EncoderError, match="16 blocks"):
        load_efficientnet_lite0(tmp_path / "longer.pth")
