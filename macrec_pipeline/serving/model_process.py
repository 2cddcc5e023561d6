"""One version of the model in a process of its own, with the code that belongs to the version.

The service starts this file as a script and talks to it over its standard input and output, one frame of requests and
one frame of responses per batch. The file must not import this package: MLflow puts the version's own copy of the
package on the import path, and Python would keep using another copy that was imported before. It therefore needs only
the standard library, mlflow and what mlflow needs, and the service imports `Message`, `pack` and `unpack` from here.

A request is parsed and checked by MLflow's own scoring code, so `/invocations` has the status codes and messages of
`mlflow models serve`. Requests with the same parameters are then answered by a single call of the model.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel

READY, FAILED = "ready", "failed"
INVOCATIONS, RECOMMEND, SIMILAR = "invocations", "recommend", "similar"
_LENGTH = struct.Struct(">Q")
_PACKAGE = "macrec_pipeline"
_JSON = "application/json"
_CANARY_ITEMS, _CANARY_K = 3, 10
_DIVERSITY = ("diversity", "max_per_category", "max_per_prefix", "prefix_length")
_RULES = ("allowed", "excluded", "allowed_categories", "excluded_categories")


@dataclass(frozen=True)
class Message:
    """A request, a response, or a report of the process about itself.

    Attributes:
        head: JSON values. Of a request: `kind` and `content_type`. Of a response: `status`, `content_type`, `rows`,
            `fallbacks` and `unknown_items`. Of a report: `state`, `error` and facts about the model.
        body: the bytes of the HTTP body.
    """

    head: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Limits:
    """The largest request that is answered; see `ServiceConfig`."""

    max_rows: int
    max_k: int
    max_history: int
    max_rule_items: int


def pack(messages: Sequence[Message]) -> bytes:
    """Return the frame of some messages: a JSON list of heads, and the bodies."""
    heads = json.dumps([message.head | {"length": len(message.body)} for message in messages]).encode()
    return b"".join([_LENGTH.pack(len(heads)), heads, *(message.body for message in messages)])


def unpack(stream: IO[bytes]) -> list[Message] | None:
    """Read a frame; None if the other side has closed the stream.

    Raises:
        EOFError: the stream ended within a frame.
    """
    prefix = stream.read(_LENGTH.size)
    if not prefix:
        return None
    heads = json.loads(_read(stream, _LENGTH.unpack(prefix)[0]))
    return [Message(head, _read(stream, head.pop("length"))) for head in heads]


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError(f"the stream ended after {len(data)} of {length} bytes")
    return data


class _Parsed(BaseException):
    """Carries a checked request out of MLflow's scoring code, which would turn an `Exception` into a response."""

    def __init__(self, rows: pd.DataFrame, params: dict[str, Any] | None) -> None:
        super().__init__()
        self.rows, self.params = rows, params


@dataclass(frozen=True)
class _Request:
    """A request that passed MLflow's checks.

    Attributes:
        rows, params: as the model gets them.
        kind: `INVOCATIONS` or `RECOMMEND`.
        data: the rows as they arrived, which MLflow quotes in its errors.
    """

    rows: pd.DataFrame
    params: dict[str, Any]
    kind: str
    data: Any = None


class _ModelOfOneCall:
    """What MLflow's scoring code needs of a model; remembers the rows as they arrived."""

    def __init__(self, model: PyFuncModel) -> None:
        self._model, self.metadata = model, model.metadata
        self.data: Any = None

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        self.data = data
        return self._model.predict(data, params=params)


class BatchModel:
    """A loaded model that answers several HTTP requests at once.

    Args:
        model: an MLflow model whose Python model is the product's `RecommenderModel`.
        limits: the largest request that is answered.
    """

    def __init__(self, model: PyFuncModel, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self._schema = model.metadata.get_input_schema()  # type: ignore[no-untyped-call]
        self._recommender = model.unwrap_python_model()  # type: ignore[no-untyped-call]
        self._predict: Callable[..., pd.DataFrame] = self._recommender.predict
        self._known = set(self._recommender.bundle.item_ids)
        # From here on, a call of MLflow's model ends once the request is checked.
        self._recommender.predict = self._raise_parsed

    @staticmethod
    def _raise_parsed(_context: Any, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        raise _Parsed(rows, params)

    def answer(self, messages: Sequence[Message]) -> list[Message]:
        """Return one response per request, in order. A wrong request does not affect the others."""
        responses: dict[int, Message] = {}
        groups: dict[str, list[tuple[int, _Request]]] = {}
        for number, message in enumerate(messages):
            if message.head["kind"] == SIMILAR:
                responses[number] = self._similar(message)
                continue
            parsed = self._parse(message)
            if isinstance(parsed, Message):
                responses[number] = parsed
            else:
                key = json.dumps(parsed.params, sort_keys=True, default=repr)
                groups.setdefault(key, []).append((number, parsed))
        for group in groups.values():
            answers = self._answer_group([request for _, request in group])
            responses |= {number: answer for (number, _), answer in zip(group, answers, strict=True)}
        return [responses[number] for number in range(len(messages))]

    def canary(self) -> dict[str, Any]:
        """Answer a request with items of the model itself, and return facts about the answer.

        Raises:
            RuntimeError: the model recommends nothing.
        """
        bundle = self._recommender.bundle
        # within the limits of the service, which may be small
        history = [str(item_id) for item_id in bundle.item_ids[: min(_CANARY_ITEMS, self._limits.max_history)]]
        body = json.dumps({"history": history, "k": min(_CANARY_K, bundle.num_items, self._limits.max_k)}).encode()
        (response,) = self.answer([Message({"kind": RECOMMEND}, body)])
        answer = json.loads(response.body)
        if response.head["status"] != 200 or not answer["item_ids"]:
            raise RuntimeError(f"The model does not answer a request with its own items: {answer}.")
        return {
            "num_items": bundle.num_items,
            "routes": list(bundle.routes),
            "num_recommended": len(answer["item_ids"]),
        }

    def _answer_group(self, requests: list[_Request]) -> list[Message]:
        """Answer requests with equal parameters by one call, or one by one if that call fails."""
        import pandas as pd
        from mlflow.exceptions import MlflowException

        rows = requests[0].rows if len(requests) == 1 else pd.concat([r.rows for r in requests], ignore_index=True)
        try:
            predicted = self._predict(None, rows, requests[0].params)
        except MlflowException as error:
            if len(requests) > 1:
                return [self._answer_group([request])[0] for request in requests]
            return [_error_response(error, requests[0])]
        responses, first = [], 0
        for request in requests:
            end = first + len(request.rows)
            responses.append(self._response(request, predicted.iloc[first:end]))
            first = end
        return responses

    def _response(self, request: _Request, predicted: pd.DataFrame) -> Message:
        from mlflow.pyfunc.scoring_server import predictions_to_json

        text = io.StringIO()
        if request.kind == INVOCATIONS:
            predictions_to_json(predicted, text)  # type: ignore[no-untyped-call]
        else:
            json.dump(predicted.iloc[0].to_dict(), text)
        histories = request.rows["history"]
        unknown = sum(item not in self._known for history in histories if _is_list(history) for item in history)
        head = {
            "status": 200,
            "content_type": _JSON,
            "rows": len(predicted),
            "fallbacks": int((predicted["fallback"] != "none").sum()),
            "unknown_items": unknown,
        }
        return Message(head, text.getvalue().encode())

    def _similar(self, message: Message) -> Message:
        """Find the items that are similar to an item."""
        import pandas as pd
        from mlflow.exceptions import MlflowException

        given: dict[str, Any] = json.loads(message.body)
        similar = getattr(self._recommender, "similar", None)
        if similar is None:
            return _text_response(
                501,
                "This version was registered by an older version of the package, whose code cannot find similar items. "
                "Train and promote a new version.",
            )
        rules = {name: given.pop(name) for name in _RULES if name in given}
        row = pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in rules.items()})
        try:
            self._check_size(_Request(row, given, SIMILAR))
            answer = similar(given.pop("item_id"), rules=rules, **given)
        except _TooLargeError as error:
            return _text_response(error.status, str(error))
        except MlflowException as error:
            status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
            return _text_response(404 if status == 404 else 422, error.message)
        return Message({"status": 200, "content_type": _JSON}, json.dumps(answer).encode())

    def _parse(self, message: Message) -> _Request | Message:
        """Check a request: return its rows and parameters, or the response that says what is wrong."""
        try:
            request = self._parse_recommend(message) if message.head["kind"] == RECOMMEND else self._invoke(message)
        except _TooLargeError as error:
            return _text_response(error.status, str(error))
        return request

    def _invoke(self, message: Message) -> _Request | Message:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.scoring_server import invocations

        called = _ModelOfOneCall(self._model)
        try:
            # Without a content type, MLflow's server fails with status 500. JSON is what such a client means.
            content_type = message.head.get("content_type") or _JSON
            body = _without_null_rules(message.body)
            result = invocations(body, content_type, called, self._schema)  # type: ignore[no-untyped-call]
        except _Parsed as parsed:
            request = _Request(parsed.rows, parsed.params or {}, INVOCATIONS, called.data)
            self._check_size(request)
            return request
        except MlflowException as error:
            return _error_response(error, None)
        return Message({"status": result.status, "content_type": result.mimetype}, result.response.encode())

    def _parse_recommend(self, message: Message) -> _Request:
        import pandas as pd

        given: dict[str, Any] = json.loads(message.body)
        row = {name: given.get(name) for name in ("history", *_RULES)}
        params = {
            name: given[name]
            for name in ("k", "route", "exclude_seen", "beam_width", "explain", *_DIVERSITY)
            if given.get(name) is not None
        }
        request = _Request(
            pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in row.items()}), params, RECOMMEND
        )
        self._check_size(request)
        return request

    def _check_size(self, request: _Request) -> None:
        """Raise `_TooLargeError` if a request is larger than the service's settings allow."""
        limits, rows, params = self._limits, request.rows, request.params
        if len(rows) > limits.max_rows:
            raise _TooLargeError(413, "rows", len(rows), limits.max_rows, "max_rows", "Send several requests.")
        k = params.get("k")
        if isinstance(k, int) and k > limits.max_k:
            raise _TooLargeError(422, "items (`k`)", k, limits.max_k, "max_k", "Ask for fewer items.")
        for name, largest, setting in (
            ("history", limits.max_history, "max_history"),
            *((rule, limits.max_rule_items, "max_rule_items") for rule in _RULES),
        ):
            lists = list(rows[name]) if name in rows.columns else []
            if name != "history" and isinstance(params.get("rules"), dict):
                lists.append(params["rules"].get(name))
            longest = max((len(cell) for cell in lists if _is_list(cell)), default=0)
            if longest > largest:
                raise _TooLargeError(422, f"entries of `{name}`", longest, largest, setting, "Send a shorter list.")


class _TooLargeError(Exception):
    def __init__(self, status: int, what: str, found: int, largest: int, setting: str, advice: str) -> None:
        super().__init__(
            f"The request has {found} {what}; the service accepts at most {largest} (`{setting}`). {advice}"
        )
        self.status = status


def _without_null_rules(body: bytes) -> bytes:
    """Leave out the parameter `rules` if it is null, which MLflow refuses for this parameter alone.

    Null stands for the default of every parameter. Another body, right or wrong, is returned as it is.
    """
    if b'"rules"' not in body or b"null" not in body:
        return body
    try:
        content = json.loads(body)
    except ValueError:
        return body
    params = content.get("params") if isinstance(content, dict) else None
    if not isinstance(params, dict) or params.get("rules", ...) is not None:
        return body
    del params["rules"]
    return json.dumps(content).encode()


def _is_list(cell: Any) -> bool:
    return not isinstance(cell, str) and hasattr(cell, "__len__")


def _error_response(error: Any, request: _Request | None) -> Message:
    """Return the response of MLflow's scoring server for an error; plain for `/recommend`."""
    if request is not None and request.kind == RECOMMEND:
        return _text_response(422, error.message)
    status = error.get_http_status_code()
    if request is not None:
        error.message = f"Failed to predict data '{request.data}'. \nError: {error.message}"
    return Message({"status": status, "content_type": _JSON}, error.serialize_as_json().encode())


def _text_response(status: int, message: str) -> Message:
    return Message({"status": status, "content_type": _JSON}, json.dumps({"detail": message}).encode())


def load(folder: Path, limits: Limits) -> BatchModel:
    """Load the model of a version's folder with the version's own code.

    Raises:
        RuntimeError: another copy of the package was imported before, or the folder has no code of its own.
    """
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(folder))
    found = Path(sys.modules[_PACKAGE].__file__ or "").resolve()
    if folder.resolve() not in found.parents:
        raise RuntimeError(
            f"The model in {folder} would run with the code in {found.parent}, and not with the code it was registered "
            "with. Start this process with `python -P` and without PYTHONPATH."
        )
    return BatchModel(model, limits)


def _batches(stream: IO[bytes]) -> Iterator[list[Message]]:
    while (messages := unpack(stream)) is not None:
        yield messages


def main() -> None:
    """Load the model, report, and answer batches until the service closes the stream."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limits", type=json.loads, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    # Ctrl-C reaches every process of the terminal. The service decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Frames go to a copy of standard output. Whatever else is printed goes to standard error.
    frames = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        import torch

        torch.set_num_threads(arguments.threads)
        model = load(arguments.folder, Limits(**arguments.limits))
    except Exception as error:
        _send(frames, [Message({"state": FAILED, "error": " ".join(f"{type(error).__name__}: {error}".split())})])
        raise SystemExit(1) from error
    _send(frames, [Message({"state": READY, "canary": model.canary()})])
    for messages in _batches(sys.stdin.buffer):
        _send(frames, model.answer(messages))


def _send(stream: IO[bytes], messages: Sequence[Message]) -> None:
    stream.write(pack(messages))
    stream.flush()


if __name__ == "__main__":
    main()
