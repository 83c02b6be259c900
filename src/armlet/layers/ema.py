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
        self.decay, self._student = decay, (student,)  # in a tuple: not a part of this module
        self.module = copy.deepcopy(start or student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SelfTeacher":
        """A teacher answers the same each time, whatever its student is doing."""
        return super().train(False)

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the student as it is now. What is no parameter (statistics, constants)
        is copied."""
        (student,) = self._student
        theirs = dict(student.named_parameters())
        for name, mine in self.module.named_parameters():
            mine.lerp_(theirs[name], 1 - self.decay)
        buffers = dict(student.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])


def require_equal_shapes(teacher: nn.Module, student: nn.Module) -> None:
    """Raises ValueError naming the first parameter, in the student's order, that the two do not
    share, and both shapes."""
    theirs, mine = dict(teacher.named_parameters()), dict(student.named_parameters())
    for name in [*mine, *theirs]:
        found = [tuple(part[name].shape) if name in part else "absent" for part in (theirs, mine)]
        if found[0] != found[1]:
            raise ValueError(
                f"a teacher that averages its student must be the same network: {name} is {found[0]} in the teacher and "
                f"{found[1]} in the student; give both the same sizes, or use a frozen teacher"
            )
