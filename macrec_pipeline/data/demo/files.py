"""A demo shop -> the files a real shop would hand over, with the little dirt that real files have.

    items.csv          item_id,title,description,categories    (with | between)
    interactions.csv   user_id,item_id,event_time    (ISO times, UTC, in the order of time)
    pictures/{item_id}.jpg
    README.md

Some items have no picture, some no text, a few rows are there twice, name an unknown item or hold no readable time.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from macrec_pipeline.data.demo.catalogue import categories, describe
from macrec_pipeline.data.demo.images import draw_image
from macrec_pipeline.data.demo.shop import Shop, build_shop
from macrec_pipeline.datasets import DemoSource

PICTURELESS_SHARE = 0.025
TEXTLESS_SHARE = 0.02
_JPEG_QUALITY = 88
_UNREADABLE_TIMES = ("", "yesterday", "1970-01-01T00:00:00", "2999-12-31T23:59:00")

_README = """# A made-up shop

Written by `macrec_pipeline` (reader `demo`) and replaced when the parameters in `shop.json` change: {num_items} items,
{num_users} people, seed {seed}.

- `items.csv`: what each item is. Titles, descriptions and categories never say how it looks.
- `pictures/`: how it looks. Pictures never show what it is.
- `interactions.csv`: who looked at what and when. The next item tends to continue a chain of kinds (tent, sleeping bag,
  mat, lantern, ...) and to keep the style, so that it takes texts and pictures together to foresee it.

As in real files, some pictures and texts are missing, and a few rows are repeated, unreadable or name an unknown item.
"""


def generate_shop(source: DemoSource) -> Shop:
    """The shop of these parameters, as it is before it becomes files."""
    # Imported here, since it brings torch, which nobody needs who reads a shop that is written already.
    from macrec_pipeline.runtime.seeds import numpy_generator

    return build_shop(
        source.num_items,
        source.num_users,
        catalogue_generator=numpy_generator(source.seed, "demo/catalogue"),
        user_generator=numpy_generator(source.seed, "demo/users"),
    )


def item_names(number: int) -> list[str]:
    """The item ids of the shop, in the order of its items; they say nothing about them."""
    return [f"P{item:0{_digits(number)}d}" for item in range(1, number + 1)]


def user_names(number: int) -> list[str]:
    """The user ids of the shop, in the order of its users."""
    return [f"U{user:0{_digits(number)}d}" for user in range(1, number + 1)]


def write_shop(source: DemoSource, folder: Path) -> None:
    """Write every file of the shop into an existing, empty folder; the same parameters give the same bytes."""
    from macrec_pipeline.runtime.seeds import numpy_generator

    shop = generate_shop(source)
    dirt = numpy_generator(source.seed, "demo/dirt")
    pictureless, textless = _bare_items(source.num_items, dirt)
    _write_items(shop, folder / "items.csv", textless=textless, generator=dirt)
    _write_interactions(shop, folder / "interactions.csv", generator=dirt)
    (folder / "pictures").mkdir()
    for item, name in enumerate(item_names(source.num_items)):
        picture = draw_image(int(shop.styles[item]), numpy_generator(source.seed, f"demo/picture/{item}"))
        if item not in pictureless:
            picture.save(folder / "pictures" / f"{name}.jpg", quality=_JPEG_QUALITY)
    (folder / "README.md").write_text(
        _README.format(num_items=source.num_items, num_users=source.num_users, seed=source.seed), encoding="utf-8"
    )


def _bare_items(num_items: int, generator: np.random.Generator) -> tuple[set[int], set[int]]:
    """Items without a picture and items without a text: at least one of each, none without both."""
    num_pictureless = max(1, round(PICTURELESS_SHARE * num_items))
    num_textless = max(1, round(TEXTLESS_SHARE * num_items))
    chosen = generator.permutation(num_items)[: num_pictureless + num_textless].tolist()
    return set(chosen[:num_pictureless]), set(chosen[num_pictureless:])


def _write_items(shop: Shop, path: Path, *, textless: set[int], generator: np.random.Generator) -> None:
    rows: list[tuple[str, ...]] = []
    for item, name in enumerate(item_names(len(shop.kinds))):
        title, description = describe(int(shop.kinds[item]), int(shop.copies[item]))
        named = "|".join(categories(int(shop.kinds[item])))
        rows.append((name, "", "", "") if item in textless else (name, title, description, named))
    repeated = generator.choice(len(rows), size=max(1, len(rows) // 200), replace=False).tolist()
    for place in repeated:  # an older export of the row, before somebody wrote the description
        rows.insert(int(generator.integers(0, len(rows))), (*rows[place][:2], "", ""))
    _write_csv(path, ("item_id", "title", "description", "categories"), rows)


def _write_interactions(shop: Shop, path: Path, *, generator: np.random.Generator) -> None:
    items, users = item_names(len(shop.kinds)), user_names(len(shop.sequences))
    events = sorted(
        (time, users[user], items[item])
        for user, (sequence, times) in enumerate(zip(shop.sequences, shop.times, strict=True))
        for item, time in zip(sequence, times, strict=True)
    )
    rows = [(user, item, _iso(time)) for time, user, item in events]
    dirty: list[tuple[str, str, str]] = []
    for place in generator.choice(len(rows), size=max(1, len(rows) // 1000), replace=False).tolist():
        dirty.append(rows[place])  # sent twice
    strangers = max(1, len(rows) // 4000)
    for user, _, time in (rows[int(place)] for place in generator.integers(0, len(rows), size=strangers)):
        dirty.append((user, f"X{len(dirty):04d}", time))  # not in the catalogue any more
    for place, time in zip(generator.integers(0, len(rows), size=4).tolist(), _UNREADABLE_TIMES, strict=True):
        dirty.append((*rows[place][:2], time))
    for row in dirty:
        rows.insert(int(generator.integers(0, len(rows))), row)
    _write_csv(path, ("user_id", "item_id", "event_time"), rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    pl.DataFrame(rows, schema=list(columns), orient="row").write_csv(path, quote_style="necessary")


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _digits(number: int) -> int:
    return max(4, len(str(number)))
