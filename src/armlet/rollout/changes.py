"""A policy with one of its inputs changed, and all else as it is: how what it listens to is found out.

A change is a value, and part of what an episode was made from. The policy itself is not touched: what
it is shown passes through a wrapper, so any policy will do, exported ones and servers among them.
What is said in an episode under a change of words is decided here as well, from task and seed alone.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import numpy as np

from armlet.benchmarks import Benchmark, Task
from armlet.policies.contract import Policy
from armlet.robot.ensemble import Ensemble
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import RobotSpec

What = Literal[
    "other_task", "other_thing", "shuffled", "empty",
    "blank", "frozen", "mean_state", "no_previous_action",
]  # fmt: skip
OF_WORDS: tuple[What, ...] = ("other_task", "other_thing", "shuffled", "empty")
OF_A_CAMERA: tuple[What, ...] = ("blank", "frozen")
GREY = 128  # of every colour of a blank picture
# Policies refuse an empty text; a full stop is one that says nothing.
NO_WORDS = "."


@dataclass(frozen=True)
class Change:
    """One input, and what is given in its place. `camera`: whose picture; `state` (s,): the numbers
    of a state at its mean. Raises ValueError where one of them is missing, or says nothing."""

    what: What
    camera: str | None = None
    state: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise ValueError(
                f"there is no change {self.what!r}; there are {', '.join(get_args(What))}"
            )
        if (self.camera is not None) != (self.what in OF_A_CAMERA):
            raise ValueError(
                f"change {self.what!r} with camera {self.camera!r}: a camera is named for "
                f"{' and '.join(OF_A_CAMERA)}, and for nothing else"
            )
        if (self.state is not None) != (self.what == "mean_state"):
            raise ValueError(
                f"change {self.what!r} with state {self.state!r}: the numbers of a state are given "
                "for mean_state, and for nothing else"
            )

    @property
    def of(self) -> str:
        """Which input is changed, in words."""
        if self.what in OF_WORDS:
            return "words"
        if self.camera is not None:
            return f"camera {self.camera}"
        return "state" if self.what == "mean_state" else "previous action"

    @property
    def words(self) -> str:
        """What is changed, in words."""
        if self.camera is not None:
            how = "grey" if self.what == "blank" else "frozen at its first picture"
            return f"camera {self.camera} {how}"
        return {
            "other_task": "words of another task",
            "other_thing": "words for another thing",
            "shuffled": "words in another order",
            "empty": "no words",
            "mean_state": "state at its mean",
            "no_previous_action": "previous action zero",
        }[self.what]


def changed(
    seen: Observation,
    change: Change,
    *,
    text: str | None = None,
    picture: np.ndarray | None = None,
) -> Observation:
    """An observation, and those before it, with one input changed. `text`: what is said in place of
    the instruction, for a change of words; `picture` (h, w, 3): the first of the episode, for a
    frozen camera. Raises ValueError where what the change needs is missing."""
    past = tuple(_one_changed(each, change, text, picture) for each in seen.past)
    return replace(_one_changed(seen, change, text, picture), past=past)


def _one_changed(
    seen: Observation, change: Change, text: str | None, picture: np.ndarray | None
) -> Observation:
    if change.what in OF_WORDS:
        if text is None:
            raise ValueError(f"change {change.what!r} needs the text that is said instead")
        return replace(seen, instruction=text)
    if change.what == "mean_state":
        return replace(seen, state=np.array(change.state, np.float32))
    if change.what == "no_previous_action":
        return replace(seen, previous_action=np.zeros_like(seen.previous_action))
    camera = change.camera
    if camera not in seen.images:
        raise ValueError(
            f"change {change.what!r}: the observation has no camera {camera!r}; it has "
            f"{', '.join(seen.images)}"
        )
    if change.what == "blank":
        picture = np.full_like(seen.images[camera], GREY)
    if picture is None:
        raise ValueError("change 'frozen' needs the episode's first picture")
    return replace(seen, images={**seen.images, camera: picture})


class Changed(Policy):
    """A policy that is shown something else. `text`: what it is told, for a change of words."""

    def __init__(self, policy: Policy, change: Change, *, text: str | None = None) -> None:
        self.policy = policy
        self.change = change
        self.text = text
        self._first: np.ndarray | None = None  # the picture at which a camera is frozen

    @property
    def execute(self) -> int:  # type: ignore[override]
        return self.policy.execute

    @property
    def history(self) -> int:  # type: ignore[override]
        return self.policy.history

    @property
    def ensemble(self) -> Ensemble | None:  # type: ignore[override]
        return self.policy.ensemble

    @property
    def robot(self) -> RobotSpec:
        return self.policy.robot

    @property
    def kind(self) -> str:
        return f"{self.policy.kind} with one input changed ({self.change.words})"

    def reset(self) -> None:
        self._first = None
        self.policy.reset()

    def shown(self, observation: Observation) -> Observation:
        """What the policy is shown in place of an observation."""
        if self.change.what == "frozen" and self._first is None:
            earliest = (*observation.past, observation)[0]
            # A copy: a world may draw the next picture into the same memory.
            self._first = np.array(earliest.images[self.change.camera or ""])
        return changed(observation, self.change, text=self.text, picture=self._first)

    def infer(self, observation: Observation) -> np.ndarray:
        return self.policy.infer(self.shown(observation))

    def decide(self, observation: Observation) -> Decision:
        return self.policy.decide(self.shown(observation))

    def decide_all(self, observations: Sequence[Observation]) -> list[Decision]:
        shown = []
        for observation in observations:
            self._first = None  # an episode begins with each
            shown.append(self.shown(observation))
        return self.policy.decide_all(shown)

    def at(self, budget: float) -> Self:
        return type(self)(self.policy.at(budget), self.change, text=self.text)


# --- what is said


def said_instead(change: Change, benchmark: Benchmark, task: Task, seed: int) -> str | None:
    """What a policy is told in the episode of (task, seed) under a change of words; None where
    there is nothing else to say: one task, one word, a world that cannot name another thing."""
    with_words = benchmark.make(task, seed)
    text = with_words.instruction
    if change.what == "other_thing":
        other = with_words.other_instruction(seed)
        with_words.close()
        return None if other == text else other
    with_words.close()
    if change.what == "shuffled":
        return shuffled(text, seed)
    if change.what == "empty":
        return None if text == NO_WORDS else NO_WORDS
    return _of_another_task(benchmark, task, seed, text)


def _of_another_task(benchmark: Benchmark, task: Task, seed: int, text: str) -> str | None:
    """What is said in the first other task that says something else in its world of this seed; the
    seed decides at which to begin."""
    others = [each for each in benchmark.tasks(task.split) if each.name != task.name]
    for number in range(len(others)):
        world = benchmark.make(others[(seed + number) % len(others)], seed)
        other = world.instruction
        world.close()
        if other != text:
            return other
    return None


def shuffled(text: str, seed: int) -> str | None:
    """The words of a text in another order, always the same for a seed; None where there is no
    other."""
    words = text.split()
    if len(set(words)) < 2:
        return None
    rng = np.random.default_rng([seed, zlib.crc32(text.encode())])
    while True:
        mixed = [words[index] for index in rng.permutation(len(words))]
        if mixed != words:
            return " ".join(mixed)


def in_episode(
    policy: Policy, change: Change, benchmark: Benchmark, task: Task, seed: int
) -> Changed:
    """The policy as it is to act in one episode. Raises ValueError where the change would be
    none."""
    text = None
    if change.what in OF_WORDS:
        text = said_instead(change, benchmark, task, seed)
        if text is None:
            raise ValueError(
                f"{change.words}: there are none for task {task.name!r} and seed {seed} of "
                f"{benchmark.name}, so the change would have no effect"
            )
    return Changed(policy, change, text=text)
