"""A policy behind a socket, for a robot's computer: numpy, msgpack and websockets, no torch.

from armlet.robot.client import Client

with Client("ws://10.0.0.7:8000", api_key="token.txt") as policy:
    policy.reset()  # an episode begins
    actions = policy.infer(observation)  # (k, a), in the robot's own numbers
"""

from armlet.robot.client.client import Client
from armlet.robot.client.line import AnswerError, ServerError

__all__ = ["AnswerError", "Client", "ServerError"]
