"""A policy behind a socket: what is sent and understood, who it is, and every way in which a server
can be wrong. The servers are real processes (policy_server.py)."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from outside import Dots
from policy_server import CHUNK, formula, packed, serving, started

from armlet.benchmarks import benchmark_robot
from armlet.policies.acting import actor_fingerprint, behind_socket, load_actor
from armlet.policies.checkpoint import load_policy
from armlet.policies.remote.policy import SocketPolicy
from armlet.robot.client.address import address_of, is_address
from armlet.robot.client.line import AnswerError, ServerError
from armlet.robot.client.wire import WireError, pack, unpack
from armlet.robot.observation import Observation

ROBOT = benchmark_robot(Dots())


def toml(folder: Path, address: str, **options: object) -> Path:
    """A policy.toml that gives an address, with the keys that the test's server wants."""
    lines = [f'checkpoint = "{address}"', "[options]"]
    told = {"previous_action": "observation/previous_action"} | options
    for name, value in told.items():
        lines.append(f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
    path = folder / "policy.toml"
    path.write_text("\n".join(lines).replace("(", "[").replace(")", "]") + "\n")
    return path


def met(place: Path | str) -> SocketPolicy:
    policy = load_actor(place, robot=ROBOT)
    assert isinstance(policy, SocketPolicy)
    return policy


def moments(count: int) -> list[Observation]:
    rng = np.random.default_rng(3)
    found = []
    for number in range(count):
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        state = rng.normal(size=1).astype(np.float32)
        before = rng.normal(size=1).astype(np.float32)
        found.append(Observation({"eye": image}, state, "go" + "o" * number, before))
    return found


def expected(seen: Observation) -> np.ndarray:
    return formula(seen.state, seen.previous_action, seen.images["eye"], seen.instruction)


QUICK = {"retries": 1, "wait": 0.05}


# --- addresses


def test_an_address_is_known_although_path_has_eaten_a_slash() -> None:
    assert is_address(Path("ws://host:8000")) and not is_address("wsfolder") and not is_address("w")
    assert address_of(Path("ws://host:8000")) == "ws://host:8000"
    assert address_of("ws:/host") == "ws://host:8000"
    assert address_of("wss://a.b/c/d") == "wss://a.b:8000/c/d"
    assert address_of("ws://[::1]:9") == "ws://[::1]:9"


@pytest.mark.parametrize("text", ["ws://", "ws://host:x", "ws://host:0", "ws://host:99999"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="expected ws://host:port"):
        address_of(text)


@pytest.mark.parametrize("text", ["ws://me:pass1@host:1", "ws://host:1/?token=pass1"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="api_key") as raised:
        address_of(text)
    assert "pass1" not in str(raised.value)


def test_whoever_needs_weights_is_told_that_there_are_none(tmp_path: Path) -> None:
    for place in ("ws://host:1", toml(tmp_path, "ws://host:1")):
        with pytest.raises(ValueError, match="behind a socket, of which nobody here has weights"):
            load_policy(place)
        assert behind_socket(place) is not None
    assert behind_socket(tmp_path.parent) is None
    with pytest.raises(ValueError, match="does not say what its robot is"):
        load_actor("ws://host:1")


# --- the wire


@pytest.mark.parametrize("as_bytes", [True, False])
def test_arrays_there_and_back(as_bytes: bool) -> None:
    sent = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": ["x", 1, None], "c": {"d": 1.5}}
    for frame in (pack(sent, bytes_keys=as_bytes), packed(sent, as_bytes=as_bytes)):
        found = unpack(frame)
        np.testing.assert_array_equal(found["a"], sent["a"])
        assert (
            found["a"].dtype == np.float32 and found["b"] == sent["b"] and found["c"] == sent["c"]
        )


@pytest.mark.parametrize(
    ("array", "match"),
    [
        ({"dtype": "|O", "data": b"", "shape": [0]}, "only numbers are taken"),
        ({"dtype": "<U4", "data": b"", "shape": [0]}, "only numbers are taken"),
        ({"dtype": [["a", "<f4"]], "data": b"", "shape": [0]}, "only numbers are taken"),
        ({"dtype": "f4,O", "data": b"", "shape": [0]}, "only numbers are taken"),
        ({"dtype": ",f4", "data": b"", "shape": [0]}, "only numbers are taken"),
        ({"dtype": "f1", "data": b"", "shape": [0]}, "only numbers are taken"),
        ({"dtype": "<f4", "data": b"1234", "shape": [2]}, "has 4 bytes, expected 8"),
        ({"dtype": "<f4", "data": b"", "shape": [2**40, 2**40]}, "has 0 bytes, expected"),
        ({"dtype": "<f4", "data": b"", "shape": [-1]}, "expected whole numbers"),
        ({"dtype": "<f4", "data": "1234", "shape": [1]}, "expected bytes"),
        ({"dtype": "<f4", "shape": [1]}, "lacks 'data'"),
    ],
)
def test_arrays_that_are_none(array: dict, match: str) -> None:
    import msgpack

    with pytest.raises(WireError, match=match):
        unpack(msgpack.packb({"actions": {"__ndarray__": True, **array}}))


def test_frames_that_are_no_message() -> None:
    import msgpack

    deep: list = []
    for _ in range(100):
        deep = [deep]
    promising = b"\xdd\xff\xff\xff\xff"  # an array of four thousand million entries, and none there
    for frame in (b"", b"\xc1", b"\x81", promising, msgpack.packb(deep), msgpack.packb({1: 2})):
        with pytest.raises(WireError):
            unpack(frame)


# --- questions and answers


def test_what_is_told_arrives_and_what_is_answered_comes_back(tmp_path: Path) -> None:
    with serving() as address:
        policy = met(toml(tmp_path, address))
        assert (policy.chunk, policy.execute) == (CHUNK, CHUNK)
        seen = moments(5)
        answers = policy.ask(seen)
        for number, each in enumerate(seen):
            np.testing.assert_array_equal(answers[number], expected(each))
        assert policy.infer(seen[0]).shape == (CHUNK, 1)
        # Acting, it keeps to the robot's range; as a teacher it says what it says.
        assert np.abs(policy.infer(seen[0])).max() <= 1


@pytest.mark.parametrize(
    "options", [{"batch": 3}, {"connections": 3}, {"batch": 2, "connections": 2}]
)
def test_many_at_a_time_are_answered_as_one_at_a_time(tmp_path: Path, options: dict) -> None:
    with serving() as address:
        answers = met(toml(tmp_path, address, **options)).ask(moments(8))
        for number, each in enumerate(moments(8)):
            np.testing.assert_array_equal(answers[number], expected(each))


def test_several_connections_wait_at_the_same_time(tmp_path: Path) -> None:
    """The server is on a thread of its own for each answer: then three take as long as one."""
    with serving(protocol="openpi") as address:
        policy = met(toml(tmp_path, address, connections=3))
        assert len(policy.ask(moments(7))) == 7


def test_vla_eval_is_asked_as_if_an_episode_began(tmp_path: Path) -> None:
    """A server that hands out its chunk action by action would answer the second observation with
    the second action of the first."""
    for one in (0, 1):
        with serving(protocol="vla_eval", one=one) as address:
            place = toml(tmp_path, address, protocol="vla_eval", previous_action="previous_action")
            policy = met(place)
            assert policy.chunk == (1 if one else CHUNK)
            answers = policy.ask(moments(4))
            for number, each in enumerate(moments(4)):
                np.testing.assert_array_equal(answers[number], expected(each)[: policy.chunk])


def test_keys_of_its_own(tmp_path: Path) -> None:
    said = toml(tmp_path, "ws://127.0.0.1:1")
    table = said.read_text() + (
        'layout = "chw"\nsize = 16\nseed = "seed"\ndrawn_from = 7\nprompt = "words"\n'
        'noise = "noise"\nnoise_shape = [3, 2]\nstate = {"a.b" = [0]}\n'
        '[cameras]\n"images.cam_high" = "eye"\n'
    )
    said.write_text(table)
    found = behind_socket(said)
    assert found is not None
    from armlet.policies.remote.policy import Options

    policy = SocketPolicy(found, found.as_options(Options), ROBOT)
    (seen,) = moments(1)
    message = policy.question.message([seen])
    assert message["images"]["cam_high"].shape == (3, 16, 16)
    assert message["a"]["b"] == seen.state and message["words"] == seen.instruction
    assert message["seed"] == 7 and message["noise"].shape == (3, 2)
    np.testing.assert_array_equal(message["noise"], policy.question.message([seen])["noise"])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('[options]\nprotocol = "http"', "protocol is 'http', expected openpi or vla_eval"),
        ("[options]\nchunks = 3", "has chunks, which has no effect"),
        ("[options]\nbatch = 0", "batch is 0"),
        ('[options]\nnoise = "n"', "are given together"),
        ('[options]\nprotocol = "vla_eval"\nbatch = 2', "connections"),
        ('[options]\nstate = {"a" = [4]}', "expected some of 0 to 0"),
        ('[options]\napi_key = "nowhere"', "api_key names"),
        ('[cameras]\na = "nose"', "gives a the robot's camera 'nose', and it has eye"),
        ('precision = "bf16"', "precision has no effect"),
        ('kind = "openvla_hf"', "kind has no effect"),
    ],
)
def test_what_cannot_be_said_of_a_server(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f'checkpoint = "ws://127.0.0.1:1"\n{line}\n')
    with pytest.raises(ValueError, match=match):
        load_actor(path, robot=ROBOT)


# --- who it is


def test_who_answers_is_known_by_the_answers_and_not_by_the_address(tmp_path: Path) -> None:
    found = []
    for options in ({}, {}, {"fault": "other"}, {"name": "another"}):
        with serving(**options) as address:
            found.append(actor_fingerprint(toml(tmp_path, address), lambda: ROBOT))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_server_that_draws_is_refused_until_it_is_named_or_told_its_noise(
    tmp_path, capfd
) -> None:
    with serving(fault="draws") as address:
        with pytest.raises(AnswerError, match="answers the same question differently"):
            met(toml(tmp_path, address))
        told = toml(tmp_path, address, noise="noise", noise_shape=(2, 2))
        assert met(told).fingerprint == met(told).fingerprint
        capfd.readouterr()
        named = met(toml(tmp_path, address, identity="pi0 of November"))
        assert "taken on your word" in capfd.readouterr().err
        assert (
            named.fingerprint
            == met(toml(tmp_path, address, identity="pi0 of November")).fingerprint
        )
        assert named.fingerprint != met(toml(tmp_path, address, identity="of May")).fingerprint


def test_another_policy_at_the_same_address_is_noticed(tmp_path: Path) -> None:
    process, address = started()
    port = address.rpartition(":")[2]
    policy = met(toml(tmp_path, address, retries=5, wait=0.1))
    policy.ask(moments(1))
    process.kill()
    process.wait()
    with (
        serving(port=port, fault="other"),
        pytest.raises(AnswerError, match="another policy than before"),
    ):
        policy.ask(moments(1))
    with (
        serving(port=port, name="b"),
        pytest.raises(AnswerError, match="another server than before"),
    ):
        policy.ask(moments(1))
    with serving(port=port):
        np.testing.assert_array_equal(policy.ask(moments(1))[0], expected(moments(1)[0]))


# --- what goes wrong


FAULTS = {
    "nan": "NaN or infinity, first in 'dx'",
    "count": "answers with 6 actions, expected 3",
    "dims": r"actions of shape \(3, 0\), expected \(k, 1\)",
    "flat": r"actions of shape \(1, 1, 3, 1\), expected \(k, 1\)",
    "none": "actions of type NoneType, expected numbers",
    "strings": "actions of type <U4, expected numbers",
    "objects": "only numbers are taken",
    "short": "bytes, expected",
    "huge": "more than 16777216 bytes in one message",
    "missing": "answers without `actions`; its answer has server_timing",
    "text": "answers with an error: no such prompt",
    "garbage": "no message of msgpack",
    "raises": "answers with an error: RuntimeError: the model ran out of memory",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nonsense_names_the_server_and_the_observation(tmp_path: Path, fault: str) -> None:
    with serving(fault=fault, after=9) as address:  # eight questions say who it is
        policy = met(toml(tmp_path, address, **QUICK))
        with pytest.raises(AnswerError, match=FAULTS[fault]) as raised:
            # The lines of `policy` ask who it is once more when they are opened.
            policy.ask(moments(8), [f"episode 2, step {number}" for number in range(8)])
    said = str(raised.value)
    assert address in said and "(" in said and "\n" not in said


def test_answers_before_the_nonsense_are_given(tmp_path: Path) -> None:
    with serving(fault="nan", after=8 + 4 + 2) as address:
        policy = met(toml(tmp_path, address))
        names = [f"step {number}" for number in range(5)]
        answers = policy.answers(moments(5), names)
        given = [next(answers), next(answers)]
        with pytest.raises(AnswerError, match=r"\(step 2\)"):
            next(answers)
    np.testing.assert_array_equal(np.concatenate(given), [expected(each) for each in moments(2)])


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    with serving(fault="silent", after=9) as address:
        policy = met(toml(tmp_path, address, timeout=0.5))
        with pytest.raises(ServerError, match=r"did not answer within 0\.5 s"):
            policy.ask(moments(4))


def test_a_server_that_is_not_there_is_called_with_growing_waits(tmp_path: Path, capfd) -> None:
    with serving() as address:
        pass
    begun = time.monotonic()
    with pytest.raises(ServerError, match=r"cannot be reached.*called 4 times") as raised:
        met(toml(tmp_path, address, retries=3, wait=0.1))
    assert 0.7 <= time.monotonic() - begun < 5  # 0.1 + 0.2 + 0.4
    said = capfd.readouterr().err
    assert "again in 0.1 s" in said and "again in 0.4 s" in said
    assert "\n" not in str(raised.value)


def test_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    process, address = started(fault="dies", after=8 + 4 + 3)
    policy = met(toml(tmp_path, address, retries=8, wait=0.1))
    answers = policy.answers(moments(6))
    given = [next(answers) for _ in range(3)]
    process.wait(0.1) if process.poll() is not None else None
    import threading

    back: list = []
    timer = threading.Timer(0.5, lambda: back.append(started(port=address.rpartition(":")[2])))
    timer.start()
    try:
        given += list(answers)
    finally:
        timer.join()
        back[0][0].kill()
        back[0][0].wait()
        process.kill()
        process.wait()
    np.testing.assert_array_equal(np.concatenate(given), [expected(each) for each in moments(6)])


def test_a_key_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    (tmp_path / "wrong").write_text("wr0ng\n")
    with serving(key="s3cret") as address:
        assert met(toml(tmp_path, address, api_key="key")).chunk == CHUNK
        with pytest.raises(AnswerError, match="asks for a key"):
            met(toml(tmp_path, address))
        with pytest.raises(AnswerError, match="refuses the key") as raised:
            met(toml(tmp_path, address, api_key="wrong"))
    assert "wr0ng" not in str(raised.value)


def test_what_is_no_websocket(tmp_path: Path) -> None:
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"ws://127.0.0.1:{server.server_address[1]}"
    try:
        with pytest.raises((AnswerError, ServerError), match="is no websocket's server"):
            met(toml(tmp_path, address, **QUICK))
    finally:
        server.shutdown()


def test_actions_of_another_robot(tmp_path: Path) -> None:
    spec = dataclasses.replace(ROBOT.action, names=("dx", "dy"), low=(-1.0, -1.0), high=(1.0, 1.0))
    robot = dataclasses.replace(ROBOT, action=spec)
    with serving() as address, pytest.raises(AnswerError, match=r"expected \(k, 2\)"):
        load_actor(toml(tmp_path, address, previous_action=""), robot=robot)
