"""Tabletop: language-conditioned manipulation in four families, on MuJoCo physics and a camera
without OpenGL.

    reach_push   touch an object; push one to the left or right
    pick_place   put an object on a plate, into a box, or on another object
    drawer       open or close one of two drawers by its handle
    tool         take a rake and pull one of three objects that are out of reach

Which object, place, side or drawer is meant stands only in the words. Everything random comes from
(task, seed), so a world is the same to the bit every time on one MuJoCo version and renderer.

Splits, each a condition that data are never collected under, but for `seen` and `seen_shapes`:

    unseen_objects   the first thing of a scene is of a colour and shape that are never seen
                     together; colours in a scene differ, so the colour alone says which thing is
                     meant
    unseen_shapes    such a thing is asked for, and beside it stands one of the same colour and the
                     other shape: the shape is needed
    seen_shapes      the same with pairs of colour and shape that are seen: what `unseen_shapes` is
                     to be compared with
    unseen_scenes    another table, light from elsewhere, a moved camera
    unseen_wordings  other sentences, with words that were never heard
    known_words      other sentences, of words that were heard

With `belt` the table's top moves. What takes time then costs success: a thing is no longer where it
was seen.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mujoco
import numpy as np

from armlet.benchmarks import Benchmark, Task, World
from armlet.benchmarks.rendering import Camera, RayCamera, make_camera, resolve_renderer
from armlet.benchmarks.tabletop import expert
from armlet.benchmarks.tabletop.layouts import TWINS, Goal, belt_direction, draw, spoken
from armlet.benchmarks.tabletop.scene import (
    DRAWER_TRAVEL,
    HANDLE_FORWARD,
    HIGH,
    LOW,
    OBJECT_HALF,
    Layout,
    build_model,
)
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

FAMILIES = {
    "reach_push": ("touch", "push"),
    "pick_place": ("place", "stack"),
    "drawer": ("open", "close"),
    "tool": ("rake",),
}
STEP = 0.05  # metres that a command of 1.0 moves the tool centre
CONTROL_HZ = 10.0
FASTEST_BELT = 0.1  # m/s: at that a thing crosses the reachable zone in about four seconds


@dataclass(frozen=True)
class Tabletop(Benchmark):
    """`scene_pixels` and `wrist_pixels` 64–224; `renderer` `ray` (anywhere), `egl`, or `auto`;
    `families` a subset.

    `belt`: the speed in m/s (0 to 0.1) at which everything on the table is carried to the left or
    right; 0 is a table that stands still. It runs the way on which what is meant stays longest
    within reach, and against the side that a thing should be pushed to: waiting is no help. Drawers
    stand still by nature, so their tasks are left out where there is a belt."""

    name: ClassVar[str] = "tabletop"
    # A split's place in this list is part of its worlds' seed: new ones go to the end.
    splits: ClassVar[tuple[str, ...]] = (
        "seen",
        "unseen_objects",
        "unseen_scenes",
        "unseen_wordings",
        "unseen_shapes",
        "seen_shapes",
        "known_words",
    )
    scene_pixels: int = 72
    """Pixels a side of the camera that sees the table: 64 to 224."""
    wrist_pixels: int = 48
    """The same of the one on the hand."""
    renderer: str = "ray"
    """ray (anywhere), egl, or auto."""
    families: tuple[str, ...] = tuple(FAMILIES)
    """Which families of tasks there are."""
    step_limit: int = 80
    """Steps after which an episode has failed."""
    belt: float = 0.0
    """Metres a second, 0 to 0.1, at which everything on the table is carried aside."""

    def __post_init__(self) -> None:
        if not 0 <= self.belt <= FASTEST_BELT:
            raise ValueError(f"tabletop's belt runs at 0 to {FASTEST_BELT} m/s, found {self.belt}")

    @property
    def action_spec(self) -> ActionSpec:
        return ActionSpec(
            names=("dx", "dy", "dz", "gripper"),
            mode="delta",
            rotation="none",
            low=(-1.0,) * 4,
            high=(1.0,) * 4,
            grippers=(3,),
            gripper_open=expert.OPEN,
            gripper_closed=expert.CLOSED,
            control_hz=CONTROL_HZ,
            translation_scale=STEP,
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("x", "y", "z", "gap")

    @property
    def cameras(self) -> dict[str, int]:
        return {"scene": self.scene_pixels, "wrist": self.wrist_pixels}

    @property
    def max_steps(self) -> int:
        return self.step_limit

    def tasks(self, split: str = "seen") -> tuple[Task, ...]:
        self.check_split(split)
        unknown = set(self.families) - set(FAMILIES)
        if unknown:
            raise ValueError(
                f"tabletop has no family {sorted(unknown)}; it has {', '.join(FAMILIES)}"
            )
        families = self.families
        # A drawer has no shape to be told by, and does not ride on a belt.
        if split in TWINS or self.belt:
            families = tuple(family for family in families if family != "drawer")
        if not families:
            why = f"with a belt of {self.belt} m/s" if self.belt else f"in the split {split!r}"
            raise ValueError(
                f"tabletop has no task of the families {list(self.families)} {why}; drawers are "
                "left out there"
            )
        found = []
        for family in families:
            for skill in FAMILIES[family]:
                found.append(Task(skill, family, split))
        return tuple(found)

    def make(self, task: Task, seed: int) -> "TabletopWorld":
        # crc32, as Python's own hash of a text differs from process to process.
        rng = np.random.default_rng(
            [seed, zlib.crc32(task.name.encode()), self.splits.index(task.split)]
        )
        layout, goal = draw(task, rng)
        if self.belt:
            layout = replace(layout, belt=self.belt * belt_direction(layout, goal))
        return TabletopWorld(self, layout, goal)

    def fingerprint(self) -> dict[str, Any]:
        # Left out where there is none: reports from before there were belts stay comparable.
        belt = {"belt": self.belt} if self.belt else {}
        return {
            **belt,
            "benchmark": self.name,
            "renderer": resolve_renderer(self.renderer),
            "mujoco": mujoco.__version__,
            "cameras": self.cameras,
            "step_limit": self.step_limit,
        }


class TabletopWorld(World):
    """One episode. Forces, contacts and poses are MuJoCo's; success is judged on the object's own
    pose and speed."""

    def __init__(self, benchmark: Tabletop, layout: Layout, goal: Goal) -> None:
        self.goal = goal
        self.instruction = goal.instruction
        self._layout = layout
        self._renderer = resolve_renderer(benchmark.renderer)
        self._sizes = benchmark.cameras
        self._model = build_model(layout)
        self._data = mujoco.MjData(self._model)
        self._cameras: dict[tuple[str, int], Camera] = {}
        self._previous = np.zeros(4, np.float32)
        # Bodies' numbers in the model, to find their contacts.
        self._fingers = {self._model.body(f"{side}_finger").id for side in ("left", "right")}
        self._place_hand(layout.hand)
        for thing in layout.things:
            if thing.kind == "drawer":
                self._data.joint(f"{thing.name}_slide").qpos[0] = thing.opening
        if layout.belt:
            self._data.joint("belt").qvel[0] = layout.belt
            self._data.ctrl[5] = layout.belt
        # 0.1 s, so that things have come to rest before the first look.
        mujoco.mj_step(self._model, self._data, 20)

    def _place_hand(self, hand: tuple[float, float, float]) -> None:
        for axis, value in zip("xyz", hand, strict=True):
            self._data.joint(axis).qpos[0] = value
        for side in ("left", "right"):
            self._data.joint(side).qpos[0] = 0.034  # metres: fully open
        self._data.ctrl[:5] = [*hand, 0.034, 0.034]

    @property
    def tcp(self) -> np.ndarray:
        return self._data.site("tcp").xpos.copy()

    # What follows in names of bodies is known to the simulator only, and to the expert.

    @property
    def gap(self) -> float:
        return float(self._data.joint("left").qpos[0] + self._data.joint("right").qpos[0])

    def position(self, name: str) -> np.ndarray:
        return self._data.body(name).xpos.copy()

    def opening(self, name: str) -> float:
        return float(self._data.joint(f"{name}_slide").qpos[0])

    def handle(self, name: str) -> np.ndarray:
        # A drawer's position is its front's; the middle of the post is in front of and above it.
        return self.position(name) + np.array([-HANDLE_FORWARD, 0.0, 0.010])

    def observe(self) -> Observation:
        images = {}
        for name, size in self._sizes.items():
            images[name] = self._camera(name, size).render(self._data)
        state = np.array([*self.tcp, self.gap], np.float32)
        return Observation(images, state, self.instruction, self._previous.copy())

    def render(self, size: int) -> np.ndarray:
        return self._camera("scene", size).render(self._data)

    def _camera(self, name: str, size: int) -> Camera:
        if (name, size) not in self._cameras:
            camera: Camera
            # MuJoCo's own lights, which EGL shows, are not seen by rays: the look is passed on.
            if self._renderer == "ray":
                look = self._layout.look
                camera = RayCamera(self._model, name, size, light=look.light, ambient=look.ambient)
            else:
                camera = make_camera(self._model, name, size, self._renderer)
            self._cameras[name, size] = camera
        return self._cameras[name, size]

    def step(self, action: np.ndarray) -> bool:
        action = np.asarray(action, np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"tabletop takes a finite action of shape (4,), found {action}")
        action = np.clip(action, -1, 1)
        self._previous = action.astype(np.float32)
        # From where the hand is, not from where it was told to go: a hand that is held back does
        # not jump when it comes free.
        self._data.ctrl[:3] = np.clip(self.tcp + action[:3] * STEP, LOW, HIGH)
        # Open or closed and nothing between: a thing between the fingers stops them.
        self._data.ctrl[3:5] = 0.034 if action[3] < 0 else 0.0
        mujoco.mj_step(self._model, self._data, 20)  # of 5 ms: one step at 10 Hz
        return self.succeeded()

    def held(self, name: str) -> bool:
        """Whether both fingers touch body `name`."""
        body = self._model.body(name).id
        touching = set()
        for contact in self._data.contact:
            pair = {
                int(self._model.geom_bodyid[contact.geom1]),
                int(self._model.geom_bodyid[contact.geom2]),
            }
            if body in pair:
                touching |= pair & self._fingers
        return len(touching) == 2  # of one finger it may just lean on

    def _resting_place(self) -> np.ndarray:
        """Where the centre of the subject should come to rest for `place` and `stack`."""
        target = self.position(self.goal.target)
        kind = next(thing.kind for thing in self._layout.things if thing.name == self.goal.target)
        # Above the middle of what it lies on; of plates and boxes the bottom is 4 mm thick.
        height = {
            "plate": 0.004 + OBJECT_HALF,
            "box": 0.004 + OBJECT_HALF,
            "object": 2 * OBJECT_HALF,
        }[kind]
        return target + [0, 0, height]

    def _facts(self) -> expert.Facts:
        goal = self.goal
        axis = np.array([0.0, 1.0 if goal.side == "left" else -1.0, 0.0])
        if goal.skill in ("open", "close"):
            handle = self.handle(goal.subject)
            opening = self.opening(goal.subject)
            target = expert.drawer_goal(handle, opening, opened=goal.skill == "open")
            return expert.Facts(
                self.tcp, self.gap, handle, self.held(goal.subject), target, axis, opening
            )
        if goal.skill == "rake":
            # The rake's own x axis in the world: along its handle, towards the crossbar.
            axis = self._data.body("rake").xmat.reshape(3, 3)[:, 0].copy()
            return expert.Facts(
                self.tcp,
                self.gap,
                self.position("rake"),
                self.held("rake"),
                self.position(goal.subject),
                axis,
            )
        subject = self.position(goal.subject)
        target = self._resting_place() if goal.skill in ("place", "stack") else subject
        return expert.Facts(self.tcp, self.gap, subject, self.held(goal.subject), target, axis)

    def _move(self) -> expert.Move:
        facts = self._facts()
        if self.goal.skill == "rake":
            return expert.rake(facts, facts.goal)
        skills = {
            "touch": expert.touch,
            "push": expert.push,
            "place": expert.place,
            "stack": expert.place,
            "open": expert.slide,
            "close": expert.slide,
        }
        return skills[self.goal.skill](facts)

    def expert_action(self) -> np.ndarray:
        move = self._move()
        return np.array([*np.clip((move.point - self.tcp) / STEP, -1, 1), move.gripper], np.float32)

    def expert_phase(self) -> str:
        return self._move().phase

    def distraction(self, number: int) -> np.ndarray:
        """Towards any thing of the scene, down to its top; with the fingers as the expert wants
        them, and high if they hold."""
        move = self._move()
        thing = self._layout.things[number % len(self._layout.things)]
        point = self.handle(thing.name) if thing.kind == "drawer" else self.position(thing.name)
        # With a thing in hand it passes above the others.
        height = OBJECT_HALF if move.gripper == expert.OPEN else expert.CARRY
        wanted = expert.funnel(self.tcp, point + [0, 0, height], rise=0.05)
        return np.array([*np.clip((wanted - self.tcp) / STEP, -1, 1), move.gripper], np.float32)

    def other_instruction(self, number: int) -> str | None:
        """The name of the thing that is meant in the place of another's of its kind; where to put
        it stays."""
        goal = self.goal
        kinds = {thing.name: thing.kind for thing in self._layout.things}
        others = []
        for name, kind in kinds.items():
            if kind == kinds[goal.subject] and name not in (goal.subject, goal.target):
                others.append(name)
        if not others:
            return None
        other = others[number % len(others)]
        return goal.instruction.replace(spoken(goal.subject), spoken(other))

    def privileged(self) -> dict[str, np.ndarray]:
        """`subject` and `target`: where the thing meant, and the place meant, are now (3,)
        metres."""
        goal = self.goal
        facts = self._facts()
        subject = self.position(goal.subject) if goal.skill == "rake" else facts.subject
        target = facts.subject if goal.skill == "rake" else facts.goal
        if goal.skill == "push":
            target = facts.subject + facts.axis * 0.1  # no place is meant: 10 cm on
        return {"subject": subject.astype(np.float32), "target": target.astype(np.float32)}

    def succeeded(self) -> bool:
        goal = self.goal
        # Judged by where things are, in metres, not by what the hand has done: any way to it counts.
        if goal.skill == "touch":
            top = self.position(goal.subject) + [0, 0, OBJECT_HALF]
            return bool(
                np.linalg.norm((self.tcp - top)[:2]) < 0.018 and self.tcp[2] - top[2] < 0.02
            )
        if goal.skill == "push":
            sign = 1 if goal.side == "left" else -1
            return bool(self.position(goal.subject)[1] * sign > 0.15)
        if goal.skill == "open":
            return self.opening(goal.subject) > DRAWER_TRAVEL - 0.02
        if goal.skill == "close":
            return self.opening(goal.subject) < 0.015
        if goal.skill == "rake":
            return bool(self.position(goal.subject)[0] < 0.10)
        return self._rests()

    def _rests(self) -> bool:
        """Whether the subject lies where it should, released and still, or carried along by the
        belt."""
        subject = self.position(self.goal.subject)
        wanted = self._resting_place()
        near = 0.020 if self.goal.skill == "stack" else 0.026
        velocity = np.zeros(6)  # angular, then linear, in the world's directions (0 below)
        body = self._model.body(self.goal.subject).id
        mujoco.mj_objectVelocity(
            self._model, self._data, mujoco.mjtObj.mjOBJ_BODY.value, body, velocity, 0
        )
        return bool(
            np.linalg.norm((subject - wanted)[:2]) < near
            and abs(subject[2] - wanted[2]) < 0.012
            # m/s, beside the belt's own speed
            and np.linalg.norm(velocity[3:] - [0, self._layout.belt, 0]) < 0.05
            and not self.held(self.goal.subject)
        )
