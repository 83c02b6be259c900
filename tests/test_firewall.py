"""The trace store is a firewall: with it a student that takes none of its teacher's weights is
distilled where the teacher is not, to the bit as where it is; one that takes some is refused. And
what `probe` was told need not be guessed again.

The world is outside.py's dot on a line; nothing trains but a few steps.
"""

import dataclasses
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from outside import reaching
from test_join import in_this_process, rounds

from armlet import collect, distil, probe
from armlet.data import download
from armlet.data.episodes import EpisodeDataset
from armlet.options import override
from armlet.policies.action_query import ReuseDecoder
from armlet.policies.checkpoint import load_policy, load_with_fingerprint, save_policy
from armlet.policies.clip_lora import tiny
from armlet.policies.facts import FACTS
from armlet.policies.students import FirstK, Fresh, OtherNetwork
from armlet.policies.two_tower import TwoTowerNetwork, TwoTowerStudent
from armlet.policies.vla import VLANetwork
from armlet.recipe import OwnAverage, Recipe
from armlet.recipes.bases import Imitate, MatchOutput
from armlet.rollout import recording
from armlet.teach import new_policy
from armlet.training import supervision

SHORT = {"steps": 2, "batch_size": 8, "compile": False, "freeze": ()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Iterator[Recipe]:
    """Episodes, a teacher of fresh weights, heads and traces."""
    out = tmp_path_factory.mktemp("firewall")
    made = dataclasses.replace(
        reaching(),
        episodes=out / "episodes",
        teacher=out / "teacher",
        out=out,
        held_out=0.3,
        collection=dataclasses.replace(reaching().collection, episodes=6),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "work_through", in_this_process)
        collect.main(made)
        save_policy(new_policy(made, EpisodeDataset(made.episodes)), made.teacher)
        probe.main(made)
        yield made


def distilled(recipe: Recipe, out: Path, student, objective, **changes) -> Recipe:
    stage = dataclasses.replace(recipe.stages[0], objective=objective, **SHORT)
    made = dataclasses.replace(
        recipe, out=out, shared=recipe.out, student=student, stages=(stage,), **changes
    )
    distil.main(made)
    return made


TWO_TOWERS = TwoTowerNetwork(
    width=32, heads=2, vision_layers=1, text_layers=1, patch=16, chunk=2, execute=1
)
FROM_NOTHING = {
    "bc": (Fresh(FirstK(2)), Imitate(facts=())),
    "smaller": (Fresh(FirstK(2)), MatchOutput(condition=0)),
    "another": (
        OtherNetwork(VLANetwork(width=32, depth=1, heads=2, chunk=2)),
        MatchOutput(condition=0),
    ),
    "vla_ad": (
        OtherNetwork(dataclasses.replace(tiny(), chunk=2, strides={"eye": 16})),
        Imitate(facts=()),
    ),
    "aed": (TwoTowerStudent(TWO_TOWERS), MatchOutput(condition=0)),
}


@pytest.mark.parametrize("name", FROM_NOTHING)
def test_a_student_from_nothing_is_the_same_where_its_teacher_is_gone(
    recipe: Recipe, tmp_path, capfd, name: str
) -> None:
    student, objective = FROM_NOTHING[name]
    beside = distilled(recipe, tmp_path / "beside", student, objective)
    capfd.readouterr()
    gone = dataclasses.replace(recipe, teacher=tmp_path / "gone")
    alone = distilled(gone, tmp_path / "alone", student, objective)
    said = capfd.readouterr().err
    assert f"{tmp_path / 'gone'} is not there; what `probe` kept of the teacher" in said
    found, expected = (load_policy(made.student_folder) for made in (alone, beside))
    assert found.to_json() == expected.to_json()
    for (tensor_name, tensor), other in zip(
        expected.state_dict().items(), found.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), tensor_name
    capfd.readouterr()
    distil.main(dataclasses.replace(alone, teacher=recipe.teacher))
    assert "was distilled exactly so already" in capfd.readouterr().err, "it is one question"


def average(here: Recipe) -> Recipe:
    stage = dataclasses.replace(here.stages[0], objective=MatchOutput(), teacher=OwnAverage())
    return dataclasses.replace(here, student=Fresh(FirstK(3)), stages=(stage,))


TAKES_WEIGHTS = {
    "FirstK": lambda here: dataclasses.replace(here, student=FirstK(2)),
    "Routing": lambda here: here,
    "ReuseDecoder": lambda here: dataclasses.replace(here, student=ReuseDecoder()),
    "average that teaches": average,
    "in its rounds": lambda here: rounds(
        dataclasses.replace(here, student=Fresh(FirstK(2)), stages=here.stages[1:]), 1
    ),
}


@pytest.mark.parametrize("why", TAKES_WEIGHTS)
def test_a_student_that_takes_weights_is_refused_where_its_teacher_is_gone(
    recipe: Recipe, tmp_path, why: str
) -> None:
    gone = tmp_path / "gone"
    here = dataclasses.replace(recipe, out=tmp_path / "out", shared=recipe.out, teacher=gone)
    with pytest.raises(FileNotFoundError, match=rf"{gone} is not there.*{why}.*--teacher"):
        distil.main(TAKES_WEIGHTS[why](here))
    assert not (tmp_path / "out" / "distil-0").exists()


def test_the_teacher_is_not_read_where_it_is_not_needed(
    recipe: Recipe, tmp_path, monkeypatch
) -> None:
    read: list[Path] = []

    def load(folder: Path, **options):
        read.append(folder)
        return load_with_fingerprint(folder, **options)

    monkeypatch.setattr("armlet.training.teacher.load_with_fingerprint", load)
    distilled(recipe, tmp_path / "a", *FROM_NOTHING["smaller"])
    assert read == []
    distilled(recipe, tmp_path / "b", FirstK(2), MatchOutput())
    assert read == [recipe.teacher]


def test_without_teacher_and_without_what_was_kept_of_it_both_are_named(
    recipe: Recipe, tmp_path
) -> None:
    traces = tmp_path / "shared" / "traces"
    shutil.copytree(recipe.traces, traces)
    (traces / FACTS).unlink()
    gone = dataclasses.replace(
        recipe,
        out=tmp_path,
        shared=tmp_path / "shared",
        teacher=tmp_path / "gone",
        student=Fresh(FirstK(2)),
    )
    with pytest.raises(FileNotFoundError, match=rf"gone is not there, .*{traces / FACTS}.*probe"):
        distil.main(gone)


def test_another_teacher_than_the_one_that_was_probed_is_found_out(
    recipe: Recipe, tmp_path
) -> None:
    """What was kept of the old one is not taken for the new one's, nor are its traces."""
    other = new_policy(dataclasses.replace(recipe, seed=5), EpisodeDataset(recipe.episodes))
    save_policy(other, tmp_path / "other")
    here = dataclasses.replace(recipe, teacher=tmp_path / "other")
    student, objective = FROM_NOTHING["smaller"]
    with pytest.raises(ValueError, match="the teacher changed"):
        distilled(here, tmp_path / "a", student, objective)
    made = distilled(here, tmp_path / "b", *FROM_NOTHING["bc"])  # reads no trace
    assert load_policy(made.student_folder).to_json()["type"] == "vla"


def test_a_teacher_on_the_hub_is_not_needed_where_it_cannot_be_had(
    recipe: Recipe, tmp_path, monkeypatch
) -> None:
    def unreachable(*_: object) -> None:
        raise download.HubError("the hub cannot be reached")

    monkeypatch.setattr(download, "find", unreachable)
    away = dataclasses.replace(recipe, teacher=Path("hf:anna/teacher"))
    distilled(away, tmp_path / "a", *FROM_NOTHING["smaller"])
    with pytest.raises(download.HubError, match="cannot be reached"):
        distilled(away, tmp_path / "b", FirstK(2), MatchOutput())


def probed(recipe: Recipe, folder: Path, *options: str) -> Recipe:
    """The recipe after `armlet probe` with these options into a folder of its own."""
    own = dataclasses.replace(recipe, out=folder, shared=folder)
    probe.main(override(own, list(options), "armlet probe"))
    return own


def test_what_probe_was_told_is_said_by_the_error_to_the_letter(recipe: Recipe, tmp_path) -> None:
    own = probed(
        recipe,
        tmp_path,
        "--probe.queries",
        "5",
        "--probe.stage.learning-rate",
        "0.002",
        "--probe.stage.transforms.0.brightness",
        "0.3",
        "--probe.stage.train",
        "probe.*",
        "probe.action.*",
    )
    with pytest.raises(ValueError, match="give this verb --probe") as caught:
        distil.main(own)
    said = str(caught.value)
    options = said[said.index("give this verb ") + len("give this verb ") : said.index(" as `")]
    assert set(options.split(" --")) == {
        "--probe.queries 5",
        "probe.stage.learning-rate 0.002",
        "probe.stage.train 'probe.*' 'probe.action.*'",
        "probe.stage.transforms.0.brightness 0.3",
    }
    again = override(own, shlex.split(options), "armlet distil")
    again = dataclasses.replace(
        again, stages=tuple(dataclasses.replace(stage, steps=1) for stage in again.stages)
    )
    assert load_policy(distil.main(again)).to_json()


def test_traces_of_another_precision_name_the_option(recipe: Recipe, tmp_path) -> None:
    own = probed(recipe, tmp_path, "--trace-precision", "bf16")
    with pytest.raises(ValueError, match="give this verb `--trace-precision bf16`"):
        distil.main(own)


@pytest.mark.parametrize(
    ("found", "wanted", "options"),
    [
        ({"a": 1, "b": {"c_d": 2.5}}, {"a": 1, "b": {"c_d": 2}}, ["--probe.b.c-d 2.5"]),
        ({"on": True}, {"on": False}, ["--probe.on"]),
        ({"s": {"on_it": False}}, {"s": {"on_it": True}}, ["--probe.s.no-on-it"]),
        ({"ema": None}, {"ema": 0.9}, ["--probe.ema None"]),
        ({"t": ["*", "a b"]}, {"t": []}, ["--probe.t '*' 'a b'"]),
        ({"class": "A", "x": 1}, {"class": "B", "x": 1}, []),
        ({"x": [{"y": 1}, {"y": 2}]}, {"x": [{"y": 1}, {"y": 3}]}, ["--probe.x.1.y 2"]),
    ],
)
def test_options_say_what_was_found(found: dict, wanted: dict, options: list[str]) -> None:
    assert supervision.options_for(found, wanted, at="probe") == options
