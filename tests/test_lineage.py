"""What was made from something else is never continued, used or overwritten: stages of training,
probe heads, policies."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy

from armlet.data.frames import Frames
from armlet.lineage import claim, differences, digest_weights, is_finished, set_aside
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.recipe import Stage
from armlet.recipes.bases import Imitate
from armlet.training.learner import Learner
from armlet.training.trainer import Trainer, make_batches

STAGE = Stage(Imitate(), steps=4, batch_size=5, warmup=2, log_every=1, checkpoint_every=2, ema=0.9)


def train(
    folder: Path,
    stage: Stage = STAGE,
    *,
    frames: Frames | None = None,
    seed: int = 1,
    start: float = 0.0,
    **options,
) -> str:
    """A digest of the weights that a stage ends with; `start` is added to the first weight before
    it."""
    learner = Learner(make_policy(), privileged={"subject": 3, "target": 3})
    with torch.no_grad():
        next(learner.parameters()).view(-1)[0] += start
    batches = make_batches(learner.policy, frames or make_frames())
    Trainer(learner, stage, batches, folder=folder, seed=seed, title="test", **options).run()
    return digest_weights(learner.state_dict())


def other_frames() -> Frames:
    frames = make_frames()
    actions = frames.actions.copy()
    actions[5, 1] += 1e-3
    return dataclasses.replace(frames, actions=actions)


CHANGES = {
    "learning_rate: 0.001 → 0.002": {"stage": dataclasses.replace(STAGE, learning_rate=2e-3)},
    "steps: 4 → 6": {"stage": dataclasses.replace(STAGE, steps=6)},
    "objective.privileged: 1 → 0.5": {
        "stage": dataclasses.replace(STAGE, objective=Imitate(privileged=0.5))
    },
    "the frames: ": {"frames": other_frames()},
    "seed: 1 → 2": {"seed": 2},
    "the weights it starts from: ": {"start": 1e-3},
    "the rows it trains on: ": {"rows": np.arange(20)},
    "teacher: nothing → another": {"made_from": {"teacher": "another"}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lineage") / "stage"
    train(folder)
    return folder


@pytest.mark.parametrize("said", CHANGES)
def test_a_stage_that_answers_another_question_starts_anew_beside_the_old(
    trained: Path, tmp_path, capfd, said: str
) -> None:
    folder = tmp_path / "stage"
    shutil.copytree(trained, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
    found = train(folder, **CHANGES[said])
    told = capfd.readouterr().err
    assert said in told and "starts anew" in told
    assert found == train(tmp_path / "fresh", **CHANGES[said]), "as if nothing had been there"
    (aside,) = tmp_path.glob("stage.before-*")
    assert {
        path.name: path.read_bytes() for path in aside.iterdir() if path.suffix != ".lock"
    } == before
    assert aside.name in told


def test_a_stage_that_answers_this_question_goes_on(trained: Path, tmp_path, capfd) -> None:
    """Neither how often it writes a line nor how often it saves changes what it makes."""
    state = (trained / "state.pt").read_bytes()
    found = train(trained, dataclasses.replace(STAGE, log_every=3, checkpoint_every=1))
    assert found == train(tmp_path / "fresh")
    assert (trained / "state.pt").read_bytes() == state
    assert not list(trained.parent.glob("stage.before-*")) and "anew" not in capfd.readouterr().err


def test_more_steps_of_a_stage_that_never_changes_continue_it(tmp_path, capfd) -> None:
    constant = dataclasses.replace(STAGE, schedule="constant")
    train(tmp_path / "stage", constant)
    longer = dataclasses.replace(constant, steps=7)
    found = train(tmp_path / "stage", longer)
    assert "steps: 4 → 7; it goes on from step 4" in capfd.readouterr().err
    assert found == train(tmp_path / "whole", longer)
    train(tmp_path / "stage", constant)  # fewer: what is there knows too much
    assert "starts anew" in capfd.readouterr().err


def test_a_state_that_does_not_say_what_it_is_of_is_kept_beside(
    trained: Path, tmp_path, capfd
) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    state = torch.load(trained / "state.pt", weights_only=True)
    del state["question"]
    torch.save(state, folder / "state.pt")
    assert train(folder) == train(tmp_path / "fresh")
    assert (
        "an older armlet" in capfd.readouterr().err
        and len(list(tmp_path.glob("stage.before-*"))) == 1
    )


def test_a_policy_is_finished_for_its_own_question_and_for_no_other(tmp_path) -> None:
    folder, policy = tmp_path / "policy", make_policy()
    assert not is_finished(folder, {"seed": 1}, fixes="--out")
    save_policy(policy, folder, provenance={"question": {"seed": 1, "rate": (1, 2)}})
    assert is_finished(folder, {"seed": 1, "rate": (1, 2)}, fixes="--out")
    with pytest.raises(ValueError, match=r"seed: 1 → 2\)\. Nothing was trained.* --out, or delete"):
        is_finished(folder, {"seed": 2, "rate": (1, 2)}, fixes="--out")
    save_policy(policy, tmp_path / "shipped")
    with pytest.raises(
        ValueError, match="does not say what it was made from: it ships with armlet"
    ):
        is_finished(tmp_path / "shipped", {"seed": 1}, fixes="--out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("…")
    with pytest.raises(ValueError, match=r"holds chapter\.tex .* no policy of armlet's"):
        is_finished(tmp_path / "thesis", {"seed": 1}, fixes="--out")
    load_policy(folder)


def test_a_folder_is_claimed_for_one_question(tmp_path, capfd) -> None:
    folder = tmp_path / "round"
    claim(folder, "round.json", {"seed": 1}, title="test")
    (folder / "made").write_text("by seed 1")
    claim(folder, "round.json", {"seed": 1}, title="test")
    assert (folder / "made").exists()
    for _ in range(2):
        claim(folder, "round.json", {"seed": 2}, title="test")
        claim(folder, "round.json", {"seed": 1}, title="test")
    assert not (folder / "made").exists() and "seed: 1 → 2" in capfd.readouterr().err
    assert sum((each / "made").exists() for each in tmp_path.glob("round.before-*")) == 1
    assert len(list(tmp_path.glob("round.before-*"))) == 4, "none was overwritten"
    assert json.loads((folder / "round.json").read_text()) == {"seed": 1}


def test_what_is_set_aside_overwrites_nothing(tmp_path) -> None:
    for number in range(3):
        (tmp_path / "state").write_text(str(number))
        set_aside(tmp_path / "state", "ab")
    assert [path.read_text() for path in sorted(tmp_path.glob("state.before-*"))] == ["0", "1", "2"]


def test_differences_name_what_differs_and_nothing_else() -> None:
    assert differences({"a": (1, 2), "b": {"c": 1.0}}, {"b": {"c": 1.0}, "a": [1, 2]}) == []
    assert differences({"a": [1, 2], "b": {}}, {"a": [1, 3], "d": 1e-3}) == [
        "a.1: 2 → 3",
        "b: {} → nothing",
        "d: nothing → 0.001",
    ]


def test_a_digest_of_weights_sees_one_bit_a_name_and_a_shape() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    digests = {
        digest_weights(weights),
        digest_weights({**weights, "a": torch.nextafter(weights["a"], torch.tensor(9.0))}),
        digest_weights({**weights, "a": weights["a"].view(2, 3)}),
        digest_weights({"a": weights["b"], "b": weights["a"]}),
        digest_weights({**weights, "a": weights["a"].flip(0)}),  # the same sum of absolute values
    }
    assert len(digests) == 5 and digest_weights(dict(reversed(weights.items()))) in digests
