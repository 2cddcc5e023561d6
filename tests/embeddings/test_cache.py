"""What has a vector is not encoded again: after a finished run, and after one that was cut off."""

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


class CutOffError(Exception):
    """Stands for the power going out."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that reach an encoder whose vectors say which text they are of; after a text "cut" it is cut off."""
    seen: list[str] = []

    def load(name: str, *, max_tokens: int, device: torch.device, precision: str) -> SimpleNamespace:
        def encode(texts: list[str]) -> np.ndarray:
            if "cut" in texts:
                raise CutOffError
            seen.extend(texts)
            return np.array([[len(each), sum(map(ord, each)), 1.0] for each in texts], dtype=np.float32)

        description = {"name": name, "digest": "d", "preprocessing": {"max_tokens": max_tokens}}
        return SimpleNamespace(encode=encode, description=description, bytes_a_text=1)

    monkeypatch.setattr(text_embedding, "load_text_encoder", load)
    return seen


def embed(texts: list[str | None], **options: object) -> EmbeddingResult:
    config = CONFIG.model_copy(update={key: options.pop(key) for key in ("max_tokens",) if key in options})
    return embed_texts(texts, config, device=torch.device("cpu"), progress=quiet_progress, **options)  # type: ignore[arg-type]


def before(embedded: EmbeddingResult) -> CachedVectors:
    return CachedVectors(embedded.made_by, embedded.contents, embedded.vectors)


def test_nothing_is_encoded_of_an_unchanged_catalogue(encoded: list[str]) -> None:
    """In whatever order the items stand now, each has the vector of its text, to the byte."""
    first = embed(TEXTS)
    assert sorted(encoded) == sorted(set(filter(None, TEXTS)))
    encoded.clear()
    again = embed(TEXTS[::-1], before=before(first))
    assert encoded == []
    assert (again.num_encoded, again.items_per_second) == (0, 0)
    assert again.vectors.tobytes() == first.vectors[::-1].tobytes()
    assert again.contents == first.contents[::-1]
    assert again.imputed.tolist() == first.imputed[::-1].tolist()


def test_a_changed_text_and_a_new_one_are_encoded(encoded: list[str]) -> None:
    """The others keep their vectors; what is imputed is the mean of today's items, not of those before."""
    first = embed(TEXTS)
    encoded.clear()
    now = ["one", "three little wolves", None, "two words", "new"]
    second, alone = embed(now, before=before(first)), embed(now)
    assert encoded[:2] == ["three little wolves", "new"]
    assert second.num_encoded == 2
    assert second.vectors.tobytes() == alone.vectors.tobytes()
    assert second.imputed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("change", ["max_tokens", "procedure"])
def test_another_encoder_takes_nothing_over(encoded: list[str], change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings of it, or another preparation of inputs in this package, count as another encoder."""
    first = embed(TEXTS)
    if change == "procedure":
        monkeypatch.setattr(cache, "PROCEDURE", cache.PROCEDURE + 1)
    second = embed(TEXTS, before=before(first), max_tokens=CONFIG.max_tokens - (change == "max_tokens"))
    assert second.num_encoded == first.num_encoded
    assert second.made_by != first.made_by


def test_what_was_cut_off_goes_on_after_its_last_shard(
    encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight texts in batches of two, written down in fours, cut off in the fourth batch: the first four are kept."""
    monkeypatch.setattr(cache, "SHARD_SIZE", 4)
    texts: list[str | None] = ["x" * length for length in range(10, 5, -1)]
    with pytest.raises(CutOffError):
        embed([*texts, "yyyyy", "cut"], shards=tmp_path)
    assert encoded == [*texts, "yyyyy"]
    encoded.clear()
    resumed = embed([*texts, "yyyyy", "end"], shards=tmp_path)
    assert encoded == [*texts[4:], "yyyyy", "end"]
    assert resumed.vectors.tobytes() == embed([*texts, "yyyyy", "end"]).vectors.tobytes()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-20]), lambda path: path.unlink()])
def test_a_shard_that_cannot_be_read_is_made_again(
    encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    """Damaged or gone, it costs its own texts and no others; later shards do not overwrite those that are there."""
    monkeypatch.setattr(cache, "SHARD_SIZE", 2)
    texts: list[str | None] = ["x" * length for length in range(10, 4, -1)]
    embed(texts, shards=tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 3
    damage(paths[0])
    encoded.clear()
    again = embed(texts, shards=tmp_path)
    assert encoded == texts[:2]
    encoded.clear()
    assert embed(texts, shards=tmp_path).vectors.tobytes() == again.vectors.tobytes()
    assert encoded == []


def test_a_picture_is_known_by_its_bytes(pictures: list[Path], timm_weights: Path, cpu: torch.device) -> None:
    """A file that was moved is not encoded again, one that was overwritten is, and a broken one is listed each time."""
    config = ImageEncoderConfig(name=f"timm:test_efficientnet@{timm_weights}", batch_size=2)
    pictures[6].write_bytes(b"broken")
    first = embed_images(pictures, config, device=cpu, progress=quiet_progress)
    assert first.num_encoded == 6
    moved = pictures[0].rename(pictures[0].with_name("elsewhere.png"))
    shutil.copy(pictures[2], pictures[1])
    copied = pictures[3].with_name("new.png")
    shutil.copy(pictures[3], copied)
    pictures[4].write_bytes(pictures[5].read_bytes() + b"\0")  # other bytes of the same picture
    now = [moved, *pictures[1:], copied, pictures[3].with_name("missing.png")]
    second = embed_images(now, config, device=cpu, progress=quiet_progress, before=before(first))
    assert second.num_encoded == 1
    assert second.vectors[0].tobytes() == first.vectors[0].tobytes()
    assert second.vectors[1].tobytes() == first.vectors[2].tobytes()
    assert second.vectors[7].tobytes() == first.vectors[3].tobytes()
    np.testing.assert_allclose(second.vectors[4], first.vectors[5], atol=1e-5)
    assert [row for row, _ in second.failures] == [6, 8]
    assert second.contents[8] is None
    smaller = config.model_copy(update={"max_pixels": 700})
    assert embed_images(now, smaller, device=cpu, progress=quiet_progress, before=before(first)).num_encoded > 1


def test_a_shard_of_broken_pictures_is_taken_up_as_well(
    pictures: list[Path], timm_weights: Path, cpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why none of them has a vector; what was cut off goes on with the others in the same shards."""
    monkeypatch.setattr(cache, "SHARD_SIZE", 2)
    config = ImageEncoderConfig(name=f"timm:test_efficientnet@{timm_weights}", batch_size=2)
    for number in (0, 1):
        pictures[number].write_bytes(b"broken %d" % number)
    first = embed_images(pictures, config, device=cpu, progress=quiet_progress, shards=tmp_path / "shards")
    (tmp_path / "shards" / "000002.safetensors").unlink()
    again = embed_images(pictures, config, device=cpu, progress=quiet_progress, shards=tmp_path / "shards")
    assert again.num_encoded == 2
    assert again.failures == first.failures
    assert [row for row, _ in again.failures] == [0, 1]
    assert again.vectors.tobytes() == first.vectors.tobytes()
