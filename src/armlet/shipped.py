"""Policies that come with armlet: beside the package in its wheel, or in the repository's
`checkpoints/`. Knows folders; knows no policy."""

from pathlib import Path

from armlet.source import PACKAGE

FOLDER = "checkpoints"


def shipped(name: str) -> Path:
    """The folder of the policy called `name`, wherever armlet is installed. Raises
    FileNotFoundError where there is none."""
    places = (PACKAGE / FOLDER / name, PACKAGE.parents[1] / FOLDER / name)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"{name} is neither in {places[0]} nor in {places[1]}: this installation lacks the policies "
        "that come with armlet; install it again, or work in a clone of the repository"
    )
