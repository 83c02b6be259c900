"""A policy behind a socket: any server that speaks openpi's protocol or vla-eval's, whatever
framework it is made of.

    armlet probe action_kd --episodes DIR --teacher ws://host:8000

What the server wants to be told in another way is said in a `policy.toml` (pretrained/said.py),
`checkpoint = "ws://host:8000"`, whose `[cameras]` are the server's key of a picture = the robot's
camera, and whose `[options]` are the fields of `Options`. A server does not say what its robot is:
that is the one that it is loaded for.

Who it is, its *fingerprint*, is a hash of what it says of itself, of how it is asked, and of what
it answers to four questions that are always the same. They are asked twice: a server whose answers
to one question differ, because it draws noise or remembers what it was asked before, cannot be
recognised by them, and is refused unless it is named (`identity`). The address does not count: a
server may move. A connection that broke is opened to the same policy or to none: the questions are
asked again.
"""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from math import inf
from queue import SimpleQueue
from typing import Any

import numpy as np

from armlet import limits
from armlet.limits import ABOVE_0, MOST
from armlet.policies.contract import Policy
from armlet.policies.pretrained.said import Said
from armlet.robot.client.address import address_of
from armlet.robot.client.asking import (
    Question,
    actions_in,
    check_finite,
    named_cameras,
    path_of,
    read_key,
)
from armlet.robot.client.dialects import DIALECTS, Dialect, DialectError
from armlet.robot.client.line import AnswerError, Calling, Line
from armlet.robot.fit import known_fit
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import CameraSpec, RobotSpec

QUESTIONS = 4  # that say who a server is
WORDS = "go"  # of these questions: no policy's longest instruction is shorter
# How a server is called, and what of it is read: nothing of that changes an answer.
CALLING = ("connections", "timeout", "retries", "wait", "largest", "api_key")


@dataclass(frozen=True)
class Options:
    """How a server is asked: `[options]` of a policy.toml."""

    protocol: str = "openpi"
    """openpi or vla_eval."""
    state: str | dict[str, Any] = ""
    """Key of the robot's state; a table of keys with the numbers of the state under each. Left out:
    `observation/state` (openpi), `state` (vla_eval)."""
    prompt: str = ""
    """Key of the instruction. Left out: `prompt`, `task_description`."""
    previous_action: str = ""
    """Key of the action before, for a server that takes it; left out: it is not told."""
    layout: str = "hwc"
    """Of pictures: hwc, channels last, or chw."""
    size: int | None = None
    """Side of the square that pictures are fitted to, in pixels; left out: they are sent as they
    are."""
    fit: str = "letterbox"
    """How they are fitted: letterbox, crop, stretch or bicubic."""
    chunk: int | None = None
    """How many of the answered actions are taken; left out: all."""
    batch: int = 1
    """Observations in one message, stacked, for a server that takes that; 1: not stacked."""
    connections: int = 1
    """Messages that may be under way at the same time, each on a connection of its own."""
    noise: str = ""
    """Key of the noise that its policy starts from, where it takes that; always the same."""
    noise_shape: tuple[int, ...] = ()
    """Of one observation's noise, such as [50, 32]."""
    seed: str = ""
    """Key of a seed, where it takes that."""
    drawn_from: int = 0
    """The seed that is sent, or that the noise is drawn from."""
    timeout: float = 300.0
    """Seconds that an answer may take; the first may wait for a compiler."""
    retries: int = 6
    """Further calls where the server is not there."""
    wait: float = 1.0
    """Seconds before the first of them; each waits twice as long as the one before."""
    largest: int = 2**24
    """Bytes that an answer may have."""
    api_key: str = ""
    """A file, beside the policy.toml or by its whole path, in which the server's key stands."""
    identity: str = ""
    """Who answers, in your words, for a server whose answers do not say it: they differ each time.
    Change it whenever the policy behind the server changes."""

    def __post_init__(self) -> None:
        for name, known in (("protocol", tuple(DIALECTS)), ("layout", ("hwc", "chw"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}"
                )
        if known_fit(self.fit) in ("any", "exact"):
            raise ValueError(f"fit is {self.fit!r}; leave `size` out to send pictures as they are")
        limits.positive(self, "size", "chunk", "batch", "connections", "largest", "noise_shape")
        limits.check(self, timeout=(ABOVE_0, MOST), wait=(0, MOST), retries=(0, 30))
        limits.check(self, drawn_from=(0, inf))
        if bool(self.noise) != bool(self.noise_shape):
            raise ValueError("`noise` and `noise_shape` are given together: the key, and its shape")
        if self.batch > 1 and not DIALECTS[self.protocol].batches:
            raise ValueError(
                f"batch is {self.batch}, and {self.protocol} asks one observation a message; give "
                "`connections`, which its server batches"
            )


class SocketPolicy(Policy):
    """See the module's docstring. Answers are in the robot's own numbers.

    Its processes and threads may use it one after the other; `ask` itself uses `connections` of
    them at the same time.
    """

    def __init__(self, said: Said, options: Options, robot: RobotSpec) -> None:
        """`robot`: whose actions, state and cameras the server is asked about; the server is not
        called yet."""
        self.url = address_of(said.checkpoint)
        self.options = options
        self.said = said
        self.chunk = 0  # until `meet`
        self.execute = 0
        self.fingerprint = ""
        self.metadata: dict[str, Any] | None = None
        dialect = _dialect(options)
        whose = f"{said.source}: [cameras]"
        cameras = tuple(robot.observation.cameras)
        self._names = named_cameras(said.cameras, cameras, dialect, whose=whose)
        seen = {name: robot.observation.cameras[name] for name in self._names}
        if options.size is not None:
            seen = {name: CameraSpec(options.size, options.size) for name in seen}
        # `any`: pictures reach the server in whatever size they have.
        fit = "any" if options.size is None else known_fit(options.fit)
        self._robot = replace(robot, observation=replace(robot.observation, cameras=seen, fit=fit))
        self._calling = Calling(
            self.url,
            options.timeout,
            options.retries,
            options.wait,
            options.largest,
            _key(said, options),
        )
        self.question = self._question()
        self._lock = threading.Lock()
        self._known: str | None = None  # the digest of its answers, once it is known
        self._lines: SimpleQueue[Line] = SimpleQueue()
        for _ in range(options.connections):
            self._lines.put(self._line())

    @property
    def robot(self) -> RobotSpec:
        return self._robot

    @property
    def kind(self) -> str:
        return f"the policy behind {self.url}"

    @property
    def why_unguided(self) -> str:
        return f"{self.kind} is asked for chunks that stand alone"

    def meet(self, *, retries: int | None = None) -> None:
        """Call the server, and learn who it is: its chunk, its fingerprint. `retries`: instead of
        those that its options say. Raises ServerError and AnswerError."""
        calling = self._calling if retries is None else replace(self._calling, retries=retries)
        line = Line(calling, _dialect(self.options), self._greeted)
        try:
            answers = self._introduced(line)
        finally:
            line.close()
        self.chunk = answers.shape[1]
        self.execute = self.said.execute or self.chunk
        if self.execute > self.chunk:
            raise ValueError(
                f"{self.said.source}: execute is {self.execute}, and {self.url} answers "
                f"{self.chunk} actions at a time"
            )
        dims = answers.shape[2]
        action = self.said.action_spec(dims, self._robot)
        self._robot = replace(self._robot, action=action)
        with self._lock:
            self._known = None if self.options.identity else _digest(answers)
        self.fingerprint = self._fingerprint()

    def infer(self, observation: Observation) -> np.ndarray:
        return self.decide(observation).actions

    def decide(self, observation: Observation) -> Decision:
        return self.decide_all([observation])[0]

    def decide_all(self, observations: Sequence[Observation]) -> list[Decision]:
        spec = self._robot.action
        if any(seen.underway is not None for seen in observations):
            raise ValueError(f"late = 'guided': {self.why_unguided}")
        found = []
        for chunk in self.ask(observations):
            # As networks of ours do: a controller may fault beyond its range.
            within = np.clip(chunk, spec.low, spec.high).astype(np.float32)
            found.append(Decision(within, ()))
        return found

    def ask(
        self, observations: Sequence[Observation], about: Sequence[str] | None = None
    ) -> np.ndarray:
        """(n, k, a) float32: what the server answers, as it answers it. `about`: what each
        observation is called in an error."""
        answers = list(self.answers(observations, about))
        return np.concatenate(answers)

    def answers(
        self, observations: Sequence[Observation], about: Sequence[str] | None = None
    ) -> Iterator[np.ndarray]:
        """The same in the messages in which they come, (m, k, a) each, in order. Where one fails,
        those before it have been given."""
        if not self.chunk:
            self.meet()
        names = about or [f"observation {number}" for number in range(len(observations))]
        size = self.options.batch
        starts = range(0, len(observations), size)

        def one(start: int) -> np.ndarray:
            line = self._lines.get()
            try:
                some = observations[start : start + size]
                return self._asked(line, some, names[start])
            finally:
                self._lines.put(line)

        if self.options.connections == 1 or len(starts) == 1:
            yield from map(one, starts)
            return
        pool = ThreadPoolExecutor(self.options.connections)
        try:
            yield from pool.map(one, starts)
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Hang up; whoever asks again calls again."""
        for _ in range(self.options.connections):
            line = self._lines.get()
            line.close()
            self._lines.put(line)

    def _line(self) -> Line:
        line = Line(self._calling, _dialect(self.options), self._greeted)
        line.opened = lambda: self._recognised(line)
        return line

    def _greeted(self, metadata: dict[str, Any]) -> None:
        """What the server says of itself on a new connection."""
        with self._lock:
            if self.metadata is None:
                self.metadata = metadata
            if _canonical(metadata) != _canonical(self.metadata):
                raise DialectError(
                    "is another server than before: it says something else of itself. What was "
                    "answered before is kept; start the one of before again, or begin anew"
                )

    def _recognised(self, line: Line) -> None:
        """Whether it is the policy that was met."""
        if self._known is None:
            return
        answers = []
        for question in self._questions():
            observation = self.question.message([question])
            reply = line.dialect.ask(line, observation)
            answers.append(self._checked(reply, 1))
        if _digest(np.concatenate(answers)) != self._known:
            raise DialectError(
                "is another policy than before, or its answers depend on what it was asked before: "
                "it answers the questions that say who it is differently. What was answered before "
                "is kept; start the policy of before again, or begin anew"
            )

    def _introduced(self, line: Line) -> np.ndarray:
        """(q, k, a): the answers to the questions that say who it is."""
        rounds = []
        for _ in range(2):
            answers = []
            for number, question in enumerate(self._questions()):
                answers.append(self._asked(line, [question], f"question {number}"))
            rounds.append(np.concatenate(answers))
        first, second = rounds
        if first.shape != second.shape or not np.array_equal(first, second):
            self._differs(first, second)
        return first

    def _differs(self, first: np.ndarray, second: np.ndarray) -> None:
        """Raises AnswerError where nobody says who it is."""
        if first.shape != second.shape:
            how = f"{first.shape[1]} actions, and then {second.shape[1]}"
        else:
            how = f"by up to {np.abs(first - second).max():g} in the robot's numbers"
        if not self.options.identity or first.shape != second.shape:
            raise AnswerError(
                f"{self.url} answers the same question differently ({how}), so it cannot be told "
                "from another policy. Make it repeatable (`noise` or `seed` in [options] of a "
                'policy.toml, where it takes one), or say there who it is: identity = "…"'
            )
        sys.stderr.write(
            f"{self.url} answers the same question differently ({how}); that it is "
            f"{self.options.identity!r} is taken on your word\n"
        )

    def _questions(self) -> list[Observation]:
        """The same for the same robot, whatever the data."""
        found = []
        robot = self._robot
        for number in range(QUESTIONS):
            rng = np.random.default_rng([QUESTIONS, number])
            images = {}
            for name, camera in robot.observation.cameras.items():
                coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
                rows = np.arange(camera.height) * 4 // camera.height
                columns = np.arange(camera.width) * 4 // camera.width
                images[name] = coarse[rows][:, columns]  # (h, w, 3): patches of colour
            state = rng.uniform(-0.5, 0.5, robot.observation.state_dims or 0)
            previous = np.zeros(robot.action.dims, np.float32)
            found.append(Observation(images, state.astype(np.float32), WORDS, previous))
        return found

    def _asked(self, line: Line, some: Sequence[Observation], about: str) -> np.ndarray:
        """(m, k, a): what the server answers to one message."""
        reply = line.ask(self.question.message(some), about=about)
        try:
            return self._checked(reply, len(some))
        except DialectError as error:
            line.close()
            raise AnswerError(f"{self.url} {error} ({about})") from error

    def _question(self) -> Question:
        """How the server is shown an observation, as the options say. Raises ValueError where they
        name numbers that the state has not."""
        options = self.options
        dialect = _dialect(options)
        noise = {}
        if options.noise:
            rng = np.random.default_rng(options.drawn_from)
            noise[path_of(options.noise)] = rng.standard_normal(options.noise_shape).astype(
                np.float32
            )
        return Question(
            cameras=self._names,
            state=self._state_keys(),
            prompt=path_of(options.prompt) if options.prompt else dialect.prompt,
            previous_action=path_of(options.previous_action) if options.previous_action else None,
            layout=options.layout,
            sizes=self._robot.observation.view.cameras,
            fit=self._robot.observation.fit,
            drawn=noise,
            once={path_of(options.seed): options.drawn_from} if options.seed else {},
            stacked=options.batch > 1,
        )

    def _state_keys(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Where the state stands in a message: path → its numbers there."""
        dims = self._robot.observation.state_dims or 0
        if not dims:
            return {}
        said = self.options.state
        if not isinstance(said, dict):
            usual = _dialect(self.options).state
            return {path_of(said) if said else usual: tuple(range(dims))}
        found = {}
        for key, numbers in said.items():
            if not numbers or not all(type(each) is int and 0 <= each < dims for each in numbers):
                raise ValueError(
                    f"{self.said.source}: [options] state: {key} names the numbers "
                    f"{numbers!r:.60}, expected some of 0 to {dims - 1}"
                )
            found[path_of(key)] = tuple(numbers)
        return found

    def _checked(self, reply: dict[str, Any], rows: int) -> np.ndarray:
        """(m, k, a) float32 of an answer. Raises DialectError where it is anything else."""
        rows_asked = rows if self.options.batch > 1 else None
        actions = actions_in(reply, self._robot.action.dims, rows=rows_asked)
        shape = actions.shape
        wanted = self.chunk or self.options.chunk or 0
        if shape[1] < wanted or (self.options.chunk is None and wanted not in (0, shape[1])):
            raise DialectError(f"answers with {shape[1]} actions, expected {wanted}")
        actions = actions[:, : self.options.chunk]
        check_finite(actions, self._robot.action.names)
        return actions

    def _fingerprint(self) -> str:
        told = {}
        for each in fields(self.options):
            if each.name not in CALLING:
                told[each.name] = getattr(self.options, each.name)
        cameras = {name: list(path) for name, path in self._names.items()}
        question = {
            "asked": told,
            "cameras": cameras,
            "execute": self.execute,
            "metadata": _canonical(self.metadata),
            "answers": self._known,
        }
        content = json.dumps(question, sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:16]


def load(said: Said, robot: RobotSpec | None, *, retries: int | None = None) -> SocketPolicy:
    """The policy at an address, met: what is said of it, and the robot that it is loaded for. Raises
    ValueError where no robot is known, or what is said will not do, and what `meet` does."""
    url = address_of(said.checkpoint)
    for name, usual in (("precision", "fp32"), ("tokenizer", None), ("kind", None)):
        if getattr(said, name) != usual:
            raise ValueError(
                f"{said.source}: {name} has no effect on a policy behind a socket ({url}); leave it "
                "out"
            )
    if robot is None:
        raise ValueError(
            f"{url}: a server does not say what its robot is; load it for one, "
            "load_actor(…, robot=…), or use it in a recipe whose episodes or benchmark say it"
        )
    policy = SocketPolicy(said, said.as_options(Options), robot)
    policy.meet(retries=retries)
    return policy


def _dialect(options: Options) -> Dialect:
    return DIALECTS[options.protocol]()


def _digest(answers: np.ndarray) -> str:
    content = f"{answers.shape}".encode() + np.ascontiguousarray(answers).tobytes()
    return hashlib.sha256(content).hexdigest()


def _key(said: Said, options: Options) -> str | None:
    if not options.api_key:
        return None
    # Beside the policy.toml, unless it is named by its whole path.
    path = said.source.parent / options.api_key
    return read_key(path, whose=f"{said.source}: api_key", what="the server's key")


def _canonical(value: Any) -> str:
    """Metadata as a text that is the same for the same metadata, arrays by their numbers."""

    def plain(each: Any) -> Any:
        if isinstance(each, np.ndarray):
            return [each.dtype.str, each.shape, each.tobytes().hex()]
        if isinstance(each, bytes):
            return each.hex()
        if isinstance(each, np.generic):
            return each.item()
        return str(each)

    return json.dumps(value, sort_keys=True, default=plain)
