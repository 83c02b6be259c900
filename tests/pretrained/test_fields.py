"""Whatever stands in a checkpoint's JSON files, or in a `policy.toml`, it is loaded or refused in one
sentence that names the file or the field: a seeded walk over all fields of all of them, and what
`Fields` itself takes."""

import copy
import dataclasses
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from every_kind import MAKE

from armlet.policies.pretrained import kinds, page
from armlet.policies.pretrained.fields import MOST, Fields, sizes_from

GONE = "the field is taken away"
# Anything that JSON can hold where something else is expected.
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 3.7, math.inf, math.nan, 10**9, 10**30, "x", ""),
    *([], [1], ["x"], [[1]], {}, {"a": 1}, GONE),
)
TRIES = 6  # fields of each kind, of some thousands; each is a checkpoint that is loaded
MANY = 100
# Read by a library, or by nobody.
OTHERS = ("tokenizer.json", "generation_config.json", "special_tokens_map.json")
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where the fields of a JSON value stand; of lists the first two."""
    if at:
        yield at
    if len(at) == 5:
        return
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*at, name))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from places(value[index], (*at, index))


def changed(content: Any, at: Place, value: Any) -> str:
    content = copy.deepcopy(content)
    inner = content
    for step in at[:-1]:
        inner = inner[step]
    if value == GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return json.dumps(content)


def check_refusal(error: Exception, file: Path, at: Place, root: Path) -> None:
    said = str(error)
    assert "\n" not in said and len(said) < 1500, said
    names = [step for step in at if isinstance(step, str)]
    named = [file.name, str(root), *names[-2:]]
    assert any(name in said for name in named), f"{said} says nothing of {file.name}, {at}"


@pytest.mark.parametrize(
    "kind", [kind for kind in MAKE if not kind.endswith(("rare options", "without guidance"))]
)
@pytest.mark.parametrize("count", [TRIES, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_field_of_any_type_is_taken_or_refused_by_name(
    kind: str, count: int, tmp_path: Path
) -> None:
    place = MAKE[kind](tmp_path)
    files = []
    for file in sorted(tmp_path.rglob("*.json")):
        # A folder of golden files has answers beside the checkpoint.
        if file.name not in (
            *OTHERS,
            "fixture.json",
            "mistakes.json",
            "model.safetensors.index.json",
        ):
            files.append(file)
    tries = []
    for file in files:
        content = json.loads(file.read_text())
        for at in places(content):
            tries += [(file, content, at, value) for value in WRONG]
    for file, content, at, value in random.Random(7).sample(tries, count):
        before = file.read_text()
        file.write_text(changed(content, at, value))
        try:
            kinds.load(place)
            said, module = kinds.find(place)  # what can be loaded can be described
            page.page(module.describe(said))
        except (ValueError, FileNotFoundError) as error:
            check_refusal(error, file, at, tmp_path)
        except Exception as error:
            raise AssertionError(f"{file.name} {at} {value!r}: {error!r}") from error
        finally:
            file.write_text(before)
    kinds.load(place)


@pytest.mark.parametrize(
    "kind", ["openvla_hf", "openvla_oft", "cogact", "pi0", "pi05", "smolvla", "act", "diffusion"]
)
def test_a_policy_toml_of_any_type_is_taken_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    place = MAKE[kind](tmp_path)
    text = place.read_text()
    options = [each.name for each in dataclasses.fields(kinds._kind(kind).Options)]
    values = [
        "true",
        "-1",
        "0",
        "3.7",
        "inf",
        "nan",
        '"x"',
        '""',
        "[]",
        "[1]",
        '["x"]',
        "[[1]]",
        "{}",
    ]
    for name in (
        "kind",
        "precision",
        "tokenizer",
        "execute",
        "checkpoint",
        "cameras",
        "options",
        *options,
    ):
        for value in random.Random(name).sample(values, 5):
            if name == "tokenizer" and value == '"x"':
                continue  # a name, which the hub would be asked for
            line = f"{name} = {value}\n"
            kept = re.sub(rf"^{name} = .*\n", "", text, flags=re.M)
            if name in options:
                changed_text = kept.replace("[options]\n", f"[options]\n{line}")
            elif name in ("cameras", "options"):
                changed_text = line + re.sub(rf"^\[{name}\]\n[^\[]*", "", kept, flags=re.M)
            else:
                changed_text = line + kept
            place.write_text(changed_text)
            try:
                kinds.load(place)
            except (ValueError, FileNotFoundError) as error:
                said = str(error)
                assert "\n" not in said and len(said) < 1500, said
                assert str(tmp_path) in said or name in said or "tokenizer" in said, (line, said)
            except Exception as error:
                raise AssertionError(f"{line!r}: {error!r}") from error


def test_numbers_are_in_their_range_and_no_booleans() -> None:
    fields = Fields({"n": 3, "x": 0.5, "yes": True, "nothing": None, "old": 0}, "c.json", "inner")
    assert (fields.whole("n"), fields.whole("m", 7), fields.whole_or_none("nothing")) == (
        3,
        7,
        None,
    )
    assert (fields.real("n"), fields.real("x", above=0, most=1)) == (3.0, 0.5)
    assert fields.flag("yes") and not fields.flag("old") and fields.flag("m", True)
    for ask, said in (
        (
            lambda: fields.whole("yes"),
            rf"c.json: inner.yes is True, expected a whole number of 1 to {MOST}",
        ),
        (lambda: fields.whole("n", least=4), "inner.n is 3, expected a whole number of 4"),
        (lambda: fields.whole("n", most=2), "of 1 to 2"),
        (lambda: fields.whole("x"), "inner.x is 0.5"),
        (lambda: fields.whole("m"), "c.json has no 'inner.m'"),
        (lambda: fields.real("x", above=0.5), "expected a finite number above 0.5"),
        (lambda: fields.real("x", least=1), "of 1 or more"),
        (lambda: fields.real("yes"), "inner.yes is True"),
        (lambda: fields.flag("n"), "inner.n is 3, expected true or false"),
    ):
        with pytest.raises(ValueError, match=said):
            ask()
    for number in (math.nan, math.inf, -math.inf, 10**400):
        with pytest.raises(ValueError, match="expected a finite number"):
            Fields({"x": number}, "c.json").real("x")


def test_tables_lists_and_texts() -> None:
    fields = Fields({"t": {"a": "b"}, "l": [3, 4], "w": ["x"], "s": "x", "e": []}, "c.json")
    assert fields.table("t").text("a") == "b"
    assert fields.table_or_empty("none").values == {}
    assert fields.wholes("l", count=2) == (3, 4)
    assert fields.texts_or_none("w") == ("x",) and fields.texts_or_none("none") is None
    for ask, said in (
        (lambda: fields.table("t").text("a", known=("c", "d")), "t.a is 'b', expected c, d"),
        (lambda: fields.table("l"), "l is .* expected an object"),
        (lambda: fields.wholes("l", count=3), "expected a list of 3 whole numbers"),
        (lambda: fields.wholes("e"), "e is .* expected a list"),
        (lambda: fields.wholes("l", most=3), "whole numbers of 1 to 3"),
        (lambda: fields.texts_or_none("l"), "expected a list of texts"),
        (lambda: fields.text("l"), "expected a text"),
    ):
        with pytest.raises(ValueError, match=said):
            ask()


def test_sizes_that_make_no_network_are_told_with_their_file() -> None:
    wrong = pytest.raises(ValueError, match=r"c\.json: no network can be built .*divisible")
    with wrong, sizes_from("c.json"):
        raise AssertionError("embed_dim must be divisible by num_heads")
    with pytest.raises(ValueError, match=r"^c\.json: said already$"), sizes_from("c.json"):
        raise ValueError("c.json: said already")
