"""Embeddings, nearest codes and recommendations by every driver: the same bytes, though a worker is killed."""

import importlib.util
import logging
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from macrec_pipeline.config import (
    DecodingConfig,
    ImageEncoderConfig,
    PipelineConfig,
    RecommenderConfig,
    RuntimeConfig,
    TextEncoderConfig,
)
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.ids import shards
from macrec_pipeline.defs.sharded_tasks import Recommending
from macrec_pipeline.embeddings import cache, embed_images, embed_texts
from macrec_pipeline.recommender import RecommenderBundle, fit_recommender
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.sharding import ray_tasks
from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.semantic_ids.modality_quantizer import quantize
from macrec_pipeline.storage import write_shards
from tests.recommender.cycle import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories
from tests.semantic_ids.two_modalities import fitted, two_modalities

ROOT = Path(__file__).resolve().parents[1]
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt '.[ray]'"
)
TEXTS = [f"{'A guitar string of nickel, gauge ' * (number % 4 + 1)}{number}." for number in range(40)]
BROKEN = 5
# Embeds the texts by worker processes, and is killed when two shards are finished.
KILLED = """
import os, signal, sys, torch
from pathlib import Path
from macrec_pipeline.config import RuntimeConfig, TextEncoderConfig
from macrec_pipeline.embeddings import embed_texts, made_before
from tests.test_drivers import TEXTS
made_before.SHARD_SIZE = 8
def progress(stage, done, total, metrics=None):
    if done >= 16:
        os.kill(os.getpid(), signal.SIGKILL)
runtime = RuntimeConfig(device="cpu", num_threads=1, driver="processes", workers=2)
embed_texts(TEXTS, TextEncoderConfig(max_tokens=32, batch_size=4), device=torch.device("cpu"), progress=progress,
            shards=Path(sys.argv[1]), runtime=runtime)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What `prepare_device` sets in a run, and put back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    prepare_device(runtime("in_process", 1))
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


@pytest.fixture(scope="module")
def _one_ray() -> Iterator[None]:
    """A Ray of this machine, of two cores."""
    with ray_tasks._connected(ray_tasks._imported(), runtime("ray", 2)):
        yield


def runtime(driver: str, workers: int) -> RuntimeConfig:
    return RuntimeConfig.model_validate({"device": "cpu", "num_threads": 1, "driver": driver, "workers": workers})


@dataclass(frozen=True)
class Made:
    """Where the inputs of all stages lie."""

    pictures: Path
    quantizer: Path
    bundle: Path
    items: Path
    histories: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    own = Made(*(folder / name for name in ("pictures", "quantizer", "bundle", "items.parquet", "histories.parquet")))
    for each in (own.pictures, own.quantizer, own.bundle, folder / "weights"):
        each.mkdir()
    generator = np.random.default_rng(3)
    for number in range(12):
        pixels = generator.integers(256, size=(40, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(own.pictures / f"{number:02d}.png")
    (own.pictures / f"{BROKEN:02d}.png").write_bytes(b"no picture")
    fitted().save(own.quantizer)
    histories, config = cyclic_histories(), RecommenderConfig.model_validate(SMALL)
    model = fit_recommender(histories, codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)
    model.save(folder / "weights")
    item_ids = [f"i{item:02d}" for item in range(NUM_ITEMS)]
    RecommenderBundle.write(
        own.bundle,
        recommender_folder=folder / "weights",
        item_ids=item_ids,
        popularity=np.arange(NUM_ITEMS),
        text_codes=codes(1),
        image_codes=codes(2),
        codebook_size=4,
        decoding=DecodingConfig(beam_width=5).model_dump(mode="json"),
        catalogue=[{"title": "", "image_path": None}] * NUM_ITEMS,
        provenance={},
    )
    pl.DataFrame({"item_id": item_ids}).write_parquet(own.items)
    users = {"user_id": [f"u{user}" for user in range(60)], "item_indices": [list(map(int, own)) for own in histories]}
    pl.DataFrame(users).write_parquet(own.histories)
    return own


Make = Callable[[Made, Path, RuntimeConfig, Progress], bytes]


def texts(_: Made, scratch: Path, own: RuntimeConfig, progress: Progress) -> bytes:
    config = TextEncoderConfig(max_tokens=32, batch_size=4)
    return embed_texts(TEXTS, config, device=CPU, progress=progress, shards=scratch, runtime=own).vectors.tobytes()


def pictures(made: Made, scratch: Path, own: RuntimeConfig, progress: Progress) -> bytes:
    paths = sorted(made.pictures.iterdir())
    config = ImageEncoderConfig(batch_size=2)
    found = embed_images(paths, config, device=CPU, progress=progress, shards=scratch, runtime=own)
    assert [row for row, _ in found.failures] == [BROKEN]
    return found.vectors.tobytes()


def nearest_codes(made: Made, scratch: Path, own: RuntimeConfig, progress: Progress) -> bytes:
    config = PipelineConfig(runtime=own)
    work = SimpleNamespace(config=config, inputs={"quantizer": "1"}, folder=lambda _: made.quantizer, progress=progress)
    quantize_by = shards.quantizing_in_shards(cast(AssetContext, work), fitted(), scratch, device=CPU)
    return b"".join(each.tobytes() for each in map(np.asarray, quantize_by("text", two_modalities(50_000)[0])))


def recommendations(made: Made, scratch: Path, own: RuntimeConfig, progress: Progress) -> bytes:
    shards = write_shards(
        scratch,
        RECOMMENDATIONS,
        Recommending(made.bundle, made.items, made.histories, top_k=5, exclude_seen=False),
        num_rows=60,
        rows_per_shard=8,
        depends_on={},
        runtime=own,
        device=CPU,
        progress=progress,
    )
    assert len(shards) == 8
    return b"".join(shard.read_bytes() for shard in shards)


STAGES: dict[str, Make] = {each.__name__: each for each in (texts, pictures, nearest_codes, recommendations)}


@pytest.fixture
def make(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Make a stage in shards of a few rows, in a scratch folder of its own."""
    monkeypatch.setattr(shards, "ITEMS_PER_SHARD", 8192)

    def by(stage: str, driver: str, workers: int, progress: Progress = quiet_progress) -> bytes:
        monkeypatch.setattr(cache, "SHARD_SIZE", {"texts": 8, "pictures": 2}.get(stage, 0))
        return STAGES[stage](made, tmp_path / f"{driver}-{workers}", runtime(driver, workers), progress)

    return by


class KillsOne:
    """A progress that kills one of this process's workers when the first shard is finished."""

    def __init__(self) -> None:
        self.killed: int | None = None

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if done and self.killed is None:
            (*_, worker) = multiprocessing.active_children()
            self.killed = worker.pid
            worker.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "workers"),
    [("texts", 2), ("pictures", 3), *(("nearest_codes", count) for count in (1, 2, 3)), ("recommendations", 2)],
)
def test_workers_give_the_bytes_of_one_process(
    stage: str, workers: int, make: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """However many there are, and though one of them is killed when the first shard is finished."""
    expected, kills = make(stage, "in_process", 1), KillsOne()
    with caplog.at_level(logging.WARNING):
        assert make(stage, "processes", workers, kills) == expected
    assert kills.killed is not None
    assert "A worker process died over shard" in caplog.text


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.usefixtures("_one_ray")
@pytest.mark.parametrize("stage", ["pictures", "nearest_codes", "recommendations"])
def test_ray_gives_the_bytes_of_one_process(stage: str, make: Callable[..., bytes]) -> None:
    """On a cluster of this machine, though one of its workers is killed when the first shard is finished."""
    import psutil  # Ray brings its own

    killed: list[int] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if done and not killed:
            mine = psutil.Process().children(recursive=True)
            worker = next(each for each in mine if each.name().startswith(("ray::_made", "ray::IDLE")))
            worker.kill()
            killed.append(worker.pid)

    assert make(stage, "ray", 2, progress) == make(stage, "in_process", 1)
    assert len(killed) == 1


def test_shards_of_a_quantizer_change_nothing(make: Callable[..., bytes]) -> None:
    """Nearest codes and what entered the last levels, to the byte, as if the catalogue were quantized at once."""
    whole = quantize(fitted().modules["text"], two_modalities(50_000)[0], device=CPU)
    assert make("nearest_codes", "in_process", 1) == b"".join(each.tobytes() for each in map(np.asarray, whole))


@pytest.mark.slow
def test_after_a_kill_of_everything_only_the_rest_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of five shards were finished by worker processes; another driver goes on from them, to the same bytes."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "scratch")]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    monkeypatch.setattr(cache, "SHARD_SIZE", 8)
    config: dict[str, Any] = {"config": TextEncoderConfig(max_tokens=32, batch_size=4), "device": CPU}
    finished = len(list((tmp_path / "scratch").glob("*.safetensors")))
    assert 2 <= finished <= 4
    rest = embed_texts(TEXTS, **config, progress=quiet_progress, shards=tmp_path / "scratch")
    assert rest.num_encoded == len(TEXTS) - 8 * finished
    assert rest.vectors.tobytes() == embed_texts(TEXTS, **config, progress=quiet_progress).vectors.tobytes()
