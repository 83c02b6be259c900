"""What an episode asks for and in which scene, drawn for each task: things, hand, look and words.
Knows no physics and no expert."""

from dataclasses import dataclass

import numpy as np

from armlet.benchmarks import Task
from armlet.benchmarks.tabletop import language
from armlet.benchmarks.tabletop.scene import (
    HANDLE_FORWARD,
    LOW,
    OBJECT_COLOURS,
    PLACE_COLOURS,
    REACH,
    Layout,
    Thing,
    draw_look,
    draw_objects,
    draw_twins,
    spread,
)

# Splits in which a shape is needed; whether the thing meant is held out.
TWINS = {"unseen_shapes": True, "seen_shapes": False}


@dataclass(frozen=True)
class Goal:
    """What this episode asks for: the names of the bodies involved and the words."""

    skill: str
    subject: str
    target: str = ""
    side: str = ""
    instruction: str = ""


def draw(task: Task, rng: np.random.Generator) -> tuple[Layout, Goal]:
    """The scene of one episode and what is asked for in it."""
    return _LAYOUTS[task.name](rng, task)


def belt_direction(layout: Layout, goal: Goal) -> float:
    """+1 to the left or −1 to the right: against a push, else so that what is meant passes the
    middle of the table."""
    if goal.skill == "push":  # with it, waiting would be enough
        return -1.0 if goal.side == "left" else 1.0
    meant = []
    for thing in layout.things:
        if thing.name in (goal.subject, goal.target):
            meant.append(thing.position[1])
    return -1.0 if np.mean(meant) > 0 else 1.0


def _objects(
    rng: np.random.Generator, points: list[tuple[float, float]], task: Task
) -> list[Thing]:
    if task.split in TWINS:
        drawn = draw_twins(rng, len(points), unseen=TWINS[task.split])
    else:
        drawn = draw_objects(rng, len(points), unseen=task.split == "unseen_objects")
    things = []
    for (colour, shape), point in zip(drawn, points, strict=True):
        yaw = float(rng.uniform(-0.25, 0.25))
        name = f"{colour}_{shape}"
        things.append(Thing(name, "object", OBJECT_COLOURS[colour], point, shape, yaw=yaw))
    return things


def _finish(
    rng: np.random.Generator,
    task: Task,
    things: list[Thing],
    skill: str,
    subject: str,
    words: dict[str, str],
    **goal: str,
) -> tuple[Layout, Goal]:
    # What is drawn, and in which order, is the world of a seed: whatever is added is drawn last.
    hand = _hand(rng, things)
    look = draw_look(rng, unseen=task.split == "unseen_scenes")
    text = language.say(skill, words, rng, split=task.split)
    return Layout(tuple(things), hand, look), Goal(skill, subject, instruction=text, **goal)


def _hand(rng: np.random.Generator, things: list[Thing]) -> tuple[float, float, float]:
    """Where the hand starts: mostly over some thing, any thing, so that where it is does not tell
    what is meant."""
    # Anywhere in a third of the episodes.
    if rng.random() < 0.35:
        return tuple(rng.uniform([-0.20, -0.18, 0.09], [0.12, 0.18, 0.20]))
    thing = things[rng.integers(len(things))]
    x, y = np.array(thing.position) + rng.normal(0, 0.02, 2)
    if thing.kind == "drawer":
        x -= thing.opening + HANDLE_FORWARD  # over its handle
    return (
        float(np.clip(x, LOW[0], REACH)),
        float(np.clip(y, -0.19, 0.19)),
        float(rng.uniform(0.085, 0.16)),
    )


def spoken(name: str) -> str:
    """A thing's name as people say it."""
    return name.replace("_", " ")


def _touch_layout(rng: np.random.Generator, task: Task) -> tuple[Layout, Goal]:
    # The first thing is the one that is meant, here and below. It is not to be seen: places and
    # colours are drawn at random.
    things = _objects(rng, spread(rng, 4, (-0.16, -0.17), (0.12, 0.17), 0.09), task)
    return _finish(rng, task, things, "touch", things[0].name, {"object": spoken(things[0].name)})


def _push_layout(rng: np.random.Generator, task: Task) -> tuple[Layout, Goal]:
    """Rows along x, so that a push along y meets no other object."""
    rows = rng.permutation([-0.13, -0.03, 0.07])
    points = []
    for x in rows:
        points.append((float(x + rng.uniform(-0.012, 0.012)), float(rng.uniform(-0.085, 0.085))))
    things = _objects(rng, points, task)
    side = ("left", "right")[rng.integers(2)]
    words = {"object": spoken(things[0].name), "side": side}
    return _finish(rng, task, things, "push", things[0].name, words, side=side)


def _place_layout(rng: np.random.Generator, task: Task) -> tuple[Layout, Goal]:
    # 10.5 cm apart, as plates and boxes are 9 cm wide.
    points = spread(rng, 5, (-0.15, -0.16), (0.12, 0.16), 0.105)
    things = _objects(rng, points[:3], task)
    colours = rng.permutation(list(PLACE_COLOURS))[:2]
    kinds = rng.choice(["plate", "box"], 2)
    places = []
    for colour, kind, point in zip(colours, kinds, points[3:], strict=True):
        places.append(Thing(f"{colour}_{kind}", kind, PLACE_COLOURS[colour], point))
    words = {
        "object": spoken(things[0].name),
        "target": spoken(places[0].name),
        "relation": "on" if places[0].kind == "plate" else "into",
    }
    return _finish(
        rng, task, things + places, "place", things[0].name, words, target=places[0].name
    )


def _stack_layout(rng: np.random.Generator, task: Task) -> tuple[Layout, Goal]:
    things = _objects(rng, spread(rng, 4, (-0.15, -0.16), (0.12, 0.16), 0.105), task)
    words = {"object": spoken(things[0].name), "target": spoken(things[1].name)}
    return _finish(rng, task, things, "stack", things[0].name, words, target=things[1].name)


def _drawer_layout(rng: np.random.Generator, task: Task) -> tuple[Layout, Goal]:
    """Both drawers start half open, so that neither the picture nor the state says what to do."""
    colours = rng.permutation(list(OBJECT_COLOURS))[:2]
    depth = rng.uniform(0.14, 0.17)
    middle = rng.uniform(-0.03, 0.03)
    # Side by side with 17 cm between their middles; a cabinet is 12 cm wide.
    drawers = []
    for colour, offset in zip(colours, (0.085, -0.085), strict=True):
        drawers.append(
            Thing(
                f"{colour}_drawer",
                "drawer",
                OBJECT_COLOURS[colour],
                (float(depth), float(middle + offset)),
                opening=float(rng.uniform(0.05, 0.075)),
            )
        )
    # Between the operator and the drawers, where they are in nobody's way.
    loose = _objects(rng, spread(rng, 2, (-0.17, -0.17), (-0.09, 0.17), 0.09), task)
    chosen = drawers[rng.integers(2)]
    return _finish(
        rng, task, drawers + loose, task.name, chosen.name, {"object": spoken(chosen.name)}
    )


def _rake_layout(rng: np.random.Generator, task: Task) -> tuple[Layout, Goal]:
    rows = rng.permutation([-0.14, 0.0, 0.14])
    # All three lie beyond `REACH`, so that none of them can be had by hand.
    points = []
    for y in rows:
        points.append((float(rng.uniform(0.185, 0.225)), float(y + rng.uniform(-0.015, 0.015))))
    things = _objects(rng, points, task)
    place = (float(rng.uniform(-0.07, -0.03)), float(rng.uniform(-0.14, 0.14)))
    # Within reach, and nearly straight, as the hand cannot turn it.
    rake = Thing("rake", "rake", (0.35, 0.22, 0.10), place, yaw=float(rng.uniform(-0.06, 0.06)))
    return _finish(
        rng, task, [*things, rake], "rake", things[0].name, {"object": spoken(things[0].name)}
    )


_LAYOUTS = {
    "touch": _touch_layout,
    "push": _push_layout,
    "place": _place_layout,
    "stack": _stack_layout,
    "open": _drawer_layout,
    "close": _drawer_layout,
    "rake": _rake_layout,
}
