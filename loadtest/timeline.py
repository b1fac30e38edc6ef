"""What happened when, in a bounded number of stretches, for all tenants of one phase.

A phase may last a second or a day: stretches begin at a quarter of a second, and each time the line is full, neighbours
are merged and the stretch is doubled. First-token latencies of a stretch are kept as counts in the histogram's buckets,
and only buckets that hold something are kept: one sorted array of keys (tenant, stretch, bucket) and one of counts.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from loadtest.histogram import SIZE, Counts, Floats, Histogram, buckets_of, edges
from loadtest.summary import FEWEST_FOR_P99, Moment

FIRST_STRETCH_SECONDS: Final = 0.25
MOST_STRETCHES: Final = 240
MOST_IN_ALL: Final = 12_000  # many tenants have fewer stretches each, so that a report stays readable by a machine
FEWEST_STRETCHES: Final = 40
MOST_PENDING: Final = 65_536

SCHEDULED, DONE, FAILED, TOKENS, OPEN = range(5)


class Timeline:
    """The time lines of `lanes` tenants, all in the same stretches. Times are seconds from the phase's start."""

    def __init__(self, lanes: int) -> None:
        self.most = int(min(MOST_STRETCHES, max(FEWEST_STRETCHES, MOST_IN_ALL // max(lanes, 1)))) // 2 * 2
        self.stretch_seconds = FIRST_STRETCH_SECONDS
        self._sums: Counts = np.zeros((lanes, self.most, 5), dtype=np.int64)
        self._keys: Counts = np.zeros(0, dtype=np.int64)
        self._counts: Counts = np.zeros(0, dtype=np.int64)
        self._pending: list[Counts] = []
        self._pending_count = 0
        self._latest = -1.0  # when the last call with a first token was due

    def count(self, lane: int, what: int, times: Floats, amounts: Counts | None = None) -> None:
        """Add one, or each its amount, to the stretches in which `times` lie."""
        if times.size:
            slots = self._slots(times)
            added = np.bincount(slots, weights=amounts, minlength=self.most)
            self._sums[lane, :, what] += np.rint(added).astype(np.int64)

    def add(self, lane: int, what: int, at: float, amount: int) -> None:
        """Add `amount` to the stretch in which `at` lies."""
        if amount:
            slot = self._slot(at)  # first: it may put other sums in place of these
            self._sums[lane, slot, what] += amount

    def see_open(self, lane: int, at: float, streams: int) -> None:
        """A stretch remembers the most streams seen open in it."""
        slot = self._slot(at)
        self._sums[lane, slot, OPEN] = max(int(self._sums[lane, slot, OPEN]), streams)

    def add_ttft(self, lane: int, scheduled: Floats, ttft: Floats) -> None:
        """Take the first-token latencies of calls that were due at these times."""
        if scheduled.size:
            slots = self._slots(scheduled)
            self._latest = max(self._latest, float(scheduled.max()))
            self._pending.append((lane * self.most + slots) * SIZE + buckets_of(ttft))
            self._pending_count += scheduled.size
            if self._pending_count > max(MOST_PENDING, self._keys.size):
                self._compact()

    def moments(self, lane: int, phase_at: float) -> list[Moment]:
        """The lane's stretches, up to the last in which anything happened to anybody; `at` from the run's start."""
        self._compact()
        filled = np.flatnonzero(self._sums.any(axis=(0, 2)))
        last = max(int(filled[-1]) if filled.size else -1, int(self._latest // self.stretch_seconds)) + 1
        begins = (lane * self.most + np.arange(last + 1)) * SIZE
        bounds = np.searchsorted(self._keys, begins)
        return [
            self._moment(lane, slot, phase_at, slice(int(bounds[slot]), int(bounds[slot + 1]))) for slot in range(last)
        ]

    def _moment(self, lane: int, slot: int, phase_at: float, part: slice) -> Moment:
        sums = self._sums[lane, slot].tolist()
        moment = Moment(
            at=phase_at + slot * self.stretch_seconds,
            seconds=self.stretch_seconds,
            scheduled=sums[SCHEDULED],
            done=sums[DONE],
            failed=sums[FAILED],
            tokens=sums[TOKENS],
            open=sums[OPEN],
        )
        if part.stop > part.start:
            buckets, counts = self._keys[part] % SIZE, self._counts[part]
            moment.ttft_buckets, moment.ttft_counts = buckets.tolist(), counts.tolist()
            low, high = edges(buckets[[0, -1]])
            # counts alone stand here, so the least and the greatest are known to their bucket
            held = Histogram.of(moment.ttft_buckets, moment.ttft_counts, 0.0, float(low[0]), float(high[1]))
            moment.ttft_p50 = held.quantile(0.5)
            moment.ttft_p99 = held.quantile(0.99) if held.count >= FEWEST_FOR_P99 else None
        return moment

    def _slot(self, at: float) -> int:
        return int(self._slots(np.array([at]))[0])

    def _slots(self, times: Floats) -> Counts:
        """The stretch of each time; the line grows first, where one lies beyond its end."""
        while times.max() >= self.most * self.stretch_seconds:
            self._double()
        return np.maximum((times / self.stretch_seconds).astype(np.int64), 0)

    def _double(self) -> None:
        self._compact()
        self.stretch_seconds *= 2
        half = self.most // 2
        pairs = self._sums.reshape(self._sums.shape[0], half, 2, self._sums.shape[2])
        merged = pairs.sum(axis=2)
        merged[:, :, OPEN] = pairs[:, :, :, OPEN].max(axis=2)
        self._sums = np.zeros_like(self._sums)
        self._sums[:, :half] = merged
        places, buckets = np.divmod(self._keys, SIZE)
        lanes, slots = np.divmod(places, self.most)
        self._unite((lanes * self.most + slots // 2) * SIZE + buckets, self._counts)

    def _compact(self) -> None:
        if self._pending:
            new = np.concatenate(self._pending)
            self._pending, self._pending_count = [], 0
            keys = np.concatenate((self._keys, new))
            self._unite(keys, np.concatenate((self._counts, np.ones(new.size, dtype=np.int64))))

    def _unite(self, keys: Counts, counts: Counts) -> None:
        """Equal keys become one; `keys` end sorted."""
        self._keys, place = np.unique(keys, return_inverse=True)
        summed = np.bincount(place, weights=counts, minlength=self._keys.size)
        self._counts = np.rint(summed).astype(np.int64)
