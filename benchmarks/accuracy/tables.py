"""Puts the results files into docs/results.md, so that no figure there is typed by hand.

    python benchmarks/accuracy/tables.py            rewrite the document
    python benchmarks/accuracy/tables.py --check    say which tables are stale, with exit status 1

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`. NAME is `instruments`, all results files of
`instruments.py` beside the figures of `published.json`, or `ablations-<data set>`, one file of `ablations.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above `benchmarks` takes the place of this file's own
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.accuracy.rendering import instruments_table, table

HERE = Path(__file__).resolve().parent
RESULTS, PUBLISHED = HERE / "results", HERE / "published.json"
DOCUMENT = HERE.parents[1] / "docs" / "results.md"
INSTRUMENTS = "instruments"
_MARKED = re.compile(r"<!-- table:(?P<name>[\w-]+) -->\n.*?<!-- /table -->", re.DOTALL)
_OPENED = re.compile(r"<!-- table:([\w-]+) -->")


def rendered(text: str, *, results: Path, published: Path = PUBLISHED) -> str:
    """The document with every marked part written anew.

    Args:
        text: the document.
        results: folder of the results files.
        published: what others published.

    Raises:
        ValueError: a marker is not closed, or names no table.
    """
    opened, marked = _OPENED.findall(text), [match["name"] for match in _MARKED.finditer(text)]
    if opened != marked:
        raise ValueError(f"a table is not closed by <!-- /table -->: {opened} opened, {marked} closed")
    return _MARKED.sub(
        lambda match: f"<!-- table:{match['name']} -->\n{_table(match['name'], results, published)}\n<!-- /table -->",
        text,
    )


def stale_tables(text: str, *, results: Path, published: Path = PUBLISHED) -> list[str]:
    """The names of the tables that are not what the results files say."""
    fresh = rendered(text, results=results, published=published)
    after = {match["name"]: match[0] for match in _MARKED.finditer(fresh)}
    return [match["name"] for match in _MARKED.finditer(text) if after[match["name"]] != match[0]]


def _table(name: str, results: Path, published: Path) -> str:
    if name == INSTRUMENTS:
        documents = [_read(path) for path in sorted(results.glob(f"{INSTRUMENTS}-*.json"))]
        command = "`python benchmarks/accuracy/instruments.py VARIANT --data DIR --seeds SEED ...`:"
        return f"{command}\n\n{instruments_table(documents, _read(published)[INSTRUMENTS])}"
    if not name.startswith("ablations-"):
        raise ValueError(f"there is no table {name!r}: use {INSTRUMENTS} or ablations-<data set>")
    path = results / f"{name}.json"
    if not path.is_file():
        dataset = name.removeprefix("ablations-")
        return f"Not measured yet: `python benchmarks/accuracy/ablations.py {dataset} --data DIR --seeds 1 2 3`."
    return table(_read(path))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(words: Sequence[str] | None = None) -> None:
    """Rewrite the document, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is stale")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    asked = parser.parse_args(words)
    text = asked.document.read_text(encoding="utf-8")
    stale = stale_tables(text, results=asked.results)
    if asked.check:
        if stale:
            print(f"stale: {', '.join(stale)}. Run `python benchmarks/accuracy/tables.py`.", file=sys.stderr)
        raise SystemExit(bool(stale))
    asked.document.write_text(rendered(text, results=asked.results), encoding="utf-8")
    print(f"{asked.document.name}: {', '.join(stale) or 'nothing'} rewritten")


if __name__ == "__main__":
    main()
