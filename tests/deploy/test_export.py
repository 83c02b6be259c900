"""A policy as an exported folder, against the policy in PyTorch; and what is refused."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, make_frames, make_policy

from armlet import inspect
from armlet.deploy import fusing, gates, graph, onnx
from armlet.deploy.exporting import How, export
from armlet.export import main as command
from armlet.policies.acting import actor_fingerprint, actor_provenance, load_actor
from armlet.policies.checkpoint import load_policy, policy_fingerprint, save_policy
from armlet.policies.exported import ExportedPolicy
from armlet.policies.routed import Routed, Routing
from armlet.robot.agree import DisagreementError
from armlet.robot.exported import FILE, fingerprint, load_exported
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.runtimes import MissingRuntimeError, feeds, load_graph

QUICK = How(calls=20, slower=True, margin=0.5)


def frames(count: int = 100) -> list[Observation]:
    """Real pictures of nothing, told three texts."""
    made = make_frames(episodes=20)
    found = []
    for row in range(count):
        images = {name: pictures[row] for name, pictures in made.images.items()}
        text = TEXTS[row % len(TEXTS)]
        found.append(Observation(images, made.state[row], text, made.actions[row]))
    return found


def expert(count: int = 100) -> np.ndarray:
    return make_frames(episodes=20).actions[:count].astype(np.float64)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "small"
    save_policy(make_policy(depth=2), folder, provenance={"recipe": {"name": "none"}})
    return folder


@pytest.fixture(scope="module")
def out(place: Path) -> Path:
    # "lift" and a long text: lengths that no frame has.
    texts = (*TEXTS, "lift", "put the blue cylinder into the drawer")
    return export(place, place.parent / "exported", QUICK, frames(), expert=expert(), texts=texts)


def test_it_answers_as_pytorch_does(place: Path, out: Path) -> None:
    policy = load_policy(place)
    exported = load_exported(out)
    for seen in [*frames(12), replace(frames(1)[0], instruction="lift")]:
        ours = policy.decide(seen)
        theirs = exported.decide(seen)
        assert theirs.actions.dtype == np.float32
        np.testing.assert_allclose(theirs.actions, ours.actions, atol=2e-5)
        assert theirs.gates == ours.gates
    assert (exported.execute, exported.chunk, exported.history) == (3, 3, 1)
    assert exported.robot == policy.robot
    assert (exported.runtime, exported.precision, exported.budget) == ("onnx", "fp32", None)


def test_what_was_measured_is_in_the_folder(place: Path, out: Path) -> None:
    said = json.loads((out / FILE).read_text())
    (found,) = said["gates"]["each"]
    own = load_policy(place).inputs
    lengths = {len(own.words([text])[0][0]) for text in (*TEXTS, "lift")}
    assert lengths <= set(map(int, found["parity"]["words"]))
    assert found["parity"]["frames"] >= 101 and found["parity"]["furthest"] < 1e-4
    assert found["held_out"]["exported"] == pytest.approx(found["held_out"]["pytorch"], rel=1e-3)
    assert found["speed"]["times_faster"] > 0
    assert said["policy"]["fingerprint"] == policy_fingerprint(place)
    pins = (out / "requirements.txt").read_text().split()
    assert [pin.partition("==")[0] for pin in pins] == [
        "numpy", "pillow", "tokenizers", "onnxruntime"
    ]  # fmt: skip
    text = "".join(path.read_text(errors="replace") for path in out.iterdir())
    assert str(Path.cwd()) not in text, "a path of this machine"


def test_it_acts_wherever_a_policy_does(place: Path, out: Path) -> None:
    policy = load_actor(out)
    assert isinstance(policy, ExportedPolicy)
    seen = frames(3)
    every = policy.decide_all(seen)
    assert np.array_equal(every[2].actions, policy.infer(seen[2]))
    assert actor_fingerprint(out) == fingerprint(out)
    assert actor_provenance(out)["policy"]["folder"] == "small"
    other = policy.robot
    closed = replace(other.action, gripper_open=1.0, gripper_closed=-1.0)
    with pytest.raises(DisagreementError, match="gripper"):
        load_actor(out, robot=replace(other, action=closed))
    with pytest.raises(ValueError, match="exported policy: it acts"):
        load_policy(out)


def test_a_robot_needs_no_torch(out: Path) -> None:
    """In a process where importing it fails, and which has decided after half a second of the
    processor's time; what it answers is what it answers here."""
    np.savez(out.parent / "seen.npz", **frames(1)[0].images, state=frames(1)[0].state)
    code = (
        "import sys, time\n"
        "for name in ('torch', 'transformers', 'scipy', 'pyarrow', 'safetensors', 'onnx'):\n"
        "    sys.modules[name] = None\n"  # importing one of them is an error
        "import numpy as np\n"
        "from armlet.robot.exported import load_exported\n"
        "from armlet.robot.observation import Observation\n"
        "seen = dict(np.load(sys.argv[2]))\n"
        "state = seen.pop('state')\n"
        "policy = load_exported(sys.argv[1])\n"
        "actions = policy.infer(Observation(seen, state, sys.argv[3], np.zeros(4)))\n"
        "print(actions.tobytes().hex(), time.process_time())\n"
    )
    command = [sys.executable, "-c", code, str(out), str(out.parent / "seen.npz"), TEXTS[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = replace(frames(1)[0], previous_action=np.zeros(4, np.float32))
    answered, seconds = done.stdout.split()
    assert answered == load_exported(out).infer(seen).tobytes().hex()
    assert float(seconds) < 0.5


def test_a_damaged_folder_is_refused(out: Path, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(out, tmp_path / name))

    folder = copied("cut")
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.onnx has .* cut short"):
        load_exported(folder)
    (folder / "model.onnx").write_bytes(bytes(len(content)))
    with pytest.raises(ValueError, match=r"model\.onnx cannot be read by onnxruntime"):
        load_exported(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.onnx is missing"):
        load_exported(folder)
    folder = copied("words")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load_exported(folder)
    folder = copied("json")
    said = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**said, "version": 2}))
    with pytest.raises(ValueError, match="version is 2, expected 1"):
        load_exported(folder)
    (folder / FILE).write_text(json.dumps({**said, "inputs": {}}))
    with pytest.raises(ValueError, match=r"does not describe .*cameras"):
        load_exported(folder)
    with pytest.raises(FileNotFoundError, match="no exported policy"):
        load_exported(tmp_path)
    (graph_said,) = said["graphs"]
    for wrong, says in (
        ({"execute": "two"}, r"Description\.execute is 'two', expected"),
        ({"execute": 0}, r"execute is 0, expected at least 1"),
        ({"runtime": "tensorrt"}, r"Description\.runtime is 'tensorrt'"),
        ({"graphs": [{**graph_said, "gates": ["1"]}]}, r"GraphFile\.gates is"),
        (
            {"graphs": [{**graph_said, "files": {"../model.onnx": 5}}]},
            "expected names in the folder",
        ),
        ({"graphs": [{**graph_said, "files": {}}]}, "expected names in the folder"),
    ):
        (folder / FILE).write_text(json.dumps({**said, **wrong}))
        with pytest.raises(ValueError, match=says):
            load_exported(folder)


def test_the_fingerprint_is_of_what_decides(out: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    said = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**said, "gates": {}, "made_with": {}}))
    assert fingerprint(folder) == fingerprint(out)
    (folder / FILE).write_text(json.dumps({**said, "execute": 1}))
    assert fingerprint(folder) != fingerprint(out)
    (folder / FILE).write_text(json.dumps(said))
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    assert fingerprint(folder) != fingerprint(out)


def test_budgets_that_were_not_exported_are_named(out: Path) -> None:
    with pytest.raises(ValueError, match=r"no graph of budget 0\.5; it has none"):
        load_actor(out).at(0.5)


def test_a_runtime_that_is_not_installed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntimeError, match=r"pip install -r FOLDER/requirements\.txt"):
        load_exported(out)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(onnx.MissingExporterError, match=r"armlet\[export\]"):
        onnx.library("onnxscript")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    where = tmp_path / "out"
    with pytest.raises(ValueError, match="needs a world to act in, or an expert"):
        export(place, where, QUICK, frames())
    with pytest.raises(ValueError, match="found 99 frames, expected 100"):
        export(place, where, QUICK, frames(99), expert=expert(99))
    with pytest.raises(graph.GraphError, match="behind a socket"):
        export("ws://127.0.0.1:1", where, QUICK, frames(), expert=expert())
    with pytest.raises(ValueError, match=r"precision is 'bf16', and onnxruntime has fp32, int8"):
        How(precision="bf16")
    assert list(tmp_path.iterdir()) == []


# --- graphs


def test_what_was_exported_is_inspected_without_torch(out: Path, tmp_path: Path) -> None:
    page = inspect.main(str(out))
    assert "exported to onnx (fp32) from a policy of type 'vla'" in page
    assert "2 of 2 layers: model.onnx" in page and "scene" in page and "mode delta" in page
    broken = shutil.copytree(out, tmp_path / "broken")
    said = json.loads((broken / FILE).read_text())
    del said["graphs"]
    (broken / FILE).write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"exported\.json: KeyError: 'graphs'"):
        inspect.main(str(broken))


def test_the_command_refuses_what_has_no_effect_before_it_loads_anything(
    place: Path, out: Path, tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh"
    with pytest.raises(ValueError, match="--closed-loop would have no effect"):
        command(str(place), out=fresh, episodes=tmp_path, how=How(closed_loop=5))
    with pytest.raises(ValueError, match="is exported already, to onnx"):
        command(str(out), out=fresh, episodes=tmp_path)
    with pytest.raises(FileExistsError, match="choose another folder"):
        command("nowhere", out=tmp_path, episodes=tmp_path)
    with pytest.raises(ValueError, match="--frames is 10, expected 100 or more"):
        command(str(place), out=fresh, episodes=tmp_path, frames=10)
    with pytest.raises(ValueError, match="budget says a value twice"):
        How(budget=(0.5, 0.5))


def routed() -> Routed:
    """One whose router really decides, by what it sees."""
    policy = Routing(budget=0.5).build(make_policy())
    assert isinstance(policy, Routed)
    torch.manual_seed(2)
    torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
    torch.nn.init.zeros_(policy.router.leave.bias)
    return policy.eval()


def test_the_route_of_a_graph_is_the_commonest() -> None:
    policy = routed()
    seen = frames(70)
    taken = [policy.decide(each).gates for each in seen]
    found = graph.route_of(policy, seen)
    counts = {route: taken.count(route) for route in taken}
    assert len(counts) > 1 and found.share == max(counts.values()) / 70 < 1
    assert counts[found.gates] == max(counts.values())
    same = [each for each, route in zip(seen, taken, strict=True) if route == found.gates]
    for each in same[:5]:
        assert np.array_equal(found.policy.infer(each), policy.infer(each))
    plain = graph.route_of(make_policy(depth=2), seen)
    assert (plain.gates, plain.share) == ((1, 1), 1.0)


def test_a_graph_reads_words_of_any_number_and_no_padding() -> None:
    policy = make_policy(depth=2)
    program, names = graph.capture(policy, policy.inputs.arrays(frames(1)))
    assert names == ("image.scene", "image.wrist", "text", "state", "previous_action")
    run = program.module()
    # Three texts, filled up to the longest.
    every = [*frames(2), replace(frames(1)[0], instruction="touch the red")]
    padded = policy.inputs.arrays(every)
    lengths = set()
    for place, seen in enumerate(every):
        fed = feeds(policy.inputs.arrays([seen]))
        lengths.add(fed["text"].shape[1])
        found = run(*[torch.from_numpy(np.ascontiguousarray(fed[name])) for name in names])
        with torch.no_grad():
            alone = policy(policy.prepare([seen]))
            beside = policy(policy.prepare(every))[place : place + 1]
        torch.testing.assert_close(found, alone, atol=2e-6, rtol=0)
        torch.testing.assert_close(found, beside, atol=1e-5, rtol=0)
    assert len(lengths) == 3 and padded.text.shape[1] == max(lengths)


def test_weights_in_half_precision_are_refused() -> None:
    policy = make_policy(depth=2).to(torch.bfloat16)
    with pytest.raises(graph.GraphError, match=r'load it with `precision = "fp32"`'):
        graph.single(policy)


def test_a_graph_on_disk_has_the_inputs_it_reads(out: Path) -> None:
    assert set(onnx.inputs_of(out / "model.onnx")) == {
        "image.scene", "image.wrist", "text", "state"
    }  # fmt: skip
    run = load_graph(out / "model.onnx", "onnx", "fp32")
    fed = feeds(load_policy(out.parent / "small").inputs.arrays(frames(1)))
    assert run(fed).shape == (1, 3, 4)
    with pytest.raises(ValueError, match=r"found 2 moments, expected 1"):
        feeds(load_policy(out.parent / "small").inputs.arrays(frames(2)))


# --- gates


class Says:
    """A policy that adds something to what another says."""

    def __init__(self, more: float = 0.0) -> None:
        self.more = more

    def infer(self, observation: Observation) -> np.ndarray:
        return np.full((2, 4), observation.state[0] + self.more, np.float32)


def near(more: float, precision: str = "fp32", *, chooses: bool = False) -> gates.Parity:
    return gates.parity(
        Says().infer,
        Says(more).infer,
        frames(10),
        count=lambda frame: len(frame.instruction.split()),
        spans=gates.spans(make_policy(depth=1)),
        precision=precision,
        chooses=chooses,
    )


def test_parity() -> None:
    found = near(1e-5)
    assert found.words == {4: 7, 8: 3}
    assert found.furthest == pytest.approx(5e-6, rel=0.1)  # of a range of 2
    with pytest.raises(gates.GateError, match=r"parity: .* of its range away"):
        near(1e-3)
    assert near(1e-3, "bf16").apart == 0
    with pytest.raises(gates.GateError, match="parity"):
        near(1e-3, chooses=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8_static"])
def test_a_stray_number_in_a_thousand_is_left_to_the_closed_loop(precision: str) -> None:
    """However many frames are looked at; in single precision none may stray."""

    def answers(strays: int, count: int) -> gates.Parity:
        asked = iter(range(count))

        def closes(seen: Observation) -> np.ndarray:
            answer = Says().infer(seen)
            if next(asked) < strays:
                answer[0, 3] += 1.9  # of a gripper's range of 2
            return answer

        return gates.parity(
            Says().infer,
            closes,
            frames(125) * (count // 125),
            count=lambda seen: len(seen.instruction.split()),
            spans=gates.spans(make_policy(depth=1)),
            precision=precision,
            chooses=False,
        )

    for count in (250, 1000):  # of eight numbers
        few = count * 8 // 1000
        if precision == "fp32":
            with pytest.raises(gates.GateError, match=r"in all but 0 of them"):
                answers(1, count)
            continue
        assert answers(few, count).apart == pytest.approx(1e-3)
        with pytest.raises(gates.GateError, match=r"in all but 0\.001 of them"):
            answers(few + 1, count)


def test_parity_on_one_length_alone_is_found() -> None:
    """A graph that is wrong for one number of words, on one frame of a hundred."""

    def wrong(seen: Observation) -> np.ndarray:
        return Says(0.1 if seen.instruction == "lift" else 0.0).infer(seen)

    def count(seen: Observation) -> int:
        return len(seen.instruction.split())

    every = gates.over_every_length(frames(), ["lift", "touch it now please"], count)
    assert len(every) == 101 and every[-1].instruction == "lift"
    spans = gates.spans(make_policy(depth=1))
    rest = {"count": count, "spans": spans, "precision": "fp32", "chooses": False}
    gates.parity(Says().infer, wrong, frames(), **rest)
    with pytest.raises(gates.GateError, match=r"frame 100 of 101 \(1 words\)"):
        gates.parity(Says().infer, wrong, every, **rest)


def test_a_robot_without_a_range_is_measured_by_what_its_network_says() -> None:
    """As checkpoints of others: any difference is nothing beside an infinite range."""
    policy = make_policy(depth=1)
    bounded = policy.robot.action
    actions = Normaliser(np.array([1, 2, 3, 4], np.float32), np.array([0.5, 2, 0, 4], np.float32))
    endless = replace(bounded, low=(-math.inf,) * 3 + (-1.0,), high=(math.inf,) * 3 + (1.0,))
    policy.body = replace(policy.body, action_spec=endless, actions=actions)
    assert gates.spans(make_policy(depth=1)).tolist() == [2.0] * 4
    assert gates.spans(policy).tolist() == [1.0, 4.0, 1.0, 2.0]


def test_held_out() -> None:
    right = np.stack([np.full(4, seen.state[0] + 0.1) for seen in frames()])
    rest = {"spans": gates.spans(make_policy(depth=1)), "margin": 0.05}
    found = gates.held_out(Says().infer, Says(1e-4).infer, frames(), right, **rest)
    assert found.pytorch == pytest.approx(0.05, rel=1e-3)
    assert found.exported < found.pytorch
    with pytest.raises(gates.GateError, match="held-out frames: the error"):
        gates.held_out(Says().infer, Says(-0.02).infer, frames(), right, **rest)


def test_speed() -> None:
    def slow(seen: Observation) -> np.ndarray:
        total = 0
        for number in range(20_000):
            total += number
        return Says(total * 0).infer(seen)

    rest = {"calls": 30, "threads": 1}
    found = gates.speed(slow, Says().infer, frames(5), **rest, slower=False)
    assert found.times_faster > 2
    assert found.pytorch_ms["p50"] > found.exported_ms["p50"]
    with pytest.raises(gates.GateError, match=r"speed: .* it is slower"):
        gates.speed(Says().infer, slow, frames(5), **rest, slower=False)
    assert gates.speed(Says().infer, slow, frames(5), **rest, slower=True).times_faster < 1


# --- faster, and the same


def test_the_last_layer_alone_computes_what_is_read() -> None:
    """Of words that may be padded, too."""
    policy = make_policy(depth=3)
    batch = policy.prepare(frames(4))
    with torch.no_grad():
        state = policy.embed(batch)
        for index in range(2):
            state = policy.run_layer(index, state)
        whole = policy.run_layer(2, state)
        short = policy.run_last(2, state)
    assert short.hidden.shape[1] == policy.head.vectors
    torch.testing.assert_close(policy.condition(short), policy.condition(whole), atol=1e-5, rtol=0)


def test_fewer_operators_answer_the_same(tmp_path: Path) -> None:
    """Norms, attention and rotary positions become one operator each; what is not recognised
    stays."""
    import onnx as files

    policy = make_policy(depth=3)
    program, names = graph.capture(policy, policy.inputs.arrays(frames(1)))
    onnx.write(program, names, tmp_path / "plain.onnx")
    fusing.fuse(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    fused = files.load(tmp_path / "fused.onnx")
    kinds = Counter(node.op_type for node in fused.graph.node)
    # Of three layers: in the last one only the keys and the one query are turned.
    assert kinds["RotaryEmbedding"] >= 4
    assert kinds["MultiHeadAttention"] >= 2
    assert kinds["SimplifiedLayerNormalization"] + kinds["SkipSimplifiedLayerNormalization"] == 7
    plain = load_graph(tmp_path / "plain.onnx", "onnx", "fp32")
    short = load_graph(tmp_path / "fused.onnx", "onnx", "fp32")
    for seen in [*frames(6), replace(frames(1)[0], instruction="open")]:
        fed = feeds(policy.inputs.arrays([seen]))
        np.testing.assert_allclose(short(fed), plain(fed), atol=2e-6)


@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_a_product_of_factors_of_unequal_axes_is_computed(tmp_path: Path, which: int) -> None:
    """One factor is turned, and both were: ACT's projections of tokens that come batch last."""
    import onnx as files

    turn = files.helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2])
    flip = files.helper.make_node("Transpose", ["w"], ["flipped"], perm=[1, 0])
    names = ("turned", "flipped") if which == 0 else ("flipped", "turned")
    product = files.helper.make_node("MatMul", list(names), ["actions"])
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 4) if which == 0 else (3, 6)).astype(np.float32)
    # Both are given: of a weight that stands there the turn would be taken beforehand.
    given = []
    for name, shape in (("x", (3, 2, 4)), ("w", weight.shape)):
        given.append(files.helper.make_tensor_value_info(name, files.TensorProto.FLOAT, shape))
    told = files.helper.make_tensor_value_info("actions", files.TensorProto.FLOAT, None)
    made = files.helper.make_graph([turn, flip, product], "g", given, [told])
    opsets = [files.helper.make_opsetid("", 20)]
    model = files.helper.make_model(made, opset_imports=opsets, ir_version=9)
    files.save(model, tmp_path / "plain.onnx")
    fusing.fuse(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    seen = rng.normal(size=(3, 2, 4)).astype(np.float32)
    turned = seen.transpose(1, 0, 2)
    right = turned @ weight.T if which == 0 else weight.T @ turned
    answer = load_graph(tmp_path / "fused.onnx", "onnx", "fp32")({"x": seen, "w": weight})
    np.testing.assert_allclose(answer, right, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        How(precision="int8"),
        How(precision="int8_static"),
        How(portable=True),
        How(runtime="openvino"),
        How(runtime="openvino", precision="fp16"),
        How(runtime="openvino", precision="int8_static"),
    ],
    ids=lambda how: f"{how.runtime} {how.precision}",
)
def test_every_runtime_and_precision(how: How, place: Path, tmp_path: Path) -> None:
    quick = replace(how, calls=20, slower=True, margin=0.9)
    made = export(place, tmp_path / "out", quick, frames(), expert=expert())
    exported = load_exported(made)
    policy = load_policy(place)
    furthest = max(float(np.abs(exported.infer(f) - policy.infer(f)).max()) for f in frames(8))
    assert furthest < (1e-3 if how.precision in ("fp32", "fp16") else 0.5)
    assert exported.precision == how.precision
