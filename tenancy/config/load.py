"""Text and environment become one `Policy`, or every fault at once with its place and line.

Here the parts meet: the document's own faults, the schema's (pydantic's, retold with the nearest known key and an
example of what is right), and those of references. Nothing is read but through `read_file`, and nothing is decided.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tenancy.config.configmap import ProfilesFile, read_profiles
from tenancy.config.document import Document, Value, read_document
from tenancy.config.facts import make_policy
from tenancy.config.faults import ConfigError, Fault, Path, listed, nearest, place_of
from tenancy.config.json_schema import keys_at, required_at
from tenancy.config.references import check_references, models_named, tenants_named
from tenancy.config.schema import NOT_YET, FileKeys
from tenancy.config.written import WRONG
from tenancy.policy import Policy

_LONGEST = 400  # characters of what is said: a value may be a whole file

ReadFile = Callable[[str], str]
"""Reads a file that the configuration names, relative to where the configuration stands; may raise `OSError`."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """A key that is set and does nothing in this release: where it is set first, how often, and what holds instead."""

    key: str
    line: int | None
    times: int
    holds: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy, and what is known of the file that it came from."""

    policy: Policy
    source: str
    not_yet: tuple[NotYet, ...]
    _document: Document
    _profiles: ProfilesFile | None

    def locate(self, path: Path) -> tuple[str, int | None]:
        """The file and the line of what stands at `path`."""
        return _locate(self._document, self._profiles, path)[:2]


def load(
    text: str, env: Mapping[str, str], *, source: str = "penstock.yaml", read_file: ReadFile | None = None
) -> Policy:
    """The policy that `text` describes. Raises `ConfigError` with all that is wrong with it.

    `source` is what faults call the file; `read_file` reads the ConfigMap that `profiles` may name.
    """
    return load_with_places(text, env, source=source, read_file=read_file).policy


def load_with_places(
    text: str, env: Mapping[str, str], *, source: str = "penstock.yaml", read_file: ReadFile | None = None
) -> Loaded:
    """As `load`, with the places of what was read and the keys that do nothing yet: for `check`."""
    document = read_document(text, source, env)
    if not isinstance(document.value, dict):
        if not document.faults:
            document.blame((), "is not a mapping of keys" if document.value else "is empty", "begin with `pods:`")
        raise ConfigError(document.faults)
    root: dict[str, Any] = dict(document.value)
    profiles = _profiles_of(root, document, read_file)
    reading = _Reading(root, document, profiles)
    file = reading.check()
    faults = reading.all_faults()
    if faults or file is None:
        raise ConfigError(faults)
    return Loaded(make_policy(file, env), source, _not_yet(root, document, profiles), document, profiles)


@dataclass(frozen=True, slots=True)
class Names:
    """What a file names: its tenants, and its models with their aliases."""

    tenants: tuple[str, ...]
    models: tuple[str, ...]


def names_in(text: str, *, source: str = "penstock.yaml") -> Names:
    """The names in a file that need not be right otherwise; raises `ConfigError` if it cannot be read."""
    document = read_document(text, source, env=None)
    if not isinstance(document.value, dict):
        raise ConfigError(document.faults)
    return Names(tenants_named(document.value), models_named(document.value))


def _profiles_of(root: dict[str, Any], document: Document, read_file: ReadFile | None) -> ProfilesFile | None:
    """Put the profiles of the file that `profiles` names in their place."""
    name = root.get("profiles")
    if not isinstance(name, str) or ("profiles",) in document.unknown:
        return None
    found = ProfilesFile(name)
    if read_file is None or not name.strip():
        document.blame(("profiles",), "names no file that can be read here", "write the profiles as a list")
    else:
        try:
            found = read_profiles(read_file(name), name)
        except (OSError, ValueError) as wrong:
            reason = getattr(wrong, "strerror", None) or "it is not UTF-8 text"
            document.blame(("profiles",), f"{name!r} cannot be read: {reason}", "a path is relative to this file")
    root["profiles"] = found.profiles
    if not found.origins:
        document.unknown.add(("profiles",))
    return found


class _Reading:
    """One file's way through schema and references, and the faults on it."""

    def __init__(self, root: dict[str, Any], document: Document, profiles: ProfilesFile | None) -> None:
        self._root = root
        self._document = document
        self._profiles = profiles
        self._faults: list[Fault] = []

    def check(self) -> FileKeys | None:
        """The keys of the file, if their shapes are right; all faults are noted."""
        for path in _valueless(self._root):
            self._blame(path, "has no value", "give it one, or leave the key out")
            self._document.unknown.add(path)
        file = None
        try:
            file = FileKeys.model_validate(self._root)
        except ValidationError as wrong:
            for error in wrong.errors(include_url=False):
                self._blame_shape(error)
        is_partial = self._profiles is not None and (self._profiles.faults or not self._profiles.origins)
        check_references(self._root, ("profiles",) if is_partial else (), self._blame)
        return file

    def all_faults(self) -> list[Fault]:
        """Every fault, in the order of lines, the main file's first."""
        faults = [*self._document.faults, *(self._profiles.faults if self._profiles else ()), *self._faults]
        return sorted(dict.fromkeys(faults), key=lambda fault: (fault.source != self._document.source, fault.line or 0))

    def _blame_shape(self, error: Any) -> None:
        """Retell a pydantic error: `error` has its `type`, `loc`, `input` and `ctx`."""
        path, value = _resolve(self._root, error["loc"])
        kind, context = error["type"], error.get("ctx", {})
        if kind == "missing":
            key = str(error["loc"][-1])
            known = (keys_at(path) or {}).get(key, {})
            meaning = str(known.get("description", ""))
            self._blame(path, f"{key!r} is missing", f"add it: {meaning[:1].lower()}{meaning[1:].rstrip('.')}")
        elif kind == "extra_forbidden":
            self._blame(path, "unknown key", _known_key(path))
        elif kind == WRONG:
            for inner in context["inner"]:
                self._blame((*path, *inner.path), inner.reason, inner.remedy)
            if not context["inner"]:
                self._blame(path, context["reason"], context["remedy"])
        elif kind == "list_type":
            remedy = f"write [{value}]" if isinstance(value, str) else "begin each entry with `- `"
            self._blame(path, f"must be a list, not {_kind(value)}", remedy)
        elif kind == "too_short":
            is_needed = path[-1] in required_at(path[:-1])
            remedy = "it needs an entry" if is_needed else "give it an entry, or leave the key out"
            self._blame(path, "is an empty list", remedy)
        else:
            assert kind in {"model_type", "model_attributes_type"}, error
            known_keys = listed(list(keys_at(path) or {}))
            self._blame(path, f"must be a mapping of keys, not {_kind(value)}", f"known: {known_keys}")

    def _blame(self, path: Path, reason: str, remedy: str) -> None:
        """Note a fault, unless its value could not even be made; what came from the environment is not repeated."""
        if any(path[:length] in self._document.unknown for length in range(1, len(path) + 1)):
            return
        source, line, place = _locate(self._document, self._profiles, path)
        written = self._document.variables.get(path)
        if written is not None:
            _, value = _resolve(self._root, path)
            reason, remedy = (_hidden(said, str(value), written) for said in (reason, remedy))
        self._faults.append(Fault(place, line, reason[:_LONGEST], remedy[:_LONGEST], source))


def _hidden(said: str, held: str, written: str) -> str:
    """What is said of a value, with the value as it was written instead of what its variable held."""
    said = said.replace(repr(held), repr(written))
    return re.sub(rf"(?<![\w`]){re.escape(held)}(?![\w`])", lambda _: written, said) if held.strip() else said


def _locate(document: Document, profiles: ProfilesFile | None, path: Path) -> tuple[str, int | None, str]:
    """Source, line and place of what stands at `path`, be it in the file of profiles."""
    if profiles is not None and len(path) > 1 and path[0] == "profiles" and isinstance(path[1], int):
        origin = profiles.origins[path[1]]
        return profiles.source, origin.line(path[2:]), origin.place(path[2:])
    return document.source, document.line_of(path), place_of(path)


def _resolve(root: Value | dict[str, Any], location: tuple[str | int, ...]) -> tuple[Path, Any]:
    """As much of a location as stands in the file, and the value there.

    Pydantic names keys that are not there: one that is missing, or `hash` where an entry is a hash alone.
    """
    path: Path = ()
    value: Any = root
    for step in location:
        is_key = isinstance(value, dict) and step in value
        is_position = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if not (is_key or is_position):
            break
        value = value[step]
        path = (*path, step)
    return path, value


def _known_key(path: Path) -> str:
    """What to say of a key that is not known: the nearest that is, or where it would be known."""
    key = str(path[-1])
    known = keys_at(path[:-1]) or {}
    near = nearest(key, known)
    if near is not None:
        return f"did you mean {near!r}?"
    for section in known:
        if key in (keys_at((*path[:-1], section)) or {}):
            return f"it belongs under {section!r}"
    return f"known: {listed(list(known), 20)}"


def _valueless(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place with nothing after its key."""
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _valueless(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _valueless(inner, (*path, index))


def _not_yet(root: dict[str, Any], document: Document, profiles: ProfilesFile | None) -> tuple[NotYet, ...]:
    """The keys that are set and do nothing, in the order of the table."""
    seen: dict[str, list[Path]] = {}
    for path in _paths(root):
        pattern = "".join("[]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
        if pattern in NOT_YET:
            seen.setdefault(pattern, []).append(path)
    return tuple(
        NotYet(key, _locate(document, profiles, seen[key][0])[1], len(seen[key]), holds)
        for key, holds in NOT_YET.items()
        if key in seen
    )


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in the file, from the top."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*path, index))


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "a mapping", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "a date")
