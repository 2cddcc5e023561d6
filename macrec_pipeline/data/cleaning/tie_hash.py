"""The order of a user's interactions at the same time, drawn from the seed (`cleaning.ties: hash`).

The data do not say in which order they happened. Whatever order is chosen, models learn it if it can be learned: sorted
by item ID, the test target is the largest ID of its time, and a model that prefers large IDs is measured as a good one.
The order by hash cannot be learned (docs/decisions/026-equal-timestamps.md).

Shapes (docs/notation.md): N items, R rows.
"""

import hashlib
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.encoded_log import EncodedLog


class TieHash:
    """Orders tied rows by a hash of the seed, the user ID, the item ID and the time.

    The hash of a row depends on nothing else: neither on other rows, nor on the order of the files, nor on the machine.
    The time is part of it so that the items of a user who takes the same ones again and again are in a new order each
    time. A digest is computed per user with ties and per item, and the digests are mixed per tied row.

    Args:
        log: the encoded log.
        seed: the seed of the order.
    """

    def __init__(self, log: EncodedLog, *, seed: int) -> None:
        self._log = log
        self._seed = seed

    def order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return rows of the log with those that share user and time ordered by their hash.

        Args:
            rows: int64 [R], by user and time. Where two hashes are equal, their order is kept.
        """
        users, times = self._log.users[rows], self._log.timestamps[rows]
        equals_next = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
        is_tied = np.append(equals_next, False) | np.append(False, equals_next)
        positions = np.flatnonzero(is_tied)
        if not len(positions):
            return rows
        group = np.cumsum(~np.append(False, equals_next)[positions])  # equal in rows that share user and time
        ordered = rows.copy()
        ordered[positions] = rows[positions][np.lexsort((self._hashes(rows[positions]), group))]
        return ordered

    def _hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the hash of each row: uint64 [R]. Rows of a user must be next to each other."""
        users = self._log.users[rows]
        starts_user = np.append(True, users[1:] != users[:-1])
        user_digests = self._digests(self._log.user_ids.gather(users[starts_user]), kind=b"user")
        of_user = user_digests[np.cumsum(starts_user) - 1]
        of_item = self._item_digests[self._log.items[rows]]
        return _mix(of_user ^ _mix(of_item ^ _mix(self._log.timestamps[rows].view(np.uint64))))

    @cached_property
    def _item_digests(self) -> NDArray[np.uint64]:
        """The digest of each item number of the log: uint64 [N]."""
        return self._digests(self._log.item_ids, kind=b"item")

    def _digests(self, ids: pl.Series, *, kind: bytes) -> NDArray[np.uint64]:
        """Return eight bytes of BLAKE2b of each ID, with the seed as key: uint64, one per ID."""
        key = self._seed.to_bytes(8, "little")
        digests = (hashlib.blake2b(text.encode(), digest_size=8, key=key, person=kind).digest() for text in ids)
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread each value's bits over all 64 (the finalizer of SplitMix64; Steele, Lea and Flood 2014)."""
    mixed: NDArray[np.uint64] = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
