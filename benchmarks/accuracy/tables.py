"""Copy the results files into docs/results.md as tables, so that no number there is typed by hand.

    python benchmarks/accuracy/tables.py            update the document
    python benchmarks/accuracy/tables.py --check    list outdated tables, and exit with status 1 if there are any

A table is placed between `<!-- table:NAME -->` and `<!-- /table -->`. NAME is `instruments` for all results files of
`instruments.py` together with `published.json`, `ablations-<data set>` for one results file of `ablations.py`, or
`ties-<data set>` for one of `ties.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.accuracy.rendering import instruments_table, table, ties_table

HERE = Path(__file__).resolve().parent
RESULTS, PUBLISHED = HERE / "results", HERE / "published.json"
DOCUMENT = HERE.parents[1] / "docs" / "results.md"
INSTRUMENTS = "instruments"
_STUDIES = {"ablations": table, "ties": ties_table}
_MARKED = re.compile(r"<!-- table:(?P<name>[\w-]+) -->\n.*?<!-- /table -->", re.DOTALL)
_OPENED = re.compile(r"<!-- table:([\w-]+) -->")


def rendered(text: str, *, results: Path, published: Path = PUBLISHED) -> str:
    """Return the document with all tables updated.

    Args:
        text: the document.
        results: folder of the results files.
        published: file of the results that others published.

    Raises:
        ValueError: a table is not closed, or its name is unknown.
    """
    opened, marked = _OPENED.findall(text), [match["name"] for match in _MARKED.finditer(text)]
    if opened != marked:
        raise ValueError(f"a table is not closed by <!-- /table -->: {opened} are opened, but only {marked} are closed")
    return _MARKED.sub(
        lambda match: f"<!-- table:{match['name']} -->\n{_table(match['name'], results, published)}\n<!-- /table -->",
        text,
    )


def stale_tables(text: str, *, results: Path, published: Path = PUBLISHED) -> list[str]:
    """List the tables of the document that differ from the results files."""
    updated = rendered(text, results=results, published=published)
    after = {match["name"]: match[0] for match in _MARKED.finditer(updated)}
    return [match["name"] for match in _MARKED.finditer(text) if after[match["name"]] != match[0]]


def _table(name: str, results: Path, published: Path) -> str:
    if name == INSTRUMENTS:
        documents = [_read(path) for path in sorted(results.glob(f"{INSTRUMENTS}-*.json"))]
        command = "`python benchmarks/accuracy/instruments.py VARIANT --data DIR --seeds SEED ...`:"
        return f"{command}\n\n{instruments_table(documents, _read(published)[INSTRUMENTS])}"
    study, _, dataset = name.partition("-")
    if study not in _STUDIES:
        expected = " or ".join([INSTRUMENTS, *(f"{known}-<data set>" for known in _STUDIES)])
        raise ValueError(f"unknown table {name!r}: expected {expected}")
    path = results / f"{name}.json"
    if not path.is_file():
        return f"Not measured yet: `python benchmarks/accuracy/{study}.py {dataset} --data DIR --seeds 1 2 3`."
    return _STUDIES[study](_read(path))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(words: Sequence[str] | None = None) -> None:
    """Update the document, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with status 1 if a table is outdated"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    arguments = parser.parse_args(words)
    text = arguments.document.read_text(encoding="utf-8")
    stale = stale_tables(text, results=arguments.results)
    if arguments.check:
        if stale:
            print(f"outdated tables: {', '.join(stale)}. Run `python benchmarks/accuracy/tables.py`.", file=sys.stderr)
        raise SystemExit(bool(stale))
    arguments.document.write_text(rendered(text, results=arguments.results), encoding="utf-8")
    print(f"{arguments.document.name}: updated {', '.join(stale) or 'nothing'}")


if __name__ == "__main__":
    main()
