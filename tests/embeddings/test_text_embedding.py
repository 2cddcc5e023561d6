import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.config import TextEncoderConfig
from macrec_pipeline.embeddings import EmbeddingResult, embed_texts
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import quiet_progress

CONFIG = TextEncoderConfig()
TEXTS = [
    "An electric guitar with a maple neck and two humbucker pickups.",
    "Guitar strings, light gauge.",
    None,
    "A garden hose, twenty metres, with a spray nozzle that has seven patterns and a soft grip for long watering.",
    " \n\t",
    "Guitar strings, light gauge.",
    "Ukulele",
]


@pytest.fixture(scope="module")
def embedded() -> EmbeddingResult:
    return embed_texts(TEXTS, CONFIG, device=torch.device("cpu"), progress=quiet_progress)


def test_items_without_text_take_the_mean_of_the_others(embedded: EmbeddingResult) -> None:
    """None and white space are imputed and flagged; every other row is its own text's."""
    assert embedded.imputed.tolist() == [False, False, True, False, True, False, False]
    assert embedded.vectors.dtype == np.float32
    assert embedded.vectors.shape == (7, 384)
    mean = embedded.vectors[~embedded.imputed].mean(axis=0)
    np.testing.assert_allclose(embedded.vectors[embedded.imputed], np.tile(mean, (2, 1)), atol=1e-6)
    assert embedded.failures == ()


def test_vectors_are_in_the_order_of_the_texts_and_mean_what_they_say(embedded: EmbeddingResult) -> None:
    """Though batches are sorted by length, row 1 is about strings: nearer to the guitar than to the hose."""
    guitar, strings, hose, same = (embedded.vectors[row] for row in (0, 1, 3, 5))
    assert strings @ guitar > strings @ hose + 0.2
    assert strings.tobytes() == same.tobytes()


def test_the_batch_size_changes_only_float_noise(cpu: torch.device) -> None:
    """What shares a batch with a text, and how much padding that brings, does not matter: 1 against 64."""
    results = [
        embed_texts(TEXTS, CONFIG.model_copy(update={"batch_size": size}), device=cpu, progress=quiet_progress)
        for size in (1, 2, 64)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.vectors, results[0].vectors, atol=1e-5)


def test_same_input_same_bytes_without_network(
    embedded: EmbeddingResult, cpu: torch.device, no_network: None, deterministic_kernels: None
) -> None:
    """A second run on the CPU agrees bit for bit, loads from the package alone and says which weights it used."""
    again = embed_texts(TEXTS, CONFIG, device=cpu, progress=quiet_progress)
    assert again.vectors.tobytes() == embedded.vectors.tobytes()
    assert again.encoder == embedded.encoder
    assert embedded.encoder["dim"] == 384
    assert embedded.encoder["preprocessing"] == {"max_tokens": 192}
    assert len(embedded.encoder["digest"]) == 64


def test_progress_counts_distinct_texts(cpu: torch.device, recorded: Any) -> None:
    """Four distinct texts in batches of three: 0, 3, 4."""
    embed_texts(TEXTS, CONFIG.model_copy(update={"batch_size": 3}), device=cpu, progress=recorded)
    assert recorded.calls == [("text embeddings", done, 4) for done in (0, 3, 4)]


def test_max_tokens_of_the_settings_is_used(cpu: torch.device) -> None:
    """With 8 tokens, two of them special, what follows the sixth word piece is not seen; with 192 it is."""
    texts = ["one two three four five six seven", "one two three four five six eight"]
    short, long = (
        embed_texts(texts, CONFIG.model_copy(update={"max_tokens": n}), device=cpu, progress=quiet_progress).vectors
        for n in (8, 192)
    )
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)
    assert np.abs(long[0] - long[1]).max() > 1e-3


@pytest.mark.parametrize("texts", [[], [None, ""], ["  "]])
def test_no_text_at_all_is_an_error(texts: list[str | None], cpu: torch.device) -> None:
    """A catalogue without any text has a wrong column mapping, and the message says so before a model is loaded."""
    with pytest.raises(EncoderError, match=f"None of the {len(texts)} items has a text.*text columns"):
        embed_texts(texts, CONFIG, device=cpu, progress=quiet_progress)


def test_real_overviews_of_like_films_are_near(shared_data: Path, cpu: torch.device) -> None:
    """Among real overviews, Star Wars is nearer to The Empire Strikes Back than to any of thirty other films."""
    with (shared_data / "movielens-100k" / "items.csv").open(newline="") as file:
        overviews = {row["title"]: row["overview"] or None for row in csv.DictReader(file)}
    titles = ["Star Wars (1977)", "Empire Strikes Back, The (1980)"]
    titles += [title for title in sorted(overviews) if "Wars" not in title and "Jedi" not in title][:600:20]
    result = embed_texts([overviews[title] for title in titles], CONFIG, device=cpu, progress=quiet_progress)
    similarity = result.vectors[0] @ result.vectors[1:].T
    assert int(similarity.argmax()) == 0


def test_the_mean_of_fields_is_that_of_their_own_vectors(cpu: torch.device) -> None:
    """Each field is encoded alone and counts the same; a missing one does not, and a single one is a plain text."""
    fields = [
        ["Ukulele", "Small, with four strings."],
        [None, "A hose."],
        "A hose.",
        [" ", None],
        ["A hose.", "Ukulele"],
    ]
    got = embed_texts(fields, CONFIG, device=cpu, progress=quiet_progress)
    alone = embed_texts(
        ["Ukulele", "Small, with four strings.", "A hose."], CONFIG, device=cpu, progress=quiet_progress
    ).vectors
    expected = np.stack([(alone[0] + alone[1]) / 2, alone[2], alone[2], (alone[2] + alone[0]) / 2])
    np.testing.assert_allclose(got.vectors[[0, 1, 2, 4]], expected, atol=1e-5)
    assert got.imputed.tolist() == [False, False, False, True, False]
    assert (
        got.contents[1]
        == got.contents[2]
        == embed_texts(["A hose."], CONFIG, device=cpu, progress=quiet_progress).contents[0]
    )
    assert got.num_encoded == 3


def test_a_prefix_is_part_of_every_text_and_of_the_maker(cpu: torch.device) -> None:
    """With the prefix as with the words written before each text; what was made without it is not taken over."""
    prefixed = embed_texts(
        ["red", "blue"], CONFIG.model_copy(update={"prefix": "passage: "}), device=cpu, progress=quiet_progress
    )
    written = embed_texts(["passage: red", "passage: blue"], CONFIG, device=cpu, progress=quiet_progress)
    np.testing.assert_allclose(prefixed.vectors, written.vectors, atol=1e-6)
    assert prefixed.made_by != written.made_by


def test_the_batch_size_is_found_and_said(cpu: torch.device) -> None:
    """auto gives the vectors that any size gives, to float noise."""
    config = CONFIG.model_copy(update={"batch_size": "auto"})
    result = embed_texts(TEXTS, config, device=cpu, progress=quiet_progress)
    fixed = embed_texts(TEXTS, CONFIG.model_copy(update={"batch_size": 3}), device=cpu, progress=quiet_progress)
    assert result.batch_size >= 1
    assert fixed.batch_size == 3
    np.testing.assert_allclose(result.vectors, fixed.vectors, atol=1e-5)
