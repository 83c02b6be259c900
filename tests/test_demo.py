"""The demo, and the policies that come with armlet."""

import json
import tomllib
from pathlib import Path

import pytest

from armlet import demo
from armlet.policies.acting import actor_provenance
from armlet.policies.checkpoint import load_policy, policy_fingerprint
from armlet.shipped import shipped

ROOT = Path(__file__).parents[1]


def test_the_demo_compares_the_shipped_policies_in_paired_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Exported as well it takes a minute; tests/test_runtimes.py is about that.
    monkeypatch.setattr(demo, "NEEDED", ("no_such_library",))
    said = demo.main(out=tmp_path / "demo", episodes=7, workers=1)
    page = Path(said.split("\n")[0])
    report = json.loads((page.parent / "evaluation" / "report.json").read_text())
    teacher, student = report["policies"]
    assert (teacher["name"], teacher["episodes"]) == ("teacher", 7)
    assert (student["name"], student["episodes"]) == ("tabletop-student", 7)
    # Untrained ones have 0 of 7, and so has one whose weights were read wrongly.
    assert teacher["successes"] >= 5 and student["successes"] >= 4
    assert page.is_file() and (page.parent / "evaluation" / "table.md").is_file()
    assert report["rollouts"]


def test_the_shipped_student_was_distilled_from_the_shipped_teacher() -> None:
    student = shipped("tabletop-student")
    question = json.dumps(actor_provenance(student))
    assert policy_fingerprint(shipped("tabletop-teacher")) in question
    assert len(load_policy(student).layers) < len(load_policy(shipped("tabletop-teacher")).layers)


def test_what_ships_is_in_the_wheel() -> None:
    """hatchling takes what is named here; a folder that is not there would be an error only of who
    builds a wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    taken = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for place, inside in taken.items():
        assert (ROOT / place / "config.json").is_file()
        assert inside == f"armlet/{place}"
    with pytest.raises(FileNotFoundError, match="nobody is neither in"):
        shipped("nobody")
