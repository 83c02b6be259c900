"""Recipes are what their names promise: those whose numbers are published stay as they were, and
those for a robot of one's own name no world, no simulator fact and no camera.

`answers/recipes.json` says what every name made when the tables replaced one function a recipe:
`tabletop` whole, field by field, and of every other what differs from it (null: there is no such
field). After a change that is meant, `python tests/test_recipes.py` writes it anew; the diff then
says what moved.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from armlet import recipes
from armlet.recipe import to_json

ANSWERS = Path(__file__).parent / "answers" / "recipes.json"
BASE = "tabletop"


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """A recipe's JSON as dotted names → values; what is empty stands as it is."""
    if not isinstance(value, dict | list) or not value:
        return {place: value}
    found: dict[str, Any] = {}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        found |= flat(item, f"{place}.{name}" if place else str(name))
    return found


def described(name: str) -> dict[str, Any]:
    return flat(to_json(recipes.make(name)))


def differences(found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    names = sorted(found.keys() | base.keys())
    return {name: found.get(name) for name in names if found.get(name) != base.get(name)}


def kept() -> dict[str, dict[str, Any]]:
    if not ANSWERS.exists():  # it is being written
        return {}
    answers: dict[str, dict[str, Any]] = json.loads(ANSWERS.read_text())
    return answers


@pytest.mark.parametrize("name", kept())
def test_a_name_makes_the_recipe_that_it_made(name: str) -> None:
    answers = kept()
    base = answers[BASE]
    wanted = base if name == BASE else base | answers[name]
    found = described(name)
    gap = {place: (value, found.get(place)) for place, value in wanted.items()}
    gap = {place: pair for place, pair in gap.items() if pair[0] != pair[1]}
    added = {place: value for place, value in found.items() if place not in wanted}
    assert (gap, {place: value for place, value in added.items() if value is not None}) == ({}, {})


def test_no_name_is_lost() -> None:
    assert len(kept()) == 47
    assert kept().keys() <= recipes.available().keys()


def write() -> None:
    base = described(BASE)
    lines = {BASE: base}
    for name in recipes.available():
        recipe = recipes.make(name)
        if name != BASE and recipe.benchmark is not None:
            lines[name] = differences(described(name), base)
    rows = [f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in lines.items()]
    ANSWERS.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    write()
