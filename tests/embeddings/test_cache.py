"""Vectors are reused: after a finished run, and after a run that was interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from macrec_pipeline.config import ImageEncoderConfig, TextEncoderConfig
from macrec_pipeline.embeddings import CachedVectors, EmbeddingResult, cache, embed_images, embed_texts, text_embedding
from macrec_pipeline.runtime.progress import quiet_progress

CONFIG = TextEncoderConfig(batch_size=2)
TEXTS = ["one", "three little pigs", None, "two words", "one", "a longer text than all"]


class PowerFailureError(Exception):
    """Simulates an interruption."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that reach the encoder, whose vectors identify their text. The text "crash" interrupts the run."""
    received: list[str] = []

    def load(name: str, *, max_tokens: int, device: torch.device, precision: str) -> SimpleNamespace:
        def encode(texts: list[str]) -> np.ndarray:
            if "crash" in texts:
                raise PowerFailureError
            received.extend(texts)
            return np.array([[len(text), sum(map(ord, text)), 1.0] for text in texts], dtype=np.float32)

        description = {"name": name, "digest": "d", "preprocessing": {"max_tokens": max_tokens}}
        return SimpleNamespace(encode=encode, description=description, bytes_per_text=1)

    monkeypatch.setattr(text_embedding, "load_text_encoder", load)
    return received


def embed(texts: list[str | None], **options: object) -> EmbeddingResult:
    config = CONFIG.model_copy(update={key: options.pop(key) for key in ("max_tokens",) if key in options})
    return embed_texts(texts, config, device=torch.device("cpu"), progress=quiet_progress, **options)  # type: ignore[arg-type]


def vectors_of(embedded: EmbeddingResult) -> CachedVectors:
    return CachedVectors(embedded.encoder_fingerprint, embedded.contents, embedded.vectors)


def test_an_unchanged_catalogue_is_not_encoded_again(encoded: list[str]) -> None:
    """Each item has the vector of its text, bit for bit, also if the order of the items has changed."""
    first = embed(TEXTS)
    assert sorted(encoded) == sorted(set(filter(None, TEXTS)))
    encoded.clear()
    again = embed(TEXTS[::-1], cached=vectors_of(first))
    assert encoded == []
    assert (again.num_encoded, again.items_per_second) == (0, 0)
    assert again.vectors.tobytes() == first.vectors[::-1].tobytes()
    assert again.contents == first.contents[::-1]
    assert again.imputed.tolist() == first.imputed[::-1].tolist()


def test_only_changed_and_new_texts_are_encoded(encoded: list[str]) -> None:
    """The other texts keep their vectors, and the imputed vector is the mean over the current items."""
    first = embed(TEXTS)
    encoded.clear()
    changed = ["one", "three little wolves", None, "two words", "new"]
    second, from_scratch = embed(changed, cached=vectors_of(first)), embed(changed)
    assert encoded[:2] == ["three little wolves", "new"]
    assert second.num_encoded == 2
    assert second.vectors.tobytes() == from_scratch.vectors.tobytes()
    assert second.imputed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("change", ["max_tokens", "preparation"])
def test_another_encoder_reuses_no_vector(encoded: list[str], change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings, or another preparation of the inputs by this package, count as another encoder."""
    first = embed(TEXTS)
    if change == "preparation":
        monkeypatch.setattr(cache, "PREPARATION_VERSION", cache.PREPARATION_VERSION + 1)
    second = embed(TEXTS, cached=vectors_of(first), max_tokens=CONFIG.max_tokens - (change == "max_tokens"))
    assert second.num_encoded == first.num_encoded
    assert second.encoder_fingerprint != first.encoder_fingerprint


def test_an_interrupted_run_resumes_after_its_last_shard(
    encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven texts in batches of two and shards of four, interrupted in the last batch: the first four are kept."""
    monkeypatch.setattr(cache, "SHARD_SIZE", 4)
    texts: list[str | None] = ["x" * length for length in range(10, 5, -1)]
    with pytest.raises(PowerFailureError):
        embed([*texts, "yyyyy", "crash"], shard_folder=tmp_path)
    assert encoded == [*texts, "yyyyy"]
    encoded.clear()
    resumed = embed([*texts, "yyyyy", "end"], shard_folder=tmp_path)
    assert encoded == [*texts[4:], "yyyyy", "end"]
    assert resumed.vectors.tobytes() == embed([*texts, "yyyyy", "end"]).vectors.tobytes()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-20]), lambda path: path.unlink()])
def test_an_unreadable_shard_is_encoded_again(
    encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """A damaged or missing shard costs only its own texts, and its replacement does not overwrite the other shards."""
    monkeypatch.setattr(cache, "SHARD_SIZE", 2)
    texts: list[str | None] = ["x" * length for length in range(10, 4, -1)]
    embed(texts, shard_folder=tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 3
    damage(paths[0])
    encoded.clear()
    again = embed(texts, shard_folder=tmp_path)
    assert encoded == texts[:2]
    encoded.clear()
    assert embed(texts, shard_folder=tmp_path).vectors.tobytes() == again.vectors.tobytes()
    assert encoded == []


def test_an_image_is_identified_by_its_bytes(images: list[Path], timm_weights: Path, cpu: torch.device) -> None:
    """A moved file is not encoded again, an overwritten one is, and a broken one is reported in each run."""
    config = ImageEncoderConfig(name=f"timm:test_efficientnet@{timm_weights}", batch_size=2)
    images[6].write_bytes(b"broken")
    first = embed_images(images, config, device=cpu, progress=quiet_progress)
    assert first.num_encoded == 6
    moved = images[0].rename(images[0].with_name("elsewhere.png"))
    shutil.copy(images[2], images[1])
    copied = images[3].with_name("new.png")
    shutil.copy(images[3], copied)
    images[4].write_bytes(images[5].read_bytes() + b"\0")  # the same image with other bytes
    paths = [moved, *images[1:], copied, images[3].with_name("missing.png")]
    second = embed_images(paths, config, device=cpu, progress=quiet_progress, cached=vectors_of(first))
    assert second.num_encoded == 1
    assert second.vectors[0].tobytes() == first.vectors[0].tobytes()
    assert second.vectors[1].tobytes() == first.vectors[2].tobytes()
    assert second.vectors[7].tobytes() == first.vectors[3].tobytes()
    np.testing.assert_allclose(second.vectors[4], first.vectors[5], atol=1e-5)
    assert [row for row, _ in second.failures] == [6, 8]
    assert second.contents[8] is None
    smaller = config.model_copy(update={"max_pixels": 700})
    assert embed_images(paths, smaller, device=cpu, progress=quiet_progress, cached=vectors_of(first)).num_encoded > 1


def test_a_shard_of_broken_images_is_reused_as_well(
    images: list[Path], timm_weights: Path, cpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a shard holds no vector but the reasons; a run that resumes keeps them and encodes the missing shard."""
    monkeypatch.setattr(cache, "SHARD_SIZE", 2)
    config = ImageEncoderConfig(name=f"timm:test_efficientnet@{timm_weights}", batch_size=2)
    for number in (0, 1):
        images[number].write_bytes(b"broken %d" % number)
    first = embed_images(images, config, device=cpu, progress=quiet_progress, shard_folder=tmp_path / "shards")
    (tmp_path / "shards" / "000002.safetensors").unlink()
    again = embed_images(images, config, device=cpu, progress=quiet_progress, shard_folder=tmp_path / "shards")
    assert again.num_encoded == 2
    assert again.failures == first.failures
    assert [row for row, _ in again.failures] == [0, 1]
    assert again.vectors.tobytes() == first.vectors.tobytes()
