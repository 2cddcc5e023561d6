"""What a GPU does differently in a training: gradients that stay in place, and passes that propagate by themselves."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender import fit_recommender
from macrec_pipeline.recommender.training import train_step
from macrec_pipeline.runtime.cuda_graphs import Losses, Recorder
from macrec_pipeline.semantic_ids import rq_vae_training
from tests.recommender.cycle import CPU, SMALL, codes, cyclic_histories
from tests.semantic_ids.two_modalities import fitted, tiny


class AtOnce:
    """As a recorder does, without a GPU: propagated when asked, into gradients that must not be dropped."""

    keeps_gradients = True

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device, *, may_record: bool = True) -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter, device=device)

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        found = losses(*inputs)
        next(iter(found.values())).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in found.items()}


def recommender_states(epochs: int) -> dict[str, torch.Tensor]:
    config = RecommenderConfig.model_validate(SMALL | {"num_epochs": epochs})
    histories, ids = cyclic_histories(), (codes(1), codes(2))
    return dict(fit_recommender(histories, *ids, codebook_size=4, config=config, seed=5, device=CPU).model.state_dict())


def test_a_recommender_whose_passes_propagate_by_themselves_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = recommender_states(epochs=2)
    monkeypatch.setattr(train_step, "propagation", AtOnce)
    for name, value in recommender_states(epochs=2).items():
        assert torch.equal(value, usual[name]), name


@pytest.mark.parametrize("method", ["cross_modal", "single_modality"])
def test_a_quantizer_whose_passes_propagate_by_themselves_is_the_same(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes that ran before the step set its gradients to zero would leave the weights where they began."""
    config = tiny(method=method, num_epochs=3, evaluate_every=1)
    usual = fitted(config)
    monkeypatch.setattr(rq_vae_training, "propagation", AtOnce)
    found = fitted(config)
    assert found.log == usual.log
    assert found.log[-1]["text_reconstruction"] < found.log[0]["text_reconstruction"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_recording_gives_what_its_first_pass_gave() -> None:
    """Worked out, recorded and replayed on new inputs, against plain autograd; gradients add up in place."""
    device = torch.device("cuda")
    layer = nn.Linear(3, 2).to(device)
    record = Recorder(layer.parameters(), device)

    def losses(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        squares = layer(rows).square()
        return {"loss": squares.sum(), "largest": squares.max()}

    expected = torch.zeros_like(layer.weight)
    for _ in range(4):
        rows = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32))
        found = record("five rows", losses, [rows])
        again = losses(rows.to(device))
        expected += torch.autograd.grad(again["loss"], layer.weight)[0]
        assert found["loss"].item() == pytest.approx(again["loss"].item(), rel=1e-5)
        assert found["largest"].item() == pytest.approx(again["largest"].item(), rel=1e-5)
        assert layer.weight.grad is not None
        torch.testing.assert_close(layer.weight.grad, expected)
