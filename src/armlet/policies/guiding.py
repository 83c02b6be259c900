"""The actions that a robot carries out while a policy decides, as the policy's own network knows
them: normalised, and weighed by real-time chunking's soft mask. Knows no network."""

from typing import Protocol

import numpy as np
import torch

from armlet.layers.guidance import Guide
from armlet.robot.chunks import soft_mask
from armlet.robot.inputs import Inputs
from armlet.robot.observation import Observation
from armlet.robot.outputs import Outputs


class Network(Protocol):
    """What has to be known of one."""

    chunk: int

    @property
    def inputs(self) -> Inputs: ...

    @property
    def outputs(self) -> Outputs: ...

    @property
    def device(self) -> torch.device: ...


def guide_of(observation: Observation, network: Network) -> Guide:
    """What `network` is guided by. Raises ValueError naming actions under way that are none of this
    robot's."""
    underway = observation.underway
    assert underway is not None
    left = np.asarray(underway.actions, np.float32)
    dims = network.outputs.spec.dims
    if left.ndim != 2 or left.shape[1] != dims or not np.isfinite(left).all():
        raise ValueError(
            f"actions under way: found shape {left.shape} or numbers that are not finite, expected "
            f"(m, {dims}), what is left of the chunk before in the robot's own numbers"
        )
    chunk = network.chunk
    overlap = min(len(left), chunk)  # beyond its own end a chunk says nothing
    late = underway.late
    if not 0 <= late <= len(left):
        raise ValueError(
            f"actions under way: {late} of {len(left)} are said to be carried out meanwhile"
        )
    target = np.zeros((chunk, dims), np.float32)
    state = network.inputs.state_of(observation)
    target[:overlap] = network.outputs.normalise(left[:overlap], state)
    weights = soft_mask(min(late, overlap), overlap, chunk).astype(np.float32)
    return Guide(
        torch.from_numpy(target)[None].to(network.device),
        torch.from_numpy(weights).to(network.device),
    )
