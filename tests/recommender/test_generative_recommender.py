"""The hand-walked T5 gives transformers' own numbers, and its masks keep what they promise."""

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, SelfAttentionCache
from macrec_pipeline.recommender.model.vocabulary import Vocabulary
from macrec_pipeline.recommender.training.batching import batch_of, last_target_rows, training_rows
from macrec_pipeline.recommender.training.losses import ItemCodes, encode_histories, history_loss
from macrec_pipeline.runtime.fast_dropout import ByteDropout

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


def small_model(encoding: str = "item_causal", **changes: object) -> GenerativeRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"encoding": encoding} | changes)
    return GenerativeRecommender(Vocabulary(3, 5, 2), config, torch.Generator().manual_seed(0)).eval()


def some_codes(num_items: int = 20) -> ItemCodes:
    generator = torch.Generator().manual_seed(1)
    return ItemCodes({m: torch.randint(5, (num_items, 3), generator=generator) for m in ("text", "image")})


def test_the_walked_layers_give_the_numbers_of_transformers() -> None:
    """Logits equal those of T5ForConditionalGeneration on the same tokens, to float noise."""
    model = small_model("exact")
    codes = some_codes()
    history, target = torch.tensor([[3, 7, 11]]), torch.tensor([5])
    tokens = model.vocabulary.item_tokens(codes.codes["text"][history], modality="text").flatten(1)
    inputs = model.decoder_inputs(codes.codes["text"][target][:, None, :-1], modality="text")
    memory = model.cross_attention_cache(model.encode(tokens))
    ours = model.code_logits(model.decode(inputs, memory), modality="text")[0, 0]
    with torch.no_grad():
        theirs = model.t5(input_ids=tokens, decoder_input_ids=inputs[:, 0]).logits[0]
    for level in range(3):
        first = model.vocabulary.first_code_token("text") + level * 5
        torch.testing.assert_close(ours[level], theirs[level, first : first + 5], rtol=1e-5, atol=1e-5)


def test_packed_targets_give_what_each_gives_alone() -> None:
    """Decoding several targets from one encoder pass is decoding them one by one."""
    model, codes = small_model("exact"), some_codes()
    tokens = model.vocabulary.item_tokens(codes.codes["image"][torch.tensor([[1, 2]])], modality="image").flatten(1)
    memory = model.cross_attention_cache(model.encode(tokens))
    inputs = model.decoder_inputs(codes.codes["image"][torch.tensor([4, 9, 13]), :-1][None], modality="image")
    together = model.decode(inputs, memory)
    for target in range(3):
        torch.testing.assert_close(
            together[:, target : target + 1], model.decode(inputs[:, target : target + 1], memory)
        )


@torch.no_grad()
def test_decoding_one_position_after_the_other_is_decoding_all() -> None:
    """What the layers kept of the positions before, picked by target, gives the states of the whole input."""
    model, codes = small_model("exact"), some_codes()
    history = codes.codes["image"][torch.tensor([[1, 2], [8, 3]])]
    memory = model.cross_attention_cache(
        model.encode(model.vocabulary.item_tokens(history, modality="image").flatten(1)), torch.randn(2, 2, 1, 6)
    )
    inputs = model.decoder_inputs(codes.codes["image"][torch.tensor([[4, 9, 13], [5, 6, 7]])], modality="image")
    past: list[SelfAttentionCache] = []
    for length in range(1, 5):
        order = torch.randperm(3, generator=torch.Generator().manual_seed(length)).expand(2, -1)
        inputs = inputs.gather(1, order[..., None].expand_as(inputs))
        past = [position.of(order) for position in past]
        states, position = model.decode_next(inputs[..., length - 1], memory, past)
        past.append(position)
        torch.testing.assert_close(states, model.decode(inputs[..., :length], memory)[:, :, -1])


def test_an_item_causal_target_never_sees_itself_or_what_follows() -> None:
    """Changing an item changes no loss of a target before it, nor of the item's own prediction inputs."""
    model, codes = small_model(), some_codes()
    history = np.arange(10)
    changed = history.copy()
    changed[6] = 15

    def losses(items: np.ndarray) -> torch.Tensor:
        rows = training_rows([items], model.config)
        batch = batch_of(rows, np.array([0]), only_last=False)
        memory = encode_histories(model, codes, batch, tasks=["text_to_text"])
        inputs = torch.zeros(1, 9, 1, dtype=torch.int64)
        return model.decode(inputs, memory)[0, :, 0]  # the state that predicts items 1 .. 9

    before, after = losses(history), losses(changed)
    torch.testing.assert_close(before[:6], after[:6], rtol=0, atol=0)
    assert not torch.allclose(before[6], after[6])


def test_an_item_causal_target_depends_on_its_receptive_field_alone() -> None:
    """One pass over a whole row gives each target what serving gives it from the last items only."""
    model, codes = small_model(), some_codes()
    history = np.random.default_rng(0).integers(0, 20, 19)
    rows = training_rows([history], model.config)
    assert len(rows) == 1
    batch = batch_of(rows, np.array([0]), only_last=False)
    total = history_loss(model, codes, batch, tasks=["text_to_text"])
    alone = 0.0
    for end in range(2, 20):
        last = last_target_rows([history[:end]], model.config)
        one = batch_of(last, np.array([0]), only_last=True)
        alone += history_loss(model, codes, one, tasks=["text_to_text"]).item()
    assert total.item() == pytest.approx(alone, rel=1e-5)


def test_the_recency_bias_acts_by_distance() -> None:
    """Raised for the most recent item's tokens, attention goes to them alone; a hidden token gets none."""
    model = small_model()
    lags = torch.tensor(
        [[1, 5, 6, 7, 2, 3, 4], [1, 0, 0, 0, 5, 6, 7]]
    )  # two targets, prompts and two items of 3 tokens
    encoded, inputs = torch.randn(1, 7, 16), torch.zeros(1, 2, 1, dtype=torch.int64)
    assert model.recency is not None
    with torch.no_grad():
        model.recency.zero_()
        model.recency[2:5] = 100.0  # FIRST_ITEM_LAG and the two levels after it
        states = model.decode(inputs, model.cross_attention_cache(encoded, model.recency_bias(lags)))
        only = model.decode(inputs[:, :1], model.cross_attention_cache(encoded[:, 4:]))
        without_first_item = model.decode(inputs[:, 1:], model.cross_attention_cache(encoded[:, [0, 4, 5, 6]]))
    torch.testing.assert_close(states[:, :1], only)
    torch.testing.assert_close(states[:, 1:], without_first_item)


def test_the_order_of_a_history_reaches_an_item_causal_target() -> None:
    """With an encoder that changes nothing, swapping two items in the window still changes the prediction."""
    model, codes = small_model(num_encoder_layers=1), some_codes()
    with torch.no_grad():
        model.t5.encoder.block[0].layer[0].SelfAttention.o.weight.zero_()

    def loss(items: list[int]) -> float:
        rows = last_target_rows([np.array(items)], model.config)
        return history_loss(model, codes, batch_of(rows, np.array([0]), only_last=True), tasks=["text_to_text"]).item()

    assert loss([3, 8, 5]) != pytest.approx(loss([8, 3, 5]), rel=1e-4)


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_padding_changes_nothing(encoding: str) -> None:
    """A short history's loss is the same alone and beside a long one."""
    model, codes = small_model(encoding), some_codes()
    rows = last_target_rows([np.array([1, 2]), np.arange(12)], model.config)
    together = history_loss(model, codes, batch_of(rows, np.array([0, 1]), only_last=True), tasks=["image_to_image"])
    alone = sum(
        history_loss(model, codes, batch_of(rows, np.array([row]), only_last=True), tasks=["image_to_image"]).item()
        for row in (0, 1)
    )
    assert together.item() == pytest.approx(alone, rel=1e-5)


def test_weights_survive_a_round_trip(tmp_path) -> None:
    """A saved model loads with every parameter, the tied embedding included."""
    model, other = small_model(), GenerativeRecommender(Vocabulary(3, 5, 2), small_model().config)
    model.save_weights(tmp_path / "model.safetensors")
    other.load_weights(tmp_path / "model.safetensors")
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert other.t5.encoder.embed_tokens.weight is other.t5.shared.weight


def test_dropout_drops_its_share_and_keeps_the_expectation() -> None:
    """A rate of 0.1 drops 26 of 256 elements and scales the rest so that the mean stays."""
    dropout = ByteDropout(0.1, torch.Generator().manual_seed(0)).train()
    dropped = dropout(torch.ones(1000, 1001))
    assert (dropped == 0).float().mean().item() == pytest.approx(26 / 256, abs=1e-3)
    assert dropped.mean().item() == pytest.approx(1.0, abs=2e-3)
    assert dropout.eval()(torch.ones(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_scales_exactly_in_any_precision(dtype: torch.dtype) -> None:
    """What survives is not a third of a percent too small on average, as by a scale that was rounded to bfloat16."""
    states = torch.rand(500, 500, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    dropped = ByteDropout(0.1, torch.Generator().manual_seed(0)).train()(states)
    (dropped * states.detach()).sum().backward()
    kept = dropped != 0
    for scaled in (dropped, states.grad):
        assert scaled is not None
        assert (scaled[kept].double().sum() / states[kept].double().sum()).item() == pytest.approx(256 / 230, rel=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_after_relu_is_both_in_turn(dtype: torch.dtype) -> None:
    """The same numbers and the same gradients as of one after the other, for the same draw."""
    states = torch.randn(33, 7, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = torch.randn(33, 7, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = []
    for way in (ByteDropout.after_relu, lambda dropout, values: dropout(torch.relu(values))):
        leaf = states.clone().requires_grad_()
        dropped = way(ByteDropout(0.3, torch.Generator().manual_seed(0)).train(), leaf * 1)
        (dropped * weights).sum().backward()
        found.append((dropped.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert ByteDropout(0.3).eval().after_relu(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
