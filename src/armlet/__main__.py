"""armlet: a trained robot policy in, a faster student out, and the proof.

    armlet <verb> <recipe> [--field value …]

Verbs, in the order of the work:

    inspect    episodes, or a policy → what it is; writes robot.toml for a robot of your own:
               `armlet inspect DIR`
    collect    a benchmark and its expert → episodes
    teach      episodes → a teacher (skip it if you bring one)
    probe      episodes + teacher → traces
    distil     episodes + traces → a student
    evaluate   teacher, student and baselines on the same episodes → report.json, a table, a picture
    report     report.json files → one web page: `armlet report out/*/evaluation/report.json`
    recompute  report.json files: every interval, pair and tally again, from the stored counts and
               outcomes

Every field of a recipe can be set: `armlet distil actdistill_tabletop --seed 1 --out out/second`;
`armlet distil actdistill_tabletop --help` lists them; `--debug`, anywhere, shows where an error
came from. A recipe of your own: `armlet distil mypackage.recipes:mine`. A data set or policy on the
Hugging Face hub, in place of the folder that is read: `--episodes hf:user/set`, `--teacher
hf:user/policy@revision`.
"""

import contextlib
import importlib
import importlib.metadata
import io
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a recipe brings torch with it, and `armlet --help` needs none
    from armlet.recipe import Recipe

VERBS = ("inspect", "collect", "teach", "probe", "distil", "evaluate", "report", "recompute")
BOX = "╭╮╰╯─│"  # what the parser of options frames its errors with
HELP = ("-h", "--help", "help")
OF_REPORTS = ("inspect", "report", "recompute")  # verbs that take folders or files, no recipe


def usage() -> str:
    """The text of `armlet --help`: the docstring, and the recipes there are."""
    from armlet import recipes

    lines = [f"    {name:<24} {summary}" for name, summary in recipes.available().items()]
    return f"{__doc__}\nRecipes:\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Run one verb on one recipe."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not arguments or arguments[0] in HELP:
        sys.stdout.write(usage())
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"armlet {importlib.metadata.version('armlet')}\n")
        return
    verb, *rest = arguments
    if verb not in VERBS:
        sys.exit(
            f"armlet: no verb {verb!r}; there are {', '.join(VERBS)} (armlet --help says more)"
        )
    if verb in OF_REPORTS:
        _on_places(verb, rest, debug=debug)
        return
    if rest and rest[0] in HELP:
        sys.stdout.write(usage())
        return
    if not rest or rest[0].startswith("-"):
        sys.exit(
            f"armlet {verb}: name a recipe first, such as actdistill_tabletop (armlet --help lists them)"
        )
    name, *overrides = rest
    _run(verb, name, overrides, debug=debug)


def _on_places(verb: str, arguments: list[str], *, debug: bool) -> None:
    import tyro

    work = importlib.import_module(f"armlet.{verb}").main
    _finish(
        f"armlet {verb}",
        lambda: tyro.cli(
            work,
            args=arguments,
            prog=f"armlet {verb}",
            config=(tyro.conf.AvoidSubcommands,),
        ),
        debug=debug,
    )


def override(recipe: "Recipe", options: list[str], prog: str) -> "Recipe":
    """The recipe with what the options say in place of its own fields; says what is wrong, or
    helps, and leaves."""
    import tyro

    with _in_one_line(prog):
        return tyro.cli(
            type(recipe),
            default=recipe,
            args=options,
            prog=prog,
            config=(tyro.conf.AvoidSubcommands,),
        )


@contextlib.contextmanager
def _in_one_line(prog: str) -> Iterator[None]:
    """What the parser of options draws a box around, as the line that every other error is."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as left:
        if not left.code:  # it has helped
            raise
        _, *lines = said.getvalue().splitlines()  # the first is the box's title
        words = " ".join(lines).translate(dict.fromkeys(map(ord, BOX), " ")).split()
        sys.exit(f"{prog}: {' '.join(words)}")


def _run(verb: str, name: str, overrides: list[str], *, debug: bool) -> None:
    command = f"armlet {verb} {name}"

    def work() -> object:
        from armlet import recipes

        recipe = override(recipes.make(name), overrides, command)
        return importlib.import_module(f"armlet.{verb}").main(recipe)

    _finish(command, work, debug=debug)


def _finish(command: str, work: Callable[[], object], *, debug: bool) -> None:
    """Print what `work` made, or leave with one line that says what was wrong."""
    try:
        result = work()
    except KeyboardInterrupt:
        sys.stderr.write(
            f"{command}: stopped; the same command goes on from what was kept last, or from the start where nothing was yet\n"
        )
        sys.exit(130)
    except Exception as error:  # of whatever kind: a user reads one line, and whoever mends it asks for the traceback
        if debug:
            raise
        said = " ".join(str(error).split("\n"))
        sys.exit(f"{command}: {type(error).__name__}: {said} (--debug shows where)")
    sys.stdout.write(f"{result}\n")


if __name__ == "__main__":
    main()
