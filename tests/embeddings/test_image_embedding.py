"""Image embeddings: rows, failures, batches, progress, and the packaged encoder on real posters."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from macrec_pipeline.config import ImageEncoderConfig
from macrec_pipeline.embeddings import embed_images
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import quiet_progress


@pytest.fixture
def config(timm_weights: Path) -> ImageEncoderConfig:
    return ImageEncoderConfig(name=f"timm:test_efficientnet@{timm_weights}", batch_size=2)


def test_items_keep_their_rows_and_broken_images_are_imputed_and_reported(
    images: list[Path], config: ImageEncoderConfig, tmp_path: Path, cpu: torch.device
) -> None:
    """An item without an image is only imputed; one with a broken image is also reported as a failure."""
    broken = tmp_path / "broken.jpg"
    broken.write_text("not an image")
    paths = [None, images[1], broken, images[0], images[1], broken]
    result = embed_images(paths, config, device=cpu, progress=quiet_progress)
    expected = embed_images([images[0], images[1]], config, device=cpu, progress=quiet_progress).vectors
    assert result.vectors.shape == (6, 256)
    assert result.vectors.dtype == np.float32
    assert result.imputed.tolist() == [True, False, True, False, False, True]
    np.testing.assert_allclose(result.vectors[[3, 1, 4]], expected[[0, 1, 1]], atol=1e-6)
    mean = (expected[0] + 2 * expected[1]) / 3
    np.testing.assert_allclose(result.vectors[[0, 2, 5]], np.tile(mean, (3, 1)), atol=1e-6)
    assert [row for row, _ in result.failures] == [2, 5]
    assert all("not an image in a known format" in reason for _, reason in result.failures)
    assert result.encoder["dim"] == 256
    assert result.items_per_second > 0


def test_no_image_is_decoded_twice(
    images: list[Path], config: ImageEncoderConfig, cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that several items share is opened once, whether or not it can be read."""
    opened: list[str] = []
    real_open = Image.open

    def counting_open(path: Path, **options: object) -> Image.Image:
        opened.append(path.name)
        return real_open(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counting_open)
    images[3].write_bytes(b"broken")
    embed_images(images * 3, config, device=cpu, progress=quiet_progress)
    assert sorted(opened) == sorted(path.name for path in images)


def test_the_batch_size_changes_only_float_noise(
    images: list[Path], config: ImageEncoderConfig, cpu: torch.device
) -> None:
    """The vector of an image does not depend on the rest of its batch."""
    results = [
        embed_images(images, config.model_copy(update={"batch_size": size}), device=cpu, progress=quiet_progress)
        for size in (1, 3, 64)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.vectors, results[0].vectors, atol=1e-5)


def test_the_same_images_give_the_same_bytes(
    images: list[Path], config: ImageEncoderConfig, cpu: torch.device, deterministic_kernels: None
) -> None:
    """Two runs on a CPU agree bit for bit, although several threads decode."""
    first, second = (embed_images(images, config, device=cpu, progress=quiet_progress) for _ in range(2))
    assert first.vectors.tobytes() == second.vectors.tobytes()
    assert first.encoder == second.encoder


@pytest.mark.parametrize("broken", [[], [0, 1], [6], [4, 5, 6], [0, 2, 3, 4, 5, 6]])
def test_progress_counts_distinct_images_and_ends_once(
    images: list[Path], config: ImageEncoderConfig, cpu: torch.device, recorded: Any, broken: list[int]
) -> None:
    """Progress starts at 0, rises, and reaches the number of distinct images, broken ones included, only once."""
    for index in broken:
        images[index].write_bytes(b"broken %d" % index)
    embed_images([*images, None, images[0]], config, device=cpu, progress=recorded)
    calls = recorded.calls
    num_done = [call[1] for call in calls]
    assert {(call[0], call[2]) for call in calls} == {("image embeddings", 7)}
    assert num_done[0] == 0
    assert num_done == sorted(set(num_done))
    assert num_done[-1] == 7


def test_the_setting_max_pixels_is_applied(images: list[Path], config: ImageEncoderConfig, cpu: torch.device) -> None:
    """Only the image with more pixels than the setting allows fails, and the reason names the setting."""
    small = config.model_copy(update={"max_pixels": 20 * 30})
    result = embed_images(images[:2], small, device=cpu, progress=quiet_progress)
    assert result.imputed.tolist() == [False, True]
    assert result.failures == ((1, "the image has 21 x 30 pixels, more than image_encoder.max_pixels = 600"),)


def test_a_catalogue_without_a_usable_image_is_an_error(
    images: list[Path], config: ImageEncoderConfig, cpu: torch.device, recorded: Any
) -> None:
    """If every image is missing, the path template is probably wrong, so the message shows one of the paths."""
    missing = [None, images[0].with_name("0.jpg"), images[0].with_name("1.jpg")]
    with pytest.raises(
        EncoderError, match=r"None of the 2 images can be encoded.*The first is .*0\.jpg: the file is missing"
    ):
        embed_images(missing, config, device=cpu, progress=recorded)
    with pytest.raises(EncoderError, match=r"no images to embed: none of the 2 items has one.*image path template"):
        embed_images([None, None], config, device=cpu, progress=quiet_progress)


def test_the_packaged_encoder_needs_no_network(
    images: list[Path], cpu: torch.device, no_network: None, deterministic_kernels: None
) -> None:
    """The packaged encoder gives the same 1280 finite, varying features twice, and a digest of its weights file."""
    config = ImageEncoderConfig(batch_size=2)
    first, second = (embed_images(images[:3], config, device=cpu, progress=quiet_progress) for _ in range(2))
    assert first.vectors.shape == (3, 1280)
    assert first.vectors.tobytes() == second.vectors.tobytes()
    assert np.isfinite(first.vectors).all()
    assert (first.vectors.std(axis=1) > 0).all()
    assert len(first.encoder["digest"]) == 64


def test_global_state_is_restored(images: list[Path], config: ImageEncoderConfig, cpu: torch.device) -> None:
    """Embedding leaves torch's threads, the warning filters, Pillow's limits and the environment unchanged."""
    before = torch.get_num_threads(), list(warnings.filters), Image.MAX_IMAGE_PIXELS, dict(os.environ)
    embed_images(images, config, device=cpu, progress=quiet_progress)
    assert (torch.get_num_threads(), list(warnings.filters), Image.MAX_IMAGE_PIXELS, dict(os.environ)) == before


def test_a_smaller_copy_of_a_real_poster_is_nearest_to_it(shared_data: Path, tmp_path: Path, cpu: torch.device) -> None:
    """The features describe the content: each of ten posters is nearest to its own smaller, recompressed copy."""
    posters = sorted((shared_data / "movielens-100k" / "posters").glob("*.jpg"))[:1000:100]
    copies = [tmp_path / poster.name for poster in posters]
    for poster, copy in zip(posters, copies, strict=True):
        with Image.open(poster) as image:
            image.resize((80, 120)).save(copy, quality=60)
    result = embed_images(posters + copies, ImageEncoderConfig(), device=cpu, progress=quiet_progress)
    assert result.failures == ()
    unit = result.vectors / np.linalg.norm(result.vectors, axis=1, keepdims=True)
    assert (unit[10:] @ unit[:10].T).argmax(axis=1).tolist() == list(range(10))
