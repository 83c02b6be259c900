"""Episodes whose pictures are no squares, from the command line: what a policy is taught on it sees
again at inference, to the bit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from outside import reaching

from armlet import distil, probe, teach
from armlet.data.digests import CACHE
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.frames import load_frames
from armlet.data.pictures import Cached, Pictures, Streamed
from armlet.data.writer import EpisodeWriter
from armlet.options import override
from armlet.policies.checkpoint import load_policy
from armlet.recipe import Recipe
from armlet.robot.fit import FitError, fit_picture
from armlet.robot.observation import Observation
from armlet.training import trainer as training
from armlet.training.trainer import make_batches

LETTERBOX = ("--pictures.fit", "letterbox", "--pictures.size", "32")


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("oblong") / "episodes"
    writer = EpisodeWriter(
        root, Features(("x",), ("dx",), {"eye": (48, 64)}, {}), fps=5, robot="dots", metadata={}
    )
    rng = np.random.default_rng(0)
    for _ in range(4):
        values = rng.uniform(-1, 1, (6, 1)).astype(np.float32)
        pictures = rng.integers(0, 256, (6, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        writer.add(EpisodeFrames({"eye": pictures}, values, values, {}, "go to the red dot", {}))
    writer.finalise()
    return root


def asked(episodes: Path, folder: Path, *options: str) -> Recipe:
    places = [
        "--episodes",
        str(episodes),
        "--teacher",
        str(folder / "teacher"),
        "--out",
        str(folder / "out"),
    ]
    return override(reaching(), [*places, *options], "armlet")


@pytest.fixture(scope="module")
def taught(episodes: Path, tmp_path_factory) -> Recipe:
    """A teacher that was taught, watched and distilled from them."""
    recipe = asked(episodes, tmp_path_factory.mktemp("taught"), *LETTERBOX)
    for verb in (teach, probe, distil):
        verb.main(recipe)
    return recipe


def test_without_a_size_the_option_is_named(episodes: Path, tmp_path) -> None:
    with pytest.raises(
        FitError,
        match=r"camera 'eye' has pictures of 48 × 64 pixels.*--pictures\.fit letterbox.*--pictures\.size 48",
    ):
        teach.main(asked(episodes, tmp_path))


def test_training_and_inference_see_the_same(taught: Recipe) -> None:
    """The whole way a picture goes while training, against what `prepare` makes of the robot's."""
    data = EpisodeDataset(taught.episodes)
    rows = np.array([0, 7, 23])
    for folder in (taught.teacher, taught.student_folder):
        policy = load_policy(folder)
        assert policy.body.fit == "letterbox" and policy.cameras == {"eye": 32}, (
            "it is kept with the policy, and inherited"
        )
        batches = make_batches(policy, load_frames(data, policy.view, Pictures()))
        seen = [picture for number in range(4) for picture in data.images(number)["eye"]]
        observations = [
            Observation(
                {"eye": seen[row]},
                np.zeros(1, np.float32),
                "go to the red dot",
                np.zeros(1, np.float32),
            )
            for row in rows
        ]
        assert torch.equal(
            policy.prepare(observations).images["eye"], batches.batch(rows).images["eye"]
        )
        fitted = dataclasses.replace(
            observations[1], images={"eye": fit_picture(seen[7], 32, "letterbox")}
        )
        np.testing.assert_array_equal(policy.infer(observations[1]), policy.infer(fitted))


def test_nothing_is_decoded_at_full_size_and_once_for_all_verbs(taught: Recipe) -> None:
    kept = sorted(path.name for path in (taught.episodes / CACHE).glob("*.npy"))
    assert len(kept) == 1 and "-eye-32x32-letterbox-" in kept[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--pictures.fit", "crop", "--pictures.size", "32"),
            "pictures.fit 'crop' would have no effect",
        ),
        (
            ("--pictures.fit", "letterbox", "--pictures.size", "24"),
            "pictures.size 24 would have no effect",
        ),
    ],
)
def test_another_fit_than_the_teachers_is_refused(
    taught: Recipe, tmp_path, options: tuple[str, ...], said: str
) -> None:
    recipe = asked(
        taught.episodes,
        tmp_path,
        *options,
        "--teacher",
        str(taught.teacher),
        "--shared",
        str(tmp_path),
    )
    for verb in (probe, distil):
        with pytest.raises(FitError, match=said):
            verb.main(recipe)


def test_another_fit_is_another_teacher(taught: Recipe) -> None:
    recipe = asked(
        taught.episodes, taught.teacher.parent, "--pictures.fit", "stretch", "--pictures.size", "32"
    )
    with pytest.raises(ValueError, match=r"fit.*letterbox.*stretch|another"):
        teach.main(recipe)


def test_streamed_and_kept_make_the_same_student(
    taught: Recipe, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    original = training.make_batches

    def noting(policy, frames, *more):
        used.extend(type(pictures) for pictures in frames.images.values())
        return original(policy, frames, *more)

    for module in (teach, probe, distil):
        monkeypatch.setattr(module, "make_batches", noting)
    streamed = asked(
        taught.episodes,
        tmp_path,
        *LETTERBOX,
        "--pictures.cache-gb",
        "0",
        "--pictures.memory-gb",
        "1e-5",
    )
    for verb in (teach, probe, distil):
        verb.main(streamed)
    assert set(used) == {Streamed} and Cached not in used
    for name in ("teacher", "out/student"):
        kept, other = (
            load_policy(recipe.teacher.parent / name).state_dict() for recipe in (taught, streamed)
        )
        assert all(torch.equal(tensor, other[key]) for key, tensor in kept.items()), name
