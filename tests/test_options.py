"""The command line: every option is a field with words of its own, read as it is listed; what has
no effect is refused, and nothing heavy is imported before it is used."""

import functools
import subprocess
import sys
import warnings

import pytest
import tyro

from armlet import benchmarks, recipes
from armlet.benchmarks.tabletop import Tabletop
from armlet.options import USUAL, help_text, options_of, override
from armlet.recipe import Recipe


@functools.cache
def kept(name: str) -> Recipe:
    """A recipe that stays in memory: tyro's `get_parser` remembers what it found by address and,
    other than `tyro.cli`, does not forget it before the next, which may lie where the last did."""
    return recipes.make(name)


def parsers_options(recipe: Recipe) -> set[str]:
    """What the parser itself takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(
            Recipe, default=recipe, config=(tyro.conf.AvoidSubcommands,)
        )
    return {action.option_strings[0] for action in parser._actions} - {"-h"}


@pytest.mark.parametrize(
    "name",
    ["actdistill", "aed", "vla_ad", "vita_vla", "bc", "onpolicy_tabletop", "aed_metaworld",
     "vla_ad_tiny", "vita_vla_tabletop", "demo"],
)  # fmt: skip
def test_what_is_listed_is_what_is_read(name: str) -> None:
    recipe = kept(name)
    listed = {option.name for option in options_of(recipe)}
    read = parsers_options(recipe)
    assert listed <= read
    assert [each for each in read - listed if ".primitives." not in each] == []


@pytest.mark.parametrize("name", recipes.available())
def test_every_option_has_words(name: str) -> None:
    silent = [option.name for option in options_of(recipes.make(name)) if not option.text]
    assert silent == []


def test_help_is_short_and_help_all_is_whole(capsys) -> None:
    recipe = recipes.make("actdistill")
    for verb in USUAL:
        short = help_text(recipe, "armlet", verb, everything=False)
        assert 1 < short.count("\n  --") < 25, verb
    assert "--episodes PATH" in short and "(required)" in short
    whole = help_text(recipe, "armlet", "distil", everything=True)
    assert "--evaluation.slower" not in whole and "--network.network.chunk " not in whole
    told = [option.name for option in options_of(recipe) if not option.settled]
    assert [name for name in told if name.startswith("--pictures") and name not in whole] == []
    # Of stages that are alike one is listed, and of the others what differs.
    assert whole.count("--teach.log-every") == 1 and "--stages.1.log-every" not in whole
    assert "--stages.1.steps (default: 2000)" in whole
    with pytest.raises(SystemExit) as left:
        override(recipe, ["--help"], "armlet distil actdistill")
    assert left.value.code == 0 and capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("actdistill", [], "name its episodes with `--episodes`"),
        ("actdistill", ["--episodes", "here", "--collection.episodes", "3"], "--collection.episodes has no effect"),
        ("actdistill", ["--episodes", "here", "--evaluation.videos", "3"], "--evaluation.videos has no effect"),
        ("actdistill", ["--episodes", "here", "--network.network.chunk", "3"], "--network.network.chunk has no effect"),
        ("aed", ["--episodes", "here", "--student.network.patch", "8"], "--student.network.patch has no effect"),
        ("aed_tabletop", ["--held-out", "0.3"], "--held-out has no effect"),
        ("first_k_tabletop", ["--benchmark", "gym:Ant-v5"], "is made for tabletop"),
        ("actdistill", ["--benchmark"], "--benchmark needs a name"),
        ("actdistill", ["--episodes", "here", "--no-such"], "has no option --no-such"),
        ("actdistill", ["--episodes", "here", "--sead", "1"], "no option --sead; did you mean --seed?"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(name: str, options: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as left:
        override(recipes.make(name), options, "armlet teach")
    assert said in str(left.value.code) and "\n" not in str(left.value.code)


def test_a_robot_without_rotation_says_none_and_not_nothing() -> None:
    """tyro has a word for Python's None, and a form of rotation is called `none`."""
    line = ["--episodes", "here", "--robot.rotation", "none", "--robot.grippers"]
    made = override(recipes.make("actdistill"), line, "armlet teach")
    assert made.robot.rotation == "none" and made.robot.grippers == ()
    joined = override(recipes.make("actdistill"), [*line[:2], "--robot.rotation=none"], "armlet")
    assert joined.robot.rotation == "none"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--robot.rotation", "None"], "`none`, in small letters"),
        (["--robot.rotation=None"], "`none`, in small letters"),
        (["--robot.grippers", "None"], "nothing behind it"),
        (["--robot.gripper_open", "None"], "--robot.gripper-open None says nothing"),
    ],
)
def test_none_for_a_robot_is_refused(option: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        override(recipes.make("actdistill"), ["--episodes", "here", *option], "armlet teach")


def test_nothing_is_collected_without_a_world() -> None:
    with pytest.raises(SystemExit, match="no world to collect episodes in"):
        override(recipes.make("bc"), ["--episodes", "here"], "armlet collect bc", "collect")


def test_options_of_other_verbs_may_stand_there() -> None:
    line = ["--episodes", "here", "--teach.steps", "7", "--stages.1.steps", "9", "--seed", "3"]
    made = override(recipes.make("actdistill"), line, "armlet probe", "probe")
    assert (made.teach.steps, made.stages[1].steps, made.seed) == (7, 9, 3)


def test_a_teacher_of_ones_own_robot_is_where_everything_else_is() -> None:
    recipe = recipes.make("actdistill")
    assert recipe.teacher.as_posix() == "out/actdistill/teacher"
    line = ["--episodes", "here", "--out", "there"]
    assert override(recipe, line, "armlet").teacher.as_posix() == "there/teacher"
    named = override(recipe, [*line, "--teacher", "mine"], "armlet")
    assert named.teacher.as_posix() == "mine"
    shipped = recipes.make("actdistill_tabletop")
    assert override(shipped, line, "armlet").teacher == shipped.teacher


def test_a_world_is_named_for_a_recipe_without_one(monkeypatch) -> None:
    named: list[str] = []

    def find(name: str) -> Tabletop:
        named.append(name)
        return Tabletop()

    monkeypatch.setattr(benchmarks, "find", find, raising=False)
    line = ["--episodes", "here", "--benchmark", "mine:World", "--benchmark.scene-pixels", "96"]
    made = override(recipes.make("actdistill"), [*line, "--evaluation.videos", "3"], "armlet")
    assert named == ["mine:World"]
    assert made.benchmark == Tabletop(scene_pixels=96) and made.evaluation.videos == 3
    joined = override(recipes.make("bc"), ["--benchmark=gym:X", "--episodes", "here"], "armlet")
    assert named[1:] == ["gym:X"] and joined.benchmark == Tabletop()


HEAVY = ("transformers", "mujoco", "matplotlib", "scipy", "jinja2", "gymnasium", "peft")


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import sys; sys.argv = ['armlet', '--help']; from armlet.__main__ import main; main()",
         (*HEAVY, "torch", "numpy", "tyro")),
        ("import armlet.recipes.actdistill", HEAVY),
        # A recipe on tabletop names its world, and so its simulator.
        ("from armlet import recipes; recipes.make('first_k_tabletop'); import armlet.distil",
         tuple(each for each in HEAVY if each != "mujoco")),
    ],
)  # fmt: skip
def test_nothing_heavy_is_imported_before_it_is_used(code: str, light: tuple[str, ...]) -> None:
    ask = f"{code}; print([name for name in {light!r} if name in sys.modules], file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; {ask}"], capture_output=True, text=True, check=True
    )
    assert ran.stderr.strip().splitlines()[-1] == "[]"
