"""LIBERO's expert and its tables, without LIBERO: grasps of known shapes, and a hand and a thing
that do as they are told."""

import dataclasses
import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest

from armlet.benchmarks.libero import Libero, expert, require_extra
from armlet.benchmarks.libero.expert import CLOSED, DOWN, OPEN, Facts, Grasp, Place
from armlet.benchmarks.libero.suites import FILES, VARIANTS, family, folder


def box(size: tuple[float, float, float], turned: float = 0.0) -> np.ndarray:
    """(8, 3): the corners of a box that stands on the floor, turned about the vertical."""
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (0, 1)])
    corners = signs * np.array([size[0] / 2, size[1] / 2, size[2]])
    c = np.cos(turned)
    s = np.sin(turned)
    return corners @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T


def ring(radius: float, height: float) -> np.ndarray:
    """(n, 3): the rim of a bowl and its foot."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    rim = np.c_[circle * radius, np.full(len(angles), height)]
    foot = np.c_[circle * radius / 2, np.zeros(len(angles))]
    return np.concatenate([rim, foot])


class Hand:
    """A hand without inertia and a thing that follows it when held, as the expert is told of
    them. `slips`: how many times the thing falls out of the fingers when it is lifted."""

    def __init__(self, points: np.ndarray, slips: int = 0) -> None:
        self.points = points
        self.hand = np.array([0.1, -0.2, 0.3])
        self.yaw = 0.0
        self.gap = 0.08
        self.width = float(np.ptp(points[:, 1]))
        self.held = False
        self.slips = slips

    def facts(self) -> Facts:
        middle = (self.points.min(0) + self.points.max(0)) / 2
        return Facts(
            hand=self.hand,
            turned=expert._about_vertical(self.yaw) @ DOWN,
            gap=self.gap,
            at_rest=True,
            held=self.held,
            middle=middle,
            lowest=float(self.points[:, 2].min()),
            ceiling=0.15,
        )

    def act(self, action: np.ndarray) -> None:
        moved = action[:3] * expert.STEP * 0.3
        self.hand = self.hand + moved
        self.yaw += action[5] * expert.TURN * 0.3
        closing = action[6] > 0
        # What is held comes along; it is moved below.
        reach = 0.04 if self.held else 0.02
        near = np.linalg.norm(self.hand[:2] - self.points.mean(0)[:2]) < reach
        within = self.points[:, 2].min() < self.hand[2] < self.points[:, 2].max()
        if not closing:
            self.gap = min(self.gap + 0.02, 0.08)
            self.held = False
        elif self.gap > self.width or not (near and within):
            self.gap = max(self.gap - 0.02, self.width if near and within else 0.0)
        self.held = closing and near and within and self.gap <= self.width + 1e-9
        if self.held:
            self.points = self.points + moved
        if self.held and self.points[:, 2].min() > 0.06 and self.slips:
            self.slips -= 1
            self.held = False
            self.gap = 0.0
        if not self.held:  # it falls
            self.points = self.points - [0, 0, self.points[:, 2].min()]


@pytest.mark.parametrize("slips", [0, 1])
def test_a_thing_is_brought_to_its_place_and_let_go_also_when_it_has_slipped(slips: int) -> None:
    hand = Hand(box((0.06, 0.04, 0.10)) + [0.0, 0.1, 0.0], slips)
    place = Place(np.array([0.2, -0.1]), 0.02, 0.02)
    seen = []
    for _ in range(300):
        facts = hand.facts()
        move = expert.pick_place(facts, expert.grasps(hand.points)[0], place)
        seen.append(move.phase)
        hand.act(expert.command(facts.hand, facts.turned, move))
    assert np.linalg.norm(hand.facts().middle[:2] - place.middle) < place.radius
    assert not hand.held and hand.slips == 0 and hand.hand[2] > 0.1
    assert [
        seen.index(phase) for phase in ("approaching", "grasping", "transporting", "placing")
    ] == sorted(seen.index(phase) for phase in set(seen))


@pytest.mark.parametrize("turned", np.radians([-80, -45, -10, 0, 30, 60, 85]))
def test_a_box_is_seized_across_its_narrow_side(turned: float) -> None:
    best = expert.grasps(box((0.20, 0.04, 0.08), turned))[0]
    # At yaw 0 the fingers open along y, the box's narrow side.
    assert abs(expert.half_turn(best.yaw - turned)) < np.radians(6)
    assert best.point[:2] == pytest.approx([0, 0], abs=1e-6)
    assert best.point[2] == pytest.approx(0.08 - expert.FINGER)


def test_a_flat_thing_is_seized_above_the_floor_and_a_wide_one_by_its_rim() -> None:
    assert expert.grasps(box((0.08, 0.05, 0.02)))[0].point[2] == pytest.approx(0.010)
    rims = expert.grasps(ring(0.07, 0.05))
    assert len(rims) == 8
    for grasp in rims:
        outwards = grasp.point[:2] / np.linalg.norm(grasp.point[:2])
        # The fingers open across the wall: one inside, one outside.
        opening = np.array([-np.sin(grasp.yaw), np.cos(grasp.yaw)])
        assert abs(opening @ outwards) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(grasp.point[:2]) == pytest.approx(0.066, abs=1e-3)
        assert grasp.point[2] == pytest.approx(0.05 - expert.RIM)


def test_a_grasp_moves_with_its_thing() -> None:
    grasp = Grasp(np.array([0.1, 0.0, 0.05]), 0.2)
    before = np.zeros(3), np.eye(3)
    quarter = expert._about_vertical(np.pi / 2)
    moved = grasp.moved(before, (np.array([0.5, 0.5, 0.0]), quarter))
    assert moved.point == pytest.approx([0.5, 0.6, 0.05])
    assert moved.yaw == pytest.approx(0.2 - np.pi / 2)  # half a turn is the same grasp


@pytest.mark.parametrize("yaw", np.radians([-85, -30, 0, 45, 90]))
def test_a_command_turns_the_hand_towards_the_yaw_that_is_wanted(yaw: float) -> None:
    turned = expert._about_vertical(0.3) @ DOWN
    assert expert.yaw_of(turned) == pytest.approx(0.3)
    move = expert.Move(np.array([1.0, 0.0, 0.01]), yaw, CLOSED, "")
    action = expert.command(np.zeros(3), turned, move)
    assert action[:3] == pytest.approx([1, 0, 0.2 * expert.GAIN]) and action[6] == CLOSED
    assert action[3:5] == pytest.approx([0, 0], abs=1e-6)
    assert action[5] == pytest.approx(
        np.clip(expert.GAIN * (yaw - 0.3) / expert.TURN, -1, 1), abs=1e-6
    )


def test_fingers_that_closed_on_nothing_open_and_rise() -> None:
    hand = Hand(box((0.06, 0.04, 0.10)))
    grasp = expert.grasps(hand.points)[0]
    hand.hand = grasp.point.copy()
    hand.gap = 0.0
    move = expert.pick_place(hand.facts(), grasp, Place(np.array([0.3, 0.0]), 0.0, 0.02))
    assert move.gripper == OPEN and move.point[2] > grasp.point[2] + 0.05


def test_suites_have_ten_tasks_of_names_of_their_own() -> None:
    assert all(len(files) == 10 for files in FILES.values())
    files = [file for tasks in FILES.values() for file in tasks.values()]
    assert len(set(files)) == 40
    assert folder("libero_goal", "seen") == folder("libero_goal", "official") == "libero_goal"
    assert {folder("libero_10", split) for split in VARIANTS} == {
        f"libero_10_{change}" for change in ("lan", "object", "swap", "task")
    }
    benchmark = Libero(suite="libero_goal")
    assert [task.name for task in benchmark.tasks("unseen_tasks")] == list(FILES["libero_goal"])
    assert {family("libero_goal", task) for task in FILES["libero_goal"]} == {
        "drawer", "pick_place", "push", "turn"
    }  # fmt: skip


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ValueError, match="libero_object, libero_spatial, libero_goal, libero_10"):
        Libero(suite="libero_90")
    with pytest.raises(ValueError, match="has no task"):
        Libero(task_names=("tea",))
    with pytest.raises(ValueError, match="no split"):
        Libero().tasks("unseen_scenes")


def test_importing_is_cheap_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, armlet.benchmarks.libero; "
        "sys.exit(any(name in sys.modules for name in ('libero', 'robosuite', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    benchmark = Libero()
    task = benchmark.tasks()[0]
    for call in (require_extra, benchmark.fingerprint, lambda: benchmark.make(task, 0)):
        with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[libero\]'"):
            call()


def test_an_action_is_seven_numbers_of_a_hand_that_turns() -> None:
    spec = Libero().action_spec
    assert (spec.dims, spec.rotation, spec.mode) == (7, "axis_angle", "delta")
    assert spec.translation == (0, 1, 2) and spec.translation_scale == 0.05
    assert (spec.gripper_open, spec.gripper_closed, spec.grippers) == (-1.0, 1.0, (6,))
    assert len(Libero().state_names) == 8
    assert dataclasses.replace(Libero(), suite="libero_spatial") != Libero()


class Fixture:
    """A hand without inertia before a drawer or a knob, which go with it where it holds or pushes
    them: `open` metres of a drawer, or `angle` radians of a knob that turns by `way`."""

    def __init__(self, hand: np.ndarray, opens: np.ndarray | None = None, way: float = 1.0) -> None:
        self.hand = hand
        self.turned = DOWN
        self.gap = 0.08
        self.closing = False
        self.open = 0.0
        self.angle = 0.0
        self.way = way
        self.opens = np.zeros(3) if opens is None else opens
        self.bar = np.array([0.0, 0.0, 0.2])

    @property
    def handle(self) -> expert.Handle:
        return expert.Handle(self.bar + self.open * self.opens, self.opens)

    @property
    def lever(self) -> expert.Lever:
        c = np.cos(self.way * self.angle)
        s = np.sin(self.way * self.angle)
        out = np.array([-c, -s, 0.0])
        return expert.Lever(self.bar + 0.045 * out, out, self.way * np.array([s, -c, 0.0]), 0.012)

    @property
    def held(self) -> bool:
        near = np.linalg.norm(self.hand - self.handle.point) < 0.025
        return bool(self.opens.any() and near and self.gap < 0.03)

    def facts(self) -> Facts:
        nothing = np.zeros(3)
        return Facts(
            self.hand, self.turned, self.gap, not self.closing, self.held, nothing, 0.0, 0.0
        )

    def act(self, action: np.ndarray) -> None:
        moved = action[:3] * expert.STEP * 0.3
        turn = expert.Rotation.from_rotvec(action[3:6] * expert.TURN * 0.3)
        held = self.held
        self.hand = self.hand + moved
        self.turned = turn.as_matrix() @ self.turned
        if held and action[6] > 0:
            self.open = max(0.0, self.open + float(moved @ self.opens))
        around = np.linalg.norm(self.hand - self.handle.point) < 0.025 and self.opens.any()
        least = 0.016 if around else 0.0
        before = self.gap
        self.gap = np.clip(self.gap - 0.02 * action[6], least, 0.08)
        self.closing = self.gap != before
        self._push()

    def _push(self) -> None:
        """The knob gives way to fingers that come from behind."""
        while not self.opens.any():
            offset = self.hand - self.lever.end
            behind = -float(offset @ self.lever.way)
            beside = abs(float(offset @ self.lever.out))
            # The fingers are 1 cm thick.
            if abs(offset[2]) > 0.02 or beside > 0.03 or not 0 < behind < 0.022:
                break
            self.angle += 0.01


@pytest.mark.parametrize("turned", np.radians([0, 90, 180, -120]))
def test_a_drawer_is_seized_from_the_front_pulled_and_let_go_backwards(turned: float) -> None:
    opens = np.array([np.sin(turned), np.cos(turned), 0.0])
    fixture = Fixture(np.array([0.1, 0.0, 0.4]) + 0.3 * opens, opens)
    phases = []
    while fixture.open < 0.15:
        move = expert.pull(fixture.facts(), fixture.handle)
        phases.append(move.phase)
        assert len(phases) < 200
        fixture.act(expert.command(fixture.hand, fixture.turned, move))
        # Behind the bar is the drawer's front: the hand comes no further than its fingers reach.
        assert float((fixture.hand - fixture.handle.point) @ opens) > -0.02
    assert fixture.turned[:, 2] @ opens < -0.9 and fixture.turned[2, 2] < 0
    assert list(dict.fromkeys(phases)) == ["approaching", "grasping", "operating"]
    open_before = fixture.open
    for _ in range(200):
        leave = expert.let_go(fixture.facts(), fixture.handle)
        if leave is None:
            break
        assert leave.gripper == OPEN
        # Not turned before it is away.
        high = fixture.hand[2] > fixture.handle.point[2] + 0.1
        assert high or fixture.turned[:, 2] @ opens < -0.9
        fixture.act(expert.command(fixture.hand, fixture.turned, leave))
    assert float((fixture.hand - fixture.handle.point) @ opens) > 0.05
    assert fixture.open >= open_before and fixture.turned[2, 2] < -0.8


@pytest.mark.parametrize("way", [1.0, -1.0])
def test_a_knob_is_pushed_round_from_behind_the_end_of_its_ridge(way: float) -> None:
    fixture = Fixture(np.array([0.1, -0.15, 0.35]), way=way)
    for _ in range(300):
        move = expert.push_lever(fixture.facts(), fixture.lever, 0.0)
        assert move.gripper == CLOSED
        fixture.act(expert.command(fixture.hand, fixture.turned, move))
        if fixture.angle > 0.6:
            break
    assert fixture.angle > 0.6
