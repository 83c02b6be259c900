"""A checkpoint of another project for people to read: its card as a page, what to look at, where the
milliseconds of a decision will go on this machine, and a `policy.toml` to be completed.

All of it from headers and small files: no weight is read.
"""

from collections.abc import Sequence

import numpy as np

from armlet.machine import Machine
from armlet.policies.pretrained.card import Card, Choice, Value, Work
from armlet.policies.pretrained.said import FILE, Said
from armlet.robot.description import as_toml
from armlet.robot.normalise import Normaliser

GUESS = "#? "  # a comment of TOML, so that a guess is never read
STILL = 1e-6  # of where a dimension stands: it never moved in the data that the statistics are of
HUGE = 1e4  # in a robot's numbers: metres, radians and degrees are all far below
AWAY = 10.0  # of a normalised number: most frames of the same robot lie within a few
NARROW = 0.04  # of a normalised width, where the checkpoint's own data have about 2


def seconds(card: Card, machine: Machine) -> dict[str, float]:
    """An estimate of what each part of a network adds to a decision, in seconds: its
    multiplications (two a parameter and token), or reading its weights (in single precision) where
    that takes longer. Attention between tokens, small beside them, is left out."""
    found: dict[str, float] = {}
    for part, count in card.parts.items():
        for work in card.work.get(part, ()):
            once = machine.seconds(2 * count * work.tokens, 4 * count)
            found[part] = found.get(part, 0.0) + once * work.runs
    return found


def page(card: Card, machine: Machine | None = None) -> str:
    """The whole page. `machine`: whose milliseconds are estimated; None: nobody's."""
    lines = [
        f"{card.root}",
        f"  a checkpoint of kind {card.kind}: {_count(card.parameters)} parameters, "
        f"{_bytes(sum(file.stat().st_size for file in card.files))} in {len(card.files)} "
        f"file{'' if len(card.files) == 1 else 's'} "
        f"({', '.join(f'{count} {kind}' for kind, count in card.dtypes.items())})",
        f"  in memory: {_bytes(4 * card.parameters)} in fp32, {_bytes(2 * card.parameters)} in bf16 "
        f"(`precision` in {FILE})",
        f"  decides {card.chunk} actions at a time and carries out {card.execute}"
        + (f"; {card.steps} steps of denoising" if card.steps else ""),
        f"  {card.layers} layers can be watched, routed and cut",
    ]
    if card.words:
        lines.append(f"  words: {card.words}")
    lines += _listed("sizes", [f"{name}: {value}" for name, value in card.sizes.items()])
    lines += _parts(card, machine)
    lines += ["", "cameras (height × width)"]
    for name, size in card.cameras.items():
        line = f"  {name:<20} {f'{size[0]} × {size[1]}' if size else 'any size'}"
        robots = card.called.get(name, name)
        lines.append(line if robots == name else f"{line}, the robot's {robots}")
    if not card.cameras:
        lines.append("  none")
    waits = any(each.usual is None for each in card.choices)
    lines += _numbers("action", card.action, card.action_dims, card.action_names, waits=waits)
    lines += _numbers("state", card.state, card.state_dims, card.state_names, waits=False)
    lines += _listed("to be chosen", [_choice(each) for each in card.choices])
    lines += _listed("look at these", [*card.remarks, *warnings(card)])
    if card.unused:
        shown = ", ".join(card.unused[:4]) + (" …" if len(card.unused) > 4 else "")
        lines += ["", f"{len(card.unused)} tensors are of no use to a decision: {shown}"]
    return "\n".join(lines)


def warnings(card: Card) -> list[str]:
    """What of the statistics looks wrong: dimensions that never moved, ranges that no robot has."""
    found = []
    for what, normaliser in (("action", card.action), ("state", card.state)):
        if normaliser is None:
            continue
        still = []
        huge = []
        for index in range(len(normaliser.offset)):
            at = float(abs(normaliser.offset[index]))
            width = float(abs(normaliser.scale[index]))
            if width <= STILL * max(at, 1.0):
                still.append(index)
            if max(at, width) > HUGE or not np.isfinite([at, width]).all():
                huge.append(index)
        if still:
            found.append(
                f"{what}: dimensions {_some(still)} never moved in the data that its statistics are "
                "of: whatever differs from there by a hair is a huge number to the network"
            )
        if huge:
            found.append(
                f"{what}: dimensions {_some(huge)} have statistics beyond {HUGE:g}: are they of "
                "this robot, and in its units?"
            )
    return found


def against(card: Card, actions: np.ndarray, state: np.ndarray) -> list[str]:
    """What of some episodes, actions (N, a) and state (N, s), does not go with the checkpoint's
    statistics: another number of dimensions, another unit, moves for places."""
    found = []
    pairs = (
        ("action", card.action, card.action_dims, actions),
        ("state", card.state, card.state_dims, state),
    )
    for what, normaliser, dims, values in pairs:
        if values.shape[1] != dims:
            found.append(
                f"{what}: the episodes have {values.shape[1]} numbers and the checkpoint {dims}"
            )
            continue
        if normaliser is None or not len(values):
            continue
        seen = normaliser.apply(values.astype(np.float64))
        middle = np.median(seen, 0)  # (x,)
        spread = np.quantile(seen, 0.99, axis=0) - np.quantile(seen, 0.01, axis=0)
        away = np.flatnonzero(abs(middle) > AWAY).tolist()
        if away:
            index = away[0]
            found.append(
                f"{what}: dimensions {_some(away)} of the episodes are far from what the checkpoint "
                f"was taught ({index} is {np.median(values[:, index]):.4g} in the middle, and "
                f"{normaliser.offset[index]:.4g} there): another unit, or moves where it has places"
            )
        moving = np.flatnonzero(spread > 0)
        small = [int(index) for index in moving if spread[index] < NARROW]
        if small and len(small) == len(moving):
            found.append(
                f"{what}: the episodes use under {NARROW:g} of the width that the checkpoint was "
                "taught, in every dimension that moves: another unit, or moves where it has places"
            )
    return found


def toml(card: Card, said: Said, *, checkpoint: str) -> str:
    """The text of a `policy.toml`: what is known as it is, what must be chosen behind `#?`.
    `checkpoint`: how the file names it."""
    lines = [
        "# What a checkpoint does not say of itself; --teacher takes this file, or the folder.",
        "# Lines behind #? wait for somebody who knows: say them, and take the #? away.",
        f"checkpoint = {as_toml(checkpoint)}",
        f"kind = {as_toml(card.kind)}",
        f"# execute = {card.execute}    # actions of a chunk that are carried out",
        '# precision = "fp32"    # of the weights in memory: fp32, bf16 or as_saved',
        '# tokenizer = ""    # a folder, or a name on the hub, where the checkpoint has none',
        "",
        "[cameras]  # the checkpoint's name of a camera = the robot's",
    ]
    for name in card.cameras:
        robots = card.called.get(name, said.camera(name))
        lines.append(f"{GUESS}{as_toml(name)} = {as_toml(robots)}")
    lines += ["", "[options]"]
    for each in card.choices:
        why = " ".join(each.why.split())  # a comment ends with its line
        there = ", ".join(map(_shown, each.values))
        lines.append(f"# {why}: {there}" if there else f"# {why}")
        if each.usual is None:
            # Nothing is made up where nothing is known: no option takes an empty text.
            guess = each.values[0] if each.values else ""
            lines.append(f"{GUESS}{each.option} = {_option(guess)}")
        else:
            lines.append(f"# {each.option} = {_option(each.usual)}")
    lines += [
        "",
        "[robot]  # as robot.toml; what is left out is as the episodes' robot.toml has it",
        '# mode = "delta"',
        '# rotation = "axis_angle"',
        "# grippers = [6]",
        "# gripper_open = 1.0",
        "# gripper_closed = 0.0",
        "# control_hz = 10.0",
    ]
    return "\n".join(lines) + "\n"


def _option(value: Value) -> str:
    """A value as TOML has it."""
    return _shown(value) if isinstance(value, bool) else as_toml(value)


def _shown(value: Value) -> str:
    """A value for people."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parts(card: Card, machine: Machine | None) -> list[str]:
    costs = {} if machine is None else seconds(card, machine)
    lines = ["", "parameters" + (", and where a decision's time goes" if costs else "")]
    whole = sum(costs.values())
    for part, count in card.parts.items():
        line = f"  {part:<28} {_count(count):>9}"
        if part in costs:
            line += f"  {1000 * costs[part]:>9.3g} ms {costs[part] / whole:>5.0%}  "
            line += ", then ".join(map(_done, card.work[part]))
        lines.append(line)
    if machine is not None and costs:
        lines.append(
            f"  about {1000 * whole:.3g} ms a decision on this machine: estimated from its "
            f"{machine.flops / 1e9:.0f} GFLOP/s and {machine.bandwidth / 1e9:.1f} GB/s in single "
            f"precision on {machine.threads} thread{'' if machine.threads == 1 else 's'}, not timed"
        )
    return lines


def _done(work: Work) -> str:
    tokens = f"{work.tokens} token{'' if work.tokens == 1 else 's'}"
    return f"{tokens} {work.runs} times" if work.runs > 1 else tokens


def _numbers(
    what: str, normaliser: Normaliser | None, dims: int, names: Sequence[str], *, waits: bool
) -> list[str]:
    """One line a dimension: what the network's −1, 0 and 1 are to the robot."""
    if normaliser is None and not dims and waits:
        return ["", f"{what}: how many numbers it has waits for a choice, see below"]
    if not dims:
        return ["", f"{what}: none"]
    if normaliser is None:
        return ["", f"{what}, {dims} numbers; their statistics wait for a choice, see below"]
    shown = list(names) or [""] * dims
    wide = max(map(len, shown))
    lines = ["", f"{what}, {dims} numbers{'':<{wide}}    {'−1 is':>10} {'0 is':>10} {'1 is':>10}"]
    ends = [normaliser.invert(np.full(dims, value)) for value in (-1.0, 0.0, 1.0)]
    for index in range(dims):
        numbers = " ".join(f"{end[index]:>10.4g}" for end in ends)
        lines.append(f"  {index:>2} {shown[index]:<{wide}}             {numbers}")
    return lines


def _choice(each: Choice) -> str:
    usual = "must be said"
    if each.usual is not None:
        usual = f"{_shown(each.usual)} unless said otherwise"
    there = f"{', '.join(map(_shown, each.values))}; " if each.values else ""
    return f"{each.option} ({usual}): {there}{each.why}"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"  - {line}" for line in lines)] if lines else []


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} …" if len(numbers) > 8 else shown


def _count(number: int) -> str:
    """Parameters in words: 7.54 B, 450 M, 12.3 k."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} bytes"
