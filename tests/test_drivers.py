"""Embeddings, nearest codes and recommendations: every driver gives the same bytes, even if a worker is killed."""

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
from macrec_pipeline.defs.sharded_tasks import RecommendationTask
from macrec_pipeline.embeddings import cache, embed_images, embed_texts
from macrec_pipeline.recommender import RecommenderBundle, fit_recommender
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.sharding import ray_tasks
from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.semantic_ids.modality_quantizer import quantize
from macrec_pipeline.storage import write_shards
from tests.recommender.cyclic_catalogue import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories
from tests.semantic_ids.two_modalities import fitted, two_modalities

ROOT = Path(__file__).resolve().parents[1]
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt '.[ray]'"
)
TEXTS = [f"{'A guitar string of nickel, gauge ' * (number % 4 + 1)}{number}." for number in range(40)]
BROKEN_IMAGE = 5
NUM_VECTORS = 30_000  # four shards of nearest codes, the last one smaller
# A program that embeds the texts in worker processes and kills itself when two shards are finished.
SELF_KILLING = """
import os, signal, sys, torch
from pathlib import Path
from macrec_pipeline.config import RuntimeConfig, TextEncoderConfig
from macrec_pipeline.embeddings import cache, embed_texts
from tests.test_drivers import TEXTS
cache.SHARD_SIZE = 8
def progress(stage, done, total, metrics=None):
    if done >= 16:
        os.kill(os.getpid(), signal.SIGKILL)
runtime = RuntimeConfig(device="cpu", num_threads=1, driver="processes", workers=2)
embed_texts(TEXTS, TextEncoderConfig(max_tokens=32, batch_size=4), device=torch.device("cpu"), progress=progress,
            shard_folder=Path(sys.argv[1]), runtime=runtime)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Set threads and kernels as `prepare_device` does in a run, and restore them afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    prepare_device(runtime("in_process", 1))
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


@pytest.fixture(scope="module")
def _local_ray() -> Iterator[None]:
    """A local Ray with two cores."""
    with ray_tasks._ray_connection(ray_tasks._import_ray(), runtime("ray", 2)):
        yield


def runtime(driver: str, workers: int) -> RuntimeConfig:
    return RuntimeConfig.model_validate({"device": "cpu", "num_threads": 1, "driver": driver, "workers": workers})


@dataclass(frozen=True)
class StageInputs:
    """Paths of the inputs of all stages."""

    images: Path
    quantizer: Path
    bundle: Path
    items: Path
    histories: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> StageInputs:
    folder = tmp_path_factory.mktemp("inputs")
    paths = StageInputs(
        *(folder / name for name in ("images", "quantizer", "bundle", "items.parquet", "histories.parquet"))
    )
    for subfolder in (paths.images, paths.quantizer, paths.bundle, folder / "weights"):
        subfolder.mkdir()
    generator = np.random.default_rng(3)
    for number in range(12):
        pixels = generator.integers(256, size=(40, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths.images / f"{number:02d}.png")
    (paths.images / f"{BROKEN_IMAGE:02d}.png").write_bytes(b"not an image")
    fitted().save(paths.quantizer)
    histories, config = cyclic_histories(), RecommenderConfig.model_validate(SMALL)
    model = fit_recommender(histories, codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)
    model.save(folder / "weights")
    item_ids = [f"i{item:02d}" for item in range(NUM_ITEMS)]
    RecommenderBundle.write(
        paths.bundle,
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
    pl.DataFrame({"item_id": item_ids}).write_parquet(paths.items)
    users = {
        "user_id": [f"u{user}" for user in range(60)],
        "item_ids": [[item_ids[index] for index in history] for history in histories],
    }
    pl.DataFrame(users).write_parquet(paths.histories)
    return paths


Stage = Callable[[StageInputs, Path, RuntimeConfig, Progress], bytes]


def texts(_: StageInputs, scratch: Path, driver: RuntimeConfig, progress: Progress) -> bytes:
    config = TextEncoderConfig(max_tokens=32, batch_size=4)
    embedded = embed_texts(TEXTS, config, device=CPU, progress=progress, shard_folder=scratch, runtime=driver)
    return embedded.vectors.tobytes()


def images(inputs: StageInputs, scratch: Path, driver: RuntimeConfig, progress: Progress) -> bytes:
    paths = sorted(inputs.images.iterdir())
    config = ImageEncoderConfig(batch_size=2)
    embedded = embed_images(paths, config, device=CPU, progress=progress, shard_folder=scratch, runtime=driver)
    assert [row for row, _ in embedded.failures] == [BROKEN_IMAGE]
    return embedded.vectors.tobytes()


def nearest_codes(inputs: StageInputs, scratch: Path, driver: RuntimeConfig, progress: Progress) -> bytes:
    config = PipelineConfig(runtime=driver)
    asset = SimpleNamespace(
        config=config, input_digests={"quantizer": "1"}, folder=lambda _: inputs.quantizer, progress=progress
    )
    quantize_modality = shards.sharded_quantize(cast(AssetContext, asset), fitted(), scratch, device=CPU)
    return as_bytes(quantize_modality("text", two_modalities(NUM_VECTORS)[0]))


def recommendations(inputs: StageInputs, scratch: Path, driver: RuntimeConfig, progress: Progress) -> bytes:
    shards = write_shards(
        scratch,
        RECOMMENDATIONS,
        RecommendationTask(
            inputs.bundle, inputs.histories, inputs.items, model="macrec-x/1", as_of=0, top_k=5, exclude_seen=False
        ),
        num_rows=60,
        rows_per_shard=8,
        depends_on={},
        runtime=driver,
        device=CPU,
        progress=progress,
    )
    assert len(shards) == 8
    return b"".join(shard.read_bytes() for shard in shards)


def as_bytes(arrays: tuple[np.ndarray, torch.Tensor]) -> bytes:
    return b"".join(array.tobytes() for array in map(np.asarray, arrays))


STAGES: dict[str, Stage] = {stage.__name__: stage for stage in (texts, images, nearest_codes, recommendations)}


@pytest.fixture
def run_stage(inputs: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Return a function that runs a stage in small shards and returns the bytes of its result."""
    monkeypatch.setattr(shards, "ITEMS_PER_SHARD", 8192)

    def run(stage: str, driver: str, workers: int, progress: Progress = quiet_progress) -> bytes:
        monkeypatch.setattr(cache, "SHARD_SIZE", {"texts": 8, "images": 2}.get(stage, 0))
        return STAGES[stage](inputs, tmp_path / f"{driver}-{workers}", runtime(driver, workers), progress)

    return run


@pytest.fixture(scope="module")
def single_process_results() -> dict[str, bytes]:
    """The bytes of the stages that have run in a single process."""
    return {}


@pytest.fixture
def expected(run_stage: Callable[..., bytes], single_process_results: dict[str, bytes]) -> Callable[[str], bytes]:
    """Return a function that gives the bytes of a stage in a single process, and runs each stage only once."""

    def expect(stage: str) -> bytes:
        if stage not in single_process_results:
            single_process_results[stage] = run_stage(stage, "in_process", 1)
        return single_process_results[stage]

    return expect


class KillOneWorker:
    """A `Progress` that kills one worker process when the first shard is finished."""

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
    [("texts", 2), ("images", 3), *(("nearest_codes", count) for count in (1, 2, 3)), ("recommendations", 2)],
)
def test_worker_processes_give_the_bytes_of_a_single_process(
    stage: str,
    workers: int,
    run_stage: Callable[..., bytes],
    expected: Callable[[str], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The number of workers does not matter, and one of them is killed when the first shard is finished."""
    kill_one = KillOneWorker()
    with caplog.at_level(logging.WARNING):
        assert run_stage(stage, "processes", workers, kill_one) == expected(stage)
    assert kill_one.killed is not None
    assert "A worker process died over shard" in caplog.text


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.usefixtures("_local_ray")
@pytest.mark.parametrize("stage", ["images", "nearest_codes", "recommendations"])
def test_ray_gives_the_bytes_of_a_single_process(
    stage: str, run_stage: Callable[..., bytes], expected: Callable[[str], bytes]
) -> None:
    """One of the workers of a local Ray is killed when the first shard is finished."""
    import psutil  # Ray contains a copy of it

    killed: list[int] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if done and not killed:
            processes = psutil.Process().children(recursive=True)
            names = ("ray::_compute_shard", "ray::IDLE")
            worker = next(process for process in processes if process.name().startswith(names))
            worker.kill()
            killed.append(worker.pid)

    assert run_stage(stage, "ray", 2, progress) == expected(stage)
    assert len(killed) == 1


def test_quantizing_in_shards_gives_the_same_bytes(expected: Callable[[str], bytes]) -> None:
    """Nearest codes and the inputs of the last levels are those of quantizing the catalogue at once."""
    whole = quantize(fitted().modules["text"], two_modalities(NUM_VECTORS)[0], device=CPU)
    assert expected("nearest_codes") == as_bytes(whole)


@pytest.mark.slow
def test_a_run_resumes_after_all_processes_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes finish at least two of five shards; another driver encodes the rest, and the bytes agree."""
    command = [sys.executable, "-c", SELF_KILLING, str(tmp_path / "scratch")]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    monkeypatch.setattr(cache, "SHARD_SIZE", 8)
    config: dict[str, Any] = {"config": TextEncoderConfig(max_tokens=32, batch_size=4), "device": CPU}
    finished = len(list((tmp_path / "scratch").glob("*.safetensors")))
    assert 2 <= finished <= 4
    resumed = embed_texts(TEXTS, **config, progress=quiet_progress, shard_folder=tmp_path / "scratch")
    assert resumed.num_encoded == len(TEXTS) - 8 * finished
    assert resumed.vectors.tobytes() == embed_texts(TEXTS, **config, progress=quiet_progress).vectors.tobytes()
