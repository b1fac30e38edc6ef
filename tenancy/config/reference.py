"""The tables of `docs/configuration.md`: every key with its type, default and meaning, from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tenancy.config.json_schema import json_schema
from tenancy.config.schema import NOT_YET

_COLUMNS = "| key | type | default | meaning |\n|---|---|---|---|\n"


def reference() -> str:
    """Markdown: a heading and a table for each mapping of the file, from the outside in."""
    schema = json_schema()
    return "\n".join(_sections(schema, schema, "")).rstrip() + "\n"


def _sections(root: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[str]:
    """The section of a mapping, and those of the mappings in it."""
    yield f"### {f'`{place}`' if place else 'The file'}\n\n{schema['description']}\n"
    required, inner = schema.get("required", ()), []
    rows = []
    for name, key in sorted(schema["properties"].items(), key=lambda item: item[0] not in required):
        below = f"{place}.{name}".removeprefix(".")
        kind, mapping, is_list = _kind(root, key)
        default = "**required**" if name in required else f"`{key['default']}`" if "default" in key else "–"
        default = default.replace("`True`", "`true`").replace("`False`", "`false`")
        until = f" *No effect yet: {NOT_YET[below]}.*" if below in NOT_YET else ""
        rows.append(f"| `{name}` | {kind} | {default} | {key['description']}{until} |")
        if mapping is not None:
            inner.append((mapping, below + ("[]" if is_list else "")))
    yield _COLUMNS + "\n".join(rows) + "\n"
    for mapping, below in inner:
        yield from _sections(root, mapping, below)


def _kind(root: dict[str, Any], key: dict[str, Any]) -> tuple[str, dict[str, Any] | None, bool]:
    """What a key is called in the type column; the mapping that it holds, if any; whether as entries of a list."""
    if "$ref" in key:
        return _kind(root, root["$defs"][key["$ref"].rpartition("/")[2]])
    if "anyOf" in key:
        forms = [_kind(root, form) for form in key["anyOf"]]
        _, mapping, is_list = next((form for form in forms if form[1] is not None), forms[0])
        return " or ".join(kind for kind, _, _ in forms), mapping, is_list
    if "enum" in key:
        return ", ".join(f"`{word}`" for word in key["enum"]), None, False
    if key["type"] == "array" and "format" not in key:
        kind, mapping, _ = _kind(root, key["items"])
        return f"list ({kind})", mapping, True
    if "properties" in key:
        return "mapping", key, False
    if key["type"] == "object" and "format" not in key:
        return f"mapping ({_kind(root, key['additionalProperties'])[0]})", None, False
    return key.get("format", key["type"]), None, False
