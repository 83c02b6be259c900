"""A teacher that is the student's own running average. It knows modules; it knows no policy, no
loss and no training loop.

The `ema_self` teacher of `aed` (recipes.md §2), as in Mean Teacher (Tarvainen & Valpola 2017, arXiv
1703.01780).
"""

import copy

import torch
from torch import nn


class SelfTeacher(nn.Module):
    """Follows `student` at a distance: after each of its steps `update` moves every parameter by a
    share 1 − decay towards it.

    `module` is what answers: in eval mode whatever `train` is asked for, without gradients, and in
    `state_dict`, so that a run resumes where it was. It begins as a copy of `start`, or of the
    student where none is given. The student itself is referred to and not owned. Raises ValueError
    where `start` is not the same network, naming the first parameter that differs.
    """

    def __init__(
        self, student: nn.Module, *, decay: float = 0.995, start: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay lies from 0, follow at once, to 1, never, which is excluded; found {decay}"
            )
        if start is not None:
            require_equal_shapes(start, student)
        self.decay = decay
        self._student = (student,)  # in a tuple, so that torch does not count it as a part of this
        self.module = copy.deepcopy(start or student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SelfTeacher":
        """A teacher answers the same each time, whatever its student is doing."""
        return super().train(False)  # what holds it calls train() on all of its parts

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the student as it is now. What is no parameter (statistics, constants)
        is copied."""
        (student,) = self._student
        theirs = dict(student.named_parameters())
        for name, mine in self.module.named_parameters():
            mine.lerp_(theirs[name], 1 - self.decay)  # decay · mine + (1 − decay) · theirs
        # An average of counts, or of a table of constants, would mean nothing.
        buffers = dict(student.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])


def require_equal_shapes(teacher: nn.Module, student: nn.Module) -> None:
    """Raises ValueError naming the first parameter, in the student's order, that the two do not
    share, and both shapes."""
    theirs = dict(teacher.named_parameters())
    mine = dict(student.named_parameters())
    for name in [*mine, *theirs]:  # those of both come twice, which does no harm
        of_teacher = _shape(theirs, name)
        of_student = _shape(mine, name)
        if of_teacher != of_student:
            raise ValueError(
                f"a teacher that averages its student must be the same network: {name} is "
                f"{of_teacher} in the teacher and {of_student} in the student; give both the same "
                "sizes, or use a frozen teacher"
            )


def _shape(parameters: dict[str, nn.Parameter], name: str) -> tuple[int, ...] | str:
    return tuple(parameters[name].shape) if name in parameters else "absent"
