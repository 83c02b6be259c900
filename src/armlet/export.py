"""export: a policy → a folder for a robot's computer, in another runtime, without torch.

    armlet export POLICY [--runtime openvino] [--precision int8] [--out DIR]
    armlet export POLICY --lerobot               as LeRobot keeps a policy, for lerobot-eval

Three gates stand before the folder: it must answer as PyTorch does on real frames of every length of
instruction, succeed as often in paired episodes (or err no more on held-out frames), and be faster.
Where one is not passed nothing is written, and the error says by how much. What was measured stands
in exported.json. Frames come from the world that the policy says it was made in, unless another, or
a data set, is given.
"""

from pathlib import Path
from typing import Annotated

import tyro

from armlet import benchmarks
from armlet.benchmarks import Benchmark, benchmark_robot
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import refuse_existing
from armlet.data.hub import is_name
from armlet.deploy.exporting import How, export, load_to_export
from armlet.deploy.frames import Material, from_episodes, from_world, world_of
from armlet.deploy.gates import FEWEST
from armlet.deploy.lerobot import write_lerobot
from armlet.logs.beats import beating
from armlet.policies.acting import actor_provenance
from armlet.robot.exported import is_exported, read_description

USUAL = How()


def main(
    place: Annotated[str, tyro.conf.Positional],
    /,
    *,
    out: Path | None = None,
    benchmark: str | None = None,
    episodes: Path | None = None,
    frames: int = FEWEST,
    how: Annotated[How, tyro.conf.arg(name="")] = USUAL,
    lerobot: bool = False,
) -> str:
    """Write a policy for another runtime.

    Args:
        place: the policy: its folder, its name on the hub, or a policy.toml.
        out: the folder to write; beside the policy, with the runtime in its name, if not given.
        benchmark: a world to act in, by its name (tabletop, package.module:Name, gym:ENV_ID).
        episodes: a data set, whose last tenth is compared with, where there is no world.
        frames: real frames on which it is compared with PyTorch, at least 100.
        how: how it is exported.
        lerobot: write LeRobot's layout instead, which is run by PyTorch as before; nothing is
            measured.
    """
    if lerobot:
        if how != USUAL or benchmark or episodes or frames != FEWEST:
            raise ValueError(
                "--lerobot copies a policy into LeRobot's layout, with nothing to measure: of the "
                "other options only --out has an effect"
            )
        return str(write_lerobot(place, out or _beside(place, "lerobot")))
    if frames < FEWEST:
        raise ValueError(f"--frames is {frames}, expected {FEWEST} or more")
    if benchmark is not None and episodes is not None:
        raise ValueError("--benchmark and --episodes: give one; a world says more")
    if episodes is not None and how.closed_loop != USUAL.closed_loop:
        raise ValueError("--closed-loop would have no effect: in --episodes nobody acts")
    coarser = "" if how.precision == "fp32" else f"-{how.precision}"
    dynamic = "-dynamic" if how.route == "dynamic" else ""
    where = out or _beside(place, how.runtime + coarser + dynamic)
    # Before minutes of loading and acting.
    refuse_existing(where)
    if not is_name(place) and is_exported(Path(place)):
        said = read_description(Path(place))
        raise ValueError(
            f"{place} is exported already, to {said.get('runtime')} ({said.get('precision')}); name "
            "the policy that it was made from"
        )
    # Beside the folder, which appears whole when all is done.
    with beating(where.parent, "export", where.name):
        world = _world(place, benchmark, episodes)
        loaded = load_to_export(place, None if world is None else benchmark_robot(world))
        policy, _ = loaded
        if world is not None:
            material: Material = from_world(policy, world, frames)
        else:
            assert episodes is not None  # `_world` has looked
            material = from_episodes(policy, EpisodeDataset(episodes), frames)
        made = export(
            place,
            where,
            how,
            material.frames,
            world,
            expert=material.expert,
            texts=material.texts,
            loaded=loaded,
        )
    return "\n".join([*page(made), str(made)])


def _world(place: str, name: str | None, episodes: Path | None) -> Benchmark | None:
    """Where it acts; None where it is compared with episodes."""
    if episodes is not None:
        return None
    if name is not None:
        return benchmarks.find(name)
    found = world_of(actor_provenance(place))
    if found is None:
        raise ValueError(
            f"{place} does not say in which world it was made: give --benchmark NAME, or --episodes "
            "DIR where there is none"
        )
    return found


def _beside(place: str, ending: str) -> Path:
    if is_name(place):
        raise ValueError("give --out DIR: nothing is written into the hub's cache")
    folder = Path(place)
    folder = folder.parent if folder.suffix == ".toml" else folder
    return folder.with_name(f"{folder.name}-{ending}")


def page(folder: Path) -> list[str]:
    """What was measured, in lines."""
    lines = []
    for found in read_description(folder)["gates"]["each"]:
        if found["budget"] is not None:
            lines.append(f"budget {found['budget']:g}")
        share = found["share_of_frames_on_route"]
        if share < 1:
            lines.append(
                f"  route        fixed; the router takes it on {share:.0%} of the frames: this is "
                "another policy"
            )
        if "routes" in found:
            ran = found["routes"]
            lines.append(
                f"  routes       the router decides: {ran['routes']} routes on {ran['frames']} frames, "
                f"{ran['layers']:.1f} layers in the mean; on {ran['same']:.1%} the same as in PyTorch"
            )
        near = found["parity"]
        lengths = ", ".join(near["words"])
        lines.append(
            f"  parity       {near['frames']} frames of {lengths} words: at most "
            f"{near['furthest']:.1e} of the robot's range away, {near['mean']:.1e} in the mean"
        )
        lines.append(_success(found))
        times = found["speed"]
        lines.append(
            f"  speed        {times['times_faster']:.2f} times PyTorch's: "
            f"{times['exported_ms']['p50']:.2f} ms for {times['pytorch_ms']['p50']:.2f}, on "
            f"{times['threads']} thread(s)"
        )
    return lines


def _success(found: dict) -> str:
    if "closed_loop" in found:
        ran = found["closed_loop"]
        low, high = ran["ci95"]
        return (
            f"  closed loop  {ran['episodes']} episodes of {ran['benchmark']}: both succeed in "
            f"{ran['both']}, PyTorch alone in {ran['only_pytorch']}, this alone in "
            f"{ran['only_exported']}; {100 * ran['difference']:+.1f} pp [{100 * low:+.1f}, "
            f"{100 * high:+.1f}]"
        )
    ran = found["held_out"]
    return (
        f"  held out     {ran['frames']} frames: the first action is {ran['exported']:.4f} of the "
        f"range from the expert's, PyTorch's {ran['pytorch']:.4f}"
    )
