"""Calls as they once came: a CSV of times and token counts becomes columns of numbers, each row some tenant's.

Known by their headers are Azure's LLM inference traces (`TIMESTAMP, ContextTokens, GeneratedTokens`), BurstGPT's
(`Timestamp, Session ID, …, Request tokens, Response tokens`), and such with plain names (`t_s, client, input_tokens,
output_tokens`); of any other CSV the columns are named. What a time is, its column tells: a date and time in ISO form,
or a number of seconds, or of milliseconds where the name ends in `_ms` or where it must be a Unix time in these. Only
differences between times count.

Whose a row is: a client with a tenant's name is that tenant. Any other client is given to a tenant by a hash of its
name, weighted by the split, so that all its calls stay together and no other row can move it. Rows without a client are
drawn one by one. A row of no input or no output tokens counts as one of one token: BurstGPT writes 0 where a call
failed, and no server makes an answer of nothing.

All that is wrong with a file is a `TraceError` with the place and what to do. Which rows a phase takes is decided in
`schedule`.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import blake2b
from itertools import accumulate, chain
from math import isfinite, nan
from random import Random
from stat import S_ISREG
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from loadtest.scenario import Columns, Scenario, Trace

AS_IT_WAS, CLIPPED, SKIPPED = 0, 1, 2
"""What became of a row that the context may have been too small for."""

MOST_TOKENS = 2**31 - 1
_LONGEST_LINE = 65_536

_KNOWN: dict[str, tuple[str, ...]] = {
    "time": ("timestamp", "time", "t", "ts", "arrivaltime", "arrivedat"),
    "input": ("contexttokens", "inputtokens", "requesttokens", "prompttokens", "inputlength", "numprefilltokens"),
    "output": (
        "generatedtokens",
        "outputtokens",
        "responsetokens",
        "completiontokens",
        "outputlength",
        "numdecodetokens",
    ),
    "client": ("client", "clientid", "tenant", "user", "userid", "sessionid"),
}
"""Headers that need no naming, without case, marks and unit (`Request tokens` is `requesttokens`, `t_s` is `t`)."""

_UNIT = re.compile(r"[ _(]+(s|ms|us|ns)\)?$")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_EPOCHS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
"""Times of our days counted from 1970: in seconds they are below 10^11, and in smaller units above."""


class TraceError(ValueError):
    """A trace that cannot be replayed: which file, where in it, what is wrong and what to do."""

    def __init__(self, file: str, what: str, *, line: int = 0, column: str = "") -> None:
        self.file, self.line, self.column = file, line, column
        place = file + (f", line {line}" if line else "") + (f", column {column!r}" if column else "")
        super().__init__(f"{place}: {what}")


@dataclass(frozen=True, slots=True, eq=False)
class TraceRows:
    """A trace's calls in order of time, a column each; 19 bytes a row.

    `times` are seconds from the first call, the trace's speed already in them. `tenants` are places in the sequence of
    tenants that the trace was read for. `fates` tells which rows were clipped and which are to be left out; those that
    are left out stay in their place, so that they can be counted when their time has come. `is_whole` is false
    where the file had more rows than were wanted.
    """

    times: NDArray[np.float64]
    inputs: NDArray[np.int32]
    outputs: NDArray[np.int32]
    tenants: NDArray[np.int16]
    fates: NDArray[np.uint8]
    is_whole: bool

    @property
    def seconds(self) -> float:
        """When the last call comes."""
        return float(self.times[-1])

    def count(self, tenant: int, fate: int | None = None) -> int:
        """How many rows are the tenant's, in all or with one fate."""
        is_theirs = self.tenants == tenant
        return int(np.count_nonzero(is_theirs if fate is None else is_theirs & (self.fates == fate)))


def rows_of(scenario: Scenario) -> TraceRows | None:
    """The rows of a scenario's trace, if it has one. Raises as `read_trace` does."""
    if scenario.trace is None:
        return None
    names = [tenant.name for tenant in scenario.tenants]
    return read_trace(scenario.trace, names, seed=scenario.seed, most_rows=scenario.bounds.requests)


def read_trace(trace: Trace, tenants: Sequence[str], *, seed: int, most_rows: int) -> TraceRows:
    """The calls of the file, in order of time; rows of the same time stay in the file's order.

    No more than `most_rows` are read, from the top. Raises `TraceError`. About 5 µs a row; the file is not held.
    """
    assert trace.speed > 0 and most_rows > 0
    try:
        if not S_ISREG(os.stat(trace.file).st_mode):
            raise TraceError(trace.file, "is no regular file; a trace is read more than once, so write it to a file")
        with open(trace.file, encoding="utf-8-sig", newline="") as file:
            return _read(trace, file, _Owners(trace, tenants, seed), most_rows)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(trace.file, f"cannot be read: {reason}; write the path of a CSV file") from error
    except UnicodeDecodeError as error:
        raise TraceError(trace.file, "is not text in UTF-8; unpack it if it is compressed") from error


class _Owners:
    """Whose a row is."""

    def __init__(self, trace: Trace, tenants: Sequence[str], seed: int) -> None:
        unknown = sorted(set(trace.split) - set(tenants))
        if unknown:
            raise TraceError(
                trace.file, f"is split among {unknown[0]!r}, who is no tenant; there are {_listed(tenants)}"
            )
        self._file = trace.file
        self._seed = seed
        self._random = Random(f"{seed}/trace")
        self._of_client = {name: place for place, name in enumerate(tenants)}
        self._sharing = [place for place, name in enumerate(tenants) if trace.split.get(name, 0) > 0]
        self._ends = list(accumulate(trace.split[tenants[place]] for place in self._sharing))

    def of(self, client: str) -> int:
        """The tenant's place; an empty client is nobody that would be known again."""
        if not client:
            return self._at(self._random.random(), "a row")
        place = self._of_client.get(client)
        if place is None:
            digest = blake2b(f"{self._seed}/client/{client}".encode(), digest_size=8).digest()
            place = self._at(int.from_bytes(digest, "big") / 2**64, f"client {client!r}")
            self._of_client[client] = place
        return place

    def _at(self, share: float, what: str) -> int:
        if not self._sharing:
            raise TraceError(self._file, f"nobody takes {what}; give tenants a share in the trace's split")
        # A share that rounds up to the very end is still the last one's.
        return self._sharing[min(bisect_right(self._ends, share * self._ends[-1]), len(self._ends) - 1)]


def _read(trace: Trace, file: TextIO, owners: _Owners, most_rows: int) -> TraceRows:
    lines = _lines(trace.file, file)
    line, names = next(lines)
    header = _Header(trace.file, line, [name.strip() for name in names])
    columns = trace.columns or header.known()
    time_at, input_at, output_at = map(header.place, (columns.time, columns.input, columns.output))
    client_at = None if columns.client is None else header.place(columns.client)
    needed = 1 + max(time_at, input_at, output_at, client_at or 0)

    times, inputs, outputs, tenants = array("d"), array("i"), array("i"), array("h")
    read_time: Callable[[str], float] | None = None
    is_whole = True
    for line, row in lines:
        if len(row) < needed:
            what = f"has {len(row)} of the header's {len(names)} fields; complete the line or remove it"
            raise TraceError(trace.file, what, line=line)
        if len(times) == most_rows:
            is_whole = False
            break
        try:
            if read_time is None:
                read_time = _time_reader(columns.time, row[time_at])
            times.append(read_time(row[time_at]))
        except ValueError as error:
            raise TraceError(trace.file, str(error), line=line, column=columns.time) from error
        inputs.append(_tokens(trace.file, row[input_at], line, columns.input))
        outputs.append(_tokens(trace.file, row[output_at], line, columns.output))
        tenants.append(owners.of("" if client_at is None else row[client_at].strip()))
    if not times:
        raise TraceError(trace.file, "has a header and no rows; a trace is a CSV with a row for each call")
    return _in_order(trace, times, inputs, outputs, tenants, is_whole=is_whole)


def _lines(name: str, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The lines that hold something, numbered; the first is the header. Commas, semicolons or tabs part the fields."""
    pieces = _pieces(name, file)
    blank, start = next(((n, piece) for n, piece in enumerate(pieces) if piece.strip()), (0, ""))
    if not start:
        raise TraceError(name, "is empty; a trace is a CSV with a header and a row for each call")
    reader = csv.reader(chain([start], pieces), delimiter=max(",;\t", key=start.count), strict=True)
    try:
        for row in reader:
            if "".join(row).strip():
                yield blank + reader.line_num, row
    except csv.Error as error:
        what = f"is no CSV here: {error}; correct the line, or the quotes before it"
        raise TraceError(name, what, line=blank + reader.line_num) from error


def _pieces(name: str, file: TextIO) -> Iterator[str]:
    """The file's lines; of a file that has none worth the name, not all is held."""
    for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE), ""), 1):
        if len(line) == _LONGEST_LINE:
            raise TraceError(name, f"is longer than {_LONGEST_LINE:,} characters; is the file a CSV?", line=number)
        yield line


@dataclass(frozen=True, slots=True)
class _Header:
    """The names of a file's columns."""

    file: str
    line: int
    names: list[str]

    def known(self) -> Columns:
        """The columns whose names tell what they hold."""
        plain = {re.sub(r"[^a-z]", "", _UNIT.sub("", name.lower())): name for name in self.names}
        found = {what: next((plain[name] for name in known if name in plain), "") for what, known in _KNOWN.items()}
        for what in ("time", "input", "output"):
            if not found[what]:
                remedy = "name the trace's columns, as in columns: {time: …, input: …, output: …}"
                raise self._error(f"no column is known to be the {what}: there are {_listed(self.names)}; {remedy}")
        return Columns(found["time"], found["input"], found["output"], found["client"] or None)

    def place(self, column: str) -> int:
        """Where in a row the column stands."""
        if self.names.count(column) == 1:
            return self.names.index(column)
        if column in self.names:
            raise self._error("stands there twice; rename one of the two", column)
        lower = {name.lower(): name for name in self.names}
        near = [lower[name] for name in difflib.get_close_matches(column.lower(), lower, n=1)]
        remedy = f"{near[0]!r} may be meant" if near else "name one of these"
        raise self._error(f"there is no such column: the header has {_listed(self.names)}; {remedy}", column)

    def _error(self, what: str, column: str = "") -> TraceError:
        return TraceError(self.file, what, line=self.line, column=column)


def _time_reader(column: str, first: str) -> Callable[[str], float]:
    """How this trace's times are read, told by the column's name and its first value."""
    try:
        number = float(first)
    except ValueError:
        return _dated(first)
    named = _UNIT.search(column.lower())
    unit = _UNITS[named[1]] if named else next((unit for least, unit in _EPOCHS if number >= least), 1.0)
    return lambda text: _seconds(text, unit)


def _seconds(text: str, unit: float) -> float:
    try:
        seconds = float(text) * unit
    except ValueError:
        seconds = nan
    if not isfinite(seconds):
        raise ValueError(f"{text!r} is not a number of seconds as those before it; correct it")
    return seconds


def _dated(first: str) -> Callable[[str], float]:
    """Times in ISO form, as seconds from the first row's; digits beyond microseconds are cut off."""
    origin = _date(first)

    def seconds(text: str) -> float:
        try:
            return (_date(text) - origin).total_seconds()
        except TypeError:
            raise ValueError(f"{text!r} and the first time differ in whether they name a zone; let all do so") from None

    return seconds


def _date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not a time; write 2023-11-16 18:15:46.68 or a number of seconds") from None


def _tokens(file: str, text: str, line: int, column: str) -> int:
    """A count of tokens, at least one."""
    try:
        count = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            number = nan
        if not number.is_integer():  # neither NaN nor infinity is
            what = f"{text!r} is not a whole number of tokens; correct it or remove the line"
            raise TraceError(file, what, line=line, column=column) from None
        count = int(number)
    if count < 0:
        what = f"{text} is negative, and no call has so many tokens; correct it or remove the line"
        raise TraceError(file, what, line=line, column=column)
    if count > MOST_TOKENS:
        what = f"{text} is more than {MOST_TOKENS:,} tokens; correct it or remove the line"
        raise TraceError(file, what, line=line, column=column)
    return count or 1


def _in_order(
    trace: Trace, times: array[float], inputs: array[int], outputs: array[int], tenants: array[int], *, is_whole: bool
) -> TraceRows:
    """The columns sorted by time, held against the context."""
    at = np.array(times, dtype=np.float64)
    order = np.argsort(at, kind="stable")
    at = at[order]
    asked = np.array(inputs, dtype=np.int32)[order]
    made = np.array(outputs, dtype=np.int32)[order]
    fates = np.full(len(at), AS_IT_WAS, dtype=np.uint8)
    if trace.context is not None:
        room = trace.context - made.astype(np.int64)
        is_over = asked > room
        fates[is_over] = CLIPPED if trace.over == "clip" else SKIPPED
        fates[room < 1] = SKIPPED  # the output is never changed, and a prompt of nothing is no call
        asked = np.where(fates == CLIPPED, room, asked).astype(np.int32)
    whose = np.array(tenants, dtype=np.int16)[order]
    return TraceRows((at - at[0]) / trace.speed, asked, made, whose, fates, is_whole)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
