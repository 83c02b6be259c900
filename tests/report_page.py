"""A report with everything that the page shows, written by hand; and the page read back as tables, for
the tests of `armlet report`."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from armlet.data.video import write_video

REPRODUCTIONS = Path(__file__).parents[1] / "docs" / "reproductions"
EVIL = "</script><script>window.broken = 1</script>"


def policy(name: str, successes: int, milliseconds: float, budget: float | None = None) -> dict:
    share = {
        "successes": successes,
        "episodes": 100,
        "ci95": [successes / 100 - 0.05, min(1, successes / 100 + 0.03)],
    }
    times = {"p50": milliseconds, "p95": 2 * milliseconds, "p99": 3 * milliseconds}
    return {
        "name": name,
        **share,
        "mean_steps": 11.5,
        "latency_ms": {"policy": times, "threads": 1, "device": "cpu"},
        "ms_per_second_of_motion": 7 * milliseconds,
        "flops": {"total": 2e8, "backbone": milliseconds * 1e7},
        "params": {"total": 1_234_567, "backbone": 1_000_000},
        "keep_ratio": 0.375,
        "policy": name,
        "runtime": "eager",
        "precision": "fp32",
        "exported_from": None,
        "budget": budget,
        "routing": {
            "activation": [1.0, 0.5, 0.25],
            "patterns": 3,
            "commonest_pattern": "110",
            "commonest_share": 0.6,
        },
        "peak_memory_mb": 321.0,
        "by_family": {"tool": share},
        "by_task": {"rake": share},
        "by_split": {"seen": share, "unseen_objects": share},
    }


def write_report(tmp_path: Path) -> Path:
    """A report with a film of 21 frames, beside it."""
    frames = np.zeros((21, 64, 128, 3), np.uint8)
    frames[np.arange(21), :, np.arange(21) * 6] = 255
    write_video(tmp_path / "rake-7.mp4", frames, fps=10)
    policies = [
        policy("teacher", 99, 5.5),
        policy("student", 98, 2.5),
        policy("dial at 0.5", 97, 3.0, 0.5),
        policy("dial at 0.25", 90, 2.0, 0.25),
        policy("cut", 89, 2.0),
    ]
    policies[-1]["gripper_toggles"] = {"per_episode": 1.87, "per_100_steps": 9.5}
    policies[-1]["routing"] |= {"activation": [1.0, 1.0], "layers": [0, 2]}
    seen = [
        {"name": name, "execute": 2, "success": True, "steps": 20, "gates": [gates] * 10}
        for name, gates in (("teacher", "111"), ("student", "101"), ("cut", "11"))
    ]
    pair = {
        "a": "student",
        "b": "teacher",
        "difference": -0.01,
        "ci95": [-0.028, 0.01],
        "mcnemar_p": 1.0,
        "non_inferior_3pp": True,
        "n": 100,
    }
    film = {"task": "rake", "seed": 7, "video": "rake-7.mp4", "fps": 10, "policies": seen}
    curve = {
        "step": [50, 100],
        "loss": [2.0, 1.0],
        "budget": [0.5, 0.1],
        "seconds": [1, 1],
        "learning_rate": [1, 1],
        "grad_norm": [1, 1],
    }
    value = {
        "policies": policies,
        "pairs": [pair],
        "pairs_by_split": {
            "unseen_objects": [{**pair, "difference": -0.04, "non_inferior_3pp": False}]
        },
        "seeds": {
            "policies": [
                {"name": "first", "seeds": 3, "success": 0.961, "each": [0.95, 0.96, 0.973]}
            ],
            "pairs": [
                {
                    "a": "first",
                    "b": "other",
                    "difference": 0.02,
                    "ci95": [0.01, 0.03],
                    "non_inferior_3pp": True,
                    "n": 100,
                }
            ],
        },
        "rollouts": [film, {**film, "task": "push"}],
        "training": {"student": [curve, {**curve, "loss": [0.5, 0.4]}]},
        "fingerprint": {
            "benchmark": {"benchmark": "tabletop"},
            "recipe": {"name": "mine"},
            "note": EVIL,
        },
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(value))
    return path


def late_row(name: str, lag: int, **more) -> dict:
    return {
        "name": name,
        "slower": 20.0,
        "delay_ms": 110.0,
        "lag_steps": lag,
        "successes": 61,
        "episodes": 100,
        "ci95": [0.5, 0.7],
        **more,
    }


class Tables(HTMLParser):
    """The tables of a page: caption → rows of the words in their cells, the header among them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self._caption = ""
        self._rows: list[list[str]] = []
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "table":
            self._caption = ""
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if tag in ("td", "th", "caption"):
            self._in = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._in:
            self._in = ""
        elif tag == "table":
            rows = [[" ".join(cell.split()) for cell in row] for row in self._rows]
            self.found[" ".join(self._caption.split())] = rows

    def handle_data(self, data: str) -> None:
        if self._in == "caption":
            self._caption += data
        elif self._in:
            self._rows[-1][-1] += data
