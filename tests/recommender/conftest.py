"""A trained model of the cyclic catalogue and its bundle, made once for all tests of this folder."""

from pathlib import Path

import pytest

from macrec_pipeline.recommender import FittedRecommender
from tests.recommender.cyclic_models import fit_trained_model, write_cyclic_bundle


@pytest.fixture(scope="session")
def trained_model() -> FittedRecommender:
    return fit_trained_model()


@pytest.fixture(scope="session")
def cyclic_bundle_folder(trained_model: FittedRecommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights_folder, folder = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("bundle")
    trained_model.save(weights_folder)
    write_cyclic_bundle(folder, weights_folder)
    return folder
