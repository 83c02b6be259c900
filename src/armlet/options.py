"""A recipe's fields as options of the command line: reading them, and `--help`.

`--help` says what is usually set for a verb, `--help-all` every option, each with its default and
the words that stand below the field where it is declared. Stages that are alike are listed once.
What the options of one verb are, another takes as well, so one line of options serves all of them;
an option that has no effect for any verb of this recipe is an error.

Knows dataclasses, recipes and benchmarks by name; no verb's work.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from armlet import benchmarks, shards
from armlet.recipe import YOURS, Recipe

BOX = "╭╮╰╯─│"  # what the parser of options frames its errors with
HELP = ("-h", "--help")
HELP_ALL = "--help-all"
# What a field of this type takes, in words.
WORDS = {str: "TEXT", int: "N", float: "X", "Path": "PATH"}

# What is usually set, in this order. In these patterns `*` is a part of a name, `**` several.
# What a data set cannot say; the rest of a robot it says itself.
ROBOT = (
    "--robot.mode", "--robot.rotation", "--robot.grippers", "--robot.gripper-open",
    "--robot.gripper-closed", "--robot.file",
)  # fmt: skip
USUAL: dict[str, tuple[str, ...]] = {
    "collect": ("--episodes", "--benchmark.*", "--collection.*"),
    "teach": (
        "--episodes", "--teacher", "--out", "--seed", "--columns.*", *ROBOT, "--pictures.fit",
        "--pictures.size", "--network.**width", "--network.**depth", "--network.**chunk*",
        "--network.**execute*", "--teach.steps", "--teach.batch-size", "--teach.learning-rate",
    ),
    "probe": (
        "--episodes", "--teacher", "--out", "--shared", "--seed", *ROBOT,
        "--probe.stage.steps",
    ),
    "distil": (
        "--episodes", "--teacher", "--out", "--shared", "--seed", *ROBOT, "--held-out",
        "--student.layers", "--student.budget", "--student.student.layers", "--stages.*.steps",
        "--stages.*.batch-size", "--stages.*.learning-rate", "--rounds.*.episodes",
    ),
    "calibrate": ("--teacher", "--out", "--policies", "--benchmark.*", "--calibration.*"),
    "evaluate": ("--episodes", "--teacher", "--out", "--policies", *ROBOT, "--evaluation.*"),
}  # fmt: skip

# What a recipe without a benchmark does not do: it collects nothing and nothing acts in a world.
OF_WORLDS = (
    "--calibration.*", "--collection.*", "--evaluation.purpose", "--evaluation.margin",
    "--evaluation.baselines", "--evaluation.look", "--evaluation.splits", "--evaluation.slower",
    "--evaluation.late", "--evaluation.teacher-runtimes", "--evaluation.videos", "--evaluation.rerun", "--evaluation.untouched",
)  # fmt: skip


def override(recipe: Recipe, options: list[str], prog: str, verb: str = "distil") -> Recipe:
    """The recipe with what the options say in place of its own fields; says what is wrong, or
    helps, and leaves."""
    everything = HELP_ALL in options
    asked = everything or not set(HELP).isdisjoint(options)
    # First: which options there are depends on the world.
    try:
        recipe, options = _with_benchmark(recipe, options)
    except ValueError as error:
        sys.exit(f"{prog}: {error}")
    if asked:
        sys.stdout.write(help_text(recipe, prog, verb, everything=everything))
        sys.exit(0)
    unknown = _unknown(recipe, options) or _says_nothing(options)
    if unknown:
        sys.exit(f"{prog}: {unknown} (--help-all lists them)")
    made = recipe
    if options:
        try:
            made = replace(recipe, **read_fields(recipe, _touched(recipe, options), options, prog))
        except ValueError as error:
            sys.exit(f"{prog}: {' '.join(str(error).split())}")
    # A teacher of one's own robot is in `out`; if that is moved, it must be found there.
    if made.benchmark is None and made.out != recipe.out and made.teacher == recipe.teacher:
        made = replace(made, teacher=made.out / "teacher")
    problem = _missing(made, verb) or _unshared(made, verb) or _without_effect(recipe, made)
    if problem:
        sys.exit(f"{prog}: {problem}")
    return made


def read_fields(
    recipe: Recipe, names: Collection[str], options: list[str], prog: str
) -> dict[str, Any]:
    """Some fields of a recipe, by name, with what the options say of them; leaves with what is wrong
    in the words of an option. A whole recipe is hundreds of options, which the parser takes a fifth
    of a second to look at; hence only those fields that somebody speaks of."""
    import tyro

    hints = get_type_hints(type(recipe), include_extras=True)
    part = dataclasses.make_dataclass(
        type(recipe).__name__, [(name, hints[name]) for name in names], frozen=True
    )
    values = {name: getattr(recipe, name) for name in names}
    with _in_one_line(prog):
        made = tyro.cli(
            part,
            default=part(**values),
            args=options,
            prog=prog,
            config=(tyro.conf.AvoidSubcommands,),
        )
    return {name: getattr(made, name) for name in names}


def _touched(recipe: Recipe, options: list[str]) -> list[str]:
    """The recipe's fields that options are about; all, where a word is about none of them."""
    names = [field.name for field in dataclasses.fields(recipe)]
    said = set()
    for word in options:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].partition(".")[0].replace("-", "_")
            said |= {name, name.removeprefix("no_")}
    return [name for name in names if name in said] or names


def _with_benchmark(recipe: Recipe, options: list[str]) -> tuple[Recipe, list[str]]:
    """`--benchmark NAME` found among the options, in a recipe that has none; the other options,
    `--benchmark.…` among them, are those of the recipe with it."""
    rest: list[str] = []
    name = None
    words = iter(options)
    for word in words:
        option, _, value = word.partition("=")
        if option != "--benchmark":
            rest.append(word)
            continue
        name = value or next(words, None)  # --benchmark=NAME, or --benchmark NAME
        if name is None or name.startswith("--"):
            raise ValueError("--benchmark needs a name: package.module:Name, or gym:ENV_ID")
    if name is None:
        return recipe, rest
    if recipe.benchmark is not None:
        raise ValueError(
            f"--benchmark {name}: recipe {recipe.name!r} is made for {recipe.benchmark.name}; take "
            "one for your own robot (armlet --help lists them)"
        )
    found = benchmarks.find(name)
    return replace(recipe, benchmark=found), rest


def _unknown(recipe: Recipe, options: list[str]) -> str:
    """What is wrong with the first option that the recipe does not have; nothing where it has
    all."""
    there = [option.name for option in options_of(recipe)]
    for word in options:
        name = word.partition("=")[0].replace("_", "-")
        # A value, or an option that is there; a flag, too, by --no-NAME or NAME.no-PART.
        if not name.startswith("--") or name.replace("no-", "") in there or name in there:
            continue
        near = difflib.get_close_matches(name, there, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"recipe {recipe.name!r} has no option {name}{hint}"
    return ""


def _says_nothing(options: list[str]) -> str:
    """What is wrong with the first option of a robot that is told None, nothing: it would change
    nothing, and whoever writes it means something else; no words where there is none."""
    words = " ".join(options).replace("=", " ").split()
    for option, value in pairwise(words):
        if not option.startswith("--robot.") or value != "None":
            continue
        name = option.replace("_", "-")
        meant = {
            "--robot.rotation": "`none`, in small letters, for joints and where there is none",
            "--robot.grippers": "the option with nothing behind it where there is no gripper",
        }
        rather = f"give {meant[name]}; " if name in meant else ""
        return (
            f"{name} None says nothing, and has no effect; {rather}or leave it out: then robot.toml "
            "or the data set says it"
        )
    return ""


def _matches(name: str, *patterns: str) -> bool:
    """Whether an option is one of these: `*` stands for part of a name, `**` for several names."""
    for pattern in patterns:
        # ** first: its halves would be taken for two *.
        words = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^.]*")
        if re.fullmatch(words, name):
            return True
    return False


def _missing(recipe: Recipe, verb: str) -> str:
    """What this verb cannot do without and was not given; nothing where all is there."""
    if verb == "collect" and recipe.benchmark is None:
        return (
            f"recipe {recipe.name!r} has no world to collect episodes in: bring them "
            "(`--episodes`), or name a world with `--benchmark`"
        )
    if recipe.episodes != YOURS:
        return ""
    return (
        f"recipe {recipe.name!r} is for your own robot: name its episodes with `--episodes`, the "
        "folder of a LeRobotDataset, or hf:user/name of one on the Hugging Face hub"
    )


def _unshared(recipe: Recipe, verb: str) -> str:
    """What is wrong where processes are to share a verb's work that one does, or cannot do as they
    are asked; nothing where it is right."""
    if recipe.shards.on == "ray" and recipe.acting_device != "cpu" and not recipe.shards.gpus:
        return (
            f"--acting-device {recipe.acting_device}: a task of Ray sees no GPU that it does not ask "
            "for; give --shards.gpus as well"
        )
    if recipe.shards.on is None or verb in shards.VERBS:
        return ""
    return (
        f"--shards.on {recipe.shards.on}: the work of {verb} is not done in shards, only that of "
        f"{', '.join(shards.VERBS)}; leave it out"
    )


def _without_effect(before: Recipe, after: Recipe) -> str:
    """What is wrong with options that were given and that no verb of this recipe reads; nothing
    where all are read."""
    old: dict[str, Any] = {}
    for option in options_of(before):
        old[option.name] = option.value
    given = []
    settled = []
    idle = []
    for option in options_of(after):
        # By value, and not by what was typed: an option that says what was so already is no error.
        if old.get(option.name, ...) == option.value:
            continue
        given.append(option.name)
        if option.settled:
            settled.append(option.name)
        if _matches(option.name, *OF_WORLDS):
            idle.append(option.name)
    if settled:
        return f"{', '.join(settled)} has no effect: it follows from the robot, or from the teacher"
    if after.benchmark is None and idle:
        return (
            f"{', '.join(idle)} has no effect: recipe {after.name!r} has no world in which "
            "anything acts; give it one with `--benchmark package.module:Name` or "
            "`--benchmark gym:ENV_ID`, or leave it out"
        )
    if after.split == "tasks" and "--held-out" in given:
        return "--held-out has no effect with `--split tasks`, which holds out 15 % of the tasks"
    return ""


@contextlib.contextmanager
def _in_one_line(prog: str) -> Iterator[None]:
    """What the parser of options draws a box around, as the line that every other error is."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        _, *lines = said.getvalue().splitlines()  # the first is the box's title
        words = " ".join(lines).translate(dict.fromkeys(map(ord, BOX), " ")).split()
        # What comes last in the box sends to --help, which says other things here.
        sys.exit(f"{prog}: {' '.join(words).partition(' For full helptext')[0]}")


# Help


@dataclass(frozen=True)
class Option:
    """One option of a recipe: a field, or an entry of one that is a dict."""

    name: str  # --stages.0.batch-size
    group: str  # what it is a field of: stages.0; empty: the recipe itself
    takes: str  # its values in words: N
    text: str  # what it is: the words below the field
    value: Any  # its default
    settled: bool = False  # by what it is a part of, so that setting it would have no effect

    def lines(self, width: int) -> list[str]:
        default = _said(self.value)
        text = f"{self.text} ({default})" if default else self.text
        lines = [f"  {self.name} {self.takes}".rstrip()]
        for line in textwrap.wrap(text, width - 8):
            lines.append(f"        {line}")
        return lines


def _said(value: Any) -> str:
    """A default, in words."""
    if value == YOURS:
        return "required"
    if isinstance(value, tuple | list):
        return "default: " + (" ".join(map(str, value)) or "none")
    if isinstance(value, dict):
        # As it would be typed: NAME VALUE NAME VALUE.
        words = " ".join(f"{name} {item}" for name, item in value.items())
        return f"default: {words or 'none'}"
    return f"default: {'none' if value is None else value}"


def options_of(value: Any, group: str = "") -> list[Option]:
    """Every option of a dataclass, in the order of its fields, those of its parts behind it."""
    own: list[Option] = []
    parts: list[Option] = []
    # Fields of its parts that the dataclass itself decides, whatever they are set to.
    settles = getattr(type(value), "settles", ())
    hints = _hints_of(type(value))  # type: ignore[arg-type]  # a class is hashable
    texts = field_texts(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        name = f"{group}.{field.name}" if group else field.name
        if dataclasses.is_dataclass(item):
            for option in options_of(item, name):
                settled = option.settled or option.name.rpartition(".")[2] in settles
                parts.append(replace(option, settled=settled))
        # Stages and rounds: each has options of its own, by its number.
        elif isinstance(item, tuple) and item and dataclasses.is_dataclass(item[0]):
            for index, each in enumerate(item):
                parts += options_of(each, f"{name}.{index}")
        elif isinstance(item, dict) and item:
            for key, each in item.items():
                if isinstance(each, str | int | float):  # not the numbers of a codebook
                    dashed = f"--{name}.{key}".replace("_", "-")
                    text = texts.get(field.name, "")
                    own.append(Option(dashed, group, _takes(type(each)), text, each))
        elif not _is_fixed(hints[field.name]):
            dashed = "--" + name.replace("_", "-")
            takes = _takes(hints[field.name])
            own.append(Option(dashed, group, takes, texts.get(field.name, ""), item))
    return own + parts


@cache
def _hints_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_fixed(hint: Any) -> bool:
    """Whether a field cannot be set from the command line: it may hold anything, or is a part that
    this recipe does not have."""
    if hint is Any or dataclasses.is_dataclass(hint):
        return True
    # The words of a Literal are no hints.
    return any(_is_fixed(each) for each in get_args(hint) if not isinstance(each, str))


def _takes(hint: Any) -> str:
    """A field's values in words: `N`, `a|b|c`, `X …`."""
    kind = get_origin(hint)
    if hint is bool:
        return "| --no-…"
    if kind is Literal:
        return "|".join(map(str, get_args(hint)))
    if kind in (Union, types.UnionType):
        kinds: list[str] = []
        for each in get_args(hint):
            # "none" once, though one of the kinds may have said it already.
            taken = "none" if each is type(None) else _takes(each)
            if taken != "none" or "none" not in "|".join(kinds).split("|"):
                kinds.append(taken)
        return "|".join(kinds)
    if kind is tuple:
        arguments = get_args(hint)
        # tuple[int, ...]: any number of these; tuple[int, int]: as many as there are.
        repeated = Ellipsis in arguments
        words = " ".join(_takes(each) for each in arguments if each is not Ellipsis)
        return f"[{words} …]" if repeated else words
    if kind is dict:
        return "[NAME VALUE …]"
    return WORDS.get(hint, WORDS.get(getattr(hint, "__name__", ""), "VALUE"))


def field_texts(kind: type) -> dict[str, str]:
    """Field → the words below it in the source, of a dataclass and what it derives from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            found |= _own_texts(each)
    return found


@cache
def _own_texts(kind: Any) -> dict[str, str]:
    # Python keeps no text of a field, so that it has to be read from the source.
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # a class of an interactive session has no source
        return {}
    (node,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for line, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[ast.unparse(line.target)] = " ".join(text.split())
    return found


def help_text(recipe: Recipe, prog: str, verb: str, *, everything: bool) -> str:
    """What `--help` prints, or with `everything` what `--help-all` does."""
    width = min(shutil.get_terminal_size().columns, 100)
    there = []
    for option in options_of(recipe):
        idle = recipe.benchmark is None and _matches(option.name, *OF_WORLDS)
        if not option.settled and not idle:
            there.append(option)
    lines = [f"{prog} [--option value …]", ""]
    if recipe.benchmark is None:
        lines += [
            "  --benchmark NAME",
            "        a world to act in: package.module:Name, or gym:ENV_ID (default: none)",
        ]
    if everything:
        return "\n".join(lines + _all(recipe, there, width)) + "\n"
    usual = USUAL.get(verb, ())
    shown: list[Option] = []
    for pattern in usual:
        for each in there:
            if _matches(each.name, pattern) and each not in shown:
                shown.append(each)
    for option in shown:
        lines += option.lines(width)
    rest = len(there) - len(shown)
    lines += ["", f"`{prog} --help-all` lists {rest} more; `armlet --help` the verbs and recipes."]
    return "\n".join(lines) + "\n"


def _all(recipe: Recipe, there: list[Option], width: int) -> list[str]:
    """Every option, group by group. Of groups with the same options, such as stages, the first is
    listed, and of the others the defaults that differ."""
    lines: list[str] = []
    groups: dict[str, list[Option]] = {}
    for option in there:
        groups.setdefault(option.group, []).append(option)
    before: dict[str, tuple[str, list[Option]]] = {}  # shape of a group → the first that has it
    for group, own in groups.items():
        shape = " ".join(option.name.rpartition(".")[2] for option in own)
        alike, first = before.setdefault(shape, (group, own))
        title = group.replace("_", "-") or recipe.name
        lines += ["", title]
        if alike == group:
            for option in own:
                lines += option.lines(width)
            continue
        lines.append(f"  as --{alike.replace('_', '-')}.…; its defaults that differ:")
        differing = []
        for mine, theirs in zip(own, first, strict=True):
            if mine.value != theirs.value:
                differing.append(f"  {mine.name} ({_said(mine.value)})")
        lines += differing or ["  none"]
    return lines
