"""The closed loop: look, decide, carry out some of the chunk, look again. There is one, `run`.

Who acts is an argument (a policy, or the expert of a world: `actors`), and so is all else that
makes one use differ from another: who says what would have been right (`label`), what keeps the arm
from doing as it was told (`disturb`), how late the actions come (`lag`, `late`), and whether what
was seen is kept (`record`). Knows worlds and policies; knows no file and no other process.

**When thinking takes time.** Actions are sent at control ticks only, `hz` of them a second. A
policy that looks at one tick and needs δ milliseconds has its chunk ready at the first tick that is
not earlier than δ: `steps_late` = ⌈δ·hz / 1000⌉ ticks later, so that any time at all costs a whole
tick, and no time none. During these ticks the world goes on. What the arm does meanwhile is the
controller's rule, and a result is about policy and rule together:

    wait    it holds still, then carries out the new chunk from its start. Nothing of a chunk is
            lost, and time is.
    run_on  it carries out what is left of the chunk before, and holds still when nothing is left.
            Of the new chunk it then leaves out exactly as many actions, from its start, as it
            carried out of the old one meanwhile: these were meant for the same moments. Ticks in
            which it held still leave nothing out: the moves for them have not been made. Beware
            with relative moves: what a new chunk would correct in the actions that are left out is
            not corrected, so a policy whose first action makes up for all that went wrong (one
            cloned from a dead-beat expert) does worse by this rule than by waiting. That is a
            result about the rule.
    blend   the same, and then it goes over from the old chunk to the new one step by step, as
            real-time chunking does (`robot.chunks`).
    guided  as run_on, and the policy is told what is left of the old chunk, and how much of that
            will be carried out meanwhile: its new chunk goes on from there (real-time chunking as
            published). Only flow policies can (`Policy.why_unguided`).

Under all it holds still before the first chunk of an episode. (A third rule, to leave out an
action for every tick that passed, whether or not anything was done in it, is not offered: it throws
away relative moves that nobody made.)
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from armlet.benchmarks import Benchmark, Task, World
from armlet.data.episodes import EpisodeFrames
from armlet.robot.bounds import Bounds
from armlet.robot.chunks import Late, check_guided, follow, told_of
from armlet.robot.ensemble import Ensemble
from armlet.robot.guard import ActionGuard
from armlet.robot.limiting import hold_action
from armlet.robot.memory import Overlap, Past
from armlet.robot.observation import Observation, history_of
from armlet.robot.outputs import Decision
from armlet.robot.spec import ActionSpec

Action = np.ndarray  # (a,) in the robot's own numbers


class Actor(Protocol):
    """Whoever can act: every policy, and a world's expert. One that looks at more than the present
    says `history`, one whose chunks are joined with those before `ensemble`, as `Policy` does."""

    @property
    def execute(self) -> int:
        """Actions of a chunk that are carried out before it looks again."""

    def decide(self, observation: Observation) -> Decision: ...

    def infer(self, observation: Observation) -> np.ndarray:
        """(k, a): the actions of `decide` alone."""

    def reset(self) -> None:
        """An episode begins: nothing of the one before is remembered."""


@dataclass(frozen=True)
class Episode:
    """How one episode went: what an evaluation counts, and what a data set keeps.

    `executed` (T, a): what the robot was told at every step, those of waiting included; `waited`:
    in how many of them the arm held still because no action was there; `gates` (decisions, l): what
    ran at each decision; `toggles`: how often the gripper was sent the other way (None without
    one). `recorded`: what was seen at every step and what would have been right there; None where
    it was not asked for.
    """

    success: bool
    executed: np.ndarray
    waited: int
    toggles: int | None
    gates: tuple[tuple[int, ...], ...]
    recorded: EpisodeFrames | None = None
    guarded: int | None = None

    @property
    def steps(self) -> int:
        return len(self.executed)

    def frames(self, info: dict[str, Any]) -> EpisodeFrames:
        """As a data set keeps it, with `info` about it. Raises ValueError where it was not
        recorded."""
        kept = self.recorded
        if kept is None:
            raise ValueError("this episode was run without `record=True`, so nothing of it is kept")
        return EpisodeFrames(kept.images, kept.state, kept.action, kept.extra, kept.task, info)


def run(
    world: World,
    actor: Actor,
    *,
    spec: ActionSpec,
    limit: int,
    label: Actor | None = None,
    disturb: Callable[[Action], Action] | None = None,
    execute: int | None = None,
    ensemble: Ensemble | None = None,
    lag: int = 0,
    late: Late = "wait",
    guard: Callable[..., ActionGuard] | None = None,
    tail: int = 0,
    record: bool = False,
    on_look: Callable[[Observation], object] = lambda observation: None,
    on_world: Callable[[World], object] = lambda world: None,
) -> Episode:
    """One episode, closed loop, of at most `limit` steps; it ends with success, or `tail` steps
    after it. `world` is as `Benchmark.make` gives it, and is closed. `label`: who is asked at every
    step what to do there; the first action of its answer is recorded, and not carried out (DAgger);
    None: recorded is what the actor wanted. `disturb`: the action wanted → the one carried out.
    `execute`: actions of a chunk carried out before the actor looks again (None: its own number).
    `ensemble`: how chunks that overlap are joined (None: as the actor says). `lag` steps pass in the
    world while it thinks; `late` says what the arm does meanwhile (see above). `guard`: makes the
    guard that it acts behind, with the world's `clock`. `record`: every step is looked at and kept.
    `on_look` is given what the actor sees, `on_world` each world. Raises ValueError for short chunks.
    """
    execute = actor.execute if execute is None else execute
    kept = _Record(keep=record)
    commands: deque[Action | None] = deque()  # None: there is no action yet, the arm holds still
    left = np.empty((0, spec.dims), np.float32)  # of the chunk before, not carried out
    gates: list[tuple[int, ...]] = []
    actor.reset()
    success = False
    past = Past(max(history_of(actor), history_of(label)))
    overlap = Overlap(ensemble or getattr(actor, "ensemble", None), spec)
    _check_late(late, actor, overlap.ensemble)
    arm = _Arm(spec, world, guard)
    executed = arm.executed
    with contextlib.closing(world):
        on_world(world)
        while len(executed) < limit and not world.over:
            # Rendering takes time: only what somebody sees, now or at the next look.
            if record or len(commands) < past.history:
                observation = past.see(world.observe())
                kept.see(world, observation)
            if not commands:
                on_look(observation)
                decision = actor.decide(_told(observation, left, lag, late))
                gates.append(decision.gates)
                chunk = _checked(overlap.join(decision.actions, arm.acted), execute)
                now, left = schedule(chunk, left, spec, execute=execute, lag=lag, late=late)
                commands += now
            wanted = arm.given(commands.popleft(), observation)
            if record:
                # What was wanted, and never what a disturbance made of it.
                kept.actions.append(wanted if label is None else label.infer(observation)[0])
            executed.append(wanted if disturb is None else disturb(wanted))
            # Success stays: in the tail the world may leave it again.
            success = bool(world.step(executed[-1])) or success
            on_world(world)
            if success:  # the tail: a policy must also learn to stay where it has arrived
                tail -= 1
                if tail < 0:
                    break
    done = np.stack(executed)  # (T, a)
    recorded = kept.frames(world.instruction, done) if record else None
    toggles = gripper_toggles(spec, done)
    return Episode(success, done, arm.waited, toggles, tuple(gates), recorded, arm.guarded)


def run_task(
    actor: Actor,
    benchmark: Benchmark,
    task: Task,
    seed: int,
    *,
    execute: int | None = None,
    ensemble: Ensemble | None = None,
    lag: int = 0,
    late: Late = "wait",
    bounds: Bounds | None = None,
    on_look: Callable[[Observation], object] = lambda observation: None,
    on_world: Callable[[World], object] = lambda world: None,
) -> Episode:
    """`run` in the benchmark's world of (task, seed), nothing recorded. `bounds`: those of the guard
    that it acts behind; None: without one."""
    guard = None
    if bounds is not None:
        names = benchmark.state_names
        # Thousands of episodes are counted, and not logged.
        guard = partial(ActionGuard, benchmark.action_spec, bounds, state_names=names, logger=None)
    return run(
        benchmark.make(task, seed),
        actor,
        spec=benchmark.action_spec,
        limit=benchmark.max_steps,
        execute=execute,
        ensemble=ensemble,
        lag=lag,
        late=late,
        guard=guard,
        on_look=on_look,
        on_world=on_world,
    )


def film(
    actor: Actor,
    benchmark: Benchmark,
    task: Task,
    seed: int,
    *,
    execute: int | None = None,
    ensemble: Ensemble | None = None,
    size: int = 224,
) -> tuple[np.ndarray, Episode]:
    """Frames (T + 1, size, size, 3) uint8 of one episode, its beginning and every step; and how it
    went."""
    frames: list[np.ndarray] = []

    def look(world: World) -> None:
        frames.append(world.render(size))

    episode = run_task(
        actor, benchmark, task, seed, execute=execute, ensemble=ensemble, on_world=look
    )
    return np.stack(frames), episode


def plan(benchmark: Benchmark, split: str, episodes: int, seed: int) -> list[tuple[Task, int]]:
    """`episodes` pairs of task and seed, fixed in advance, the tasks in turn. Each is run in a
    world of its own, so none depends on how another ended."""
    tasks = benchmark.tasks(split)
    return [(tasks[index % len(tasks)], seed + index) for index in range(episodes)]


# --- when actions come late


def steps_late(milliseconds: float, hz: float) -> int:
    """Control steps by which an action is late after so much thinking (see above). Raises
    ValueError for a negative time."""
    if milliseconds < 0:
        raise ValueError(f"a decision takes 0 ms or more, found {milliseconds:g}")
    # Rounded: 0.1 s at 10 Hz is one step, not 1.0000000000000002.
    return math.ceil(round(milliseconds * hz / 1e3, 9))


def schedule(
    chunk: np.ndarray,
    left: np.ndarray,
    spec: ActionSpec,
    *,
    execute: int,
    lag: int,
    late: Late,
) -> tuple[list[Action | None], np.ndarray]:
    """What is carried out until the actor looks again, tick by tick (None: the arm holds still),
    and what is left (m, a) of the chunk (k, a) then. `left` is what was left of the chunk
    before."""
    meanwhile = left[:0] if late == "wait" else left[:lag]  # what the old chunk still has
    fresh = follow(chunk, left, len(meanwhile), late, spec)
    waiting = [None] * (lag - len(meanwhile))  # it holds still when nothing is left
    return [*meanwhile, *waiting, *fresh[:execute]], fresh[execute:]


def _check_late(late: Late, actor: Actor, ensemble: Ensemble | None) -> None:
    """Raises ValueError where an actor cannot be guided, and should be."""
    if late == "guided":
        unsaid = f"a {type(actor).__name__} does not say that it can be guided"
        check_guided(ensemble, getattr(actor, "why_unguided", unsaid))


def _told(seen: Observation, left: np.ndarray, lag: int, late: Late) -> Observation:
    """What an actor is shown, of whose chunk before these actions (m, a) are left."""
    return told_of(seen, left, lag) if late == "guided" else seen


def _checked(chunk: np.ndarray, execute: int) -> np.ndarray:
    if not 1 <= execute <= len(chunk):
        raise ValueError(
            f"{execute} actions of each chunk should be carried out, and this policy's have "
            f"{len(chunk)}"
        )
    return chunk


def still(spec: ActionSpec, last: Action | None, world: World) -> Action:
    """The action (a,) that holds an arm still after it was told `last` (None: nothing yet): no
    motion, the gripper as it was."""
    held = hold_action(spec, last)
    return world.holding_action() if held is None else held


class _Arm:
    """What an arm is told, step by step. `executed`: so far; `waited`: steps without an action;
    `guarded`: steps in which a guard intervened, None without one."""

    def __init__(
        self, spec: ActionSpec, world: World, guard: Callable[..., ActionGuard] | None
    ) -> None:
        self.executed: list[Action] = []
        self.waited = 0
        self.guarded: int | None = None
        self._spec = spec
        self._world = world
        self._seen: Observation | None = None
        self._guard: ActionGuard | None = None
        if guard is not None:
            self.guarded = 0
            self._guard = guard(clock=lambda: len(self.executed) / spec.control_hz)
            self._guard.reset(at=world.holding_action() if spec.mode == "absolute" else None)

    @property
    def acted(self) -> int:
        """Steps in which it carried out an action."""
        return len(self.executed) - self.waited

    def given(self, wanted: Action | None, seen: Observation) -> Action:
        """What is wanted of it now, None: nothing → what it is told. `seen`: the last that was
        looked at."""
        self.waited += wanted is None
        if self._guard is None:
            last = self.executed[-1] if self.executed else None
            return still(self._spec, last, self._world) if wanted is None else wanted
        # Only what is new says where the arm is; between looks the guard sums up its moves.
        state = None if seen is self._seen else seen.state
        self._seen = seen
        given = self._guard.step(wanted, state=state)
        assert given.action is not None and self.guarded is not None
        self.guarded += bool(given.events) or (given.held and wanted is not None)
        return given.action


# --- what an episode was like


def gripper_toggles(spec: ActionSpec, actions: np.ndarray) -> int | None:
    """How often, along an episode's actions (T, a), the gripper is commanded across the middle
    between open and closed."""
    if not spec.grippers:
        return None
    toggles = 0
    for index in spec.grippers:
        # Which side of the middle, whichever end is the larger number.
        closed = actions[:, index] - (spec.gripper_open + spec.gripper_closed) / 2  # (T,)
        sides = np.sign(closed)[closed != 0]  # the middle itself is on no side
        toggles += int((sides[1:] != sides[:-1]).sum())  # changes of side
    return toggles


@dataclass
class _Record:
    """What was seen so far, step by step, where it is to be kept. `actions`: what would have been
    right."""

    keep: bool
    observations: list[Observation] = field(default_factory=list)
    privileged: list[dict[str, np.ndarray]] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)

    def see(self, world: World, observation: Observation) -> None:
        if not self.keep:
            return
        self.observations.append(observation)
        self.privileged.append(world.privileged())

    def frames(self, instruction: str, executed: np.ndarray) -> EpisodeFrames:
        images = {}
        for name in self.observations[0].images:
            images[name] = np.stack([seen.images[name] for seen in self.observations])
        # Beside what would have been right: what was done, and what the simulator knew.
        extra = {"executed": executed}
        for name in self.privileged[0]:
            extra[f"privileged.{name}"] = np.stack([facts[name] for facts in self.privileged])
        return EpisodeFrames(
            images=images,
            state=np.stack([seen.state for seen in self.observations]),
            action=np.stack(self.actions),
            extra=extra,
            task=instruction,
        )
