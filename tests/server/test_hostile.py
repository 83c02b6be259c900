"""Peers that flood, stall, vanish, lie and never end: the server stays there, well and as large as it
was. `make test-serve` sends a million messages, `make fuzz` does so for a minute."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
from policy_server import packed, unpacked

sys.path.insert(0, str(Path(__file__).parent))
from hostile import OPTIONS, Malice, besiege, bomb
from moody import Moody
from running import Raw, Running, framed, observation, running, until

from armlet.deploy.server.observing import Keys, ObservationError, Reader
from armlet.robot.client import wire

QUICK = ("--limits.handshake", "0.5", "--limits.idle", "2", "--limits.stalled", "1",
         "--limits.sessions", "3", "--limits.largest", "65536", "--limits.rate", "50")  # fmt: skip


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    """A server that waits for nobody for long."""
    with running(*QUICK) as started:
        yield started


def test_thousands_of_malformed_messages(tmp_path: Path) -> None:
    with running(*OPTIONS) as server:
        besiege(server, 20, tmp_path / "trace", messages=3000)
        assert server.stop() == 0


def test_whatever_comes_in_is_read_or_refused(tmp_path: Path) -> None:
    """Without a socket, so that many more are tried."""
    robot = Moody().robot
    reader = Reader(robot.observation, robot.action, Keys())
    malice = Malice(7, str(tmp_path / "trace"))
    read = 0
    for _ in range(4000):
        try:
            message = wire.unpack(malice.message(), entries=2**15)
        except wire.WireError:
            continue
        for told in (message, message.get("payload") if isinstance(message, dict) else None):
            try:
                reader.read(told)
            except ObservationError:
                read += 1
    assert read > 1000 and not (tmp_path / "trace").exists()


def test_a_small_picture_of_many_pixels_is_not_unpacked() -> None:
    class Large:
        def choice(self, sizes: tuple[int, ...]) -> int:
            return 9000

    picture = {"__image__": True, "format": "png", "data": bomb(Large()), "shape": [1, 1, 3]}
    with pytest.raises(wire.WireError, match="pictures of more than"):
        wire.unpack(msgpack.packb(picture))
    # Nor many of fewer.
    with pytest.raises(wire.WireError, match=r"no png picture|pictures of more"):
        wire.unpack(msgpack.packb([picture] * 3))


@pytest.mark.parametrize("form", ["raw", "png", "jpeg"])
def test_pictures_as_vla_eval_packs_them(form: str) -> None:
    import io

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    said = {"__image__": True, "format": form, "shape": [12, 10, 3], "dtype": "|u1"}
    if form == "raw":
        data = picture.tobytes()
    else:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format=form.upper())
        data = file.getvalue()
    found = wire.unpack(msgpack.packb({**said, "data": data}))
    assert found.shape == picture.shape and found.dtype == np.uint8
    if form != "jpeg":
        np.testing.assert_array_equal(found, picture)


def test_numbers_of_entries_are_bounded_however_they_lie() -> None:
    rows = msgpack.packb([[None] * 500] * 500)
    assert len(wire.unpack(rows)) == 500
    with pytest.raises(wire.WireError, match="too many entries"):
        wire.unpack(rows, entries=100_000)


# --- peers that do not end


async def hung_up(raw: Raw, seconds: float = 30.0) -> int | None:
    """Waits until the server ends the connection; its code, where it says one."""
    code = None
    async with asyncio.timeout(seconds):
        try:
            while True:
                opcode, payload = await raw.frame()
                if opcode == 8:
                    code = int.from_bytes(payload[:2], "big")
        except (asyncio.IncompleteReadError, OSError):
            return code


async def greeted(server: Running) -> Raw:
    raw = await Raw.open(server.ports["openpi"])
    await raw.frame()
    return raw


def test_a_handshake_that_does_not_end(quick: Running) -> None:
    async def half() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", quick.ports["openpi"])
        writer.write(b"GET / HTTP/1.1\r\nHost: ")
        begun = time.monotonic()
        with_nothing = await reader.read()
        assert with_nothing == b""
        return time.monotonic() - begun

    before = quick.metric("dropped_total")
    assert asyncio.run(half()) < 20
    assert quick.metric("dropped_total") == before + 1


def test_more_connections_than_there_is_room_for(quick: Running) -> None:
    """They are ended at once; a good robot gets in when the others have been hung up on."""

    async def crowd() -> int:
        opened = []
        for _ in range(60):
            opened.append(await asyncio.open_connection("127.0.0.1", quick.ports["openpi"]))
        begun = time.monotonic()
        for reader, _ in opened:
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 20)
        assert time.monotonic() - begun < 20
        raw = await greeted(quick)
        raw.write(framed(packed(observation(), as_bytes=True)))
        _, payload = await raw.frame()
        raw.vanish()
        return len(unpacked(payload)["actions"])

    assert asyncio.run(crowd()) == 4


def test_whoever_says_nothing_is_hung_up_on(quick: Running) -> None:
    async def silent() -> tuple[int | None, int | None]:
        nothing = await greeted(quick)
        cut = await greeted(quick)
        cut.write(framed(packed(observation(), as_bytes=True))[:100])

        async def answering_pings(raw: Raw) -> int | None:
            """It is there, and reads; that is not enough."""
            async with asyncio.timeout(30):
                while True:
                    opcode, payload = await raw.frame()
                    if opcode == 8:
                        return int.from_bytes(payload[:2], "big")
                    if opcode == 9:
                        raw.write(framed(payload, opcode=10))

        return await answering_pings(nothing), await hung_up(cut)

    nothing, cut = asyncio.run(silent())
    assert nothing == 1008
    assert cut in (1008, 1011, None)


def test_whoever_does_not_answer_a_ping_is_hung_up_on(quick: Running) -> None:
    async def deaf() -> int | None:
        raw = await greeted(quick)
        return await hung_up(raw)

    assert asyncio.run(deaf()) in (1011, 1008)
    until(lambda: quick.metric("sessions") == 0)


def test_whoever_does_not_read_is_hung_up_on(quick: Running) -> None:
    """Pings are answered by the websocket itself, and answers wait in memory for a peer that reads
    none: for so many bytes, and no more."""

    async def unread() -> None:
        raw = await Raw.open(quick.ports["openpi"])
        raw.writer.transport.pause_reading()
        ping = framed(b"x" * 125, opcode=9) * 100
        async with asyncio.timeout(60):
            try:
                while True:
                    raw.write(ping)
                    await raw.writer.drain()
                    await asyncio.sleep(0)
            except OSError:
                return

    before = quick.memory()
    asyncio.run(unread())
    until(lambda: quick.metric("sessions") == 0)
    assert quick.memory() - before < 32


def test_a_message_that_is_too_large(quick: Running) -> None:
    async def large() -> int | None:
        raw = await greeted(quick)
        raw.write(framed(bytes(70_000)))
        return await hung_up(raw)

    assert asyncio.run(large()) == 1009


def test_fragments_without_an_end(quick: Running) -> None:
    async def endless() -> None:
        raw = await greeted(quick)
        raw.write(framed(b"", fin=False))
        async with asyncio.timeout(60):
            try:
                while True:
                    raw.write(framed(b"", opcode=0, fin=False) * 100)
                    await raw.writer.drain()
                    await asyncio.sleep(0)
            except OSError:
                return

    asyncio.run(endless())


def test_a_flood_is_read_no_faster_than_the_rate(quick: Running) -> None:
    """Fifty a second and a hundred at once: 150 take a second at least, and all are answered; who
    asks beside it does not wait."""

    async def flood() -> tuple[float, float]:
        raw = await greeted(quick)
        other = await greeted(quick)
        begun = time.monotonic()
        for number in range(150):
            raw.write(framed(packed(observation(seed=number), as_bytes=True)))
        asked = time.monotonic()
        other.write(framed(packed(observation(), as_bytes=True)))
        await other.frame()
        beside = time.monotonic() - asked
        answers = 0
        async with asyncio.timeout(60):
            while answers < 150:
                opcode, payload = await raw.frame()
                answers += opcode == 2
                if opcode == 9:
                    raw.write(framed(payload, opcode=10))
        raw.vanish()
        other.vanish()
        return time.monotonic() - begun, beside

    took, beside = asyncio.run(flood())
    assert took > 0.95
    assert beside < took


def test_a_robot_that_vanishes_while_it_waits_costs_no_decision(quick: Running) -> None:
    async def vanish() -> None:
        slow = await greeted(quick)
        slow.write(framed(packed(observation("sleep 0.7"), as_bytes=True)))
        await asyncio.sleep(0.2)
        gone = await greeted(quick)
        gone.write(framed(packed(observation("raise"), as_bytes=True)))
        await asyncio.sleep(0.1)
        gone.vanish()
        await slow.frame()
        slow.vanish()

    asyncio.run(vanish())
    until(lambda: quick.metric("sessions") == 0)
    assert quick.page("/healthz")[0] == 200
