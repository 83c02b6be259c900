"""A policy's server as a process of its own: openpi's protocol or vla-eval's, spoken by nothing of
armlet's, and everything that can go wrong with one.

    python tests/policy_server.py --protocol openpi [--policy FOLDER] [--port 0] [--fault nan …]

It says its port on the first line. Without `--policy` it answers with a formula of what it was told,
which a test can compute as well. Messages are packed here as openpi-client 0.1.2 and vla-eval 0.8.0
pack theirs; the servers are written after openpi's `websocket_policy_server.py` and vla-eval's
`model_servers/serve.py`.
"""

import argparse
import asyncio
import http
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

CHUNK = 3


def formula(state: np.ndarray, previous: np.ndarray, picture: np.ndarray, words: str) -> np.ndarray:
    """(k, a): small numbers that depend on everything."""
    base = 0.3 * np.sin(np.float64(state).sum() + picture.mean() / 50 + len(words))
    steps = np.arange(CHUNK)[:, None] * 0.01
    return (base + steps + 0.1 * np.float64(previous)[None]).astype(np.float32)


def packed(value: Any, *, as_bytes: bool) -> bytes:
    def encode(each: Any) -> Any:
        if isinstance(each, np.ndarray):
            said = {"__ndarray__": True, "data": each.tobytes(), "dtype": each.dtype.str}
            said["shape"] = list(each.shape)
            return {key.encode(): item for key, item in said.items()} if as_bytes else said
        raise TypeError(type(each))

    return msgpack.packb(value, default=encode)


def unpacked(frame: bytes) -> Any:
    def decode(value: dict) -> Any:
        for key in (b"__ndarray__", "__ndarray__"):
            if key in value:
                get = (lambda name: value[name.encode()]) if key == b"__ndarray__" else value.get
                return np.frombuffer(get("data"), np.dtype(get("dtype"))).reshape(get("shape"))
        return value

    return msgpack.unpackb(frame, object_hook=decode)


def wrong(fault: str, actions: np.ndarray) -> dict[str, Any]:
    """What a server that has this fault says in place of its actions (…, k, a), or beside them."""
    array = {b"__ndarray__": True, b"dtype": "<f4", b"shape": list(actions.shape)}
    pickled = {**array, b"dtype": "|O", b"data": pickle.dumps(actions)}
    first = np.arange(actions.shape[-1]) == 0
    faults: dict[str, Any] = {
        "": {},
        "other": {"actions": actions + np.float32(0.02)},
        "nan": {"actions": np.where(first, np.float32("nan"), actions)},
        "dims": {"actions": actions[..., :-1]},
        "count": {"actions": np.repeat(actions, 2, axis=-2)},
        "flat": {"actions": actions[None, None]},
        "scale": {"actions": actions * np.float32(1e4)},
        "none": {"actions": None},
        "strings": {"actions": [["left"] * actions.shape[-1]] * CHUNK},
        "objects": {"actions": pickled},
        "short": {"actions": {**array, b"data": actions.tobytes()[:-4]}},
        "huge": {"more": np.zeros(2**25, np.uint8)},
    }
    return faults.get(fault, {})


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.asked = 0
        self.rng = np.random.default_rng()
        self.policy = None
        if options.policy:
            import torch

            from armlet.policies.checkpoint import load_policy

            torch.set_num_threads(1)
            self.policy = load_policy(options.policy)

    # --- what is answered

    def answer(self, told: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        options = self.options
        if options.log:
            with open(options.log, "a") as file:
                file.write(f"{self.asked} {time.monotonic():.3f}\n")
        time.sleep(options.delay)
        striking = options.fault if self.asked > options.after else ""
        if striking == "dies":
            os._exit(9)
        if striking == "raises":
            raise RuntimeError("the model ran out of memory")
        if "noise" in told and options.fault == "draws":
            drawn = told["noise"].ravel()[0]
        else:
            drawn = self.rng.normal() if options.fault == "draws" else 0.0
        actions = self.actions(told) + np.float32(0.01 * drawn)
        found: dict[str, Any] = {"actions": actions, "server_timing": {"infer_ms": 1.0}}
        if striking == "missing":
            del found["actions"]
        return found | wrong(striking, actions)

    def actions(self, told: dict[str, Any]) -> np.ndarray:
        """Of one observation, or of a batch where words come as a list."""
        words = told["prompt"]
        if isinstance(words, list):
            rows = []
            for row in range(len(words)):
                rows.append(self.one({key: value[row] for key, value in told.items()}))
            return np.stack(rows) if self.policy is None else self.batch(told)
        return self.one(told)

    def one(self, told: dict[str, Any]) -> np.ndarray:
        if self.policy is not None:
            return self.policy.infer(self.observation(told))
        pictures = [value for key, value in told.items() if key.startswith("image/")]
        state = told.get("state", np.zeros(1))
        previous = told.get("previous_action", np.zeros(self.options.dims))
        return formula(state, previous, np.asarray(pictures[0]), told["prompt"])

    def batch(self, told: dict[str, Any]) -> np.ndarray:
        from armlet.evaluation.asking import decide_together

        rows = []
        for row in range(len(told["prompt"])):
            rows.append(self.observation({key: value[row] for key, value in told.items()}))
        return decide_together(self.policy, rows)[0]

    def observation(self, told: dict[str, Any]) -> Any:
        from armlet.robot.observation import Observation

        images = {}
        for key, value in told.items():
            if key.startswith("image/"):
                images[key.removeprefix("image/")] = value
        return Observation(images, told["state"], told["prompt"], told["previous_action"])

    # --- the two protocols

    async def openpi(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        metadata = {"name": self.options.name, "reset_pose": np.zeros(2, np.float32)}
        await socket.send(packed(metadata, as_bytes=True))
        while True:
            try:
                told = unpacked(await socket.recv())
                plain = {}
                for key, value in told.items():
                    plain[key.replace("observation/", "image/")] = value
                for key in ("state", "previous_action"):
                    if f"image/{key}" in plain:
                        plain[key] = plain.pop(f"image/{key}")
                if self.is_silent():
                    await asyncio.sleep(3600)
                if self.strikes("text"):
                    await socket.send("no such prompt")
                    continue
                if self.strikes("garbage"):
                    await socket.send(b"\xc1\xc1")
                    continue
                await socket.send(packed(self.answer(plain), as_bytes=True))
            except ConnectionClosed:
                return
            except Exception:
                await socket.send(traceback.format_exc())
                await socket.close(code=1011)
                return

    async def vla_eval(self, socket: Any) -> None:
        left: list[np.ndarray] = []  # of the chunk, where it hands out an action at a time
        async for frame in socket:
            message = unpacked(frame)
            seq, payload = message["seq"], message["payload"]

            async def say(kind: str, said: dict[str, Any], seq: int = seq) -> None:
                answer = {"type": kind, "payload": said, "seq": seq, "timestamp": time.time()}
                await socket.send(packed(answer, as_bytes=False))

            if message["type"] == "hello":
                spec = {"name": "raw", "dims": 0, "format": "raw"}
                await say("hello", {"protocol_version": 1, "model_server": self.options.name,
                                    "capabilities": {}, "action_spec": {"actions": spec}})  # fmt: skip
            elif message["type"] == "episode_start":
                left = []
            elif message["type"] == "observation":
                told = {f"image/{name}": each for name, each in payload["images"].items()}
                told |= {key: each for key, each in payload.items() if key != "images"}
                told["prompt"] = told.pop("task_description")
                try:
                    if not left:
                        found = self.answer(told)
                        left = list(found["actions"]) if self.options.one else []
                    said = {"actions": left.pop(0)} if self.options.one else found
                    await say("action", said)
                except Exception as error:
                    await say("error", {"error": f"observation_failed: {error}"})

    def strikes(self, fault: str) -> bool:
        return self.options.fault == fault and self.asked >= self.options.after

    def is_silent(self) -> bool:
        return self.strikes("silent")

    async def run(self) -> None:
        from websockets.asyncio.server import serve

        def look(connection: Any, request: Any) -> Any:
            if (
                self.options.key
                and request.headers.get("Authorization") != f"Api-Key {self.options.key}"
            ):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no\n")
            return None

        handler = getattr(self, self.options.protocol)
        async with serve(handler, "127.0.0.1", self.options.port, compression=None, max_size=None,
                         ping_interval=None, process_request=look) as server:  # fmt: skip
            sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
            sys.stdout.flush()
            await server.serve_forever()


@contextmanager
def serving(**options: Any) -> Iterator[str]:
    """A server with these options, while it lasts; gives its address."""
    process, address = started(**options)
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def started(**options: Any) -> tuple[subprocess.Popen, str]:
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    assert port, "the server did not start"
    return process, f"ws://127.0.0.1:{port}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocol", default="openpi")
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dims", type=int, default=1)
    parser.add_argument("--fault", default="")
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--name", default="test")
    parser.add_argument("--one", type=int, default=0)
    parser.add_argument("--key", default="")
    parser.add_argument("--log", default="")
    asyncio.run(Server(parser.parse_args()).run())


if __name__ == "__main__":
    main()
