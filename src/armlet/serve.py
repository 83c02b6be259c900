"""serve: a policy → answers over a socket, to robots and to harnesses of others.

    armlet serve POLICY                          openpi's protocol at ws://127.0.0.1:8000,
                                                 vla-eval's at ws://127.0.0.1:8001
    armlet serve POLICY --host 0.0.0.0 --token FILE

POLICY is whatever acts: a folder, exported or not, hf:user/name, a policy.toml. The stock
`openpi-client` and the stock `vla-eval` drive it unmodified, and so does `armlet.robot.client`.
SIGTERM and Ctrl-C stop it, answers under way first. docs/serve.md says what peers may cost.
"""

import importlib.metadata
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from armlet import limits
from armlet.deploy.server import openpi, vla_eval
from armlet.deploy.server.deciding import Decider, DecisionError, decide_all
from armlet.deploy.server.house import House
from armlet.deploy.server.metrics import Metrics
from armlet.deploy.server.observing import Keys, Reader
from armlet.deploy.server.peers import Gate, Limits, is_loopback
from armlet.deploy.server.serving import Port, run
from armlet.deploy.server.session import Course
from armlet.policies.acting import actor_with_fingerprint
from armlet.policies.contract import Policy
from armlet.robot.bounds import Bounds
from armlet.robot.client.address import PORT
from armlet.robot.client.asking import read_key
from armlet.robot.observation import Observation, history_of

SHORTEST = 16  # letters of a token
WORDS = "go"  # of the observation that warms a policy up


@dataclass(frozen=True)
class Serving:
    """How a policy is served."""

    host: str = "127.0.0.1"
    """Address to listen at. Beyond this machine a token is needed."""
    port: int | None = PORT
    """Of openpi's protocol; 0: any that is free, None: it is not spoken."""
    vla_eval_port: int | None = PORT + 1
    """Of vla-eval's protocol; 0: any that is free, None: it is not spoken."""
    token: Path | None = None
    """A file that holds the token which every peer has to bring."""
    device: str = "cpu"
    """Where the policy computes: cpu, cuda, cuda:1."""
    threads: int | None = None
    """Of the processor, for a policy that computes there; None: as many as PyTorch takes."""
    execute: int | None = None
    """Actions of a chunk that are carried out before the policy is asked again; None: the policy's
    own number."""
    guard: Path | None = None
    """A guard.toml: limits within which every action is held before it leaves."""
    batch: int = 8
    """Observations of robots that wait at the same time, decided in one pass at most."""
    keys: Annotated[Keys, tyro.conf.arg(name="")] = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        limits.check(self, port=(0, 65535), vla_eval_port=(0, 65535), execute=(1, 65536))
        limits.check(self, batch=(1, 1024), threads=(1, 1024))


def main(
    policy: Annotated[str, tyro.conf.Positional],
    /,
    serving: Annotated[Serving, tyro.conf.arg(name="")] = Serving(),
) -> str:
    """Serve a policy: its folder, its name on the hub, hf:user/name, or a policy.toml."""
    # Before minutes of loading: what cannot be served.
    _token(serving)
    _ports(serving)
    if serving.threads is not None:
        torch.set_num_threads(serving.threads)
    loaded, fingerprint = actor_with_fingerprint(policy, device=serving.device)
    return serve(loaded, serving, name=Path(policy).name, fingerprint=fingerprint)


def serve(policy: Policy, serving: Serving, *, name: str, fingerprint: str = "") -> str:
    """Serve a policy that is at hand until a signal says to stop, under a `name` that clients are
    told; returns what was done, in a line. For the main thread, as signals are.

    Raises ValueError naming what cannot be served so, OSError naming a port that cannot be had.
    """
    token = _token(serving)
    ports = _ports(serving)
    _log_to_stderr()
    course = _course(policy, serving)
    metrics = Metrics()
    allowed = serving.limits
    decider = Decider(policy, batch=serving.batch, timeout=allowed.decision, metrics=metrics)
    house = House(
        reader=Reader(
            policy.robot.observation,
            policy.robot.action,
            serving.keys,
            unguided=_why_unguided(policy, course),
        ),
        course=course,
        decider=decider,
        metrics=metrics,
        allowed=allowed,
        description=description(name, fingerprint, policy, course),
    )
    _warm_up(policy, house)
    decider.start()
    gate = Gate(allowed, token, metrics, lambda: decider.is_well)
    try:
        run(house, gate, serving.host, ports)
    finally:
        decider.stop(allowed.stopping)
        house.close()
    return (
        f"stopped after {metrics.requests.total} observations, {metrics.errors.total} of which were "
        "answered with an error"
    )


def description(name: str, fingerprint: str, policy: Policy, course: Course) -> dict[str, Any]:
    """What a server says of its policy: who it is, what it is shown and what it answers."""
    robot = policy.robot
    seen = robot.observation
    return {
        "server": f"armlet {importlib.metadata.version('armlet')}",
        "policy": name,
        "fingerprint": fingerprint,
        "execute": course.execute,
        "history": course.history,
        "action": robot.action.to_json(),
        "cameras": {name: [each.height, each.width] for name, each in seen.cameras.items()},
        "state": {"dims": seen.state_dims, "names": list(seen.state_names)},
        "ensemble": None if course.ensemble is None else asdict(course.ensemble),
    }


def _token(serving: Serving) -> str | None:
    if serving.token is None:
        if is_loopback(serving.host):
            return None
        raise ValueError(
            f"--host {serving.host} can be reached from other machines, and whoever reaches it moves "
            "the arm: give --token FILE, a file that holds a secret, or listen at 127.0.0.1"
        )
    token = read_key(serving.token, whose="--token", what="the token")
    if len(token) < SHORTEST or not token.isascii() or " " in token:
        raise ValueError(
            f"{serving.token}: a token has at least {SHORTEST} letters of ASCII and no space; make "
            "one: openssl rand -hex 32"
        )
    return token


def _ports(serving: Serving) -> list[Port]:
    found = []
    if serving.port is not None:
        found.append(Port(openpi.NAME, serving.port, openpi.speak))
    if serving.vla_eval_port is not None:
        found.append(Port(vla_eval.NAME, serving.vla_eval_port, vla_eval.speak))
    if not found:
        raise ValueError("--port and --vla-eval-port are both None: nothing would be served")
    return found


def _course(policy: Policy, serving: Serving) -> Course:
    """How the policy is carried out. Raises ValueError where a protocol does not show it what it
    looks at."""
    execute = policy.execute if serving.execute is None else serving.execute
    robot = policy.robot
    names = robot.observation.state_names
    bounds = None if serving.guard is None else Bounds.read(serving.guard, robot.action, names)
    course = Course(execute, history_of(policy), policy.ensemble, robot.action, bounds, names)
    if course.history > 1 and course.execute > 1 and serving.port is not None:
        raise ValueError(
            f"the policy looks at {course.history} observations, one a control step, and a client "
            f"of openpi's shows it one every {course.execute}; give --execute 1, or serve vla-eval's "
            "protocol alone with --port None"
        )
    return course


def _why_unguided(policy: Policy, course: Course) -> str:
    """Why robots cannot have chunks that are guided by the actions under way; empty: they can."""
    if course.ensemble is not None:
        return "chunks are averaged with those before, and would be joined twice"
    return policy.why_unguided


def _warm_up(policy: Policy, house: House) -> None:
    """One decision before anybody waits for one, which also says how many actions there are. Raises
    ValueError where fewer are decided than should be carried out."""
    seen = policy.robot.observation
    images = {}
    for name, camera in seen.cameras.items():
        images[name] = np.zeros((camera.height, camera.width, 3), np.uint8)
    state = np.zeros(seen.state_dims or 0, np.float32)
    blank = Observation(images, state, WORDS, np.zeros(policy.robot.action.dims, np.float32))
    (found,) = decide_all(policy, [blank])
    if isinstance(found, DecisionError):  # it may read no such words, or want a larger picture
        house.journal.warn("not warmed up", str(found))
        return
    execute = house.course.execute
    if len(found) < execute:
        raise ValueError(
            f"--execute {execute}: the policy decides {len(found)} actions at a time; give at most "
            "that"
        )
    house.description["chunk"] = len(found)


def _log_to_stderr() -> None:
    logger = logging.getLogger("armlet.serve")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
