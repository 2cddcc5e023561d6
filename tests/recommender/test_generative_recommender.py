"""The model computes the numbers of transformers' own T5, and its masks hide what they should."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.model.generative_recommender import (
    CrossAttentionCache,
    GenerativeRecommender,
    ModelSpec,
    SelfAttentionCache,
)
from macrec_pipeline.recommender.model.history_encoding import HistoryBatch, ItemCodes, Vocabulary
from macrec_pipeline.recommender.training.batching import last_target_windows, training_windows
from macrec_pipeline.recommender.training.losses import history_loss

SMALL = {
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_heads": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "history_length": 3,
    "batch_size": 64,
}


def small_model(encoding: str = "item_causal", **settings: object) -> GenerativeRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"encoding": encoding} | settings)
    spec = ModelSpec.from_settings(vars(config))
    return GenerativeRecommender(Vocabulary(3, 5, 2), spec, torch.Generator().manual_seed(0)).eval()


def random_codes(num_items: int = 20) -> ItemCodes:
    generator = torch.Generator().manual_seed(1)
    return ItemCodes({m: torch.randint(5, (num_items, 3), generator=generator) for m in ("text", "image")})


def test_logits_equal_those_of_transformers() -> None:
    """The same tokens give the logits of T5ForConditionalGeneration, up to float noise."""
    model = small_model("exact")
    items = random_codes()
    history, target = torch.tensor([[3, 7, 11]]), torch.tensor([5])
    tokens = model.vocabulary.item_tokens(items.codes["text"][history], modality="text").flatten(1)
    inputs = model.decoder_inputs(items.codes["text"][target][:, None, :-1], modality="text")
    cross_cache = model.cross_attention_cache(model.encode(tokens))
    logits = model.code_logits(model.decode(inputs, cross_cache), modality="text")[0, 0]
    with torch.no_grad():
        expected = model.t5(input_ids=tokens, decoder_input_ids=inputs[:, 0]).logits[0]
    for level in range(3):
        first = model.vocabulary.first_code_token("text") + level * 5
        torch.testing.assert_close(logits[level], expected[level, first : first + 5], rtol=1e-5, atol=1e-5)


def test_targets_decoded_together_equal_targets_decoded_alone() -> None:
    """Several targets from one encoder pass have the states that they have one by one."""
    model, items = small_model("exact"), random_codes()
    tokens = model.vocabulary.item_tokens(items.codes["image"][torch.tensor([[1, 2]])], modality="image").flatten(1)
    cross_cache = model.cross_attention_cache(model.encode(tokens))
    inputs = model.decoder_inputs(items.codes["image"][torch.tensor([4, 9, 13]), :-1][None], modality="image")
    together = model.decode(inputs, cross_cache)
    for target in range(3):
        torch.testing.assert_close(
            together[:, target : target + 1], model.decode(inputs[:, target : target + 1], cross_cache)
        )


@torch.no_grad()
def test_decoding_position_by_position_equals_decoding_all_at_once() -> None:
    """The caches of earlier positions, reordered by target, give the states of the whole input."""
    model, items = small_model("exact"), random_codes()
    history = items.codes["image"][torch.tensor([[1, 2], [8, 3]])]
    cross_cache = model.cross_attention_cache(
        model.encode(model.vocabulary.item_tokens(history, modality="image").flatten(1)), torch.randn(2, 2, 1, 6)
    )
    inputs = model.decoder_inputs(items.codes["image"][torch.tensor([[4, 9, 13], [5, 6, 7]])], modality="image")
    self_caches: list[SelfAttentionCache] = []
    for length in range(1, 5):
        order = torch.randperm(3, generator=torch.Generator().manual_seed(length)).expand(2, -1)
        inputs = inputs.gather(1, order[..., None].expand_as(inputs))
        first_of_row = torch.tensor([[0], [3]])
        self_caches = [cache.select((order + first_of_row).flatten()) for cache in self_caches]
        rows = torch.arange(2).repeat_interleave(3)
        states, new_cache = model.decode_next(inputs[..., length - 1].flatten(), rows, cross_cache, self_caches)
        self_caches.append(new_cache)
        torch.testing.assert_close(states.view(2, 3, -1), model.decode(inputs[..., :length], cross_cache)[:, :, -1])


@torch.no_grad()
def test_rows_with_different_numbers_of_targets_are_decoded_together() -> None:
    """Three targets of the first history, none of the second and one of the third have their states in full tables."""
    model, items = small_model("exact"), random_codes()
    history = items.codes["image"][torch.tensor([[1, 2], [8, 3], [4, 4]])]
    cross_cache = model.cross_attention_cache(
        model.encode(model.vocabulary.item_tokens(history, modality="image").flatten(1))
    )
    inputs = model.decoder_inputs(items.codes["image"][torch.arange(9).view(3, 3)], modality="image")[..., :1]
    expected = model.decode(inputs, cross_cache)[:, :, 0]
    rows, columns = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 2, 0])
    states, _ = model.decode_next(inputs[rows, columns, 0], rows, cross_cache, [])
    torch.testing.assert_close(states, expected[rows, columns])


@torch.no_grad()
@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_padding_is_left_out_of_the_layers_without_effect(encoding: Literal["exact", "item_causal"]) -> None:
    """In a padded batch, every target sees the keys, values and bias of its history alone."""
    model, items = small_model(encoding).eval(), random_codes()
    lengths = [1, 4, 2]
    history = torch.zeros(3, 4, dtype=torch.int64)
    for row, length in enumerate(lengths):
        history[row, :length] = torch.arange(length) + 3 * row
    targets = torch.zeros(3, 1, dtype=torch.int64)

    def encoded(rows: torch.Tensor, lengths: list[int]) -> CrossAttentionCache:
        is_padded = rows.shape[1] > min(lengths)
        batch = HistoryBatch(
            rows, torch.tensor(lengths), targets[: len(rows)], targets[: len(rows)].bool(), 0, True, is_padded
        )
        return model.encode_histories(items, batch, tasks=["image_to_image"])

    together = encoded(history, lengths)
    for row, length in enumerate(lengths):
        alone, own = encoded(history[row : row + 1, :length], [length]), together.rows(slice(row, row + 1))
        inputs = model.decoder_inputs(items.codes["image"][torch.tensor([[5, 6]])], modality="image")
        torch.testing.assert_close(model.decode(inputs, own), model.decode(inputs, alone))


def test_an_item_causal_target_sees_neither_itself_nor_later_items() -> None:
    """Another item changes the prediction of no target before it, nor the state that predicts it."""
    model, items = small_model(), random_codes()
    history = np.arange(10)
    changed_history = history.copy()
    changed_history[6] = 15

    def predicting_states(history: np.ndarray) -> torch.Tensor:
        batch = training_windows([history], model.spec).batch(np.array([0]), only_last=False)
        cross_cache = model.encode_histories(items, batch, tasks=["text_to_text"])
        inputs = torch.zeros(1, 9, 1, dtype=torch.int64)
        return model.decode(inputs, cross_cache)[0, :, 0]  # the states that predict items 1 to 9

    states, changed = predicting_states(history), predicting_states(changed_history)
    torch.testing.assert_close(states[:6], changed[:6], rtol=0, atol=0)
    assert not torch.allclose(states[6], changed[6])


def test_an_item_causal_target_depends_only_on_its_receptive_field() -> None:
    """One pass over a whole window gives each target the loss that serving gives it from its last items alone."""
    model, items = small_model(), random_codes()
    history = np.random.default_rng(0).integers(0, 20, 19)
    windows = training_windows([history], model.spec)
    assert len(windows) == 1
    total = history_loss(model, items, windows.batch(np.array([0]), only_last=False), tasks=["text_to_text"])
    one_by_one = 0.0
    for end in range(2, 20):
        batch = last_target_windows([history[:end]], model.spec).batch(np.array([0]), only_last=True)
        one_by_one += history_loss(model, items, batch, tasks=["text_to_text"]).item()
    assert total.item() == pytest.approx(one_by_one, rel=1e-5)


def test_the_recency_bias_acts_by_distance() -> None:
    """Raised for the newest item's tokens, it directs all attention to them; a hidden token gets none."""
    model = small_model()
    # two targets that see prompts and two items of 3 tokens each
    lags = torch.tensor([[1, 5, 6, 7, 2, 3, 4], [1, 0, 0, 0, 5, 6, 7]])
    encoded, inputs = torch.randn(1, 7, 16), torch.zeros(1, 2, 1, dtype=torch.int64)
    assert model.recency is not None
    with torch.no_grad():
        model.recency.zero_()
        model.recency[2:5] = 100.0  # FIRST_ITEM_LAG and the two levels after it
        states = model.decode(inputs, model.cross_attention_cache(encoded, model.recency_bias(lags)))
        newest_item_only = model.decode(inputs[:, :1], model.cross_attention_cache(encoded[:, 4:]))
        without_first_item = model.decode(inputs[:, 1:], model.cross_attention_cache(encoded[:, [0, 4, 5, 6]]))
    torch.testing.assert_close(states[:, :1], newest_item_only)
    torch.testing.assert_close(states[:, 1:], without_first_item)


def test_the_order_of_a_history_reaches_an_item_causal_target() -> None:
    """With an encoder whose attention does nothing, swapping two items of the window still changes the prediction."""
    model, items = small_model(num_encoder_layers=1), random_codes()
    with torch.no_grad():
        model.t5.encoder.block[0].layer[0].SelfAttention.o.weight.zero_()

    def loss(history: list[int]) -> float:
        batch = last_target_windows([np.array(history)], model.spec).batch(np.array([0]), only_last=True)
        return history_loss(model, items, batch, tasks=["text_to_text"]).item()

    assert loss([3, 8, 5]) != pytest.approx(loss([8, 3, 5]), rel=1e-4)


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_padding_changes_nothing(encoding: str) -> None:
    """The loss of a short history is the same alone and in a batch with a long one."""
    model, items = small_model(encoding), random_codes()
    windows = last_target_windows([np.array([1, 2]), np.arange(12)], model.spec)

    def loss(*numbers: int) -> float:
        batch = windows.batch(np.array(numbers), only_last=True)
        return history_loss(model, items, batch, tasks=["image_to_image"]).item()

    assert loss(0, 1) == pytest.approx(loss(0) + loss(1), rel=1e-5)


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    """A saved model loads with every parameter, and its embedding stays tied."""
    model = small_model()
    loaded = GenerativeRecommender(Vocabulary(3, 5, 2), model.spec)
    model.save_weights(tmp_path / "model.safetensors")
    loaded.load_weights(tmp_path / "model.safetensors")
    for (name, value), loaded_value in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, loaded_value), name
    assert loaded.t5.encoder.embed_tokens.weight is loaded.t5.shared.weight


def test_weights_of_another_model_are_rejected(tmp_path: Path) -> None:
    """The error names the tensors that are missing."""
    small_model("exact").save_weights(tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match=r"another model: the tensors \['recency'\] are missing"):
        small_model("item_causal").load_weights(tmp_path / "model.safetensors")
