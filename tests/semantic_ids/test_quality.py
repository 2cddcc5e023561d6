"""The quality report: each figure against values worked out by hand, and what crosses a limit."""

import numpy as np
import pytest

from macrec_pipeline.config import IdentityConfig, LimitsConfig
from macrec_pipeline.semantic_ids import OwnedIds, breaches, quality, quality_report, resolve_given_ids
from macrec_pipeline.semantic_ids.assignment import AssignedIds, assign_semantic_ids
from macrec_pipeline.semantic_ids.diagnostics import gini
from macrec_pipeline.semantic_ids.quality import moved_share, neighbour_agreement, reconstruction_error
from tests.semantic_ids.two_modalities import CPU, fitted, tiny, two_modalities


def given(codes: list[list[int]]) -> AssignedIds:
    matrix = np.array(codes)
    return resolve_given_ids(matrix, matrix, codebook_size=4)


def owned(item_ids: str, codes: list[list[int]]) -> OwnedIds:
    matrix, moved = np.array(codes), np.zeros(len(codes), dtype=bool)
    return OwnedIds(list(item_ids), {"text": matrix, "image": matrix}, {"text": moved, "image": moved})


def test_gini_by_hand() -> None:
    """Even use is 0; all items on one of four codes 3/4; 3 and 1 differ by half of their sum, half of which is 1/4."""
    assert gini(np.array([[2, 2, 2, 2], [8, 0, 0, 0]])).tolist() == pytest.approx([0.0, 0.75])
    assert gini(np.array([[3, 1]])).tolist() == pytest.approx([0.25])


def test_moved_ids_are_found_by_item_not_by_row() -> None:
    """c and d are in both tables, on other rows; d has another ID now. a is gone, e new."""
    before = owned("acd", [[0, 0], [1, 1], [2, 2]])
    now = given([[2, 1], [1, 1], [3, 3]])  # d, c, e
    share = moved_share(now, ["d", "c", "e"], before)
    assert share == {"known_items": 2, "moved_share": 0.5, "text_moved_share": 0.5, "image_moved_share": 0.5}
    assert moved_share(now, ["x", "y", "z"], before) == {"known_items": 0}
    longer = given([[1, 1, 0], [2, 2, 0]])
    assert moved_share(longer, ["c", "d"], before)["moved_share"] == 1.0, "IDs of another length are other IDs"


def test_neighbours_that_share_codes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs of like vectors: one pair shares its first code, the other nothing; copies count as neighbours."""
    monkeypatch.setattr(quality, "NEIGHBOURS", 1)
    vectors = np.array([[1, 0.1], [1, 0.2], [0.1, -1], [0.2, -1]], dtype=np.float32)
    codes = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0], [2, 0, 0]])
    assert neighbour_agreement(vectors, codes) == [0.5, 0.0]
    same = np.ones((4, 2), dtype=np.float32)
    assert neighbour_agreement(same, np.array([[3, 0], [3, 1], [3, 2], [3, 3]])) == [1.0]
    assert neighbour_agreement(vectors[:1], codes[:1]) == []


def test_reconstruction_error_is_the_spread_that_the_codes_leave() -> None:
    """Residual k-means keeps what each level left over its items; IDs of other items say less than none."""
    text, image = two_modalities()
    quantizer = fitted(tiny(method="residual_k_means", codebook_size=8))
    ids = assign_semantic_ids(quantizer, text, image, device=CPU)
    standardized = (text - text.mean(axis=0)) / np.sqrt(np.square(text - text.mean(axis=0)).mean())
    books = quantizer.text.quantizer.codebooks.detach().numpy()
    said = sum(books[level][ids.text_codes[:, level]] for level in range(3))
    by_hand = float(np.square(standardized - said).mean())
    assert reconstruction_error(quantizer.text, text, ids.text_codes) == pytest.approx(by_hand, rel=1e-4)
    assert by_hand < 0.2
    assert reconstruction_error(quantizer.text, text, ids.text_codes[::-1].copy()) > 1


def test_the_report_is_plain_json_with_denominators() -> None:
    """Cold items are counted and shared; what is not known of given IDs is not in it."""
    text, image = two_modalities(4)
    ids = given([[0, 0], [0, 0], [1, 1], [2, 2]])
    cold = np.array([True, False, False, False])
    bare = quality_report(ids, item_ids=list("abcd"), is_cold=cold)
    assert (bare["num_items"], bare["cold_items"], bare["cold_share"]) == (4, 1, 0.25)
    assert bare["text"]["collision_rate_before"] == 0.25
    assert bare["text"]["codes_used"] == [3, 3]
    assert bare["worst"].keys() == {"collision_rate", "gini", "cold_share", "perplexity_share"}
    full = quality_report(
        ids,
        item_ids=list("abcd"),
        is_cold=cold,
        previous=owned("ab", [[0, 0], [3, 3]]),
        vectors={"text": text, "image": image},
        drift={"text": 0.1, "image": 0.3},
    )
    assert full["worst"]["moved_share"] == 0.5
    assert full["worst"]["drift_share"] == 0.3
    assert 0 <= full["worst"]["neighbour_agreement"] <= 1


def test_a_modality_that_the_catalogue_lacks_is_not_in_the_report() -> None:
    """Its figures are neither there nor worst; text IDs are compared with those before, whatever there was beside."""
    codes = np.array([[0, 0], [1, 1]])
    ids = resolve_given_ids(codes, None, codebook_size=4)
    report = quality_report(
        ids, item_ids=list("ab"), is_cold=np.zeros(2, dtype=bool), previous=owned("ab", [[0, 0], [3, 3]])
    )
    assert "image" not in report
    assert report["worst"]["perplexity_share"] == 0.5
    assert (report["moved_share"], report["text_moved_share"]) == (0.5, 0.5)
    pictures = quality_report(
        resolve_given_ids(None, codes, codebook_size=4),
        item_ids=list("ab"),
        is_cold=np.zeros(2, dtype=bool),
        previous=OwnedIds(list("ab"), {"text": codes}, {"text": np.zeros(2, dtype=bool)}),
    )
    assert pictures["moved_share"] == 1.0, "IDs of another modality are other IDs"


def test_limits_are_crossed_on_the_right_side_only() -> None:
    """A figure at its limit is within it; one that was not measured is not judged; block and warn are told apart."""
    limits = LimitsConfig.model_validate(
        {
            "max_collision_rate": {"value": 0.2},
            "max_gini": {"value": 0.5, "action": "block"},
            "min_perplexity_share": {"value": 0.6, "action": "block"},
            "max_moved_share": {"value": 0.0, "action": "block"},
        }
    )
    assert breaches({"collision_rate": 0.2, "gini": 0.5, "perplexity_share": 0.6}, limits) == []
    found = breaches({"collision_rate": 0.3, "gini": 0.4, "perplexity_share": 0.5}, limits)
    assert [each.blocks for each in found] == [False, True]
    assert found[0].message == "collision_rate is 0.3, above identity.limits.max_collision_rate = 0.2."
    assert found[1].message == "perplexity_share is 0.5, below identity.limits.min_perplexity_share = 0.6."


def test_every_limit_has_a_figure() -> None:
    """A limit that no figure answers would never be crossed."""
    text, image = two_modalities(100)
    quantizer = fitted(tiny(method="residual_k_means"))
    ids = assign_semantic_ids(quantizer, text, image, device=CPU)
    report = quality_report(
        ids,
        item_ids=[str(item) for item in range(100)],
        is_cold=np.zeros(100, dtype=bool),
        previous=owned("0", [[0, 0, 0]]),
        quantizer=quantizer,
        vectors={"text": text, "image": image},
        drift={"text": 0.0, "image": 0.0},
    )
    assert {name.partition("_")[2] for name in LimitsConfig.model_fields} == report["worst"].keys()


def test_auto_needs_a_limit() -> None:
    """Without one it would be append by another name."""
    with pytest.raises(ValueError, match="at least one of limits"):
        IdentityConfig(mode="auto")
    assert IdentityConfig.model_validate({"mode": "auto", "limits": {"max_gini": {"value": 0.5}}}).mode == "auto"
