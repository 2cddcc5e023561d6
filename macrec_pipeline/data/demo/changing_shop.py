"""A shop that changes from week to week, for simulations of many weekly runs.

The input is a `ShopPlan`, its size and pace. The output is one delivery per week: the log of everything so far and the
catalogue of that day, as files.

    log.csv        user_id, item_id, time (ISO, UTC): the time to the second, or only the day for customers of a branch
    items.csv      item_id, title, description, price
    images/{item_id}.jpg

As in the demo shop, an item's text says its kind and its image shows its style, and a user's next item tends to
continue a chain of kinds and to keep the style. In addition, from week to week,

- items come and go, and some that have gone come back; texts are edited and prices drift;
- kinds have seasons, and there are busier weeks before the end of the year;
- users change their tastes, pause for weeks, and new ones come;
- some weeks have no interactions, and some deliveries arrive damaged and are replaced the next day.

No user chooses an item twice. Items that left before week 0 are in the log but in no catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.demo.catalogue import describe
from macrec_pipeline.data.demo.images import draw_image
from macrec_pipeline.runtime.time_units import DAY_MS, MINUTE_MS

Damage = Literal["unreadable_times", "truncated_catalogue"]

WEEK_MS = 7 * DAY_MS
WEEKS_PER_YEAR = 52
_FIRST_WEEK_MS = 1_704_067_200_000  # Monday, 2024-01-01 00:00 UTC: the begin of week 0

# What decides a user's next item.
_CONTINUE_KIND, _KEEP_STYLE = 0.6, 0.75
_NUM_FAVOURITES = 3
_TASTE = np.array([0.6, 0.28, 0.12])
_POPULARITY_SPREAD = 0.5
_PRICE_ELASTICITY = 2.0
_SEASON_STRENGTH = 0.8
_BUSY_WEEKS, _BUSY_FACTOR = range(47, 52), 1.5

# The chances of a change, per week.
_TASTE_CHANGES, _USER_PAUSES, _USER_RETURNS = 0.03, 0.03, 0.2
_TEXT_EDITED, _ITEM_RETURNS = 0.01, 0.5
_PRICE_DRIFT = 0.03
_MIN_WEEKS_AWAY = 2

_DAMAGED_ROWS = 0.3
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class ShopPlan:
    """The size and pace of a changing shop.

    Attributes:
        num_items: items that are sold at the same time, at the beginning.
        num_users: users at the beginning.
        num_kinds, num_styles: kinds of products and styles of images; see `demo/catalogue.py` and `demo/images.py`.
        new_items, leaving_items: items that come and go per week.
        new_users: users who come per week.
        events_per_week: mean number of interactions of an active user.
        weeks_before: weeks that the log covers before week 0.
        share_of_branch: share of users whose log has only the day of an interaction.
        empty_weeks: weeks without any interaction.
        damaged: week -> how its first delivery is damaged; the next day brings the right files.
        seed: seed of everything that is drawn.
    """

    num_items: int = 240
    num_users: int = 300
    num_kinds: int = 10
    num_styles: int = 6
    new_items: int = 6
    leaving_items: int = 6
    new_users: int = 4
    events_per_week: float = 0.9
    weeks_before: int = 20
    share_of_branch: float = 0.25
    empty_weeks: tuple[int, ...] = (4, 33)
    damaged: tuple[tuple[int, Damage], ...] = ((6, "unreadable_times"), (9, "truncated_catalogue"))
    seed: int = 7


@dataclass(frozen=True)
class Choices:
    """The interactions of one week, in chronological order.

    Attributes:
        users: int64 [R], the number of the user of each interaction.
        items: int64 [R], the number of the item.
        times: int64 [R], ms since the epoch.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64]


@dataclass(frozen=True)
class _Edition:
    """The catalogue of one week: the numbers of its items, with the number of edits of each text and each price."""

    items: NDArray[np.int64]
    edits: NDArray[np.int64]
    prices: NDArray[np.float64]


class ChangingShop:
    """The weeks of a shop; the same plan gives the same weeks, however many are simulated.

    Args:
        plan: the size and pace.
        num_weeks: the weeks to simulate, from 0.
    """

    def __init__(self, plan: ShopPlan, *, num_weeks: int) -> None:
        from macrec_pipeline.runtime.seeds import numpy_generator  # loads torch

        self.plan = plan
        self._state = _State(plan, numpy_generator(plan.seed, "changing-shop/beginning"))
        self._choices: dict[int, Choices] = {}
        self._editions: dict[int, _Edition] = {}
        for week in range(-plan.weeks_before, num_weeks):
            generator = numpy_generator(plan.seed, f"changing-shop/week/{week}")
            self._state.change(generator)
            self._editions[week] = self._state.edition()
            self._choices[week] = self._state.choose(week, generator)

    @property
    def kinds(self) -> NDArray[np.int64]:
        """The kind of each item that there has ever been, by the item's number."""
        return self._state.kinds

    def choices(self, week: int) -> Choices:
        """Return the interactions of a week."""
        return self._choices[week]

    def sold_in(self, week: int) -> set[str]:
        """Return the item IDs of the catalogue of a week."""
        return set(item_ids(self._editions[week].items))

    def write(self, week: int, folder: Path, *, damage: Damage | None = None) -> None:
        """Write the delivery at the end of a week: the log so far and the catalogue of the week.

        The images of items that have left are removed. Each file is replaced in one step.

        Args:
            week: the week, from 0.
            folder: the folder of the files; it is created if it does not exist.
            damage: how the delivery is damaged; None for the right files.
        """
        (folder / "images").mkdir(parents=True, exist_ok=True)
        self._write_log(week, folder / "log.csv", is_damaged=damage == "unreadable_times")
        self._write_items(week, folder / "items.csv", is_truncated=damage == "truncated_catalogue")
        self._write_images(week, folder / "images")

    def log(self, week: int) -> pl.DataFrame:
        """Return the log up to the end of a week: `user_id`, `item_id`, `time` (ms) and `week`, in time order."""
        weeks = [number for number in sorted(self._choices) if number <= week]
        parts = [self._choices[number] for number in weeks]
        return pl.DataFrame(
            {
                "user_id": user_ids(np.concatenate([part.users for part in parts])),
                "item_id": item_ids(np.concatenate([part.items for part in parts])),
                "time": np.concatenate([part.times for part in parts]),
                "week": np.repeat(weeks, [len(part.users) for part in parts]),
            }
        )

    def _write_log(self, week: int, path: Path, *, is_damaged: bool) -> None:
        log = self.log(week)
        is_branch = log["user_id"].is_in(user_ids(np.flatnonzero(self._state.is_branch)))
        times = [
            _iso_day(time) if only_day else _iso_time(time)
            for time, only_day in zip(log["time"].to_list(), is_branch.to_list(), strict=True)
        ]
        if is_damaged:
            for row in range(round(len(times) * _DAMAGED_ROWS)):
                times[row] = "#REF!"
        _replace(path, log.select("user_id", "item_id").with_columns(time=pl.Series(times, dtype=pl.String)))

    def _write_items(self, week: int, path: Path, *, is_truncated: bool) -> None:
        edition = self._editions[week]
        rows = []
        for item, edits, price in zip(edition.items, edition.edits, edition.prices, strict=True):
            title, description = describe(int(self._state.kinds[item]), int(self._state.copies[item]))
            note = f" Edition {edits + 1} of this text." if edits else ""
            rows.append((item_ids([item])[0], title, description + note, f"{price:.2f}"))
        rows = rows[: len(rows) // 2] if is_truncated else rows
        _replace(path, pl.DataFrame(rows, schema=["item_id", "title", "description", "price"], orient="row"))

    def _write_images(self, week: int, folder: Path) -> None:
        from macrec_pipeline.runtime.seeds import numpy_generator

        sold = self._editions[week].items
        names = {f"{item_id}.jpg" for item_id in item_ids(sold)}
        for path in sorted(folder.glob("*.jpg")):
            if path.name not in names:
                path.unlink()
        for item, item_id in zip(sold.tolist(), item_ids(sold), strict=True):
            path = folder / f"{item_id}.jpg"
            if not path.exists():
                generator = numpy_generator(self.plan.seed, f"changing-shop/image/{item}")
                draw_image(int(self._state.styles[item]), generator).save(path, quality=_JPEG_QUALITY)


def item_ids(items: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Return the shop's keys of items; a key says nothing about its item."""
    return [f"P{int(item):05d}" for item in items]


def user_ids(users: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Return the shop's keys of users."""
    return [f"U{int(user):05d}" for user in users]


class _State:
    """Items and users as they are in one week. Arrays have one entry per item or user who has ever been there."""

    def __init__(self, plan: ShopPlan, generator: np.random.Generator) -> None:
        self.plan = plan
        self.kinds = self.styles = self.copies = self.edits = np.zeros(0, dtype=np.int64)
        self.popularity = self.prices = self.usual_prices = np.zeros(0)
        self.is_sold = self.is_active = self.is_branch = np.zeros(0, dtype=np.bool_)
        self.weeks_away = np.zeros(0, dtype=np.int64)
        self.favourite_kinds = self.favourite_styles = np.zeros((0, _NUM_FAVOURITES), dtype=np.int64)
        self.last_items: list[int] = []
        self.seen: list[set[int]] = []
        self.season_peaks = generator.permutation(plan.num_kinds) * WEEKS_PER_YEAR / plan.num_kinds
        self._add_items(plan.num_items, generator)
        self._add_users(plan.num_users, generator)

    def change(self, generator: np.random.Generator) -> None:
        """Let a week pass: items and users come, go and return, and texts, prices and tastes change."""
        plan = self.plan
        self.weeks_away[~self.is_sold] += 1
        leaving = generator.choice(np.flatnonzero(self.is_sold), size=plan.leaving_items, replace=False)
        away = np.flatnonzero(~self.is_sold & (self.weeks_away >= _MIN_WEEKS_AWAY))
        if len(away) and generator.random() < _ITEM_RETURNS:
            self.is_sold[generator.choice(away)] = True
        self.is_sold[leaving], self.weeks_away[leaving] = False, 0
        self._add_items(plan.new_items, generator)
        self.edits += self.is_sold & (generator.random(len(self.edits)) < _TEXT_EDITED)
        self.prices *= np.exp(generator.normal(0.0, _PRICE_DRIFT, len(self.prices)))
        chance = generator.random(len(self.is_active))
        self.is_active = np.where(self.is_active, chance >= _USER_PAUSES, chance < _USER_RETURNS)
        for user in np.flatnonzero(generator.random(len(self.is_active)) < _TASTE_CHANGES):
            self.favourite_kinds[user] = self._draw_favourites(plan.num_kinds, generator)
            self.favourite_styles[user] = self._draw_favourites(plan.num_styles, generator)
        self._add_users(plan.new_users, generator)

    def edition(self) -> _Edition:
        """Return the catalogue as it is now."""
        items = np.flatnonzero(self.is_sold)
        return _Edition(items, self.edits[items], self.prices[items])

    def choose(self, week: int, generator: np.random.Generator) -> Choices:
        """Let every active user choose items, and return the interactions of the week."""
        season = 1.0 + _SEASON_STRENGTH * np.cos(2 * np.pi * (week - self.season_peaks) / WEEKS_PER_YEAR)
        weights = self.popularity * (self.prices / self.usual_prices) ** -_PRICE_ELASTICITY * self.is_sold
        volume = self.plan.events_per_week * (_BUSY_FACTOR if week % WEEKS_PER_YEAR in _BUSY_WEEKS else 1.0)
        counts = generator.poisson(volume, len(self.is_active)) * self.is_active
        begins = _FIRST_WEEK_MS + week * WEEK_MS
        rows = []
        for user in np.flatnonzero(counts) if week not in self.plan.empty_weeks else ():
            visits = np.sort(generator.integers(0, 7 * 24 * 60, size=counts[user])) * MINUTE_MS
            for time in begins + visits:
                item = self._next_item(int(user), weights, season, generator)
                if item is not None:
                    rows.append((int(time), int(user), item))
                    self.last_items[user] = item
                    self.seen[user].add(item)
        rows.sort(key=lambda row: row[0])
        times, users, items = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return Choices(users, items, times)

    def _next_item(
        self, user: int, weights: NDArray[np.float64], season: NDArray[np.float64], generator: np.random.Generator
    ) -> int | None:
        """Choose an item that the user has not had: of the next kind and the same style, or by taste and season."""
        last = self.last_items[user]
        kinds, styles = self.favourite_kinds[user], self.favourite_styles[user]
        if last >= 0 and generator.random() < _CONTINUE_KIND:
            kind = (self.kinds[last] + 1) % self.plan.num_kinds
        else:
            liking = _TASTE * season[kinds]
            kind = generator.choice(kinds, p=liking / liking.sum())
        keeps_style = last >= 0 and generator.random() < _KEEP_STYLE
        style = self.styles[last] if keeps_style else generator.choice(styles, p=_TASTE)
        unseen = weights.copy()
        unseen[list(self.seen[user])] = 0.0
        for matches in ((self.kinds == kind) & (self.styles == style), self.kinds == kind, self.is_sold):
            candidates = unseen * matches
            if candidates.any():
                return int(generator.choice(len(candidates), p=candidates / candidates.sum()))
        return None

    def _add_items(self, number: int, generator: np.random.Generator) -> None:
        kinds = generator.integers(0, self.plan.num_kinds, number)
        first = len(self.kinds)
        self.kinds = np.append(self.kinds, kinds)
        self.styles = np.append(self.styles, generator.integers(0, self.plan.num_styles, number))
        copies = [int((self.kinds[: first + n] == kind).sum()) for n, kind in enumerate(kinds)]
        self.copies = np.append(self.copies, copies).astype(np.int64)
        self.edits = np.append(self.edits, np.zeros(number, dtype=np.int64))
        self.popularity = np.append(self.popularity, np.exp(generator.normal(0.0, _POPULARITY_SPREAD, number)))
        prices = np.exp(generator.normal(3.0, 0.6, number))
        self.prices, self.usual_prices = np.append(self.prices, prices), np.append(self.usual_prices, prices)
        self.is_sold = np.append(self.is_sold, np.ones(number, dtype=np.bool_))
        self.weeks_away = np.append(self.weeks_away, np.zeros(number, dtype=np.int64))

    def _add_users(self, number: int, generator: np.random.Generator) -> None:
        plan = self.plan
        kinds = [self._draw_favourites(plan.num_kinds, generator) for _ in range(number)]
        styles = [self._draw_favourites(plan.num_styles, generator) for _ in range(number)]
        if number:
            self.favourite_kinds = np.concatenate([self.favourite_kinds, kinds])
            self.favourite_styles = np.concatenate([self.favourite_styles, styles])
        self.is_active = np.append(self.is_active, np.ones(number, dtype=np.bool_))
        self.is_branch = np.append(self.is_branch, generator.random(number) < plan.share_of_branch)
        self.last_items += [-1] * number
        self.seen += [set() for _ in range(number)]

    @staticmethod
    def _draw_favourites(num_choices: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw favourites, best first; kinds and styles with low numbers are somewhat more fashionable."""
        fashion = 1.0 / (4.0 + np.arange(num_choices))
        return generator.choice(num_choices, size=_NUM_FAVOURITES, replace=False, p=fashion / fashion.sum())


def _iso_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _iso_day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%d")


def _replace(path: Path, table: pl.DataFrame) -> None:
    part = path.with_name(f".{path.name}.part")
    table.write_csv(part)
    part.replace(path)
