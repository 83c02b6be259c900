"""Names of a robot's numbers: that they name one number each, and what they say of its rotations.

Knows words; knows no data set, no policy and no file.
"""

import re
from collections.abc import Sequence

from armlet.robot.agree import plain
from armlet.robot.spec import Rotation

# Form → the ways in which its numbers are called.
ROTATIONS: dict[Rotation, tuple[tuple[str, ...], ...]] = {
    "quaternion": (("qx", "qy", "qz", "qw"), ("qw", "qx", "qy", "qz")),
    "euler": (("roll", "pitch", "yaw"),),
    "axis_angle": (("rx", "ry", "rz"), ("ax", "ay", "az"), ("wx", "wy", "wz")),
}
ROT6D = re.compile(r"rot_?6d|6d")
# Form → how many numbers it has, where no other number of them is that form.
FEWEST: dict[Rotation, int] = {"quaternion": 4, "rot6d": 6}
# Forms of three numbers. Their names are used for one another (LIBERO's roll, pitch and yaw are an
# axis and angle), so that names alone do not tell them apart.
OF_THREE = ("euler", "axis_angle")


def faults(names: Sequence[str]) -> list[str]:
    """What is wrong with names of numbers, half a sentence each; empty where all is well."""
    found = []
    blank = [str(index) for index, name in enumerate(names) if not name.strip()]
    if blank:
        found.append(f"number {', '.join(blank)} has an empty name")
    twice = sorted({name for name in names if name.strip() and names.count(name) > 1})
    for name in twice:
        at = [str(index) for index, each in enumerate(names) if each == name]
        found.append(f"{name!r} names numbers {', '.join(at)}")
    return found


def rotation_named(names: Sequence[str]) -> tuple[Rotation, tuple[str, ...]] | None:
    """The form of rotation that names of actions are those of, and these names; None where they
    are of none."""
    lower = [re.sub(r"^(?:delta_|d_|d(?=[xyzrpyw]))", "", plain(name)) for name in names]
    ends = [re.split(r"[_.]", name)[-1] for name in lower]  # left_arm.qx → qx
    for form, spellings in ROTATIONS.items():
        for spelling in spellings:
            at = [index for index, name in enumerate(ends) if name in spelling]
            if {ends[index] for index in at} == set(spelling):
                return form, tuple(names[index] for index in at[: len(spelling)])
    six = [index for index, name in enumerate(lower) if ROT6D.search(name)]
    if len(six) >= 6:
        return "rot6d", tuple(names[index] for index in six)
    return None


def against_names(rotation: Rotation, names: Sequence[str]) -> str:
    """Why actions of these names cannot have this form of rotation, half a sentence; empty where
    they can, or nobody can tell.

    `none` is refused for a quaternion, for six numbers of a matrix, and for a hand (x, y and z)
    that turns: `roll`, `pitch` and `yaw` alone may be joints.
    """
    fewest = FEWEST.get(rotation, 0)
    if len(names) < fewest:
        return f"a {rotation} has {fewest} numbers and an action {len(names)}"
    named = rotation_named(names)
    if named is None or named[0] == rotation:
        return ""
    form, called = named
    if rotation in OF_THREE and form in OF_THREE:
        return ""
    hand = {"x", "y", "z"} <= {plain(name) for name in names}
    if rotation == "none" and form in OF_THREE and not hand:
        return ""
    shown = ", ".join(called[:4])
    known = " or ".join(OF_THREE) if form in OF_THREE else form
    return f"{shown} are names of a rotation as {known}"
