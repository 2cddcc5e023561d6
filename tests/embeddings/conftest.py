"""Fixtures of the embedding tests: recorded progress, a blocked network, weights of a small encoder, and images."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file


class RecordedProgress:
    """A `Progress` that records its calls."""

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
    """Fail the test on any attempt to open a connection or to look up a host."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection was attempted: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def deterministic_kernels() -> Iterator[None]:
    """Enable deterministic kernels, as `prepare_device` does on a CPU."""
    was_enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(was_enabled)


@pytest.fixture(scope="session")
def timm_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with random weights of a small timm model with its classifier: 160 x 160 pixels, 256 features."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = timm.create_model("test_efficientnet", pretrained=False)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Seven small image files of different colours."""
    paths = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (20 + index, 30), (30 * index, 255 - 30 * index, 90)).save(path)
        paths.append(path)
    return paths
