"""Text embeddings: rows, fields, batches, progress, and the packaged encoder on real texts."""

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


def test_items_without_a_text_get_the_mean_of_the_others(embedded: EmbeddingResult) -> None:
    """None and white space are imputed and flagged; every other item has the vector of its own text."""
    assert embedded.imputed.tolist() == [False, False, True, False, True, False, False]
    assert embedded.vectors.dtype == np.float32
    assert embedded.vectors.shape == (7, 384)
    mean = embedded.vectors[~embedded.imputed].mean(axis=0)
    np.testing.assert_allclose(embedded.vectors[embedded.imputed], np.tile(mean, (2, 1)), atol=1e-6)
    assert embedded.failures == ()


def test_vectors_are_in_the_order_of_the_texts(embedded: EmbeddingResult) -> None:
    """Although batches are sorted by length, the strings in row 1 are nearer to the guitar than to the hose."""
    guitar, strings, hose, strings_again = (embedded.vectors[row] for row in (0, 1, 3, 5))
    assert strings @ guitar > strings @ hose + 0.2
    assert strings.tobytes() == strings_again.tobytes()


def test_the_batch_size_changes_only_float_noise(cpu: torch.device) -> None:
    """The vector of a text does not depend on the rest of its batch or on the padding that it causes."""
    results = [
        embed_texts(TEXTS, CONFIG.model_copy(update={"batch_size": size}), device=cpu, progress=quiet_progress)
        for size in (1, 2, 64)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.vectors, results[0].vectors, atol=1e-5)


def test_the_same_texts_give_the_same_bytes_without_a_network(
    embedded: EmbeddingResult, cpu: torch.device, no_network: None, deterministic_kernels: None
) -> None:
    """A second run on the CPU agrees bit for bit, loads only from the package, and describes its weights."""
    again = embed_texts(TEXTS, CONFIG, device=cpu, progress=quiet_progress)
    assert again.vectors.tobytes() == embedded.vectors.tobytes()
    assert again.encoder == embedded.encoder
    assert embedded.encoder["dim"] == 384
    assert embedded.encoder["preprocessing"] == {"max_tokens": 192}
    assert len(embedded.encoder["digest"]) == 64


def test_progress_counts_distinct_texts(cpu: torch.device, recorded: Any) -> None:
    """For four distinct texts in batches of three, progress is 0, 3 and 4."""
    embed_texts(TEXTS, CONFIG.model_copy(update={"batch_size": 3}), device=cpu, progress=recorded)
    assert recorded.calls == [("text embeddings", done, 4) for done in (0, 3, 4)]


def test_the_setting_max_tokens_is_applied(cpu: torch.device) -> None:
    """With 8 tokens, two of which are special, the seventh word has no effect; with 192 tokens it has."""
    texts = ["one two three four five six seven", "one two three four five six eight"]
    short, long = (
        embed_texts(texts, CONFIG.model_copy(update={"max_tokens": n}), device=cpu, progress=quiet_progress).vectors
        for n in (8, 192)
    )
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)
    assert np.abs(long[0] - long[1]).max() > 1e-3


@pytest.mark.parametrize("texts", [[], [None, ""], ["  "]])
def test_a_catalogue_without_texts_is_an_error(texts: list[str | None], cpu: torch.device) -> None:
    """Without any text, the column mapping is probably wrong; the message says so, and no model is loaded."""
    with pytest.raises(EncoderError, match=f"no texts to embed: none of the {len(texts)} items has one.*text columns"):
        embed_texts(texts, CONFIG, device=cpu, progress=quiet_progress)


def test_overviews_of_similar_films_are_near_each_other(shared_data: Path, cpu: torch.device) -> None:
    """Star Wars is nearer to The Empire Strikes Back than to any of thirty other films."""
    with (shared_data / "movielens-100k" / "items.csv").open(newline="") as file:
        overviews = {row["title"]: row["overview"] or None for row in csv.DictReader(file)}
    titles = ["Star Wars (1977)", "Empire Strikes Back, The (1980)"]
    titles += [title for title in sorted(overviews) if "Wars" not in title and "Jedi" not in title][:600:20]
    result = embed_texts([overviews[title] for title in titles], CONFIG, device=cpu, progress=quiet_progress)
    similarity = result.vectors[0] @ result.vectors[1:].T
    assert int(similarity.argmax()) == 0


def test_a_text_of_several_fields_gets_the_mean_of_their_vectors(cpu: torch.device) -> None:
    """Fields are encoded separately and count equally; a missing field is ignored; a single field is a plain text."""
    fields = [
        ["Ukulele", "Small, with four strings."],
        [None, "A hose."],
        "A hose.",
        [" ", None],
        ["A hose.", "Ukulele"],
    ]
    result = embed_texts(fields, CONFIG, device=cpu, progress=quiet_progress)
    separate = embed_texts(
        ["Ukulele", "Small, with four strings.", "A hose."], CONFIG, device=cpu, progress=quiet_progress
    ).vectors
    expected = np.stack([(separate[0] + separate[1]) / 2, separate[2], separate[2], (separate[2] + separate[0]) / 2])
    np.testing.assert_allclose(result.vectors[[0, 1, 2, 4]], expected, atol=1e-5)
    assert result.imputed.tolist() == [False, False, False, True, False]
    plain = embed_texts(["A hose."], CONFIG, device=cpu, progress=quiet_progress)
    assert result.contents[1] == result.contents[2] == plain.contents[0]
    assert result.num_encoded == 3


def test_a_prefix_is_part_of_every_text_and_of_the_fingerprint(cpu: torch.device) -> None:
    """The prefix acts like words in front of each text, and vectors without it are not reused."""
    prefixed = embed_texts(
        ["red", "blue"], CONFIG.model_copy(update={"prefix": "passage: "}), device=cpu, progress=quiet_progress
    )
    written_out = embed_texts(["passage: red", "passage: blue"], CONFIG, device=cpu, progress=quiet_progress)
    np.testing.assert_allclose(prefixed.vectors, written_out.vectors, atol=1e-6)
    assert prefixed.encoder_fingerprint != written_out.encoder_fingerprint


def test_an_automatic_batch_size_is_reported(cpu: torch.device) -> None:
    """With "auto" the vectors are those of any fixed size, up to float noise."""
    config = CONFIG.model_copy(update={"batch_size": "auto"})
    result = embed_texts(TEXTS, config, device=cpu, progress=quiet_progress)
    fixed = embed_texts(TEXTS, CONFIG.model_copy(update={"batch_size": 3}), device=cpu, progress=quiet_progress)
    assert result.batch_size >= 1
    assert fixed.batch_size == 3
    np.testing.assert_allclose(result.vectors, fixed.vectors, atol=1e-5)
