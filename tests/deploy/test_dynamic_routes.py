"""A policy whose router decides for every observation, as a folder of parts: against the policy in
PyTorch, layer by layer; and what is refused."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import QUICK, expert, frames
from tiny import TEXTS, make_policy

from armlet.deploy import gates, routes
from armlet.deploy.exporting import How, assemble, export
from armlet.deploy.graph import GraphError, Moment
from armlet.policies.acting import load_actor
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Backbone, Pass
from armlet.policies.routed import Routed, Routing
from armlet.robot.exported import FILE, Exported, GraphFile, fingerprint, load_exported
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.runtimes import GATES, OUTPUT
from armlet.robot.segments import Parts, Segments

DYNAMIC = replace(QUICK, route="dynamic")


def routed(*, depth: int = 4, dial: bool = False) -> Routed:
    """One whose router really decides, by what it sees; calibrated, so that budgets differ."""
    policy = Routing(budget=0.5, dial=dial).build(make_policy(depth=depth))
    assert isinstance(policy, Routed)
    torch.manual_seed(2)
    torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
    torch.nn.init.zeros_(policy.router.leave.bias)
    policy.eval()
    policy.calibrate(policy.prepare(frames(40)))
    policy.measured = replace(policy.measured, only=None)
    return policy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "routed"
    save_policy(routed(), folder)
    return folder


@pytest.fixture(scope="module")
def out(place: Path) -> Path:
    texts = (*TEXTS, "lift")
    return export(place, place.parent / "out", DYNAMIC, frames(), expert=expert(), texts=texts)


def of_all_lengths() -> list[Observation]:
    return [*frames(40), replace(frames(1)[0], instruction="lift")]


def test_it_takes_the_routes_of_pytorch_and_answers_the_same(out: Path) -> None:
    policy = routed()
    exported = load_exported(out)
    taken = set()
    for seen in of_all_lengths():
        ours = policy.decide(seen)
        theirs = exported.decide(seen)
        taken.add(ours.gates)
        assert theirs.gates == ours.gates
        np.testing.assert_allclose(theirs.actions, ours.actions, atol=2e-5)
    assert len(taken) > 3
    assert exported.gates is None


def test_what_is_skipped_is_not_computed(out: Path) -> None:
    """Neither loaded parts nor PyTorch say so: every part is counted."""
    exported = load_exported(out)
    graph = exported.description.graphs[0]
    assert graph.parts is not None
    asked: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, fed):
            raise AssertionError("parts are not asked for actions alone")

        def run(self, fed):
            asked.append(self.name)
            return exported._file(self.name).run(fed)

    exported._running = Segments(graph.parts, Counted)
    policy = routed()
    several = 0
    for seen in frames(12):
        asked.clear()
        ran = exported.decide(seen).gates
        assert ran == policy.decide(seen).gates
        layers = [index for index, gate in enumerate(ran) if gate]
        several += len(layers) > 1
        expected = [graph.parts.layers[index] for index in layers[:-1]]
        expected += [graph.parts.last[index] for index in layers[-1:]]
        assert asked == [graph.parts.start, *expected, graph.parts.end]
    assert several


def test_what_was_measured_is_in_the_folder(out: Path) -> None:
    said = json.loads((out / FILE).read_text())
    (found,) = said["gates"]["each"]
    assert found["routes"]["same"] == 1 and found["routes"]["routes"] > 3
    assert 0 < found["routes"]["layers"] < 4
    assert found["parity"]["frames"] == found["routes"]["frames"] >= 101
    assert found["parity"]["furthest"] < 1e-4
    (graph,) = said["graphs"]
    assert graph["gates"] is None
    # Before the layers, four layers as any and as the last, and the head.
    assert len(graph["files"]) == 10 == len(set(graph["files"]))
    assert not (out / "captured").exists() and not (out / "work").exists()


def test_it_acts_wherever_a_policy_does_and_without_torch(out: Path) -> None:
    seen = replace(frames(1)[0], previous_action=np.zeros(4, np.float32))
    acting = load_actor(out)
    assert np.array_equal(acting.decide(seen).actions, load_exported(out).infer(seen))
    np.savez(out.parent / "seen.npz", **seen.images, state=seen.state)
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors', 'onnx'):\n"
        "    sys.modules[name] = None\n"  # importing one of them is an error
        "import numpy as np\n"
        "from armlet.robot.exported import load_exported\n"
        "from armlet.robot.observation import Observation\n"
        "seen = dict(np.load(sys.argv[2]))\n"
        "state = seen.pop('state')\n"
        "policy = load_exported(sys.argv[1])\n"
        "actions = policy.infer(Observation(seen, state, sys.argv[3], np.zeros(4)))\n"
        "print(actions.tobytes().hex())\n"
    )
    command = [sys.executable, "-c", code, str(out), str(out.parent / "seen.npz"), TEXTS[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == acting.infer(seen).tobytes().hex()


@pytest.mark.slow
def test_budgets_share_their_layers(tmp_path: Path) -> None:
    policy = routed(depth=2, dial=True)
    assemble(policy, replace(DYNAMIC, budget=(0.25, 0.75)), frames(), tmp_path, {})
    exported = load_exported(tmp_path)
    costs = []
    for budget in (0.25, 0.75):
        ours = policy.at(budget)
        acting = exported.at(budget)
        assert acting.budget == budget
        ran = []
        for seen in frames(20):
            mine = ours.decide(seen)
            theirs = acting.decide(seen)
            assert mine.gates == theirs.gates
            np.testing.assert_allclose(theirs.actions, mine.actions, atol=2e-5)
            ran.append(sum(mine.gates))
        costs.append(np.mean(ran))
    assert costs[0] < costs[1]
    # What stands before the layers holds what the router is told, and the threshold.
    assert len(list(tmp_path.glob("*.onnx"))) == 7
    assert len(fingerprint(tmp_path)) == 16


# --- what is refused


def test_a_policy_without_a_router_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"--route dynamic would have no effect: .* no router"):
        assemble(make_policy(depth=2), DYNAMIC, frames(), tmp_path, {})
    with pytest.raises(ValueError, match="route is 'any', expected fixed or dynamic"):
        How(route="any")


def test_networks_whose_routes_differ_in_more_than_layers_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = routed()
    example = policy.inputs.arrays(frames(1))
    kind = type(policy.inner)

    def decode(self, run: Pass, batch):
        return run.gated(0, run.state.hidden, run.state.hidden)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "decode", decode)
        with pytest.raises(GraphError, match=r"layers run again while it decodes.*--route fixed"):
            routes.capture_routes(policy, example)
    with monkeypatch.context() as patched:
        patched.setattr(kind, "skip_layer", lambda self, index, state: state, raising=False)
        with pytest.raises(GraphError, match="a layer of it that is skipped changes the state"):
            routes.capture_routes(policy, example)
    run_layer = kind.run_layer
    with monkeypatch.context() as patched:
        patched.setattr(
            kind,
            "run_layer",
            lambda self, index, state: replace(
                run_layer(self, index, state), attention=state.mask.float()
            ),
        )
        with pytest.raises(GraphError, match="its layers leave attention behind"):
            routes.boundaries(policy, Moment(policy, example))


def test_parts_that_are_not_there_are_named() -> None:
    parts = {"start": "s", "layers": ["a", "b"], "last": [], "end": "e"}
    assert Parts.from_json(parts).names == ("s", "a", "b", "e")
    with pytest.raises(ValueError, match="names 2 layers and 1 last ones"):
        Parts.from_json({**parts, "last": ["c"]})
    said = {"budget": None, "gates": None, "files": {"s": 1, "a": 1, "b": 1}, "parts": parts}
    with pytest.raises(ValueError, match="`parts` names e, not among `files`"):
        GraphFile.from_json(said)
    whole = {**said, "files": {**said["files"], "e": 1}}
    assert GraphFile.from_json(whole).to_json() == whole
    with pytest.raises(ValueError, match="`gates`, which are fixed, or `parts`"):
        GraphFile.from_json({**whole, "gates": [1, 1]})


# --- the gate, and the arithmetic of a route


def test_other_routes_are_counted() -> None:
    def says(*routes: tuple[int, ...]):
        left = iter(routes)
        return lambda seen: Decision(np.zeros((1, 4), np.float32), next(left))

    def compare(other: int, precision: str) -> gates.Routes:
        ours = [(1, 0), (0, 1)] * 50
        theirs = [*ours[: 100 - other], *[(1, 1)] * other]
        return gates.same_routes(says(*ours), says(*theirs), frames(), precision=precision)

    found = compare(2, "fp32")
    assert (found.share, found.routes, found.layers) == (0.98, 2, 1.0)
    assert found.same == (*[True] * 98, False, False)
    with pytest.raises(gates.GateError, match=r"on 3 of 100 frames .*\(on frame 97 0, 1 for 1\)"):
        compare(3, "fp32")
    assert compare(20, "int8").share == 0.8
    with pytest.raises(gates.GateError, match=r"on 21 of 100 frames.*--route fixed"):
        compare(21, "int8")


class Adds:
    """A part that adds a number to the state."""

    def __init__(self, number: float) -> None:
        self.number = number

    def run(self, fed):
        return {"after.x": fed["state.x"] + self.number}


def chain(route: Sequence[int]) -> float:
    """What comes of 1 in a network of two layers that add 10 and 100, and 20 and 200 as the last."""

    class Starts:
        def run(self, fed):
            return {GATES: np.array([route], np.float32), "after.x": fed["state"]}

    class Ends:
        def run(self, fed):
            return {OUTPUT: fed["state.x"]}

    parts = {"s": Starts(), "a": Adds(10), "b": Adds(100), "c": Adds(20), "d": Adds(200)}
    made = Segments(Parts("s", ("a", "b"), ("c", "d"), "e"), {**parts, "e": Ends()}.__getitem__)
    return float(made.run({"state": np.ones(1)})[OUTPUT][0])


def test_only_the_last_that_runs_is_the_last() -> None:
    assert [chain(route) for route in ([0, 0], [1, 0], [0, 1], [1, 1])] == [1, 21, 201, 211]
    with pytest.raises(ValueError, match=r"gates are \(1, 3\), expected \(1, 2\)"):
        chain([1, 1, 1])


def test_ranges_are_measured_on_the_route() -> None:
    """What enters each layer is what enters it in a pass of the policy."""
    policy = routed()
    for seen in of_all_lengths()[-3:]:
        batch = policy.prepare([seen])
        with torch.no_grad():
            run = policy.run_layers(policy.embed(batch), batch, watch=True)
        met = routes.states_on_route(policy, policy.inputs.arrays([seen]))
        assert len(met) == 5
        for state, here in zip((run.start, *run.states), met, strict=True):
            np.testing.assert_allclose(here["state.hidden"], state.hidden.numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        How(precision="int8"),
        How(portable=True),
        How(runtime="openvino"),
        How(runtime="openvino", precision="fp16"),
    ],
    ids=lambda how: f"{how.runtime} {how.precision}",
)
def test_every_runtime_and_precision(how: How, tmp_path: Path) -> None:
    policy = routed()
    assemble(policy, replace(how, route="dynamic"), frames(), tmp_path, {})
    exported: Exported = load_exported(tmp_path)
    same = [exported.decide(seen).gates == policy.decide(seen).gates for seen in frames(20)]
    exact = how.precision == "fp32"
    assert np.mean(same) == 1 if exact else np.mean(same) > 0.7
    for seen, alike in zip(frames(20), same, strict=True):
        if alike:
            apart = np.abs(exported.infer(seen) - policy.infer(seen)).max()
            assert apart < (1e-3 if how.precision in ("fp32", "fp16") else 0.5)


def test_skipping_is_what_the_contract_says() -> None:
    """What parts take for granted: past a layer that is skipped the state is the same."""
    policy = routed().inner
    assert isinstance(policy, Backbone)
    state = policy.embed(policy.prepare(frames(1)))
    assert policy.skip_layer(1, state) is state
