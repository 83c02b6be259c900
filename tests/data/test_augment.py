"""Changed pictures show what they showed: the same things on the same sides, in the same hues, by
other light."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet.data.augment import Augment

STRONG = Augment(brightness=0.3, contrast=0.3, saturation=0.3, crop=3)


def picture(side: int = 24) -> torch.Tensor:
    """A red thing on the left, a blue one on the right, on grey."""
    image = torch.full((3, side, side), 0.5)
    image[:, 8:16, 4:9] = torch.tensor([0.8, 0.1, 0.1])[:, None, None]
    image[:, 8:16, 15:20] = torch.tensor([0.1, 0.1, 0.8])[:, None, None]
    return image[None].repeat(4, 1, 1, 1)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_left_stays_left_and_red_stays_red(seed: int) -> None:
    images = STRONG.pictures({"scene": picture()}, np.random.default_rng(seed))["scene"]
    assert images.shape == (4, 3, 24, 24) and images.min() >= 0 and images.max() <= 1
    columns = torch.arange(24.0)
    for image in images:
        red, blue = (
            (image[0] - image[2]).clamp(min=0.1) - 0.1,
            (image[2] - image[0]).clamp(min=0.1) - 0.1,
        )
        where = [float((mask.sum(0) * columns).sum() / mask.sum()) for mask in (red, blue)]
        assert where[0] + 8 < where[1], (
            "what is left of another thing must stay there: words name sides"
        )


def test_nothing_asked_changes_nothing_and_one_thing_asked_is_that_thing() -> None:
    rng = np.random.default_rng(0)
    assert STRONG.pictures({}, rng) == {}, "there may be no camera"
    image = {"scene": torch.rand(3, 3, 8, 8)}
    assert torch.equal(Augment(brightness=0).pictures(image, rng)["scene"], image["scene"])
    brighter = Augment(brightness=0.2).pictures(
        {"scene": image["scene"] * 0.5}, np.random.default_rng(1)
    )["scene"]
    gain = np.random.default_rng(1).uniform(0.8, 1.2, 3).astype(np.float32)
    torch.testing.assert_close(
        brighter, image["scene"] * 0.5 * torch.from_numpy(gain)[:, None, None, None]
    )


def weighed(seed: int) -> torch.Tensor:
    """The factors that three samples are changed by."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.8, 1.2, 3).astype(np.float32))[
        :, None, None, None
    ]


def test_contrast_is_about_a_pictures_mean_and_saturation_about_each_pixels_grey() -> None:
    image = 0.3 + 0.4 * torch.rand(3, 3, 8, 8)
    changed = Augment(brightness=0, contrast=0.2).pictures(
        {"scene": image}, np.random.default_rng(1)
    )["scene"]
    mean = image.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(changed, mean + weighed(1) * (image - mean))
    changed = Augment(brightness=0, saturation=0.2).pictures(
        {"scene": image}, np.random.default_rng(1)
    )["scene"]
    grey = image.mean(1, keepdim=True)
    torch.testing.assert_close(changed, grey + weighed(1) * (image - grey))


def test_each_picture_is_moved_by_whole_pixels_each_way_as_often_and_its_edge_repeated() -> None:
    count = 1000
    image = torch.arange(36.0).view(1, 1, 6, 6).expand(count, 3, 6, 6) / 36
    moved = Augment(brightness=0, crop=2).pictures({"scene": image}, np.random.default_rng(2))[
        "scene"
    ]
    edge = np.pad(image[0, 0].numpy(), 2, mode="edge")
    places = {
        (top, left): edge[top : top + 6, left : left + 6].tobytes()
        for top in range(5)
        for left in range(5)
    }
    found = [picture[0].numpy().tobytes() for picture in moved]
    counts = [found.count(place) for place in places.values()]
    assert sum(counts) == count, "moved by whole pixels, and by no more than two"
    assert min(counts) > count / 25 / 2 and max(counts) < count / 25 * 2, "each way as often"
    assert all(torch.equal(picture[0], picture[2]) for picture in moved)


def test_all_cameras_change_alike_in_light() -> None:
    same = torch.rand(2, 3, 8, 8) * 0.5
    changed = Augment(brightness=0.3).pictures(
        {"scene": same, "wrist": same}, np.random.default_rng(0)
    )
    assert torch.equal(changed["scene"], changed["wrist"])
    assert float((changed["scene"] / same).std()) == pytest.approx(
        float((changed["wrist"] / same).std())
    )
