"""YAML text as plain values that know their lines; the environment is read into them here.

PyYAML's own construction forgets where a value stood, takes the last of two equal keys in silence and expands aliases
without end, so values are made here from its node tree, with a bound on depth and on how many there are. `${NAME}` is
replaced in values after parsing: what a variable holds can never become structure, and no fault repeats it, since
keys come that way. What the values mean is the schema's affair (`keys`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from loadtest.reading.faults import Fault, Path, place_of

DEEPEST = 30
"""How deep a scenario may nest: its own keys need five levels, a `body` may need more; libyaml crashes at thousands."""

MOST_VALUES = 50_000
"""How many values a scenario may have once its aliases are expanded: some thousand tenants."""

LONGEST_TEXT = 4_000_000
"""Characters of a scenario."""

_LONGEST_SAID = 400

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
)
_MERGE = "tag:yaml.org,2002:merge"
_STRING = "tag:yaml.org,2002:str"
_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(slots=True)
class Document:
    """The values of one YAML text, and for each path the line that it stands on.

    `variables` has the text as it was written of each value that came from the environment; `held` what these
    variables held, longest first, each with what may be said instead.
    """

    source: str
    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    variables: dict[Path, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    unknown: set[Path] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: Path, reason: str, remedy: str = "") -> Fault | None:
        """A fault on what stands at `path`; `None` where nothing can be said, since the value itself was not made."""
        if any(path[:length] in self.unknown for length in range(1, len(path) + 1)):
            return None
        for held, written in sorted(self.held.items(), key=lambda item: -len(item[0])):
            reason, remedy = (_without(held, written, said) for said in (reason, remedy))
        return Fault(self.source, self._line(path), place_of(path), reason[:_LONGEST_SAID], remedy[:_LONGEST_SAID])

    def written(self, path: Path) -> str | None:
        """The text of a value with variables in it, as the file has it; `None` for any other value."""
        return next((text for inner, text in self.variables.items() if inner[: len(path)] == path), None)

    def blame(self, path: Path, line: int, reason: str, remedy: str = "") -> None:
        """Note a fault that keeps a value from being made."""
        self.faults.append(Fault(self.source, line, place_of(path), reason, remedy))

    def _line(self, path: Path) -> int | None:
        """The line of what stands at `path`, or of the nearest thing around it."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)


def read_document(text: str, source: str, env: Mapping[str, str]) -> Document:
    """The values of a YAML text, `${NAME}` replaced from `env`. What is wrong with it is in the document's faults."""
    document = Document(source)
    try:
        _check_shape(text)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _Builder(document, loader, env).build(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as wrong:
        document.faults.append(_unreadable(text, source, wrong))
    except _Refused as refused:
        document.value = None
        document.faults.append(Fault(source, refused.line, "", refused.reason, refused.remedy))
    return document


class _Refused(Exception):
    """A text that is too much to be read to its end."""

    def __init__(self, line: int | None, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.line, self.reason, self.remedy = line, reason, remedy


def _check_shape(text: str) -> None:
    """Refuse what composing, which recurses, could not bear. Events come one at a time, however deep they nest."""
    if len(text) > LONGEST_TEXT:
        raise _Refused(None, f"is longer than {LONGEST_TEXT:,} characters", "is it a scenario at all?")
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = None if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise _Refused(line, f"nested more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _Refused(line, "a second document begins here", "leave one, without `---`")


def _unreadable(text: str, source: str, wrong: yaml.YAMLError) -> Fault:
    line, reason = None, " ".join(str(wrong).split())
    if isinstance(wrong, yaml.MarkedYAMLError):
        mark = wrong.problem_mark or wrong.context_mark
        line = None if mark is None else min(mark.line, max(text.count("\n", 0, -1), 0)) + 1
        reason = ", ".join(part for part in (wrong.context, wrong.problem) if part) or reason
    written = "".join(text.splitlines()[line - 1 : line]) if line is not None else ""
    remedy = ""
    if "${" in written:
        remedy = 'write a variable in quotes: "${NAME}"'
    elif "\t" in written:
        remedy = "indent with blanks; YAML knows no tabs"
    return Fault(source, line, "", f"is not YAML: {reason}", remedy)


def _without(held: str, written: str, said: str) -> str:
    """What is said, with the variable in place of what it held; a short word only where it stands alone."""
    if len(held) >= 8:
        return said.replace(held, written)
    return re.sub(rf"(?<!\w){re.escape(held)}(?!\w)", lambda _: written, said)


class _Builder:
    """Makes one document's values from its nodes."""

    def __init__(self, document: Document, loader: yaml.SafeLoader, env: Mapping[str, str]) -> None:
        self._document = document
        self._loader = loader
        self._env = env
        self._open: set[int] = set()
        self._values = 0

    def build(self, root: yaml.Node) -> None:
        self._document.value = self._value(root, (), root.start_mark.line + 1)

    def _value(self, node: yaml.Node, path: Path, line: int) -> Any:
        self._document.lines[path] = line
        self._count(line)
        if node.tag not in _TAGS:
            self._unknown(path, line, f"the tag {node.tag!r} has no meaning here", "leave it out")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, line)
        if id(node) in self._open:
            self._unknown(path, line, "an alias stands inside what it refers to")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._value(item, (*path, i), item.start_mark.line + 1) for i, item in enumerate(node.value)]
            return {
                key: self._value(value_node, (*path, key), key_node.start_mark.line + 1)
                for key, (key_node, value_node) in self._pairs(node, path).items()
            }
        finally:
            self._open.discard(id(node))

    def _count(self, line: int) -> None:
        self._values += 1
        if self._values > MOST_VALUES:
            raise _Refused(line, f"the file has more than {MOST_VALUES:,} values", "look for aliases of aliases")

    def _pairs(self, node: yaml.Node, path: Path) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """A mapping's own entries, and those of what its `<<` refers to where it does not have them itself."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        blame = self._document.blame
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            self._count(line)  # here, too: a chain of `<<` multiplies before any value is made
            if key_node.tag == _MERGE:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif key_node.tag != _STRING:
                written = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or a mapping"
                blame(path, line, f"a key must be text, not {written}", "write it in quotes")
            elif key_node.value in own:
                first = own[key_node.value][0].start_mark.line + 1
                reason = f"{key_node.value!r} stands here a second time"
                blame((*path, key_node.value), line, reason, f"the first is in line {first}")
            else:
                own[key_node.value] = (key_node, value_node)
        for other in merged:
            if isinstance(other, yaml.MappingNode) and id(other) not in self._open:
                self._open.add(id(other))
                own = self._pairs(other, path) | own
                self._open.discard(id(other))
            else:
                blame(path, other.start_mark.line + 1, "`<<` must refer to another mapping")
        return own

    def _scalar(self, node: yaml.ScalarNode, path: Path, line: int) -> Any:
        try:
            value = self._loader.construct_object(node)
        except (ValueError, OverflowError, yaml.YAMLError):
            self._unknown(path, line, f"{str(node.value)[:40]!r} is not a {node.tag.rpartition(':')[2]}")
            return None
        return self._substitute(value, path, line) if isinstance(value, str) and "${" in value else value

    def _substitute(self, text: str, path: Path, line: int) -> str:
        def value_of(match: re.Match[str]) -> str:
            name = match[1]
            if match[0] == "$${":
                return "${"
            if name is None or not _VARIABLE_NAME.fullmatch(name):
                self._unknown(path, line, f"{match[0]!r} names no variable", "write ${NAME}, or $${ for a plain ${")
            elif name not in self._env:
                reason = f"the environment variable {name} is not set"
                self._unknown(path, line, reason, f"set {name}, or write the value here")
            else:
                self._hold(self._env[name], match[0])
                return self._env[name]
            return match[0]

        replaced = _VARIABLE.sub(value_of, text)
        self._document.variables[path] = text
        return replaced

    def _hold(self, value: str, written: str) -> None:
        for held in {value, value.strip(), repr(value)[1:-1]}:
            if held:
                self._document.held.setdefault(held, written)

    def _unknown(self, path: Path, line: int, reason: str, remedy: str = "") -> None:
        """Note that a value cannot be made: nothing more is to be said of it."""
        self._document.blame(path, line, reason, remedy)
        self._document.unknown.add(path)
