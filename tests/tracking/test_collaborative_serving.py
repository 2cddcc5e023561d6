"""The served model with a collaborative route: a trained bundle of a small catalogue behind MLflow's interface."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModelContext

from macrec_pipeline.config import DecodingConfig, RecommenderConfig, SasrecConfig
from macrec_pipeline.recommender import RecommenderBundle, fit_recommender, fit_sasrec
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion, save_fusion
from macrec_pipeline.tracking.packaging import checked_example
from macrec_pipeline.tracking.pyfunc_model import RecommenderModel
from tests.recommender.cyclic_catalogue import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories

DECODING = DecodingConfig(beam_width=5, top_k=5, batch_size=64, fusion="calibrated", collaborative_route=True)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """Write a bundle with three routes; its fusion gives SASRec a weight."""
    for name in ("weights", "sasrec", "bundle"):
        (tmp_path / name).mkdir()
    histories, codes_of = cyclic_histories(), {"text": codes(1), "image": codes(2)}
    config = SasrecConfig(d_model=16, max_length=20, batch_size=64, max_epochs=40, dropout=0, learning_rate=1e-2)
    sasrec = fit_sasrec(histories, num_items=NUM_ITEMS, config=config, seed=5)
    fitted = fit_recommender(
        histories,
        codes_of["text"],
        codes_of["image"],
        codebook_size=4,
        config=RecommenderConfig.model_validate(SMALL),
        seed=5,
        device=CPU,
    )
    fusion = fit_fusion(fitted.model, histories, codes_of, config=DECODING, sasrec=sasrec.model)
    assert fusion is not None
    assert fusion.weights["collaborative"] > 0
    fitted.save(tmp_path / "weights")
    save_fusion(fusion, tmp_path / "weights")
    sasrec.save(tmp_path / "sasrec")
    RecommenderBundle.write(
        tmp_path / "bundle",
        recommender_folder=tmp_path / "weights",
        sasrec_folder=tmp_path / "sasrec",
        item_ids=[f"item-{index}" for index in range(NUM_ITEMS)],
        popularity=np.ones(NUM_ITEMS, dtype=np.int64),
        text_codes=codes_of["text"],
        image_codes=codes_of["image"],
        codebook_size=4,
        decoding=DECODING.model_dump(),
        catalogue=[{"title": "", "image_path": None}] * NUM_ITEMS,
        provenance={},
    )
    return tmp_path / "bundle"


def test_a_served_model_has_the_collaborative_route(bundle_folder: Path) -> None:
    """A served model recommends by this route alone and fused; an unknown route is rejected with a list of all."""
    model = RecommenderModel()
    model.load_context(PythonModelContext({"bundle": str(bundle_folder)}, None))
    rows = pd.DataFrame({"history": [["item-3", "item-4", "item-5"], ["nobody"]]})
    for route in ("collaborative", "fused"):
        result = model.predict(None, rows, {"k": 4, "route": route, "exclude_seen": True})
        assert result["item_ids"][0][0] == "item-6"
        assert [len(items) for items in result["item_ids"]] == [4, 4]
        assert result["fallback"].tolist() == ["none", "popularity"]
    with pytest.raises(MlflowException, match="one of fused, text, image, collaborative, but is 'audio'"):
        model.predict(None, rows, {"route": "audio"})
    assert checked_example(bundle_folder)[1]["route"] == "fused"
