"""Logs of lines: cut anywhere, damaged anywhere, by bits that a disk changed, and those of before
there were checksums."""

import json
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armlet.data.lines import appending, read_lines, whole_lines


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), max_size=4),
    cut=st.integers(0, 200),
)
def test_a_log_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path, rows, cut: int) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    with appending(path) as add:
        for line in lines:
            add(line)
    content = path.read_bytes()
    cut = min(cut, len(content))
    path.write_bytes(content[:cut])  # in the middle of a letter, too
    whole = content[:cut].count(b"\n")
    assert whole_lines(path) == lines[:whole]
    with appending(path) as add:
        add("{}")
    assert whole_lines(path) == [*lines[:whole], "{}"]


@pytest.mark.parametrize("bad", [b"\0\0\0", b'{"a": 1', b"\xff\xfe", b"3", b""])
def test_damage_inside_a_log_is_named_by_its_line(tmp_path, bad: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n' + bad + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"log, line 2 of 3: found .*, expected a JSON object"):
        whole_lines(path)
    path.write_bytes(b'{"a": 1}\n' + b"\0" * 100)  # what a power cut leaves of a last line
    assert whole_lines(path) == ['{"a": 1}'] and path.read_bytes() == b'{"a": 1}\n'
    assert whole_lines(tmp_path / "none") == []


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bit=st.integers(0, 8 * 150), at=st.sampled_from([0, 1, 2]))
def test_a_bit_that_changed_is_named_by_its_line(tmp_path, bit: int, at: int) -> None:
    """But where it makes one line into two, of which the first is none."""
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    with appending(path) as add:
        for number in range(3):
            add(json.dumps({"step": number, "loss": 0.12345, "name": "Größe \u2028"}))
    first, *_ = lines = path.read_bytes().splitlines(keepends=True)
    begin = at * len(first)
    assert len(set(map(len, lines))) == 1
    content = bytearray(b"".join(lines))
    place = begin + bit // 8 % (len(first) - 1)
    content[place] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"log, line {at + 1} of [34]: "):
        read_lines(path)
    assert path.read_bytes() == content


def test_a_lines_checksum_is_the_crc_32_of_the_line_without_it(tmp_path) -> None:
    path = tmp_path / "log"
    with appending(path) as add:
        add('{"a": 1}')
    row = json.loads(path.read_text())
    assert row.keys() == {"a", "crc"} and int(row["crc"], 16) == zlib.crc32(b'{"a": 1}')


def test_a_log_of_before_goes_on_and_is_checked_from_there(tmp_path) -> None:
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n')
    with appending(path) as add:
        add('{"a": 2}')
    assert read_lines(path) == ['{"a": 1}', '{"a": 2}']
    with path.open("a") as file:
        file.write('{"a": 3}\n{"a"')
    with pytest.raises(ValueError, match="line 3 of 3: it has no checksum"):
        whole_lines(path)


def test_lines_that_another_program_ended_otherwise_are_named(tmp_path) -> None:
    path = tmp_path / "log"
    with appending(path) as add:
        add('{"a": 1}')
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(ValueError, match="line 1 of 1: found"):
        read_lines(path)


def test_reading_leaves_what_is_being_written(tmp_path) -> None:
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n{"a"')
    assert read_lines(path) == ['{"a": 1}'] and path.read_text().endswith('{"a"')
    assert whole_lines(path) == ['{"a": 1}'] and path.read_text().endswith("}\n")
    assert read_lines(tmp_path / "none") == []
