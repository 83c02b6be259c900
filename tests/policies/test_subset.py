"""Students cut to fit the data, or made afresh."""

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy

from armlet.policies.students import FirstK, Fresh, LayerDrop, influence
from armlet.training.trainer import make_batches


def test_layers_that_do_little_are_dropped() -> None:
    teacher = make_policy(depth=6)
    batch = make_batches(teacher, make_frames()).batch(np.arange(20))
    with torch.no_grad():
        for index, size in (
            (1, 0.0),
            (4, 0.0),
            (2, 3.0),
        ):  # two layers that do nothing, and one that does much
            for parameter in (
                teacher.layers[index].self_attn.o_proj.weight,
                teacher.layers[index].mlp.down_proj.weight,
            ):
                parameter.mul_(size)
    found = influence(teacher, batch)
    assert found[[1, 4]].abs().max() < 1e-6 and found.argmax() == 2
    student = LayerDrop(4).build(teacher, batch)
    assert student.kept_layers == (0, 2, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(student(batch), teacher(batch))
    with pytest.raises(ValueError, match="sample batch"):
        LayerDrop(4).build(teacher)
    with pytest.raises(ValueError, match="99 layers are to be kept, and the teacher has"):
        LayerDrop(99).build(teacher, batch)


@torch.no_grad()
def test_influence_is_how_far_a_layer_turns_the_real_tokens_it_is_given() -> None:
    teacher = make_policy()
    batch = make_batches(teacher, make_frames()).batch(np.arange(20))
    tokens = teacher.embed(batch)
    assert not tokens.mask.all()
    state, expected = tokens, []
    for index in range(4):
        hidden = state.hidden
        state = teacher.run_layer(index, state)
        after = state.hidden
        turned = [
            1 - float(torch.cosine_similarity(a, b, dim=0))
            for a, b in zip(hidden[tokens.mask], after[tokens.mask], strict=True)
        ]
        expected.append(np.mean(turned))
    np.testing.assert_allclose(influence(teacher, batch), expected, rtol=1e-4)


def test_a_fresh_student_has_the_same_shape_and_other_weights() -> None:
    teacher = make_policy(depth=6)
    cut, fresh = FirstK(2).build(teacher), Fresh(FirstK(2)).build(teacher)
    assert {name: tensor.shape for name, tensor in cut.state_dict().items()} == {
        name: tensor.shape for name, tensor in fresh.state_dict().items()
    }
    assert not torch.equal(cut.layers[0].mlp.down_proj.weight, fresh.layers[0].mlp.down_proj.weight)
    assert np.array_equal(fresh.body.state.offset, cut.body.state.offset)
