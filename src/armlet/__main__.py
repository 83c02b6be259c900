"""armlet: a trained robot policy in, a faster student out, and the proof.

    armlet <verb> <recipe> [--field value …]

Verbs, in the order of the work:

    demo       the teacher and the student that come with armlet, in two minutes: `armlet demo`
    inspect    episodes, or a policy → what it is; writes robot.toml for a robot of your own:
               `armlet inspect DIR`
    collect    a benchmark and its expert → episodes
    teach      episodes → a teacher (skip it if you bring one)
    probe      episodes + teacher → traces
    distil     episodes + traces → a student
    calibrate  teacher and student in episodes of their own → the longest `execute` that is no worse
    evaluate   teacher, student and baselines on the same episodes → report.json, a table, a picture
    shorten    a policy → the same one in fewer denoising steps, or that looks again later; nothing is
               trained: `armlet shorten POLICY --steps 1 --execute 8 --out DIR`
    export     a policy → a folder for a robot's computer, in another runtime, without torch:
               `armlet export DIR --runtime onnx`
    profile    a policy → where the milliseconds of one decision go: `armlet profile POLICY`
    plan       a teacher and a time → what would reach it, before anybody trains: `armlet plan
               POLICY --target-ms 20`
    status     a folder → how the runs under it are doing, and which has stalled: `armlet status out`
    audit      a policy → what it listens to: words, cameras, state: `armlet audit POLICY`
    report     report.json files → one web page: `armlet report out/*/evaluation/report.json`
    compare    two report.json files → a verdict on their policies, where they met the same episodes:
               `armlet compare A/report.json B/report.json`
    recompute  report.json files: every interval, pair and tally again, from the stored counts and
               outcomes
    serve      a policy → answers over a socket, for robots and harnesses: `armlet serve FOLDER`
    publish    a policy → a model on the Hugging Face hub: `armlet publish DIR hf:user/name`

A recipe without a suffix, such as `actdistill`, is for your own robot: the same options for every
verb, of which `--episodes` is one.

    armlet teach    actdistill --episodes DIR     # or bring a teacher: --teacher DIR
    armlet probe    actdistill --episodes DIR
    armlet distil   actdistill --episodes DIR
    armlet evaluate actdistill --episodes DIR

`armlet distil actdistill --help` lists what is usually set, `--help-all` every field; `--debug`,
anywhere, shows where an error came from. A recipe of your own: `armlet distil
mypackage.recipes:mine`. teach, probe and distil on several devices or machines: `torchrun
--nproc-per-node 8 -m armlet distil …`. A data set or policy on the Hugging Face hub, in place of the folder that
is read: `--episodes hf:user/set`, `--teacher hf:user/policy@revision`.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

VERBS = (
    "demo", "inspect", "collect", "teach", "probe", "distil", "calibrate", "evaluate", "audit", "profile",
    "plan", "shorten", "export", "serve", "publish", "report",
    "compare", "recompute", "status",
)  # fmt: skip
HELP = ("-h", "--help", "help")
STORED = "://"  # in an argument that may be a URL of a store
OF_PLACES = (
    "demo",
    "inspect",
    "audit",
    "shorten",
    "export",
    "serve",
    "publish",
    "profile",
    "plan",
    "report",
    "compare",
    "recompute",
    "status",
)  # verbs that take folders or files, no recipe


TOGETHER = ("teach", "probe", "distil")  # what several processes may do, started by torchrun


def usage() -> str:
    """The text of `armlet --help`: the docstring, and the recipes there are."""
    # Brings torch, which takes a second; a verb about reports should not wait for it.
    from armlet import recipes

    own = recipes.for_own_robots()
    yours: list[str] = []
    ours: list[str] = []
    for name, what in recipes.available().items():
        kind = yours if name in own else ours
        kind.append(f"    {name:<29} {what}")
    several: list[str] = []
    for stem, product in recipes.products().items():
        named = f"{stem}_WORLD" + ("_BUDGET" if product.budgets else "")
        several.append(f"    {named:<29} {product.summary}")
    where = f"WORLD: {', '.join(recipes.WORLDS)}; BUDGET: {', '.join(map(str, recipes.BUDGETS))}"
    sections = {
        "For your own robot:": yours,
        "In worlds of ours:": ours,
        f"For tables of many tasks ({where} percent):": several,
    }
    lines = [__doc__]
    for title, rows in sections.items():
        lines += [title, "", *rows, ""]
    return "\n".join(lines)


def main() -> None:
    """Run one verb on one recipe."""
    # Taken out first: the parser of a recipe's options knows no such option.
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
    if verb in OF_PLACES:
        _on_places(verb, rest, debug=debug)
        return
    if rest and rest[0] in HELP:
        sys.stdout.write(usage())
        return
    # Options before the recipe cannot be read: which there are depends on it.
    if not rest or rest[0].startswith("-"):
        sys.exit(
            f"armlet {verb}: name a recipe first, such as actdistill for your own robot, or "
            "actdistill_tabletop (armlet --help lists them)"
        )
    name, *overrides = rest
    _run(verb, name, overrides, debug=debug)


def _on_places(verb: str, arguments: list[str], *, debug: bool) -> None:
    """A verb about folders or files: its options are the arguments of its `main`."""
    import tyro

    command = f"armlet {verb}"

    def work() -> object:
        # An import is part of the work: a library may be missing.
        main_of_verb = importlib.import_module(f"armlet.{verb}").main
        if any(STORED in argument for argument in arguments):
            from armlet.stores import of_places

            main_of_verb = of_places(main_of_verb, verb)
        config = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(main_of_verb, args=arguments, prog=command, config=config)

    _finish(command, work, debug=debug)


def _run(verb: str, name: str, overrides: list[str], *, debug: bool) -> None:
    command = f"armlet {verb} {name}"

    # Imports are part of the work: their errors, too, are told in one line.
    def work() -> object:
        from armlet import recipes, stores
        from armlet.logs.beats import beating
        from armlet.options import override
        from armlet.training.distributed import joined, refuse_several, said_by

        recipe = override(recipes.make(name), overrides, command, verb)
        with joined() as world, said_by(world):
            if verb not in TOGETHER:
                refuse_several(
                    f"armlet {verb} is no training",
                    fix=f"start it without torchrun, which is for {', '.join(TOGETHER)}",
                )
            if stores.is_written_to(recipe, verb):
                refuse_several(
                    "a URL is written to",
                    fix="give a folder on a disk that all share, and copy it there at the end",
                )
            main_of_verb = importlib.import_module(f"armlet.{verb}").main
            with stores.written(recipe, verb) as recipe:
                # Of several processes the first says how they are doing.
                beats = beating(recipe.out, verb, recipe.name) if world.first else nullcontext()
                with beats:
                    made = main_of_verb(recipe)
        return made if world.first else None

    _finish(command, work, debug=debug)


def _finish(command: str, work: Callable[[], object], *, debug: bool) -> None:
    """Print what `work` made, or leave with one line that says what was wrong."""
    try:
        result = work()
    except KeyboardInterrupt:
        sys.stderr.write(
            f"{command}: stopped; the same command goes on from what was kept last, or from the "
            "start where nothing was yet\n"
        )
        sys.exit(130)  # 128 + SIGINT, as shells expect it
    except Exception as error:  # of any kind: a user reads one line; --debug shows the rest
        if debug:
            raise
        said = " ".join(_with_urls(str(error)).split("\n"))
        sys.exit(f"{command}: {type(error).__name__}: {said} (--debug shows where)")
    if result is not None:  # of several processes the first has one
        sys.stdout.write(f"{_with_urls(str(result))}\n")


def _with_urls(text: str) -> str:
    """A text with the URL in the place of the folder that stands for it in this process."""
    mirror: Any = sys.modules.get("armlet.data.mirror")  # not imported: then none does
    return text if mirror is None else str(mirror.told(text))


if __name__ == "__main__":
    main()
