"""Numbers that a user may set: those that mean nothing are refused by name, before anything is
done."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from tiny import tiny_recipe

from armlet.data.transforms import Balance, DrawBudget, Explore, GripperNoise
from armlet.limits import ABOVE_0, BELOW_1, MOST, check, typed
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, LayerDrop
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.policies.vla import VLANetwork
from armlet.recipe import Collection, Evaluation, OwnAverage, Probe, Round, Stage
from armlet.recipes.bases import Imitate

STAGE = Stage(Imitate(), steps=5)


@dataclasses.dataclass
class Some:
    share: float | None = 0.5
    several: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("low", "high", "inside", "outside"),
    [
        (0, 1, (0, 0.5, 1, None), (-0.1, 1.1, math.nan, math.inf)),
        (ABOVE_0, 1, (1e-300, 1), (0, -1, math.nan)),
        (0, BELOW_1, (0, 0.999), (1, 1.5)),
        (1, math.inf, (1, math.inf), (0, math.nan)),
        (ABOVE_0, MOST, (1e308,), (math.inf, 0)),
    ],
)
def test_a_range_has_its_ends_and_no_nan(
    low: float, high: float, inside: tuple, outside: tuple
) -> None:
    for number in inside:
        check(Some(number), share=(low, high))
        check(Some(several=(number, number)), several=(low, high))
    for number in outside:
        with pytest.raises(ValueError, match=r"Some\.share is .*, expected"):
            check(Some(number), share=(low, high))
        with pytest.raises(ValueError, match=r"Some\.several is .*, expected"):
            check(Some(several=(inside[0], number)), several=(low, high))


@pytest.mark.parametrize(
    "field",
    [
        {"steps": -1}, {"batch_size": 0}, {"log_every": 0}, {"checkpoint_every": 0}, {"learning_rate": 0}, {"learning_rate": math.nan},
        {"clip": 0}, {"clip": -1}, {"ema": 1}, {"ema": -1}, {"weight_decay": -1}, {"warmup": -1},
    ],
    ids=str,
)  # fmt: skip
def test_stages(field: dict) -> None:
    with pytest.raises(ValueError, match=rf"Stage\.{next(iter(field))} is .*, expected"):
        dataclasses.replace(STAGE, **field)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (Collection, {"episodes": 0}), (Collection, {"disturbed_share": 2}), (Collection, {"workers": 0}),
        (Evaluation, {"episodes": 0}), (Evaluation, {"latency_calls": 0}), (Evaluation, {"execute": (2, 0)}), (Evaluation, {"seed": -1}),
        (Evaluation, {"slower": (math.nan,)}), (Evaluation, {"slower": (math.inf,)}), (Evaluation, {"slower": (0,)}),
        (Evaluation, {"budgets": (0,)}), (Evaluation, {"workers": 0}),
        (OwnAverage, {"decay": 1}), (OwnAverage, {"decay": -0.1}), (Balance, {"power": -1}), (GripperNoise, {"share": 1.1}),
        (Explore, {"last": -1}), (DrawBudget, {"lowest": 0}), (DrawBudget, {"highest": 1.5}), (DrawBudget, {"lowest": 0.8, "highest": 0.2}),
        (partial(Probe, STAGE), {"neighbours": 0}), (partial(Round, STAGE), {"share": 1}), (partial(Round, STAGE), {"replay": 0}),
        (VLANetwork, {"depth": 0}), (VLANetwork, {"chunk": 0}), (VLANetwork, {"execute": 7}), (VLANetwork, {"heads": 3}),
        (VLANetwork, {"width": 10**9}), (VLANetwork, {"vision_channels": 0}), (TwoTowerNetwork, {"goal": -1}),
        (Routing, {"budget": 7}), (Routing, {"budget": 0}), (Routing, {"initial_keep": 2}), (Routing, {"hidden": 0}),
        (partial(FirstK, layers=1), {"layers": 0}), (partial(LayerDrop, layers=1), {"layers": -1}),
        (TwoTowerNetwork, {"patch": 0}), (TwoTowerNetwork, {"heads": 5}), (TwoTowerNetwork, {"execute": 0}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else getattr(value, '__name__', 'a stage'),
)  # fmt: skip
def test_everything_else(make, field: dict) -> None:
    make()
    with pytest.raises(ValueError, match=rf"\.{next(iter(field))} is .*, expected"):
        make(**field)


def test_recipes(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    none = tuple(dataclasses.replace(stage, steps=0) for stage in recipe.stages)
    for field, said in (
        ({"seed": -1}, "seed is -1"),
        ({"held_out": 0}, "held_out is 0"),
        ({"held_out": 2}, "held_out is 2"),
        ({"outside_range": math.nan}, "outside_range is nan"),
        ({"teach": dataclasses.replace(recipe.teach, steps=0)}, "teach has no steps"),
        (
            {
                "probe": dataclasses.replace(
                    recipe.probe, stage=dataclasses.replace(recipe.probe.stage, steps=0)
                )
            },
            r"probe\.stage has no steps",
        ),
        ({"stages": none}, "stages has no steps"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(recipe, **field)
    dataclasses.replace(
        recipe, stages=(none[0], *recipe.stages[1:])
    )  # one of several may be left out


@dataclasses.dataclass
class Kinds:
    whole: int = 1
    number: float = 0.5
    text: str = "a"
    word: Literal["up", "down"] = "up"
    several: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    named: dict[str, int] = dataclasses.field(default_factory=dict)
    maybe: int | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("whole", (1, -3), (True, 1.5, "1", None, [])),
        ("number", (1, 0.5, math.inf), (True, "1", None, math.nan)),
        ("text", ("",), (1, None, ("a",))),
        ("word", ("down",), ("left", None, [])),
        ("several", ((), (1, 2)), ([1], (1, "a"), "ab", 1)),
        ("pair", ((2, "b"),), ((2,), ("b", 2), (2, "b", 3))),
        ("named", ({}, {"a": 1}), ({"a": "b"}, {1: 1}, [], None)),
        ("maybe", (1, None), ("a", 0.5)),
        ("anything", (1, "a", None), ()),
    ],
)
def test_a_value_is_of_its_fields_type(field: str, good: tuple, bad: tuple) -> None:
    for value in good:
        typed(Kinds(**{field: value}))
    for value in bad:
        with pytest.raises(ValueError, match=rf"Kinds\.{field} is .*, expected"):
            typed(Kinds(**{field: value}))
