"""Options of the command line under the keys of a scenario, so that one reader judges both.

An option is a value at a path, as if a file had said it there; a fault on that path is told by the option's name. With
`-f` the file speaks, and only options that change no tenant's load may speak over it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

from loadtest.reading.document import Document
from loadtest.reading.faults import Fault, Path, ScenarioError, place_of
from loadtest.reading.keys import MOST_REQUESTS
from loadtest.reading.scenario_file import MAIN, make_scenario, read_values
from loadtest.scenario import Scenario

TENANT = "load"
"""The tenant of a run without a file."""

KEY_VARIABLES = ("PENSTOCK_LOADTEST_KEY", "OPENAI_API_KEY")
RUN_DURATION, SOAK_DURATION, SOAK_WARM_UP = "30s", "1h", "1m"

_LISTED_SPAN = re.compile(r"\[(\w+), (\w+)\]")


@dataclass(frozen=True, slots=True)
class _Option:
    """An option, the attribute that holds its value, the path that it is put at, and whether it may with a file."""

    name: str
    attribute: str
    path: Path
    is_over_file: bool = False


_ARRIVALS: Path = ("tenants", 0, "arrivals")
_OPTIONS = (
    _Option("URL", "url", ("target", "url"), True),
    _Option("--model", "model", ("target", "model"), True),
    _Option("--endpoint", "endpoint", ("target", "endpoint"), True),
    _Option("--timeout", "timeout", ("target", "timeout"), True),
    _Option("--usage", "usage", ("target", "usage"), True),
    _Option("--no-stream", "no_stream", ("target", "stream"), True),
    _Option("--body", "body", ("target", "body"), True),
    _Option("--seed", "seed", ("seed",), True),
    _Option("--warmup", "warmup", ("warmup",), True),
    _Option("--objective", "objective", ("objectives",), True),
    _Option("--max-requests", "max_requests", ("bounds", "requests"), True),
    _Option("--max-streams", "max_streams", ("bounds", "openStreams"), True),
    _Option("--duration", "duration", ("phases", 0, "duration"), True),
    _Option("--step", "step", ("sweep", "stepDuration"), True),
    _Option("--factor", "factor", ("sweep", "factor"), True),
    _Option("--within", "within", ("sweep", "within"), True),
    _Option("--key", "key", ("tenants", 0, "key")),
    _Option("--arrivals", "arrivals", (*_ARRIVALS, "kind")),
    _Option("--rate", "rate", (*_ARRIVALS, "rate")),
    _Option("--burstiness", "burstiness", (*_ARRIVALS, "burstiness")),
    _Option("--users", "users", (*_ARRIVALS, "users")),
    _Option("--think", "think", (*_ARRIVALS, "thinkTime")),
    _Option("--input", "input", ("tenants", 0, "input", "tokens")),
    _Option("--output", "output", ("tenants", 0, "output", "tokens")),
    _Option("--cancel", "cancel", ("tenants", 0, "cancel")),
    _Option("--shared-prefix", "shared_prefix", ("tenants", 0, "sharedPrefix")),
    _Option("--trace", "trace", ("trace", "file")),
    _Option("--speed", "speed", ("trace", "speed")),
    _Option("--split", "split", ("trace", "split")),
    _Option("--columns", "columns", ("trace", "columns")),
    _Option("--clip", "clip", ("trace", "clip")),
    _Option("--skip", "skip", ("trace", "skip")),
)


def scenario_of(args: argparse.Namespace, env: Mapping[str, str], cwd: FilePath) -> Scenario:
    """The scenario that the options of a run, a sweep or a soak describe, from a file or without one.

    Paths are relative to `cwd`, those in a file to its folder. Raises `ScenarioError` with every fault.
    """
    return _WithoutFile(args, env).scenario(cwd) if args.file is None else _over_file(args, env, cwd)


class _Places:
    """Where values came from: the options that are given, and a file beneath them, if there is one."""

    def __init__(self, document: Document | None = None) -> None:
        self._document = document
        self._names: dict[Path, str] = {}
        for option in _OPTIONS if document is None else ():  # where no file can have said it, an option should have
            self.name(option.path, option.name)

    def name(self, path: Path, option: str) -> None:
        """Say that an option gave what stands at `path`."""
        self._names[path] = option
        if path[-1] == "tokens":  # the one key of its mapping
            self._names[path[:-1]] = option

    def fault(self, path: Path, reason: str, remedy: str = "") -> Fault | None:
        length = next((n for n in range(len(path), 0, -1) if path[:n] in self._names), 0)
        if self._document is not None and not length:
            return self._document.fault(path, reason, remedy)
        if not length:
            return Fault("", None, place_of(path), reason, remedy)
        below = place_of(path[length:])
        place = f"{self._names[path[:length]]} {below}".rstrip()
        return Fault("", None, place, reason, _LISTED_SPAN.sub(r"\1-\2", remedy))

    def written(self, path: Path) -> str | None:
        is_option = any(path[:n] in self._names for n in range(1, len(path) + 1))
        return None if is_option or self._document is None else self._document.written(path)


def _put(root: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value at a path; the mappings and the list that it stands in are made. What is no mapping is left alone."""
    around: Any = root
    for step, below in pairwise(path):
        if isinstance(step, int):
            around = around[step]
            continue
        around = around.setdefault(step, [{}] if isinstance(below, int) else {})
        if not isinstance(around, list if isinstance(below, int) else dict):
            return
    around[path[-1]] = value


def _given(args: argparse.Namespace) -> list[tuple[_Option, Any]]:
    """The options that are given, and what they say."""
    values = ((option, getattr(args, option.attribute, None)) for option in _OPTIONS)
    return [(option, value) for option, value in values if value not in (None, [])]


def _put_each(action: str, given: list[tuple[_Option, Any]], root: dict[str, Any], places: _Places) -> None:
    """Put options at their paths."""
    for option, value in given:
        if option.attribute == "objective":
            for name, limit in value:
                _put(root, ("objectives", name), limit)
                places.name(("objectives", name), f"--objective {name}")
        elif option.attribute in ("rate", "users") and action == "sweep":
            start, most = value
            for key, load in (("of", option.attribute), ("from", start), ("to", most)):
                _put(root, ("sweep", key), load)
                places.name(("sweep", key), option.name)
        else:
            _put(root, option.path, value[0] if option.attribute == "url" and len(value) == 1 else value)
            places.name(option.path, option.name)


class _WithoutFile:
    """A run of one tenant, or of those among which a trace is split."""

    def __init__(self, args: argparse.Namespace, env: Mapping[str, str]) -> None:
        self._args = args
        self._env = env
        self._root: dict[str, Any] = {"target": {}, "tenants": [{"name": TENANT}]}
        self._places = _Places()
        self._faults: list[Fault] = []

    def scenario(self, cwd: FilePath) -> Scenario:
        args, root = self._args, self._root
        _put_each(args.action, _given(args), root, self._places)
        self._add_key()
        if args.action == "sweep":
            self._add_arrivals(args.rate and args.rate[0], args.users and args.users[0])
        elif args.trace is None:
            self._add_arrivals(args.rate, args.users)
            _put(root, ("phases", 0, "name"), MAIN)
            root["phases"][0].setdefault("duration", SOAK_DURATION if args.action == "soak" else RUN_DURATION)
        elif "phases" in root:
            _put(root, ("phases", 0, "name"), MAIN)
        if args.action == "soak":
            root.setdefault("warmup", SOAK_WARM_UP)
            if args.max_requests is None:  # a long run is bounded by its duration
                _put(root, ("bounds", "requests"), MOST_REQUESTS)
        if getattr(args, "split", None) is not None:
            self._split()
        return make_scenario(root, self._places, cwd, self._faults)

    def _add_key(self) -> None:
        if self._args.key is not None:
            return
        variable = next((name for name in KEY_VARIABLES if self._env.get(name)), None)
        if variable is not None:
            _put(self._root, ("tenants", 0, "key"), self._env[variable])
            self._places.name(("tenants", 0, "key"), f"the environment variable {variable}")

    def _add_arrivals(self, rate: str | None, users: str | None) -> None:
        if users is not None:
            _put(self._root, (*_ARRIVALS, "users"), users)
            _put(self._root, (*_ARRIVALS, "kind"), "closed")
            return
        _put(self._root, (*_ARRIVALS, "rate"), rate)
        if self._args.arrivals is None:
            _put(self._root, (*_ARRIVALS, "kind"), "poisson" if self._args.burstiness is None else "gamma")

    def _split(self) -> None:
        """A tenant for each share of the trace, all alike but for their keys."""
        split: dict[str, tuple[str, str]] = self._args.split
        (alike,) = self._root["tenants"]
        tenants = []
        for place, (name, (_, variable)) in enumerate(split.items()):
            tenant = {**alike, "name": name}
            if variable and self._env.get(variable):
                tenant["key"] = self._env[variable]
            elif variable:
                reason = f"the environment variable {variable} is not set"
                self._faults.append(
                    Fault("", None, f"--split {name}", reason, f"set {variable} to the key of {name!r}")
                )
            self._places.name(("tenants", place), f"--split {name}")
            for option in _OPTIONS:
                if option.path[:2] == ("tenants", 0) and option.attribute != "key":
                    self._places.name(("tenants", place, *option.path[2:]), option.name)
            tenants.append(tenant)
        self._root["tenants"] = tenants
        self._root["trace"]["split"] = {name: weight for name, (weight, _) in split.items()}


def _over_file(args: argparse.Namespace, env: Mapping[str, str], cwd: FilePath) -> Scenario:
    """The file's scenario, with what options say over it."""
    path = cwd / args.file
    document = _read(path, args.file, env)
    root, places = document.value, _Places(document)
    faults, given = list(document.faults), []
    for option, value in _given(args):
        is_rising = args.action == "sweep" and option.attribute in ("rate", "users")
        if not option.is_over_file and not is_rising:
            faults.append(Fault("", None, option.name, "cannot go with -f: the scenario says it", "change the file"))
        elif option.attribute == "duration" and "phases" in root:
            faults.append(Fault("", None, option.name, "cannot go with a file that has phases", "change the file"))
        else:
            given.append((option, value))
    has_phases = "phases" in root
    _put_each(args.action, given, root, places)
    if "phases" in root and not has_phases:
        _put(root, ("phases", 0, "name"), MAIN)
    if args.action == "sweep" and "sweep" not in root:
        remedy = "add `sweep` to the file, or say --rate 10-1000 or --users 1-512"
        raise ScenarioError([*faults, Fault(args.file, None, "sweep", "is missing", remedy)])
    if args.action == "soak" and "sweep" in root:
        faults.append(Fault(args.file, None, "sweep", "is no load that could be held", "leave it out of a soak"))
    return make_scenario(root, places, path.parent, faults)


def _read(path: FilePath, name: str, env: Mapping[str, str]) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as wrong:
        reason = getattr(wrong, "strerror", None) or "it is not UTF-8 text"
        raise ScenarioError(
            [Fault(name, None, "", f"cannot be read: {reason}", "write the path of a scenario")]
        ) from None
    return read_values(text, env, source=name)
