"""inspect: a data set, or a policy → what it is, as far as it says, and what its numbers suggest.

    armlet inspect DIR|hf:user/set     episodes: rate, cameras, ranges, guesses, warnings; writes
                                       robot.toml and a contact sheet of pictures beside them
    armlet inspect FOLDER              a policy, exported or not: the robot it was made for, and its
                                       size
    armlet inspect CHECKPOINT          one of another project: what it is, by its headers alone, and
                                       where a decision's time goes; writes policy.toml beside it
    armlet inspect hf:user/model --policy      either of the two, fetched from the hub

A guess is never written down as a fact: what is not certain stands in `robot.toml` behind `#?`, to
be looked at by somebody who knows the robot. A file that was changed by hand, or that came with the
episodes, is left as it is.
"""

import hashlib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import tyro

from armlet.data import sheet
from armlet.data.description import Range, Suggestion, suggest
from armlet.data.door import check_described, robot_of
from armlet.data.episodes import ACTION, STATE, EpisodeDataset, is_data_set
from armlet.data.files import make_folder, write_atomically
from armlet.data.hub import in_cache, is_name, local_folder
from armlet.data.layout import INFO, Columns
from armlet.robot.bounds import FILE as GUARD
from armlet.robot.client.address import address_of, is_address
from armlet.robot.description import FILE, Described, RobotOptions, as_toml, toml_lines
from armlet.robot.exported import FILE as EXPORTED
from armlet.robot.exported import is_exported, read_description
from armlet.robot.proposal import propose
from armlet.robot.spec import RobotSpec

SHEET = "cameras.png"
AS_LEROBOT = Columns()  # the names that LeRobot itself gives to state and action
MARK = "# as armlet inspect wrote it: "  # a digest of the rest follows
GUESS = "#? "  # a comment of TOML, so that a guess is never read
HELP = {  # what stands above a line of robot.toml
    "mode": "delta: an action is a change (velocities too); absolute: a place to be reached",
    "rotation": "none (joints have none), axis_angle, euler, quaternion or rot6d",
    "grippers": "the dimensions that open and close a gripper, by number from 0 or by name; [] for none",
    "gripper_open": "the command that opens it",
    "gripper_closed": "the command that closes it",
}


def main(
    place: Annotated[str, tyro.conf.Positional],
    /,
    *,
    out: Path | None = None,
    columns: Columns = AS_LEROBOT,
    pictures: bool = True,
    episodes: Path | None = None,
    policy: bool = False,
    guard: bool = False,
) -> str:
    """Say what a data set or a policy is. `place`: its folder, or its name on the hub,
    hf:user/name, which is a data set's unless `policy` says otherwise. `out`: the folder for robot.toml and the contact sheet, or for policy.toml; the
    data set's or checkpoint's own if not given. `columns`: which columns hold state and action.
    `pictures`: look at the cameras too, which takes decoding a few frames. `episodes`: a data set
    to compare a checkpoint of another project with. `guard`: write a guard.toml as well, with the
    limits that the episodes kept to; the robot must be known, by its robot.toml."""
    if is_address(place):
        raise ValueError(
            f"{address_of(place)}: a server is not inspected: it has no files to be read. Its "
            f"actions can be compared with those of episodes: armlet evaluate --policies {place} "
            "--episodes DIR"
        )
    folder = local_folder(place, kind="model") if policy else Path(place)
    if guard and not is_data_set(folder) and not is_name(place):
        raise ValueError(
            f"--guard would have no effect: {place} is no data set; limits are made from episodes"
        )
    if _is_checkpoint(folder):
        data = EpisodeDataset(episodes, columns) if episodes else None
        return checkpoint_page(folder, out, data, place=place)
    if episodes is not None:
        raise ValueError(
            f"--episodes would have no effect: {place} is no checkpoint of another project"
        )
    if _is_policy(folder):
        return policy_page(folder)
    if policy:
        raise ValueError(
            f"{place} is no policy: neither of armlet, with a config.json, nor a checkpoint of a "
            "kind that is known; leave out --policy for a data set"
        )
    data = _dataset(place, columns)
    found = suggest(data)
    seen = sheet.look(data) if pictures and data.cameras else None
    lines = [*_described_wrongly(data, (out or data.root) / FILE), *found.warnings]
    if seen:
        lines += sheet.warnings(seen)
    page = [*_summary(data, found), *_numbers(found), *_meaning(found)]
    page += _listed("look at these", lines)
    if out is None and is_name(place):
        page += ["", "nothing was written into the hub's cache; give a folder with --out"]
        return "\n".join(page)
    where = out or data.root
    known = "all that a teacher must know of its robot"
    written = [_write_description(where / FILE, described(found), known)]
    if guard:
        written.append(_write_guard(data, where))
    if seen:
        make_folder(where)
        sheet.draw(seen).save(where / SHEET)
        written.append(f"{where / SHEET}: what the cameras see")
    options = _options(data, out)
    following = f"next: armlet teach actdistill --episodes {place}{options}"
    return "\n".join([*page, "", *written, following])


def _is_policy(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", EXPORTED)) and not is_data_set(
        folder
    )


def _check_data_set(folder: Path) -> None:
    """Raises FileNotFoundError for a folder that is none, and of no other kind either."""
    info = folder / INFO
    # A link to nothing is for the reader of data sets to name.
    if info.exists() or info.is_symlink() or is_data_set(folder):
        return
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    there = ", ".join(sorted(each.name for each in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{folder} is no data set (no {INFO}, no HDF5, no RLDS), no policy of armlet (no config.json, no {EXPORTED}) and "
        f"no checkpoint of a kind that is known; there is {there}. Is it a folder in it that is meant?"
    )


def _dataset(place: str, columns: Columns) -> EpisodeDataset:
    if not is_name(place):
        _check_data_set(Path(place))
    try:
        return EpisodeDataset(place, columns)
    except OSError as error:
        from armlet.data.download import HubError  # brings the hub's library

        if not is_name(place) or not isinstance(error, HubError):
            raise
        raise HubError(
            f"{error}. A data set is meant here; where this is a policy: armlet inspect {place} "
            "--policy"
        ) from error


def _described_wrongly(data: EpisodeDataset, path: Path) -> list[str]:
    """A line where a robot.toml that is there already will not do for these episodes: whoever
    corrected it by hand learns it here, and not from the next verb."""
    if not path.is_file():
        return []
    try:
        check_described(data, RobotOptions(file=path))
    except ValueError as error:
        return [str(error)]
    return []


def _write_guard(data: EpisodeDataset, where: Path) -> str:
    """Write the limits that the episodes kept to beside their robot.toml."""
    path = where / FILE
    spec = robot_of(data, RobotOptions(file=path if path.is_file() else None)).action
    columns = data.columns()
    text = propose(spec, data.state_names, columns[ACTION], columns[STATE], data.starts)
    known = "limits for a guard, with a margin: look at each before a robot moves"
    return _write_description(where / GUARD, text, known)


def _options(data: EpisodeDataset, out: Path | None) -> str:
    """What the next command must be told beside the folder."""
    said = ""
    for role in ("state", "action"):
        column = getattr(data.roles, role)
        if column != getattr(AS_LEROBOT, role):
            said += f" --columns.{role} {column}"
    if out is not None:
        said += f" --robot.file {out / FILE}"
    return said


# What a data set is


def _summary(data: EpisodeDataset, found: Suggestion) -> list[str]:
    seconds = found.frames / found.control_hz
    of = f" of {found.robot_type}" if found.robot_type else ""
    lines = [
        f"{data.root}",
        f"  {found.episodes} episodes{of}, {found.frames} frames at {found.control_hz:g} Hz "
        f"({_duration(seconds)})",
        f"  told: {_shortened(found.tasks)}",
        "",
        "cameras (height × width)",
    ]
    for name, (height, width) in found.cameras.items():
        square = "" if height == width else "  not square: taught with bars, or see --pictures.fit"
        lines.append(f"  {name:<20} {height} × {width}{square}")
    if not found.cameras:
        lines.append("  none")
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _shortened(tasks: tuple[str, ...]) -> str:
    first = textwrap.shorten(tasks[0], 70, placeholder=" …") if tasks else ""
    more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
    return f'"{first}"{more}'


def _numbers(found: Suggestion) -> list[str]:
    lines = _table("action", found.actions, marked=found.grippers.value or ())
    if found.state:
        return lines + _table("state", found.state)
    return [*lines, "", "state: none"]


def _table(what: str, ranges: tuple[Range, ...], marked: tuple[int, ...] = ()) -> list[str]:
    """One line a dimension: how its values are distributed over all frames; `marked` are the
    dimensions that are taken to be grippers."""
    wide = max([4, *(len(each.name) for each in ranges)])
    columns = f"{'lowest':>10} {'1 %':>10} {'median':>10} {'99 %':>10} {'highest':>10}"
    lines = ["", f"{what}, {len(ranges)} numbers", f"     {'':<{wide}} {columns}"]
    for index, each in enumerate(ranges):
        shown = ""
        for number in (each.low, each.q01, each.q50, each.q99, each.high):
            shown += f" {number:>10.4g}"
        said = each.unit or ("gripper?" if index in marked else "")
        # Nothing can be learnt of it, and dividing by its range would fail: worth more than a unit.
        if each.is_constant:
            said = "never moves"
        lines.append(f"  {index:>2} {each.name:<{wide}}{shown}  {said}".rstrip())
    return lines


def _meaning(found: Suggestion) -> list[str]:
    lines = ["", "what the actions mean, as the data suggest"]
    for name, guess in found.guesses.items():
        shown = _value(guess.value)
        # A single gripper has room for its name; of two the numbers stand in the table above.
        if name == "grippers" and guess.value and len(guess.value) == 1:
            shown = f"{guess.value[0]} ({found.actions[guess.value[0]].name})"
        why = textwrap.wrap(f"{guess.confidence}: {guess.why}", 74)
        lines.append(f"  {name.replace('_', ' '):<15} {shown:<10} {why[0]}")
        for line in why[1:]:
            lines.append(f"  {'':<15} {'':<10} {line}")
    return lines


def _value(value: object) -> str:
    if value is None:
        return "?"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    shown = ["", title]
    for line in lines:
        first, *rest = textwrap.wrap(line, 96)
        shown.append(f"  - {first}")
        for each in rest:
            shown.append(f"    {each}")
    return shown


# robot.toml


def described(found: Suggestion) -> str:
    """The text of a `robot.toml`: what is sure as it is, guesses behind `#?`, and what the data say
    themselves as comments."""
    lines = [
        "# What the robot of these episodes is; "
        "armlet teach, probe, distil and evaluate read it here.",
        "# Lines behind #? are guesses. Correct them, and take the #? away: nothing is assumed.",
    ]
    for name, guess in found.guesses.items():
        lines += ["", f"# {HELP[name]}"]
        lines += _commented(textwrap.wrap(f"{guess.confidence}: {guess.why}", 90))
        value = guess.value
        if value is None:
            lines.append(f"{GUESS}{name} = ?")
        else:
            mark = "" if guess.confidence == "sure" else GUESS
            lines.append(f"{mark}{name} = {as_toml(value)}")
        # Whoever knows of a gripper must say its commands too: the lines wait for that.
        if name == "grippers" and found.gripper_open is None:
            lines += ["# and where there is one:", "# gripper_open = 1.0", "# gripper_closed = 0.0"]
    lines += ["", "# metres that a command of 1 moves the hand, where somebody knows"]
    lines += ["# translation_scale = 0.05", "", "# What the data say themselves; to say otherwise,"]
    lines.append("# take the # away. low and high: nothing beyond them is ever commanded.")
    names = []
    low = []
    high = []
    for each in found.actions:
        names.append(each.name)
        low.append(each.low)
        high.append(each.high)
    itself = Described(
        control_hz=float(found.control_hz),
        names=tuple(names),
        low=tuple(low),
        high=tuple(high),
        state_names=tuple(each.name for each in found.state) or None,
    )
    lines += _commented(toml_lines(itself))
    return "\n".join(lines) + "\n"


def _commented(lines: Iterable[str]) -> list[str]:
    return [f"# {line}" for line in lines]


def _write_description(path: Path, text: str, known: str) -> str:
    """Write a robot.toml or policy.toml, unless there is one that is not as `inspect` left it;
    returns what was done: `known` is what the file says where nothing in it is guessed."""
    if path.exists() and not _is_untouched(path.read_text(encoding="utf-8")):
        return (
            f"{path}: it is there already and was not written, or was changed since, by inspect; "
            "it is left as it is"
        )
    try:
        write_atomically(path, f"{MARK}{_digest(text)}\n{text}".encode())
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}); give a folder with --out"
        ) from error
    guesses = text.count(f"\n{GUESS}")
    if not guesses:
        return f"{path}: {known}"
    whom = "the robot" if path.name == FILE else "the policy and the robot"
    return f"{path}: its lines behind #? are guesses ({guesses}), for somebody who knows {whom}"


def _is_untouched(text: str) -> bool:
    """Whether such a file is as `inspect` wrote it, and so nobody's work to lose."""
    first, _, rest = text.partition("\n")
    return first == MARK + _digest(rest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# What a policy is


def _is_checkpoint(folder: Path) -> bool:
    """Whether this is a policy that another project saved. Data sets need not wait for torch."""
    if is_data_set(folder) or not (folder.is_dir() or folder.suffix == ".toml"):
        return False
    from armlet.policies.pretrained import kinds

    return kinds.is_pretrained(folder)


def checkpoint_page(
    folder: Path, out: Path | None, data: EpisodeDataset | None, *, place: str
) -> str:
    """What a checkpoint of another project is, and what of some episodes does not go with it;
    writes a policy.toml beside it, or into `out`. `place` is how it was named: a folder, or on the
    hub, in whose cache nothing is written."""
    from armlet.machine import Machine
    from armlet.policies.pretrained import kinds, page
    from armlet.policies.pretrained.said import FILE as SAID

    if folder.suffix == ".toml" and out is not None:
        raise ValueError(
            f"--out would have no effect: {place} is a {SAID} already; give the checkpoint's folder"
        )
    said, kind = kinds.find(folder)
    card = kind.describe(said)
    lines = [page.page(card, Machine.measured())]
    if data is not None:
        columns = data.columns()
        wrong = page.against(card, columns["action"], columns["observation.state"])
        asked = {card.called.get(name, said.camera(name)) for name in card.cameras}
        missing = sorted(asked - set(data.cameras))
        if missing:
            there = ", ".join(data.cameras) or "none"
            wrong.append(
                f"cameras: the checkpoint looks through {', '.join(missing)}, and the episodes have "
                f"{there}; say in [cameras] of {SAID} which is which"
            )
        lines += _listed(f"beside {data.root}", wrong or ["nothing speaks against it"])
    if folder.suffix == ".toml":
        return "\n".join(lines)
    teacher: str | Path = place
    if out is None and in_cache(said.checkpoint):
        lines += ["", "nothing was written into the hub's cache; give a folder with --out"]
    else:
        where = said.checkpoint if out is None else out
        named = place if is_name(place) else str(said.checkpoint.absolute())
        text = page.toml(card, said, checkpoint="." if out is None else named)
        known = "nothing in it waits to be said; what is usual stands behind #"
        lines += ["", _write_description(where / SAID, text, known)]
        if out is not None:
            teacher = where / SAID
    lines.append(f"next: armlet probe actdistill --episodes DIR --teacher {teacher}")
    return "\n".join(lines)


def policy_page(folder: Path) -> str:
    """The robot that a policy was made for, and its size."""
    if is_exported(folder):
        return _exported_page(folder)
    from armlet.policies.checkpoint import load_policy  # brings torch, which episodes do not need

    policy = load_policy(folder)
    parameters = sum(each.numel() for each in policy.parameters())
    size = f"{parameters / 1e6:.2f} M parameters, {len(policy.layers)} layers"
    rate = f"{policy.robot.action.control_hz:g} Hz"
    lines = [
        f"{folder}",
        f"  {type(policy).__name__}, {size}",
        f"  decides {policy.chunk} actions at a time and carries out {policy.execute}, at {rate}",
        "",
        *_robot_lines(policy.robot),
    ]
    return "\n".join(lines)


def _exported_page(folder: Path) -> str:
    """The robot that an exported policy acts for, in what it runs, and what it was made from."""
    said = read_description(folder)
    try:
        robot = RobotSpec.from_json(said["robot"])
        made_from = said["policy"]
        lines = [
            f"{folder}",
            f"  exported to {said['runtime']} ({said['precision']}) from {made_from['kind']}, "
            f"{made_from['folder']} ({made_from['fingerprint']})",
            f"  carries out {said['execute']} actions of a chunk, at {robot.action.control_hz:g} Hz",
        ]
        for graph in said["graphs"]:
            budget = "" if graph["budget"] is None else f"at a budget of {graph['budget']:g}, "
            ran = f"{sum(graph['gates'])} of {len(graph['gates'])} layers"
            lines.append(f"  {budget}{ran}: {', '.join(graph['files'])}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / EXPORTED}: {type(error).__name__}: {error}; armlet wrote no such file: export "
            "it anew"
        ) from error
    return "\n".join([*lines, "", *_robot_lines(robot)])


def _robot_lines(robot: RobotSpec) -> list[str]:
    action = robot.action
    lines = ["cameras (height × width)"]
    for name, camera in robot.observation.cameras.items():
        lines.append(f"  {name:<20} {camera.height} × {camera.width}, fit {robot.observation.fit}")
    names = ", ".join(robot.observation.state_names) or "without names"
    state = f"{robot.observation.state_dims} numbers: {names}"
    lines += ["", f"state: {state if robot.observation.state_dims else 'none'}"]
    lines += ["", f"action, {action.dims} numbers"]
    wide = max(map(len, action.names))
    for index, name in enumerate(action.names):
        ends = f"{action.low[index]:>10.4g} to {action.high[index]:.4g}"
        gripper = "  gripper" if index in action.grippers else ""
        lines.append(f"  {index:>2} {name:<{wide}} {ends}{gripper}")
    lines += [f"  mode {action.mode}, rotation {action.rotation}"]
    if action.grippers:
        lines.append(f"  gripper open {action.gripper_open:g}, closed {action.gripper_closed:g}")
    scale = action.translation_scale
    if scale is not None:
        lines.append(f"  a command of 1 moves the hand by {scale:g} m")
    return lines
