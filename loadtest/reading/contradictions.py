"""What the keys of a scenario say about each other: names that must exist, forms that exclude each other, sums.

Judged is the raw scenario, key by key, so that these faults are found beside those of single values; where a value
that is needed is wrong itself, nothing is said here. Whether a trace can be replayed is told by `traces` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

from loadtest.reading.faults import Path, suggest
from loadtest.reading.keys import (
    BoundsKeys,
    CancelKeys,
    Keys,
    OutputKeys,
    PhaseKeys,
    ScenarioKeys,
    SweepKeys,
    TargetKeys,
)
from loadtest.reading.written import Written, Wrong
from loadtest.scenario import Span
from tenancy.units import format_duration

Blame = Callable[[Path, str, str], None]
"""Notes a fault: its path, the reason, the remedy."""

OPEN = ("constant", "poisson", "gamma")
WHOLE = "all"
WARM_UP = "warm-up"
DEFAULT_OUTPUT = Span(64, 64)


def check(root: dict[str, Any], folder: FilePath, blame: Blame) -> None:
    """Blame all that contradicts itself; a trace's path is taken from `folder`."""
    _Check(root, folder, blame).run()


def sharing(root: dict[str, Any]) -> set[str]:
    """Who gets calls of the trace: who is in its split, else who has no arrivals."""
    if root.get("trace") is None:
        return set()
    split = _mapping(root, "trace").get("split")
    if isinstance(split, dict):
        return set(split)
    return {
        tenant["name"]
        for _, tenant in _entries(root, "tenants")
        if isinstance(tenant.get("name"), str) and tenant.get("arrivals") is None
    }


class _Check:
    """One scenario, and who shares its trace."""

    def __init__(self, root: dict[str, Any], folder: FilePath, blame: Blame) -> None:
        self._root = root
        self._folder = folder
        self._blame = blame
        self._trace = _mapping(root, "trace")
        self._has_trace = root.get("trace") is not None
        self._has_sweep = root.get("sweep") is not None
        self._tenants = _entries(root, "tenants")
        named = (tenant.get("name") for _, tenant in self._tenants)
        self._names = list(dict.fromkeys(name for name in named if isinstance(name, str)))
        self._sharing = sharing(root)
        self._is_whole = _read(TargetKeys, "stream", _mapping(root, "target")) is False

    def run(self) -> None:
        self._check_target()
        self._check_tenants()
        self._check_phases()
        self._check_sums()
        if self._has_trace:
            self._check_trace()
            self._check_columns()
        if self._has_sweep:
            self._check_sweep()

    # ---- what is called, and by whom

    def _check_target(self) -> None:
        target = _mapping(self._root, "target")
        body = _mapping(target, "body")
        for name in ("stream", "model"):
            if name in body:
                self._blame(("target", "body", name), "is written by the load tester", f"set `target.{name}`")
        if "n" in body and body["n"] != 1:
            reason = "asks for several answers in one, whose events cannot be told apart"
            self._blame(("target", "body", "n"), reason, "leave it out")
        if self._is_whole and target.get("usage") == "exact":
            reason = "is judged by a stream's events, and answers are not streamed"
            self._blame(("target", "usage"), reason, "write bounded, or stream: true")

    def _check_tenants(self) -> None:
        self._check_names("tenants", self._tenants, WHOLE, "is what all tenants together are called")
        for path, tenant in self._tenants:
            arrivals = tenant.get("arrivals")
            if isinstance(arrivals, dict):
                self._check_arrivals((*path, "arrivals"), arrivals)
            elif arrivals is None and "arrivals" not in tenant:
                self._check_without_arrivals(path, tenant)
            if "cancel" in tenant:
                self._check_cancel(path, tenant)

    def _check_names(self, key: str, entries: list[tuple[Path, dict[str, Any]]], taken: str, why: str) -> None:
        first: dict[str, Path] = {}
        for path, entry in entries:
            name = entry.get("name")
            if not isinstance(name, str):
                continue
            if name in first:
                self._blame((*path, "name"), f"{name!r} is the name of {key}[{first[name][-1]}], too", "rename one")
            elif name == taken:
                self._blame((*path, "name"), f"{name!r} {why}", "choose another")
            first.setdefault(name, path)

    def _check_arrivals(self, path: Path, arrivals: dict[str, Any]) -> None:
        kind = arrivals.get("kind")
        if kind == "closed":
            if "users" not in arrivals:
                self._blame((*path, "users"), "is missing", "say how many users call in the closed loop")
            self._refuse(path, arrivals, ("rate", "burstiness"), "is for open loops", "leave it out, or change `kind`")
        elif kind in OPEN:
            if "rate" not in arrivals:
                self._blame((*path, "rate"), "is missing", "say how many calls come a second")
            remedy = "write kind: closed, or leave it out"
            self._refuse(path, arrivals, ("users", "thinkTime"), "is for closed loops", remedy)
            if kind != "gamma":
                remedy = "write kind: gamma, or leave it out"
                self._refuse(path, arrivals, ("burstiness",), f"means nothing to {kind} arrivals", remedy)

    def _refuse(self, path: Path, around: dict[str, Any], keys: tuple[str, ...], reason: str, remedy: str) -> None:
        for key in keys:
            if key in around:
                self._blame((*path, key), reason, remedy)

    def _check_without_arrivals(self, path: Path, tenant: dict[str, Any]) -> None:
        name = tenant.get("name")
        if not self._has_trace:
            self._blame((*path, "arrivals"), "is missing", "say when calls come, or give a `trace` that does")
        elif isinstance(name, str) and name not in self._sharing:
            remedy = "add it to `trace.split`, or give it `arrivals`"
            self._blame(path, f"{name!r} has neither arrivals nor a share of the trace", remedy)
        else:
            reason = "comes with the trace's calls, and there are no others"
            self._refuse(path, tenant, ("input", "output"), reason, "leave it out")

    def _check_cancel(self, path: Path, tenant: dict[str, Any]) -> None:
        if self._is_whole:
            self._blame((*path, "cancel"), "counts a stream's events, and answers are not streamed", "leave it out")
        after = _read(CancelKeys, "afterTokens", _mapping(tenant, "cancel"))
        output = _read(OutputKeys, "tokens", _mapping(tenant, "output")) if "output" in tenant else DEFAULT_OUTPUT
        if after is not None and output is not None and "arrivals" in tenant and after.low >= output.high:
            reason = f"comes after the end: answers have at most {output.high:,} tokens"
            self._blame((*path, "cancel", "afterTokens"), reason, "make it less, or `output` more")

    # ---- the run

    def _check_phases(self) -> None:
        phases = _entries(self._root, "phases")
        self._check_names("phases", phases, WARM_UP, "is what the load before the phases is called")
        for path, phase in phases:
            named = phase.get("tenants")
            for place, name in enumerate(named if isinstance(named, list) else ()):
                if isinstance(name, str) and self._names and name not in self._names:
                    self._blame((*path, "tenants", place), f"no tenant is called {name!r}", suggest(name, self._names))
            if "duration" in phase or self._has_sweep:
                continue
            called = {name for name in named if isinstance(name, str)} if isinstance(named, list) else set(self._names)
            if not self._has_trace:
                self._blame((*path, "duration"), "is missing", "say how long it lasts; only a trace can tell instead")
            elif not self._sharing & called:
                remedy = "say how long it lasts; none of its tenants is in the trace"
                self._blame((*path, "duration"), "is missing", remedy)
        is_open = not ("phases" in self._root or self._has_sweep or self._has_trace)
        if is_open and "duration" not in _mapping(self._root, "bounds"):
            remedy = "add phases: [{name: main, duration: 60s}], or bounds: {duration: 60s}"
            self._blame(("phases",), "is missing, and nothing else says how long the run is", remedy)

    def _check_sums(self) -> None:
        """Whether the time that the bounds leave holds what is asked."""
        limit = _read(BoundsKeys, "duration", _mapping(self._root, "bounds"))
        warmup = _read(ScenarioKeys, "warmup", self._root)
        if limit is None or warmup is None:
            return
        if "phases" in self._root:
            seconds = warmup + sum(
                _read(PhaseKeys, "duration", phase) or 0 for _, phase in _entries(self._root, "phases")
            )
            reason = f"is less than the warm-up and the phases together, {format_duration(seconds)}"
            is_short = seconds > limit
        elif self._has_sweep:
            step = _read(SweepKeys, "stepDuration", _mapping(self._root, "sweep")) or 0
            reason = f"holds fewer than two steps of {format_duration(step)} after the warm-up"
            is_short = limit < warmup + 2 * step
        else:
            reason = f"leaves nothing after the warm-up, {format_duration(warmup)}"
            is_short = warmup >= limit
        if is_short:
            self._blame(("bounds", "duration"), reason, "raise it, or leave it out")

    def _check_trace(self) -> None:
        trace = self._trace
        if "clip" in trace and "skip" in trace:
            self._blame(("trace", "skip"), "a call that is too long is clipped or skipped, not both", "leave one out")
        split = trace.get("split")
        for name in split if isinstance(split, dict) else ():
            if self._names and name not in self._names:
                self._blame(("trace", "split", name), f"no tenant is called {name!r}", suggest(name, self._names))
        if "split" not in trace and self._tenants and not self._sharing:
            remedy = "add split: {TENANT: 1}, or leave somebody's `arrivals` out"
            self._blame(("trace", "split"), "is missing, and everybody has arrivals of their own", remedy)
        file = trace.get("file")
        if isinstance(file, str) and file.strip() and file.isprintable() and not (self._folder / file).is_file():
            path = os.path.join(self._folder, file)  # as it was written: what came from a variable is found in it
            reason = f"'{path}' is a folder" if os.path.isdir(path) else f"there is no file '{path}'"
            self._blame(("trace", "file"), reason, "write the path of a CSV file")

    def _check_columns(self) -> None:
        columns, client = self._trace.get("columns"), self._trace.get("client")
        if client is not None and "columns" not in self._trace:
            remedy = "name them all: columns: {time: …, input: …, output: …}"
            self._blame(("trace", "client"), "names one column, and the others are to be told by the header", remedy)
        named = dict(columns) if isinstance(columns, dict) else {}
        if client is not None and named.get("client") not in (None, client):
            self._blame(("trace", "client"), "`columns.client` names another column", "leave one out")
        first: dict[str, str] = {}
        for key, column in named.items():
            if isinstance(column, str) and column in first:
                self._blame(
                    ("trace", "columns", key), f"{column!r} is the column of {first[column]}, too", "name another"
                )
            elif isinstance(column, str):
                first[column] = key

    def _check_sweep(self) -> None:
        if "phases" in self._root:
            self._blame(("phases",), "a sweep makes its own", "leave `phases` or `sweep` out")
        if self._has_trace:
            reason = "comes at its own times, which a sweep cannot raise"
            self._blame(("trace",), reason, "leave `trace` or `sweep` out")
        sweep = _mapping(self._root, "sweep")
        rising = sweep.get("of")
        for path, tenant in self._tenants if rising in ("rate", "users") else ():
            kind = _mapping(tenant, "arrivals").get("kind")
            if kind in (*OPEN, "closed") and (kind == "closed") != (rising == "users"):
                remedy = f"make it {'closed' if rising == 'users' else 'an open loop'}, or sweep the other"
                self._blame((*path, "arrivals", "kind"), f"{kind} does not rise with a sweep of {rising}", remedy)
        first, last = _read(SweepKeys, "from", sweep), _read(SweepKeys, "to", sweep)
        if first is not None and last is not None and first >= last:
            self._blame(("sweep", "to"), f"must be more than where it begins, {first:g}", "raise it")
        for key, load in (("from", first), ("to", last)):
            if rising == "users" and load is not None and not load.is_integer():
                self._blame(("sweep", key), f"{load:g} users are no whole number", "write a whole number")


def _mapping(around: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key, or an empty one where it is none."""
    value = around.get(key)
    return value if isinstance(value, dict) else {}


def _entries(root: dict[str, Any], key: str) -> list[tuple[Path, dict[str, Any]]]:
    """The mappings of a list, with their places."""
    value = root.get(key)
    found = enumerate(value) if isinstance(value, list) else ()
    return [((key, place), entry) for place, entry in found if isinstance(entry, dict)]


def _read(model: type[Keys], key: str, around: dict[str, Any]) -> Any:
    """What a key says, or its default; `None` where it says nothing, or is wrong, which is told elsewhere."""
    field = next(field for field in model.model_fields.values() if field.alias == key)
    kind = next(entry for entry in field.metadata if isinstance(entry, Written))
    try:
        return kind.read(around.get(key, None if field.is_required() else field.default))
    except Wrong:
        return None
