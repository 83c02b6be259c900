"""What a model that sees everything and errs nowhere would say: the thing that is meant, and which
way it moves, from what the simulator knew.

It stands in a vision–language model's place where no server is to be had: what words with things
and directions in them are worth to a student, at most. It reads where the thing meant was
(`privileged.subject`, metres) and which thing that is, from the instruction by the wordings that its
benchmark speaks in. The other annotators see no simulator. Knows no benchmark: a recipe says the
wordings.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from armlet.annotators import PHASES, Annotator, LabelError, Labels, element_name, stretches
from armlet.annotators.phase_rules import PhaseRules
from armlet.data.episodes import EpisodeFrames

SUBJECT = "privileged.subject"
OBJECT = "object"  # of a wording, in braces: the thing that is meant


@dataclass(frozen=True)
class SimulatorWords(Annotator):
    """Phases by rule, the thing that is meant in every frame, and the direction in which it moves in
    each stretch of a phase; `none` where it stays within `still` metres."""

    wordings: tuple[tuple[str, str], ...] = ()
    """(task, wording): `open` and `pull out the {object}`; every wording that the episodes may
    have."""
    things: tuple[tuple[str, str], ...] = field(default=(), metadata={"quiet": True})
    """(task, thing): of tasks that are always about the same thing, in the place of wordings."""
    rules: PhaseRules = field(default_factory=PhaseRules)
    """For the phases; what it calls moving along an axis is what directions are called."""
    everywhere: bool = True
    """False: about operating alone, as a model is asked."""
    still: float = 0.01
    """A thing that is moved less than this, in metres, has no direction."""

    def fingerprint(self) -> dict[str, Any]:
        found = {
            "rules": self.rules.fingerprint(),
            "wordings": [list(each) for each in self.wordings],
            "everywhere": self.everywhere,
            "still": self.still,
        }
        # Left out where nothing is said, so that labels of before there was a choice stay good.
        return found | ({"things": [list(each) for each in self.things]} if self.things else {})

    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        """Raises LabelError where the episode does not say where the thing was, or in which of the
        wordings it was told of it."""
        places = episode.extra.get(SUBJECT)
        if places is None:
            raise LabelError(
                f"the episode has no {SUBJECT}, where the thing meant was; it has "
                f"{', '.join(sorted(episode.extra)) or 'nothing'}: only a simulator's episodes do; "
                "take another annotator"
            )
        phases = [PHASES[number] for number in self.rules.annotate(episode, fps).phase]
        elements = [""] * len(phases)
        directions = ["none"] * len(phases)
        moments = [(phase, episode.told(frame)) for frame, phase in enumerate(phases)]
        for start, stop in stretches(moments):
            phase, told = moments[start]
            if not self.everywhere and phase != "operating":
                continue
            span = slice(start, stop)
            elements[span] = [self.element(str(episode.info.get("task", "")), told)] * (
                stop - start
            )
            # With the frame behind the stretch, in which its last step has been made.
            way = self._direction(places[start : stop + 1])
            directions[span] = [way] * (stop - start)
        return Labels.named(phases, directions, elements)

    def element(self, task: str, told: str) -> str:
        """The thing that an instruction of a task means."""
        things = dict(self.things)
        if task in things:
            return element_name(things[task])
        known = [wording for name, wording in self.wordings if name == task]
        for wording in known:
            # What stands in braces may be any words; the rest must be there as it is.
            parts = re.split(r"\{(\w+)\}", wording)
            pattern = ""
            for index, part in enumerate(parts):
                pattern += f"(?P<{part}>.+)" if index % 2 else re.escape(part)
            found = re.fullmatch(pattern, told)
            if found:
                return element_name(found[OBJECT])
        raise LabelError(
            f"{told!r} is in none of the {len(known)} wordings of the task {task!r}; give "
            "`wordings` those that the episodes were told in"
        )

    def _direction(self, places: np.ndarray) -> str:
        """What the way of a thing through `places` (T, 3) is called."""
        way = places[-1].astype(np.float64) - places[0]
        axis = int(np.abs(way).argmax())
        if abs(way[axis]) < self.still:
            return "none"
        return self.rules.embodiment.axes[2 * axis + int(way[axis] < 0)]
