"""The table of every kind of policy in every runtime (bench/exports.py): nothing that armlet has is
missing from it, a run goes on where it stopped, and a row says what was measured."""

import importlib.util
import json
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from armlet import policies
from armlet.deploy import exporting, gates
from armlet.deploy.graph import GraphError
from armlet.layers.heads import HEADS
from armlet.measuring import EAGER, PARTS, Runtime
from armlet.policies.checkpoint import load_policy
from armlet.policies.pretrained import kinds
from armlet.policies.routed import Routed

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("bench_exports", ROOT / "bench" / "exports.py")
exports = importlib.util.module_from_spec(spec)
sys.modules["bench_exports"] = exports  # dataclasses look their module up there
spec.loader.exec_module(exports)
KINDS = exports.export_kinds.KINDS
OWN = {name: kind for name, kind in KINDS.items() if kind.type not in kinds.KINDS}


def own_types() -> set[str]:
    """The modules of armlet/policies whose `from_json` makes a policy."""
    found = set()
    for each in pkgutil.iter_modules(policies.__path__):
        module = importlib.import_module(f"armlet.policies.{each.name}")
        if not each.ispkg and hasattr(module, "from_json"):
            found.add(each.name)
    return found


# --- nothing is missing


def test_every_kind_every_head_and_every_runtime_has_rows() -> None:
    assert {kind.type for kind in KINDS.values()} == own_types() | set(kinds.KINDS)
    assert {kind.head for kind in KINDS.values() if kind.type == "vla"} == set(HEADS)
    assert set(exports.Arguments().runtimes) == set(PARTS) == set(get_args(Runtime)) - {EAGER}
    assert {kind.budgets for kind in KINDS.values() if kind.type == "routed"} > {()}


@pytest.mark.parametrize("name", list(OWN))
def test_a_kind_is_what_it_says(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    policy = load_policy(kind.make(tmp_path))
    assert policy.to_json()["type"] == kind.type
    inner = policy.inner if isinstance(policy, Routed) else policy
    assert type(inner.head) is HEADS[kind.head]
    assert policy.robot.action == exports.export_kinds.WORLD.action_spec
    for budget in kind.budgets:
        policy.at(budget)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in OWN])
def test_a_checkpoint_is_of_the_kind_it_says(name: str, tmp_path: Path) -> None:
    said, _ = kinds.find(KINDS[name].make(tmp_path))
    assert said.kind == KINDS[name].type


def test_routers_take_one_route_or_several(tmp_path: Path) -> None:
    shares = {}
    for name in ("routed, one route", "routed, routes that vary"):
        (tmp_path / name).mkdir()
        policy = load_policy(KINDS[name].make(tmp_path / name))
        frames, _ = exports.at_random(policy, 0)
        shares[name] = exports_share(policy, frames)
    assert shares["routed, one route"] == 1 > shares["routed, routes that vary"]


def exports_share(policy, frames) -> float:
    routes = [policy.decide(frame).gates for frame in frames]
    return max(routes.count(route) for route in routes) / len(routes)


# --- a run of it


class Exporter:
    """In the place of `row_of` and `meet`: one kind that cannot be captured, one runtime that
    refuses, and a death when it is told so."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.dies_at = 0
        self.now = ""

    def meet(self, kind, folder, arguments) -> str:
        return kind.type

    def row_of(self, met, runtime, budgets, folder, captured, arguments) -> dict:
        assert folder.is_dir()
        self.calls.append((met, runtime))
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        if met == "cogact":
            raise GraphError("cogact cannot be\ncaptured")
        if runtime == "openvino_int8_static":
            return {"captured": True, "loads": False, "refused": "cannot be read"}
        return {
            "captured": True,
            "loads": True,
            "parity": {"furthest": 2.4e-7},
            "closed_loop": {"episodes": 7, "both": 5, "neither": 1},
            "speed": {"times_faster": 2.26},
        }


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    found = Exporter()
    monkeypatch.setattr(exports, "meet", found.meet)
    monkeypatch.setattr(exports, "row_of", found.row_of)
    return found


def test_a_row_for_each_and_a_run_goes_on_where_it_stopped(
    exporter: Exporter, tmp_path: Path
) -> None:
    arguments = exports.Arguments(out=tmp_path / "exports.json")
    exporter.dies_at = 12
    with pytest.raises(KeyboardInterrupt):
        exports.main(arguments)
    kept = json.loads(arguments.out.read_text())["kinds"]
    assert sum(len(own["runtimes"]) for own in kept.values()) == 11
    exports.main(arguments)
    found = json.loads(arguments.out.read_text())
    assert list(found["kinds"]) == list(KINDS)
    for own in found["kinds"].values():
        assert list(own["runtimes"]) == list(PARTS)
    # Two kinds of cogact, each tried in one runtime; the row that died was begun twice.
    assert len(exporter.calls) == (len(KINDS) - 2) * len(PARTS) + 2 + 1
    before = len(exporter.calls)
    exports.main(arguments)
    assert len(exporter.calls) == before, "nothing is missing"
    exports.main(replace(arguments, kinds=("diffusion",), runtimes=("onnx",), again=True))
    assert len(exporter.calls) == before + 2, "two kinds of diffusion, and the rest is kept"
    assert json.loads(arguments.out.read_text())["kinds"] == found["kinds"]


def test_what_was_measured_otherwise_is_not_kept(exporter: Exporter, tmp_path: Path) -> None:
    arguments = exports.Arguments(kinds=("smolvla",), out=tmp_path / "exports.json")
    exports.main(arguments)
    exports.main(replace(arguments, frames=50))
    assert len(exporter.calls) == 2 * len(PARTS)


def test_the_page_says_what_stands_in_the_file(exporter: Exporter, tmp_path: Path) -> None:
    exports.main(exports.Arguments(out=tmp_path / "exports.json"))
    page = (tmp_path / "exports.md").read_text()
    assert page == exports.page(json.loads((tmp_path / "exports.json").read_text()))
    good = " | ".join(["2e-07, 6/7, 2.3×"] * 6)
    assert f"| vla, bins | {good} | r |" in page
    refused = ", ".join(PARTS)
    assert (
        f"- cogact in {refused}; cogact without guidance in {refused}: cogact cannot be captured "
        f"{exports.SOURCE}\n" in page
    )


def test_the_page_of_the_documents_is_of_its_file() -> None:
    path = ROOT / "docs" / "machinery" / "exports.json"
    if not path.is_file():
        pytest.skip("make bench-exports has not been run")
    found = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == exports.page(found)
    assert set(found["kinds"]) <= set(KINDS), "make bench-exports"


def test_kinds_that_there_are_not_are_named() -> None:
    with pytest.raises(ValueError, match=r"--kinds nobody: there are vla, regression"):
        exports.chosen(("nobody",))


# --- a row


def test_closed_loop_says_whether_both_go_the_same_way(tmp_path: Path) -> None:
    policy = load_policy(KINDS["vla, regression"].make(tmp_path))
    world = replace(exports.export_kinds.WORLD, step_limit=9)
    same = exports.closed_loop(policy, policy, world, 2)
    assert same == {
        "episodes": 2,
        "both": 0,
        "only_pytorch": 0,
        "only_exported": 0,
        "neither": 2,
        "same_steps": 2,
        "state_apart": 0.0,
    }
    other = KINDS["vla, two of four layers"].make(tmp_path / "other")
    apart = exports.closed_loop(policy, load_policy(other), world, 2)
    assert apart["state_apart"] > 1e-4


def test_a_row_of_what_armlet_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing replaced; captured once for two runtimes. What a gate refuses stands there with its
    numbers."""
    counted = []
    capture = exporting.capture

    def counting(*asked):
        counted.append(1)
        return capture(*asked)

    monkeypatch.setattr(exporting, "capture", counting)
    arguments = exports.Arguments(frames=12, episodes=1, calls=4)
    kind = KINDS["vla, two of four layers"]
    rows = dict(exports.rows_of(kind, ("onnx", "onnx_int8"), arguments))
    row = rows["onnx"]
    assert row["captured"] and row["loads"] and "refused" not in row
    assert row["parity"]["furthest"] < 1e-5 and len(row["parity"]["words"]) > 2
    assert row["closed_loop"]["state_apart"] < 1e-4 and row["speed"]["calls"] == 4
    assert rows["onnx_int8"]["parity"]["furthest"] > row["parity"]["furthest"]
    assert len(counted) == 1
    monkeypatch.setitem(gates.APART, "fp32", 0.0)
    again = dict(exports.rows_of(kind, ("onnx",), arguments))["onnx"]
    assert again["refused"].startswith("parity: on frame") and again["parity"]["furthest"] > 0
    assert np.isfinite(again["speed"]["times_faster"])


def test_what_cannot_be_written_as_onnx_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*asked, **told) -> None:
        raise RuntimeError("step 3") from TypeError("no operator\nfor it")

    monkeypatch.setattr(exporting, "capture", lambda *asked: (None, ()))
    monkeypatch.setattr(exporting.onnx, "write", fails)
    (row,) = dict(
        exports.rows_of(
            KINDS["vla, bins"], ("onnx",), exports.Arguments(frames=2, episodes=1, calls=1)
        )
    ).values()
    assert row["captured"] is False
    assert "cannot be written as ONNX (RuntimeError: no operator for it)" in row["refused"]


def test_cameras_that_see_their_own_kind_only_are_written_as_onnx(tmp_path: Path) -> None:
    """Which token is of which camera was computed by an operator that ONNX does not have."""
    policy = load_policy(KINDS["clip_lora, late"].make(tmp_path))
    frames, _ = exports.at_random(policy, 0)
    (tmp_path / "out").mkdir()
    exporting.assemble(policy, exporting.How(), frames, tmp_path / "out", {})
    exported = exports.load_exported(tmp_path / "out")
    for frame in frames[:3]:
        np.testing.assert_allclose(exported.infer(frame), policy.infer(frame), atol=2e-5)


def test_a_bias_behind_a_runtimes_own_operator_is_calibrated(tmp_path: Path) -> None:
    policy = load_policy(KINDS["vla, regression"].make(tmp_path))
    frames, _ = exports.at_random(policy, 0)
    (tmp_path / "out").mkdir()
    how = exporting.How(precision="int8_static")
    exporting.assemble(policy, how, frames, tmp_path / "out", {})
    exported = exports.load_exported(tmp_path / "out")
    for frame in frames[:3]:
        np.testing.assert_allclose(exported.infer(frame), policy.infer(frame), atol=0.05)
