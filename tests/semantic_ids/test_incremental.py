"""Append mode: who has an ID keeps it to the byte, nobody gets one that is taken or retired, and all of it repeats."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids import (
    AppendedIds,
    FittedQuantizer,
    OwnedIds,
    RetiredIds,
    append_semantic_ids,
    assign_semantic_ids,
    ids_of_new_items,
)
from macrec_pipeline.semantic_ids.assignment import resolve
from macrec_pipeline.semantic_ids.incremental import DAY_MS
from tests.semantic_ids.two_modalities import CPU, fitted, tiny, two_modalities

TODAY = 20_000 * DAY_MS
NUM_ITEMS = 100
TEXT, IMAGE = two_modalities()
NAMES = [f"p{item:03d}" for item in np.random.default_rng(3).permutation(NUM_ITEMS)]


@pytest.fixture(scope="module")
def quantizer() -> FittedQuantizer:
    return fitted(tiny(method="residual_k_means", codebook_size=6))


def nobody(num_levels: int = 3) -> RetiredIds:
    codes, moved = np.zeros((0, num_levels), dtype=np.int64), np.zeros(0, dtype=bool)
    return RetiredIds(OwnedIds([], {"text": codes, "image": codes}, {"text": moved, "image": moved}), np.zeros(0, int))


def first_table(quantizer: FittedQuantizer, rows: np.ndarray) -> OwnedIds:
    """What a run over these items leaves, all of them new."""
    ids = assign_semantic_ids(quantizer, TEXT[rows], IMAGE[rows], device=CPU)
    return OwnedIds(
        [NAMES[row] for row in rows],
        {"text": ids.text_codes, "image": ids.image_codes},
        {"text": ids.text_moved, "image": ids.image_moved},
    )


def append(
    quantizer: FittedQuantizer,
    rows: np.ndarray,
    previous: OwnedIds,
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
        item_ids=[NAMES[row] for row in rows],
        previous=previous,
        retired=retired or nobody(),
        now=now,
        retire_for_days=retire_for_days,
        device=CPU,
    )


def as_owned(appended: AppendedIds, rows: np.ndarray) -> OwnedIds:
    ids = appended.assigned
    return OwnedIds(
        [NAMES[row] for row in rows],
        {"text": ids.text_codes, "image": ids.image_codes},
        {"text": ids.text_moved, "image": ids.image_moved},
    )


def by_item(owned: OwnedIds, modality: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(row) for name, row in zip(owned.item_ids, owned.codes[modality].tolist(), strict=True)}


def test_occupied_ids_are_passed_over_by_hand() -> None:
    """(0, 1) is another's: the nearer of two gets the nearest free code, the other what is left."""
    codebooks = torch.tensor([[[0.0], [100.0], [200.0], [300.0]], [[0.0], [10.0], [20.0], [30.0]]])
    last = torch.tensor([[14.0], [11.0]])
    occupied = np.array([[0, 1], [0, 2], [3, 3]])
    wanted = np.array([[0, 1], [0, 1]])
    found = resolve(wanted, torch.stack([last, last], dim=1), codebooks, modality="text", occupied=occupied)
    # both ask 2 (taken) after 1; then item 0 asks 0 (distance 14) and item 1 asks 0 (distance 11): the nearer gets it
    assert found.tolist() == [[0, 3], [0, 0]]


def test_a_prefix_full_of_others_is_left_for_the_next_one() -> None:
    """Both codes under prefix 0 are taken, and one under 1: the new item gets the last that is free."""
    codebooks = torch.tensor([[[0.0], [5.0]], [[0.0], [1.0]]])
    residuals = torch.tensor([[[0.2], [0.2]]])
    occupied = np.array([[0, 0], [0, 1], [1, 0]])
    found = resolve(np.array([[0, 0]]), residuals, codebooks, modality="text", occupied=occupied)
    assert found.tolist() == [[1, 1]]


def test_a_full_table_says_what_to_do() -> None:
    """Every ID is somebody's."""
    codebooks = torch.tensor([[[0.0], [5.0]], [[0.0], [1.0]]])
    occupied = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    with pytest.raises(SemanticIdError, match=r"1 of 1 items.*4 IDs are taken or retired.*identity\.mode=new"):
        resolve(np.array([[0, 0]]), torch.zeros(1, 2, 1), codebooks, modality="text", occupied=occupied)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ids_last_over_weeks_whatever_comes_and_goes(quantizer: FittedQuantizer, data: st.DataObject) -> None:
    """Three random catalogues: IDs stay their owners', are unique, and retired ones are nobody else's for 30 days."""
    weeks = data.draw(st.lists(st.sets(st.integers(0, NUM_ITEMS - 1), min_size=1), min_size=3, max_size=3))
    step = data.draw(st.integers(1, 25)) * DAY_MS
    rows = np.array(sorted(weeks[0]))
    table, retired = first_table(quantizer, rows), nobody()
    last_owner = {code: name for name, code in by_item(table, "text").items()}
    left: dict[str, int] = {}
    for week, members in enumerate(weeks[1:], start=1):
        now, rows = TODAY + week * step, np.array(sorted(members, key=lambda row: NAMES[row]))
        appended = append(quantizer, rows, table, retired=retired, now=now)
        again = append(quantizer, rows, table, retired=retired, now=now)
        np.testing.assert_array_equal(appended.assigned.text_codes, again.assigned.text_codes)
        new = as_owned(appended, rows)
        left |= {name: now for name in table.item_ids if name not in new.item_ids}
        for modality in ("text", "image"):
            before, after = by_item(table, modality), by_item(new, modality)
            assert len(set(after.values())) == len(after)
            assert all(after[name] == code for name, code in before.items() if name in after)
        for name, code in by_item(new, "text").items():
            owner = last_owner.get(code, name)
            assert owner == name or now - left[owner] >= 30 * DAY_MS
            last_owner[code] = name
        assert set(appended.retired.owned.item_ids).isdisjoint(new.item_ids)
        table, retired = new, appended.retired


def test_nothing_new_changes_nothing(quantizer: FittedQuantizer) -> None:
    """The same catalogue in another order: the same IDs, the same flags, no drift."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows)
    appended = append(quantizer, rows[::-1], table)
    np.testing.assert_array_equal(appended.assigned.text_codes[::-1], table.codes["text"])
    np.testing.assert_array_equal(appended.assigned.image_moved[::-1], table.moved["image"])
    assert table.moved["text"].any(), "else the flags say nothing"
    assert not appended.is_new.any()
    assert appended.drift == {"text": 0.0, "image": 0.0}
    assert appended.retired.owned.item_ids == []


def test_new_items_alone_get_what_the_next_run_gives_them(quantizer: FittedQuantizer) -> None:
    """With the IDs of the others taken, and nothing else known of the others."""
    old, new = np.arange(70), np.arange(70, NUM_ITEMS)
    table = first_table(quantizer, old)
    appended = append(quantizer, np.arange(NUM_ITEMS), table)
    found = ids_of_new_items(quantizer, TEXT[new], IMAGE[new], taken=table.codes, device=CPU)
    for modality, codes in appended.assigned.codes.items():
        np.testing.assert_array_equal(found[modality], codes[70:])
    assert appended.assigned.text_moved[70:].any(), "else nothing was taken"


def test_who_comes_back_in_time_gets_the_old_id_back(quantizer: FittedQuantizer) -> None:
    """Away for 29 days: the old ID. Away for 30: the row is gone, and the item is a new one."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows)
    without = append(quantizer, rows[1:], table)
    assert without.retired.owned.item_ids == [NAMES[0]]
    assert without.retired.retired_at.tolist() == [TODAY]
    rest = as_owned(without, rows[1:])
    for days, returned in ((29, 1), (30, 0)):
        back = append(quantizer, rows, rest, retired=without.retired, now=TODAY + days * DAY_MS)
        assert back.num_returned == returned
        assert bool(back.is_new[0]) == (not returned)
        assert not back.is_new[1:].any()
        assert back.retired.owned.item_ids == []
    kept = append(quantizer, rows[1:], rest, retired=without.retired, now=TODAY + 29 * DAY_MS)
    assert kept.retired.retired_at.tolist() == [TODAY], "the day that it left, not the last that it was looked for"


def test_a_changed_embedding_is_drift_and_keeps_its_id(quantizer: FittedQuantizer) -> None:
    """Ten of the items that have their nearest codes get another's text: their IDs stay, and the share says so."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows)
    own = np.flatnonzero(~table.moved["text"])
    changed = TEXT.copy()
    changed[own[:10]] = TEXT[own[10:20]] * -1
    appended = append(quantizer, rows, table, text=changed)
    np.testing.assert_array_equal(appended.assigned.text_codes, table.codes["text"])
    assert 0.5 < appended.drift["text"] * len(own) / 10 <= 1
    assert appended.drift["image"] == 0


def test_one_modality_alone_is_appended_to_as_beside_the_other(quantizer: FittedQuantizer) -> None:
    """Without pictures: the text IDs are those of the catalogue with them. Pictures that come later are refused."""
    rows = np.arange(NUM_ITEMS)
    table = first_table(quantizer, rows[1:])
    alone = replace(quantizer, image=None)
    texts = OwnedIds(table.item_ids, {"text": table.codes["text"]}, {"text": table.moved["text"]})
    common = {"item_ids": NAMES, "previous": texts, "now": TODAY, "retire_for_days": 30, "device": CPU}
    nothing = RetiredIds(texts.rows(rows[:0]), np.zeros(0, dtype=np.int64))
    appended = append_semantic_ids(alone, TEXT, None, retired=nothing, **common)  # type: ignore[arg-type]
    both = append(quantizer, rows, table).assigned
    assert appended.assigned.codes.keys() == appended.drift.keys() == {"text"}
    np.testing.assert_array_equal(appended.assigned.text_codes, both.text_codes)
    np.testing.assert_array_equal(appended.assigned.text_moved, both.text_moved)
    with pytest.raises(SemanticIdError, match=r"fitted to text, but the catalogue has text and image.*mode=new"):
        append_semantic_ids(alone, TEXT, IMAGE, retired=nothing, **common)  # type: ignore[arg-type]
