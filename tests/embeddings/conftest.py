"""Fixtures of the embedding tests: a CPU, a progress that remembers, a cut network, small encoders made on the spot."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file


class RecordedProgress:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.calls.append((stage, done, total))


@pytest.fixture
def recorded() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection or to look up a host fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection was attempted: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def deterministic_kernels() -> Iterator[None]:
    """The state that `prepare_device` sets on a CPU."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def timm_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, classifier included, of timm's smallest convolutional model: 160 x 160 pixels, 256 features."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = timm.create_model("test_efficientnet", pretrained=False)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Seven small pictures that differ in colour."""
    paths = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (20 + index, 30), (30 * index, 255 - 30 * index, 90)).save(path)
        paths.append(path)
    return paths
