"""The losses of the six tasks equal those computed by transformers' own T5.

The expected values are computed one sample at a time, in double precision and by plain loops.
"""

from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig, Task
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, ModelSpec
from macrec_pipeline.recommender.model.history_encoding import ItemCodes, Vocabulary
from macrec_pipeline.recommender.training.batching import training_windows
from macrec_pipeline.recommender.training.losses import alignment_losses, history_loss

NUM_LEVELS, CODEBOOK_SIZE, NUM_PROMPT_TOKENS = 3, 5, 2
SIZES = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
# The token of code 0 at the first level of each modality, and the prompt of each task.
FIRST_CODE = {"text": 1, "image": 16}
PROMPTS = {
    "text_to_text": [],
    "image_to_image": [],
    "text_to_image": [31, 32],
    "image_to_text": [33, 34],
    "text_id_to_image_id": [35, 36],
    "image_id_to_text_id": [37, 38],
}


def small_model(**settings: Any) -> GenerativeRecommender:
    config = RecommenderConfig.model_validate(SIZES | {"history_length": 4} | settings)
    vocabulary = Vocabulary(NUM_LEVELS, CODEBOOK_SIZE, NUM_PROMPT_TOKENS)
    spec = ModelSpec.from_settings(vars(config))
    return GenerativeRecommender(vocabulary, spec, torch.Generator().manual_seed(0)).double().eval()


def random_codes(num_items: int = 12) -> ItemCodes:
    generator = torch.Generator().manual_seed(1)
    return ItemCodes({m: torch.randint(5, (num_items, NUM_LEVELS), generator=generator) for m in ("text", "image")})


def id_tokens(items: ItemCodes, item: int, modality: str) -> list[int]:
    """Return the L tokens of an item, by the layout that `history_encoding` documents."""
    codes = items.codes[modality][item].tolist()
    return [FIRST_CODE[modality] + level * CODEBOOK_SIZE + code for level, code in enumerate(codes)]


def encode(model: GenerativeRecommender, tokens: list[int]) -> torch.Tensor:
    """Run transformers' own encoder on one sequence: [S, D]."""
    return model.t5.encoder(input_ids=torch.tensor([tokens])).last_hidden_state[0].detach()


def cross_entropy(
    model: GenerativeRecommender, items: ItemCodes, encoder_tokens: list[int], item: int, modality: str
) -> float:
    """Return the mean over the levels of the cross-entropy over each level's codes, by transformers' own logits."""
    tokens = id_tokens(items, item, modality)
    inputs = torch.tensor([[0, *tokens[:-1]]])
    logits = model.t5(input_ids=torch.tensor([encoder_tokens]), decoder_input_ids=inputs).logits[0]
    total = 0.0
    for level, token in enumerate(tokens):
        first = FIRST_CODE[modality] + level * CODEBOOK_SIZE
        scores = logits[level, first : first + CODEBOOK_SIZE].detach().numpy()
        total += np.log(np.exp(scores).sum()) - scores[token - first]
    return total / NUM_LEVELS


@pytest.mark.parametrize("task", ["text_to_text", "image_to_image", "text_to_image", "image_to_text"])
def test_a_history_task_reads_its_prompt_and_then_the_items(task: Task) -> None:
    """The encoder reads the prompt and the items' tokens in order; the target is an ID of the next item."""
    model, items = small_model(encoding="exact"), random_codes()
    history = np.array([3, 8, 1, 5])
    source, target = task.split("_to_")
    expected = 0.0
    for position in range(1, len(history)):
        encoder_tokens = [*PROMPTS[task]]
        for item in history[:position]:
            encoder_tokens += id_tokens(items, int(item), source)
        expected += cross_entropy(model, items, encoder_tokens, int(history[position]), target)
    windows = training_windows([history], model.spec)
    batch = windows.batch(np.arange(len(windows)), only_last=True)
    assert history_loss(model, items, batch, tasks=[task]).item() == pytest.approx(expected, rel=1e-9)


def test_label_smoothing_mixes_in_the_mean_over_all_codes() -> None:
    """The smoothed loss is (1 - s) * loss + s * the mean of -log p over the codes, which is the loss at s = 1."""
    model, items = small_model(encoding="exact"), random_codes()
    windows = training_windows([np.array([3, 8, 1, 5])], model.spec)
    batch = windows.batch(np.arange(len(windows)), only_last=True)

    def loss(label_smoothing: float) -> float:
        return history_loss(model, items, batch, tasks=["text_to_text"], label_smoothing=label_smoothing).item()

    assert loss(0.2) == pytest.approx(0.8 * loss(0.0) + 0.2 * loss(1.0), rel=1e-9)
    assert history_loss(model, items, batch, tasks=["text_to_text"]).item() == loss(0.0) != loss(0.2)


@pytest.mark.parametrize(("task", "source", "target"), [
    ("text_id_to_image_id", "text", "image"),
    ("image_id_to_text_id", "image", "text"),
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_an_alignment_task_pairs_each_item_with_its_own_other_id(
    task: Task, source: str, target: str, temperature: float
) -> None:
    """Explicit: write the same item's other ID. Implicit: contrast both IDs, each encoded alone, in both directions."""
    model, items = small_model(), random_codes()
    chosen = [7, 2, 9, 4]
    source_vectors, target_vectors, explicit = [], [], 0.0
    for item in chosen:
        encoder_tokens = [*PROMPTS[task], *id_tokens(items, item, source)]
        explicit += cross_entropy(model, items, encoder_tokens, item, target)
        source_vectors.append(encode(model, encoder_tokens)[NUM_PROMPT_TOKENS:].mean(dim=0))
        target_vectors.append(encode(model, id_tokens(items, item, target)).mean(dim=0))
    implicit = 0.0
    for anchors, others in ((source_vectors, target_vectors), (target_vectors, source_vectors)):
        for index, anchor in enumerate(anchors):
            scores = [float(anchor @ other / anchor.norm() / other.norm()) / temperature for other in others]
            implicit += (np.log(np.exp(scores).sum()) - scores[index]) / len(chosen) / 2
    losses = alignment_losses(model, items, torch.tensor(chosen), tasks=[task], implicit_temperature=temperature)
    assert losses[0].item() == pytest.approx(explicit, rel=1e-9)
    assert losses[1].item() == pytest.approx(implicit, rel=1e-9)


def test_implicit_alignment_is_left_out_without_a_temperature() -> None:
    """The explicit loss stays the same, and the implicit one is zero."""
    model, items, chosen = small_model(), random_codes(), torch.tensor([7, 2, 9, 4])
    tasks: list[Task] = ["text_id_to_image_id"]
    explicit, implicit = alignment_losses(model, items, chosen, tasks=tasks, implicit_temperature=None)
    assert implicit.item() == 0
    assert explicit.item() == alignment_losses(model, items, chosen, tasks=tasks, implicit_temperature=0.1)[0].item()


def test_a_wrong_pair_costs_more_once_the_right_one_was_learned() -> None:
    """A few steps on the implicit term alone align each item's two IDs, and not those of different items."""
    model, items = small_model(), random_codes()
    chosen = torch.arange(8)

    def implicit_loss(items: ItemCodes) -> torch.Tensor:
        return alignment_losses(model, items, chosen, tasks=["text_id_to_image_id"], implicit_temperature=0.1)[1]

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        implicit_loss(items).backward()
        optimizer.step()
    wrong_pairs = ItemCodes({"text": items.codes["text"], "image": items.codes["image"].clone()})
    wrong_pairs.codes["image"][:8] = items.codes["image"][:8].roll(1, dims=0)
    assert implicit_loss(items).item() < 0.5 * np.log(8) < np.log(8) < implicit_loss(wrong_pairs).item()


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
@pytest.mark.parametrize("tasks", [["text_to_text", "image_to_image"], ["image_to_text", "text_to_image"]])
def test_history_tasks_computed_together_equal_the_sum_of_each(encoding: str, tasks: list[Task]) -> None:
    """One pass over the rows of two tasks in one batch, as on a GPU, gives the same loss and gradients."""
    model, items = small_model(encoding=encoding), random_codes()
    windows = training_windows([np.array([3, 8, 1, 5]), np.array([2, 2, 6, 7]), np.array([9, 0, 4])], model.spec)
    only_last = encoding == "exact"
    chosen_of = [np.arange(len(windows)), np.arange(len(windows))[::-1].copy()]
    separately = sum(
        history_loss(model, items, windows.batch(chosen, only_last=only_last), tasks=[task])
        for task, chosen in zip(tasks, chosen_of, strict=True)
    )
    together = history_loss(model, items, windows.batch(np.concatenate(chosen_of), only_last=only_last), tasks=tasks)
    assert_equal_with_gradients(model, together, separately)


def test_alignment_tasks_computed_together_equal_the_sum_of_each() -> None:
    """The pairs of each task are contrasted only with each other, whatever else is in the batch."""
    model, items, chosen = small_model(), random_codes(), torch.tensor([7, 2, 9, 4])
    tasks: list[Task] = ["text_id_to_image_id", "image_id_to_text_id"]
    separately = [alignment_losses(model, items, chosen, tasks=[task], implicit_temperature=0.1) for task in tasks]
    together = alignment_losses(model, items, chosen, tasks=tasks, implicit_temperature=0.1)
    assert_equal_with_gradients(model, together[0], separately[0][0] + separately[1][0])
    assert_equal_with_gradients(model, together[1], separately[0][1] + separately[1][1])


def assert_equal_with_gradients(model: GenerativeRecommender, loss: torch.Tensor, expected: torch.Tensor) -> None:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients, expected_gradients = (
        torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        for value in (loss, expected)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)
