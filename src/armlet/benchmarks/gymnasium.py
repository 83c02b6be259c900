"""Any Gymnasium environment as a benchmark, by its id: `gym:ENV_ID`, or `gym:package:ENV_ID` where
a package has to be imported for the environment to be registered.

What the environment says of itself is taken from it: the range of its actions, its observation's
pictures and numbers, its time limit, its rate. What no environment says (whether actions are moves
or places, which dimension is a gripper, what the words are) is an option, and asked for by name
where it cannot be left out. Nothing is guessed. Knows Gymnasium; knows no policy.
"""

import functools
import importlib.metadata
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from armlet.benchmarks import Benchmark, Task, World
from armlet.robot.fit import fit_picture
from armlet.robot.naming import faults
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

TERMINATED = "terminated"
SUCCESS = ("success", "is_success")  # how environments call it in their `info`
WORDS = ("instruction", "language_instruction", "task_description", "task")
RATES = ("control_freq", "control_hz")  # attributes of an environment: actions a second
RENDERED = "render"  # the camera of what `env.render()` gives


@dataclass(frozen=True)
class Gymnasium(Benchmark):
    """One environment; its episodes differ in their seed.

    Observations are a Box, or a Dict of Boxes, also one within another. A `uint8` Box of shape
    (h, w, 3) or (3, h, w) is a camera under its key; with none of these (or `pictures="render"`)
    what the environment renders is the only one. Boxes of one axis are the state, side by side in
    the order of the environment's keys. `leave_out` names keys that a robot would not have.

    Everything that follows is None where the environment is to say it, or nobody knows it.
    """

    env: str
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Of `gymnasium.make`."""
    instruction: str | None = None
    """What the robot is told; None: the text in the environment's observation or info."""
    success: str | None = None
    """`terminated`, or the key of `info` that is true once the task has succeeded."""
    mode: Literal["delta", "absolute"] | None = None
    """What actions are: moves, or places. No environment says it."""
    rotation: Literal["none", "axis_angle", "euler", "quaternion", "rot6d"] = "none"
    action_names: tuple[str, ...] = ()
    """One a dimension; empty: action.0, action.1 …"""
    low: tuple[float, ...] = ()
    """Of each dimension, where the environment's own range has no end."""
    high: tuple[float, ...] = ()
    grippers: tuple[int, ...] = ()
    """Which dimensions open and close a gripper, and with which numbers."""
    gripper_open: float = 0.0
    gripper_closed: float = 1.0
    control_hz: float | None = None
    """Actions a second."""
    translation_scale: float | None = None
    """Metres moved by an action of 1."""
    limit: int | None = None
    """Steps until an episode ends without success."""
    pictures: Literal["keys", "render"] | None = None
    leave_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"gym:{self.env}"

    @property
    def action_spec(self) -> ActionSpec:
        return self.described.action

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.described.state_names

    @property
    def cameras(self) -> dict[str, int]:
        return {name: max(size) for name, size in self.described.cameras.items()}

    @property
    def camera_sizes(self) -> dict[str, tuple[int, int]]:
        return dict(self.described.cameras)

    @property
    def max_steps(self) -> int:
        return self.described.limit

    def tasks(self, split: str = "seen") -> tuple[Task, ...]:
        self.check_split(split)
        return (Task(self.env, "gymnasium", split),)

    def make(self, task: Task, seed: int) -> "GymnasiumWorld":
        return GymnasiumWorld(self, seed)

    def fingerprint(self) -> dict[str, Any]:
        package = self.described.package
        return {
            "benchmark": self.name,
            "gymnasium": gymnasium.__version__,
            "package": package,
            "package_version": _version(package),
            "made_with": asdict(self),
            "cameras": {name: list(size) for name, size in self.described.cameras.items()},
        }

    def open(self) -> gymnasium.Env:
        """The environment itself, not yet reset. Raises ValueError where there is none, or it does
        not take these options."""
        chosen: dict[str, Any] = dict(self.options)
        if self.limit is not None:
            chosen["max_episode_steps"] = self.limit
        try:
            found = gymnasium.make(
                self.env, render_mode="rgb_array", disable_env_checker=True, **chosen
            )
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            raise ValueError(
                f"benchmark {self.name!r} cannot be made ({type(error).__name__}: {error}). Is its "
                "package installed, and does importing it register the environment "
                "(gym:package:ENV_ID imports it)? What `gymnasium.make` should be given is "
                "--benchmark.options"
            ) from error
        return cast(gymnasium.Env, found)

    @functools.cached_property
    def described(self) -> "Described":
        """What the environment is like, found by looking once."""
        return describe(self)


@dataclass(frozen=True)
class Described:
    """What an environment is like, and its options have completed. `state` and `pictures`: the
    observation's keys, () of an observation that has none."""

    action: ActionSpec
    state: tuple[tuple[str, ...], ...]
    state_names: tuple[str, ...]
    pictures: dict[str, tuple[str, ...]]  # camera → key; empty: what is rendered is the camera
    cameras: dict[str, tuple[int, int]]
    words: tuple[str, ...] | None  # the key of the observation that holds the instruction
    success: str
    limit: int
    package: str


class GymnasiumWorld(World):
    """One episode of a Gymnasium environment."""

    def __init__(self, benchmark: Gymnasium, seed: int) -> None:
        self.described = benchmark.described
        self.env = benchmark.open()
        self.seen, info = self.env.reset(seed=seed)
        self.instruction = _instruction(benchmark, self.described.words, self.seen, info)
        self.previous = np.zeros(self.described.action.dims, np.float32)

    def observe(self) -> Observation:
        described = self.described
        if described.pictures:
            images = {
                camera: _channels_last(_at(self.seen, path))
                for camera, path in described.pictures.items()
            }
        else:
            images = {RENDERED: _rendered(self.env)}
        numbers = [np.ravel(_at(self.seen, path)) for path in described.state]
        state = np.concatenate(numbers) if numbers else np.zeros(0)
        return Observation(images, state.astype(np.float32), self.instruction, self.previous)

    def step(self, action: np.ndarray) -> bool:
        spec = self.described.action
        command = np.asarray(action, np.float64)
        if command.shape != (spec.dims,) or not np.isfinite(command).all():
            raise ValueError(
                f"the action has shape {command.shape}, expected ({spec.dims},) finite numbers: "
                f"{', '.join(spec.names)}"
            )
        within = np.clip(command, spec.low, spec.high).astype(self.env.action_space.dtype)
        self.seen, _, terminated, truncated, info = self.env.step(within)
        self.previous = np.asarray(action, np.float32)
        succeeded = _succeeded(self.described.success, info, terminated=bool(terminated))
        # An environment that has ended may not be stepped again, whatever it ended by.
        self.over = bool(terminated or truncated)
        return succeeded

    def render(self, size: int) -> np.ndarray:
        return fit_picture(_rendered(self.env), size, "letterbox")

    def close(self) -> None:
        self.env.close()


# --- what an environment is like


def describe(benchmark: Gymnasium) -> Described:
    """Look at an environment: its spaces, one reset, one step, one picture. Raises ValueError for
    everything that makes it unfit, naming the option that would mend it."""
    env = benchmark.open()
    try:
        action = _action(benchmark, env)
        _check_left_out(benchmark, env.observation_space)
        leaves = _leaves(benchmark, env.observation_space)
        seen, info = env.reset(seed=0)
        _, _, _, _, told = env.step(_rest(env.action_space))
        pictures = _pictures(benchmark, leaves)
        words = [path for path, space in leaves.items() if isinstance(space, spaces.Text)]
        _instruction(benchmark, words[0] if words else None, seen, info)
        cameras: dict[str, tuple[int, int]] = {}
        for camera, path in pictures.items():
            height, width, _ = _channels_last(_at(seen, path)).shape
            cameras[camera] = (height, width)
        if not pictures:
            height, width, _ = _rendered(env).shape
            cameras[RENDERED] = (height, width)
        state = [path for path, space in leaves.items() if _is_state(space)]
        return Described(
            action=action,
            state=tuple(state),
            state_names=tuple(
                f"{'.'.join(path) or 'state'}{number}"
                for path in state
                for number in _numbers(leaves[path])
            ),
            pictures=pictures,
            cameras=cameras,
            words=words[0] if words else None,
            success=_success(benchmark, told),
            limit=_limit(benchmark, env),
            package=type(env.unwrapped).__module__.partition(".")[0],
        )
    finally:
        env.close()


def _action(benchmark: Gymnasium, env: gymnasium.Env) -> ActionSpec:
    space = env.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"{benchmark.name}: its actions are {space}, expected a Box of one axis: a policy "
            "answers numbers, and does not choose among buttons"
        )
    dims = space.shape[0]
    names = benchmark.action_names or tuple(f"action.{index}" for index in range(dims))
    ends = {"low": benchmark.low or tuple(space.low.tolist())}
    ends["high"] = benchmark.high or tuple(space.high.tolist())
    for option, values in (("action-names", names), *ends.items()):
        if len(values) != dims:
            raise ValueError(
                f"{benchmark.name}: --benchmark.{option} has {len(values)} entries and its actions "
                f"{dims} numbers; give one a number"
            )
    wrong = faults(names)
    if wrong:
        raise ValueError(
            f"{benchmark.name}: --benchmark.action-names must name each number once: "
            f"{'; '.join(wrong)}; give each a name of its own"
        )
    if not np.isfinite([ends["low"], ends["high"]]).all():
        raise ValueError(
            f"{benchmark.name}: its actions have no finite range ({space}); say what the robot "
            "accepts with --benchmark.low and --benchmark.high, a number a dimension"
        )
    if benchmark.mode is None:
        raise ValueError(
            f"{benchmark.name}: no environment says whether its actions are moves or places; give "
            "--benchmark.mode delta or --benchmark.mode absolute"
        )
    return ActionSpec(
        names,
        benchmark.mode,
        benchmark.rotation,
        ends["low"],
        ends["high"],
        benchmark.grippers,
        benchmark.gripper_open,
        benchmark.gripper_closed,
        _rate(benchmark, env),
        cast(float, benchmark.translation_scale),  # None where nobody knows it
    )


def _rate(benchmark: Gymnasium, env: gymnasium.Env) -> float:
    """Actions a second: as the environment says it, by whichever name, or the rate at which its
    rendered pictures are one an action."""
    if benchmark.control_hz is not None:
        return benchmark.control_hz
    inner = env.unwrapped
    for name in RATES:
        rate = getattr(inner, name, None)
        if rate:
            return float(rate)
    seconds = getattr(inner, "dt", None)  # of a step, as Gymnasium's MuJoCo environments have it
    if seconds:
        return 1 / float(seconds)
    rate = env.metadata.get("render_fps")
    if rate:
        return float(rate)
    raise ValueError(
        f"{benchmark.name} does not say how many actions it takes a second (no control_freq, no "
        "dt, no render_fps); give --benchmark.control-hz"
    )


def _leaves(
    benchmark: Gymnasium, space: spaces.Space, path: tuple[str, ...] = ()
) -> dict[tuple[str, ...], spaces.Space]:
    """Path of keys → what is there, for all that is not left out. Raises ValueError for a space
    that is neither picture, state nor text."""
    if ".".join(path) in benchmark.leave_out:
        return {}
    if isinstance(space, spaces.Dict):
        found: dict[tuple[str, ...], spaces.Space] = {}
        for key, inner in space.spaces.items():
            found |= _leaves(benchmark, inner, (*path, key))
        return found
    if _is_picture(space) or _is_state(space) or isinstance(space, spaces.Text):
        return {path: space}
    what = f"key {'.'.join(path)!r} of its observation is" if path else "its observation is"
    raise ValueError(
        f"{benchmark.name}: {what} {space}, expected a uint8 picture (h, w, 3), a Box of one axis, "
        "or a text, or a Dict of these; leave a key out with --benchmark.leave-out"
    )


def _check_left_out(benchmark: Gymnasium, space: spaces.Space) -> None:
    there = _keys(space)
    unknown = sorted(set(benchmark.leave_out) - set(there))
    if unknown:
        raise ValueError(
            f"{benchmark.name}: --benchmark.leave-out names {', '.join(unknown)}, and its "
            f"observation has {', '.join(there) or 'no keys'}"
        )


def _keys(space: spaces.Space, path: tuple[str, ...] = ()) -> list[str]:
    """Every key of a Dict and of those in it, with dots between."""
    found = [".".join(path)] if path else []
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            found += _keys(inner, (*path, key))
    return found


def _pictures(
    benchmark: Gymnasium, leaves: dict[tuple[str, ...], spaces.Space]
) -> dict[str, tuple[str, ...]]:
    """Camera → key; empty where what is rendered is the camera."""
    if benchmark.pictures == "render":
        return {}
    found = {}
    for path, space in leaves.items():
        if _is_picture(space):
            found[".".join(path) or "image"] = path
    if benchmark.pictures == "keys" and not found:
        raise ValueError(
            f"{benchmark.name}: --benchmark.pictures is keys, and none of its observation's is a "
            "uint8 picture (h, w, 3)"
        )
    return found


def _success(benchmark: Gymnasium, info: dict[str, Any]) -> str:
    """Where the environment says that the task has succeeded."""
    if benchmark.success is not None:
        return benchmark.success
    for name in SUCCESS:
        if name in info:
            return name
    there = ", ".join(sorted(info)) or "nothing"
    raise ValueError(
        f"{benchmark.name} does not say when the task has succeeded: its info has {there}, and "
        f"neither {' nor '.join(SUCCESS)}. Give --benchmark.success terminated where an episode "
        "ends by succeeding (not where it ends by falling), or the key of info that says it"
    )


def _succeeded(success: str, info: dict[str, Any], *, terminated: bool) -> bool:
    return terminated if success == TERMINATED else bool(info.get(success, False))


def _limit(benchmark: Gymnasium, env: gymnasium.Env) -> int:
    limit = benchmark.limit
    if limit is None and env.spec is not None:
        limit = env.spec.max_episode_steps
    if limit is None:
        raise ValueError(
            f"{benchmark.name} has no time limit, and an episode needs one: --benchmark.limit, in "
            "steps"
        )
    return limit


def _instruction(
    benchmark: Gymnasium, words: tuple[str, ...] | None, seen: Any, info: dict[str, Any]
) -> str:
    if benchmark.instruction is not None:
        return benchmark.instruction
    if words is not None:
        return str(_at(seen, words))
    for name in WORDS:
        if isinstance(info.get(name), str):
            return str(info[name])
    raise ValueError(
        f"{benchmark.name} says no words (no text in its observation, no {' nor '.join(WORDS)} in "
        'its info), and a policy is told what to do: --benchmark.instruction "push the T"'
    )


def _rendered(env: gymnasium.Env) -> np.ndarray:
    """What the environment shows, (h, w, 3) uint8."""
    found = env.unwrapped.spec.id if env.unwrapped.spec else type(env.unwrapped).__name__
    failures = (gymnasium.error.Error, mujoco.FatalError, ImportError, RuntimeError)
    try:
        picture = np.asarray(env.render())
    except failures as error:
        raise ValueError(
            f"gym:{found} has no pictures in its observation, and rendering one failed "
            f"({type(error).__name__}: {error}); install what it asks for, or another GL"
        ) from error
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(
            f"gym:{found} has no pictures in its observation, and renders {picture.dtype} of shape "
            f"{picture.shape}, expected (h, w, 3) uint8: it has no render mode rgb_array"
        )
    return picture


def _rest(space: spaces.Space) -> np.ndarray:
    """An action that is as near to none as the space has one."""
    assert isinstance(space, spaces.Box)
    return np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)


def _is_picture(space: spaces.Space) -> bool:
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) == 3 and 3 in (shape[0], shape[2])


def _is_state(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) <= 1


def _numbers(space: spaces.Space) -> list[str]:
    """What comes behind a key in the names of its numbers: nothing where there is only one."""
    count = int(np.prod(space.shape or ()))
    return [""] if not space.shape else [f".{index}" for index in range(count)]


def _at(seen: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        seen = seen[key]
    return seen


def _channels_last(picture: np.ndarray) -> np.ndarray:
    """(3, h, w) or (h, w, 3) → (h, w, 3)."""
    return picture if picture.shape[2] == 3 else np.ascontiguousarray(picture.transpose(1, 2, 0))


def _version(package: str) -> str | None:
    """Of the distribution that holds a top-level package; None where no one installed it."""
    for distribution in importlib.metadata.packages_distributions().get(package, ()):
        return importlib.metadata.version(distribution)
    return None
