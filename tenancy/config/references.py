"""What the keys of a file say about each other: names that must exist or are taken, forms that exclude each other.

Read from the values as they stand in the file, not from the schema's objects, so that a file with a wrong size and an
unknown profile hears of both at once. What has the wrong shape is passed over here: the schema says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenancy.config.faults import Path, nearest, place_of, suggest
from tenancy.config.schema import ADMIN_PORT, ENGINES, HOST, RUN_BY_US, SERVER_PORT
from tenancy.units import parse_count

Blame = Callable[[Path, str, str], None]
"""Takes a fault: its place, the reason, and what would be right."""

_ALL_HOSTS = frozenset({"0.0.0.0", "::"})
_HOST_NAMES = {"localhost": "127.0.0.1"}
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(slots=True)
class _Names:
    """The names of one section: where each stands, and whether some entry's name could not be read."""

    section: str
    places: dict[str, Path] = field(default_factory=dict)
    is_partial: bool = False

    def add(self, name: str, path: Path, blame: Blame) -> None:
        """Take up a name, or blame it where it is taken."""
        if name in self.places:
            blame(path, f"the name {name!r} is taken", f"{place_of(self.places[name])} has it")
        else:
            self.places[name] = path


def check_references(root: Mapping[str, Any], unread: Collection[str], blame: Blame) -> None:
    """Blame all in the file that contradicts another part of it; `unread` sections may hold more than is known."""
    profiles = _names(root, "profiles", blame)
    profiles.is_partial |= "profiles" in unread
    devices = _names(root, "devices", blame)
    tenants = _names(root, "tenants", blame)
    pods = _names(root, "pods", blame)
    models, canonical = _models(root, blame)
    for index, pod in _entries(root, "pods"):
        path: Path = ("pods", index)
        _pod_form(pod, path, blame)
        _own_device(pod, path, devices, blame)
        _known(_texts(pod, "device", path), "device", devices, blame)
        _once(_texts(pod, "device", path), blame)
        _known(_texts(pod, "profile", path), "profile", profiles, blame)
        _known(_texts(pod, "profiles", path), "profile", profiles, blame)
        _known(_texts(pod, "tenants", path), "tenant", tenants, blame)
        served = list(_served(pod, path))
        _known(served, "model", models, blame)
        _once(((canonical.get(name, name), where) for name, where in served), blame)
    of_themselves = {name: pods.places[name] for name in _pods_without_device(root) if name in pods.places}
    budgets = _Names("devices", {**devices.places, **of_themselves}, devices.is_partial or pods.is_partial)
    for index, tenant in _entries(root, "tenants"):
        path = ("tenants", index)
        _known(_texts(tenant, "profile", path), "profile", profiles, blame)
        _known(_texts(tenant, "models", path), "model", models, blame)
        budget = tenant.get("budget")
        if isinstance(budget, dict):
            _known(_per_device(budget, (*path, "budget")), "device", budgets, blame)
        for key, where in _keys(tenant, path):
            _known(_texts(key, "models", where), "model", models, blame)
            _known(_per_device(key, where), "device", budgets, blame)
            _within_tenant(key, where, tenant, canonical, blame)
    _listeners(root, blame)
    _hashes(root, blame)
    _key_names(root, blame)


def tenants_named(root: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the tenants, whatever is wrong with the file."""
    return tuple(_names(root, "tenants", _no_blame).places)


def models_named(root: Mapping[str, Any]) -> tuple[str, ...]:
    """Every name by which a model is known, whatever is wrong with the file."""
    return tuple(_models(root, _no_blame)[0].places)


def _no_blame(path: Path, reason: str, remedy: str) -> None:
    """For who only wants the names."""


def _listeners(root: Mapping[str, Any], blame: Blame) -> None:
    """Clients and operators come to different ports of a host."""
    places: dict[str, tuple[str, int]] = {}
    for section, port in (("server", SERVER_PORT), ("admin", ADMIN_PORT)):
        keys = root.get(section, {})
        if not isinstance(keys, dict):
            return
        host = keys.get("host", HOST)
        try:
            places[section] = (host if isinstance(host, str) else HOST, parse_count(keys.get("port", port)))
        except (TypeError, ValueError, AttributeError):
            return
    (host, port), (admin_host, admin_port) = places["server"], places["admin"]
    hosts = {_HOST_NAMES.get(name.strip().lower(), name.strip().lower()) for name in (host, admin_host)}
    if port != admin_port or port == 0 or (len(hosts) > 1 and not hosts & _ALL_HOSTS):
        return
    is_said = "port" in root.get("admin", {})
    section, other = ("admin", "server") if is_said else ("server", "admin")
    default = "" if "port" in root.get(other, {}) else " by default"
    reason = f"is {port}, and so is {other}.port{default}, on the same host"
    blame((section, "port"), reason, "give one of them another port, or 0 for a free one")


def _names(root: Mapping[str, Any], section: str, blame: Blame) -> _Names:
    names = _Names(section)
    value = root.get(section, [])
    names.is_partial = not isinstance(value, list) or any(not isinstance(entry, dict) for entry in value)
    for index, entry in _entries(root, section):
        if isinstance(entry.get("name"), str):
            names.add(entry["name"], (section, index, "name"), blame)
        else:
            names.is_partial = True
    return names


def _models(root: Mapping[str, Any], blame: Blame) -> tuple[_Names, dict[str, str]]:
    """Every name by which a model is known, and the canonical name for each."""
    if "models" not in root:
        names = _Names("models")
        for index, pod in _entries(root, "pods"):
            for name, where in _served(pod, ("pods", index)):
                names.places.setdefault(name, where)
        names.is_partial = not names.places
        return names, {name: name for name in names.places}
    names = _names(root, "models", blame)
    canonical = {name: name for name in names.places}
    for index, model in _entries(root, "models"):
        for alias, where in _texts(model, "aliases", ("models", index)):
            if alias in names.places:
                blame(where, f"the alias {alias!r} is taken", f"{place_of(names.places[alias])} has it")
            else:
                names.places[alias] = where
                canonical[alias] = str(model.get("name"))
    return names, canonical


def _pod_form(pod: Mapping[str, Any], path: Path, blame: Blame) -> None:
    """A pod is found at `url`, run from `engine`, or supervised from `command`, and has the keys that go with it."""
    engine = pod.get("engine")
    if "command" in pod and "url" not in pod:
        blame((*path, "command"), "a command needs `url`", 'write where it will listen: url: "http://127.0.0.1:8000"')
    elif "url" not in pod and "engine" not in pod:
        remedy = "give the `url` of a running server, or an engine to run: `engine: llama.cpp` or `engine: simulator`"
        blame(path, "has neither `url` nor `engine` nor `command`", remedy)
    elif "url" not in pod and engine in ENGINES and engine not in RUN_BY_US:
        remedy = "give the `url` of a running server, or a `command` and the `url` where it will listen"
        blame((*path, "engine"), f"{engine} is not run by Penstock itself", remedy)
    elif "url" not in pod and engine == "llama.cpp" and "model" not in pod:
        blame(path, "'model' is missing", "name the model's file; `model: penstock-tiny` comes with Penstock")
    if "url" in pod or "command" in pod:
        instead = {
            "slots": "`concurrency` says how many calls it works on at once",
            "model": "`models` says what it serves",
            "options": "put them where the pod is started",
        }
        for key, remedy in instead.items():
            if key in pod:
                blame((*path, key), "is for an engine that Penstock runs, and this pod has a `url`", remedy)
    if "env" in pod and "url" in pod and "command" not in pod:
        blame((*path, "env"), "is for a pod that Penstock starts, and this one is found at its `url`", "leave it out")


def _own_device(pod: Mapping[str, Any], path: Path, devices: _Names, blame: Blame) -> None:
    name = pod.get("name")
    if "device" not in pod and isinstance(name, str) and name in devices.places:
        reason = f"a pod without `device` is a device of its own, and {name!r} is one already"
        blame((*path, "name"), reason, f"write `device: {name}`, or call one of them something else")


def _pods_without_device(root: Mapping[str, Any]) -> list[str]:
    return [str(pod.get("name")) for _, pod in _entries(root, "pods") if "device" not in pod]


def _known(names: Iterable[tuple[str, Path]], kind: str, known: _Names, blame: Blame) -> None:
    """Blame each name that the section does not have.

    Where some entry's name could not be read, only a name that looks mistyped is blamed: another may be that entry's.
    """
    for name, path in names:
        if name in known.places or (known.is_partial and nearest(name, known.places) is None):
            continue
        blame(
            path,
            f"there is no {kind} {name!r}",
            suggest(name, list(known.places), none=f"add it under `{known.section}`"),
        )


def _once(names: Iterable[tuple[str, Path]], blame: Blame) -> None:
    seen = set()
    for name, path in names:
        if name in seen:
            blame(path, f"{name!r} is named twice", "leave one")
        seen.add(name)


def _within_tenant(
    key: Mapping[str, Any], path: Path, tenant: Mapping[str, Any], canonical: Mapping[str, str], blame: Blame
) -> None:
    """A key may use no model that its tenant may not."""
    if not isinstance(tenant.get("models"), list):
        return
    allowed = [name for name, _ in _texts(tenant, "models", ())]
    resolved = {canonical.get(name, name) for name in allowed}
    for name, where in _texts(key, "models", path):
        if name in canonical and canonical[name] not in resolved:
            blame(
                where,
                f"the tenant itself may not use {name!r}",
                f"add it to the tenant's `models`: {', '.join(allowed)}",
            )


def _hashes(root: Mapping[str, Any], blame: Blame) -> None:
    """One key is one tenant's, once."""
    seen: dict[str, tuple[int, Path]] = {}
    for index, tenant in _entries(root, "tenants"):
        for key, where in _keys(tenant, ("tenants", index)):
            written = key.get("hash")
            match = _HASH.fullmatch(written.strip().lower()) if isinstance(written, str) else None
            if match is None:
                continue
            first = seen.setdefault(match[1], (index, where))
            if first[1] != where:
                whose = "this tenant" if first[0] == index else "another tenant"
                blame(where, f"{whose} has this key already, at {place_of(first[1])}", "leave one, or make another key")


def _key_names(root: Mapping[str, Any], blame: Blame) -> None:
    for index, tenant in _entries(root, "tenants"):
        names = _Names("keys")
        for key, where in _keys(tenant, ("tenants", index)):
            if isinstance(key.get("name"), str):
                names.add(key["name"], (*where, "name"), blame)


def _entries(root: Mapping[str, Any], section: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The entries of a section that are mappings, with their positions."""
    value = root.get(section)
    if isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, dict):
                yield index, entry


def _keys(tenant: Mapping[str, Any], path: Path) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """The keys of a tenant as mappings; one that is a hash alone as a mapping of just that."""
    value = tenant.get("keys")
    for index, key in enumerate(value if isinstance(value, list) else []):
        if isinstance(key, dict | str):
            yield key if isinstance(key, dict) else {"hash": key}, (*path, "keys", index)


def _served(pod: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Path]]:
    """The models that a pod names."""
    value = pod.get("models")
    for index, model in enumerate(value if isinstance(value, list) else []):
        if isinstance(model, str):
            yield model, (*path, "models", index)
        elif isinstance(model, dict) and isinstance(model.get("name"), str):
            yield model["name"], (*path, "models", index, "name")


def _texts(entry: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, Path]]:
    """The texts at a key: one, or those of a list."""
    value = entry.get(key)
    if isinstance(value, str):
        return [(value, (*path, key))]
    listed = value if isinstance(value, list) else []
    return [(text, (*path, key, index)) for index, text in enumerate(listed) if isinstance(text, str)]


def _per_device(entry: Mapping[str, Any], path: Path) -> list[tuple[str, Path]]:
    """The devices that a budget names."""
    memory = entry.get("memory")
    return [(device, (*path, "memory", device)) for device in memory] if isinstance(memory, dict) else []
