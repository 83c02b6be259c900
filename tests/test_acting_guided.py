"""Acting late by real-time chunking: what a policy is told in the closed loop, in the queue and over
a socket, who cannot, and an evaluation that runs it."""

import contextlib
import dataclasses
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from outside import Dots, reaching

from armlet import evaluate
from armlet.data.text import train_tokenizer
from armlet.deploy.server.observing import Keys, ObservationError, Reader
from armlet.evaluation import measure
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Body
from armlet.policies.vla import VLA, VLANetwork
from armlet.recipe import Evaluation, Recipe
from armlet.robot.bounds import Bounds
from armlet.robot.client import Client
from armlet.robot.ensemble import Exponential
from armlet.robot.guard import ActionGuard
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation, Underway
from armlet.robot.outputs import Decision
from armlet.robot.queue import AsyncActor, ChunkQueue
from armlet.robot.spec import ActionSpec, ObservationSpec
from armlet.rollout.loop import run

sys.path.insert(0, str(Path(__file__).parent / "server"))
from running import running

SPEC = ActionSpec(("dx", "gripper"), "delta", "none", (-999.0,) * 2, (999.0,) * 2, (1,), -1, 1, 10)
SEEN = Observation({}, np.zeros(1, np.float32), "go", np.zeros(2, np.float32))


class Line:
    """A world that goes on."""

    instruction = "go"
    over = False

    def __init__(self) -> None:
        self.told: list[float] = []

    def observe(self) -> Observation:
        return SEEN

    def step(self, action: np.ndarray) -> bool:
        self.told.append(float(action[0]))
        return False

    def close(self) -> None:
        pass


class Names:
    """Its chunks name themselves, 100 times the decision's number and the place; it keeps what was
    under way."""

    why_unguided = ""
    execute = 2

    def __init__(self) -> None:
        self.met: list[Underway | None] = []

    def infer(self, seen: Observation) -> np.ndarray:
        self.met.append(seen.underway)
        rows = [(100 * len(self.met) + place, 0) for place in range(6)]
        return np.array(rows, np.float32)

    def decide(self, seen: Observation) -> Decision:
        return Decision(self.infer(seen), (1,))

    def reset(self) -> None:
        pass

    @property
    def told(self) -> list[tuple[list[float], int] | None]:
        return [
            None if each is None else (each.actions[:, 0].tolist(), each.late) for each in self.met
        ]


def act(policy: object, **said) -> list[float]:
    world = Line()
    run(world, policy, spec=SPEC, limit=14, **said)
    return world.told


def test_in_the_closed_loop_a_policy_is_told_what_is_carried_out_meanwhile() -> None:
    guided = Names()
    told = act(guided, lag=3, late="guided")
    # The first chunk follows nothing. Of the second's four, all that is left, three are carried out;
    # of the third's one that is left, one.
    assert guided.told[:3] == [None, ([102, 103, 104, 105], 3), ([205], 1)]
    plain = Names()
    assert told == act(plain, lag=3, late="run_on")  # at the same ticks
    assert plain.told == [None] * len(plain.met)
    in_time = Names()
    act(in_time, lag=0, late="guided")
    assert in_time.told == [None] * 7  # nobody is late: nothing applies


def test_the_queue_tells_it_with_the_latest_of_the_last_delays() -> None:
    queue = ChunkQueue(SPEC, execute=2, late="guided")
    policy = Names()
    for delay in (3, 1, 2):
        ticket = queue.ask()
        told = queue.told(SEEN, ticket)
        for _ in range(delay):
            queue.take()
        assert queue.put(policy.infer(told), ticket)
        while not queue.wants:
            queue.take()
    assert policy.told == [
        None,
        ([102, 103, 104, 105], 3),
        ([203, 204, 205], 3),  # the delay before was 1, the latest 3
    ]
    for _ in range(20):
        queue.delays.append(1)
    told = queue.told(SEEN, queue.ask())
    assert told.underway is not None and told.underway.late == 1  # the 3 is long ago
    late = ChunkQueue(SPEC, execute=2, late="run_on")
    late.put(policy.infer(SEEN), late.ask())
    late.take()
    late.take()
    assert late.told(SEEN, late.ask()) is SEEN


def test_an_actor_in_a_thread_is_guided_and_its_policys_refusal_holds_the_robot() -> None:
    class Refuses(Names):
        def infer(self, seen: Observation) -> np.ndarray:
            if seen.underway is not None:
                raise ValueError("late = 'guided': no flow")
            return super().infer(seen)

    guard = ActionGuard(SPEC, Bounds.of(SPEC), clock=lambda: 0.0)
    with AsyncActor(Refuses().infer, guard, execute=1, late="guided") as actor:
        actor.reset()
        errors = []
        for _ in range(400):
            given = actor.action(SEEN)
            errors += [str(event) for event in given.events if "no flow" in str(event)]
            if errors:
                break
            with actor._changed:
                actor._changed.wait(0.01)
    assert errors and "late = 'guided'" in errors[0]


def test_what_cannot_be_guided_is_refused_before_the_first_step() -> None:
    class Plain(Names):
        why_unguided = "a Plain names its numbers outright"

    with pytest.raises(ValueError, match="Plain names its numbers outright; take run_on or blend"):
        act(Plain(), lag=1, late="guided")

    class Silent:
        execute = 2
        infer = Names.infer
        decide = Names.decide
        reset = Names.reset
        met = ()

    with pytest.raises(ValueError, match="a Silent does not say that it can be guided"):
        act(Silent(), lag=1, late="guided")
    with pytest.raises(ValueError, match="an ensemble would average"):
        act(Names(), lag=1, late="guided", ensemble=Exponential(0.1))
    with pytest.raises(ValueError, match="an ensemble would average"):
        ChunkQueue(SPEC, execute=1, late="guided", ensemble=Exponential(0.1))


# --- over a socket


def reader(unguided: str = "") -> Reader:
    return Reader(ObservationSpec.of({}, state_names=("x",)), SPEC, Keys(), unguided=unguided)


def message(**more) -> dict:
    return {"observation/state": np.zeros(1, np.float32), "prompt": "go", **more}


def test_a_server_reads_what_is_under_way() -> None:
    left = np.arange(6, dtype=np.float64).reshape(3, 2)
    told = reader().read(message(underway=left, late=2))
    assert told.underway is not None and told.underway.late == 2 and told.ignored == ()
    np.testing.assert_array_equal(told.underway.actions, left.astype(np.float32))
    assert reader().read(message()).underway is None
    assert reader().read(message(late=2)).ignored == ("late",)  # another's word


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"underway": np.zeros((3, 2))}, "without late"),
        ({"underway": np.zeros((3, 3)), "late": 1}, r"array \(3, 3\).*actions of 2 numbers"),
        ({"underway": np.zeros((5000, 2)), "late": 1}, "at most 4096 actions"),
        ({"underway": np.full((3, 2), np.inf), "late": 1}, "NaN or infinity"),
        ({"underway": [[1, 2]], "late": 1}, r"a list, expected numbers \(m, 2\)"),
        ({"underway": np.zeros((3, 2)), "late": 4}, "late: found 4"),
        ({"underway": np.zeros((3, 2)), "late": True}, "late: found True"),
        ({"underway": np.zeros((3, 2)), "late": -1}, "late: found -1"),
    ],
)
def test_what_is_no_actions_under_way_is_refused(more: dict, says: str) -> None:
    with pytest.raises(ObservationError, match=says):
        reader().read(message(**more))


def test_a_server_of_a_policy_that_cannot_says_why() -> None:
    with pytest.raises(ObservationError, match="underway: it has no flow"):
        reader("it has no flow").read(message(underway=np.zeros((1, 2)), late=1))


def dots_policy(head: str = "flow", chunk: int = 4) -> VLA:
    torch.manual_seed(0)
    one = Normaliser(np.zeros(1, np.float32), np.ones(1, np.float32))
    tokenizer = train_tokenizer(["go to the red dot", "go to the blue dot"])
    network = VLANetwork(
        width=32, depth=2, heads=2, chunk=chunk, execute=2, vision_channels=8, head=head
    )
    return network.build(Body(Dots().action_spec, one, one, tokenizer), {"eye": 32}).eval()


def test_a_robot_asks_a_served_flow_policy_and_another_refuses(tmp_path: Path) -> None:
    """The answer over a socket is the policy's own, guided."""
    policy = dots_policy()
    save_policy(policy, tmp_path / "flow")
    save_policy(dots_policy("regression"), tmp_path / "regression")
    dims = Dots().action_spec.dims
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    still = np.zeros(dims, np.float32)
    seen = Observation({"eye": image}, np.zeros(1, np.float32), "go to the red dot", still)
    told = replace(seen, underway=Underway(np.full((2, dims), 0.5, np.float32), 1))
    with contextlib.ExitStack() as stack:
        program = ("-m", "armlet", "serve")
        server = stack.enter_context(running(str(tmp_path / "flow"), program=program))
        other = stack.enter_context(running(str(tmp_path / "regression"), program=program))
        client = stack.enter_context(Client(server.address()))
        np.testing.assert_allclose(client.infer(seen), policy.infer(seen), atol=1e-6)
        guided = client.infer(told)
        again = replace(told, previous_action=seen.previous_action)
        np.testing.assert_allclose(guided, policy.infer(again), atol=1e-6)
        assert np.abs(guided - policy.infer(seen)).max() > 1e-3
        refusing = stack.enter_context(Client(other.address()))
        refusing.infer(seen)
        with pytest.raises(ValueError, match=r"RegressionHead has no flow.*take run_on or blend"):
            refusing.infer(told)


# --- in an evaluation


def evaluated(teacher: Path, out: Path, *policies: Path, **said) -> dict:
    setting = Evaluation(
        episodes=2, workers=1, latency_calls=2, videos=0, slower=(1e-6, 1e6), **said
    )
    recipe: Recipe = dataclasses.replace(
        reaching(), teacher=teacher, policies=policies, out=out, evaluation=setting
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "peak_memory_mb", lambda *asked: 1.0)
        return json.loads(evaluate.main(recipe).read_text())


def test_an_evaluation_runs_who_can_and_says_who_cannot(tmp_path: Path, capsys) -> None:
    save_policy(dots_policy(), tmp_path / "flow")
    save_policy(dots_policy("regression"), tmp_path / "plain")
    report = evaluated(
        tmp_path / "plain",
        tmp_path / "out",
        tmp_path / "flow",
        late=("run_on", "guided"),
        execute=(4,),
    )
    rows = [(row["name"], row["slower"], row["late"]) for row in report["delayed"]]
    guided = [row for row in rows if row[2] == "guided"]
    assert guided == [("flow", 1e-6, "guided"), ("flow", 1e6, "guided")]
    assert len(rows) == 2 * 4 + 2
    said = capsys.readouterr().err
    assert "teacher: a policy of type 'vla' with a RegressionHead has no flow" in said
    assert "flow execute 4: it carries out all 4 actions of a chunk before it looks again" in said
    # A guided decision is timed as one: it differentiates the flow.
    late = {(row["name"], row["slower"], row["late"]): row for row in report["delayed"]}
    needed = late["flow", 1e6, "guided"]["delay_ms"] / 1e6
    assert math.isfinite(needed) and needed > report["policies"][1]["latency_ms"]["policy"]["p50"]


def test_where_nobody_can_be_guided_nothing_is_run(tmp_path: Path) -> None:
    save_policy(dots_policy("regression"), tmp_path / "plain")
    with pytest.raises(ValueError, match=r"guided is for flow policies, and none can.*teacher: "):
        evaluated(tmp_path / "plain", tmp_path / "out", late=("guided",))
    assert not (tmp_path / "out" / "evaluation").exists()
