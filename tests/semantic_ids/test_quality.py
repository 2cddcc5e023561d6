"""The quality report: its figures compared with values worked out by hand, and violations of limits."""

import numpy as np
import pytest

from macrec_pipeline.config import IdentityConfig, LimitsConfig
from macrec_pipeline.semantic_ids import IdsByItem, limit_violations, quality, quality_report, resolve_given_ids
from macrec_pipeline.semantic_ids.assignment import AssignedIds, assign_semantic_ids
from macrec_pipeline.semantic_ids.quality import changes_since, neighbour_agreement, reconstruction_error
from tests.semantic_ids.two_modalities import CPU, fitted, tiny, two_modalities


def assigned_ids(codes: list[list[int]]) -> AssignedIds:
    matrix = np.array(codes)
    return resolve_given_ids(matrix, matrix, codebook_size=4)


def ids_by_item(item_ids: str, codes: list[list[int]]) -> IdsByItem:
    matrix, moved = np.array(codes), np.zeros(len(codes), dtype=bool)
    return IdsByItem(list(item_ids), {"text": matrix, "image": matrix}, {"text": moved, "image": moved})


def test_changed_ids_are_found_by_item_and_not_by_row() -> None:
    """Items c and d are in both tables, in other rows, and d has another ID now; a has left, and e is new."""
    before = ids_by_item("acd", [[0, 0], [1, 1], [2, 2]])
    now = assigned_ids([[2, 1], [1, 1], [3, 3]])  # d, c, e
    changes = changes_since(before, now, ["d", "c", "e"])
    assert changes == {"known_items": 2, "moved_share": 0.5, "text_moved_share": 0.5, "image_moved_share": 0.5}
    assert changes_since(before, now, ["x", "y", "z"]) == {"known_items": 0}
    longer = assigned_ids([[1, 1, 0], [2, 2, 0]])
    assert changes_since(before, longer, ["c", "d"])["moved_share"] == 1.0, "IDs of another length differ"


def test_neighbour_agreement_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two pairs of similar vectors, one shares its first code, the other none; copies count as neighbours."""
    monkeypatch.setattr(quality, "NUM_NEIGHBOURS", 1)
    vectors = np.array([[1, 0.1], [1, 0.2], [0.1, -1], [0.2, -1]], dtype=np.float32)
    codes = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0], [2, 0, 0]])
    assert neighbour_agreement(vectors, codes) == [0.5, 0.0]
    copies = np.ones((4, 2), dtype=np.float32)
    assert neighbour_agreement(copies, np.array([[3, 0], [3, 1], [3, 2], [3, 3]])) == [1.0]
    assert neighbour_agreement(vectors[:1], codes[:1]) == []


def test_reconstruction_error_by_hand() -> None:
    """For residual k-means, the IDs decode to a sum of code vectors; the IDs of other items are worse than none."""
    text, image = two_modalities()
    quantizer = fitted(tiny(method="residual_k_means", codebook_size=8))
    ids = assign_semantic_ids(quantizer, text, image, device=CPU)
    standardized = (text - text.mean(axis=0)) / np.sqrt(np.square(text - text.mean(axis=0)).mean())
    codebooks = quantizer.text.quantizer.codebooks.detach().numpy()
    decoded = sum(codebooks[level][ids.text_codes[:, level]] for level in range(3))
    by_hand = float(np.square(standardized - decoded).mean())
    assert reconstruction_error(quantizer.text, text, ids.text_codes) == pytest.approx(by_hand, rel=1e-4)
    assert by_hand < 0.2
    assert reconstruction_error(quantizer.text, text, ids.text_codes[::-1].copy()) > 1


def test_the_report_has_only_the_figures_that_can_be_computed() -> None:
    """IDs without embeddings have no figures about embeddings; cold items are given as a count and a share."""
    text, image = two_modalities(4)
    ids = assigned_ids([[0, 0], [0, 0], [1, 1], [2, 2]])
    cold = np.array([True, False, False, False])
    minimal = quality_report(ids, item_ids=list("abcd"), is_cold=cold)
    assert (minimal["num_items"], minimal["cold_items"], minimal["cold_share"]) == (4, 1, 0.25)
    assert minimal["text"]["collision_rate_before"] == 0.25
    assert minimal["text"]["codes_used"] == [3, 3]
    assert minimal["worst"].keys() == {"collision_rate", "gini", "cold_share", "perplexity_share"}
    full = quality_report(
        ids,
        item_ids=list("abcd"),
        is_cold=cold,
        previous=ids_by_item("ab", [[0, 0], [3, 3]]),
        vectors={"text": text, "image": image},
        drift={"text": 0.1, "image": 0.3},
    )
    assert full["worst"]["moved_share"] == 0.5
    assert full["worst"]["drift_share"] == 0.3
    assert 0 <= full["worst"]["neighbour_agreement"] <= 1


def test_the_report_leaves_out_a_modality_that_the_catalogue_lacks() -> None:
    """The worst figures ignore it too, and text IDs are compared even if the previous table also had image IDs."""
    codes = np.array([[0, 0], [1, 1]])
    ids = resolve_given_ids(codes, None, codebook_size=4)
    report = quality_report(
        ids, item_ids=list("ab"), is_cold=np.zeros(2, dtype=bool), previous=ids_by_item("ab", [[0, 0], [3, 3]])
    )
    assert "image" not in report
    assert report["worst"]["perplexity_share"] == 0.5
    assert (report["moved_share"], report["text_moved_share"]) == (0.5, 0.5)
    images_only = quality_report(
        resolve_given_ids(None, codes, codebook_size=4),
        item_ids=list("ab"),
        is_cold=np.zeros(2, dtype=bool),
        previous=IdsByItem(list("ab"), {"text": codes}, {"text": np.zeros(2, dtype=bool)}),
    )
    assert images_only["moved_share"] == 1.0, "IDs of another modality differ"


def test_limits_are_violated_on_the_right_side_only() -> None:
    """A figure equal to its limit is allowed, one that was not computed is skipped, and block differs from warn."""
    limits = LimitsConfig.model_validate(
        {
            "max_collision_rate": {"value": 0.2},
            "max_gini": {"value": 0.5, "action": "block"},
            "min_perplexity_share": {"value": 0.6, "action": "block"},
            "max_moved_share": {"value": 0.0, "action": "block"},
        }
    )
    assert limit_violations({"collision_rate": 0.2, "gini": 0.5, "perplexity_share": 0.6}, limits) == []
    violations = limit_violations({"collision_rate": 0.3, "gini": 0.4, "perplexity_share": 0.5}, limits)
    assert [violation.blocks for violation in violations] == [False, True]
    assert [violation.message for violation in violations] == [
        "collision_rate is 0.3, above the limit identity.limits.max_collision_rate = 0.2.",
        "perplexity_share is 0.5, below the limit identity.limits.min_perplexity_share = 0.6.",
    ]


def test_every_limit_has_a_figure() -> None:
    """A limit on a figure that is never computed could not be violated."""
    text, image = two_modalities(100)
    quantizer = fitted(tiny(method="residual_k_means"))
    ids = assign_semantic_ids(quantizer, text, image, device=CPU)
    report = quality_report(
        ids,
        item_ids=[str(item) for item in range(100)],
        is_cold=np.zeros(100, dtype=bool),
        previous=ids_by_item("0", [[0, 0, 0]]),
        quantizer=quantizer,
        vectors={"text": text, "image": image},
        drift={"text": 0.0, "image": 0.0},
    )
    assert {name.partition("_")[2] for name in LimitsConfig.model_fields} == report["worst"].keys()


def test_auto_needs_a_limit() -> None:
    """Without a limit, auto would be the same as append."""
    with pytest.raises(ValueError, match="at least one limit"):
        IdentityConfig(mode="auto")
    assert IdentityConfig.model_validate({"mode": "auto", "limits": {"max_gini": {"value": 0.5}}}).mode == "auto"
