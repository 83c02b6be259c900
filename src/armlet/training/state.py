"""A training state on disk: what a stage goes on from when it was killed. Knows no policy."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from armlet.data.files import atomic_file, check_is_here


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A training state: weights, optimiser, step, RNG. Renamed into place, so a kill leaves the
    previous one. Raises FullDiskError, or another OSError, naming the file."""
    with atomic_file(path) as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # torch's word for a write that failed: a position in a zip
            raise OSError(f"{path} could not be written; torch says: {error}") from error


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises FileNotFoundError or ValueError naming the file."""
    fix = "delete it to train this stage from its start, nothing else is lost; or copy it again"
    check_is_here(path, fix=fix)
    try:
        # torch reads the zip file that it writes without a look at its checksums.
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
        state = torch.load(path, weights_only=True)
    except OSError:  # a disk that fails is no damaged file
        raise
    except Exception as error:  # a damaged pickle fails in every way there is
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a whole training state "
            f"({type(error).__name__}: {first}); {fix}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a training state; {fix}")
    return state
