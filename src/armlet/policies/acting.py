"""Any policy by its place: a folder, one that was exported, a name on the hub, a `policy.toml`, or the
address of a server.

What acts is all that a world, an evaluation or a trace store asks for; who needs layers and weights
asks `checkpoint.load_policy`, which refuses a server and what was exported. Knows no network.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from armlet.data.hub import is_name, local_folder
from armlet.policies import exported
from armlet.policies.checkpoint import load_with_fingerprint, policy_fingerprint, read_provenance
from armlet.policies.contract import Policy
from armlet.policies.pretrained.said import FILE, Said, read_said
from armlet.policies.remote.policy import SocketPolicy, load
from armlet.robot.agree import agree
from armlet.robot.client.address import is_address
from armlet.robot.exported import fingerprint as exported_fingerprint
from armlet.robot.exported import is_exported
from armlet.robot.spec import RobotSpec
from armlet.robot.tables import read_toml

Known = Callable[[], RobotSpec]  # the robot from which is taken what a policy does not say itself


def behind_socket(place: Path | str) -> Said | None:
    """What is said of the policy at an address, or of one that a `policy.toml` gives the address
    of; None for a policy whose weights are at hand, or will be."""
    place = Path(place)
    if is_address(place):
        return Said(place, place)
    file = place / FILE if place.is_dir() else place
    if file.suffix != ".toml" or not file.is_file():
        return None
    try:
        table = read_toml(file.read_text(encoding="utf-8"))
    except ValueError:
        return None  # whoever reads it as a checkpoint says what is wrong
    checkpoint = table.get("checkpoint")
    return read_said(file) if isinstance(checkpoint, str) and is_address(checkpoint) else None


def exported_folder(place: Path | str) -> Path | None:
    """The folder of an exported policy, fetched where it is a name on the hub; None for any other
    policy."""
    folder = local_folder(place, kind="model") if is_name(place) else Path(place)
    return folder if is_exported(folder) else None


def load_actor(
    place: Path | str,
    *,
    device: str = "cpu",
    robot: RobotSpec | None = None,
    known: Known | None = None,
) -> Policy:
    """What `checkpoint.load_policy` reads, an exported folder, or the policy behind a socket, met;
    `device` is nothing to these two. Raises what each does, `remote.line.ServerError` and
    `AnswerError` among it."""
    return actor_with_fingerprint(place, device=device, robot=robot, known=known)[0]


def actor_with_fingerprint(
    place: Path | str,
    *,
    device: str = "cpu",
    robot: RobotSpec | None = None,
    known: Known | None = None,
) -> tuple[Policy, str]:
    """What `load_actor` gives, and its fingerprint."""
    said = behind_socket(place)
    folder = exported_folder(place) if said is None else None
    if folder is not None:
        found, fingerprint = exported.load(folder)
        if robot is not None:
            agree(found.robot, robot, whose=(f"the policy {place}", "the robot"))
        return found, fingerprint
    if said is None:
        return load_with_fingerprint(place, device=device, robot=robot, known=known)
    policy = socket_policy(said, known or (None if robot is None else lambda: robot))
    if robot is not None:
        agree(policy.robot, robot, whose=(f"the policy {place}", "the robot"))
    return policy, policy.fingerprint


def socket_policy(said: Said, known: Known | None, *, retries: int | None = None) -> SocketPolicy:
    """The policy behind a socket that something was said of; `retries` instead of its own."""
    return load(said, known() if known else None, retries=retries)


def actor_fingerprint(place: Path | str, known: Known | None = None) -> str:
    """What decides a policy's answers: `checkpoint.policy_fingerprint`, that of an exported folder,
    or what a server says and answers, for the robot that `known` gives."""
    said = behind_socket(place)
    folder = exported_folder(place) if said is None else None
    if folder is not None:
        return exported_fingerprint(folder)
    if said is None:
        return policy_fingerprint(place)
    policy = socket_policy(said, known)
    policy.close()
    return policy.fingerprint


def actor_provenance(place: Path | str) -> dict[str, Any]:
    """What a policy says of how it was made; nothing, behind a socket."""
    if behind_socket(place) is not None:
        return {}
    folder = exported_folder(place)
    return read_provenance(place) if folder is None else exported.provenance(folder)
