"""Every way in which bytes are not a sweep file, each with the line that is printed for it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdtune.messages import describe_unknown, format_path, format_value, one_line
from qdtune.spec.overrides import apply_overrides
from qdtune.spec.yaml_reader import MAX_BYTES, MAX_NODES, Document, parse_yaml


def lines(data: bytes) -> list[str]:
    return [str(problem) for problem in parse_yaml(data, "x.yaml").problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("1e3", 1000.0),
        ("-0.0", -0.0),
        ("+4", 4),
        ("1_000", 1000),
        ("0", 0),
        ("-7", -7),
        ("010.5", 10.5),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("'4'", "4"),
        ("'<<'", "<<"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("[1, {b: c}]", [1, {"b": "c"}]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    document = parse_yaml(f"a: {text}".encode(), "x.yaml")
    assert document.problems == []
    assert document.value == {"a": value}
    assert type(document.value["a"]) is type(value)


def test_not_finite_numbers_arrive_for_the_rules_to_refuse() -> None:
    values = parse_yaml(b"[.inf, -.INF, .nan, 1e999]", "x.yaml").value
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])
    assert values[3] == math.inf


BAD = [
    # what is given, the one line about it
    (b"a: 010", "error: x.yaml:1: a: '010' has a leading zero (write 10)"),
    (b"a: -010", "error: x.yaml:1: a: '-010' has a leading zero (write -10)"),
    (b"a: 0x10", "error: x.yaml:1: a: '0x10' is not decimal (write 16)"),
    (b"a: 0o17", "error: x.yaml:1: a: '0o17' is not decimal (write 15)"),
    (b"a: 0b11", "error: x.yaml:1: a: '0b11' is not decimal (write 3)"),
    (b"a: 0x_", "error: x.yaml:1: a: '0x_' is not a number"),
    (b"a: ._", "error: x.yaml:1: a: '._' is not a number"),
    (b"a: -_", "error: x.yaml:1: a: '-_' is not a number"),
    (b"a: " + b"9" * 5000, f"error: x.yaml:1: a: '{'9' * 55}...' is out of range"),
    (b"a: 1\nb: 2\na: 3", "error: x.yaml:3: key 'a' is given twice (first on line 1)"),
    (b"a:\n  b: 1\n  b: 1", "error: x.yaml:3: a: key 'b' is given twice (first on line 2)"),
    (b"1: a", "error: x.yaml:1: keys must be text, got 1"),
    (b"true: a", "error: x.yaml:1: keys must be text, got true"),
    (b"~: a", "error: x.yaml:1: keys must be text, got no value"),
    (b"? [1]\n: a", "error: x.yaml:1: keys must be text, got a list"),
    (b"010: a", "error: x.yaml:1: '010' has a leading zero (write 10)"),
    (b"b:\n  <<: {a: 1}", "error: x.yaml:2: b: merge keys are not supported"),
    (b"&x a: 1", "error: x.yaml:1: anchors and aliases are not supported"),
    (b"a: &x 1", "error: x.yaml:1: a: anchors and aliases are not supported"),
    (b"a: !env SECRET", "error: x.yaml:1: a: YAML tag '!env' is not supported"),
    (b"a: !include b.yaml", "error: x.yaml:1: a: YAML tag '!include' is not supported"),
    (b"a: !!binary aGk=", "error: x.yaml:1: a: YAML tag '!!binary' is not supported"),
    (b"a: !!set {b}", "error: x.yaml:1: a: YAML tag '!!set' is not supported"),
    (b"a: ! 1", "error: x.yaml:1: a: YAML tag '!' is not supported"),
    (
        b"a: !!python/object/apply:os.system [id]",
        "error: x.yaml:1: a: YAML tag '!!python/object/apply:os.system' is not supported",
    ),
    (b"[" * 500, "error: x.yaml:1: nesting deeper than 20"),
    (b"{a: " * 500, "error: x.yaml:1: nesting deeper than 20"),
    (b"[" + b"1,\n" * MAX_NODES + b"1]", "error: x.yaml:10000: more than 10,000 values"),
    (b"#" * (MAX_BYTES + 1), "error: x.yaml: file has more than 1,000,000 bytes"),
    (b"a: 1\n---\nb: 2", "error: x.yaml:2: more than one YAML document"),
    (b"%YAML 1.1\n---\na: no", "error: x.yaml:2: directives (%YAML, %TAG) are not supported"),
    (b"%TAG ! tag:e.org,2000:\n---\na: 1", "error: x.yaml:2: directives (%YAML, %TAG) are not supported"),
    (b"a: b: c", "error: x.yaml:1:5: not valid YAML: mapping values are not allowed here"),
    (b"a:\n\tb: 1", "error: x.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token"),
    (b"a: 'b", "error: x.yaml:1:6: not valid YAML: found unexpected end of stream"),
    (b"a: [1", "error: x.yaml:1:6: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    (b'a: "\\UFFFFFFFF"', "error: x.yaml: not valid YAML: a character that does not exist"),
    (b'a: "\\ud800"', "error: x.yaml:1: a: '\\ud800' holds half a character"),
    (b"a: \xe9", "error: x.yaml: not UTF-8 (byte 0xe9 at offset 3)"),
    ("a: é".encode("utf-16"), "error: x.yaml: not a text file (byte 0x00 at offset 3)"),
    (b"a: \x00", "error: x.yaml: not a text file (byte 0x00 at offset 3)"),
    (b"\x7fELF\x02\x01", "error: x.yaml: not a text file (byte 0x7f at offset 0)"),
    (b"\x1f\x8b\x08\x00", "error: x.yaml: not a text file (byte 0x1f at offset 0)"),
    (b"\x89PNG\r\n\x1a\n", "error: x.yaml: not a text file (byte 0x1a at offset 6)"),
]


@pytest.mark.parametrize(("data", "line"), BAD, ids=lambda value: repr(value)[:30])
def test_parse_says_what_is_wrong(data: bytes, line: str) -> None:
    assert lines(data) == [line]


def test_aliases_are_refused_wherever_they_stand() -> None:
    laughs = b"a: &a [x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdefghi")
    found = lines(laughs)
    assert len(found) == 1 + 8 * 3
    assert all(line.endswith("anchors and aliases are not supported") for line in found)
    assert len(lines(b"a: &x [*x]")) == 2


def test_all_mistakes_are_listed_and_the_rest_is_read() -> None:
    document = parse_yaml(b"a: 010\nb: !x 1\nc: [1, 0x2]\nd: 4\n5: e\n", "x.yaml")
    assert [problem.place.line for problem in document.problems if problem.place] == [1, 2, 3, 5]
    assert document.value == {"a": None, "b": None, "c": [1, None], "d": 4}
    assert document.refused == {("a",), ("b",), ("c", 1)}


def test_byte_order_mark_and_line_ends_of_windows_are_accepted() -> None:
    document = parse_yaml(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - 2\r\n", "x.yaml")
    assert document.value == {"a": 1, "b": [2]}
    assert str(document.places["b", 0]) == "x.yaml:3"


@pytest.mark.parametrize("data", [b"", b"# only this\n", b"---\n", b" \n\n"])
def test_nothing_written_is_none(data: bytes) -> None:
    assert parse_yaml(data, "x.yaml") == Document(None, parse_yaml(data, "x.yaml").places)


def test_place_is_that_of_the_key() -> None:
    places = parse_yaml(b"a:\n  b:\n    - 1\n    - {c: 2}\n", "x.yaml").places
    assert {format_path(path): place.line for path, place in places.items() if path} == {
        "a": 1,
        "a.b": 2,
        "a.b[0]": 3,
        "a.b[1]": 4,
        "a.b[1].c": 4,
    }


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60) | st.text("[]{}:,-&*!%#|>'\"\\ \n\tab01.<?~_eEx", max_size=40).map(str.encode))
def test_parse_never_raises(data: bytes) -> None:
    document = parse_yaml(data, "x.yaml")
    assert all(str(problem).startswith("error: x.yaml") for problem in document.problems)
    assert all(str(problem).isprintable() for problem in document.problems)


def overridden(*options: str) -> Document:
    document = parse_yaml(b"a: {b: 1, c: [1, 010]}\nd: 2\n", "x.yaml")
    apply_overrides(document, options)
    return document


def test_override_sets_typed_values_and_makes_groups() -> None:
    document = overridden("a.c=[2, no]", "e.f.g=1e-3", "d=", "a.b=x=y")
    assert document.value == {"a": {"b": "x=y", "c": [2, "no"]}, "d": None, "e": {"f": {"g": 0.001}}}
    assert str(document.places["a", "c", 1]) == str(document.places["e",]) == "--set"
    assert str(document.places["a",]) == "x.yaml:1"
    assert document.refused == set()  # what it replaced was wrong, what it is now is not


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["a"], "error: --set: 'a' is not KEY=VALUE (such as train.batch_size=32)"),
        (["=1"], "error: --set: '=1' is not KEY=VALUE (such as train.batch_size=32)"),
        (["a..b=1"], "error: --set: 'a..b=1' is not KEY=VALUE (such as train.batch_size=32)"),
        (["d=1", "d=1"], "error: --set: d: is given twice"),
        (["d=a: b: c"], "error: --set: d: not valid YAML: mapping values are not allowed here"),
        (["d=010"], "error: --set: d: '010' has a leading zero (write 10)"),
        (["d={x: !t 1}"], "error: --set: d.x: YAML tag '!t' is not supported"),
        (["d.x=1"], "error: --set: d.x: d is no group of keys"),
        (["d=\udce9"], "error: --set: d: not UTF-8 (byte 0xe9 at offset 0)"),
    ],
)
def test_override_says_what_is_wrong(options: list[str], line: str) -> None:
    assert [str(problem) for problem in overridden(*options).problems][1:] == [line]


def test_words_are_one_short_printable_line() -> None:
    assert one_line("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"
    assert format_value("x" * 1000) == "'" + "x" * 55 + "...'"
    assert [format_value(value) for value in (None, True, [1], {}, 4.5)] == [
        "no value",
        "true",
        "a list",
        "a mapping",
        "4.5",
    ]
    assert format_path(("a", "b\n", 0, "c")) == "a.b\\n[0].c"
    assert describe_unknown("key ", "serch", ["search"]) == "unknown key 'serch'; did you mean 'search'? (search)"
    assert describe_unknown("", "MACs", ["macs"]) == "unknown 'MACs'; did you mean 'macs'? (macs)"
    assert describe_unknown("", "zzz", ["search"]) == "unknown 'zzz' (search)"


ODD = "is no space in YAML (replace it by a normal space, or delete it)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\u00a0\u00a0b: 1\n", [f"error: x.yaml:2: no-break space (U+00A0) {ODD}"]),
        ("a:\u00a0random\nb: 3\n", [f"error: x.yaml:1:3: no-break space (U+00A0) {ODD}"]),  # the library stops at b
        ("a:\n  b:\u00a0{c: [1]}\n", [f"error: x.yaml:2: no-break space (U+00A0) {ODD}"]),
        ("a: [0,\u00a01]\n", [f"error: x.yaml:1: a[1]: no-break space (U+00A0) {ODD}"]),
        ("a: 3 \u00a0\n", [f"error: x.yaml:1: a: no-break space (U+00A0) {ODD}"]),
        ("a\u200b: 3\n", [f"error: x.yaml:1: zero width space (U+200B) {ODD}"]),
        ("a:\n\u3000 b: 1\n", [f"error: x.yaml:2: ideographic space (U+3000) {ODD}"]),
        ("a: [1,\n'\u00a0', {", [f"error: x.yaml:2:2: no-break space (U+00A0) {ODD}"]),
        (
            "# \u00a0\nb: [",
            ["error: x.yaml:2:5: not valid YAML: expected the node content, but found '<stream end>'"],
        ),
    ],
)
def test_an_odd_space_is_named_with_its_own_line(text: str, said: list[str]) -> None:
    assert lines(text.encode()) == said


@pytest.mark.parametrize("text", ["a\u00a0b", "'\u00a0a'", "a b # \u00a0", "|\n  \u00a0a"])
def test_an_odd_space_may_stand_in_text_and_comments(text: str) -> None:
    assert lines(f"a: {text}\n".encode()) == []
