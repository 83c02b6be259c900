"""Any Gymnasium environment as a benchmark: what it says of itself against what the environment
is, its episodes against the environment stepped by hand, and what cannot be used refused by name."""

import dataclasses
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from strange_gym import Cart

from armlet import benchmarks
from armlet.benchmarks import gymnasium as adapter
from armlet.benchmarks.gymnasium import Gymnasium
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.rollout.loop import Episode, run_task
from armlet.rollout.recording import features_of

CART = "strange_gym:strange/Cart-v0"
OPTIONS = {"mode": "delta", "leave_out": ("button",)}
NAMES = ("agent.0", "agent.1", "speed")  # in the order of a Dict's keys


def cart(**changes) -> Gymnasium:
    found = benchmarks.find(f"gym:{CART}", **{**OPTIONS, **changes})
    assert isinstance(found, Gymnasium)
    return found


class Pushes:
    """Goes to the mark that the state names, two actions a look."""

    execute = 2

    def decide(self, seen) -> Decision:
        way = np.clip((seen.state[1] - seen.state[0]) / 0.1, -1, 1)
        actions = np.array([[way, 0.0], [0.0, 0.0]], np.float32)
        return Decision(actions, (1,))

    def infer(self, seen) -> np.ndarray:
        return self.decide(seen).actions

    def reset(self) -> None:
        pass


def watched(benchmark: Gymnasium, seed: int) -> tuple[Episode, list[Observation]]:
    """An episode, and what was to be seen as it began and after every step."""
    looked: list[Observation] = []
    episode = run_task(
        Pushes(),
        benchmark,
        benchmark.tasks()[0],
        seed,
        on_world=lambda world: looked.append(world.observe()),
    )
    return episode, looked


def test_what_an_environment_says_of_itself_is_taken_from_it() -> None:
    found = cart(translation_scale=0.1)
    spec = found.action_spec
    assert (spec.names, spec.low, spec.high) == (("action.0", "action.1"), (-1, -1), (1, 1))
    assert (spec.mode, spec.control_hz, spec.translation_scale) == ("delta", 8, 0.1)
    assert found.camera_sizes == {"pixels.top": (20, 30)} and found.cameras == {"pixels.top": 30}
    assert sorted(found.state_names) == sorted(NAMES) and found.max_steps == 25
    assert [task.split for task in found.tasks()] == ["seen"] and found.name == f"gym:{CART}"
    assert features_of(found).cameras == {"pixels.top": (20, 30)}
    assert found.fingerprint()["gymnasium"] == gymnasium.__version__
    assert cart(limit=7).max_steps == 7 and cart(limit=7).fingerprint() != found.fingerprint()


def test_an_episode_is_the_environments_own() -> None:
    """Success, steps and every picture and number, against the environment stepped by hand."""
    found = cart()
    for seed in range(4):
        episode, looked = watched(found, seed)
        own = gymnasium.make(CART, dress="keys")
        seen, _ = own.reset(seed=seed)
        for step, action in enumerate(episode.executed):
            met = looked[step]
            np.testing.assert_array_equal(met.images["pixels.top"], seen["pixels"]["top"])
            numbers = dict(zip(found.state_names, met.state, strict=True))
            wanted = [*seen["agent"], seen["speed"]]
            np.testing.assert_allclose([numbers[name] for name in NAMES], wanted, rtol=1e-6)
            assert met.instruction == "push the cart to the mark"
            before = np.zeros(2) if step == 0 else episode.executed[step - 1]
            np.testing.assert_array_equal(met.previous_action, before)
            seen, _, terminated, _, info = own.step(action.astype(np.float64))
        assert episode.success == terminated == info["is_success"]
        assert episode.steps < 25
    again = run_task(Pushes(), found, found.tasks()[0], 3)
    np.testing.assert_array_equal(again.executed, episode.executed)


def test_an_episode_that_ends_by_a_fall_is_no_success_and_is_not_stepped_again() -> None:
    left = SimpleNamespace(
        execute=4,
        reset=lambda: None,
        decide=lambda seen: Decision(np.full((4, 2), -1, np.float32), (1,)),
    )
    falls = cart(options={"falls": True})
    episode = run_task(left, falls, falls.tasks()[0], 1)
    assert (episode.success, episode.steps) == (False, 6)
    stands = cart(success="terminated", options={"falls": True})
    assert run_task(left, stands, stands.tasks()[0], 1).success, "as it was asked for"
    slow = cart(limit=3)
    still = SimpleNamespace(
        execute=1,
        reset=lambda: None,
        decide=lambda seen: Decision(np.zeros((1, 2), np.float32), (1,)),
    )
    assert run_task(still, slow, slow.tasks()[0], 2).steps == 3


def test_pictures_may_stand_channels_first_or_be_rendered() -> None:
    first = cart(options={"dress": "first"}, leave_out=())
    assert first.camera_sizes == {"eye": (20, 30)} and first.state_names == ()
    world = first.make(first.tasks()[0], 2)
    np.testing.assert_array_equal(world.observe().images["eye"], world.env.unwrapped.picture())
    assert world.render(40).shape == (40, 40, 3) and world.observe().state.shape == (0,)
    numbers = cart(options={"dress": "numbers"}, leave_out=())
    assert numbers.camera_sizes == {"render": (20, 30)}
    assert numbers.state_names == ("state.0", "state.1")
    world = numbers.make(numbers.tasks()[0], 2)
    np.testing.assert_array_equal(world.observe().images["render"], world.env.unwrapped.picture())
    rendered = cart(pictures="render")
    assert rendered.camera_sizes == {"render": (20, 30)}


def test_actions_beyond_the_range_are_clipped_and_no_others_taken() -> None:
    found = cart()
    world = found.make(found.tasks()[0], 0)
    world.step(np.array([5.0, 0.0], np.float32))
    assert world.env.unwrapped.at == pytest.approx(0.1)
    for action in (np.zeros(3), np.array([np.nan, 0])):
        with pytest.raises(ValueError, match=r"expected \(2,\) finite numbers: action.0, action.1"):
            world.step(action)


REFUSED = [
    (CART, {"leave_out": ("button",)}, r"whether its actions are moves or places; give --benchmark"),
    (CART, {"mode": "delta"}, r"key 'button' of its observation is Discrete\(2\).*--benchmark.leave"),
    (CART, {**OPTIONS, "leave_out": ("buttn",)}, r"leave-out names buttn, and its observation has"),
    (CART, {**OPTIONS, "low": (-1.0,)}, r"--benchmark.low has 1 entries and its actions 2 numbers"),
    (CART, {**OPTIONS, "action_names": ("x",)}, r"action-names has 1 entries"),
    (CART, {**OPTIONS, "options": {"dres": 1}}, r"cannot be made \(TypeError: .*dres"),
    (CART, {**OPTIONS, "options": {"dress": "numbers"}, "pictures": "keys", "leave_out": ()},
     r"pictures is keys, and none of its observation's is a uint8 picture"),
    ("strange_gym:strange/Endless-v0", OPTIONS, r"has no time limit.*--benchmark.limit"),
    ("CartPole-v1", {"mode": "delta"}, r"its actions are Discrete\(2\), expected a Box of one axis"),
    ("Nowhere-v0", {}, r"cannot be made \(NameNotFound"),
    ("nowhere_at_all:Nowhere-v0", {}, r"cannot be made \(ModuleNotFoundError"),
]  # fmt: skip


@pytest.mark.parametrize(("env", "options", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_by_name(env: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmarks.find(f"gym:{env}", **options).action_spec  # noqa: B018


def test_what_an_environment_does_not_say_is_asked_for(monkeypatch) -> None:
    step, reset = Cart.step, Cart.reset
    monkeypatch.setattr(Cart, "step", lambda self, a: (*step(self, a)[:4], {"distance": 1.0}))
    with pytest.raises(ValueError, match=r"its info has distance, and neither success nor is_succ"):
        cart().max_steps  # noqa: B018
    assert cart(success="terminated").max_steps == 25
    monkeypatch.setattr(Cart, "reset", lambda self, **given: (reset(self, **given)[0], {}))
    with pytest.raises(ValueError, match=r"says no words .*--benchmark.instruction"):
        cart(success="distance").max_steps  # noqa: B018
    told = cart(success="distance", instruction="push it")
    assert told.make(told.tasks()[0], 0).instruction == "push it"
    monkeypatch.setattr(Cart, "metadata", {"render_modes": ["rgb_array"]})
    with pytest.raises(
        ValueError, match=r"how many actions it takes a second.*--benchmark.control"
    ):
        dataclasses.replace(told).action_spec  # noqa: B018
    assert dataclasses.replace(told, control_hz=12.5).action_spec.control_hz == 12.5
    monkeypatch.setattr(
        Cart, "action_space", property(lambda self: unbounded, lambda *_: None), raising=False
    )
    unbounded = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    endless = dataclasses.replace(told, control_hz=5.0)
    with pytest.raises(ValueError, match=r"no finite range .*--benchmark.low and --benchmark.high"):
        endless.action_spec  # noqa: B018


def test_one_that_gymnasium_ships(monkeypatch) -> None:
    """Its own numbers, limit and rate; drawn here, as its renderer is a package of its own."""
    draw = np.full((40, 60, 3), 7, np.uint8)
    monkeypatch.setattr(adapter, "_rendered", lambda env: draw)
    found = Gymnasium(
        "MountainCarContinuous-v0", mode="absolute", success="terminated", instruction="drive up"
    )
    own = gymnasium.make("MountainCarContinuous-v0")
    assert found.max_steps == own.spec.max_episode_steps == 999
    assert found.action_spec.control_hz == own.metadata["render_fps"] == 30
    swings = SimpleNamespace(
        execute=1,
        reset=lambda: None,
        decide=lambda seen: Decision(np.sign(seen.state[1:] + 1e-9)[None].astype(np.float32), (1,)),
    )
    episode = run_task(swings, found, found.tasks()[0], 5)
    own.reset(seed=5)
    for action in episode.executed:
        seen, _, terminated, _, _ = own.step(action)
    assert episode.success and terminated and 50 < episode.steps < 200
    assert seen[0] >= 0.45


# --- benchmarks of one's own, by name


def test_a_benchmark_is_found_by_its_name() -> None:
    from outside import Dots

    from armlet.benchmarks.tabletop import Tabletop

    assert benchmarks.find("tabletop", step_limit=9) == Tabletop(step_limit=9)
    assert benchmarks.find("outside:Dots") == Dots()
    assert {"libero", "metaworld", "tabletop"} == set(benchmarks.available())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table", "there is no benchmark 'table'; there are libero, metaworld, tabletop, a class"),
        ("nowhere.at.all:Dots", "there is no module 'nowhere'"),
        ("outside:Dot", "outside has no 'Dot' that can be called; its benchmarks are Dots"),
        ("outside:reaching", "is a Recipe, expected one that derives from"),
    ],
)
def test_a_name_that_finds_nothing_says_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmarks.find(name)


def test_the_errors_of_a_module_that_is_found_are_its_own(tmp_path, monkeypatch) -> None:
    (tmp_path / "lame.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        benchmarks.find("lame:Dots")
