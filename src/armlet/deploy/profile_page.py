"""A profile for people: a table, and a picture. Knows profiles; measures nothing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from armlet.data.files import atomic_file
from armlet.deploy.profiling import KINDS, Kind, Part, Profile


def table(profile: Profile) -> str:
    """The whole page, as Markdown."""
    machine = profile.machine
    threads = f"{profile.threads} thread{'' if profile.threads == 1 else 's'}"
    lines = [
        f"# {profile.policy}",
        "",
        f"{profile.kind}: {profile.whole_ms:.2f} ms a decision (p50 {profile.p50_ms:.2f}, p95 "
        f"{profile.p95_ms:.2f}, of {profile.decisions}); {profile.chunk} actions at a time, of "
        f"which {profile.execute} are carried out at {profile.hz:g} Hz: "
        f"{_per_second(profile):.1f} ms a second of motion.",
        "",
        f"On {machine['processor']}, {threads}, {profile.device}; {profile.moments}. This machine "
        f"multiplies at {machine['gflops']:.1f} GFLOP/s and reads {machine['gigabytes_per_second']:.1f} "
        "GB/s.",
        "",
    ]
    if not profile.parts:
        return (
            "\n".join([*lines, "Nobody can look into it: its whole is all that is known."]) + "\n"
        )
    lines += [
        "| part | ms | share | runs | MFLOP | weights read, MB | limit, ms | of the limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part in _shown(profile):
        lines.append(_row(part, profile.timed_ms))
    total = Part("sum", "overhead", *_sums(profile))
    lines.append(_row(replace(total, name="**sum**"), profile.timed_ms))
    lines += [
        "",
        f"The parts sum to {total.ms:.3f} ms of the {profile.timed_ms:.3f} ms of a decision with "
        f"timers (residual {profile.residual_ms:.2g} ms); the timers add {profile.timers_ms:.3f} "
        "ms to one without.",
        "",
        "*limit*: the longer of two: the part's matrix products, each as fast as torch.mm is at its "
        "shape here, and reading its weights from memory once a run.",
    ]
    if profile.steps is not None:
        lines.append(f"\n{_loop(profile)}")
    return "\n".join(lines) + "\n"


def _per_second(profile: Profile) -> float:
    return profile.whole_ms * profile.hz / profile.execute


def _loop(profile: Profile) -> str:
    steps = profile.steps
    assert steps is not None
    line = f"It decodes in {steps.times} {steps.what}{'' if steps.times == 1 else 's'}"
    return f"{line}." if steps.ms is None else f"{line} of {steps.ms:.3f} ms each."


def _row(part: Part, whole: float) -> str:
    multiplied = f"{part.flops / 1e6:.2f}" if part.flops else "–"
    fetched = f"{part.fetched / 1e6:.2f}" if part.fetched else "–"
    limit = f"{part.limit_ms:.3f}" if part.limit_ms else "–"
    share = "–" if part.of_limit is None else f"{part.of_limit:.0%}"
    runs = f"{part.runs:.2f}".rstrip("0").rstrip(".")
    return (
        f"| {part.name} | {part.ms:.3f} | {part.ms / whole:.1%} | {runs} | {multiplied} | "
        f"{fetched} | {limit} | {share} |"
    )


def _sums(profile: Profile) -> tuple[float, float, float, float, float]:
    ms, flops, fetched, limit = 0.0, 0.0, 0.0, 0.0
    for part in profile.parts:
        ms += part.ms
        flops += part.flops
        fetched += part.fetched
        limit += part.limit_ms
    return ms, 1.0, flops, fetched, limit


def _shown(profile: Profile) -> list[Part]:
    """The parts as they are; of a kind that has several, their sum ahead of them."""
    found: list[Part] = []
    for kind, group in groupby(profile.parts, key=lambda part: part.kind):
        parts = list(group)
        if len(parts) == 1:
            found += parts
            continue
        found.append(_together(kind, parts))
        for part in parts:
            found.append(replace(part, name=f"· {part.name}"))
    return found


def _together(kind: Kind, parts: Sequence[Part]) -> Part:
    return Part(
        name=KINDS[kind],
        kind=kind,
        ms=sum(part.ms for part in parts),
        runs=sum(part.runs for part in parts),
        flops=sum(part.flops for part in parts),
        fetched=sum(part.fetched for part in parts),
        limit_ms=sum(part.limit_ms for part in parts),
    )


# The picture


def draw(profile: Profile, path: Path) -> None:
    """One bar a part, as long as its milliseconds; the dark end is what this machine cannot do
    without. Nothing is drawn of a policy without parts."""
    # Slow to import, and the table needs none of it.
    from matplotlib.figure import Figure

    parts = profile.parts
    if not parts:
        return
    figure = Figure(figsize=(8, 1.6 + 0.24 * len(parts)), layout="constrained")
    axes = figure.subplots()
    colours = {kind: f"C{index}" for index, kind in enumerate(KINDS)}
    labelled: set[str] = set()
    longest = max(part.ms for part in parts)
    for row, part in enumerate(parts):
        label = None if part.kind in labelled else KINDS[part.kind]
        labelled.add(part.kind)
        axes.barh(row, part.ms, color=colours[part.kind], alpha=0.55, label=label)
        if part.limit_ms:
            axes.barh(row, min(part.limit_ms, part.ms), color=colours[part.kind])
        said = f" {part.ms:.2f} ms"
        if part.of_limit is not None and part.of_limit >= 0.005:
            said += f", {part.of_limit:.0%} of the limit"
        axes.text(part.ms, row, said, va="center", fontsize=7)
    axes.set_yticks(range(len(parts)), [part.name for part in parts], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * longest)
    axes.set_xlabel("milliseconds of a decision; dark: what its products alone take here")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower right", fontsize=7)
    axes.set_title(f"{profile.policy}: {profile.whole_ms:.2f} ms", fontsize=10)
    with atomic_file(path) as part_file:
        figure.savefig(part_file, dpi=130, format="png")
