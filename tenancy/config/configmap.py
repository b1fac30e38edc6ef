"""The profiles of a file of their own, first of all the Kubeflow ConfigMap `kubeflow-gpu-profiles` as it is.

A ConfigMap's `data` holds texts, and nobody has laid down what is in them; so every shape that can mean only one thing
is read: a list of profiles, `{profiles: [...]}`, profiles by name, or one profile for each key of `data`. A file
without the manifest around it (as a mounted ConfigMap is) is read likewise. Which keys a profile has is the schema's
affair; each profile found here knows where it stands, so that its faults can be named there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tenancy.config.document import Document, Value, read_document, read_documents
from tenancy.config.faults import Fault, Path, place_of, suggest
from tenancy.config.schema import ProfileKeys

CONFIG_MAP = "kubeflow-gpu-profiles"

_PROFILE_KEYS = frozenset(key.alias for key in ProfileKeys.model_fields.values())


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a profile stands: `path` within `document`, which is the text at `around` in the file.

    `offset` turns the document's lines into the file's; where they do not count there (a text in quotes), `fixed_line`
    is the line of all of it.
    """

    document: Document
    path: Path
    around: Path = ()
    offset: int = 0
    fixed_line: int | None = None

    def place(self, rest: Path) -> str:
        """What stands at `rest` below the profile, as people read it."""
        return place_of((*self.around, *self.path, *rest))

    def line(self, rest: Path) -> int | None:
        """The line of what stands at `rest` below the profile, in the file."""
        if self.fixed_line is not None:
            return self.fixed_line
        line = self.document.line_of((*self.path, *rest))
        return None if line is None else line + self.offset


@dataclass(slots=True)
class ProfilesFile:
    """The profiles of a file, each with its origin; and what is wrong with the file around them."""

    source: str
    profiles: list[Value] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_profiles(text: str, source: str) -> ProfilesFile:
    """The profiles of a ConfigMap's manifest, or of a file that holds what its `data` would."""
    found = ProfilesFile(source)
    documents = read_documents(text, source, env=None)
    found.faults += [fault for document in documents for fault in document.faults]
    if found.faults:
        return found
    manifests = [document for document in documents if isinstance(document.value, dict) and "kind" in document.value]
    if not manifests:
        _take(found, documents[0].value, Origin(documents[0], ()), "")
        return found
    manifest = _choose(manifests, found)
    if manifest is not None:
        _read_data(found, manifest, text)
    return found


def _choose(manifests: list[Document], found: ProfilesFile) -> Document | None:
    """The ConfigMap that is meant: the only one, or the one of the known name."""
    maps = [document for document in manifests if _at(document.value, "kind") == "ConfigMap"]
    named = [document for document in maps if _at(document.value, "metadata", "name") == CONFIG_MAP]
    if len(named) == 1 or len(maps) == 1:
        return (named or maps)[0]
    if maps:
        reason = f"holds several ConfigMaps, and not one of them alone is called {CONFIG_MAP}"
        found.faults.append(Fault("", maps[1].line_of(()), reason, "leave one", found.source))
    else:
        document = manifests[0]
        kind, line = _at(document.value, "kind"), document.line_of(("kind",))
        reason = f"is not a ConfigMap but {kind!r}"
        found.faults.append(Fault("kind", line, reason, f"name the file of ConfigMap {CONFIG_MAP}", found.source))
    return None


def _read_data(found: ProfilesFile, manifest: Document, text: str) -> None:
    data = _at(manifest.value, "data")
    if not isinstance(data, dict) or not data:
        line = manifest.line_of(("data",))
        found.faults.append(
            Fault("data", line, "holds no profiles", "put them there as YAML or JSON text", found.source)
        )
        return
    for key, value in data.items():
        around: Path = ("data", key)
        line = manifest.line_of(around) or 1
        if not isinstance(value, str):  # kubectl would refuse it; here it can mean only one thing
            _take(found, value, Origin(manifest, around), _without_suffix(key))
            continue
        first = text.splitlines()[line - 1]
        is_block = first.split(" #")[0].rstrip().rstrip("+-0123456789").endswith("|")
        document = read_document(value, found.source, env=None)
        origin = Origin(document, (), around, line if is_block else 0, None if is_block else line)
        for fault in document.faults:
            shifted = line if not is_block or fault.line is None else fault.line + line
            place = place_of(around) + (f".{fault.place}" if fault.place else "")
            found.faults.append(Fault(place, shifted, fault.reason, fault.remedy, found.source))
        if not document.faults:
            _take(found, document.value, origin, _without_suffix(key))


def _take(found: ProfilesFile, value: Value, origin: Origin, name: str) -> None:
    """Find the profiles in a value; `name` is what one is called that has no name of its own."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _add(found, entry, _below(origin, index), "")
    elif isinstance(value, dict) and "profiles" in value:
        for other in value:
            if other != "profiles":
                _blame(found, _below(origin, other), "unknown key", suggest(other, ["profiles"]))
        _take(found, value["profiles"], _below(origin, "profiles"), "")
    elif isinstance(value, dict) and _PROFILE_KEYS & value.keys():
        _add(found, value, origin, name)
    elif isinstance(value, dict) and value and all(isinstance(entry, dict) for entry in value.values()):
        for key, entry in value.items():
            _add(found, entry, _below(origin, key), key)
    else:
        remedy = "write a list of profiles, `profiles:` with a list, or one profile under each name"
        _blame(found, origin, "holds no profiles", remedy)


def _add(found: ProfilesFile, entry: Value, origin: Origin, name: str) -> None:
    if isinstance(entry, dict) and name and "name" not in entry:
        entry = {"name": name, **entry}
    found.profiles.append(entry)
    found.origins.append(origin)


def _below(origin: Origin, step: str | int) -> Origin:
    return Origin(origin.document, (*origin.path, step), origin.around, origin.offset, origin.fixed_line)


def _blame(found: ProfilesFile, origin: Origin, reason: str, remedy: str) -> None:
    found.faults.append(Fault(origin.place(()), origin.line(()), reason, remedy, found.source))


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _without_suffix(key: str) -> str:
    for suffix in (".yaml", ".yml", ".json"):
        key = key.removesuffix(suffix)
    return key
