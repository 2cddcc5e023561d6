"""The loss of the six tasks: what the encoder reads, what each ID -> ID sample is paired with, and what it costs.

Every figure is made anew by transformers' own T5, one sample at a time, in double precision and plain loops.
"""

from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig, Task
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
from macrec_pipeline.recommender.model.vocabulary import Vocabulary
from macrec_pipeline.recommender.training.batching import batch_of, training_rows
from macrec_pipeline.recommender.training.losses import ItemCodes, alignment_losses, history_loss

NUM_LEVELS, CODEBOOK_SIZE, NUM_PROMPT_TOKENS = 3, 5, 2
SIZES = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
# the token of code 0 at the first level, and the task's prompt, written out
FIRST_CODE = {"text": 1, "image": 16}
PROMPTS = {
    "text_to_text": [],
    "image_to_image": [],
    "text_to_image": [31, 32],
    "image_to_text": [33, 34],
    "text_id_to_image_id": [35, 36],
    "image_id_to_text_id": [37, 38],
}


def a_model(**changes: Any) -> GenerativeRecommender:
    config = RecommenderConfig.model_validate(SIZES | {"history_length": 4} | changes)
    vocabulary = Vocabulary(NUM_LEVELS, CODEBOOK_SIZE, NUM_PROMPT_TOKENS)
    return GenerativeRecommender(vocabulary, config, torch.Generator().manual_seed(0)).double().eval()


def some_items(num_items: int = 12) -> ItemCodes:
    generator = torch.Generator().manual_seed(1)
    return ItemCodes({m: torch.randint(5, (num_items, NUM_LEVELS), generator=generator) for m in ("text", "image")})


def id_tokens(items: ItemCodes, item: int, modality: str) -> list[int]:
    """The L tokens of an item, from the layout that the vocabulary's docstring promises."""
    codes = items.codes[modality][item].tolist()
    return [FIRST_CODE[modality] + level * CODEBOOK_SIZE + code for level, code in enumerate(codes)]


def encoded(model: GenerativeRecommender, tokens: list[int]) -> torch.Tensor:
    """transformers' own encoder on one sequence: [S, D]."""
    return model.t5.encoder(input_ids=torch.tensor([tokens])).last_hidden_state[0].detach()


def cost(model: GenerativeRecommender, items: ItemCodes, read: list[int], item: int, modality: str) -> float:
    """Mean over the levels of the cross-entropy over the level's codes, from transformers' own logits."""
    written = id_tokens(items, item, modality)
    logits = model.t5(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([[0, *written[:-1]]])).logits[0]
    total = 0.0
    for level, token in enumerate(written):
        first = FIRST_CODE[modality] + level * CODEBOOK_SIZE
        scores = logits[level, first : first + CODEBOOK_SIZE].detach().numpy()
        total += np.log(np.exp(scores).sum()) - scores[token - first]
    return total / NUM_LEVELS


@pytest.mark.parametrize("task", ["text_to_text", "image_to_image", "text_to_image", "image_to_text"])
def test_a_history_task_reads_its_prompt_and_then_the_items(task: str) -> None:
    """As published: prompt, then the tokens of the items in order, and the target's ID of the modality to write."""
    model, items = a_model(encoding="exact"), some_items()
    history = np.array([3, 8, 1, 5])
    rows = training_rows([history], model.config)
    source, target = task.split("_to_")
    expected = 0.0
    for place in range(1, len(history)):
        read = [*PROMPTS[task]]
        for item in history[:place]:
            read += id_tokens(items, int(item), source)
        expected += cost(model, items, read, int(history[place]), target)
    batch = batch_of(rows, np.arange(len(rows)), only_last=True)
    assert history_loss(model, items, batch, tasks=[task]).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("task", "source", "target"), [
    ("text_id_to_image_id", "text", "image"),
    ("image_id_to_text_id", "image", "text"),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_an_alignment_sample_is_paired_with_its_own_other_id(
    task: str, source: str, target: str, temperature: float
) -> None:
    """Explicit: write the same item's other ID. Implicit: both IDs, each encoded alone, in the batch, both ways."""
    model, items = a_model(implicit_temperature=temperature), some_items()
    chosen = [7, 2, 9, 4]
    own, other, explicit = [], [], 0.0
    for item in chosen:
        read = [*PROMPTS[task], *id_tokens(items, item, source)]
        explicit += cost(model, items, read, item, target)
        own.append(encoded(model, read)[NUM_PROMPT_TOKENS:].mean(dim=0))
        other.append(encoded(model, id_tokens(items, item, target)).mean(dim=0))
    implicit = 0.0
    for ones, others in ((own, other), (other, own)):
        for place, one in enumerate(ones):
            scores = [float(one @ each / one.norm() / each.norm()) / temperature for each in others]
            implicit += (np.log(np.exp(scores).sum()) - scores[place]) / len(chosen) / 2
    found = alignment_losses(model, items, torch.tensor(chosen), tasks=[task])
    assert found[0].item() == pytest.approx(explicit, rel=1e-9)
    assert found[1].item() == pytest.approx(implicit, rel=1e-9)


def test_the_wrong_partner_costs_more_once_the_right_one_was_learnt() -> None:
    """A few steps on the implicit term alone bring each item's two IDs together, and not those of different items."""
    model, items = a_model(), some_items()
    chosen = torch.arange(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        alignment_losses(model, items, chosen, tasks=["text_id_to_image_id"])[1].backward()
        optimizer.step()
    right = alignment_losses(model, items, chosen, tasks=["text_id_to_image_id"])[1].item()
    mixed = ItemCodes({"text": items.codes["text"], "image": items.codes["image"].clone()})
    mixed.codes["image"][:8] = items.codes["image"][:8].roll(1, dims=0)
    wrong = alignment_losses(model, mixed, chosen, tasks=["text_id_to_image_id"])[1].item()
    assert right < 0.5 * np.log(8) < np.log(8) < wrong


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
@pytest.mark.parametrize("tasks", [["text_to_text", "image_to_image"], ["image_to_text", "text_to_image"]])
def test_history_tasks_together_cost_what_they_cost_apart(encoding: str, tasks: list[Task]) -> None:
    """As a GPU does it: one pass over the rows of two tasks, in one batch. Loss and gradients are the same."""
    model, items = a_model(encoding=encoding), some_items()
    rows = training_rows([np.array([3, 8, 1, 5]), np.array([2, 2, 6, 7]), np.array([9, 0, 4])], model.config)
    only_last = encoding == "exact"
    own = [np.arange(len(rows)), np.arange(len(rows))[::-1].copy()]
    apart = sum(
        history_loss(model, items, batch_of(rows, chosen, only_last=only_last), tasks=[task])
        for task, chosen in zip(tasks, own, strict=True)
    )
    together = history_loss(model, items, batch_of(rows, np.concatenate(own), only_last=only_last), tasks=tasks)
    _same_with_gradients(model, together, apart)


def test_alignment_tasks_together_cost_what_they_cost_apart() -> None:
    """Each task's pairs are contrasted among themselves, whoever else is in the batch."""
    model, items, chosen = a_model(), some_items(), torch.tensor([7, 2, 9, 4])
    tasks: list[Task] = ["text_id_to_image_id", "image_id_to_text_id"]
    apart = [alignment_losses(model, items, chosen, tasks=[task]) for task in tasks]
    together = alignment_losses(model, items, chosen, tasks=tasks)
    _same_with_gradients(model, together[0], apart[0][0] + apart[1][0])
    _same_with_gradients(model, together[1], apart[0][1] + apart[1][1])


def _same_with_gradients(model: GenerativeRecommender, found: torch.Tensor, expected: torch.Tensor) -> None:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ours, theirs = (
        torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in (found, expected)
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
