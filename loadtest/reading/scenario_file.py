"""Scenarios as people write them: YAML and environment become one `Scenario`, or every fault at once with its place.

Here the parts meet: the text's own faults (`document`), those of single values (`keys`; pydantic's complaints are
retold with the nearest known key and what would be right) and those between them (`contradictions`). Options are put
under the same keys by `option_values` and read by the same `make_scenario`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, log
from pathlib import Path as FilePath
from typing import Any, Protocol, get_args

from pydantic import BaseModel, ValidationError

from loadtest.reading.contradictions import DEFAULT_OUTPUT, check, sharing
from loadtest.reading.document import Document, read_document
from loadtest.reading.faults import Fault, Path, ScenarioError, listed, nearest
from loadtest.reading.keys import MOST_REQUESTS, PhaseKeys, ScenarioKeys, SweepKeys, TenantKeys, TraceKeys
from loadtest.reading.written import WRONG
from loadtest.scenario import (
    Arrivals,
    Bounds,
    Cancel,
    Columns,
    Objectives,
    Phase,
    Scenario,
    Span,
    Sweep,
    Target,
    Tenant,
    Trace,
)

__all__ = ["ScenarioError", "make_scenario", "read_scenario", "read_values"]

MAIN = "main"
"""The phase of a scenario that names none."""

DEFAULT_INPUT = Span(128, 128)
UNBOUNDED_SECONDS = 600.0
LEAST_REQUESTS = 100_000


class Places(Protocol):
    """Where values came from: a file, or options."""

    def fault(self, path: Path, reason: str, remedy: str = "") -> Fault | None:
        """A fault on what stands at `path`; `None` where nothing can be said of it."""

    def written(self, path: Path) -> str | None:
        """What was written in place of a value that must not be repeated; `None`: it may be."""


def read_scenario(text: str, env: Mapping[str, str], *, source: str, folder: FilePath) -> Scenario:
    """The scenario that a YAML text describes. Raises `ScenarioError` with all that is wrong with it.

    `source` is what faults call the file; the paths in it start from `folder`.
    """
    document = read_values(text, env, source=source)
    return make_scenario(document.value, document, folder, document.faults)


def read_values(text: str, env: Mapping[str, str], *, source: str) -> Document:
    """The file's values as they stand, a mapping with places. Raises `ScenarioError` where there is none."""
    document = read_document(text, source, env)
    if not isinstance(document.value, dict):
        if not document.faults:
            reason = "is empty" if document.value is None else "is not a mapping of keys"
            document.faults.append(Fault(source, None, "", reason, "begin with `target:`"))
        raise ScenarioError(document.faults)
    return document


def make_scenario(root: dict[str, Any], places: Places, folder: FilePath, faults: list[Fault]) -> Scenario:
    """The scenario of values under their keys. Raises `ScenarioError` with the `faults` given and all others found."""
    found = _Faults(places, faults)
    keys = None
    try:
        keys = ScenarioKeys.model_validate(root)
    except ValidationError as wrong:
        for error in wrong.errors(include_url=False):
            _retell(root, error, found)
    check(root, folder, found.blame)
    if keys is None or found.faults:
        raise ScenarioError(found.in_order())
    return _scenario(keys, sharing(root), folder)


class _Faults:
    """The faults of one scenario, each once."""

    def __init__(self, places: Places, faults: list[Fault]) -> None:
        self._places = places
        self.faults = list(faults)

    def blame(self, path: Path, reason: str, remedy: str = "") -> None:
        fault = self._places.fault(path, reason, remedy)
        if fault is not None and fault not in self.faults:
            self.faults.append(fault)

    def written(self, path: Path) -> str | None:
        return self._places.written(path)

    def in_order(self) -> list[Fault]:
        """Options first, then lines."""
        return sorted(self.faults, key=lambda fault: (fault.source != "", fault.line or 0))


def _retell(root: dict[str, Any], error: Any, faults: _Faults) -> None:
    """A pydantic error as a fault: `error` has its `type`, `loc`, `input` and `ctx`."""
    path, kind = tuple(error["loc"]), error["type"]
    value = _at(root, path)
    if kind == "missing":
        model = keys_at(path[:-1])
        meaning = _field(model, str(path[-1])).description or ""
        faults.blame(path, "is missing", f"add it: {meaning[:1].lower()}{meaning[1:].rstrip('.')}")
    elif kind == "extra_forbidden":
        faults.blame(path, "unknown key", _known_key(path))
    elif kind == WRONG:
        written, said = faults.written(path), error["ctx"]
        if written is None:
            faults.blame(path, said["reason"], said["remedy"])
        else:  # the value is the environment's, and parts of it may be in what was said
            faults.blame(path, f"what {written} holds cannot stand here", f"it must be a {said['known_as']}")
    elif value is None:
        faults.blame(path, "has no value", "give it one, or leave the key out")
    elif kind == "list_type":
        faults.blame(path, f"must be a list, not {_kind(value)}", "begin each entry with `- `")
    elif kind == "too_short":
        faults.blame(path, "is an empty list", "it needs an entry")
    else:
        assert kind in {"model_type", "model_attributes_type"}, error
        faults.blame(path, f"must be a mapping of keys, not {_kind(value)}", f"known: {listed(_names(keys_at(path)))}")


def keys_at(path: Path) -> type[BaseModel] | None:
    """The class of the mapping that stands at `path`, if any may."""
    model: type[BaseModel] | None = ScenarioKeys
    for step in path:
        if isinstance(step, str) and model is not None:
            field = _field(model, step)
            model = None if field is None else _model_in(field.annotation)
    return model


def _field(model: type[BaseModel] | None, key: str) -> Any:
    fields = model.model_fields.values() if model is not None else ()
    return next((field for field in fields if field.alias == key), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The class of keys in an annotation: itself, or one of a union's or a list's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _names(model: type[BaseModel] | None) -> list[str]:
    return [str(field.alias) for field in model.model_fields.values()] if model is not None else []


def _known_key(path: Path) -> str:
    """What to say of a key that is not known: the nearest that is, or where it would be known."""
    key, around = str(path[-1]), keys_at(path[:-1])
    near = nearest(key, _names(around))
    if near is not None:
        return f"did you mean {near!r}?"
    for section in _names(around):
        if key in _names(keys_at((*path[:-1], section))):
            return f"it belongs under {section!r}"
    if len(path) > 1 and key in _names(ScenarioKeys):
        return "it belongs at the top"
    return f"known: {listed(_names(around))}"


def _at(root: Any, path: Path) -> Any:
    """The value at `path`, or nothing."""
    for step in path:
        is_there = step in root if isinstance(root, dict) else isinstance(root, list) and isinstance(step, int)
        root = root[step] if is_there else None
    return root


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "a mapping", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "a date")


# ---- facts ---------------------------------------------------------------------------------------------------------


def _scenario(keys: ScenarioKeys, sharing: set[str], folder: FilePath) -> Scenario:
    """The facts of keys without faults."""
    tenants = tuple(_tenant(tenant) for tenant in keys.tenants)
    everybody = tuple(tenant.name for tenant in tenants)
    sweep = None if keys.sweep is None else _sweep(keys.sweep)
    trace = None if keys.trace is None else _trace(keys.trace, everybody, sharing, folder)
    if sweep is not None:
        phases: tuple[Phase, ...] = (Phase(MAIN, sweep.step_seconds, everybody),)
    elif keys.phases is not None:
        phases = tuple(_phase(phase, everybody) for phase in keys.phases)
    else:
        most = keys.bounds.duration
        phases = (Phase(MAIN, None if most is None or trace is not None else most - keys.warmup, everybody),)
    target = keys.target
    unbounded = Scenario(
        target=Target(
            url=target.url[0],
            model=target.model,
            endpoint=target.endpoint,
            timeout_seconds=target.timeout,
            usage=target.usage,
            stream=target.stream,
            body=target.body,
            also=target.url[1:],
        ),
        tenants=tenants,
        phases=phases,
        seed=keys.seed,
        warmup_seconds=keys.warmup,
        objectives=Objectives(**keys.objectives.model_dump()),
        trace=trace,
        sweep=sweep,
    )
    return _bounded(unbounded, keys)


def _tenant(keys: TenantKeys) -> Tenant:
    arrivals = None
    if keys.arrivals is not None:
        arrivals = Arrivals(
            keys.arrivals.kind,
            rate=keys.arrivals.rate or 0.0,
            burstiness=keys.arrivals.burstiness or 1.0,
            users=keys.arrivals.users or 0,
            think=keys.arrivals.think_time or Span(0.0, 0.0),
        )
    return Tenant(
        name=keys.name,
        key=keys.key or "",
        arrivals=arrivals,
        input=keys.input.tokens if keys.input is not None else DEFAULT_INPUT,
        output=keys.output.tokens if keys.output is not None else DEFAULT_OUTPUT,
        cancel=None if keys.cancel is None else Cancel(keys.cancel.share, keys.cancel.after_tokens),
        shared_prefix=keys.shared_prefix,
        model=keys.model,
    )


def _phase(keys: PhaseKeys, everybody: tuple[str, ...]) -> Phase:
    return Phase(keys.name, keys.duration, keys.tenants or everybody, keys.scale)


def _sweep(keys: SweepKeys) -> Sweep:
    return Sweep(keys.of, keys.from_, keys.to, keys.factor, keys.step_duration, keys.within)


def _trace(keys: TraceKeys, everybody: tuple[str, ...], sharing: set[str], folder: FilePath) -> Trace:
    named = keys.columns
    columns = None
    if named is not None:
        columns = Columns(named.time, named.input, named.output, named.client or keys.client)
    return Trace(
        file=str(folder / keys.file),
        split=keys.split or {name: 1.0 for name in everybody if name in sharing},
        speed=keys.speed,
        columns=columns,
        context=keys.clip or keys.skip,
        over="skip" if keys.skip is not None else "clip",
    )


def _bounded(scenario: Scenario, keys: ScenarioKeys) -> Scenario:
    """With the bounds that the keys give, and, for those that they do not, such as hold all that is asked."""
    sweep = scenario.sweep
    if sweep is not None:
        steps = _steps(sweep)
        seconds = scenario.warmup_seconds + sum(steps.values()) * sweep.step_seconds
        calls = sum(load * times for load, times in steps.items()) * sweep.step_seconds
        requests = LEAST_REQUESTS * sum(steps.values()) if sweep.of == "users" else ceil(1.1 * calls)
    else:
        lengths = (UNBOUNDED_SECONDS if phase.seconds is None else phase.seconds for phase in scenario.phases)
        seconds = scenario.warmup_seconds + sum(lengths)
        requests = ceil(1.1 * _calls_asked(scenario))
    bounds = Bounds(
        seconds=keys.bounds.duration or seconds,
        requests=keys.bounds.requests or min(max(LEAST_REQUESTS, requests), MOST_REQUESTS),
        open_streams=keys.bounds.open_streams,
    )
    return replace(scenario, bounds=bounds)


def _calls_asked(scenario: Scenario) -> float:
    """How many calls open loops make on average, but in a sweep, which stops where it will, and beside a trace."""
    if scenario.sweep is not None:
        return 0.0
    calls = 0.0
    for place, phase in enumerate(scenario.phases):
        arrivals = (scenario.tenant(name).arrivals for name in phase.tenants)
        rate = sum(each.rate for each in arrivals if each is not None)
        calls += rate * sum(phase.scale) / 2 * (phase.seconds or 0.0)
        if place == 0:
            calls += rate * phase.scale[0] * scenario.warmup_seconds
    return calls


def _steps(sweep: Sweep) -> dict[float, int]:
    """The loads that a sweep may come to, and how often at most: each rising one, and the halvings at the top."""
    rising = ceil(log(sweep.most / sweep.start) / log(sweep.factor))
    loads = {sweep.start * sweep.factor**step: 1 for step in range(rising)}
    halvings = max(0, ceil(log((sweep.factor - 1) / sweep.within, 2)))
    return {**loads, sweep.most: halvings + 2}
