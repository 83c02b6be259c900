"""publish: a policy → a model on the Hugging Face hub, with a card and its results.

    armlet publish out/actdistill/student hf:user/name --dry-run     what would go up; nothing does
    armlet publish out/actdistill/student hf:user/name --lerobot --report out/actdistill/evaluation
    armlet publish out/exported hf:user/name --private

FOLDER is a student (or a teacher that armlet taught), a folder of LeRobot's layout, or an exported
one. Published are the files that its layout knows, weights as safetensors or as a graph; anything
else in the folder, and any path of this machine, is refused by name. All of it is one commit: a
repository never shows half a policy, and after a kill the same command goes on.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from armlet.data.hub import is_name, parse
from armlet.data.hub_name import MAIN, Name
from armlet.deploy import card, hub
from armlet.deploy.lerobot import write_lerobot
from armlet.deploy.publishing import Contents, check_text, look, shortened_json
from armlet.evaluation import report as reports
from armlet.policies.checkpoint import load_policy

CARD = "README.md"
REPORT = "evaluation/report.json"  # in the repository


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    /,
    *,
    report: Path | None = None,
    results_for: str = "",
    lerobot: bool = False,
    base_model: str = "",
    license: str = "",
    text: Path | None = None,
    tags: tuple[str, ...] = (),
    private: bool = False,
    shorten_paths: bool = False,
    leave_out: tuple[str, ...] = (),
    dry_run: bool = False,
) -> str:
    """Publish a policy; returns the address of the commit. `folder`: the policy's. `name`: where it
    goes, hf:user/name. `report`: the report.json, or its folder, of an evaluation in which this
    policy was. `results_for`: the benchmark's data set on the hub and a task of it, user/set or
    user/set:task, for which the report's success counts. `lerobot`: publish it as LeRobot keeps a
    policy, which armlet reads too. `base_model`: the teacher on the hub, user/name, where it was
    not read from there. `license`: its license as the hub names it (apache-2.0). `text`: a Markdown
    file of your own words for the card. `tags`: more tags. `private`: only you may see it.
    `shorten_paths`: of paths of this machine in what says how it was made, publish the last part.
    `leave_out`: files of the folder that do not go. `dry_run`: say what would go up, and stop."""
    place = _name(name)
    _check_head(base_model, license, tags)
    if is_name(folder):
        raise ValueError(f"{folder.as_posix()} is on the hub already; give a folder of your own")
    with _as_asked(folder, lerobot=lerobot) as chosen:
        contents = look(chosen, leave_out=leave_out, shorten_paths=shorten_paths)
        results = None
        files = dict(contents.files)
        if report is not None:
            path = report / "report.json" if report.is_dir() else report
            results = _results(contents, path, results_for)
            files |= _report_files(path, results, place, shorten=shorten_paths)
        elif results_for:
            raise ValueError("--results-for says whose results these are, and there is no --report")
        said = card.Card(
            repo=place.repo,
            contents=contents,
            robot=_robot(chosen, contents),
            results=results,
            base_model=base_model or card.base_of(contents.provenance),
            license=license,
            tags=tags,
            text=_own_words(text),
            datasets=card.datasets_of(contents.provenance),
        )
        files[CARD] = card.render(said).encode()
        _remark(said)
        if dry_run:
            return _plan(place, files, contents, private=private)
        message = f"{contents.kind} {contents.fingerprint}, by armlet publish"
        return hub.upload(place, files, private=private, message=message)


def _check_head(base_model: str, license: str, tags: tuple[str, ...]) -> None:
    """Raises ValueError for what the hub would refuse at the head of a card, after all is sent."""
    if base_model and not re.fullmatch(r"[\w.-]+/[\w.-]+", base_model):
        raise ValueError(f"--base-model {base_model!r} is no model on the hub; expected user/name")
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"--license {license!r} is no license as the hub names it; expected apache-2.0, mit, other …"
        )
    for tag in tags:
        if not tag.strip() or "\n" in tag:
            raise ValueError(f"--tags {tag!r} is no tag; expected a word")


def _name(text: str) -> Name:
    if not is_name(text):
        raise ValueError(f"{text!r} is no name on the hub, where this goes; expected hf:user/name")
    name = parse(text)
    if name.folder or name.revision != MAIN:
        raise ValueError(
            f"{text}: a policy is published as a repository of its own, on its branch {MAIN}; expected "
            f"hf:{name.repo}"
        )
    return name


@contextlib.contextmanager
def _as_asked(folder: Path, *, lerobot: bool) -> Iterator[Path]:
    """The folder, or one in LeRobot's layout of the same policy for as long as it is needed."""
    if not lerobot:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield write_lerobot(folder, Path(scratch) / "pretrained_model")


def _robot(folder: Path, contents: Contents) -> dict[str, Any]:
    if contents.layout == "exported":
        robot = contents.said.get("robot", {})
        return robot if isinstance(robot, dict) else {}
    return load_policy(folder).robot.to_json()


def _own_words(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--text {file}: {error}; expected a file of Markdown, what you say of the policy"
        ) from error
    check_text(text, file)
    return text


def _results(contents: Contents, path: Path, results_for: str) -> card.Results:
    found = card.results_of(reports.read(path), contents.fingerprint, where=str(path))
    if not results_for:
        return found
    dataset, _, task = results_for.partition(":")
    if dataset.count("/") != 1:
        raise ValueError(
            f"--results-for is {results_for!r}, expected user/set or user/set:task of the benchmark's "
            "data set on the hub"
        )
    return replace(found, on_hub=dataset, task=task or "default")


def _report_files(
    path: Path, results: card.Results, name: Name, *, shorten: bool
) -> dict[str, Path | bytes]:
    """The report, what it was counted from, and the hub's own file of results."""
    content, places = shortened_json(path, shorten=shorten)
    if places and not shorten:
        raise ValueError(
            f"{path} names places on this machine: {'; '.join(places[:4])}; with --shorten-paths "
            "their last part is published in their place"
        )
    files: dict[str, Path | bytes] = {REPORT: path if content is None else content}
    outcomes = path.with_name("outcomes.json.gz")
    if outcomes.is_file():
        files[f"evaluation/{outcomes.name}"] = outcomes
    if results.on_hub:
        source = f"https://huggingface.co/{name.repo}/blob/main/{REPORT}"
        called = results.on_hub.partition("/")[2]
        files[f".eval_results/{called}.yaml"] = card.evaluation_file(
            results, source=source, date=""
        )
    return files


def _remark(said: card.Card) -> None:
    """What a card lacks that readers look for."""
    if not said.license:
        hub.say("the card names no license; --license apache-2.0, say")
    if not said.base_model:
        hub.say(
            "the card names no base model: the teacher is not on the hub, or --base-model says it"
        )
    if said.results is None:
        hub.say("no --report: the card has no results")
    elif not said.results.on_hub:
        hub.say("no --results-for: the results are in the card, and on no leaderboard of the hub's")


def _plan(name: Name, files: dict[str, Path | bytes], contents: Contents, *, private: bool) -> str:
    """What would go up, as text."""
    total = 0
    lines = []
    for path, content in sorted(files.items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        total += size
        lines.append(f"{size:>12,} {path}")
    who = "you alone may see it" if private else "everybody may see it"
    head = (
        f"{name} ({contents.layout}, library_name {contents.library}, {who}): {len(files)} files, "
        f"{total / 1e6:.1f} MB would go up"
    )
    shortened = [f"shortened: {line}" for line in contents.shortened]
    written = files[CARD]
    assert isinstance(written, bytes)
    return "\n".join([head, *lines, *shortened, "", written.decode(), "nothing was sent"])
