"""The vocabulary gives every token one meaning, and the masks and lags of item-causal rows match those by hand."""

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.recommender.model.history_encoding import (
    PROMPTED_TASKS,
    Vocabulary,
    available_tasks,
    batches_by_length,
    item_causal_mask_and_lags,
    padding_mask,
)


def test_every_token_has_exactly_one_meaning() -> None:
    """Padding, the codes of both modalities and the prompts share no token and leave none unused."""
    vocabulary = Vocabulary(num_levels=2, codebook_size=3, num_prompt_tokens=4)
    codes = torch.arange(3)[:, None].expand(3, 2)
    tokens = [0]
    for modality in ("text", "image"):
        tokens += vocabulary.item_tokens(codes, modality=modality).flatten().tolist()
    for task in PROMPTED_TASKS:
        assert len(vocabulary.prompt(task)) == 4
        tokens += vocabulary.prompt(task).tolist()
    assert sorted(tokens) == list(range(vocabulary.size))
    assert vocabulary.prompt("text_to_text").tolist() == []


def test_encoder_tokens_are_the_prompt_and_then_the_items_in_order() -> None:
    """Two items of two levels, by hand: 1 + level * 3 + code for text, prompts from 13 on."""
    vocabulary = Vocabulary(num_levels=2, codebook_size=3, num_prompt_tokens=2)
    codes = torch.tensor([[[0, 1], [2, 2]]])
    assert vocabulary.encoder_tokens("text_to_image", codes, modality="text").tolist() == [[13, 14, 1, 5, 3, 6]]
    assert vocabulary.encoder_tokens("text_to_text", codes, modality="text").tolist() == [[1, 5, 3, 6]]


def test_tasks_of_a_missing_modality_are_left_out() -> None:
    """The remaining tasks keep their order; a catalogue for which no route would be trained is an error."""
    tasks = RecommenderConfig().tasks
    assert available_tasks(tasks, ["text", "image"]) == tasks
    assert available_tasks(tasks, ["image"]) == ("image_to_image",)
    with pytest.raises(ConfigError, match=r"the catalogue has only text IDs.* Add text_to_text"):
        available_tasks(("image_to_image", "text_to_image"), ["text"])


def test_item_causal_mask_and_lags_by_hand() -> None:
    """Two prompt tokens, three items of two tokens each, a window of two items."""
    mask, lags = item_causal_mask_and_lags(3, num_levels=2, num_prompts=2, history_length=2)
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1, 1, 1],
    ]
    assert lags.tolist() == [
        [1, 1, 2, 3, 0, 0, 0, 0],
        [1, 1, 4, 5, 2, 3, 0, 0],
        [1, 1, 0, 0, 4, 5, 2, 3],
    ]


def test_the_padding_mask_by_hand() -> None:
    """One prompt token, and histories of one and two items of two tokens each."""
    mask = padding_mask(torch.tensor([1, 2]), num_items=2, num_levels=2, num_prompts=1)
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_batches_by_length_contain_every_row_once_and_pad_little() -> None:
    """Batches are sorted by length and within their limits; beyond the small limit, at most a sixth is padding."""
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    batches = list(batches_by_length(lengths, batch_size=100, device=torch.device("cpu")))
    order = np.concatenate(batches)
    assert sorted(order) == list(range(500))
    assert (np.diff(lengths[order]) >= 0).all()
    for batch in batches:
        padded = len(batch) * lengths[batch].max()
        assert len(batch) <= 100
        assert padded <= max(1024, 1.2 * lengths[batch].sum())
