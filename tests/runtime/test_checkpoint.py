"""A checkpoint is read back exactly and only by its own training, and a damaged one is ignored."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint, training_identity


def test_tensors_and_values_are_read_back_exactly(tmp_path: Path) -> None:
    """A checkpoint is read back exactly, with tensors that share memory and floats without a short decimal form."""
    path = tmp_path / "deep" / "checkpoint.safetensors"
    weight = torch.randn(3, 4, dtype=torch.float64)
    values = {"log": [{"loss": 0.1 + 0.2}], "epoch": 3}
    save_checkpoint(
        path, identity="a", tensors={"weight": weight, "tied": weight.T, "step": torch.tensor(7.0)}, values=values
    )
    loaded = load_checkpoint(path, identity="a")
    assert loaded is not None
    loaded_tensors, loaded_values = loaded
    assert torch.equal(loaded_tensors["weight"], weight)
    assert torch.equal(loaded_tensors["tied"], weight.T)
    assert loaded_tensors["step"].shape == ()
    assert loaded_values == values
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["missing", "other identity", "truncated", "empty", "flipped bit"])
def test_an_unusable_checkpoint_is_ignored(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names a file that exists but is not used, and a damaged one is renamed."""
    path = tmp_path / "checkpoint.safetensors"
    if damage != "missing":
        save_checkpoint(
            path, identity="b" if damage == "other identity" else "a", tensors={"x": torch.ones(100)}, values={}
        )
    if damage in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: 200 if damage == "truncated" else 0])
    if damage == "flipped bit":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # inside the numbers, where safetensors itself notices nothing
        path.write_bytes(content)
    assert load_checkpoint(path, identity="a") is None
    assert (str(path) in caplog.text) == (damage != "missing")
    assert path.with_suffix(".damaged").exists() == (damage in ("truncated", "empty", "flipped bit"))
    save_checkpoint(path, identity="a", tensors={"x": torch.zeros(1)}, values={})
    assert load_checkpoint(path, identity="a") is not None


def test_a_full_disk_only_costs_the_new_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The previous one stays, no partial file is left, and the work continues with a warning."""
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, identity="a", tensors={"x": torch.ones(10)}, values=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # Python ignores the signal: writing fails
    try:
        save_checkpoint(path, identity="a", tensors={"x": torch.ones(10_000)}, values=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    loaded = load_checkpoint(path, identity="a")
    assert loaded is not None
    assert loaded[1] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert f"{path} cannot be written" in caplog.text


def test_the_identity_depends_on_settings_and_data() -> None:
    """Values, shapes and dtypes change it; the order of settings does not."""
    data = np.arange(6)
    identities = {
        training_identity({"lr": 1, "seed": 2}, [data]),
        training_identity({"seed": 2, "lr": 1}, [data]),
        training_identity({"lr": 1, "seed": 3}, [data]),
        training_identity({"lr": 1, "seed": 2}, [data.reshape(2, 3)]),
        training_identity({"lr": 1, "seed": 2}, [data.astype(np.int32)]),
        training_identity({"lr": 1, "seed": 2}, [data[::-1]]),
    }
    assert len(identities) == 5
