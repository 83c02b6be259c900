"""Students that choose among classes are taught through their logits, whatever an objective says;
a term from which no gradient reaches a weight is an error."""

import json
from dataclasses import replace

import pytest
import torch
from strangers import Expert, Writer
from strangers import make as make_stranger
from tiny import make_frames, make_policy, tiny_recipe
from torch import Tensor

from armlet import collect, distil, probe, recipes, teach
from armlet.layers.heads import to_bins
from armlet.policies.contract import Backbone, Pass
from armlet.policies.vla import VLA
from armlet.recipe import Recipe, Stage
from armlet.recipes.bases import MatchOutput
from armlet.training import losses
from armlet.training.learner import Learner, chooses
from armlet.training.trainer import Trainer, check_teaches, make_batches
from armlet.types import Batch, Trace

HEADS = ("regression", "bins", "codebook", "refined", "flow", "diffusion", "arm_gripper")
DISCRETE = ("bins", "codebook", "refined")


def with_head(kind: str) -> VLA:
    """The small policy with another head."""
    options = {}
    if kind == "bins":
        options = {"bins": 16}
    if kind in ("codebook", "refined"):
        book = torch.tensor([[0.4, 0, 0, -1], [-0.4, 0, 0, 1], [0, 0.4, 0, 1], [0, 0, 0.4, -1]])
        options = {"primitives": book.tolist(), "gripper": 3, "refine": kind == "refined"}
    head = "codebook" if kind == "refined" else kind
    policy = make_policy()
    torch.manual_seed(1)
    network = replace(policy.network, head=head, head_options=options)
    made = network.build(policy.body, policy.cameras).eval()
    if kind == "flow":  # adaLN-Zero: a fresh head does not hear its condition yet
        for block in made.head.blocks:
            torch.nn.init.normal_(block.modulation.weight, std=0.1)
    return made


def two_moments(policy: Backbone) -> Batch:
    return make_batches(policy, make_frames()).batch(torch.arange(6).numpy())


def traces(
    student: Backbone, objective: MatchOutput, *, logits: bool = True
) -> tuple[Trace, Trace, Batch]:
    """The student's trace with gradients, that of another policy of its kind, and the batch."""
    batch = two_moments(student)
    torch.manual_seed(5)
    with torch.no_grad():
        said = Learner(make_other(student))(batch, ["actions", "condition"])
        if "logits" in objective.needs:
            said |= Learner(make_other(student))(batch, ["logits"])
    batch = replace(batch, taught=said["actions"])
    return Learner(student)(batch, objective.wants), said, batch


def make_other(student: Backbone) -> Backbone:
    """The same network with other weights."""
    other = type(student)(student.network, student.cameras, student.body)
    return other.eval()


def reaches(policy: Backbone, term: Tensor) -> float:
    """The largest gradient that a term gives a weight of the policy's layers."""
    found = torch.autograd.grad(
        term, list(policy.layers.parameters()), allow_unused=True, retain_graph=True
    )
    return max((float(each.abs().max()) for each in found if each is not None), default=0.0)


@pytest.mark.parametrize("logits", [True, False], ids=["logits stored", "actions only"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_action_term_reaches_the_layers_of_every_head(kind: str, logits: bool) -> None:
    policy = with_head(kind)
    discrete, named = chooses(policy, two_moments(policy))
    assert discrete == named == (kind in DISCRETE)
    objective = MatchOutput().suited(chooses=discrete, logits=logits)
    assert objective.by == ("logits" if logits else "choices") if discrete else "fitting"
    student, teacher, batch = traces(policy, objective)
    terms = objective(student, teacher, batch)
    check_teaches(terms, objective, policy, title="test")
    assert reaches(policy, terms["action"]) > 1e-6


@pytest.mark.parametrize("kind", ["bins", "codebook"])
def test_unsuited_it_says_term_head_and_fix(kind: str, tmp_path) -> None:
    policy = with_head(kind)
    learner = Learner(policy)

    def answers(keys: Tensor) -> Trace:
        batch = two_moments(policy)
        taught = {"actions": batch.actions + 0.3, "condition": torch.ones(6, 32)}
        return {
            name: value[:1].expand(len(keys), *value.shape[1:]) for name, value in taught.items()
        }

    stage = Stage(MatchOutput(by="actions"), steps=2, batch_size=4, transforms=())
    trainer = Trainer(
        learner,
        stage,
        make_batches(policy, make_frames()),
        folder=tmp_path,
        seed=0,
        title="distil x",
        teacher=answers,
    )
    words = (
        rf"distil x: 'action' of MatchOutput cannot teach .*{type(policy.head).__name__}.*logits"
    )
    with pytest.raises(ValueError, match=words):
        trainer.run()


def test_frozen_weights_make_a_term_an_error_and_weight_0_does_not() -> None:
    policy = with_head("regression").requires_grad_(False)
    policy.head.requires_grad_(True)
    student, teacher, batch = traces(policy, MatchOutput())
    terms = MatchOutput()(student, teacher, batch)
    with pytest.raises(ValueError, match=r"'condition' of MatchOutput cannot teach"):
        check_teaches(terms, MatchOutput(), policy, title="test")
    objective = MatchOutput(condition=0)
    terms = objective(student, teacher, batch)
    assert terms.keys() == {"imitation", "action"}
    check_teaches(terms, objective, policy, title="test")
    check_teaches({"none": torch.zeros(())}, objective, policy, title="test")


def test_choices_are_cross_entropy_to_the_bins_of_the_teachers_actions() -> None:
    policy = with_head("bins")
    objective = MatchOutput().suited(chooses=True, logits=False)
    student, teacher, batch = traces(policy, objective)
    terms = objective(student, teacher, batch)
    logits = Learner(policy)(batch, ["logits"])["logits"]
    target = to_bins(teacher["actions"], 16)
    expected = losses.action_cross_entropy(logits, target, batch.actions_valid).mean()
    torch.testing.assert_close(terms["action"], expected)
    own = losses.action_cross_entropy(logits, to_bins(batch.actions, 16), batch.actions_valid)
    torch.testing.assert_close(terms["imitation"], own.mean())


def test_logits_are_matched_by_their_divergence() -> None:
    policy = with_head("codebook")
    objective = MatchOutput(action=3).suited(chooses=True, logits=True)
    assert objective.needs == {"logits", "condition"} and "actions" not in objective.wants
    student, teacher, batch = traces(policy, objective)
    gap = losses.action_distribution_kl(student["logits"], teacher["logits"], batch.actions_valid)
    terms = objective(student, teacher, batch)
    torch.testing.assert_close(terms["action"], 3 * gap.mean())
    same = objective(student, {**teacher, "logits": student["logits"].detach()}, batch)
    assert abs(float(same["action"].detach())) < 1e-6
    more = torch.zeros(*teacher["logits"].shape[:-1], 5)
    with pytest.raises(ValueError, match=r"among \(4,\) and its teacher among \(5,\).*choices"):
        objective(student, {**teacher, "logits": more}, batch)


class Remembering(Writer):
    """Computes once a pass what it would write, as OpenVLA does for its loss and its logits."""

    def written(self, run: Pass, bins: Tensor) -> Tensor:
        write = super().written
        return run.once("written", lambda: write(run, bins))


@pytest.mark.parametrize("kind", [Writer, Remembering])
def test_whoever_writes_word_by_word_is_told_the_teachers_words(kind: type[Writer]) -> None:
    """Neither its own loss nor what it remembers of the pass may stand for the teacher's."""
    policy = make_stranger(kind)
    batch = two_moments(policy)
    assert chooses(policy, batch) == (True, False)
    assert chooses(make_stranger(Expert), batch) == (False, False)
    other = replace(batch, taught=-batch.actions)
    found = Learner(policy)(other, ["imitation", "imitation.teacher"])
    alone = Learner(policy)(replace(batch, actions=-batch.actions), ["imitation"])
    torch.testing.assert_close(found["imitation.teacher"], alone["imitation"])
    assert (found["imitation"] - found["imitation.teacher"]).abs().min() > 1e-4
    with pytest.raises(ValueError, match="has none; name `actions`"):
        Learner(policy)(batch, ["imitation.teacher"])


def test_a_recipe_is_fitted_to_its_student() -> None:
    recipe = recipes.make("actdistill_tabletop")
    assert recipe.for_student(chooses=False, logits=False) == recipe and recipe.may_read_logits
    told = recipe.for_student(chooses=True, logits=True)
    assert told.stages[0].objective.output.by == told.stages[1].objective.by == "choices"
    assert told.wants >= {"imitation.teacher"} and "actions" in told.needs
    logits = replace(recipe, traced=("logits", "condition", "actions"))
    logits = logits.for_student(chooses=True, logits=True)
    assert logits.needs == {"logits", "condition", "semantics", "layer_actions"}
    assert "actions" not in logits.wants
    with pytest.raises(ValueError, match=r"needs \['logits'\] from the teacher"):
        replace(recipe, stages=(replace(recipe.stages[0], objective=MatchOutput(by="logits")),))


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Recipe:
    """A teacher that chooses among bins, and its episodes."""
    made = tiny_recipe(tmp_path_factory.mktemp("bins"))
    network = replace(made.network, head="bins", head_options={"bins": 16})
    short = tuple(replace(stage, steps=2) for stage in made.stages)
    probing = replace(made.probe, stage=replace(made.probe.stage, steps=2))
    made = replace(made, network=network, stages=short, probe=probing)
    for verb in (collect, teach):
        verb.main(made)
    return made


def test_from_a_teacher_that_chooses_to_a_student_that_does(taught: Recipe) -> None:
    probe.main(taught)  # its logits are stored without being asked for
    distil.main(taught)
    kept = json.loads((taught.student_folder / "config.json").read_text())["provenance"]
    said = [stage["objective"] for stage in kept["recipe"]["stages"]]
    assert said[0]["output"]["by"] == said[1]["by"] == "logits"
    # The same store for a student that is told what was chosen, and no more: another question.
    first, second = (stage.objective for stage in taught.stages)
    objectives = (
        replace(first, output=replace(first.output, by="choices")),
        replace(second, by="choices"),
    )
    stages = []
    for stage, objective in zip(taught.stages, objectives, strict=True):
        stages.append(replace(stage, objective=objective))
    told = replace(taught, stages=tuple(stages), shared=taught.out, out=taught.out / "b")
    distil.main(told)
    found = [json.loads((told.out / f"distil-{i}/stage.json").read_text()) for i in (0, 1)]
    assert found[0]["stage"]["objective"]["output"]["by"] == "choices"
    assert found[1]["stage"]["objective"]["by"] == "choices"


def test_traces_of_a_halved_teacher_are_of_another_teacher(taught: Recipe) -> None:
    with pytest.raises(ValueError, match="give trace_precision bf16 as well"):
        replace(taught, teacher_precision="bf16")
    folder = taught.out / "halved"
    halved = replace(
        taught,
        traced=("actions", "condition", "logits"),
        trace_precision="bf16",
        teacher_precision="bf16",
        shared=folder,
        out=folder,
    )
    probe.main(halved)
    distil.main(halved)
    whole = replace(halved, teacher_precision="fp32", out=folder / "whole")
    with pytest.raises(ValueError, match="bf16 weights"):
        distil.main(whole)
