"""What policies answer at rows of a data set, as if a robot stood there: each is shown the pictures,
the state and the previous action of that row.

Policies answer through `prepare`, as on a robot; pictures are read as for training, so what was
decoded for that is used. Answers may be kept, under everything they were made from. Knows no world,
and not what would have been right.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from armlet import source
from armlet.data.bounded import read_arrays
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import atomic_file
from armlet.data.pictures import Pictures, Rows, open_pictures
from armlet.evaluation.action_errors import Recording, moments_at
from armlet.lineage import short
from armlet.policies.contract import Backbone, Policy
from armlet.progress import Progress
from armlet.robot.fit import View
from armlet.robot.observation import Observation, history_of
from armlet.rollout.changes import NO_WORDS, OF_WORDS, Change, changed, shuffled

AT_ONCE = 32  # frames that a network is asked about in one pass


@dataclass(frozen=True)
class Answers:
    """What one policy says at n moments."""

    actions: np.ndarray  # (n, k, a) in the robot's units, not normalised
    gates: np.ndarray  # (n, l) how much of each layer ran


class Asker:
    """A data set from which policies are asked, as if a robot stood at one of its rows."""

    def __init__(
        self, data: EpisodeDataset, recording: Recording, state: np.ndarray, pictures: Pictures
    ) -> None:
        self.data = data
        self.recording = recording
        self.state = state  # (N, s)
        self.pictures = pictures
        # By the repr of a view, which holds a dict and so cannot be a key itself.
        self._views: dict[str, dict[str, Rows]] = {}

    def pictures_as(self, view: View) -> dict[str, Rows]:
        """The data set's pictures as a policy sees them; opened once for policies that see alike."""
        if repr(view) not in self._views:
            self._views[repr(view)] = open_pictures(self.data, view, self.pictures)
        return self._views[repr(view)]

    def observations(
        self, rows: np.ndarray, images: Mapping[str, Rows], history: int = 1
    ) -> list[Observation]:
        """What a robot knows at each of `rows` (n,), and has seen before where `history` is more
        than 1."""
        if history > 1:
            return self._with_past(rows, images, history)
        # Camera → (n, h, w, 3): one read a camera, and not one a row.
        seen = {name: pictures[rows] for name, pictures in images.items()}
        # Chunks of one step: only what had been done before is used.
        moments = moments_at(self.recording, rows, 1)
        found = []
        for place, row in enumerate(rows):
            found.append(
                Observation(
                    images=_at(seen, place),
                    state=self.state[row],
                    instruction=self.data.tasks[self.data.asked[row]],
                    previous_action=moments.previous[place].astype(np.float32),
                )
            )
        return found

    def _with_past(
        self, rows: np.ndarray, images: Mapping[str, Rows], history: int
    ) -> list[Observation]:
        wanted = self._looked_at(rows, history)
        once = dict(zip(wanted.tolist(), self.observations(wanted, images), strict=True))
        begins = self.recording.begins[rows]
        found = []
        for row, begin in zip(rows.tolist(), begins.tolist(), strict=True):
            # Nothing is known of what was before a beginning, or in a gap.
            before = range(max(row - history + 1, begin), row)
            past = tuple(once[each] for each in before)
            found.append(replace(once[row], past=past))
        return found

    def _looked_at(self, rows: np.ndarray, history: int) -> np.ndarray:
        """`rows` (n,) and those before that a policy of this history looks at, each once, in
        order."""
        before = rows[:, None] + np.arange(1 - history, 1)  # (n, o)
        return np.unique(np.maximum(before, self.recording.begins[rows][:, None]))

    def raw(self, rows: np.ndarray, history: int = 1) -> list[Observation]:
        """The same with pictures in the data set's own size, as a camera gives them."""
        wanted = self._looked_at(rows, history) if history > 1 else rows
        images: dict[str, _Picked] = {}
        for camera in self.data.cameras:
            # Decoded for these rows alone: nothing of this size is kept for training.
            pictures = self.data.pictures_of(camera, wanted)
            images[camera] = _Picked(dict(zip(wanted.tolist(), pictures, strict=True)))
        return self.observations(rows, images, history)

    def said_instead(self, change: Change, row: int) -> str | None:
        """What a policy is told at a row under a change of words; None where there is nothing else
        to say."""
        text = self.data.tasks[self.data.asked[row]]
        if change.what == "shuffled":
            return shuffled(text, row)
        if change.what == "empty":
            return None if text == NO_WORDS else NO_WORDS
        if change.what == "other_task":
            others = [other for other in self.data.tasks if other != text]
            return others[row % len(others)] if others else None
        return None  # recorded episodes do not say what else was there

    def changed(
        self,
        change: Change,
        rows: np.ndarray,
        seen: Sequence[Observation],
        images: Mapping[str, Rows],
    ) -> list[Observation]:
        """What is seen at `rows` (n,), with one input changed; a camera is frozen at the first
        picture of the episode."""
        starts = self.recording.starts
        first = starts[np.searchsorted(starts, rows, side="right") - 1]  # (n,)
        found = []
        for place, observation in enumerate(seen):
            picture = None
            if change.what == "frozen":
                picture = images[change.camera or ""][first[place : place + 1]][0]
            text = None
            if change.what in OF_WORDS:
                text = self.said_instead(change, int(rows[place]))
            found.append(changed(observation, change, text=text, picture=picture))
        return found

    def ask(
        self, policy: Policy, rows: np.ndarray, title: str, change: Change | None = None
    ) -> Answers:
        """What a policy says at each of `rows` (n,). Raises ValueError where that is NaN."""
        images = self.pictures_as(policy.robot.observation.view)
        progress = Progress(title, total=len(rows), unit="frame")
        actions = []
        gates = []
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            seen = self.observations(some, images, history_of(policy))
            if change is not None:
                seen = self.changed(change, some, seen, images)
            chunks, ran = decide_together(policy, seen)
            bad = np.flatnonzero(~np.isfinite(chunks).all((1, 2)))
            if len(bad):
                raise ValueError(
                    f"{title}: the policy answers NaN or infinite actions at row {some[bad[0]]} "
                    f"of {self.data.root}; was its training unstable? Nothing can be said of it"
                )
            actions.append(chunks)
            gates.append(ran)
            progress.advance(len(some))
        progress.close()
        return Answers(np.concatenate(actions), np.concatenate(gates))


def _at(images: Mapping[str, np.ndarray], place: int) -> dict[str, np.ndarray]:
    """One of n pictures a camera: (n, h, w, 3) → (h, w, 3)."""
    found = {}
    for name, pictures in images.items():
        found[name] = pictures[place]
    return found


class _Picked:
    """Pictures held in memory, looked up by their row in the data set: what `Rows` asks for."""

    def __init__(self, pictures: dict[int, np.ndarray]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, rows: np.ndarray | slice | int, /) -> np.ndarray:
        numbers = np.asarray(rows).tolist()
        return np.stack(list(map(self._pictures.__getitem__, numbers)))


@torch.inference_mode()
def decide_together(
    policy: Policy, observations: Sequence[Observation]
) -> tuple[np.ndarray, np.ndarray]:
    """`Policy.decide` of several observations: actions (b, k, a) in the robot's units, and gates
    (b, l). A network is asked about all in one pass; others as they like it, as if an episode began
    with each."""
    if not isinstance(policy, Backbone):
        chunks = []
        gates = []
        # Whoever acts may be asked, also what has no more than `decide`.
        together = isinstance(policy, Policy)
        decided = policy.decide_all(observations) if together else map(policy.decide, observations)
        for decision in decided:
            chunks.append(decision.actions)
            gates.append(decision.gates)
        return np.stack(chunks), np.array(gates, np.float32)
    # What `decide` does for one observation, step by step, for b of them.
    batch = policy.prepare(observations)
    run_through = policy.run_layers(policy.embed(batch), batch)
    actions = policy.decode(run_through, batch).float().cpu().numpy()
    # NaN is looked for by the caller, who knows the row; denormalising keeps it.
    states = np.stack([policy.inputs.state_of(seen) for seen in observations])  # (n, s)
    return policy.denormalise(actions, states), run_through.gates.float().cpu().numpy()


def answers_of(
    asked: Asker,
    policy: Policy,
    rows: np.ndarray,
    fingerprint: str | None,
    folder: Path | None,
    title: str,
    *,
    change: Change | None = None,
) -> Answers:
    """The answers that stand in `folder` under everything they were made from, or new ones.
    `change`: of one input of what is shown."""
    if folder is None or fingerprint is None:
        return asked.ask(policy, rows, title, change)
    question = {
        "policy": fingerprint,
        "data": asked.data.fingerprint,
        "columns": asdict(asked.data.roles),
        "rows": rows.tolist(),
        # Other code, another torch or another device may round otherwise.
        "armlet": source.identity(),
        "torch": torch.__version__,
        "device": str(policy.device) if isinstance(policy, torch.nn.Module) else None,
    }
    if change is not None:
        question["change"] = asdict(change)
    path = folder / f"{short(question)}.npz"
    if path.is_file():
        kept = read_arrays(path, fix="delete it to ask again")
        # The name holds a short digest only, which two questions might share.
        if str(kept["question"]) == json.dumps(question, sort_keys=True):
            return Answers(kept["actions"], kept["gates"])
    answers = asked.ask(policy, rows, title, change)
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(
            file,
            question=json.dumps(question, sort_keys=True),
            actions=answers.actions,
            gates=answers.gates,
        )
    return answers
