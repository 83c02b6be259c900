"""Recipes are what their names promise: those whose numbers are published stay as they were, and
those for a robot of one's own name no world, no simulator fact and no camera.

`answers/recipes.json` says what every name made when tables replaced one function a recipe: of the
first all fields, of every other those that differ from what an earlier name made (`of`); null:
there is no such field. After a change that is meant, `python tests/test_recipes.py` writes it anew;
its diff then says what moved.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from armlet import recipes
from armlet.recipe import to_json

ANSWERS = Path(__file__).parent / "answers" / "recipes.json"
Flat = dict[str, Any]


def flat(value: Any, place: str = "") -> Flat:
    """A recipe's JSON as dotted names → values. Lists of numbers or words are one value."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        return {place: value}
    found: Flat = {}
    for name, item in items:
        found |= flat(item, f"{place}.{name}" if place else str(name))
    return found


@cache
def described(name: str) -> Flat:
    return flat(to_json(recipes.make(name)))


def differences(found: Flat, base: Flat) -> Flat:
    names = sorted(found.keys() | base.keys())
    return {name: found.get(name) for name in names if found.get(name) != base.get(name)}


@cache
def kept() -> dict[str, Flat]:
    """Name → what it made, all fields."""
    if not ANSWERS.exists():  # it is being written
        return {}
    whole: dict[str, Flat] = {}
    for name, answer in json.loads(ANSWERS.read_text()).items():
        whole[name] = whole.get(answer.pop("of"), {}) | answer
    return whole


@pytest.mark.parametrize("name", kept())
def test_a_name_makes_the_recipe_that_it_made(name: str) -> None:
    assert differences(described(name), kept()[name]) == {}


def test_no_name_is_lost() -> None:
    assert len(kept()) == 53
    others = recipes.available().keys() - kept().keys()
    assert len(recipes.available()) == 53 + len(others)
    assert all(recipes.make(name).benchmark is None for name in others)


def write() -> None:
    rows, before = [], {"": {}}
    for name in recipes.available():
        if recipes.make(name).benchmark is None:  # nobody has published numbers of these
            continue
        found = described(name)
        gaps = {of: differences(found, there) for of, there in before.items()}
        of = min(gaps, key=lambda of: len(json.dumps(gaps[of])))
        rows.append(f"{json.dumps(name)}: {json.dumps({'of': of} | gaps[of])}")
        before[name] = found
    ANSWERS.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    write()
