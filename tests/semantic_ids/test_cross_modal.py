"""The terms of the quantizer's loss: their weights, their positives, and the gradients that they have."""

from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.runtime.info_nce import symmetric_info_nce
from macrec_pipeline.semantic_ids import cross_modal
from macrec_pipeline.semantic_ids.cross_modal import CrossModalQuantizer, Items, QuantizerLosses
from macrec_pipeline.semantic_ids.losses import layer_contrast
from tests.semantic_ids.two_modalities import tiny, two_modalities


def small_model(**settings: Any) -> CrossModalQuantizer:
    model = CrossModalQuantizer({"text": 12, "image": 12}, tiny(**settings), generator=torch.Generator().manual_seed(0))
    for number, (_, module) in enumerate(model.rq_vaes()):
        generator = torch.Generator().manual_seed(number)
        module.quantizer.codebooks.data = torch.randn(3, 8, 4, generator=generator)
    return model


def some_items(*, image_factor: float = 1.0, clusters: int = 5) -> Items:
    text, image = (torch.from_numpy(x[:32]) for x in two_modalities())
    labels = torch.arange(32) % clusters
    return Items({"text": text, "image": image * image_factor}, {"text": labels, "image": labels.flip(0)})


def losses_of(model: CrossModalQuantizer, batch: Items) -> QuantizerLosses:
    return model.losses(batch, model.draw_positives(batch.clusters, generator=torch.Generator().manual_seed(3)))


def gradient_of(model: CrossModalQuantizer, batch: Items, modality: str) -> torch.Tensor:
    """Return the gradient of the whole loss with respect to all parameters of a modality, flattened."""
    loss = losses_of(model, batch).total
    parameters = list(dict(model.rq_vaes())[modality].parameters())
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])


def weighted_sum(parts: dict[str, torch.Tensor], *, contrast: float, alignment: float) -> float:
    value = {name: part.item() for name, part in parts.items()}
    unweighted = sum(value[f"{m}_{term}"] for m in ("text", "image") for term in ("reconstruction", "level_loss"))
    return unweighted + contrast * (value["text_contrast"] + value["image_contrast"]) + alignment * value["alignment"]


def test_the_loss_is_the_weighted_sum_and_each_term_the_mean_of_its_levels() -> None:
    """Every weight reaches its term, and the log has a figure per level of a term."""
    losses = losses_of(small_model(contrast_weight=0.7, alignment_weight=0.3), some_items())
    parts = losses.parts
    assert losses.total.item() == pytest.approx(weighted_sum(parts, contrast=0.7, alignment=0.3), rel=1e-6)
    for modality in ("text", "image"):
        for term, levels in (("level_loss", (1, 2, 3)), ("contrast", (2, 3))):
            each = [parts[f"{modality}_{term}_{level}"].item() for level in levels]
            assert parts[f"{modality}_{term}"].item() == pytest.approx(np.mean(each), rel=1e-6)
    assert "text_contrast_1" not in parts


@pytest.mark.parametrize(("modality", "other"), [("text", "image"), ("image", "text")])
def test_the_positives_come_from_the_clusters_of_the_other_modality(modality: str, other: str) -> None:
    """The other modality's clusters are pairs, so each positive is known. The own clusters have no effect."""
    model, vectors = small_model(), some_items().vectors
    clusters = {other: torch.arange(32) // 2, modality: torch.arange(32)}
    parts = losses_of(model, Items(vectors, clusters)).parts
    quantized, _ = dict(model.rq_vaes())[modality](vectors[modality])
    partners = torch.arange(32).view(16, 2).flip(1).flatten()
    expected = layer_contrast(quantized.residuals, partners, from_level=2, temperature=0.1)
    assert parts[f"{modality}_contrast"].item() == pytest.approx(expected.mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "absent", "uncalled"),
    [
        ({"contrast_weight": 0.0}, "text_contrast", ["layer_contrast", "draw_positives"]),
        ({"contrast_from_level": 4}, "image_contrast", ["layer_contrast", "draw_positives"]),
        ({"alignment_weight": 0.0}, "alignment", ["symmetric_info_nce"]),
    ],
)
def test_a_term_of_weight_zero_is_not_computed(
    settings: dict[str, float], absent: str, uncalled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function of a term of weight 0 is not called, and the losses do not contain it."""
    for function in uncalled:
        monkeypatch.delattr(cross_modal, function)
    assert absent not in losses_of(small_model(**settings), some_items()).parts


@pytest.mark.parametrize("active", [None, "contrast_weight", "alignment_weight"])
def test_images_affect_text_only_through_the_cross_modal_terms(active: str | None) -> None:
    """Other image vectors and clusters change the text's gradient exactly if one of the two terms is active."""
    weights = {"contrast_weight": 0.0, "alignment_weight": 0.0} | ({active: 0.5} if active else {})
    gradients = [
        gradient_of(small_model(**weights), batch, "text")
        for batch in (some_items(), some_items(image_factor=-2.0, clusters=3))
    ]
    assert torch.equal(*gradients) == (active is None)


def test_as_released_every_positive_is_the_anchor_and_the_weights_are_fixed() -> None:
    """The weights are 1.0, 1.0 and 0.001 from the first level on, whatever is configured; clusters have no effect."""
    model = small_model(variant="as_released", contrast_weight=123.0, alignment_weight=0.0, contrast_from_level=3)
    losses = losses_of(model, some_items())
    parts = losses.parts
    assert losses.total.item() == pytest.approx(weighted_sum(parts, contrast=1.0, alignment=0.001), rel=1e-6)
    quantized = {name: module(some_items().vectors[name])[0] for name, module in model.rq_vaes()}
    for modality, each in quantized.items():
        uniformity = layer_contrast(each.residuals, torch.arange(32), from_level=1, temperature=0.1)
        by_level = [parts[f"{modality}_contrast_{level}"].item() for level in (1, 2, 3)]
        assert by_level == pytest.approx(uniformity.tolist(), rel=1e-6)
    alignment = symmetric_info_nce(quantized["text"].latent, quantized["image"].latent, temperature=0.1)
    assert parts["alignment"].item() == pytest.approx(alignment.item(), rel=1e-6)
    assert losses_of(model, some_items(clusters=2)).total.item() == losses.total.item()


@pytest.mark.parametrize(("variant", "has_gradient"), [("as_intended", True), ("as_released", False)])
def test_the_contrast_after_the_first_level_trains_the_encoder_only_as_intended(
    variant: str, has_gradient: bool
) -> None:
    """As released, its gradient with respect to the first encoder weight is exactly zero."""
    model = small_model(variant=variant, contrast_from_level=1)
    parts = losses_of(model, some_items()).parts
    for modality, module in model.rq_vaes():
        for level in (1, 2, 3):
            (gradient,) = torch.autograd.grad(
                parts[f"{modality}_contrast_{level}"], module.projection.weight, retain_graph=True
            )
            assert (gradient.abs().sum().item() > 0) == (has_gradient or level == 1)
