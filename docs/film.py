"""The film of the first page: teacher and student in the same scenes, and which layers each ran.

    make demo && python docs/film.py        # writes docs/film.gif

A row a policy, a column a task; a green bar says that the task has succeeded. Below each row stand
the teacher's layers, those that ran lit. It picks the first scene of each task from a seed that no
report uses, whatever comes of it. Knows no recipe and counts nothing: one episode each says nothing
about success.
"""

import argparse
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from armlet import load_policy
from armlet.benchmarks import Task
from armlet.benchmarks.tabletop import Tabletop

ROOT = Path(__file__).parent.parent
TASKS = ("push", "stack", "open", "rake")
SEED = 990_000_000
SIDE = 168  # pixels of a picture
TEXT = 16  # and of a line of text
STEPS = 30  # of an episode, three seconds
GREEN, LIT, DARK, PAPER, INK = "#2e9e4f", "#e8a33d", "#d9d9d9", "#ffffff", "#333333"


@dataclass
class Shot:
    """What one policy did in one scene: a frame, the layers that ran, and whether it had succeeded,
    for each step."""

    instruction: str
    frames: list[np.ndarray]
    layers: list[tuple[int, ...]]
    success: list[bool]

    def at(self, step: int) -> int:
        """The last step is held."""
        return min(step, len(self.frames) - 1)


def shoot(policy: Any, benchmark: Tabletop, task: Task, seed: int) -> Shot:
    """One episode, to its success or to `STEPS`."""
    world = benchmark.make(task, seed)
    shot = Shot(world.instruction, [world.render(SIDE)], [()], [False])
    while len(shot.frames) < STEPS and not shot.success[-1]:
        decision = policy.decide(world.observe())
        gates = zip(policy.layer_numbers, decision.gates, strict=True)
        ran = tuple(number for number, gate in gates if gate)
        for action in decision.actions[: policy.execute]:
            shot.success.append(bool(world.step(action)))
            shot.frames.append(world.render(SIDE))
            shot.layers.append(ran)
            if shot.success[-1]:
                break
    return shot


def compose(rows: dict[str, list[Shot]], depth: int, step: int) -> Image.Image:
    """One frame of the film."""
    font = ImageFont.load_default(size=11)
    height = SIDE + TEXT
    head = 2 * TEXT
    image = Image.new("RGB", (SIDE * len(TASKS), head + height * len(rows)), PAPER)
    draw = ImageDraw.Draw(image)
    for column, shot in enumerate(next(iter(rows.values()))):
        said = textwrap.fill(shot.instruction, 28)
        draw.multiline_text((SIDE * column + 3, 1), said, INK, font, spacing=2)
    for row, (name, shots) in enumerate(rows.items()):
        top = head + height * row
        for column, shot in enumerate(shots):
            left, now = SIDE * column, shot.at(step)
            image.paste(Image.fromarray(shot.frames[now]), (left, top))
            if shot.success[now]:
                draw.rectangle((left, top, left + SIDE - 1, top + 4), GREEN)
            draw.text((left + 3, top + SIDE + 1), name, INK, font)
            for layer in range(depth):
                x = left + 52 + 14 * layer
                colour = LIT if layer in shot.layers[now] else DARK
                draw.rectangle((x, top + SIDE + 3, x + 10, top + SIDE + 12), colour)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, default=ROOT / "checkpoints/tabletop-teacher")
    parser.add_argument("--student", type=Path, default=ROOT / "out/demo/actdistill/student")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/film.gif")
    asked = parser.parse_args()
    benchmark = Tabletop()
    tasks = {task.name: task for task in benchmark.tasks()}
    policies = {"teacher": load_policy(asked.teacher), "student": load_policy(asked.student)}
    rows = {
        name: [shoot(policy, benchmark, tasks[task], SEED) for task in TASKS]
        for name, policy in policies.items()
    }
    frames = [compose(rows, len(policies["teacher"].layers), step) for step in range(STEPS + 8)]
    palette = [frame.quantize(96, dither=Image.Dither.NONE) for frame in frames]
    palette[0].save(
        asked.out, save_all=True, append_images=palette[1:], duration=100, loop=0, optimize=True
    )


if __name__ == "__main__":
    main()
