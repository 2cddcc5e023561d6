"""Reads YAML from people: the only place where this package turns YAML into values.

Plain values only; a document cannot create other objects. An alias (`*name`) repeats the part of the document that an
anchor (`&name`) marks. Aliases of parts with aliases multiply: ten lines can stand for billions of values. Aliases of
repeated settings work as usual, but what all of them stand for together is limited, and so is the depth of nesting.
"""

from typing import Any

import yaml

MAX_REPEATED_VALUES = 10_000
"""How many values the aliases of a document may stand for in all. A long text counts once per 100 characters."""

MAX_DEPTH = 50
"""How many lists and mappings may be nested."""

_CHARACTERS_PER_VALUE = 100


class RefusedYamlError(yaml.YAMLError):
    """A document is YAML, but its aliases or its nesting exceed a limit. The message names the line."""


def load_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        RefusedYamlError: the aliases stand for too many values, an alias is inside the part that it repeats, or the
            document is nested too deeply.
        yaml.YAMLError: the text is not YAML.
    """
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_data()
    except ValueError as error:  # of a value that only looks like a date, or of a number with too many digits
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


class _BoundedLoader(yaml.SafeLoader):
    """Counts the values that aliases repeat while the document is parsed, before any value is built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_values = 0  # of the document so far, with the repetitions
        self._num_repeated = 0
        self._size_of_anchor: dict[str, int] = {}
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            # An unknown anchor is an error of the parser.
            if event.anchor in self.anchors and event.anchor not in self._size_of_anchor:
                raise RefusedYamlError(f"line {line}: the alias *{event.anchor} is inside the part that it repeats.")
            size = self._size_of_anchor.get(event.anchor or "", 0)
            self._num_values += size
            self._num_repeated += size
            if self._num_repeated > MAX_REPEATED_VALUES:
                raise RefusedYamlError(
                    f"line {line}: the aliases up to *{event.anchor} stand for more than {MAX_REPEATED_VALUES} "
                    "values. Write the values out where they are needed, or repeat less."
                )
            return super().compose_node(parent, index)
        if self._depth >= MAX_DEPTH:
            raise RefusedYamlError(f"line {line}: lists and mappings are nested more than {MAX_DEPTH} deep.")
        before = self._num_values
        self._num_values += 1
        if isinstance(event, yaml.ScalarEvent):
            self._num_values += len(event.value) // _CHARACTERS_PER_VALUE
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._size_of_anchor[event.anchor] = self._num_values - before
        return node
