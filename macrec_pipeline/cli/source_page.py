"""The page of `macrec datasets validate`: how the first rows of a data set were understood, at 80 to 100 columns."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

import polars as pl
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from macrec_pipeline.data.id_matching import FEW, IdMatch
from macrec_pipeline.data.readers.image_addresses import separate_addresses
from macrec_pipeline.data.readers.source_preview import NUM_ROWS, SourcePreview
from macrec_pipeline.runtime.text_sanitizing import one_line
from macrec_pipeline.runtime.time_units import DAY_MS
from macrec_pipeline.schemas import EARLIEST_MS

_NUM_ROWS_SHOWN = 3
_NUM_FILES_SHOWN = 5
_NUM_ITEMS_SHOWN = 2
_NUM_EXAMPLES = 3
_MAX_ID = 24
_MAX_TEXT = 200


def source_page(preview: SourcePreview, data_dir: Path, *, now: datetime | None = None) -> RenderableType:
    """Return the page as a renderable of rich.

    Args:
        preview: the first rows of the data set.
        data_dir: the data folder, which the page names where it shows paths that were tried.
        now: the present time, to recognise times in the future; None for the clock.
    """
    items = preview.items
    log_title = f"Interactions: {_rows_read(preview.interactions)}"
    items_title = f"Items: {_rows_read(items)}"
    parts: list[RenderableType] = [
        Text(log_title, style="bold"),
        *_indented(
            _with_space(_log_summary(preview.interactions, now or datetime.now(UTC))),
            _log_rows(preview.interactions),
            *_log_files(preview.log_files),
        ),
        Text(items_title, style="bold"),
        *_indented(_with_space(_items_summary(items)), *_items(items)),
        *_match(preview),
        *_images(preview, data_dir),
    ]
    if preview.notes:
        notes = Table.grid(padding=(0, 1))
        for note in preview.notes:
            notes.add_row("-", Text(note))
        parts += [Text("Notes", style="bold"), *_indented(notes)]
    return Padding(Group(*parts), (0, 0, 0, 2), expand=False)


def source_warnings(preview: SourcePreview, data_dir: Path) -> list[str]:
    """Return what a person should look at, one or two sentences each; empty if nothing is unusual."""
    warnings = list(preview.notes)
    found, num_items = preview.items["image_path"].count(), preview.items.height
    if preview.images_tried:
        tried = ", ".join(str(data_dir / path) for path in preview.images_tried[:2])
        warnings.append(f"Images were found for {found:,} of {num_items:,} items. Looked for, for example: {tried}.")
    match = preview.match
    if match is not None and match.share < FEW:
        warnings.append(f"{_match_sentence(preview, match)} {match.sides()}")
    return warnings


def _log_summary(rows: pl.DataFrame, now: datetime) -> RenderableType:
    table = _facts()
    for column, noun in (("user_id", "users"), ("item_id", "items")):
        distinct = rows[column].drop_nulls().unique(maintain_order=True)
        table.add_row(column, Text(f"{len(distinct):,} {noun}: {_examples(distinct)}{_missing(rows[column])}"))
    table.add_row("timestamp", _times(rows["timestamp"], now))
    ratings = rows["rating"].drop_nulls().to_list()
    if ratings:
        mean = sum(ratings) / len(ratings)
        table.add_row("rating", f"{min(ratings):g} to {max(ratings):g}, mean {mean:.2f}{_missing(rows['rating'])}")
    problems = rows["problem"].drop_nulls()
    if len(problems):
        reasons = problems.str.split(": ").list.first().value_counts(sort=True, name="rows")
        counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.rows())
        table.add_row("left out", Text(f"{counts}. The first: {_short(problems[0], _MAX_TEXT)}"))
    return table


def _log_rows(rows: pl.DataFrame) -> RenderableType:
    """Return the first rows of the log."""
    has_ratings = rows["rating"].count() > 0
    table = _grid()
    table.add_column("row", justify="right")
    for name in ("user_id", "item_id", "time (UTC)"):
        table.add_column(name, no_wrap=True)
    if has_ratings:
        table.add_column("rating", justify="right")
    for row in rows.head(_NUM_ROWS_SHOWN).iter_rows(named=True):
        rating = [] if not has_ratings else ["-" if row["rating"] is None else f"{row['rating']:g}"]
        ids = (Text(_id(row["user_id"])), Text(_id(row["item_id"])))
        table.add_row(f"{row['source_row']:,}", *ids, _time(row["timestamp"]), *rating)
    return _with_space(table)


def _log_files(files: pl.DataFrame) -> Iterator[RenderableType]:
    """Yield a line per file of the log, if there are several: rows that were read, and the times in them."""
    if files.height < 2:
        return
    table = _grid()
    table.add_column("file", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("first time (UTC)", no_wrap=True)
    table.add_column("last time", no_wrap=True)
    is_cut = files.height > _NUM_FILES_SHOWN
    rows = files.rows()
    for number, (file, num_rows, first, last) in enumerate(rows):
        if is_cut and _NUM_FILES_SHOWN - 1 <= number < files.height - 1:
            continue
        if is_cut and number == files.height - 1:
            table.add_row(f"... and {files.height - _NUM_FILES_SHOWN:,} more, to", "", "", "")
        table.add_row(Text(one_line(file)), f"{num_rows:,}", _time(first), _time(last))
    yield _with_space(table)


def _items_summary(items: pl.DataFrame) -> RenderableType:
    table = _facts()
    for column, noun in (("title", "a title"), ("text", "a text"), ("categories", "categories")):
        table.add_row(column, f"{items[column].count():,} of {items.height:,} items have {noun}")
    if items["image_url"].count():
        table.add_row("address", f"{items['image_url'].count():,} of {items.height:,} items have an image address")
    problems = items["problem"].drop_nulls()
    if len(problems):
        table.add_row("left out", Text(f"{len(problems):,} rows. The first: {_short(problems[0], _MAX_TEXT)}"))
    return table


def _items(items: pl.DataFrame) -> Iterator[RenderableType]:
    """Yield the first items: id and title, then the text, the categories, the address and the image."""
    for row in items.filter(pl.col("problem").is_null()).head(_NUM_ITEMS_SHOWN).iter_rows(named=True):
        cells = {name: row[name] for name in ("item_id", "title", "text")}
        cells["categories"] = "; ".join(row["categories"] or ())
        if row["image_url"]:
            addresses = separate_addresses(row["image_url"])
            cells["address"] = addresses[0] + (f" and {len(addresses) - 1} more" if len(addresses) > 1 else "")
        cells["image"] = row["image_path"]
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for name, cell in cells.items():
            if cell or name in ("item_id", "title", "text"):
                table.add_row(name, Text(_short(cell, _MAX_TEXT)))
        yield _with_space(table)


def _match(preview: SourcePreview) -> Iterator[RenderableType]:
    """Yield how many rows of the log match the catalogue; if few do, ids of both sides."""
    match = preview.match
    if match is None:
        return
    yield Text(_match_sentence(preview, match))
    if match.share >= FEW:
        return
    sides = _grid()
    sides.add_column("only in the log", no_wrap=True)
    sides.add_column("in the catalogue", no_wrap=True)
    for pair in zip_longest(match.log_examples, match.catalogue_examples, fillvalue=""):
        sides.add_row(*map(Text, pair))
    yield from _indented(sides)
    yield Text(
        "Check that `item_id` names the same kind of ID in both files."
        if match.difference is None
        else f"They match without {match.difference}: export both files with the same spelling."
    )


def _match_sentence(preview: SourcePreview, match: IdMatch) -> str:
    ids = f"{match.num_catalogue:,} ids" if preview.has_all_ids else f"its first {match.num_catalogue:,} ids"
    return (
        f"Match: {match.num_matching:,} of {match.num_rows:,} interactions ({match.share:.1%}) name an item of the "
        f"catalogue ({ids})."
    )


def _images(preview: SourcePreview, data_dir: Path) -> Iterator[RenderableType]:
    """Yield how many items have an image, with places where one was looked for."""
    if preview.images_tried is None:
        return
    found, num_items = preview.items["image_path"].count(), preview.items.height
    tried = f" Looked for below {data_dir}, for example:" if preview.images_tried else ""
    yield Text(f"Images: found for {found:,} of {num_items:,} items.{tried}")
    if tried:
        yield from _indented(*(Text(path) for path in preview.images_tried[:2]))


def _times(times: pl.Series, now: datetime) -> str:
    found = times.drop_nulls().to_list()
    if not found:
        return "no time could be read" if len(times) else "no rows"
    first, last = min(found), max(found)
    text = f"{_time(first)} to {_time(last)} UTC{_missing(times)}"
    if first < EARLIEST_MS or last > now.timestamp() * 1000 + DAY_MS:
        text += ". Times before 1990 or in the future cannot be used: check `timestamp_unit`."
    return text


def _time(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "-"
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms"


def _rows_read(rows: pl.DataFrame) -> str:
    """Say which rows were read: how many, and of which file or how many files."""
    files = rows["source_file"].unique(maintain_order=True)
    if len(files) > 1:
        return f"{rows.height:,} rows, at most the first {NUM_ROWS:,} of each of {len(files):,} files"
    return f"the first {rows.height:,} rows of {one_line(files[0])}" if len(files) else "no rows"


def _examples(ids: pl.Series) -> str:
    shown = ", ".join(_id(each) for each in ids.head(_NUM_EXAMPLES))
    return shown + (", ..." if len(ids) > _NUM_EXAMPLES else "")


def _missing(column: pl.Series) -> str:
    return f"; {column.null_count():,} missing" if column.null_count() else ""


def _id(text: str | None) -> str:
    return _short(text, _MAX_ID)


def _short(text: str | None, length: int) -> str:
    if text is None:
        return "-"
    line = one_line(text)
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    return table


def _grid() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _indented(*parts: RenderableType) -> Iterator[RenderableType]:
    return (Padding(part, (0, 0, 0, 2), expand=False) for part in parts)


def _with_space(part: RenderableType) -> RenderableType:
    return Padding(part, (0, 0, 1, 0), expand=False)
