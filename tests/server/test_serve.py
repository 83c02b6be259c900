"""A real server on loopback: what each protocol answers, what a session remembers, who is let in,
and what one peer's error costs the others."""

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
from policy_server import packed, unpacked
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).parent))
from moody import CHUNK, DIMS, Moody, formula
from running import HERE, Running, observation, running, until

from armlet.deploy.server import serving
from armlet.deploy.server.house import LINES, Journal
from armlet.robot.client import AnswerError, Client, ServerError
from armlet.robot.observation import Observation

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


def seen(words: str = "go", seed: int = 0, previous: np.ndarray | None = None) -> Observation:
    told = observation(words, seed)
    before = np.zeros(DIMS, np.float32) if previous is None else previous
    return Observation({"eye": told["observation/eye"]}, told["observation/state"], words, before)


def call(server: Running, protocol: str = "openpi", **headers: str) -> ClientConnection:
    return connect(server.address(protocol), additional_headers=headers, max_size=None)


def ask(socket: ClientConnection, told: dict[str, Any]) -> dict[str, Any]:
    socket.send(packed(told, as_bytes=True))
    answer = socket.recv(timeout=60)
    assert isinstance(answer, bytes), answer
    return unpacked(answer)


class Harness:
    """What vla-eval's connection says, in its own bytes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seq = 0

    def send(self, kind: str, payload: dict[str, Any]) -> int:
        self.seq += 1
        message = {"type": kind, "payload": payload, "seq": self.seq, "timestamp": time.time()}
        self.socket.send(packed(message, as_bytes=False))
        return self.seq

    def hear(self) -> dict[str, Any]:
        return unpacked(self.socket.recv(timeout=60))

    def act(self, told: dict[str, Any]) -> np.ndarray:
        seq = self.send("observation", told)
        answer = self.hear()
        assert (answer["type"], answer["seq"]) == ("action", seq), answer
        return answer["payload"]["actions"]


def of_vla_eval(seed: int, words: str = "go", **more: Any) -> dict[str, Any]:
    told = observation(words, seed)
    return {
        "images": {"eye": told["observation/eye"]},
        "states": told["observation/state"],
        "task_description": words,
        **more,
    }


# --- openpi


def test_openpi_says_who_it_is_and_answers_a_chunk(server: Running) -> None:
    with call(server) as socket:
        metadata = unpacked(socket.recv())
        assert (metadata["policy"], metadata["execute"], metadata["chunk"]) == ("moody", 2, CHUNK)
        answer = ask(socket, observation())
        first = {key.decode() if isinstance(key, bytes) else key for key in answer}
        assert first == {"actions", "server_timing"}
        np.testing.assert_array_equal(answer["actions"], formula(seen()))
        assert "prev_total_ms" in ask(socket, observation())["server_timing"]


def test_a_session_remembers_the_action_before_until_it_begins_anew(server: Running) -> None:
    with call(server) as socket:
        socket.recv()
        first = ask(socket, observation())["actions"]
        second = ask(socket, observation(seed=1))["actions"]
        # Two of the four actions are taken to have been carried out.
        np.testing.assert_array_equal(second, formula(seen(seed=1, previous=first[1])))
        told = np.array([0.1, 0.2, 0.3], np.float32)
        third = ask(socket, observation(seed=2, previous_action=told))["actions"]
        np.testing.assert_array_equal(third, formula(seen(seed=2, previous=told)))
        again = ask(socket, observation(reset=True))["actions"]
        np.testing.assert_array_equal(again, first)
    with call(server) as socket:  # a connection of its own, too
        socket.recv()
        np.testing.assert_array_equal(ask(socket, observation())["actions"], first)


def test_sessions_do_not_hear_of_each_other(server: Running) -> None:
    with call(server) as one, call(server) as other:
        one.recv()
        other.recv()
        first = ask(one, observation())["actions"]
        ask(other, observation(seed=5))
        second = ask(one, observation(seed=1))["actions"]
        np.testing.assert_array_equal(second, formula(seen(seed=1, previous=first[1])))


def test_names_as_clients_have_them(server: Running) -> None:
    """Nested maps, channels first, a list for the state: as ALOHA's example, and a robot in C."""
    told = observation()
    picture = told["observation/eye"]
    expected = formula(seen())
    with call(server) as socket:
        socket.recv()
        for entries in (
            {"images": {"eye": picture}, "state": told["observation/state"], "prompt": "go"},
            {"images.eye": picture, "states": told["observation/state"], "prompt": "go"},
            {"eye": picture.transpose(2, 0, 1), "state": told["observation/state"], "prompt": "go"},
            {"eye": picture, "state": told["observation/state"].tolist(), "prompt": "go"},
        ):
            answer = ask(socket, {**entries, "reset": True})
            np.testing.assert_allclose(answer["actions"], expected, rtol=1e-6)


WRONG = {
    "no picture": ({"observation/eye": None}, "camera 'eye'"),
    "a float picture": ({"observation/eye": np.zeros((16, 16, 3))}, "expected a picture of uint8"),
    "its size": ({"observation/eye": np.zeros((9, 16, 3), np.uint8)}, "expect"),
    "grey": ({"observation/eye": np.zeros((16, 16, 1), np.uint8)}, "expected (h, w, 3)"),
    "two pictures": ({"more.eye": np.zeros((16, 16, 3), np.uint8)}, "might both be 'eye'"),
    "state": ({"observation/state": np.zeros(5)}, "found 5 numbers, expected 2 (x, y)"),
    "nan": ({"observation/state": np.array([0, np.nan])}, "NaN or infinite"),
    "beyond float": ({"observation/state": np.array([0, 1e300])}, "NaN or infinite"),
    "words": ({"prompt": 3}, "expected a text"),
    "long words": ({"prompt": "x" * 5000}, "at most 4096 letters"),
    "previous": ({"previous_action": np.zeros(2)}, "expected 3 (dx, dy, gripper)"),
    "reset": ({"reset": "yes"}, "expected true or false"),
    "raises": ({"prompt": "raise"}, "RuntimeError: the model ran out of memory and more"),
    "nan actions": ({"prompt": "nan"}, "NaN or infinite actions"),
    "a short chunk": ({"prompt": "short"}, "decided 1 actions, and 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_error_is_told_in_one_line_and_to_its_peer_alone(server: Running, what: str) -> None:
    change, said = WRONG[what]
    told = {key: value for key, value in {**observation(), **change}.items() if value is not None}
    with call(server) as socket, call(server) as other:
        socket.recv()
        other.recv()
        socket.send(packed(told, as_bytes=True))
        answer = socket.recv(timeout=60)
        assert isinstance(answer, str) and said in answer and "\n" not in answer
        np.testing.assert_array_equal(ask(other, observation())["actions"], formula(seen()))
        np.testing.assert_array_equal(ask(socket, observation())["actions"], formula(seen()))


def test_armlets_own_client(server: Running) -> None:
    with Client(server.address(), actions=("dx", "dy", "gripper")) as client:
        first = client.infer(seen())
        np.testing.assert_array_equal(first, formula(seen()))
        # It says itself which action came before.
        told = seen(seed=1, previous=np.ones(DIMS, np.float32))
        np.testing.assert_array_equal(client.infer(told), formula(told))
        client.reset()
        np.testing.assert_array_equal(client.infer(seen()), first)
        with pytest.raises(AnswerError, match="model ran out of memory"):
            client.infer(seen("raise"))
        np.testing.assert_array_equal(client.infer(seen()), first)
    with (
        Client(server.address(), actions=("dx",)) as client,
        pytest.raises(AnswerError, match=r"expected \(k, 1\)"),
    ):
        client.infer(seen())
    with pytest.raises(ServerError, match="cannot be reached"):
        Client("ws://127.0.0.1:1").infer(seen())


def test_armlets_client_says_where_an_episode_begins(server: Running) -> None:
    """Once for each, and only to a server that takes it."""
    with Client(server.address()) as client:
        client.infer(seen())
        assert "reset" not in client._message(seen())
        client.reset()
        assert client._message(seen())["reset"] is True
        client.infer(seen())
        assert "reset" not in client._message(seen())
    assert set(Client("ws://nobody")._message(seen())) == set(observation())


def test_it_is_a_teacher_too(server: Running, tmp_path: Path) -> None:
    """Told the action before, it answers a question the same each time, so that it is known."""
    from armlet.policies.acting import load_actor

    file = tmp_path / "policy.toml"
    file.write_text(f'checkpoint = "{server.address()}"\n')
    with pytest.raises(AnswerError, match="answers the same question differently"):
        load_actor(file, robot=Moody().robot)
    with file.open("a") as more:
        more.write('[options]\nprevious_action = "previous_action"\n')
    policy = load_actor(file, robot=Moody().robot)
    np.testing.assert_array_equal(policy.infer(seen(seed=4)), formula(seen(seed=4)))


# --- vla-eval


def test_vla_eval_is_handed_a_chunk_action_by_action(server: Running) -> None:
    with call(server, "vla_eval") as socket:
        harness = Harness(socket)
        seq = harness.send("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        hello = harness.hear()
        assert (hello["type"], hello["seq"]) == ("hello", seq)
        assert hello["payload"]["protocol_version"] == 1
        assert hello["payload"]["observation_params"] == {"send_state": True}
        for _ in range(2):
            harness.send("episode_start", {"task": {"name": "go"}})
            previous = np.zeros(DIMS, np.float32)
            for step in range(6):
                if step % 2 == 0:  # two of each chunk are carried out
                    chunk = formula(seen(seed=step, previous=previous))
                previous = harness.act(of_vla_eval(step))
                np.testing.assert_array_equal(previous, chunk[step % 2])
            harness.send("episode_end", {"metrics": {"success": True}, "steps": 6})


def test_vla_evals_pictures_are_unpacked(server: Running) -> None:
    import io

    from PIL import Image

    told = of_vla_eval(0)
    file = io.BytesIO()
    Image.fromarray(told["images"]["eye"]).save(file, format="PNG")
    packed_as_png = {"__image__": True, "format": "png", "data": file.getvalue(),
                     "shape": [16, 16, 3]}  # fmt: skip
    with call(server, "vla_eval") as socket:
        harness = Harness(socket)
        action = harness.act({**told, "images": {"eye": packed_as_png}})
        np.testing.assert_array_equal(action, formula(seen())[0])


def test_vla_eval_errors_are_messages_with_their_number(server: Running) -> None:
    with call(server, "vla_eval") as socket:
        harness = Harness(socket)
        for kind, payload, said in (
            ("observation", {"images": {}}, "camera 'eye'"),
            ("observation", of_vla_eval(0, "raise"), "ran out of memory"),
            ("dance", {}, "type is 'dance'"),
            ("hello", {"protocol_version": 2}, "version 2 of the protocol, expected 1"),
        ):
            seq = harness.send(kind, payload)
            answer = harness.hear()
            assert answer["type"] == "error" and said in answer["payload"]["error"]
            if kind == "observation":
                assert answer["seq"] == seq
        for message in (3, {"type": "observation"}, {"type": 1, "payload": {}, "seq": 1}):
            socket.send(msgpack.packb(message))
            assert harness.hear()["type"] == "error"
        np.testing.assert_array_equal(harness.act(of_vla_eval(0)), formula(seen())[0])


# --- who is let in


def test_health_and_metrics(server: Running) -> None:
    assert server.page("/healthz") == (200, "OK\n")
    assert server.page("/health", "vla_eval") == (200, "OK\n")
    with call(server) as socket:
        socket.recv()
        ask(socket, observation())
        until(lambda: server.metric("sessions") >= 1)
        open_now = server.metric("sessions")  # peers of other tests may not be given up yet
    status, text = server.page("/metrics")
    assert status == 200 and "# TYPE armlet_answer_seconds histogram" in text
    counted = [line for line in text.splitlines() if line.startswith("armlet_requests_total{")]
    assert counted and server.metric("pass_seconds_count") > 0
    until(lambda: server.metric("sessions") < open_now)


def test_a_web_page_is_not_let_in(server: Running) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        call(server, Origin="http://somewhere.example")


def test_no_token_no_robot(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    (tmp_path / "wrong").write_text(TOKEN[:-1] + "0\n")
    with running("--token", str(file), "--limits.sessions", "2") as server:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": TOKEN},
                        {"Authorization": f"Basic {TOKEN}"}):  # fmt: skip
            with pytest.raises(InvalidStatus, match="401"):
                call(server, **headers)
            assert server.page("/metrics", **headers)[0] == 401
        assert server.page("/healthz")[0] == 200
        for scheme in ("Api-Key", "Bearer"):
            with call(server, Authorization=f"{scheme} {TOKEN}") as socket:
                socket.recv()
        # The one way in which vla-eval's harness can say it.
        with connect(server.address("vla_eval").replace("//", f"//any:{TOKEN}@")) as socket:
            Harness(socket).act(of_vla_eval(0))
        with Client(server.address(), api_key=file) as client:
            client.infer(seen())
        with pytest.raises(AnswerError, match="refuses the key"):
            Client(server.address(), api_key=tmp_path / "wrong").infer(seen())
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert server.metric("refused_total", **bearer) >= 9
        # And no more robots than are allowed, over both ports.
        until(lambda: server.metric("sessions", **bearer) == 0)
        with contextlib.ExitStack() as stack:
            stack.enter_context(call(server, **bearer))
            stack.enter_context(call(server, "vla_eval", **bearer))
            with pytest.raises(InvalidStatus, match="503"):
                call(server, **bearer)
        assert TOKEN not in "".join(server.log)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "give --token FILE"),
        (("--token", "short"), "at least 16 letters"),
        (("--token", "nowhere"), "cannot be read"),
        (("--port", "None", "--vla-eval-port", "None"), "nothing would be served"),
        (("--execute", "9"), "decides 4 actions at a time"),
        (("--cameras", "nose", "image"), "no camera 'nose'; it looks through eye"),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, monkeypatch, options, said: str) -> None:
    """Before a socket is opened; without a process, as nothing is started."""
    import tyro

    from armlet.serve import Serving, serve

    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("secret")
    with pytest.raises(ValueError, match=said):
        serve(Moody(), tyro.cli(Serving, args=options), name="moody")


def test_which_addresses_are_this_machines_alone() -> None:
    from armlet.deploy.server.peers import is_loopback

    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.0.7", "10.0.0.1", "robot", ""):
        assert not is_loopback(host)


def test_numbers_that_mean_nothing() -> None:
    from armlet.deploy.server.peers import Limits
    from armlet.serve import Serving

    for make, wrong in (
        (Serving, "batch"),
        (Serving, "execute"),
        (Limits, "rate"),
        (Limits, "idle"),
    ):
        with pytest.raises(ValueError, match=f"{wrong} is 0"):
            make(**{wrong: 0})


def test_a_history_is_not_served_with_gaps() -> None:

    from armlet.serve import Serving, serve

    policy = Moody()
    policy.history = 2
    with pytest.raises(ValueError, match="one every 2; give --execute 1"):
        serve(policy, Serving(), name="moody")


# --- the end


def test_answers_under_way_are_given_and_then_it_ends() -> None:
    with running() as server, call(server) as idle, call(server) as busy:
        idle.recv()
        busy.recv()
        busy.send(packed(observation("sleep 1.5"), as_bytes=True))
        until(lambda: server.metric("requests_total") == 1)
        server.process.send_signal(signal.SIGTERM)
        answer = unpacked(busy.recv(timeout=60))
        np.testing.assert_array_equal(answer["actions"], formula(seen("sleep 1.5")))
        for socket in (idle, busy):
            with pytest.raises(ConnectionClosed) as raised:
                socket.recv(timeout=60)
            assert raised.value.rcvd is not None and raised.value.rcvd.code == 1001
        assert server.process.wait(60) == 0
        assert server.process.stdout is not None
        assert "stopped after 1 observations" in server.process.stdout.read()


def test_whoever_hangs_is_not_waited_for() -> None:
    """A decision that takes too long: its robot is told, the server says that it is unwell, and
    ends all the same when it is told to."""
    with running("--limits.decision", "0.5", "--limits.stopping", "0.5") as server:
        with call(server) as socket:
            socket.recv()
            socket.send(packed(observation("sleep 50"), as_bytes=True))
            assert "has not decided within 0.5 s" in socket.recv(timeout=60)
            assert server.page("/healthz")[0] == 503
            assert server.metric("errors_total") == 1
        assert server.stop(signal.SIGINT, timeout=20) == 0


def test_a_port_that_is_taken(server: Running) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "moody.py"), "--port", str(server.ports["openpi"])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and "another server is there; give another port" in done.stderr


# --- many robots


def test_whoever_asks_most_waits_like_all_others(server: Running) -> None:
    """Four robots ask without a pause, each answer takes a while: all get as many."""
    answers = [0] * 4
    end = time.monotonic() + 3

    def drive(robot: int) -> None:
        with call(server) as socket:
            socket.recv()
            while time.monotonic() < end:
                ask(socket, observation("sleep 0.02", seed=robot))
                answers[robot] += 1

    robots = [threading.Thread(target=drive, args=(robot,)) for robot in range(4)]
    for each in robots:
        each.start()
    for each in robots:
        each.join()
    assert min(answers) > 5 and max(answers) - min(answers) <= 0.3 * max(answers) + 2, answers


def test_robots_that_wait_together_are_decided_together() -> None:
    """In one pass of the network, and as each alone; a wrong one of them alone is told so."""
    import torch

    from armlet.deploy.server.deciding import DecisionError, decide_all
    from armlet.policies.checkpoint import load_policy

    torch.set_num_threads(1)
    policy = load_policy("checkpoints/tabletop-teacher")
    rng = np.random.default_rng(0)
    moments = []
    for words in ("open the red drawer", "put the blue cube into the white box", "push it"):
        images = {}
        for name, camera in policy.robot.observation.cameras.items():
            images[name] = rng.integers(0, 256, (camera.height, camera.width, 3), np.uint8)
        state = rng.normal(size=4).astype(np.float32)
        moments.append(Observation(images, state, words, np.zeros(4, np.float32)))
    together = decide_all(policy, moments)
    for found, moment in zip(together, moments, strict=True):
        np.testing.assert_allclose(found, policy.infer(moment), atol=1e-5)
    wrong = Observation({}, moments[0].state, "push it", moments[0].previous_action)
    first, second = decide_all(policy, [moments[0], wrong])
    np.testing.assert_allclose(first, policy.infer(moments[0]), atol=1e-5)
    assert isinstance(second, DecisionError) and second.kind == "observation"


def test_one_pass_answers_all_that_wait() -> None:
    """The thread takes whoever waits, at most `batch` of them, first come, first served."""

    from armlet.deploy.server.deciding import Decider
    from armlet.deploy.server.metrics import Metrics

    metrics = Metrics()
    decider = Decider(Moody(), batch=3, timeout=60, metrics=metrics)

    async def all_of_them() -> list[np.ndarray]:
        asked = [asyncio.create_task(decider.decide(seen(seed=each))) for each in range(7)]
        await asyncio.sleep(0.05)  # all of them wait
        decider.start()
        return await asyncio.gather(*asked)

    answers = asyncio.run(all_of_them())
    decider.stop(10)
    for number, found in enumerate(answers):
        np.testing.assert_array_equal(found, formula(seen(seed=number)))
    assert (metrics.batches.sum, metrics.passes.counts and sum(metrics.passes.counts)) == (7, 3)


def test_first_come_first_served() -> None:
    from armlet.deploy.server.deciding import Decider
    from armlet.deploy.server.metrics import Metrics

    order = []

    class Noting(Moody):
        def infer(self, seen: Observation) -> np.ndarray:
            order.append(seen.instruction)
            return super().infer(seen)

    decider = Decider(Noting(), batch=1, timeout=60, metrics=Metrics())

    async def all_of_them() -> None:
        asked = [asyncio.create_task(decider.decide(seen(str(each)))) for each in range(5)]
        await asyncio.sleep(0.05)
        asked[2].cancel()  # its robot has hung up
        await asyncio.sleep(0)
        decider.start()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(all_of_them())
    decider.stop(10)
    assert order == ["0", "1", "3", "4"]


# --- behind a guard


def test_a_guard_holds_every_action_within_its_limits(tmp_path: Path) -> None:
    """By speed and by range; where the policy fails the robot is held, and told why."""
    (tmp_path / "guard.toml").write_text(
        'mode = "delta"\n[range]\ndx = [-0.1, 0.05]\n[velocity]\ndy = 0.5\n'
    )
    with running("--guard", str(tmp_path / "guard.toml")) as server:
        with call(server) as socket:
            socket.recv()
            for number in range(6):
                answer = ask(socket, observation(seed=number, reset=True))
                free = formula(seen(seed=number))
                actions = answer["actions"]
                np.testing.assert_allclose(actions[:, 0], np.clip(free[:, 0], -0.1, 0.05))
                # At 10 Hz half a unit a second is 0.05 a step.
                np.testing.assert_allclose(
                    actions[:, 1], np.clip(free[:, 1], -0.05, 0.05), atol=1e-6
                )
            assert any("velocity" in line for line in answer["guard"])
            for words in ("nan", "raise", "short"):
                held = ask(socket, observation(words))
                assert np.abs(held["actions"][:, :2]).max() == 0 and len(held["actions"]) >= 2
                assert any("nonsense" in line for line in held["guard"])
        with call(server, "vla_eval") as socket:
            harness = Harness(socket)
            assert abs(harness.act(of_vla_eval(0))[1]) <= 0.05 + 1e-6
            assert np.abs(harness.act(of_vla_eval(0, "raise"))[:2]).max() <= 0.1
        assert server.metric("errors_total") == 3


def test_what_other_libraries_say_is_a_few_lines_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio says a line for every message to a peer that has vanished."""
    asyncios = logging.getLogger("asyncio")

    async def loud(*_: object) -> None:
        for _ in range(1000):
            asyncios.warning("socket.send() raised exception.")

    monkeypatch.setattr(serving, "_run", loud)
    with caplog.at_level(logging.WARNING):
        serving.run(SimpleNamespace(journal=Journal()), None, "127.0.0.1", ())
        asyncios.warning("of another server")
    said = [record for record in caplog.records if "socket.send" in record.getMessage()]
    assert len(said) == LINES
    assert {record.name for record in said} == {"armlet.serve"}
    assert caplog.records[-1].name == "asyncio"
