"""Distances between traces: pure functions of tensors, for objectives, which weigh them, and for
`evaluate`.

They return one number a sample, `(b,)`, or one a sample and layer, `(b, l)`; who calls them takes
the mean. They are computed in float32 at least, whatever precision comes in. This file knows no
network, no recipe and no weight.

Names and equations of ActDistill (arXiv 2511.18082) where nothing else is said. Functions named
`published_…` are that paper's public code as it is, kept so that numbers can be compared; what is
wrong with each is in its docstring. The last part is that of `aed` (recipes.md §2): distributions
over actions, attention maps, token grids, and pictures beside words.

Beside the axes of `types`: `m`, `u`, `e` a teacher's tokens, words and width, where they are
refused or brought to the student's; `c` channels of whatever kind; `v` entries of an action
vocabulary (bins of a dimension, words of a codebook).
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Steps = Literal["chunk", "current", "last"]
# The sides, in tokens, of the square grids of all cameras, in the order of their tokens.
Grids = Sequence[int]

# A share of attention below this counts as this much, so that no logarithm is infinite.
_RARE = 1e-6


def action_mse(
    student: Float[Tensor, "b k a"],
    target: Float[Tensor, "b k a"],
    valid: Bool[Tensor, "b k"] | None = None,
) -> Float[Tensor, " b"]:
    """Mean squared error over the valid steps of a chunk; 0 for a sample without any."""
    return _over_steps(_difference(student, target, valid).square().mean(dim=-1), valid)


def action_l1(
    student: Float[Tensor, "b k a"],
    target: Float[Tensor, "b k a"],
    valid: Bool[Tensor, "b k"] | None = None,
) -> Float[Tensor, " b"]:
    """Mean absolute error over the valid steps of a chunk; 0 for a sample without any."""
    return _over_steps(_difference(student, target, valid).abs().mean(dim=-1), valid)


def action_cross_entropy(
    logits: Float[Tensor, "b k *a v"],
    target: Int[Tensor, "b k *a"] | Float[Tensor, "b k *a v"],
    valid: Bool[Tensor, "b k"] | None = None,
    weights: Float[Tensor, " a"] | None = None,
) -> Float[Tensor, " b"]:
    """Cross-entropy to action tokens, averaged over the dimensions (if there are any) and the valid
    steps.

    `target` numbers the bin of each action dimension, 0 <= target < bins (256 in OpenVLA), or the
    word for the whole action, or says how likely each of them is; in steps that are not valid it
    may be anything. `weights` make the average over dimensions a weighted one: k sum(w) times it is
    the sum over k and j of w_j CE of VLA-AD (arXiv 2605.16241), whose w is (1, 1, 1, 2, 2, 2, 1).
    """
    if valid is not None:
        # Past the end of an episode stands any number, also one that is no bin: torch would stop.
        target = target.masked_fill(~_beside(valid, target), 0)
    if target.is_floating_point():  # how likely each word is
        flat = target.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    else:  # which word it is
        flat = target.flatten().long()
    entropy = F.cross_entropy(_wide(logits).flatten(0, -2), flat, reduction="none")
    # (b, k, a), or (b, k, 1) where one word stands for the whole action
    entropy = entropy.view(*target.shape[:2], -1)
    if weights is None:
        entropy = entropy.mean(dim=-1)
    else:
        entropy = entropy @ (weights / weights.sum()).to(entropy)
    # Masked here as well: the target is 0 there now, and its entropy is not.
    return _over_steps(entropy if valid is None else entropy.masked_fill(~valid, 0), valid)


def label_cross_entropy(
    logits: Float[Tensor, "b c"], label: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Cross-entropy to what an annotator named, a phase say; 0 where it named nothing (a label
    below 0)."""
    # clamp: cross_entropy takes no -1, and what it gives for it is masked in the next line.
    entropy = F.cross_entropy(_wide(logits), label.clamp(min=0).long(), reduction="none")
    return entropy.masked_fill(label < 0, 0)


def text_cosine(
    embedding: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    label: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, " b"]:
    """1 - cosine to the embedding of a text that says what is meant, a direction say; 0 where
    nothing is (a label below 0).

    The text is a target and has no gradient.
    """
    gap = 1 - _cosine(embedding, text.detach())
    return gap if label is None else gap.masked_fill(label < 0, 0)


def condition_mse(
    student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """Distance of the features that condition the action heads: what the published loss never
    matches."""
    return (_wide(student) - _wide(teacher)).square().mean(dim=-1)


def condition_cosine(
    student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"]
) -> Float[Tensor, " b"]:
    """1 - cosine of the features that condition the action heads, for students whose scale may
    differ."""
    return 1 - _cosine(student, teacher)


def cosine_gap(
    student: Float[Tensor, "b l d"], teacher: Float[Tensor, "b l d"]
) -> Float[Tensor, "b l"]:
    """L_align: 1 - cos(s_l, s_l^T), for each sample and layer."""
    return 1 - _cosine(student, teacher)


def structure_gap(
    student: Float[Tensor, "b l d"], teacher: Float[Tensor, "b l d"]
) -> Float[Tensor, "b l"]:
    """L_struct: how differently a sample lies to the others of its batch, by cosine, in student and
    teacher.

    Row i of the squared difference of the two b x b cosine matrices, averaged; the mean over
    samples is the paper's MSE of the matrices. The diagonal, 1 in both, is left at exactly 0, so a
    batch of one gives 0.
    """
    squared = (_cosine_matrix(student) - _cosine_matrix(teacher)).square()  # (l, b, b)
    # Rounding leaves the diagonals a little off 1, each in its own way: no difference in structure.
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
    return squared.masked_fill(itself, 0).mean(dim=-1).T  # (l, b, b) → (b, l)


def semantic_loss(
    student: Float[Tensor, "b l d"], teacher: Float[Tensor, "b l d"], eta: float = 0.5
) -> Float[Tensor, "b l"]:
    """L_sem = L_align + eta L_struct, for each sample and layer."""
    return cosine_gap(student, teacher) + eta * structure_gap(student, teacher)


def layer_action_loss(
    student: Float[Tensor, "b l p a"],
    teacher: Float[Tensor, "b l p a"],
    expert: Float[Tensor, "b k a"],
    valid: Bool[Tensor, "b k"] | None = None,
    steps: Steps = "chunk",
) -> Float[Tensor, "b l"]:
    """L_act = MSE(a_l, a_gt) + MSE(a_l, a_l^T) + MSE(a_l, stopgrad(a_{l-1})), for each sample and
    layer.

    a_{l-1} is the student's at the layer before in the tensor, a_{-1} = 0. `steps` says which part
    of the chunk counts: all of it, the action to be executed now, or, as published, the last. Heads
    may give the whole chunk (p = k) or just that one action (p = 1). Steps that are not valid count
    in no term.
    """
    student = _wide(take_steps(student, steps))
    teacher = _wide(take_steps(teacher, steps))
    expert = _wide(take_steps(expert, steps))
    if valid is not None:
        valid = take_steps(valid[..., None], steps)[:, None, :, 0]  # (b, k) → (b, 1, p)
    if not student.shape[2] == teacher.shape[2] == expert.shape[1]:
        raise ValueError(
            f"with steps={steps!r} the student's heads give {student.shape[2]} actions, the "
            f"teacher's {teacher.shape[2]} and the expert {expert.shape[1]}: build the heads for "
            "the "
            'whole chunk, or for one action and use steps="current" or "last"'
        )
    # detach is the paper's stopgrad: a layer is drawn to the one before it, never the reverse.
    before = torch.cat([torch.zeros_like(student[:, :1]), student[:, :-1].detach()], dim=1)
    terms = [
        _difference(student, expert[:, None], valid).square(),  # one expert for all layers
        _difference(student, teacher, valid).square(),
        _difference(student, before, valid).square(),
    ]
    return _over_steps(torch.stack(terms).sum(0).mean(dim=-1), valid)


def take_steps(actions: Tensor, steps: Steps) -> Tensor:
    """The steps of a chunk that count: (…, k, a) -> (…, k or 1, a)."""
    if steps == "chunk":
        return actions
    if steps == "current":
        return actions[..., :1, :]
    if steps == "last":
        return actions[..., -1:, :]
    raise ValueError(f"no steps {steps!r}; there are chunk, current, last")


def depth_weights(
    layers: int, gamma: float = 2.0, device: torch.device | None = None
) -> Float[Tensor, " l"]:
    """w_l = (l / (L - 1)) ** gamma, divided by its mean: deeper layers count more. One layer weighs
    1."""
    # (l / (L - 1)) would be 0 / 0.
    if layers == 1:
        return torch.ones(1, device=device)
    weights = torch.linspace(0, 1, layers, device=device) ** gamma
    return weights / weights.mean()


def keep_ratio(gates: Float[Tensor, "b l"], costs: Float[Tensor, " l"]) -> Float[Tensor, " b"]:
    """The share of the backbone's computation that runs; `costs` of the layers in any unit, say
    FLOPs."""
    # A sum of bf16 gates would round the ratio to three digits.
    costs = costs.to(gates.device, torch.promote_types(gates.dtype, torch.float32))
    return (gates * costs).sum(dim=-1) / costs.sum()


def budget_gap(
    gates: Float[Tensor, "b l"],
    costs: Float[Tensor, " l"],
    target: float | Float[Tensor, " b"],
    over: Literal["sample", "batch"] = "sample",
) -> Float[Tensor, " b"]:
    """L_budget = (keep - rho) ** 2 on the FLOPs-weighted keep ratio.

    `target` is rho in 0..1, one for all samples or one for each. `over="sample"` asks it of every
    sample; `over="batch"` of the mean of the batch, so a hard moment may cost more than an easy one
    (every sample then has the same value). With hard gates pass their straight-through form.
    """
    gap = keep_ratio(gates, costs) - target
    if over == "batch":
        gap = gap.mean().expand(len(gates))  # the caller's mean over samples leaves it as it is
    elif over != "sample":
        raise ValueError(f"no over={over!r}; there are sample, batch")
    return gap.square()


def published_balance(soft: Float[Tensor, "b l"]) -> Float[Tensor, ""]:
    """The public code's balance term: the variance over layers of the gates' batch means.

    It asks for equal layers, not for few: all gates 1 and all gates 0 both score 0.
    """
    return _wide(soft).mean(dim=0).var(correction=0)  # (b, l) → (l,) → a number


def published_distillation(
    semantics: tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]],
    layer_actions: tuple[Float[Tensor, "b l p a"], Float[Tensor, "b l p a"]],
    expert: Float[Tensor, "b k a"],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    eta: float = 0.5,
    gamma: float = 2.0,
    steps: Steps = "last",
) -> Float[Tensor, ""]:
    """sum over l of w_l (alpha L_sem + beta L_act), batch means, as the public code has it.

    The pairs are (student, teacher). Its a_gt is the last action of the chunk, 15 steps ahead in
    CogACT, and padded steps count like any other.
    """
    weights = depth_weights(semantics[0].shape[1], gamma, semantics[0].device)
    semantic = semantic_loss(*semantics, eta)
    action = layer_action_loss(*layer_actions, expert, steps=steps)
    return ((alpha * semantic + beta * action).mean(dim=0) * weights).sum()


def action_distribution_kl(
    student: Float[Tensor, "b k *a v"],
    teacher: Float[Tensor, "b k *a v"],
    valid: Bool[Tensor, "b k"] | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " b"]:
    """T² KL(teacher ‖ student) of two distributions over actions, given as logits and softened by T
    (Hinton et al. 2015, arXiv 1503.02531, §2: T² keeps the gradient's size), averaged over the
    dimensions (if there are any) and valid steps."""
    if valid is not None:
        # Ahead of the softmax: past the end of an episode logits may be anything, NaN too, and two
        # equal rows of zeros are at distance 0.
        known = _beside(valid, student)
        student = torch.where(known, student, 0.0)
        teacher = torch.where(known, teacher, 0.0)
    student = F.log_softmax(_wide(student) / temperature, dim=-1)
    teacher = F.log_softmax(_wide(teacher) / temperature, dim=-1)
    gap = (teacher.exp() * (teacher - student)).sum(dim=-1)  # (b, k) or (b, k, a)
    return temperature**2 * _over_steps(gap.view(*gap.shape[:2], -1).mean(dim=-1), valid)


def mixed_action_loss(
    student: Float[Tensor, "b k *a v"],
    teacher: Float[Tensor, "b k *a v"],
    expert: Int[Tensor, "b k *a"],
    valid: Bool[Tensor, "b k"] | None = None,
    *,
    share: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, " b"]:
    """share · T² KL(teacher ‖ student) + (1 − share) · cross-entropy to the expert: 0 hears the
    expert only, 1 the teacher.

    At T = 1 that is the cross-entropy to the mixture of both, up to a constant. The expert's one
    word is not softened.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of the teacher's word lies from 0 to 1; found {share}")
    softened = action_distribution_kl(student, teacher, valid, temperature=temperature)
    return share * softened + (1 - share) * action_cross_entropy(student, expert, valid)


def attention_kl(
    student: Float[Tensor, "b n t"],
    teacher: Float[Tensor, "b m u"],
    words: Bool[Tensor, "b t"] | None = None,
    *,
    student_grids: Grids | None = None,
    teacher_grids: Grids | None = None,
) -> Float[Tensor, " b"]:
    """KL(teacher ‖ student) of what each place of the picture listens to, averaged over the
    student's places.

    Rows are head-averaged attention over the same words, one to one, of which `words` are real;
    padding counts for nothing. It need not be named where it has 0 in both already, as in a
    two-tower's trace. Where the two see the picture in different grids the teacher's is resized to
    the student's; then all rows are made to sum to 1 (again, after half precision and resizing).
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student listens to {student.shape[-1]} words and the teacher to "
            f"{teacher.shape[-1]}; they are compared one to one, so give both the same tokenizer "
            "and the same longest text"
        )
    teacher = resize_grids(_wide(teacher), teacher_grids, student_grids, wanted=student.shape[1])
    theirs = _shares(teacher, words)  # (b, n, t), a distribution over words in each row
    mine = _shares(_wide(student), words)
    # Only the logarithms are clamped: a word that the teacher gives nothing weighs exactly nothing.
    gap = theirs * (theirs.clamp(min=_RARE).log() - mine.clamp(min=_RARE).log())
    return gap.sum(dim=-1).mean(dim=-1)


def representation_mse(
    student: Float[Tensor, "b n d"],
    teacher: Float[Tensor, "b m e"],
    *,
    student_grids: Grids | None = None,
    teacher_grids: Grids | None = None,
) -> Float[Tensor, " b"]:
    """Mean squared error of hidden states, each token's brought to mean 0 and variance 1 (layer
    norm without gain).

    A teacher that sees the picture in another grid is resized to the student's; a student of
    another width is compared through a projection of its own (`projected` in a two-tower student's
    trace).
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student's hidden states are {student.shape[-1]} wide and the teacher's "
            f"{teacher.shape[-1]}; compare the student's `projected`, which is as wide as its "
            "teacher"
        )
    teacher = resize_grids(_wide(teacher), teacher_grids, student_grids, wanted=student.shape[1])
    # Normed, or the few channels that are large in every token would be all that is compared.
    mine = F.layer_norm(_wide(student), student.shape[-1:])
    theirs = F.layer_norm(teacher, teacher.shape[-1:])
    return (mine - theirs).square().mean(dim=(1, 2))


def resize_grids(
    tokens: Float[Tensor, "b m c"], grids: Grids | None, to: Grids | None, *, wanted: int
) -> Float[Tensor, "b n c"]:
    """Tokens on the square grids of some cameras, resized bilinearly to other grids of as many
    cameras: `wanted` tokens.

    Where grids are the same, or not said, the tokens must fit as they are. Raises ValueError where
    they do not.
    """
    if grids is None or to is None or tuple(grids) == tuple(to):
        grids = to = to or grids or ()  # where one says nothing, it is as the other
    _check_places("teacher_grids", grids, tokens.shape[1])
    _check_places("student_grids", to, wanted)
    if len(grids) != len(to):
        raise ValueError(
            f"the teacher sees through {len(grids)} cameras and the student through {len(to)}: "
            f"{grids}, {to}"
        )
    if tuple(grids) == tuple(to):
        if tokens.shape[1] != wanted:
            raise ValueError(
                f"the teacher sees {tokens.shape[1]} places and the student {wanted}; say in which "
                "grids (`teacher_grids`, `student_grids`: the side of each camera's grid) and they "
                "are resized"
            )
        return tokens
    cameras = tokens.split([side**2 for side in grids], dim=1)
    return torch.cat(list(map(_resized, cameras, grids, to)), dim=1)


def _check_places(name: str, grids: Grids, found: int) -> None:
    """Raises ValueError where grids that are said have another number of tokens than was found."""
    places = sum(side**2 for side in grids)
    if grids and places != found:
        raise ValueError(f"{name}={tuple(grids)} have {places} places, and there are {found}")


def _resized(tokens: Tensor, side: int, new: int) -> Tensor:
    """(b, side², c) → (b, new², c)."""
    picture = tokens.transpose(1, 2).unflatten(-1, (side, side))  # (b, c, side, side)
    picture = F.interpolate(picture, (new, new), mode="bilinear", align_corners=False)
    return picture.flatten(2).transpose(1, 2)


def _shares(rows: Tensor, words: Tensor | None) -> Tensor:
    """Rows (b, n, t) over the real words (b, t) alone, each summing to 1."""
    if words is not None:
        rows = rows.masked_fill(~words[:, None], 0)
    # clamp: a row without any attention stays 0 and does not become NaN.
    return rows / rows.sum(dim=-1, keepdim=True).clamp(min=_RARE)


def info_nce(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    same: Bool[Tensor, "b b"],
    temperature: float = 0.07,
) -> Float[Tensor, " b"]:
    """Symmetric InfoNCE between pictures and words of length 1: each finds its own among the
    batch's, in both directions.

    `same` says which samples have the same instruction: all of these are right answers, and their
    log-probabilities are averaged (as in UniCL, arXiv 2204.03610). So the least there can be for a
    sample with p right answers is log p. With one each it is CLIP's loss (arXiv 2103.00020).
    """
    # A picture's own words are a right answer even where `same` does not say so.
    right = (same | torch.eye(len(same), dtype=torch.bool, device=same.device)).to(torch.float32)
    right = right / right.sum(dim=1, keepdim=True)
    similarity = _wide(image) @ _wide(text).T / temperature  # (b, b), rows are pictures
    forth = -(right * F.log_softmax(similarity, dim=1)).sum(dim=1)
    back = -(right * F.log_softmax(similarity.T, dim=1)).sum(dim=1)
    return (forth + back) / 2


def same_instruction(text: Int[Tensor, "b t"]) -> Bool[Tensor, "b b"]:
    """Which samples of a batch were told the same, to the token."""
    return (text[:, None] == text[None]).all(dim=-1)


def _beside(valid: Tensor, x: Tensor) -> Tensor:
    """valid (b, k) with as many axes as x (b, k, …)."""
    return valid.view(*valid.shape, *(1,) * (x.ndim - 2))


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _difference(student: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """student - target, 0 where not valid.

    Masked ahead of any square, so that not even a NaN past the end of an episode reaches the
    gradient.
    """
    difference = _wide(student) - _wide(target)
    if valid is None:
        return difference
    return torch.where(valid[..., None], difference, 0.0)  # not `* valid`: NaN · 0 is NaN


def _over_steps(error: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the last axis, the steps; the invalid ones hold 0 and do not count."""
    if valid is None:
        return error.mean(dim=-1)
    return error.sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    return F.cosine_similarity(_wide(left), _wide(right), dim=-1)


def _cosine_matrix(x: Tensor) -> Tensor:
    """(b, l, d) -> (l, b, b)."""
    unit = F.normalize(_wide(x), dim=-1).transpose(0, 1)  # (l, b, d)
    return unit @ unit.transpose(1, 2)
