"""vla-eval's model-server protocol, version 1: every message is `{type, payload, seq, timestamp}`.

As vla-eval 0.8.0 (protocol/messages.py, model_servers/serve.py, connection.py) has it. A chunk is
handed out an action an observation, `execute` of them before the policy is asked again, as the
harness's own servers do and its benchmarks expect. An answer has the `seq` of its observation;
errors are messages, and the connection stays open. Knows no policy.
"""

import importlib.metadata
import time
from typing import Any

from armlet.deploy.server.house import FAULTS, House, MessageError
from armlet.deploy.server.peers import Peer
from armlet.deploy.server.session import Session
from armlet.robot.client.dialects import VERSION
from armlet.robot.client.wire import pack
from armlet.robot.spec import ActionSpec, ObservationSpec

NAME = "vla_eval"
ROTATIONS = {"axis_angle": ("axis_angle", 3), "euler": ("euler_xyz", 3)}
# (open, closed) → the harness's word for such a gripper.
GRIPPERS = {
    (-1.0, 1.0): "binary_close_positive",
    (1.0, -1.0): "binary_close_negative",
    (0.0, 1.0): "binary_close_01",
    (1.0, 0.0): "continuous_01",
}


async def speak(peer: Peer, house: House) -> None:
    """One connection, from beginning to end. Raises ConnectionClosed."""
    session = Session(house.course)
    while not house.stopping.is_set():
        frame = await peer.heard()
        begun = time.perf_counter()
        with peer.busy():
            seq = 0
            try:
                kind, payload, seq = _read(await house.unpacked(frame))
                answer = await _answered(session, house, kind, payload)
            except FAULTS as error:
                answer = ("error", {"error": f"observation_failed: {house.fault(NAME, error)}"})
            if answer is None:
                continue
            said, payload = answer
            message = {"type": said, "payload": payload, "seq": seq, "timestamp": time.time()}
            await peer.say(pack(message, bytes_keys=False))
        if said == "action":
            house.metrics.answers.observe(time.perf_counter() - begun)


def _read(message: Any) -> tuple[str, dict[str, Any], int]:
    """Type, payload and number of a message. Raises MessageError."""
    if not isinstance(message, dict):
        raise MessageError(f"found a {type(message).__name__}, expected a map of a message")
    missing = [name for name in ("type", "payload", "seq") if name not in message]
    if missing:
        raise MessageError(f"the message lacks {', '.join(missing)}")
    kind = message["type"]
    payload = message["payload"]
    seq = message["seq"]
    if not isinstance(kind, str) or not isinstance(payload, dict) or type(seq) is not int:
        raise MessageError(
            f"type, payload and seq are a {type(kind).__name__}, a {type(payload).__name__} and a "
            f"{type(seq).__name__}, expected a text, a map and a whole number"
        )
    return kind, payload, seq


async def _answered(
    session: Session, house: House, kind: str, payload: dict[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """Type and payload of an answer; None where the protocol has none. Raises one of FAULTS."""
    if kind == "hello":
        return "hello", _hello(house, payload)
    if kind in ("episode_start", "episode_end"):
        session.reset()
        return None
    if kind == "error":
        house.journal.warn("a harness says", f"{payload.get('error', payload)!s:.200}")
        return None
    if kind != "observation":
        raise MessageError(
            f"type is {kind!r:.40}, expected hello, episode_start, observation, episode_end or error"
        )
    house.metrics.requests.add(NAME)
    # Also where an action is left: the policy may look at what was seen before.
    seen = session.see(house.told(payload))
    action = session.left()
    if action is None:
        action = await house.given(NAME, session, seen, session.first)
    return "action", {"actions": action}


def _hello(house: House, payload: dict[str, Any]) -> dict[str, Any]:
    version = payload.get("protocol_version", VERSION)
    if version != VERSION:
        raise MessageError(f"version {version!r:.20} of the protocol, expected {VERSION}")
    seen = house.reader.seen
    return {
        "harness_version": f"armlet {importlib.metadata.version('armlet')}",
        "protocol_version": VERSION,
        "model_server": "armlet",
        "capabilities": {},
        "policy": house.description,
        "observation_params": observation_params(seen),
        "observation_spec": {
            "image": _dim("image", 0, "rgb_hwc_uint8"),
            "language": _dim("language", 0, "language"),
        },
        "action_spec": action_spec(house.course.spec),
    }


def observation_params(seen: ObservationSpec) -> dict[str, Any]:
    """What the harness's benchmarks leave out unless a model asks for it."""
    found = {}
    if seen.state_dims != 0:
        found["send_state"] = True
    if any("wrist" in camera for camera in seen.cameras):
        found["send_wrist_image"] = True
    return found


def action_spec(spec: ActionSpec) -> dict[str, Any]:
    """The parts of an action in the harness's words (specs.py), with which it compares them to the
    benchmark's; where there are none for them, numbers that it compares with nothing."""
    moves = spec.translation
    turns = [each for each in range(spec.dims) if each not in moves and each not in spec.grippers]
    rotation, rotation_dims = ROTATIONS.get(spec.rotation, ("", 0))
    gripper = GRIPPERS.get((spec.gripper_open, spec.gripper_closed))
    named = len(moves) == 3 and len(turns) == rotation_dims and len(spec.grippers) <= 1
    if not named or (spec.grippers and gripper is None):
        return {"actions": _dim("actions", spec.dims, "raw")}
    found = {"position": _dim("position", 3, f"{spec.mode}_xyz")}
    if rotation:
        found["rotation"] = _dim("rotation", rotation_dims, rotation)
    if gripper is not None and spec.grippers:
        found["gripper"] = _dim("gripper", 1, gripper)
    return found


def _dim(name: str, dims: int, form: str) -> dict[str, Any]:
    return {"name": name, "dims": dims, "format": form}
