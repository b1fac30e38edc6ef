"""Traces of three makers and any other's: read, sorted, given to tenants, held against the context; and what is said
of a file that cannot be replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.scenario import Columns, Trace
from loadtest.traces import AS_IT_WAS, CLIPPED, SKIPPED, TraceError, TraceRows, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
PLAIN = """t_s,client,input_tokens,output_tokens
0.0,13,13,199
0.2079,2,36,137
1.5,13,47,12
"""
BURST = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,,1.25,ChatGPT,472,18,490,API log
45,s-1,3.5,GPT-4,1087,0,1087,Conversation log
118,s-1,3.5,GPT-4,417,276,693,Conversation log
"""
REAL = Path(__file__).parents[3] / "shared" / "traces"

Write = Callable[[str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Puts text into a file and gives its path."""

    def written(content: str | bytes) -> str:
        path = tmp_path / "calls.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return written


def read(trace: Trace, *tenants: str, seed: int = 1, most_rows: int = 1_000_000) -> TraceRows:
    return read_trace(trace, tenants or ("all",), seed=seed, most_rows=most_rows)


def columns_of(rows: TraceRows) -> list[tuple[float, int, int]]:
    return list(zip(rows.times.round(6).tolist(), rows.inputs.tolist(), rows.outputs.tolist(), strict=True))


@pytest.mark.parametrize(
    ("content", "calls"),
    [
        (AZURE, [(0, 374, 44), (4.314579, 396, 109), (4.541877, 879, 55)]),
        (PLAIN, [(0, 13, 199), (0.2079, 36, 137), (1.5, 47, 12)]),
        (BURST, [(0, 472, 18), (40, 1087, 1), (113, 417, 276)]),  # an answer of nothing counts as one token
        ("timestamp_ms;prompt tokens;completion tokens\n1000;5;7\n2500;6;8\n", [(0, 5, 7), (1.5, 6, 8)]),
        ("Arrived at (us)\tinput_length\toutput_length\n0\t5\t7\n2500\t6\t8\n", [(0, 5, 7), (0.0025, 6, 8)]),
        ("timestamp,input_tokens,output_tokens\n1700000000500,5,7\n1700000002000,6,8\n", [(0, 5, 7), (1.5, 6, 8)]),
        ("time,input_tokens,output_tokens\n1700000000.5,5.0,7\n1700000002,6, 8 \n", [(0, 5, 7), (1.5, 6, 8)]),
        (
            "t,input_tokens,output_tokens\n2026-01-01T23:59:59Z,5,7\n2026-01-02T01:00:00+01:00,6,8\n",
            [(0, 5, 7), (1, 6, 8)],
        ),
    ],
    ids=["azure", "plain", "burstgpt", "milliseconds", "microseconds", "unix-milliseconds", "unix", "zones"],
)
def test_a_known_header_needs_no_naming(write: Write, content: str, calls: list[tuple[float, int, int]]) -> None:
    rows = read(Trace(write(content), {"all": 1}))
    assert columns_of(rows) == calls
    assert rows.seconds == pytest.approx(calls[-1][0])
    assert rows.is_whole


@pytest.mark.parametrize("content", [AZURE, PLAIN, BURST], ids=["azure", "plain", "burstgpt"])
def test_a_byte_order_mark_carriage_returns_and_blank_lines_change_nothing(write: Write, content: str) -> None:
    plain = read(Trace(write(content), {"all": 1}))
    adorned = b"\xef\xbb\xbf" + ("\n" + content + "\n,\n").replace("\n", "\r\n").encode()
    assert columns_of(read(Trace(write(adorned), {"all": 1}))) == columns_of(plain)


def test_named_columns_are_read_and_no_others(write: Write) -> None:
    content = "when,in,out,who,input_tokens\n1,2,3,b,99\n2,4,5,a,99\n"
    rows = read(Trace(write(content), {"a": 1}, columns=Columns("when", "in", "out", "who")), "a", "b")
    assert columns_of(rows) == [(0, 2, 3), (1, 4, 5)]
    assert rows.tenants.tolist() == [1, 0]
    unnamed = read(Trace(write(content), {"a": 1}, columns=Columns("when", "in", "out")), "a", "b")
    assert unnamed.tenants.tolist() == [0, 0]


def test_rows_are_sorted_and_those_of_one_time_stay_in_the_files_order(write: Write) -> None:
    content = "t_s,input_tokens,output_tokens\n9,1,1\n7,2,1\n9,3,1\n7,4,1\n8,5,1\n"
    assert columns_of(read(Trace(write(content), {"all": 1}))) == [
        (0, 2, 1),
        (0, 4, 1),
        (1, 5, 1),
        (2, 1, 1),
        (2, 3, 1),
    ]


def test_a_thousand_rows_of_three_moments_keep_their_order_within_each(write: Write) -> None:
    content = "t_s,input_tokens,output_tokens\n" + "".join(f"{2 - row % 3},{1 + row},1\n" for row in range(999))
    expected = [1 + row for moment in (2, 1, 0) for row in range(moment, 999, 3)]
    assert read(Trace(write(content), {"all": 1})).inputs.tolist() == expected


def test_speed_shortens_the_times_and_nothing_else(write: Write) -> None:
    assert columns_of(read(Trace(write(PLAIN), {"all": 1}, speed=10))) == [
        (0, 13, 199),
        (0.02079, 36, 137),
        (0.15, 47, 12),
    ]


def test_no_more_rows_are_read_than_are_wanted(write: Write) -> None:
    broken_later = write(PLAIN + "not,a,good,row\n")
    rows = read(Trace(broken_later, {"all": 1}), most_rows=3)
    assert len(rows.times) == 3 and not rows.is_whole
    assert read(Trace(write(PLAIN), {"all": 1}), most_rows=3).is_whole


# ---- whose a row is -------------------------------------------------------------------------------------------------


def test_a_client_with_a_tenants_name_is_that_tenant_whatever_the_split(write: Write) -> None:
    content = "t_s,client,input_tokens,output_tokens\n0,b,1,1\n1, a ,1,1\n2,b,1,1\n"
    assert read(Trace(write(content), {"a": 1}), "a", "b").tenants.tolist() == [1, 0, 1]
    assert read(Trace(write(content), {}), "a", "b").tenants.tolist() == [1, 0, 1]


def many_clients(count: int, rows_each: int) -> str:
    rows = [f"{number},c{number % count},1,1" for number in range(count * rows_each)]
    return "\n".join(["t_s,client,input_tokens,output_tokens", *rows, ""])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_calls_of_a_client_go_to_one_tenant_and_the_clients_are_shared_by_the_split(
    write: Write, seed: int
) -> None:
    rows = read(Trace(write(many_clients(2000, 2)), {"a": 1, "c": 3}), "a", "b", "c", seed=seed)
    assert rows.tenants[:2000].tolist() == rows.tenants[2000:].tolist()
    assert rows.count(1) == 0
    assert rows.count(0) / 4000 == pytest.approx(0.25, abs=0.04), f"seed {seed}"


def test_a_clients_tenant_hangs_on_no_other_row(write: Write) -> None:
    trace = Trace(write(many_clients(50, 1)), {"a": 1, "b": 1})
    all_of_them = read(trace, "a", "b").tenants.tolist()
    head, *lines = many_clients(50, 1).split()
    write("\n".join([head, *reversed(lines[25:]), ""]))
    assert read(trace, "a", "b").tenants.tolist() == all_of_them[25:]


def test_another_seed_gives_the_clients_to_others(write: Write) -> None:
    trace = Trace(write(many_clients(50, 1)), {"a": 1, "b": 1})
    first, second = (read(trace, "a", "b", seed=seed).tenants.tolist() for seed in (1, 2))
    assert first == read(trace, "a", "b", seed=1).tenants.tolist()
    assert first != second


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rows_without_a_client_are_drawn_by_the_split(write: Write, seed: int) -> None:
    no_column = "t_s,input_tokens,output_tokens\n" + "".join(f"{number},1,1\n" for number in range(4000))
    rows = read(Trace(write(no_column), {"a": 1, "b": 3}), "a", "b", seed=seed)
    assert rows.count(0) / 4000 == pytest.approx(0.25, abs=0.03), f"seed {seed}"
    empty = many_clients(1, 4000).replace(",c0,", ",,")
    assert read(Trace(write(empty), {"a": 1, "b": 3}), "a", "b", seed=seed).tenants.tolist() == rows.tenants.tolist()


# ---- the context ----------------------------------------------------------------------------------------------------

SIZES = "t_s,client,input_tokens,output_tokens\n0,a,60,40\n1,a,61,40\n2,b,500,99\n3,a,1,100\n4,b,1,500\n5,b,9,1\n"


def test_too_long_a_call_has_its_input_clipped_and_never_its_output(write: Write) -> None:
    rows = read(Trace(write(SIZES), {}, context=100), "a", "b")
    assert rows.fates.tolist() == [AS_IT_WAS, CLIPPED, CLIPPED, SKIPPED, SKIPPED, AS_IT_WAS]
    assert rows.inputs[rows.fates != SKIPPED].tolist() == [60, 60, 1, 9]
    assert rows.outputs.tolist() == [40, 40, 99, 100, 500, 1]
    assert [rows.count(tenant, CLIPPED) for tenant in (0, 1)] == [1, 1]
    assert [rows.count(tenant, SKIPPED) for tenant in (0, 1)] == [1, 1]
    assert [rows.count(tenant) for tenant in (0, 1)] == [3, 3]


def test_too_long_a_call_is_left_out_where_that_is_asked_for(write: Write) -> None:
    rows = read(Trace(write(SIZES), {}, context=100, over="skip"), "a", "b")
    assert rows.fates.tolist() == [AS_IT_WAS, SKIPPED, SKIPPED, SKIPPED, SKIPPED, AS_IT_WAS]


def test_a_context_larger_than_any_call_changes_nothing(write: Write) -> None:
    rows = read(Trace(write(SIZES), {}, context=2**40), "a", "b")
    assert rows.inputs.tolist() == [60, 61, 500, 1, 1, 9]
    assert rows.inputs.dtype == np.int32 and not rows.fates.any()


@given(
    sizes=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=20),
    context=st.integers(1, 2**31 - 1),
    over=st.sampled_from(["clip", "skip"]),
)
def test_what_is_sent_of_a_trace_fits_the_context(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], context: int, over: str
) -> None:
    path = tmp_path_factory.mktemp("trace") / "calls.csv"
    path.write_text("t_s,input_tokens,output_tokens\n" + "".join(f"0,{asked},{made}\n" for asked, made in sizes))
    rows = read(Trace(str(path), {"all": 1}, context=context, over="clip" if over == "clip" else "skip"))
    for asked, made, fate, (asked_then, made_then) in zip(
        rows.inputs.tolist(), rows.outputs.tolist(), rows.fates.tolist(), sizes, strict=True
    ):
        assert made == max(1, made_then)
        if fate != SKIPPED:
            assert asked >= 1 and asked + made <= context
            assert (asked == max(1, asked_then)) == (fate == AS_IT_WAS)


# ---- what is wrong with a file --------------------------------------------------------------------------------------

HEADER = "t_s,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("content", "line", "column", "says"),
    [
        ("", 0, "", "is empty; a trace is a CSV"),
        ("\n \n\n", 0, "", "is empty; a trace is a CSV"),
        (HEADER, 0, "", "a header and no rows"),
        (HEADER + "0,1\n", 2, "", "has 2 of the header's 3 fields; complete the line or remove it"),
        (HEADER + "0,1,1\n\n0,x,1\n", 4, "input_tokens", "'x' is not a whole number of tokens; correct it"),
        (HEADER + "0,1,1.5\n", 2, "output_tokens", "'1.5' is not a whole number"),
        (HEADER + "0,nan,1\n", 2, "input_tokens", "'nan' is not a whole number"),
        (HEADER + "0,inf,1\n", 2, "input_tokens", "'inf' is not a whole number"),
        (HEADER + "0,,1\n", 2, "input_tokens", "'' is not a whole number"),
        (HEADER + "0,-5,1\n", 2, "input_tokens", "-5 is negative"),
        (HEADER + "0,1,-1.0\n", 2, "output_tokens", "-1.0 is negative"),
        (HEADER + "0,1,1e10\n", 2, "output_tokens", "more than 2,147,483,647 tokens"),
        (HEADER + "noon,1,1\n", 2, "t_s", "'noon' is not a time; write 2023-11-16 18:15:46.68 or a number of seconds"),
        (HEADER + "0,1,1\nnoon,1,1\n", 3, "t_s", "'noon' is not a number of seconds"),
        (HEADER + "nan,1,1\n", 2, "t_s", "'nan' is not a number of seconds"),
        (HEADER + "0,1,1\n1e999,1,1\n", 3, "t_s", "'1e999' is not a number of seconds"),
        (HEADER + "2026-01-01,1,1\n7,1,1\n", 3, "t_s", "'7' is not a time"),
        (HEADER + "2026-01-01,1,1\n2026-01-01T00:00:00Z,1,1\n", 3, "t_s", "whether they name a zone"),
        ("\n" + HEADER + "0,1,x\n", 3, "output_tokens", "'x' is not"),
        (HEADER + '0,1,"1\n0,1,1\n', 3, "", "is no CSV here: unexpected end of data; correct the line, or the quotes"),
        (HEADER + "0,1," + "1" * 70_000 + "\n", 2, "", "longer than 65,536 characters; is the file a CSV?"),
        ("\n\na,b,c\n0,1,1\n", 3, "", "known to be the time: there are 'a', 'b', 'c'; name the trace's columns"),
        ("t_s,output_tokens\n0,1\n", 1, "", "known to be the input"),
        ("t_s,input_tokens\n0,1\n", 1, "", "known to be the output"),
        ("t_s,t_s,input_tokens,output_tokens\n0,0,1,1\n", 1, "t_s", "stands there twice; rename one"),
        (b"\x1f\x8b\x08\x00\xff\xff", 0, "", "not text in UTF-8; unpack it"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_what_to_do(
    write: Write, content: str | bytes, line: int, column: str, says: str
) -> None:
    path = write(content)
    with pytest.raises(TraceError) as caught:
        read(Trace(path, {"all": 1}))
    assert says in str(caught.value)
    assert str(caught.value).startswith(path)
    assert (caught.value.file, caught.value.line, caught.value.column) == (path, line, column)
    assert (f", line {line}" in str(caught.value)) == (line > 0)
    assert (f", column {column!r}" in str(caught.value)) == bool(column)


@pytest.mark.parametrize(
    ("named", "says"),
    [("Contexttokens", "'ContextTokens' may be meant"), ("tokens_in_all_of_it", "name one of these")],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(write: Write, named: str, says: str) -> None:
    with pytest.raises(TraceError, match="no such column") as caught:
        read(Trace(write(AZURE), {"all": 1}, columns=Columns("TIMESTAMP", named, "GeneratedTokens")))
    assert caught.value.column == named and says in str(caught.value)
    assert "has 'TIMESTAMP', 'ContextTokens', 'GeneratedTokens'" in str(caught.value)


def test_a_file_that_is_not_there_or_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file or directory; write the path"):
        read(Trace(str(tmp_path / "gone.csv"), {"all": 1}))
    with pytest.raises(TraceError, match="no regular file"):
        read(Trace(str(tmp_path), {"all": 1}))
    with pytest.raises(TraceError, match="no regular file"):
        read(Trace("/dev/zero", {"all": 1}))


def test_a_client_that_nobody_takes_is_told(write: Write) -> None:
    with pytest.raises(TraceError, match="nobody takes client '13'; give tenants a share"):
        read(Trace(write(PLAIN), {"all": 0}))
    with pytest.raises(TraceError, match="nobody takes a row"):
        read(Trace(write(AZURE), {}))
    with pytest.raises(TraceError, match="split among 'al', who is no tenant; there are 'all'"):
        read(Trace(write(AZURE), {"al": 1}))


# ---- the real ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "seconds", "most", "tokens"),
    [
        ("azure2023_conv.csv", 19_366, 3501.721937, 14_050, (22_361_870, 4_088_665)),
        ("azure2023_code.csv", 8_819, 3435.948056, 7_437, (18_059_974, 245_896)),
        ("vtc_arena_27clients.csv", 1_500, 600.0, 1_021, (204_398, 384_297)),
    ],
)
def test_a_published_trace_is_read_whole(
    name: str, rows: int, seconds: float, most: int, tokens: tuple[int, int]
) -> None:
    if not (REAL / name).is_file():
        pytest.skip(f"there is no {name} beside the project")
    trace = read(Trace(str(REAL / name), {"a": 1, "b": 3}), "a", "b")
    assert (len(trace.times), trace.is_whole, int(trace.inputs.max())) == (rows, True, most)
    assert trace.seconds == pytest.approx(seconds, abs=1e-6)
    assert (int(trace.inputs.sum()), int(trace.outputs.sum())) == tokens
    assert bool(np.all(np.diff(trace.times) >= 0))
