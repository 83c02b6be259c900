"""The student's own running average as its teacher, asked as stored traces are. Knows learners and
batches; no objective."""

from typing import cast

from torch import Tensor, nn

from armlet.data.corpus import Corpus
from armlet.data.frames import BatchMaker
from armlet.layers.ema import SelfTeacher
from armlet.policies.contract import Backbone
from armlet.training.learner import Learner, watch
from armlet.types import Trace


class SelfAnswers(nn.Module):
    """What the student's own running average answers, for `Stage(teacher=OwnAverage())`: asked once
    a step, it first takes a step towards the student. It sees frames as they are, where the
    student's are brighter or darker."""

    def __init__(
        self, teacher: SelfTeacher, batches: BatchMaker | Corpus, needs: frozenset[str]
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.needs = needs
        # In tuples, so that torch does not count them among this module's parts: the state that is
        # saved would hold the teacher's weights twice.
        self._batches = (batches,)
        self._watched = (Learner(cast(Backbone, teacher.module)).eval(),)

    def forward(self, keys: Tensor) -> Trace:
        self.teacher.update()
        (batches,) = self._batches
        (watched,) = self._watched
        found = keys.cpu().numpy()  # (b, 2): episode, frame in it
        # The same frames read again, ahead of the transforms that the student's batch went through.
        rows = batches.frames.starts[found[:, 0]] + found[:, 1]
        return watch(watched, batches.batch(rows), self.needs)
