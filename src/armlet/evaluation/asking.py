"""What policies say at rows of a data set, as if a robot stood there: each is shown what the robot saw,
felt and had just done.

Policies answer through `prepare`, as on a robot; pictures are read as for training, so what was
decoded for that is used. Answers may be kept, under everything they were made from. Knows no world,
and not what would have been right.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from armlet import source
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import atomic_file
from armlet.data.pictures import Pictures, Rows, open_pictures
from armlet.evaluation.action_errors import Recording, moments_at
from armlet.lineage import short
from armlet.policies.contract import Backbone, Policy
from armlet.progress import Progress
from armlet.robot.fit import View
from armlet.robot.observation import Observation

AT_ONCE = 32  # frames that a network is asked about in one pass


@dataclass(frozen=True)
class Answers:
    """What one policy says at n moments: `actions` (n, k, a) in the robot's units, `gates` (n, l),
    how much of each layer ran."""

    actions: np.ndarray
    gates: np.ndarray


class Asker:
    """A data set from which policies are asked, as if a robot stood at one of its rows."""

    def __init__(
        self, data: EpisodeDataset, recording: Recording, state: np.ndarray, pictures: Pictures
    ) -> None:
        self.data, self.recording, self.state, self.pictures = data, recording, state, pictures
        self._views: dict[str, dict[str, Rows]] = {}

    def pictures_as(self, view: View) -> dict[str, Rows]:
        """The data set's pictures as a policy sees them; opened once for policies that see alike."""
        if repr(view) not in self._views:
            self._views[repr(view)] = open_pictures(self.data, view, self.pictures)
        return self._views[repr(view)]

    def observations(self, rows: np.ndarray, images: Mapping[str, Rows]) -> list[Observation]:
        """What a robot knows at each of `rows` (n,)."""
        seen = {name: pictures[rows] for name, pictures in images.items()}
        moments = moments_at(self.recording, rows, 1)
        found = []
        for place, row in enumerate(rows):
            found.append(
                Observation(
                    images={name: pictures[place] for name, pictures in seen.items()},
                    state=self.state[row],
                    instruction=self.data.tasks[self.data.asked[row]],
                    previous_action=moments.previous[place].astype(np.float32),
                )
            )
        return found

    def raw(self, rows: np.ndarray) -> list[Observation]:
        """The same with pictures in the data set's own size, as a camera gives them."""
        images = {}
        for camera in self.data.cameras:
            # By place, for `observations` asks for all of them in their order.
            images[camera] = dict(
                zip(rows.tolist(), self.data.pictures_of(camera, rows), strict=True)
            )
        stacked = {name: _Picked(pictures) for name, pictures in images.items()}
        return self.observations(rows, stacked)

    def ask(self, policy: Policy, rows: np.ndarray, title: str) -> Answers:
        """What a policy says at each of `rows` (n,). Raises ValueError where that is NaN."""
        images = self.pictures_as(policy.robot.observation.view)
        progress = Progress(title, total=len(rows), unit="frame")
        actions = []
        gates = []
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            chunks, ran = decide_together(policy, self.observations(some, images))
            bad = np.flatnonzero(~np.isfinite(chunks).all((1, 2)))
            if len(bad):
                raise ValueError(
                    f"{title}: the policy answers NaN or infinite actions at row {some[bad[0]]} of {self.data.root}; "
                    "was its training unstable? Nothing can be said of it"
                )
            actions.append(chunks)
            gates.append(ran)
            progress.advance(len(some))
        progress.close()
        return Answers(np.concatenate(actions), np.concatenate(gates))


class _Picked:
    """Pictures that are held, by their row."""

    def __init__(self, pictures: dict[int, np.ndarray]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, rows: np.ndarray | slice | int, /) -> np.ndarray:
        return np.stack([self._pictures[row] for row in np.asarray(rows).tolist()])


@torch.inference_mode()
def decide_together(
    policy: Policy, observations: Sequence[Observation]
) -> tuple[np.ndarray, np.ndarray]:
    """`Policy.decide` of several observations: actions (b, k, a) in the robot's units, and gates
    (b, l). A network is asked about all in one pass; others, which are not ours to batch, about one
    after the other, as if an episode began with each."""
    if not isinstance(policy, Backbone):
        decisions = [policy.decide(observation) for observation in observations]
        ran = np.array([decision.gates for decision in decisions], np.float32)
        return np.stack([decision.actions for decision in decisions]), ran
    batch = policy.prepare(observations)
    run_through = policy.run_layers(policy.embed(batch), batch)
    actions = policy.decode(run_through, batch).float().cpu().numpy()
    # NaN is looked for by the caller, who knows the row; denormalising keeps it.
    return policy.denormalise(actions), run_through.gates.float().cpu().numpy()


def answers_of(
    asked: Asker,
    policy: Policy,
    rows: np.ndarray,
    fingerprint: str | None,
    folder: Path | None,
    title: str,
) -> Answers:
    """The answers that stand in `folder` under everything they were made from, or new ones."""
    if folder is None or fingerprint is None:
        return asked.ask(policy, rows, title)
    question = {
        "policy": fingerprint,
        "data": asked.data.fingerprint,
        "columns": asdict(asked.data.roles),
        "rows": rows.tolist(),
        "armlet": source.identity(),
        "torch": torch.__version__,
        "device": str(policy.device) if isinstance(policy, torch.nn.Module) else None,
    }
    path = folder / f"{short(question)}.npz"
    if path.is_file():
        with np.load(path) as file:
            if str(file["question"]) == json.dumps(question, sort_keys=True):
                return Answers(file["actions"], file["gates"])
    answers = asked.ask(policy, rows, title)
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(
            file,
            question=json.dumps(question, sort_keys=True),
            actions=answers.actions,
            gates=answers.gates,
        )
    return answers
