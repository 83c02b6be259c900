"""A student whose action head costs less than its teacher's: fewer denoising steps, a narrower or
shorter network, or one that names the actions outright. Which layers of the backbone run is another
student's, around which this one stands. And what costs less without any training: fewer steps, and
looking again later. Knows the contract; knows no network.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from armlet import limits
from armlet.policies.building import rebuild_with
from armlet.policies.contract import Backbone, Student
from armlet.types import Batch

WIDTHS = 32  # numbers of an attention head in a flow head, of which its width is a multiple


@dataclass(frozen=True)
class LighterHead(Student):
    """What `student` makes of the teacher, with a lighter action head. Of a head of the teacher's own
    kind the weights begin as the teacher's, those of a narrower one as some of them
    (armlet/layers/narrowing.py)."""

    student: Student
    """What chooses the layers."""
    steps: int | None = 1
    """Denoising steps; none: as many as the teacher's."""
    shortcut: bool = False
    """A flow head that is told how long its steps are, and learns long ones by shorter ones, for any
    noise (armlet/layers/shortcut.py)."""
    hidden: int | None = None
    """Numbers inside a flow head, a multiple of 32; none: as many as in the teacher's."""
    blocks: int | None = None
    """Blocks of a flow head; none: as many as the teacher's."""
    guidance: float | None = None
    """Of a diffusion head: at 1 its network is asked once a step and not twice; none: the
    teacher's."""
    head: Literal["same", "regression"] = "same"
    """same: the teacher's kind; regression: from nothing, an MLP that names the actions outright."""

    def __post_init__(self) -> None:
        limits.positive(self, "steps", "hidden", "blocks")
        limits.check(self, guidance=(0, limits.MOST))
        if self.hidden is not None and self.hidden % WIDTHS:
            raise ValueError(
                f"hidden is {self.hidden}, expected a multiple of {WIDTHS}, the numbers of an "
                "attention head"
            )
        if self.head == "regression" and (self.steps is not None or self.shortcut):
            raise ValueError(
                "a regression head names the actions outright, and takes no steps: with "
                "`--student.head regression` give `--student.steps None` and no shortcut"
            )
        if not self.student.needs_teacher:
            raise ValueError(
                f"LighterHead around {type(self.student).__name__} has no effect: that takes no head "
                "from its teacher"
            )
        if self.head == "same" and not self.options:
            raise ValueError(
                "LighterHead changes nothing of the head: give it `steps`, `hidden`, `blocks`, "
                "`guidance`, `shortcut` or another kind of head, or take its `student` alone"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Of the head, what is another than the teacher's."""
        named = ("steps", "hidden", "blocks", "guidance")
        found = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        return {**found, "shortcut": True} if self.shortcut else found

    @property
    def own_eyes(self) -> bool:  # type: ignore[override]  # it follows from `student`
        return self.student.own_eyes

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]  # as above
        return self.student.reads

    @property
    def looks_at(self) -> int:
        return self.student.looks_at

    def choose(
        self, teacher: Backbone, sample: Batch, kept: Path | None = None
    ) -> tuple[Student, dict[str, Any]]:
        # By the teacher's own head: an untrained lighter one would answer for no layer.
        chosen, found = self.student.choose(teacher, sample, kept)
        return replace(self, student=chosen), found

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        kind = None if self.head == "same" else self.head
        try:
            lighter = teacher.with_head(kind, self.options)
        except ValueError as error:
            raise ValueError(
                f"{error}. LighterHead is for teachers of ours that denoise, and its teacher is "
                f"{teacher.kind}; for others take a recipe that leaves the head as it is, such as "
                "layer_search"
            ) from error
        if lighter.to_json() == teacher.to_json():
            said = ", ".join(f"{name} {value}" for name, value in self.options.items())
            raise ValueError(
                f"LighterHead changes nothing: the teacher's head has {said} already; ask for less, "
                "or take the recipe's `student` without it"
            )
        return self.student.build(lighter, sample)


def in_steps(policy: Backbone, steps: int) -> Backbone:
    """A copy that decides in so many denoising steps, with the same weights. Raises ValueError where
    it takes none, or no more already: one that was taught to arrive in few has no use for more."""
    if policy.loop is None or policy.loop.what != "denoising step":
        raise ValueError(
            f"{policy.kind} takes no denoising steps; only policies that denoise can take fewer"
        )
    own = policy.loop.times
    if steps >= own:
        raise ValueError(
            f"it decides in {own} denoising steps already, and {steps} were asked for; ask for fewer"
        )
    inner = getattr(policy, "inner", None)
    if isinstance(inner, Backbone):  # a router stands around the network that acts
        described = {**policy.to_json(), "inner": in_steps(inner, steps).to_json()}
        return rebuild_with(described, policy.body.tokenizer, policy.state_dict())
    description = policy.to_json()
    if description["network"].get("steps") != own:
        return policy.with_head(None, {"steps": steps})
    # Of π0, π0.5 and SmolVLA it is a setting of the whole network.
    description["network"]["steps"] = steps
    return rebuild_with(description, policy.body.tokenizer, policy.state_dict())


def looking_after(policy: Backbone, execute: int) -> Backbone:
    """A copy that carries out `execute` actions of a chunk before it looks again. Raises ValueError
    where a chunk has fewer, it does so already, or its description does not say how many."""
    if execute > policy.chunk:
        raise ValueError(
            f"execute is {execute}, and the policy decides {policy.chunk} actions at a time; ask for "
            "no more than these"
        )
    if execute == policy.execute:
        raise ValueError(f"it looks again after {execute} actions already; ask for another number")
    description = policy.to_json()
    innermost = description
    while "inner" in innermost:  # a router stands around the network that acts
        innermost = innermost["inner"]
    if "execute" not in innermost.get("network", {}):
        raise ValueError(
            f"a checkpoint of {policy.kind} keeps no `execute`; say it where the policy is run "
            "(`--evaluation.execute`) or in its policy.toml"
        )
    innermost["network"]["execute"] = execute
    return rebuild_with(description, policy.body.tokenizer, policy.state_dict())
