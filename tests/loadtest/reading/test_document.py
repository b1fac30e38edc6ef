"""YAML as values that know their lines: what is bounded, what is refused, what comes from the environment."""

from __future__ import annotations

import pytest

from loadtest.reading.document import DEEPEST, LONGEST_TEXT, MOST_VALUES, Document, read_document


def read(text: str, **env: str) -> Document:
    return read_document(text, "s.yaml", env)


def faults(document: Document) -> list[str]:
    return [str(fault) for fault in document.faults]


def test_values_know_their_lines() -> None:
    document = read("a: 1\nb:\n  - x\n  - {c: 2.5,\n     d: yes}\n")
    assert document.value == {"a": 1, "b": ["x", {"c": 2.5, "d": True}]}
    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1): 4,
        ("b", 1, "c"): 4,
        ("b", 1, "d"): 5,
    }


def test_a_fault_on_what_is_not_there_has_the_line_of_what_is_around_it() -> None:
    fault = read("a:\n  b: {}\n").fault(("a", "b", "c"), "is missing")
    assert str(fault) == "s.yaml:2: a.b.c: is missing"


def test_the_second_of_two_equal_keys_is_a_fault() -> None:
    document = read("a: 1\nb: 2\na: 3\n")
    assert document.value == {"a": 1, "b": 2}
    assert faults(document) == ["s.yaml:3: a: 'a' stands here a second time; the first is in line 1"]


def test_keys_that_are_no_text_and_tags_without_a_meaning_are_faults() -> None:
    assert faults(read("1: a")) == ["s.yaml:1: a key must be text, not '1'; write it in quotes"]
    assert faults(read("? [a]\n: b")) == ["s.yaml:1: a key must be text, not a list or a mapping; write it in quotes"]
    assert faults(read("a: !!python/object:os.system x")) == [
        "s.yaml:1: a: the tag 'tag:yaml.org,2002:python/object:os.system' has no meaning here; leave it out"
    ]
    assert faults(read("a: 2024-13-99")) == ["s.yaml:1: a: '2024-13-99' is not a timestamp"]


def test_a_document_may_nest_so_deep_and_no_deeper() -> None:
    assert read("[" * DEEPEST + "]" * DEEPEST).faults == []
    too_deep = "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)
    assert faults(read(too_deep)) == [f"s.yaml:1: nested more than {DEEPEST} levels deep"]
    assert faults(read("[" * 100_000)) == [f"s.yaml:1: nested more than {DEEPEST} levels deep"]


@pytest.mark.parametrize("link", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_of_aliases_are_bounded(link: str) -> None:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, 15):
        lines.append(f"a{level}: &a{level} " + link.format(", ".join([f"*a{level - 1}"] * 10)))
    document = read("\n".join(lines))
    (fault,) = faults(document)
    assert fault.endswith(f": the file has more than {MOST_VALUES:,} values; look for aliases of aliases")
    assert document.value is None


def test_a_text_may_be_so_long_and_no_longer() -> None:
    assert read("# " + "x" * (LONGEST_TEXT - 2)).faults == []
    assert "is longer than" in faults(read("# " + "x" * LONGEST_TEXT))[0]


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: *x}"])
def test_an_alias_inside_what_it_refers_to_is_a_fault(text: str) -> None:
    (fault,) = faults(read(text))
    assert "an alias stands inside what it refers to" in fault


def test_a_merge_takes_what_is_not_there_and_nothing_else() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 3}\nall: {<<: [*b, *m], x: 9}\n"
    assert read(text).value["all"] == {"x": 9, "y": 2, "z": 3}
    assert faults(read("a: {<<: 3}")) == ["s.yaml:1: a: `<<` must refer to another mapping"]
    assert faults(read("a: &a {<<: *a}")) == ["s.yaml:1: a: `<<` must refer to another mapping"]


def test_variables_are_replaced_in_text_and_nowhere_else() -> None:
    document = read('"${A}": "${A}-${A}"\nplain: $${A}\nnumber: "${N}"', A="x", N="3")
    assert document.value == {"${A}": "x-x", "plain": "${A}", "number": "3"}
    assert document.written(("${A}",)) == "${A}-${A}"
    assert document.written(("number",)) == "${N}"
    assert document.written(("nothing",)) is None


def test_a_variable_that_is_not_set_is_one_fault_and_nothing_else_is_said_of_its_value() -> None:
    document = read('a: {b: "${NO}"}\nc: "${}"\nd: "${1x}"\ne: "${open"')
    assert faults(document) == [
        "s.yaml:1: a.b: the environment variable NO is not set; set NO, or write the value here",
        "s.yaml:2: c: '${}' names no variable; write ${NAME}, or $${ for a plain ${",
        "s.yaml:3: d: '${1x}' names no variable; write ${NAME}, or $${ for a plain ${",
        "s.yaml:4: e: '${' names no variable; write ${NAME}, or $${ for a plain ${",
    ]
    assert document.fault(("a", "b"), "is wrong") is None
    assert document.fault(("a",), "is wrong") is not None


def test_a_fault_elsewhere_does_not_repeat_what_a_variable_held() -> None:
    document = read('a: "${K}"\nb: "${SHORT}"\nc: 1', K="sk-longer-than-that", SHORT="ab")
    fault = document.fault(("c",), "sk-longer-than-thatX, 'ab', abc and xab", "ab")
    assert str(fault) == "s.yaml:3: c: ${K}X, '${SHORT}', abc and xab; ${SHORT}"


def test_the_longer_of_two_alike_variables_is_hidden_whole() -> None:
    document = read('a: "${A}"\nb: "${B}"', A="secret-1", B="secret-1-and-more")
    assert str(document.fault(("c",), "secret-1-and-more")) == "s.yaml:1: c: ${B}"
