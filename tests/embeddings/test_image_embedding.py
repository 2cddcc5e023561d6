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


def test_rows_follow_the_items_and_broken_pictures_are_imputed_and_listed(
    pictures: list[Path], config: ImageEncoderConfig, tmp_path: Path, cpu: torch.device
) -> None:
    """Items keep their rows; one without a picture is only imputed, one with a broken picture is also listed."""
    broken = tmp_path / "broken.jpg"
    broken.write_text("not a picture")
    paths = [None, pictures[1], broken, pictures[0], pictures[1], broken]
    result = embed_images(paths, config, device=cpu, progress=quiet_progress)
    alone = embed_images([pictures[0], pictures[1]], config, device=cpu, progress=quiet_progress).vectors
    assert result.vectors.shape == (6, 256)
    assert result.vectors.dtype == np.float32
    assert result.imputed.tolist() == [True, False, True, False, False, True]
    np.testing.assert_allclose(result.vectors[[3, 1, 4]], alone[[0, 1, 1]], atol=1e-6)
    mean = (alone[0] + 2 * alone[1]) / 3
    np.testing.assert_allclose(result.vectors[[0, 2, 5]], np.tile(mean, (3, 1)), atol=1e-6)
    assert [row for row, _ in result.failures] == [2, 5]
    assert all("not a picture in a known format" in reason for _, reason in result.failures)
    assert result.encoder["dim"] == 256
    assert result.items_per_second > 0


def test_no_picture_is_decoded_twice(
    pictures: list[Path], config: ImageEncoderConfig, cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items that share a file share its decoding, whether it can be read or not."""
    opened: list[str] = []
    real_open = Image.open

    def counting_open(path: Path, **options: object) -> Image.Image:
        opened.append(path.name)
        return real_open(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counting_open)
    pictures[3].write_bytes(b"broken")
    embed_images(pictures * 3, config, device=cpu, progress=quiet_progress)
    assert sorted(opened) == sorted(path.name for path in pictures)


def test_the_batch_size_changes_only_float_noise(
    pictures: list[Path], config: ImageEncoderConfig, cpu: torch.device
) -> None:
    """What shares a batch with a picture does not matter."""
    results = [
        embed_images(pictures, config.model_copy(update={"batch_size": size}), device=cpu, progress=quiet_progress)
        for size in (1, 3, 64)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.vectors, results[0].vectors, atol=1e-5)


def test_same_input_same_bytes(
    pictures: list[Path], config: ImageEncoderConfig, cpu: torch.device, deterministic_kernels: None
) -> None:
    """Two runs on a CPU agree bit for bit, though threads decode."""
    first, second = (embed_images(pictures, config, device=cpu, progress=quiet_progress) for _ in range(2))
    assert first.vectors.tobytes() == second.vectors.tobytes()
    assert first.encoder == second.encoder


@pytest.mark.parametrize("broken", [[], [0, 1], [6], [4, 5, 6], [0, 2, 3, 4, 5, 6]])
def test_progress_counts_pictures_up_to_all_once(
    pictures: list[Path], config: ImageEncoderConfig, cpu: torch.device, recorded: Any, broken: list[int]
) -> None:
    """Progress starts at 0, rises, and reaches the number of distinct pictures exactly once, broken ones included."""
    for index in broken:
        pictures[index].write_bytes(b"broken %d" % index)
    embed_images([*pictures, None, pictures[0]], config, device=cpu, progress=recorded)
    calls = recorded.calls
    done = [call[1] for call in calls]
    assert {(call[0], call[2]) for call in calls} == {("image embeddings", 7)}
    assert done[0] == 0
    assert done == sorted(set(done))
    assert done[-1] == 7


def test_max_pixels_of_the_settings_is_used(
    pictures: list[Path], config: ImageEncoderConfig, cpu: torch.device
) -> None:
    """A picture with more pixels than the settings allow fails alone, with the reason."""
    small = config.model_copy(update={"max_pixels": 20 * 30})
    result = embed_images(pictures[:2], small, device=cpu, progress=quiet_progress)
    assert result.imputed.tolist() == [False, True]
    assert result.failures == ((1, "the picture has 21 x 30 pixels, more than image_encoder.max_pixels = 600"),)


def test_no_usable_picture_is_an_error_with_the_first_reason(
    pictures: list[Path], config: ImageEncoderConfig, cpu: torch.device, recorded: Any
) -> None:
    """A catalogue whose every picture is missing has a wrong path template; the message shows one such path."""
    missing = [None, pictures[0].with_name("0.jpg"), pictures[0].with_name("1.jpg")]
    with pytest.raises(EncoderError, match=r"None of the 2 pictures.*such as .*0\.jpg: the file is missing"):
        embed_images(missing, config, device=cpu, progress=recorded)
    with pytest.raises(EncoderError, match="None of the 2 items names a picture"):
        embed_images([None, None], config, device=cpu, progress=quiet_progress)


def test_the_packaged_encoder_needs_no_network(
    pictures: list[Path], cpu: torch.device, no_network: None, deterministic_kernels: None
) -> None:
    """The offline preset's encoder gives 1280 varied, finite features and a digest of its file, twice the same."""
    config = ImageEncoderConfig(batch_size=2)
    first, second = (embed_images(pictures[:3], config, device=cpu, progress=quiet_progress) for _ in range(2))
    assert first.vectors.shape == (3, 1280)
    assert first.vectors.tobytes() == second.vectors.tobytes()
    assert np.isfinite(first.vectors).all()
    assert (first.vectors.std(axis=1) > 0).all()
    assert len(first.encoder["digest"]) == 64


def test_threads_and_warning_filters_are_left_as_they_were(
    pictures: list[Path], config: ImageEncoderConfig, cpu: torch.device
) -> None:
    """Embedding sets no global state: torch's threads, Python's warning filters and Pillow's limits stay."""
    before = torch.get_num_threads(), list(warnings.filters), Image.MAX_IMAGE_PIXELS, dict(os.environ)
    embed_images(pictures, config, device=cpu, progress=quiet_progress)
    assert (torch.get_num_threads(), list(warnings.filters), Image.MAX_IMAGE_PIXELS, dict(os.environ)) == before


def test_a_smaller_copy_of_a_real_poster_is_nearest_to_it(shared_data: Path, tmp_path: Path, cpu: torch.device) -> None:
    """The features see the picture: each of ten posters is nearest to its own copy, smaller and recompressed."""
    posters = sorted((shared_data / "movielens-100k" / "posters").glob("*.jpg"))[:1000:100]
    copies = [tmp_path / poster.name for poster in posters]
    for poster, copy in zip(posters, copies, strict=True):
        with Image.open(poster) as picture:
            picture.resize((80, 120)).save(copy, quality=60)
    result = embed_images(posters + copies, ImageEncoderConfig(), device=cpu, progress=quiet_progress)
    assert result.failures == ()
    unit = result.vectors / np.linalg.norm(result.vectors, axis=1, keepdims=True)
    assert (unit[10:] @ unit[:10].T).argmax(axis=1).tolist() == list(range(10))
