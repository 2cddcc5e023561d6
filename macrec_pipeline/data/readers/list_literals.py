"""Lists that were written into text cells: `["a", "b"]`, `['a', 'b']` and `['a' 'b']`.

JSON, pandas and numpy write a list in this way when a table with lists is exported as CSV. Such a cell holds the texts
between the quotes, and not one text with brackets.
"""

import ast
import io
import json
import tokenize

import polars as pl

_LOOKS_LIKE_A_LIST = r"""(?s)^\s*\[\s*(?:None\s*,\s*|null\s*,\s*|nan\s*,\s*)*["'].*["']?\s*\]\s*$"""
_MISSING = {"None", "nan", "null"}
_EMPTY = r"^\s*\[\s*\]\s*$"


def joined_lists(column: pl.Series, separator: str) -> pl.Series:
    """Return a text column in which each cell with a list of texts holds these texts, joined by `separator`.

    Other cells, and columns that are not text, stay as they are. An empty list is null.
    """
    if column.dtype != pl.String:
        return column
    is_list = column.str.contains(_LOOKS_LIKE_A_LIST).fill_null(False)
    found = column.set(column.str.contains(_EMPTY).fill_null(False), None)
    if not is_list.any():
        return found
    joined = []
    for cell in column.filter(is_list).to_list():
        texts = list_of_texts(cell)
        joined.append(cell if texts is None else separator.join(texts) or None)
    return found.scatter(is_list.arg_true(), pl.Series(joined, dtype=pl.String))


def list_of_texts(cell: str) -> list[str] | None:
    """Return the texts of a list that was written as text; None if the cell is something else."""
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return _python_texts(cell)
    if not isinstance(found, list) or any(isinstance(each, list | dict | bool) for each in found):
        return None
    return [str(each) for each in found if each is not None]


def _python_texts(cell: str) -> list[str] | None:
    """Read the strings of a list as Python or numpy writes it; numpy leaves out the commas."""
    texts: list[str] = []
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(cell.strip()).readline))
        for token in tokens:
            if token.type == tokenize.STRING:
                value = ast.literal_eval(token.string)
                if not isinstance(value, str):
                    return None
                texts.append(value)
            elif token.type == tokenize.NUMBER:
                texts.append(token.string)
            elif token.type in (tokenize.NAME, tokenize.OP) and token.string not in (*_MISSING, "[", ",", "]"):
                return None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    brackets = [token.string for token in tokens if token.string in ("[", "]")]
    return texts if brackets == ["[", "]"] else None
