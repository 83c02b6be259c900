"""What policies say of how they were made: which differ in their seed alone, and which logs are
theirs; folders' names decide nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_outcomes import policy

from armlet.evaluation import figures
from armlet.evaluation import outcomes as kept
from armlet.evaluation.outcomes import Outcomes, Planned
from armlet.evaluation.provenance import curves, gripper_noise, seeds_of
from armlet.rollout.pool import Contender


def student(seed: int, **question) -> dict:
    return {"question": {"data": "d", "stages": [{"steps": 3}], **question, "seed": seed}}


def together(made: dict[str, dict], **settings: dict) -> dict[str, str]:
    field = {name: Contender(Path(name), **settings.get(name, {})) for name in made}
    return seeds_of(field, made)


def test_students_of_one_question_and_several_seeds_belong_together() -> None:
    teacher = {"question": {"data": "d", "steps": 9, "seed": 0}}
    made = {"teacher": teacher, "first-0": student(0), "first-1": student(1)}
    assert together(made) == {"first-0": "first", "first-1": "first"}
    named = {"tom": student(0), "ann": student(1), "other": student(2, data="e")}
    assert together(named) == {"tom": "tom + ann", "ann": "tom + ann"}


def test_names_alone_put_nobody_together_who_says_otherwise() -> None:
    """The second was made with other data, whatever its folder is called."""
    made = {"first-0": student(0), "first-1": student(1, data="e"), "first-2": student(2)}
    assert together(made) == {"first-0": "first", "first-1": "first-1", "first-2": "first"}
    twice = {"first-0": student(0), "first-1": student(0)}
    assert together(twice) == {"first-0": "first-0", "first-1": "first-1"}, "one seed, run twice"


def test_who_says_nothing_is_left_to_its_name() -> None:
    assert together({"first-0": {}, "first-1": {"recipe": {"seed": 1}}}) == {}
    assert together({"a": student(0), "b": student(1, data="e")}) == {}


def test_students_at_other_budgets_or_paces_are_other_students() -> None:
    made = {f"x-{n}{way}": student(n) for way in ("", " execute 4", " at 0.5") for n in (0, 1)}
    paces = {name: {"execute": 4} for name in made if "execute" in name}
    budgets = {name: {"budget": 0.5} for name in made if " at " in name}
    found = together(made, **paces, **budgets)
    assert found == {
        name: "x" + way
        for way in ("", " execute 4", " at 0.5")
        for name in (f"x-0{way}", f"x-1{way}")
    }


def test_a_student_and_what_it_was_shortened_to_are_two() -> None:
    """Seeds of the one and of the other stand together, and never the one with the other."""
    later = [{"policy": "somewhere", "fingerprint": "f", "execute": 8}]
    made = {f"x-{n}": student(n) for n in (0, 1)}
    made |= {f"x_later-{n}": {**student(n), "shortened": later} for n in (0, 1)}
    found = together(made)
    assert found == {name: name[:-2] for name in made}


def test_it_says_nothing_in_how_many_commands_a_student_was_shortened() -> None:
    """Each command says of which policy it was, which differs: what came out is one."""
    of = {"policy": "somewhere", "fingerprint": "f"}
    at_once = [{**of, "steps": 1, "execute": 8, "weights": "fp16"}]
    in_two = [{**of, "execute": 6, "weights": "fp16"}, {**of, "steps": 1, "execute": 8}]
    made = {"x-0": {**student(0), "shortened": at_once}, "x-1": {**student(1), "shortened": in_two}}
    assert together(made) == {"x-0": "x", "x-1": "x"}
    made["x-1"]["shortened"][0].pop("weights")  # not rounded: other weights
    assert together(made) == {"x-0": "x-0", "x-1": "x-1"}
    made["x-1"]["shortened"] = ["abc"]
    with pytest.raises(ValueError, match=r"x-1: provenance\.shortened .* expected a list"):
        together(made)


def test_a_group_takes_no_name_that_is_taken() -> None:
    made = {"x": student(7, data="e"), "x-0": student(0), "x-1": student(1)}
    assert together(made)["x-0"] == "x (x-0, x-1)"


# --- into outcomes, and out again


def outcomes_of(groups: dict[str, str | None]) -> Outcomes:
    rng = np.random.default_rng(1)
    episodes = tuple(Planned("seen", "hand", "touch", seed) for seed in range(20))
    runs = []
    for name, group in groups.items():
        won = "".join(map(str, rng.integers(0, 2, 20)))
        runs.append(policy(name, won, [5] * 20, seeds_of=group))
    return Outcomes(10.0, 40, episodes, tuple(runs))


def test_what_they_say_is_kept_beside_the_outcomes_and_decides(tmp_path: Path) -> None:
    groups = {"teacher": None, "tom": "a", "ann": "a", "b-0": "b-0", "b-1": "b-1", "c-0": None}
    outcomes = outcomes_of(groups | {"c-1": None})
    seeds = kept.recompute(outcomes)["seeds"]["policies"]
    assert [(row["name"], row["seeds"]) for row in seeds] == [("teacher", 1), ("a", 2), ("c", 2)]
    path = tmp_path / "outcomes.json.gz"
    kept.write(path, outcomes)
    assert kept.read(path) == outcomes
    rows = kept.recompute(outcomes)["policies"]
    assert [row.get("seeds_of") for row in rows] == [*groups.values(), None]


def test_a_file_in_which_nobody_says_anything_is_as_it_was() -> None:
    silent = outcomes_of({"teacher": None, "x-0": None})
    assert b"seeds_of" not in kept.to_bytes(silent)
    assert kept.from_bytes(kept.to_bytes(silent)) == silent


@pytest.mark.parametrize("groups", [{"tom": "a", "ann": "a"}, {"a-0": None, "a-1": None}])
def test_students_of_one_recipe_are_drawn_in_one_colour(groups, tmp_path, monkeypatch) -> None:
    from matplotlib.axes import Axes

    found = kept.recompute(outcomes_of({"teacher": None, **groups}))
    for row in found["policies"]:
        row["latency_ms"] = {"policy": {"p50": 3.0}}
        row["runtime"] = "eager"
        row["precision"] = "fp32"
    colours: list[str] = []
    draw = Axes.errorbar

    def errorbar(axes, *arguments, **style):
        colours.extend([style["color"]] * len(arguments[0]))
        return draw(axes, *arguments, **style)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    report = {**found, "fingerprint": {"benchmark": {"benchmark": "dots"}}}
    figures.success_against_latency(report, tmp_path / "picture.png")
    assert colours[1] == colours[2] == colours[3] != colours[0]  # two seeds, and their mean


# --- logs


def logged(folder: Path, index: int, stage: dict, losses: list[float], teacher: str = "t") -> None:
    place = folder / f"distil-{index}"
    place.mkdir(parents=True)
    first = stage["steps"] - len(losses) + 1
    rows = [{"step": first + place, "loss": loss} for place, loss in enumerate(losses)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "stage.json").write_text(json.dumps({"stage": stage, "teacher": teacher}))


def test_only_logs_of_the_stages_that_made_a_student_are_its_curves(tmp_path: Path) -> None:
    first, second, third = {"steps": 3}, {"steps": 4}, {"steps": 5}
    made = student(0, stages=[first, second], rounds=[{"stage": third}], teacher="t")
    folder = tmp_path / "called as one likes"
    logged(tmp_path, 0, first, [3.0, 1.23456789])
    logged(tmp_path, 1, {"steps": 4000}, [9.0])  # of a later run
    logged(tmp_path, 2, third, [0.5])
    assert curves(folder, made) == [
        {"step": [2, 3], "loss": [3.0, 1.2346]},
        {"step": [5], "loss": [0.5]},
    ]
    assert curves(folder, {}) == [], "it does not say how it was made"
    assert curves(folder, student(0, stages=[first], teacher="another")) == []
    assert len(curves(folder, student(0, stages=[first], teacher="t"))) == 1


def test_a_log_that_ends_before_its_stage_is_no_curve(tmp_path: Path) -> None:
    stage = {"steps": 3}
    logged(tmp_path, 0, stage, [3.0, 2.0])
    log = tmp_path / "distil-0" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-1])  # the last line has no end any more
    with pytest.raises(ValueError, match=r"metrics\.jsonl ends at step 2, and the stage had 3"):
        curves(tmp_path / "student", student(0, stages=[stage], teacher="t"))


def test_the_share_of_flipped_labels_is_read_from_stages_and_transforms() -> None:
    noise = {"class": "GripperNoise", "share": 0.3}
    stages = [{"gripper_noise": 0.1}, {"transforms": [{"class": "Augment"}, noise]}]
    assert gripper_noise({"recipe": {"stages": stages[:1]}}) == 0.1
    assert gripper_noise({"recipe": {"stages": stages}}) == 0.3
    assert gripper_noise({"recipe": {"rounds": [{"stage": stages[1]}]}}) == 0.3
    assert gripper_noise({"recipe": {"stages": [{}]}}) == 0.0 and gripper_noise({}) is None
