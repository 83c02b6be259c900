"""openpi's protocol, as a server speaks it: metadata first, then an observation, a flat map, and
its answer `{"actions": (k, a), …}`; a text is an error.

As openpi-client 0.1.2 (websocket_client_policy.py) and openpi's server (serving/
websocket_policy_server.py) have it. What is armlet's own is said in the metadata (`takes`): an
observation may say the action before, `previous_action`, that an episode begins, `reset`, and to a
flow policy what the robot carries out meanwhile, `underway` and `late` (real-time chunking).
After an error the connection stays open, where openpi's server hangs up: its client can ask again.
Knows no policy.
"""

import time
from typing import Any

from armlet.deploy.server.house import FAULTS, House
from armlet.deploy.server.peers import Peer
from armlet.deploy.server.session import Session
from armlet.robot.client.client import LATE, PREVIOUS_ACTION, RESET, TAKES, UNDERWAY, UNGUIDED
from armlet.robot.client.wire import pack

NAME = "openpi"


def metadata(house: House) -> dict[str, Any]:
    """What the server says first."""
    takes = {PREVIOUS_ACTION: PREVIOUS_ACTION, RESET: RESET}
    if house.reader.unguided:
        return {**house.description, TAKES: takes, UNGUIDED: house.reader.unguided}
    return {**house.description, TAKES: {**takes, UNDERWAY: UNDERWAY, LATE: LATE}}


async def speak(peer: Peer, house: House) -> None:
    """One connection, from beginning to end. Raises ConnectionClosed."""
    session = Session(house.course)
    await peer.say(pack(metadata(house), bytes_keys=True))
    before: float | None = None  # seconds that the answer before took in all
    while not house.stopping.is_set():
        frame = await peer.heard()
        begun = time.perf_counter()
        with peer.busy():
            house.metrics.requests.add(NAME)
            try:
                answer = await _answered(session, house, frame)
            except FAULTS as error:
                await peer.say(house.fault(NAME, error))
                continue
            if before is not None:
                answer["server_timing"]["prev_total_ms"] = before * 1e3
            await peer.say(pack(answer, bytes_keys=True))
        before = time.perf_counter() - begun
        house.metrics.answers.observe(before)


async def _answered(session: Session, house: House, frame: bytes | str) -> dict[str, Any]:
    """Raises one of FAULTS."""
    told = house.told(await house.unpacked(frame))
    if told.begins:
        session.reset()
    seen = session.see(told)
    begun = time.perf_counter()
    actions = await house.given(NAME, session, seen, session.whole)
    milliseconds = (time.perf_counter() - begun) * 1e3
    found: dict[str, Any] = {"actions": actions, "server_timing": {"infer_ms": milliseconds}}
    if session.interventions:
        found["guard"] = list(session.interventions)
    return found
