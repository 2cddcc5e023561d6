"""Write the demo shop as the files that a real shop would hand over, with the flaws that real files have.

The input is a `DemoSource`, the parameters of the shop. The output is these files:

    items.csv          item_id, title, description, categories (separated by |)
    interactions.csv   user_id, item_id, event_time (ISO, UTC), in chronological order
    pictures/{item_id}.jpg
    README.md

Some items have no image and some have no text. A few rows are duplicated, name an unknown item, or have no readable
time. Names of files and random streams, which say "picture", must not change: the same parameters give the same bytes.
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

SHARE_WITHOUT_IMAGE = 0.025
SHARE_WITHOUT_TEXT = 0.02
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
    """Return the shop with these parameters, before it is turned into files."""
    # Imported here because it loads torch, which is not needed to read a shop that has already been written.
    from macrec_pipeline.runtime.seeds import numpy_generator

    return build_shop(
        source.num_items,
        source.num_users,
        catalogue_generator=numpy_generator(source.seed, "demo/catalogue"),
        user_generator=numpy_generator(source.seed, "demo/users"),
    )


def make_item_ids(num_items: int) -> list[str]:
    """Return the item IDs in the order of the shop's items; an ID says nothing about its item."""
    return [f"P{item:0{_num_digits(num_items)}d}" for item in range(1, num_items + 1)]


def make_user_ids(num_users: int) -> list[str]:
    """Return the user IDs in the order of the shop's users."""
    return [f"U{user:0{_num_digits(num_users)}d}" for user in range(1, num_users + 1)]


def write_shop(source: DemoSource, folder: Path) -> None:
    """Write every file of the shop into an existing, empty folder; the same parameters give the same bytes."""
    from macrec_pipeline.runtime.seeds import numpy_generator

    shop = generate_shop(source)
    flaw_generator = numpy_generator(source.seed, "demo/dirt")
    without_image, without_text = _choose_incomplete_items(source.num_items, flaw_generator)
    _write_items(shop, folder / "items.csv", without_text=without_text, generator=flaw_generator)
    _write_interactions(shop, folder / "interactions.csv", generator=flaw_generator)
    (folder / "pictures").mkdir()
    for item, item_id in enumerate(make_item_ids(source.num_items)):
        image = draw_image(int(shop.styles[item]), numpy_generator(source.seed, f"demo/picture/{item}"))
        if item not in without_image:
            image.save(folder / "pictures" / f"{item_id}.jpg", quality=_JPEG_QUALITY)
    (folder / "README.md").write_text(
        _README.format(num_items=source.num_items, num_users=source.num_users, seed=source.seed), encoding="utf-8"
    )


def _choose_incomplete_items(num_items: int, generator: np.random.Generator) -> tuple[set[int], set[int]]:
    """Choose the items without an image and those without a text: at least one of each, and none without both."""
    num_without_image = max(1, round(SHARE_WITHOUT_IMAGE * num_items))
    num_without_text = max(1, round(SHARE_WITHOUT_TEXT * num_items))
    chosen = generator.permutation(num_items)[: num_without_image + num_without_text].tolist()
    return set(chosen[:num_without_image]), set(chosen[num_without_image:])


def _write_items(shop: Shop, path: Path, *, without_text: set[int], generator: np.random.Generator) -> None:
    rows: list[tuple[str, ...]] = []
    for item, item_id in enumerate(make_item_ids(len(shop.kinds))):
        title, description = describe(int(shop.kinds[item]), int(shop.copies[item]))
        item_categories = "|".join(categories(int(shop.kinds[item])))
        is_bare = item in without_text
        rows.append((item_id, "", "", "") if is_bare else (item_id, title, description, item_categories))
    duplicated = generator.choice(len(rows), size=max(1, len(rows) // 200), replace=False).tolist()
    for position in duplicated:  # as if from an older export, before somebody wrote the description
        rows.insert(int(generator.integers(0, len(rows))), (*rows[position][:2], "", ""))
    _write_csv(path, ("item_id", "title", "description", "categories"), rows)


def _write_interactions(shop: Shop, path: Path, *, generator: np.random.Generator) -> None:
    item_ids, user_ids = make_item_ids(len(shop.kinds)), make_user_ids(len(shop.sequences))
    events = sorted(
        (time, user_ids[user], item_ids[item])
        for user, (sequence, times) in enumerate(zip(shop.sequences, shop.times, strict=True))
        for item, time in zip(sequence, times, strict=True)
    )
    rows = [(user_id, item_id, _iso_time(time)) for time, user_id, item_id in events]
    flawed: list[tuple[str, str, str]] = []
    for position in generator.choice(len(rows), size=max(1, len(rows) // 1000), replace=False).tolist():
        flawed.append(rows[position])  # as if the event was sent twice
    num_unknown = max(1, len(rows) // 4000)
    for user_id, _, time in (rows[int(position)] for position in generator.integers(0, len(rows), size=num_unknown)):
        flawed.append((user_id, f"X{len(flawed):04d}", time))  # as if the item had left the catalogue
    for position, time in zip(generator.integers(0, len(rows), size=4).tolist(), _UNREADABLE_TIMES, strict=True):
        flawed.append((*rows[position][:2], time))
    for row in flawed:
        rows.insert(int(generator.integers(0, len(rows))), row)
    _write_csv(path, ("user_id", "item_id", "event_time"), rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    pl.DataFrame(rows, schema=list(columns), orient="row").write_csv(path, quote_style="necessary")


def _iso_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _num_digits(count: int) -> int:
    return max(4, len(str(count)))
