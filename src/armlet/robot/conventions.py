"""Actions of one convention → another: control rate (`retime`), and everything else an ActionSpec
says (`convert`).

Knows no policy and no benchmark. What cannot be converted exactly is refused by name; nothing is
assumed equal.
"""

import math

import numpy as np

from armlet.robot.spec import ActionSpec, within

ADDITIVE = {  # in what is summed or interpolated a dimension at a time
    ("delta", "none"),
    ("delta", "axis_angle"),
    ("delta", "euler"),
    ("absolute", "none"),
    ("absolute", "rot6d"),
}


def retime(chunk: np.ndarray, from_hz: float, to_hz: float, spec: ActionSpec) -> np.ndarray:
    """A chunk (…, k, a) for a robot that executes `from_hz` actions a second → (…, k', a) float64
    for one at `to_hz`.

    k' = ⌈k · to_hz / from_hz⌉, so that none of the time is lost. Deltas are spread evenly over
    their time and summed anew: their total is conserved, and the last may be shorter than its step.
    Small rotations are added a dimension at a time, which is exact about one axis. Absolute actions
    are places to be reached by the end of a step, interpolated between the steps and held before
    the first. The gripper is never blended: a step does what was commanded last within it, so a
    command shorter than a step can be lost and the last one cannot.

    Raises ValueError for rates that are not positive, an empty chunk, and rotations that cannot be
    added or interpolated dimension by dimension.
    """
    values = np.asarray(chunk, np.float64)
    if not (from_hz > 0 and to_hz > 0):
        raise ValueError(f"control rates are {from_hz} and {to_hz} Hz, expected more than 0")
    if values.ndim < 2 or values.shape[-1] != spec.dims or values.shape[-2] == 0:
        raise ValueError(
            f"the chunk has shape {values.shape}, expected (…, k, {spec.dims}) with k ≥ 1; a "
            "single action has no time"
        )
    if from_hz == to_hz:
        return values.copy()
    if (spec.mode, spec.rotation) not in ADDITIVE:
        raise ValueError(
            f"{spec.mode} actions with rotation {spec.rotation!r} cannot be retimed one dimension "
            "at a time"
        )
    steps = values.shape[-2]
    ratio = to_hz / from_hz
    count = math.ceil(steps * ratio - 1e-9)  # rounding must not make one more
    # Where the new steps begin and end, in old ones; the last ends with the chunk.
    edges = np.minimum(np.arange(count + 1) / ratio, steps)
    if spec.mode == "delta":
        # How far it has come at each edge; a new step is the way from one edge to the next.
        travelled = np.concatenate([np.zeros_like(values[..., :1, :]), values.cumsum(-2)], -2)
        made = np.diff(_between(travelled, edges), axis=-2)
    else:
        # Action i is a place reached at i + 1, the end of its step.
        made = _between(values, np.maximum(edges[1:] - 1, 0))
    if spec.grippers:
        last = np.ceil(edges[1:] - 1e-9).astype(int) - 1  # the old step that each new one ends in
        for index in spec.grippers:
            made[..., index] = values[..., last, index]
    return made


def _between(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(…, k, a) at fractional `positions` (m,) of its k → (…, m, a), by linear interpolation."""
    below = np.minimum(positions.astype(int), values.shape[-2] - 1)
    above = np.minimum(below + 1, values.shape[-2] - 1)
    share = (positions - below)[:, None]  # (m, 1), 0 to 1
    return (1 - share) * values[..., below, :] + share * values[..., above, :]


def convert(
    actions: np.ndarray, source: ActionSpec, target: ActionSpec, *, clip: bool = False
) -> np.ndarray:
    """`actions` (…, a) as `source` means them → float32 as `target` does: gripper sign and range,
    metres a command, control rate.

    Where the rates differ, `actions` is a chunk (…, k, a), and comes back with another k
    (`retime`). Only dimensions in `ActionSpec.translation` have a scale; rotations are taken to be
    in the same unit. Raises ValueError with everything that cannot be converted; for an action that
    one of the robots does not accept, unless `clip` moves it to the end of the range.
    """
    refused = _refused(source, target)
    if refused:
        raise ValueError("these actions cannot be converted: " + "; ".join(refused))
    values = within(actions, source.names, source.low, source.high, clip=clip)
    if source.control_hz != target.control_hz:
        values = retime(values, source.control_hz, target.control_hz, source)
    if source.mode == "delta" and source.translation_scale and target.translation_scale:
        # Metres a command here, over metres a command there.
        values[..., list(source.translation)] *= source.translation_scale / target.translation_scale
    for index in source.grippers:
        # How closed it is, 0 to 1, whichever end is the larger number in either convention.
        width = source.gripper_closed - source.gripper_open
        closed = (values[..., index] - source.gripper_open) / width
        values[..., index] = (1 - closed) * target.gripper_open + closed * target.gripper_closed
    # Checked again: what the source accepts may be too much for the target.
    return within(values, target.names, target.low, target.high, clip=clip).astype(np.float32)


def _refused(source: ActionSpec, target: ActionSpec) -> list[str]:
    """Why one cannot become the other, a line each; empty where it can."""
    found = []
    for name in ("names", "mode", "rotation", "grippers"):
        is_now = getattr(source, name)
        wanted = getattr(target, name)
        if is_now != wanted:
            found.append(f"{name} is {is_now!r} and should be {wanted!r}")
    for which, spec in (("source", source), ("target", target)):
        if spec.grippers and spec.gripper_open == spec.gripper_closed:
            found.append(f"the {which}'s gripper is {spec.gripper_open:g} both open and closed")
        scale = spec.translation_scale
        if spec.mode == "delta" and scale is not None and not scale > 0:
            found.append(f"the {which}'s translation_scale is {scale}, expected more than 0")
    if source.translation_scale != target.translation_scale:
        scales = (
            f"translation_scale is {source.translation_scale} and should be "
            f"{target.translation_scale}"
        )
        if source.mode == "absolute":
            found.append(f"{scales}, and where the places are counted from is not known")
        elif None in (source.translation_scale, target.translation_scale):
            found.append(f"{scales}; give the metres of a command of 1 where it is None")
        elif not source.translation:
            found.append(f"{scales}, and no dimension is named x, y, z or dx, dy, dz")
    if source.control_hz != target.control_hz and (source.mode, source.rotation) not in ADDITIVE:
        found.append(
            f"control_hz is {source.control_hz} and should be {target.control_hz}, and "
            f"{source.mode} actions with rotation {source.rotation!r} cannot be retimed one "
            "dimension at a time"
        )
    return found
