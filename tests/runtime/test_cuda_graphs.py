"""Training with a backward pass that backpropagates by itself into gradients that stay in place, as on a GPU."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender import fit_recommender
from macrec_pipeline.recommender.training import train
from macrec_pipeline.runtime.cuda_graphs import CudaGraphBackward, Losses
from macrec_pipeline.semantic_ids import rq_vae_training
from tests.recommender.cyclic_catalogue import CPU, SMALL, codes, cyclic_histories
from tests.semantic_ids.two_modalities import fitted, tiny


class ImmediateBackward:
    """Does what `CudaGraphBackward` does, without a GPU."""

    keeps_gradients = True

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device, *, allow_graphs: bool = True) -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter, device=device)

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        values = losses(*inputs)
        next(iter(values.values())).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in values.items()}


def trained_weights() -> dict[str, torch.Tensor]:
    config = RecommenderConfig.model_validate(SMALL | {"num_epochs": 2})
    ids = codes(1), codes(2)
    fitted = fit_recommender(cyclic_histories(), *ids, codebook_size=4, config=config, seed=5, device=CPU)
    return dict(fitted.model.state_dict())


def test_an_immediate_backward_pass_trains_the_same_recommender(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained_weights()
    monkeypatch.setattr(train, "backward_pass", ImmediateBackward)
    for name, value in trained_weights().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("method", ["cross_modal", "single_modality"])
def test_an_immediate_backward_pass_trains_the_same_quantizer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it ran before the step sets the gradients to zero, the weights would stay where they began."""
    config = tiny(method=method, num_epochs=3, evaluate_every=1)
    expected = fitted(config)
    monkeypatch.setattr(rq_vae_training, "backward_pass", ImmediateBackward)
    quantizer = fitted(config)
    assert quantizer.log == expected.log
    assert quantizer.log[-1]["text_reconstruction"] < quantizer.log[0]["text_reconstruction"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_replayed_graph_equals_plain_autograd() -> None:
    """A pass is computed, recorded and replayed on new inputs, and its gradients accumulate in place."""
    device = torch.device("cuda")
    layer = nn.Linear(3, 2).to(device)
    backward_pass = CudaGraphBackward(layer.parameters(), device)

    def losses(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        squares = layer(rows).square()
        return {"loss": squares.sum(), "largest": squares.max()}

    generator = np.random.default_rng(1)
    expected_gradient = torch.zeros_like(layer.weight)
    for _ in range(4):
        rows = torch.from_numpy(generator.standard_normal((5, 3)).astype(np.float32))
        values = backward_pass("five rows", losses, [rows])
        expected = losses(rows.to(device))
        expected_gradient += torch.autograd.grad(expected["loss"], layer.weight)[0]
        assert values["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
        assert values["largest"].item() == pytest.approx(expected["largest"].item(), rel=1e-5)
        assert layer.weight.grad is not None
        torch.testing.assert_close(layer.weight.grad, expected_gradient)
