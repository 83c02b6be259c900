"""profile: a policy → where the milliseconds of one of its decisions go, and how far each part is from
what this machine can do.

    armlet profile POLICY                        on pictures of noise: what most networks need
    armlet profile POLICY --benchmark tabletop   on its own episodes: what a routed student needs
    armlet profile POLICY --episodes DIR         on recorded frames

POLICY is a folder, a name on the hub, a `policy.toml`, or an address; of a policy that cannot be
looked into (behind a socket, exported) the whole is timed. Writes profile.json, profile.md and
profile.png.
"""

import json
from pathlib import Path
from typing import Annotated

import tyro

from armlet.data.files import write_atomically
from armlet.deploy import profile_page
from armlet.deploy.moments import Where, meet, name_of
from armlet.deploy.profiling import Profile, Setting, profile
from armlet.rollout.pool import threads as with_threads

PROFILES = Path("out/profile")
ANYWHERE = Where()


def main(
    policy: Annotated[str, tyro.conf.Positional],
    /,
    *,
    where: Annotated[Where, tyro.conf.arg(name="")] = ANYWHERE,
    calls: int = 200,
    threads: int = 1,
    out: Path | None = None,
) -> str:
    """Say where the milliseconds of a policy's decisions go.

    Args:
        policy: Its folder, its name on the hub, a policy.toml, or the address of a server.
        where: Where it decides, and what about.
        calls: Decisions with timers, and as many without.
        threads: Of torch.
        out: The folder that is written to; out/profile/NAME if not given.
    """
    found = measured(policy, where, calls=calls, threads=threads)
    return write(found, out or PROFILES / name_of(policy))


def measured(policy: str, where: Where, *, calls: int, threads: int) -> Profile:
    """The profile. Raises ValueError for numbers that make no sense, and what `meet` does."""
    if threads < 1:
        raise ValueError(f"--threads {threads}: expected at least 1")
    with with_threads(threads):
        met = meet(policy, where)
        setting = Setting(policy, met.fingerprint, met.words, calls, threads)
        return profile(met.policy, met.observations, setting)


def write(found: Profile, out: Path) -> str:
    """The three files; returns the page, and where they are."""
    page = profile_page.table(found)
    write_atomically(out / "profile.json", json.dumps(found.to_json(), indent=1).encode())
    write_atomically(out / "profile.md", page.encode())
    profile_page.draw(found, out / "profile.png")
    return f"{page}\n{out / 'profile.json'}"
