"""A checkpoint goes back exactly, belongs to one training, and a damaged one counts as none."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint, training_identity


def test_tensors_and_values_come_back_exactly(tmp_path: Path) -> None:
    """Also tensors that share memory, and floats that have no short decimal form."""
    path = tmp_path / "deep" / "checkpoint.safetensors"
    weight = torch.randn(3, 4, dtype=torch.float64)
    values = {"log": [{"loss": 0.1 + 0.2}], "epoch": 3}
    save_checkpoint(
        path, identity="a", tensors={"own": weight, "tied": weight.T, "step": torch.tensor(7.0)}, values=values
    )
    found = load_checkpoint(path, identity="a")
    assert found is not None
    loaded_tensors, loaded = found
    assert torch.equal(loaded_tensors["own"], weight)
    assert torch.equal(loaded_tensors["tied"], weight.T)
    assert loaded_tensors["step"].shape == ()
    assert loaded == values
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["missing", "other", "cut", "empty", "flipped"])
def test_what_cannot_be_continued_counts_as_none(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And a file that is there but not used is named in a warning."""
    path = tmp_path / "checkpoint.safetensors"
    if damage != "missing":
        save_checkpoint(path, identity="b" if damage == "other" else "a", tensors={"x": torch.ones(100)}, values={})
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 200 if damage == "cut" else 0])
    if damage == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # in the middle of the numbers: safetensors reads them as if nothing were wrong
        path.write_bytes(content)
    assert load_checkpoint(path, identity="a") is None
    assert (str(path) in caplog.text) == (damage != "missing")
    assert path.with_suffix(".damaged").exists() == (damage in ("cut", "empty", "flipped"))
    save_checkpoint(path, identity="a", tensors={"x": torch.zeros(1)}, values={})
    assert load_checkpoint(path, identity="a") is not None


def test_a_full_disk_costs_the_checkpoint_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one before stays, nothing half-written lies beside it, and the work goes on with a warning."""
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, identity="a", tensors={"x": torch.ones(10)}, values=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # Python ignores the signal: a write fails
    try:
        save_checkpoint(path, identity="a", tensors={"x": torch.ones(10_000)}, values=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = load_checkpoint(path, identity="a")
    assert found is not None
    assert found[1] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert f"{path} cannot be written" in caplog.text


def test_the_identity_tells_settings_and_data_apart() -> None:
    """Values, shapes and dtypes all count; the order of settings does not."""
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
