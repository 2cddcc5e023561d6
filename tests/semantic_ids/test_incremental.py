"""Append mode: IDs never change, no item gets an ID that is taken or retired, and the result is reproducible."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.runtime.time_units import DAY_MS
from macrec_pipeline.semantic_ids import (
    AppendedIds,
    AssignedIds,
    FittedQuantizer,
    IdsByItem,
    RetiredIds,
    append_semantic_ids,
    assign_semantic_ids,
    ids_of_new_items,
)
from tests.semantic_ids.two_modalities import CPU, fitted, tiny, two_modalities

TODAY = 20_000 * DAY_MS
NUM_ITEMS = 100
TEXT, IMAGE = two_modalities()
ITEM_IDS = [f"p{item:03d}" for item in np.random.default_rng(3).permutation(NUM_ITEMS)]


@pytest.fixture(scope="module")
def quantizer() -> FittedQuantizer:
    return fitted(tiny(method="residual_k_means", codebook_size=6))


def no_retired_ids(num_levels: int = 3) -> RetiredIds:
    codes, moved = np.zeros((0, num_levels), dtype=np.int64), np.zeros(0, dtype=bool)
    return RetiredIds(IdsByItem([], {"text": codes, "image": codes}, {"text": moved, "image": moved}), np.zeros(0, int))


def first_table(quantizer: FittedQuantizer, rows: np.ndarray) -> IdsByItem:
    """Return the ID table of a first run over the items of some rows."""
    return as_table(assign_semantic_ids(quantizer, TEXT[rows], IMAGE[rows], device=CPU), rows)


def as_table(ids: AssignedIds, rows: np.ndarray) -> IdsByItem:
    return IdsByItem([ITEM_IDS[row] for row in rows], ids.codes, ids.moved)


def append(
    quantizer: FittedQuantizer,
    rows: np.ndarray,
    previous: IdsByItem,
    *,
    retired: RetiredIds | None = None,
    now: int = TODAY,
    text: np.ndarray = TEXT,
    retire_for_days: int = 30,
) -> AppendedIds:
    return append_semantic_ids(
        quantizer,
        text[rows],
        IMAGE[rows],
        item_ids=[ITEM_IDS[row] for row in rows],
        previous=previous,
        retired=retired or no_retired_ids(),
        now=now,
        retire_for_days=retire_for_days,
        device=CPU,
    )


def id_of_item(table: IdsByItem, modality: str) -> dict[str, tuple[int, ...]]:
    return {item: tuple(row) for item, row in zip(table.item_ids, table.codes[modality].tolist(), strict=True)}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ids_are_stable_whatever_items_come_and_go(quantizer: FittedQuantizer, data: st.DataObject) -> None:
    """Over three random catalogues, IDs stay with their items, are unique, and stay reserved for 30 days."""
    weeks = data.draw(st.lists(st.sets(st.integers(0, NUM_ITEMS - 1), min_size=1), min_size=3, max_size=3))
    step = data.draw(st.integers(1, 25)) * DAY_MS
    rows = np.array(sorted(weeks[0]))
    table, retired = first_table(quantizer, rows), no_retired_ids()
    last_owner = {code: item for item, code in id_of_item(table, "text").items()}
    left_at: dict[str, int] = {}
    for week, members in enumerate(weeks[1:], start=1):
        now, rows = TODAY + week * step, np.array(sorted(members, key=lambda row: ITEM_IDS[row]))
        appended = append(quantizer, rows, table, retired=retired, now=now)
        repeated = append(quantizer, rows, table, retired=retired, now=now)
        np.testing.assert_array_equal(appended.assigned.text_codes, repeated.assigned.text_codes)
        new_table = as_table(appended.assigned, rows)
        left_at |= {item: now for item in table.item_ids if item not in new_table.item_ids}
        for modality in ("text", "image"):
            before, after = id_of_item(table, modality), id_of_item(new_table, modality)
            assert len(set(after.values())) == len(after)
            assert all(after[item] == code for item, code in before.items() if item in after)
        for item, code in id_of_item(new_table, "text").items():
            owner = last_owner.get(code, item)
            assert owner == item or now - left_at[owner] >= 30 * DAY_MS
            last_owner[code] = item
        assert set(appended.retired.ids.item_ids).isdisjoint(new_table.item_ids)
        table, retired = new_table, appended.retired


def test_an_unchanged_catalogue_keeps_everything(quantizer: FittedQuantizer) -> None:
    """The same catalogue in another order has the same IDs and flags, and no drift."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows)
    appended = append(quantizer, rows[::-1], table)
    np.testing.assert_array_equal(appended.assigned.text_codes[::-1], table.codes["text"])
    np.testing.assert_array_equal(appended.assigned.image_moved[::-1], table.moved["image"])
    assert table.moved["text"].any(), "the comparison of the flags needs some that are set"
    assert not appended.is_new.any()
    assert appended.drift == {"text": 0.0, "image": 0.0}
    assert appended.retired.ids.item_ids == []


def test_ids_of_new_items_are_those_that_the_next_run_assigns(quantizer: FittedQuantizer) -> None:
    """The codes that other items have are all that `ids_of_new_items` needs to know about them."""
    old, new = np.arange(70), np.arange(70, NUM_ITEMS)
    table = first_table(quantizer, old)
    appended = append(quantizer, np.arange(NUM_ITEMS), table)
    predicted = ids_of_new_items(quantizer, TEXT[new], IMAGE[new], taken=table.codes, device=CPU)
    for modality, codes in appended.assigned.codes.items():
        np.testing.assert_array_equal(predicted[modality], codes[70:])
    assert appended.assigned.text_moved[70:].any(), "some of the new items must meet an ID that is taken"


def test_an_item_that_returns_in_time_gets_its_id_back(quantizer: FittedQuantizer) -> None:
    """After 29 days an item gets its old ID. After 30 days the retired ID is dropped, and the item counts as new."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows)
    without = append(quantizer, rows[1:], table)
    assert without.retired.ids.item_ids == [ITEM_IDS[0]]
    assert without.retired.retired_at.tolist() == [TODAY]
    others = as_table(without.assigned, rows[1:])
    for days, num_returned in ((29, 1), (30, 0)):
        returned = append(quantizer, rows, others, retired=without.retired, now=TODAY + days * DAY_MS)
        assert returned.num_returned == num_returned
        assert bool(returned.is_new[0]) == (not num_returned)
        assert not returned.is_new[1:].any()
        assert returned.retired.ids.item_ids == []
    still_away = append(quantizer, rows[1:], others, retired=without.retired, now=TODAY + 29 * DAY_MS)
    assert still_away.retired.retired_at.tolist() == [TODAY], "a later run must not change the date"


def test_a_changed_embedding_counts_as_drift_and_keeps_its_id(quantizer: FittedQuantizer) -> None:
    """Ten items whose ID is their nearest codes get other texts: they keep their IDs and count in the drift share."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows)
    unmoved = np.flatnonzero(~table.moved["text"])
    changed = TEXT.copy()
    changed[unmoved[:10]] = TEXT[unmoved[10:20]] * -1
    appended = append(quantizer, rows, table, text=changed)
    np.testing.assert_array_equal(appended.assigned.text_codes, table.codes["text"])
    assert 0.5 < appended.drift["text"] * len(unmoved) / 10 <= 1
    assert appended.drift["image"] == 0


def test_a_single_modality_gets_the_ids_that_it_has_beside_the_other(quantizer: FittedQuantizer) -> None:
    """A catalogue without images has the text IDs of the one with images; images that come later are an error."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows[1:])
    text_quantizer = replace(quantizer, image=None)
    texts = IdsByItem(table.item_ids, {"text": table.codes["text"]}, {"text": table.moved["text"]})
    common = {"item_ids": ITEM_IDS, "previous": texts, "now": TODAY, "retire_for_days": 30, "device": CPU}
    nothing = RetiredIds(texts.select(rows[:0]), np.zeros(0, dtype=np.int64))
    appended = append_semantic_ids(text_quantizer, TEXT, None, retired=nothing, **common)  # type: ignore[arg-type]
    both = append(quantizer, rows, table).assigned
    assert appended.assigned.codes.keys() == appended.drift.keys() == {"text"}
    np.testing.assert_array_equal(appended.assigned.text_codes, both.text_codes)
    np.testing.assert_array_equal(appended.assigned.text_moved, both.text_moved)
    with pytest.raises(SemanticIdError, match=r"fitted to text, but the catalogue has text and image.*mode=new"):
        append_semantic_ids(text_quantizer, TEXT, IMAGE, retired=nothing, **common)  # type: ignore[arg-type]
