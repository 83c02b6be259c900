"""Motions of a hand that more than one scripted expert makes. Knows points; knows no world."""

import numpy as np


def funnel(
    tcp: np.ndarray, point: np.ndarray, *, rise: float, slope: float = 4.0, throat: float = 0.008
) -> np.ndarray:
    """`point`, raised by up to `rise` in proportion to the lateral distance from it."""
    lateral = float(np.linalg.norm(tcp[:2] - point[:2]))
    # 0 within `throat`, then `slope` metres up for each metre away.
    lift = float(np.clip((lateral - throat) * slope, 0.0, rise))
    wanted = np.array([point[0], point[1], point[2] + lift])
    # Come up before going sideways; by degrees, so that the action does not jump.
    if tcp[2] < wanted[2] - 0.02:
        slow = float(np.clip(1 - (wanted[2] - tcp[2] - 0.02) / 0.03, 0.0, 1.0))
        wanted[:2] = tcp[:2] + slow * (wanted[:2] - tcp[:2])
    return wanted
