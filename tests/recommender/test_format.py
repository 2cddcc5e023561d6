"""A bundle's folder is reproducible, and one whose parts do not belong together is rejected."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle
from macrec_pipeline.recommender.bundle.format import file_digest, with_digest
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from tests.recommender.cyclic_catalogue import cyclic_histories
from tests.recommender.cyclic_models import TRUE_CODES, fit, retriever_of, write_cyclic_bundle, write_fused_bundle


def test_missing_and_changed_parts_are_rejected(cyclic_bundle_folder: Path, tmp_path: Path) -> None:
    """Each raises an error that names the file."""
    for name, damage, message in (
        ("changed", lambda f: (f / "catalogue.json").write_text("[]"), "catalogue.json does not belong to this bundle"),
        ("missing", lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        ("empty", lambda f: (f / "bundle.json").write_text(""), "bundle.json is missing or does not describe a bundle"),
        ("unquantized", lambda f: shutil.rmtree(f / "quantizer"), "quantizer/quantizer.json is missing"),
    ):
        folder = tmp_path / name
        shutil.copytree(cyclic_bundle_folder, folder)
        damage(folder)
        with pytest.raises(StorageError, match=message):
            RecommenderBundle.load(folder)


@pytest.mark.parametrize(
    "part",
    [
        "model.safetensors",
        "semantic_ids.safetensors",
        "catalogue.json",
        "bundle.json",
        "quantizer/quantizer.json",
        "quantizer/text.safetensors",
    ],
)
def test_a_part_of_another_valid_bundle_is_rejected(part: str, cyclic_bundle_folder: Path, tmp_path: Path) -> None:
    """The other bundle has the same sizes and loads by itself: the part is well-formed, and only its digest differs."""
    weights_folder, other, mixed = (tmp_path / name for name in ("weights", "other", "mixed"))
    weights_folder.mkdir()
    other.mkdir()
    fit(num_epochs=1, d_model=32, d_ff=64, dropout=0.0).save(weights_folder)
    write_cyclic_bundle(other, weights_folder, quantizer=b"other")
    catalogue = json.loads((other / "catalogue.json").read_text())
    (other / "catalogue.json").write_text(json.dumps(catalogue[::-1]))
    ids = load_file(other / "semantic_ids.safetensors")
    save_file({name: tensor.flip(0) for name, tensor in ids.items()}, other / "semantic_ids.safetensors")
    description = json.loads((other / "bundle.json").read_text())
    description["parts"] = {name: file_digest(other / name) for name in description["parts"]}
    (other / "bundle.json").write_text(json.dumps(with_digest(description)))
    assert RecommenderBundle.load(other).num_items == RecommenderBundle.load(cyclic_bundle_folder).num_items
    shutil.copytree(cyclic_bundle_folder, mixed)
    shutil.copyfile(other / part, mixed / part)
    with pytest.raises(StorageError, match="does not belong to this bundle"):
        RecommenderBundle.load(mixed)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda description: description["decoding"].update(beam_width=1), "was edited after it was written"),
        (lambda description: description["provenance"].update(dataset="other"), "was edited after it was written"),
        (lambda description: description["recommender"].update(d_kv=4), "was edited after it was written"),
        (lambda description: description.pop("digest"), "was edited after it was written"),
        (lambda description: description.update(format_version=3), "has format version 3.*only versions up to 2"),
        (lambda description: description.update(decoding=[]), "is missing or does not describe a bundle"),
        (
            lambda description: description.update(format_version=1, recommender={}),
            "does not describe a model that this package can build",
        ),
    ],
)
def test_an_edited_description_is_rejected(
    edit: Callable[[dict], object], message: str, cyclic_bundle_folder: Path, tmp_path: Path
) -> None:
    """Settings affect recommendations, so `bundle.json` has a digest of its own besides those of the parts."""
    folder = tmp_path / "edited"
    shutil.copytree(cyclic_bundle_folder, folder)
    description = json.loads((folder / "bundle.json").read_text())
    edit(description)
    (folder / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(StorageError, match=message):
        RecommenderBundle.load(folder)


def test_a_bundle_of_the_first_format_version_still_loads(cyclic_bundle_folder: Path, tmp_path: Path) -> None:
    """A champion can have been registered before descriptions had a digest of their own."""
    folder = tmp_path / "old"
    shutil.copytree(cyclic_bundle_folder, folder)
    description = json.loads((folder / "bundle.json").read_text())
    del description["digest"]
    (folder / "bundle.json").write_text(json.dumps(description | {"format_version": 1}))
    histories = [["item/3 ü", "item/4 ü"]]
    new, old = (RecommenderBundle.load(path).recommend_ids(histories, k=5) for path in (cyclic_bundle_folder, folder))
    assert old == new


def test_equal_parts_give_equal_bytes(trained_model: FittedRecommender, tmp_path: Path) -> None:
    """Nothing in a bundle depends on the clock or the folder."""
    weights_folder = tmp_path / "weights"
    weights_folder.mkdir()
    trained_model.save(weights_folder)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_cyclic_bundle(tmp_path / name, weights_folder)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "bundle.json").read_text())["provenance"] == {"dataset": "cycle"}


def test_a_bundle_uses_the_fusion_of_its_settings(trained_model: FittedRecommender, tmp_path: Path) -> None:
    """Calibrated settings use the fitted rule; published settings ignore one that is stored next to the weights."""
    fusion = CalibratedFusion("product", {"text": 0.3, "image": 0.7}, 0.25, 60)
    inputs = [history[:-1] for history in cyclic_histories()]

    def scores(folder: Path) -> list[list[float]]:
        ranked = RecommenderBundle.load(folder).recommend(inputs, k=5)["fused"]
        return [of_user.scores.tolist() for of_user in ranked]

    calibrated = write_fused_bundle(trained_model, tmp_path / "calibrated", fusion=fusion, fusion_setting="calibrated")
    assert RecommenderBundle.load(calibrated).description["fusion"] == asdict(fusion)
    expected = retriever_of(trained_model, TRUE_CODES, fusion).rank(
        inputs, routes=["fused"], top_k=5, beam_width=5, batch_size=16
    )
    assert scores(calibrated) == [of_user.scores.tolist() for of_user in expected["fused"]]
    published = scores(
        write_fused_bundle(trained_model, tmp_path / "published", fusion=None, fusion_setting="published")
    )
    unused = write_fused_bundle(trained_model, tmp_path / "unused", fusion=fusion, fusion_setting="published")
    assert scores(unused) == published
    assert published != scores(calibrated)


def test_a_bundle_without_the_rule_that_it_requires_is_rejected(
    trained_model: FittedRecommender, tmp_path: Path
) -> None:
    """A rule that was never fitted, or is damaged, raises an error that names the file."""
    folder = write_fused_bundle(trained_model, tmp_path, fusion=None, fusion_setting="calibrated")
    with pytest.raises(StorageError, match=r"bundle.json requires calibrated fusion, but contains no fitted weights"):
        RecommenderBundle.load(folder)
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(with_digest(description | {"fusion": {"rule": "product"}})))
    with pytest.raises(StorageError, match=r"`fusion` in .*bundle.json is .*not a valid fusion rule"):
        RecommenderBundle.load(folder)
