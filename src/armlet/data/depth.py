"""What a depth camera's film holds → millimetres, as lerobot 0.6 keeps distances in video. Knows no
file."""

from typing import Any

import numpy as np

LEVELS = 4095  # the highest of 12 bits
# No defaults for these: they differ from camera to camera.
NEEDED = ("video.depth_min", "video.depth_max")


def unreadable(about: dict[str, Any]) -> str | None:
    """Why the distances of a camera cannot be had from its film, of which `about` is said; None
    where they can."""
    missing = [name for name in NEEDED if not isinstance(about.get(name), int | float)]
    if missing:
        return f"meta/info.json does not say its {missing[0]}"
    if about["video.depth_max"] <= about["video.depth_min"]:
        return "its video.depth_max in meta/info.json is not more than its video.depth_min"
    nearest = about["video.depth_min"] + (about.get("video.shift") or 0)
    if about.get("video.use_log") and nearest <= 0:
        return "its video.depth_min and video.shift in meta/info.json have no logarithm"
    # Any other format would be read as other numbers, and nothing in the film would tell.
    if str(about.get("video.pix_fmt", "gray12le")) not in ("gray12le", "gray12be"):
        return f"its pixels are {about['video.pix_fmt']}, and gray12le is known"
    return None


def millimetres(levels: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Levels (h, w) of 12 bits → (h, w, 1) float32, distances in millimetres.

    Levels are equal steps of the distance, or of log(distance + shift), from `video.depth_min` to
    `video.depth_max`, both in metres; a film of whole millimetres ("depth_unit": "mm") gives whole
    millimetres again.
    """
    # In double precision: whole millimetres are rounded at the end.
    share = levels.astype(np.float64) / LEVELS
    low = float(about["video.depth_min"])
    high = float(about["video.depth_max"])
    if about.get("video.use_log"):
        shift = float(about.get("video.shift") or 0)
        start = np.log(low + shift)
        stop = np.log(high + shift)
        metres = np.exp(share * (stop - start) + start) - shift
    else:
        metres = share * (high - low) + low
    found = metres * 1000
    if about.get("depth_unit", "mm") == "mm":
        found = np.rint(found)
    return found[..., None].astype(np.float32)
