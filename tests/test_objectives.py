"""What every recipe minimises: each term reads what it says and nothing else, weighs what it says,
and hears no padding.

The terms are those of tests/test_losses.py; here it is asked what an objective makes of them. Every
objective of every recipe is asked, with its own weights.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from armlet import recipes
from armlet.annotators import DIRECTIONS
from armlet.data.codec import Bins
from armlet.data.transforms import DrawBudget, Explore
from armlet.policies.routed import Routing
from armlet.recipe import Objective, Recipe
from armlet.recipes.actdistill import ActDistill, Budgeted, Published
from armlet.recipes.aed import Aed
from armlet.recipes.bases import LAST, FitHeads, Imitate, MatchOutput
from armlet.recipes.flagship import MatchEndpoint
from armlet.recipes.vita_vla import Align, Finetune
from armlet.recipes.vla_ad import VlaAd
from armlet.training import losses
from armlet.types import Batch, Trace

SAMPLES, CHUNK, DIMS, LAYERS, WIDTH, BINS, WORDS = 17, 3, 4, 5, 8, 16, 6
RECIPES = [recipes.find(name)() for name in recipes.available()]


def all_objectives() -> dict[str, Objective]:
    """Those of all recipes, once each, under the name of the first recipe that has it."""
    found: dict[Objective, str] = {}
    for recipe in RECIPES:
        stages = [
            *recipe.all_stages,
            *([recipe.teach] if recipe.teach else []),
            *([recipe.probe.stage] if recipe.probe else []),
        ]
        for stage in stages:
            found.setdefault(
                stage.objective, f"{recipe.name}-{type(stage.objective).__name__}-{len(found)}"
            )
    return {name: objective for objective, name in found.items()}


OBJECTIVES = all_objectives()
each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@dataclasses.dataclass
class World:
    """What an objective may read: a student's trace, its teacher's, and the batch."""

    student: Trace
    teacher: Trace
    batch: Batch

    def terms(self, objective: Objective) -> dict[str, Tensor]:
        layers = {"semantics", "layer_actions"}
        own = {
            name: x[:: objective.every] if name in layers else x for name, x in self.student.items()
        }
        student = {name: own[name] for name in objective.wants}
        teacher = {name: self.teacher[name] for name in objective.needs}
        return objective(student, teacher, self.batch)


def world(objective: Objective, seed: int = 0) -> World:
    """Random numbers of the shapes that `types` says; some steps lie past their episode's end."""
    g = torch.Generator().manual_seed(seed)
    grids = objective.grids if isinstance(objective, Aed) else ()
    places = sum(side**2 for side in grids) or 4  # no grids: both see the same places
    seen = iter((places, places))
    if isinstance(objective, Aed) and objective.teacher_grids:
        seen = iter((places, sum(side**2 for side in objective.teacher_grids)))
    logits = (SAMPLES, CHUNK, 24) if isinstance(objective, Aed) else (SAMPLES, CHUNK, DIMS, BINS)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def trace() -> Trace:
        places = next(seen)  # the student's first
        deep = {}
        for layer in objective.layers if isinstance(objective, Aed) else ():
            deep[f"attention.{layer}"] = normal(SAMPLES, places, WORDS).softmax(-1)
            deep[f"fused.{layer}"] = normal(SAMPLES, places, WIDTH)
            deep[f"projected.{layer}"] = normal(SAMPLES, places, WIDTH)
        return {
            "actions": normal(SAMPLES, CHUNK, DIMS).tanh(),
            "condition": normal(SAMPLES, WIDTH),
            "semantics": normal(SAMPLES, LAYERS, WIDTH),
            "layer_actions": normal(SAMPLES, LAYERS, CHUNK, DIMS),
            "gates": torch.rand(SAMPLES, LAYERS, generator=g, dtype=torch.float64),
            "soft_gates": torch.rand(SAMPLES, LAYERS, generator=g, dtype=torch.float64),
            "imitation": normal(SAMPLES).abs(),
            "logits": normal(*logits),
            "logits.told": normal(*logits),
            LAST: normal(SAMPLES, places, WORDS).softmax(-1),
            "fused": normal(SAMPLES, places, WIDTH),
            "projected": normal(SAMPLES, places, WIDTH),
            **deep,
            "image": torch.nn.functional.normalize(normal(SAMPLES, WIDTH), dim=-1),
            "text": torch.nn.functional.normalize(normal(SAMPLES, WIDTH), dim=-1),
            "phase": normal(SAMPLES, 9),
            "direction": normal(SAMPLES, WIDTH),
            "direction.text": normal(SAMPLES, WIDTH),
            **{
                f"{how}.{fact}": normal(SAMPLES, 3)
                for how in ("privileged", "pointed")
                for fact in ("subject", "target")
            },
        }

    student, teacher = trace(), trace()
    student["costs"] = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    student["imitation.velocity"] = torch.linspace(0.1, 1, SAMPLES, dtype=torch.float64)
    valid = torch.ones(SAMPLES, CHUNK, dtype=torch.bool)
    valid[::3, 2:], valid[8, 1:] = False, False
    text = torch.randint(1, 4, (SAMPLES, WORDS), generator=g)
    text[1], text[5] = text[0], text[3]
    batch = Batch(
        images={},
        text=text,
        text_mask=torch.ones_like(text, dtype=torch.bool),
        state=normal(SAMPLES, 4),
        previous_action=normal(SAMPLES, DIMS),
        actions=normal(SAMPLES, CHUNK, DIMS).tanh(),
        actions_valid=valid,
        description=torch.ones(SAMPLES, 2, dtype=torch.int64),
        labels={
            "phase": torch.randint(0, 9, (SAMPLES,), generator=g),
            # Some are none, and not those that are none when the order is turned round.
            "direction": torch.tensor([DIRECTIONS.index("none"), *range(1, SAMPLES)])
            % len(DIRECTIONS),
        },
        privileged={"subject": normal(SAMPLES, 3), "target": normal(SAMPLES, 3)},
    )
    return World(student, teacher, batch)


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a term reads: of the student, with a gradient; of the teacher; of the batch."""

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()
    batch: frozenset[str] = frozenset()
    constant: frozenset[str] = frozenset()  # of the student, without a gradient


def reads(student: str = "", teacher: str = "", batch: str = "", constant: str = "") -> Reads:
    return Reads(*(frozenset(names.split()) for names in (student, teacher, batch, constant)))


Said = dict[str, tuple[float, Reads]]


def _output(objective: MatchOutput) -> Said:
    action = reads("actions", "actions", "valid")
    if objective.by == "velocity":  # the learner has read the teacher
        action = reads("imitation.velocity")
    return {
        "imitation": (objective.imitation, reads("imitation")),
        "action": (objective.action, action),
        "condition": (objective.condition, reads("condition", "condition")),
    }


def _actdistill(objective: ActDistill) -> Said:
    return SAID[type(objective.output)](objective.output) | {
        "semantic": (objective.semantic, reads("semantics", "semantics")),
        "layer_action": (
            objective.layer_action,
            reads("layer_actions", "layer_actions", "actions valid"),
        ),
        "budget": (objective.budget, reads("gates", "", "budget", "costs")),
    }


def _published(objective: Published) -> Said:
    return {
        "imitation": (1, reads("imitation")),
        "distillation": (1, reads("semantics layer_actions", "semantics layer_actions", "actions")),
        "balance": (objective.balance, reads("soft_gates")),
        "budget": (objective.budget, reads("gates", "", "budget", "costs")),
    }


def _aed(objective: Aed) -> Said:
    own = "projected" if objective.projected else "fused"
    maps, theirs = LAST, "fused"
    if objective.layers:
        maps, theirs, own = (
            " ".join(f"{name}.{layer}" for layer in objective.layers)
            for name in ("attention", "fused", own)
        )
    return {
        "action": (objective.action * objective.share, reads("logits", "logits", "valid")),
        "imitation": (objective.action * (1 - objective.share), reads("imitation")),
        "attention": (objective.attention, reads(maps, maps)),
        "representation": (objective.representation, reads(own, theirs)),
        "contrastive": (objective.contrastive, reads("image text", "", "text")),
    }


def _vla_ad(objective: VlaAd) -> Said:
    teacher, expert = (
        ("actions", "valid") if objective.target == "teacher" else ("", "actions valid")
    )
    found: Said = {"image": (objective.alpha, reads("logits", teacher, expert))}
    if objective.semantic in ("privileged_text", "both"):
        found["told"] = 1, reads("logits.told", teacher, expert)
    if objective.semantic in ("aux_heads", "both"):
        found["phase"] = objective.phase, reads("phase", "", "phase")
        found["direction"] = (
            objective.direction,
            reads("direction", "", "direction", "direction.text"),
        )
    return found


def _endpoint(objective: MatchEndpoint) -> Said:
    return {
        "expert": (objective.expert, reads("actions", "", "actions valid")),
        "teacher": (objective.teacher, reads("actions", "actions", "valid")),
        "condition": (objective.condition, reads("condition", "condition")),
        "budget": (objective.budget, reads("gates", "", "budget", "costs")),
    }


SAID: dict[type[Objective], Callable[..., Said]] = {
    MatchOutput: _output,
    MatchEndpoint: _endpoint,
    ActDistill: _actdistill,
    Published: _published,
    Aed: _aed,
    VlaAd: _vla_ad,
    Align: lambda objective: {"align": (1, reads("condition", "condition"))},
    Finetune: lambda objective: {"imitation": (1, reads("imitation"))},
    Imitate: lambda objective: {"imitation": (1, reads("imitation"))},
    FitHeads: lambda objective: {"layer_actions": (1, reads("layer_actions", "", "actions valid"))},
}


def said(objective: Objective) -> dict[str, Reads]:
    """Term → what it reads, as the docstrings of the recipes say; a term of weight 0 is not
    there."""
    assert type(objective) in SAID, (
        f"this test does not know {type(objective).__name__}: say in SAID what its terms read"
    )
    found = SAID[type(objective)](objective)
    for fact in getattr(objective, "facts", ()):
        for how in ("privileged", "pointed"):
            found[f"{how}.{fact}"] = (
                getattr(objective, "privileged", 1.0),
                reads(f"{how}.{fact}", "", f"fact.{fact}"),
            )
    return {name: read for name, (weight, read) in found.items() if weight}


@each_objective
def test_each_term_reads_what_it_says_and_nothing_else(objective: Objective) -> None:
    """Every input is changed, one after the other: exactly the terms that read it change."""
    here, expected = world(objective), said(objective)
    before = here.terms(objective)
    assert expected.keys() <= before.keys()
    assert all(float(value) == 0 for name, value in before.items() if name not in expected)

    def changed(other: World) -> set[str]:
        after = other.terms(objective)
        return {name for name in before if not torch.equal(before[name], after[name])}

    another = world(objective, seed=1)
    for name in objective.wants:
        found = changed(
            dataclasses.replace(here, student={**here.student, name: another.student[name] * 1.5})
        )
        if name == "costs":
            found = changed(
                dataclasses.replace(
                    here, student={**here.student, name: here.student[name].flip(0)}
                )
            )
        assert found == {
            term for term, read in expected.items() if name in read.student | read.constant
        }, name
    for name in objective.needs:
        found = changed(
            dataclasses.replace(here, teacher={**here.teacher, name: another.teacher[name]})
        )
        assert found == {term for term, read in expected.items() if name in read.teacher}, name
    batch = here.batch
    others = {
        "actions": {"actions": another.batch.actions},
        "valid": {"actions_valid": torch.ones_like(batch.actions_valid)},
        "text": {"text": batch.text.flip(0)},
        "budget": {"budget": 0.9},
        "phase": {"labels": {**batch.labels, "phase": batch.labels["phase"].flip(0)}},
        "direction": {"labels": {**batch.labels, "direction": batch.labels["direction"].flip(0)}},
        **{
            f"fact.{fact}": {
                "privileged": {**batch.privileged, fact: another.batch.privileged[fact]}
            }
            for fact in batch.privileged
        },
    }
    for name, change in others.items():
        found = changed(dataclasses.replace(here, batch=dataclasses.replace(batch, **change)))
        assert found == {term for term, read in expected.items() if name in read.batch}, name


@each_objective
def test_each_term_pulls_on_its_own_signals_of_the_student_alone(objective: Objective) -> None:
    """A gradient that is not zero on what it reads, none on anything else, and none on what is a
    target."""
    here = world(objective)
    own = {
        name: x.clone().requires_grad_(x.is_floating_point()) for name, x in here.student.items()
    }
    terms = dataclasses.replace(here, student=own).terms(objective)
    for term, read in said(objective).items():
        names = sorted(objective.wants)
        pulls = torch.autograd.grad(
            terms[term], [own[name] for name in names], retain_graph=True, allow_unused=True
        )
        found = {
            name
            for name, pull in zip(names, pulls, strict=True)
            if pull is not None and bool(pull.abs().sum() > 0)
        }
        assert found - {"costs"} == read.student, term


@each_objective
def test_what_lies_past_an_episodes_end_is_not_heard(objective: Objective) -> None:
    if isinstance(objective, Published):
        pytest.skip("the published loss counts padded steps like any other, and says so")
    here = world(objective)
    before, past = here.terms(objective), ~here.batch.actions_valid

    def spoiled(trace: Trace) -> Trace:
        chunks = {name: trace[name].masked_fill(past[..., None], 7) for name in ("actions",)}
        deep = {"layer_actions": trace["layer_actions"].masked_fill(past[:, None, :, None], 7)}
        for name in ("logits", "logits.told"):
            rows = past.view(*past.shape, *(1,) * (trace[name].ndim - 2))
            deep[name] = torch.where(rows, trace[name].flip(-1) * 3, trace[name])
        return {**trace, **chunks, **deep}

    batch = dataclasses.replace(
        here.batch, actions=here.batch.actions.masked_fill(past[..., None], 7)
    )
    after = World(spoiled(here.student), spoiled(here.teacher), batch).terms(objective)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@each_objective
def test_layers_are_compared_with_the_same_samples_layers(objective: Objective) -> None:
    """Where only every n-th sample's layers are read, the teacher's and the expert's of the others
    have no effect."""
    here, another = world(objective), world(objective, seed=1)
    others = torch.arange(SAMPLES) % objective.every != 0
    if objective.every == 1:
        return
    assert others.sum() > SAMPLES / 2

    def mixed(name: str) -> Tensor:
        return torch.where(
            others.view(-1, *(1,) * (here.teacher[name].ndim - 1)),
            another.teacher[name],
            here.teacher[name],
        )

    teacher = {**here.teacher, **{name: mixed(name) for name in ("semantics", "layer_actions")}}
    actions = torch.where(others[:, None, None], another.batch.actions, here.batch.actions)
    valid = torch.where(others[:, None], ~here.batch.actions_valid, here.batch.actions_valid)
    batch = dataclasses.replace(here.batch, actions=actions, actions_valid=valid)
    before, after = here.terms(objective), World(here.student, teacher, batch).terms(objective)
    for name in ("semantic", "layer_action"):
        assert torch.equal(before[name], after[name]), name


WEIGHTS: list[tuple[Objective, str, set[str]]] = [
    (MatchOutput(), "imitation", {"imitation"}),
    (MatchOutput(), "action", {"action"}),
    (MatchOutput(), "condition", {"condition"}),
    (ActDistill(), "semantic", {"semantic"}),
    (ActDistill(), "layer_action", {"layer_action"}),
    (ActDistill(), "budget", {"budget"}),
    (Published(), "balance", {"balance"}),
    (Published(budget=2.0), "budget", {"budget"}),
    (Aed(), "action", {"action", "imitation"}),
    (Aed(), "attention", {"attention"}),
    (Aed(), "representation", {"representation"}),
    (Aed(), "contrastive", {"contrastive"}),
    (VlaAd("both"), "alpha", {"image"}),
    (VlaAd("both"), "phase", {"phase"}),
    (VlaAd("both"), "direction", {"direction"}),
    (
        Imitate(),
        "privileged",
        {f"{how}.{fact}" for how in ("privileged", "pointed") for fact in ("subject", "target")},
    ),
]


@pytest.mark.parametrize(
    ("objective", "weight", "scaled"), WEIGHTS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_weight_scales_its_own_terms_and_no_other(
    objective: Objective, weight: str, scaled: set[str]
) -> None:
    here = world(objective)
    before = here.terms(objective)
    after = here.terms(dataclasses.replace(objective, **{weight: 3 * getattr(objective, weight)}))
    for name, value in before.items():
        torch.testing.assert_close(after[name], (3 if name in scaled else 1) * value, msg=name)
    none = here.terms(dataclasses.replace(objective, **{weight: 0.0}))
    assert all(float(none.get(name, 0)) == 0 for name in scaled)


def _depth_weighted(here: World, distance: Tensor) -> Tensor:
    """Weights of five layers at gamma = 1, whose mean is 1."""
    return (torch.tensor([0, 0.5, 1, 1.5, 2]) * distance).mean()


def _layer_action(here: World) -> Tensor:
    few = slice(None, None, 4)
    pair = (trace["layer_actions"][few] for trace in (here.student, here.teacher))
    actions, valid = here.batch.targets()
    return 7 * _depth_weighted(
        here, losses.layer_action_loss(*pair, actions[few], valid[few], "current")
    )


def _semantic(here: World) -> Tensor:
    return 3 * _depth_weighted(
        here,
        losses.semantic_loss(
            *(trace["semantics"][::4] for trace in (here.student, here.teacher)), 0.9
        ),
    )


def _keep(here: World) -> Tensor:
    return (here.student["gates"] * torch.tensor([1, 2, 3, 4, 5]) / 15).sum(1)


def _distillation(here: World) -> Tensor:
    pairs = [(here.student[name], here.teacher[name]) for name in ("semantics", "layer_actions")]
    actions, _ = here.batch.targets()
    return losses.published_distillation(*pairs, actions, alpha=3.0, beta=5.0, eta=0.1, gamma=1.0)


def _softened(here: World) -> Tensor:
    logits = here.student["logits"], here.teacher["logits"]
    return (
        0.5
        * losses.action_distribution_kl(*logits, here.batch.actions_valid, temperature=3.0).mean()
    )


def _soft_bins(here: World) -> Tensor:
    codec = Bins(tuple("abcd"), (-1.0,) * DIMS, (1.0,) * DIMS, BINS)
    shares = codec.gaussian(here.teacher["actions"].float(), temperature=2.0)
    weights = torch.tensor([1.0, 1, 2, 0])
    return (
        2
        * losses.action_cross_entropy(
            here.student["logits"], shares, here.batch.actions_valid, weights
        ).mean()
    )


def _told(here: World) -> Tensor:
    numbers = ((here.teacher["actions"] + 1) / 2 * BINS).floor().long().clamp(0, BINS - 1)
    return losses.action_cross_entropy(
        here.student["logits.told"], numbers, here.batch.actions_valid
    ).mean()


def _directed(here: World) -> Tensor:
    cosine = torch.cosine_similarity(
        here.student["direction"], here.student["direction.text"], dim=-1
    )
    return (
        0.3 * ((1 - cosine) * (here.batch.labels["direction"] != DIRECTIONS.index("none"))).mean()
    )


def _fitted(here: World) -> Tensor:
    """The mean over layers of each layer's error against the expert, over the steps that there
    are."""
    actions, valid = here.batch.targets()
    error = (here.student["layer_actions"] - actions[:, None]).square().mean(-1) * valid[:, None]
    return (error.sum(-1) / valid.sum(-1)[:, None]).mean()


def _guess(here: World, name: str) -> Tensor:
    return (here.student[name] - here.batch.privileged[name.partition(".")[2]]).square().mean()


def _of_both(here: World, distance: Callable[..., Tensor], own: str, theirs: str) -> Tensor:
    """Half of the mean over both layers, what the teacher saw resized by torch."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in (0, 1):
        seen = here.teacher[f"{theirs}.{layer}"].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            seen, (3, 3), mode="bilinear", align_corners=False
        )
        total = (
            total
            + distance(here.student[f"{own}.{layer}"], resized.flatten(2).transpose(1, 2)).mean()
            / 2
        )
    return 0.5 * total


DEEP = Aed(grids=(3,), teacher_grids=(4,), layers=(0, 1))


def _as_the_paper(here: World) -> tuple[Tensor, Tensor]:
    """Σ_l w_l L_sem and Σ_l w_l L_act of every sample, written as loops over layers and samples;
    γ = 2, so w_l is (l / 4)² over its mean."""
    (mine, own), (theirs, said) = (
        (trace["semantics"], trace["layer_actions"]) for trace in (here.student, here.teacher)
    )
    actions, valid = here.batch.targets()
    weights = torch.tensor([0, 1, 4, 9, 16]) / 6
    semantic = torch.zeros(())
    action = torch.zeros(())
    for layer, weight in enumerate(weights):
        pair = [torch.nn.functional.normalize(x[:, layer].float(), dim=-1) for x in (mine, theirs)]
        likeness = (pair[0] * pair[1]).sum(-1)  # (b,)
        structure = (pair[0] @ pair[0].T - pair[1] @ pair[1].T).square().mean()
        semantic = semantic + weight * ((1 - likeness).mean() + 0.5 * structure)
        before = own[:, layer - 1] if layer else torch.zeros_like(own[:, 0])
        for sample in range(SAMPLES):
            real = valid[sample]
            for target in (actions, said[:, layer], before):
                gap = own[sample, layer][real] - target[sample][real]
                action = action + weight * gap.square().mean() / SAMPLES
    return semantic, action


SUMMED = ActDistill(semantic=1.0, layer_action=1.0, every=1, over_layers="sum")
LAYERED = ActDistill(semantic=3.0, layer_action=7.0, eta=0.9, gamma=1.0, steps="current", every=4)
UNUSUAL: list[tuple[Objective, str, Callable[[World], Tensor]]] = [
    (LAYERED, "semantic", _semantic),
    (LAYERED, "layer_action", _layer_action),
    (
        ActDistill(keep=0.2, budget=4.0, over="batch"),
        "budget",
        lambda here: 4 * (_keep(here).mean() - 0.2) ** 2,
    ),
    (
        ActDistill(keep=0.2, budget=4.0, over="sample"),
        "budget",
        lambda here: 4 * ((_keep(here) - 0.2) ** 2).mean(),
    ),
    (Published(alpha=3.0, beta=5.0, eta=0.1, gamma=1.0), "distillation", _distillation),
    (
        Published(balance=4.0),
        "balance",
        lambda here: 4 * here.student["soft_gates"].mean(0).var(correction=0),
    ),
    (
        Published(keep=0.2, budget=4.0, over="sample"),
        "budget",
        lambda here: 4 * ((_keep(here) - 0.2) ** 2).mean(),
    ),
    (SUMMED, "semantic", lambda here: _as_the_paper(here)[0]),
    (SUMMED, "layer_action", lambda here: _as_the_paper(here)[1]),
    (MatchOutput(imitation=3.0), "imitation", lambda here: 3 * here.student["imitation"].mean()),
    (Aed(action=2.0, share=0.25, temperature=3.0), "action", _softened),
    (Aed(action=2.0, share=0.25), "imitation", lambda here: 1.5 * here.student["imitation"].mean()),
    (DEEP, "attention", lambda here: _of_both(here, losses.attention_kl, "attention", "attention")),
    (
        DEEP,
        "representation",
        lambda here: _of_both(here, losses.representation_mse, "projected", "fused"),
    ),
    (VlaAd("none", alpha=2.0, soft=2.0, weights=(1.0, 1.0, 2.0, 0.0)), "image", _soft_bins),
    (VlaAd("both"), "told", _told),
    (VlaAd("both", direction=0.3), "direction", _directed),
    (
        Finetune(("subject", "target")),
        "pointed.target",
        lambda here: _guess(here, "pointed.target") / 2,
    ),
    (
        Imitate(3.0, ("subject",)),
        "privileged.subject",
        lambda here: 3 * _guess(here, "privileged.subject"),
    ),
    (FitHeads(), "layer_actions", _fitted),
    (
        Align(("target",)),
        "align",
        lambda here: (here.student["condition"] - here.teacher["condition"]).square().mean(),
    ),
]


@pytest.mark.parametrize(
    ("objective", "term", "expected"), UNUSUAL, ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_setting_is_used(
    objective: Objective, term: str, expected: Callable[[World], Tensor]
) -> None:
    """`weights`, `temperature`, `eta`, `gamma`, `steps`, `over`, `share`, `soft` … as they are
    said, not as they usually are."""
    here = world(objective)
    torch.testing.assert_close(
        here.terms(objective)[term].double(), expected(here).double(), rtol=1e-5, atol=1e-6
    )


def test_a_budget_of_the_batch_stands_above_the_objectives_own() -> None:
    objective = ActDistill(keep=0.2, budget=1.0)
    here = world(objective)
    told = dataclasses.replace(here, batch=dataclasses.replace(here.batch, budget=0.7))
    expected = here.terms(dataclasses.replace(objective, keep=0.7))["budget"]
    torch.testing.assert_close(told.terms(objective)["budget"], expected)


@pytest.mark.parametrize("every", [1, 2, 8])
def test_a_perfect_match_costs_nothing(every: int) -> None:
    """loss(x, x) = 0 for everything that compares student and teacher."""
    objective = ActDistill(keep=1.0, every=every)
    here = world(objective)
    zero = torch.zeros_like(here.student["layer_actions"])
    ideal = {
        **here.student,
        "layer_actions": zero,
        "gates": torch.ones(SAMPLES, LAYERS),
        "imitation": torch.zeros(SAMPLES),
    }
    still = dataclasses.replace(here.batch, actions=torch.zeros_like(here.batch.actions))
    terms = World(ideal, ideal, still).terms(objective)
    assert terms.keys() == {
        "imitation",
        "action",
        "condition",
        "semantic",
        "layer_action",
        "budget",
    }
    assert all(abs(float(value)) < 1e-6 for value in terms.values()), terms
    pair = Aed(contrastive=0)
    same = world(pair)
    terms = World(
        {**same.student, "projected": same.teacher["fused"]}, same.teacher, same.batch
    ).terms(pair)
    assert abs(float(terms["representation"])) < 1e-9
    terms = World(
        {**same.student, LAST: same.teacher[LAST], "logits": same.teacher["logits"]},
        same.teacher,
        same.batch,
    ).terms(pair)
    assert abs(float(terms["attention"])) < 1e-9 and abs(float(terms["action"])) < 1e-9


def test_words_without_an_annotator_are_refused() -> None:
    objective = VlaAd("privileged_text")
    here = world(objective)
    with pytest.raises(ValueError, match="give the recipe an `annotator`"):
        dataclasses.replace(here, batch=dataclasses.replace(here.batch, description=None)).terms(
            objective
        )


# What recipes say of their steps.


def chosen(condition: Callable[[Recipe], bool]) -> list[Recipe]:
    found = [recipe for recipe in RECIPES if condition(recipe)]
    assert found
    return found


def test_routes_are_drawn_while_the_router_learns_and_then_it_stands_still() -> None:
    def learned(recipe: Recipe) -> bool:
        return (
            isinstance(recipe.student, Routing)
            and recipe.student.mode == "straight_through"
            and len(recipe.stages) == 2
        )

    for recipe in chosen(learned):
        routing, settling = recipe.stages
        assert "policy.router.*" in settling.freeze and "policy.router.*" not in routing.freeze, (
            recipe.name
        )
        (explore,) = (each for each in routing.transforms if isinstance(each, Explore))
        assert explore.first > explore.last >= 0, recipe.name
        assert not any(isinstance(each, Explore) for each in settling.transforms)
        assert (
            "policy.inner.vision.*" in routing.freeze and "policy.inner.vision.*" in settling.freeze
        )
        assert not settling.compile, "batches of every size go through a layer"
        assert all(
            stage.objective.keep == recipe.student.budget
            for stage in recipe.stages
            if isinstance(stage.objective, ActDistill)
        )
    steps = {recipe.name: [stage.steps for stage in recipe.stages] for recipe in RECIPES}
    for name in ("actdistill_tabletop", "action_kd_tabletop", "blind_tabletop", "dial_tabletop"):
        assert sum(steps[name]) == sum(steps["tabletop"]) == sum(steps["first_k_tabletop"]), (
            "as many as any other recipe"
        )


def test_the_papers_dose_is_a_sum_over_layers_of_every_sample_in_both_stages() -> None:
    doses = {"faithful_tabletop": 1, "faithful_low_tabletop": 0.2, "faithful_high_tabletop": 8}
    base = recipes.make("actdistill_tabletop")
    for name, dose in {**doses, "faithful": 1}.items():
        recipe = recipes.make(name)
        for stage in recipe.stages:
            said = stage.objective
            assert (said.semantic, said.layer_action) == (dose, dose), name
            assert (said.over_layers, said.every, said.eta, said.gamma) == ("sum", 1, 0.5, 2)
        routing, settling = recipe.stages
        assert routing.objective.budget > 0 == settling.objective.budget
        if name in doses:  # but for what is said of layers it is the recipe that there was
            assert recipe.student == base.student
            assert [dataclasses.replace(stage, objective=None) for stage in recipe.stages] == [
                dataclasses.replace(stage, objective=None) for stage in base.stages
            ]


def test_the_published_loss_held_to_a_budget_is_what_it_was_and_the_budgets_term() -> None:
    recipe = recipes.make("published_budget_tabletop")
    (stage,) = recipe.stages
    (plain,) = recipes.make("published_tabletop").stages
    assert dataclasses.replace(stage.objective, budget=0.0, keep=0.5) == plain.objective
    assert (recipe.student.mode, recipe.student.budget) == ("published_soft", stage.objective.keep)
    here = world(stage.objective)
    terms, before = here.terms(stage.objective), here.terms(plain.objective)
    expected = ActDistill(keep=stage.objective.keep).budget * (_keep(here).mean() - 0.25) ** 2
    torch.testing.assert_close(terms.pop("budget").double(), expected)
    assert terms == before


def test_aed_sees_in_other_patches_and_compares_every_layer_where_a_row_says_so() -> None:
    finer = recipes.make("aed_finer_tabletop")
    for stage in finer.stages:
        assert (stage.objective.grids, stage.objective.teacher_grids) == ((9, 6), (6, 4))
    assert (finer.student.network.patch, finer.network.patch) == (8, 12)
    deep, plain = recipes.make("aed_layers_tabletop"), recipes.make("aed_tabletop")
    assert deep.needs <= set(deep.traced) and deep.traces != plain.traces
    assert {"attention.0", "attention.1", "fused.0", "fused.1"} <= deep.needs
    with pytest.raises(ValueError, match="give `grids` the student's"):
        Aed(grids=(), teacher_grids=(4,))


def test_a_dial_is_told_every_budget() -> None:
    for recipe in chosen(
        lambda recipe: isinstance(recipe.student, Routing) and recipe.student.dial
    ):
        for stage in recipe.stages:
            (drawn,) = (each for each in stage.transforms if isinstance(each, DrawBudget))
            assert drawn.lowest <= 0.125 and drawn.highest == 1


def test_a_probe_trains_its_heads_alone() -> None:
    assert all(
        recipe.probe.stage.train == ("probe.*",)
        for recipe in chosen(lambda recipe: recipe.probe is not None)
    )


def test_a_student_without_a_teacher_reads_none() -> None:
    for recipe in chosen(
        lambda recipe: (
            "_bc" in recipe.name or recipe.name.startswith("bc_") or recipe.name == "vla_ad_bc"
        )
    ):
        assert not any(stage.objective.needs for stage in recipe.all_stages), recipe.name
        assert all(
            stage.objective.wants & {"imitation", "logits"} for stage in recipe.all_stages
        ), recipe.name


def test_baselines_keep_as_many_layers_as_actdistill_runs() -> None:
    by_name = {recipe.name: recipe for recipe in RECIPES}
    assert (
        by_name["first_k_tabletop"].student.layers
        == by_name["layer_drop_tabletop"].student.layers
        == 2
    )
    assert (
        by_name["bc_tabletop"].student.student.layers
        == 2
        == 8 * by_name["actdistill_tabletop"].student.budget
    )


def test_aeds_last_third_hears_the_expert_at_a_tenth_of_the_rate() -> None:
    for recipe in chosen(
        lambda recipe: recipe.name.startswith("aed_") and recipe.name != "aed_self"
    ):
        first, last = recipe.stages
        assert last.objective.share <= min(
            first.objective.share, 0.25
        ) and last.learning_rate == pytest.approx(first.learning_rate / 10)
        assert last.steps == pytest.approx(first.steps / 2, abs=1)
        assert dataclasses.replace(last.objective, share=first.objective.share) == first.objective


def test_the_attention_that_aed_matches_is_the_last_layers() -> None:
    recipe = recipes.make("aed_tabletop")
    assert (
        f"attention.{recipe.network.fusion_layers - 1}"
        == f"attention.{recipe.student.network.fusion_layers - 1}"
        == LAST
    )
    assert LAST in recipe.traced


def test_vita_vlas_first_stage_leaves_the_decoder_alone_and_the_second_does_not() -> None:
    import fnmatch

    for recipe in chosen(
        lambda recipe: recipe.name.startswith("vita_vla") and len(recipe.stages) == 2
    ):
        assert [type(stage.objective) for stage in recipe.stages] == [Align, Finetune]
        trains = [
            {
                name
                for name in ("policy.head.arm.weight", "policy.mapper.0.weight")
                if any(fnmatch.fnmatch(name, p) for p in stage.train)
            }
            for stage in recipe.stages
        ]
        assert trains == [
            {"policy.mapper.0.weight"},
            {"policy.mapper.0.weight", "policy.head.arm.weight"},
        ]


def test_with_and_without_words_are_the_same_but_for_the_words() -> None:
    for said_recipe, silent in (
        (recipes.make("vla_ad_tabletop"), recipes.make("vla_ad_action_kd")),
        (recipes.make("vla_ad_tiny"), recipes.make("vla_ad_tiny_action_kd")),
    ):
        stages = [
            tuple(
                dataclasses.replace(
                    each, objective=dataclasses.replace(each.objective, semantic="none")
                )
                for each in recipe.all_stages
            )
            for recipe in (said_recipe, silent)
        ]
        assert (
            stages[0] == stages[1]
            and said_recipe.annotator is not None
            and silent.annotator is None
        )


def test_a_budget_is_asked_for_once() -> None:
    """An output's own would stand in the loss under the same name, and have no effect."""
    output = MatchEndpoint(budget=2.0)
    for objective in (ActDistill, Budgeted):
        said = rf"output\.budget is 2, and {objective.__name__} asks for a budget"
        with pytest.raises(ValueError, match=said):
            objective(output)
