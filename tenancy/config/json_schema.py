"""The schema as JSON Schema: published for editors, and asked here which keys may stand where."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from tenancy.config.faults import Path
from tenancy.config.schema import FileKeys


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file, for editors."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **FileKeys.model_json_schema(),
    }
    _tidy(schema)
    schema["title"] = "penstock.yaml"
    profiles = schema["properties"]["profiles"]
    listed = {key: profiles.pop(key) for key in ("type", "items")}
    profiles["anyOf"] = [listed, {"type": "string", "format": "file"}]
    return schema


def keys_at(path: Path) -> dict[str, Any] | None:
    """The keys that a mapping at `path` may have, with their schemas; `None` where there is no mapping."""
    schema = _at(path)
    return None if schema is None else schema.get("properties")


def required_at(path: Path) -> list[str]:
    """The keys that a mapping at `path` must have."""
    schema = _at(path)
    required: list[str] = [] if schema is None else schema.get("required", [])
    return required


def _at(path: Path) -> dict[str, Any] | None:
    schema = _object(_schema())
    for step in path:
        if schema is None:
            return None
        inner = schema.get("items") if isinstance(step, int) else schema.get("properties", {}).get(step)
        schema = None if inner is None else _object(inner)
    return schema


@cache
def _schema() -> dict[str, Any]:
    return json_schema()


def _object(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The form of a schema that has keys or items, following references and choosing among forms."""
    if "$ref" in schema:
        found: dict[str, Any] = _schema()["$defs"][schema["$ref"].rpartition("/")[2]]
        return _object(found)
    if "anyOf" in schema:
        return next((inner for form in schema["anyOf"] if (inner := _object(form)) is not None), None)
    return schema if "properties" in schema or "items" in schema else None


def _tidy(schema: Any) -> None:
    """Take out what says nothing to an editor: titles made from names, and `null` as a default and a form."""
    if isinstance(schema, list):
        for inner in schema:
            _tidy(inner)
    elif isinstance(schema, dict):
        if schema.get("type") == "object":
            schema.pop("title", None)
        for name, inner in list(schema.items()):
            if name == "properties":
                for key in inner.values():
                    _tidy_key(key)
            _tidy(inner)


def _tidy_key(key: dict[str, Any]) -> None:
    key.pop("title", None)
    if "default" in key and key["default"] is None:
        del key["default"]
        forms = [form for form in key.get("anyOf", []) if form != {"type": "null"}]
        if len(forms) == 1:
            del key["anyOf"]
            key.update(copy.copy(forms[0]))
