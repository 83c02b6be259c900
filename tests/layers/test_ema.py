"""A student's running average, against its closed form."""

import pytest
import torch
from torch import nn

from armlet.layers.ema import SelfTeacher


def network(width: int = 4, *, layers: int = 2) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)), nn.BatchNorm1d(width))


def test_the_average_has_its_closed_form() -> None:
    """With a student at x_1, x_2, … it is d^n x_0 + (1 − d) Σ d^(n − i) x_i."""
    student, decay = network(), 0.9
    teacher = SelfTeacher(student, decay=decay)
    seen = [student[0].weight.detach().clone()]
    for _ in range(7):
        with torch.no_grad():
            student[0].weight.add_(torch.randn(4, 4))
        seen.append(student[0].weight.detach().clone())
        teacher.update()
    wanted = decay**7 * seen[0] + (1 - decay) * sum(decay ** (7 - i) * seen[i] for i in range(1, 8))
    torch.testing.assert_close(teacher.module[0].weight, wanted)
    assert torch.equal(teacher.module[1].weight, student[1].weight), (
        "what did not move is where it was, to the bit"
    )


def test_it_takes_no_part_in_training() -> None:
    student = network()
    teacher = SelfTeacher(student).train()
    assert not teacher.module.training and not any(p.requires_grad for p in teacher.parameters())
    assert {name.partition(".")[0] for name in teacher.state_dict()} == {"module"}, (
        "the student is not a part of it"
    )
    student(torch.randn(8, 4))  # moves the statistics of the batch norm
    assert not torch.equal(teacher.module[2].running_mean, student[2].running_mean)
    teacher.update()
    assert torch.equal(teacher.module[2].running_mean, student[2].running_mean)


def test_it_may_begin_elsewhere_and_resumes() -> None:
    student, other = network(), network()
    teacher = SelfTeacher(student, decay=0.5, start=other)
    teacher.update()
    torch.testing.assert_close(teacher.module[0].weight, (student[0].weight + other[0].weight) / 2)
    again = SelfTeacher(student, decay=0.5)
    again.load_state_dict(teacher.state_dict())
    assert torch.equal(again.module[0].weight, teacher.module[0].weight)


def test_another_network_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"0\.weight is \(6, 6\) in the teacher and \(4, 4\) in the student"
    ):
        SelfTeacher(network(), start=network(6))
    with pytest.raises(
        ValueError, match=r"2\.weight is \(4, 4\) in the teacher and \(4,\) in the student"
    ):
        SelfTeacher(network(), start=network(layers=3))
    with pytest.raises(ValueError, match=r"same network: 1\.weight is absent in the teacher"):
        SelfTeacher(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), start=nn.Sequential(nn.Linear(4, 4))
        )
    with pytest.raises(ValueError, match="decay lies from 0"):
        SelfTeacher(network(), decay=1.0)
