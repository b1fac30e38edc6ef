"""YAML text as plain values that know their lines; the environment is read into them here.

PyYAML's own construction forgets where a value stood, takes the last of two equal keys in silence and expands aliases
without end, so values are made here from its node tree: with a line for each path, a fault for each duplicate key, and
a bound on depth and size. `${NAME}` is replaced in text values after parsing, so that what a variable holds can never
become structure; what it held is never repeated in a fault. What the values mean is left to the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

import yaml

from tenancy.config.faults import Fault, Path, place_of

Value = str | int | float | bool | date | datetime | None | list["Value"] | dict[str, "Value"]

DEEPEST = 40
"""How deep a document may nest: the schema needs six levels, and libyaml's composer crashes at some thousands."""

MOST_VALUES = 200_000
"""How many values a document may have once its aliases are expanded: some 10,000 tenants."""

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml: 10 times as fast
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in _KINDS)
_MERGE = "tag:yaml.org,2002:merge"
_STRING = "tag:yaml.org,2002:str"
_TOO_DEEP = f"nested more than {DEEPEST} levels deep"
_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(slots=True)
class Document:
    """One YAML document: its values, and for each path the line that it stands on.

    `variables` has the text as it was written of each value that came from the environment, `unknown` the places of
    those that could not be made: nothing more can be said of them.
    """

    source: str
    value: Value = None
    lines: dict[Path, int] = field(default_factory=dict)
    variables: dict[Path, str] = field(default_factory=dict)
    unknown: set[Path] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """The line of what stands at `path`, or of the nearest thing around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def blame(self, path: Path, reason: str, remedy: str = "") -> None:
        """Note a fault at `path`."""
        self.faults.append(Fault(place_of(path), self.line_of(path), reason, remedy, self.source))


def read_documents(text: str, source: str, env: Mapping[str, str] | None) -> list[Document]:
    """The documents of a YAML text (at least one, perhaps with faults). `env` of `None`: `${NAME}` stays as it is."""
    broken = _broken(text, source)
    if broken is not None:
        return [broken]
    loader = _Loader(text)
    documents = []
    try:
        while loader.check_node():
            document = Document(source)
            root = loader.get_node()
            assert root is not None, "check_node() promised one"
            _Builder(document, loader, env).build(root)
            documents.append(document)
    except yaml.YAMLError as wrong:  # what only composing finds: an alias without an anchor
        documents.append(_unreadable(text, source, wrong))
    finally:
        loader.dispose()
    return documents or [Document(source, lines={(): 1})]


def read_document(text: str, source: str, env: Mapping[str, str] | None) -> Document:
    """The one document of a YAML text; more than one is a fault."""
    documents = read_documents(text, source, env)
    first = documents[0]
    if len(documents) > 1 and not first.faults:
        line = documents[1].line_of(())
        first.faults.append(Fault("", line, "a second document begins here", "leave one, without `---`", source))
    return first


def _broken(text: str, source: str) -> Document | None:
    """A document with the fault that keeps the text from being parsed, or `None`."""
    depth = 0
    try:
        # Before composing, which recurses: events come one at a time, however deep they nest.
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > DEEPEST:
                    line = None if event.start_mark is None else event.start_mark.line + 1
                    return Document(source, faults=[Fault("", line, _TOO_DEEP, "", source)])
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError as wrong:
        return _unreadable(text, source, wrong)
    except RecursionError:  # PyYAML's own parser, where libyaml is missing
        return Document(source, faults=[Fault("", None, _TOO_DEEP, "", source)])
    return None


def _unreadable(text: str, source: str, wrong: yaml.YAMLError) -> Document:
    line, reason = None, " ".join(str(wrong).split())
    if isinstance(wrong, yaml.MarkedYAMLError):
        mark = wrong.problem_mark or wrong.context_mark
        line = None if mark is None else min(mark.line, max(text.count("\n", 0, -1), 0)) + 1
        reason = ", ".join(part for part in (wrong.context, wrong.problem) if part) or reason
    written = text.splitlines()[line - 1 : line] if line is not None else []
    remedy = ""
    if "${" in "".join(written):
        remedy = 'write a variable in quotes: "${NAME}"'
    elif "\t" in "".join(written):
        remedy = "indent with blanks; YAML knows no tabs"
    return Document(source, faults=[Fault("", line, f"is not YAML: {reason}", remedy, source)])


class _Builder:
    """Makes one document's values from its nodes."""

    def __init__(self, document: Document, loader: yaml.SafeLoader, env: Mapping[str, str] | None) -> None:
        self._document = document
        self._loader = loader
        self._env = env
        self._open: set[int] = set()
        self._values = 0

    def build(self, root: yaml.Node) -> None:
        self._document.value = self._value(root, (), root.start_mark.line + 1)

    def _value(self, node: yaml.Node, path: Path, line: int) -> Value:
        self._document.lines[path] = line
        if self._is_too_many(path):
            return None
        if node.tag not in _TAGS:
            self._document.blame(path, f"the tag {node.tag!r} has no meaning here", "leave it out")
            self._document.unknown.add(path)
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._document.blame(path, "an alias stands inside what it refers to")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._value(item, (*path, i), item.start_mark.line + 1) for i, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _is_too_many(self, path: Path) -> bool:
        """Count one more, and say once that there are too many."""
        self._values += 1
        if self._values == MOST_VALUES + 1:
            reason = f"the file has more than {MOST_VALUES:,} values"
            self._document.blame(path, reason, "look for aliases of aliases")
        return self._values > MOST_VALUES

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Value]:
        mapping: dict[str, Value] = {}
        for key, key_node, value_node in self._pairs(node, path):
            mapping[key] = self._value(value_node, (*path, key), key_node.start_mark.line + 1)
        return mapping

    def _pairs(self, node: yaml.Node, path: Path) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """A mapping's own entries, and those of what its `<<` refers to where it does not have them itself."""
        own: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if self._is_too_many(path):  # here, too: a chain of `<<` multiplies before any value is made
                break
            if key_node.tag == _MERGE:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif key_node.tag != _STRING:
                written = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping"
                self._blame_line(path, line, f"a key must be text, not {written}", "write it in quotes")
            elif key_node.value in own:
                first = own[key_node.value][1].start_mark.line + 1
                reason = f"{key_node.value!r} stands here a second time"
                self._blame_line((*path, key_node.value), line, reason, f"the first is in line {first}")
            else:
                own[key_node.value] = (key_node.value, key_node, value_node)
        for other in merged:
            if self._values > MOST_VALUES:
                break
            if isinstance(other, yaml.MappingNode) and id(other) not in self._open:
                self._open.add(id(other))
                for pair in self._pairs(other, path):
                    own.setdefault(pair[0], pair)
                self._open.discard(id(other))
            else:
                self._blame_line(path, other.start_mark.line + 1, "`<<` must refer to another mapping")
        return list(own.values())

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Value:
        try:
            value: Value = self._loader.construct_object(node)
        except (ValueError, OverflowError, yaml.YAMLError):
            self._document.blame(path, f"{str(node.value)[:40]!r} is not a {node.tag.rpartition(':')[2]}")
            self._document.unknown.add(path)
            return None
        if isinstance(value, str) and self._env is not None and "${" in value:
            return self._substitute(value, self._env, path)
        return value

    def _substitute(self, text: str, env: Mapping[str, str], path: Path) -> str:
        def value_of(match: re.Match[str]) -> str:
            name = match[1]
            if match[0] == "$${":
                return "${"
            if name is None or not _VARIABLE_NAME.fullmatch(name):
                self._document.blame(path, f"{match[0]!r} names no variable", "write ${NAME}, or $${ for a plain ${")
            elif name not in env:
                reason = f"the environment variable {name} is not set"
                self._document.blame(path, reason, f"set {name}, or write the value here")
            else:
                return env[name]
            self._document.unknown.add(path)
            return match[0]

        replaced = _VARIABLE.sub(value_of, text)
        self._document.variables[path] = text
        return replaced

    def _blame_line(self, path: Path, line: int, reason: str, remedy: str = "") -> None:
        self._document.faults.append(Fault(place_of(path), line, reason, remedy, self._document.source))
