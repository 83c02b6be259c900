"""What the seeds of episodes are for. A world belongs to its task, split and seed, so who has acted in
a range of seeds has met its worlds.

    below 300,000,000            training: collected episodes, on-policy rounds and their trials
    300,000,000 – 399,999,999    calibration: thresholds, the longest `execute`
    400,000,000 – 499,999,999    audits: what a policy listens to
    500,000,000 – 599,999,999    tuning: which recipe, which budget, which step
    700,000,000 – 899,999,999    report: what is said of a policy that was chosen before
    900,000,000 and above        the gates and texts of an export

Nothing may be chosen on the report's: a policy that was picked among many on some episodes is
better on these than it is. This file knows numbers, and no recipe.
"""

from typing import Literal

Purpose = Literal["tuning", "report"]
TRAINING = range(300_000_000)
CALIBRATION = range(300_000_000, 400_000_000)
AUDIT = range(400_000_000, 500_000_000)
TUNING = range(500_000_000, 600_000_000)
REPORT = range(700_000_000, 900_000_000)
EVALUATION: dict[Purpose, range] = {"tuning": TUNING, "report": REPORT}
# Where an evaluation begins that names no seed. The report's lists from 700,000,000 on were
# published, and later recipes were made by people who had read them.
FIRST: dict[Purpose, int] = {"tuning": TUNING.start, "report": 800_000_000}


def said(seeds: range) -> str:
    """First and last, as an error says them."""
    return f"{seeds.start:,} to {seeds.stop - 1:,}"


def within(mine: range, allowed: range) -> bool:
    """Whether all of `mine` are in the range."""
    return allowed.start <= mine.start and mine.stop <= allowed.stop


def meet(one: range, other: range) -> bool:
    """Whether two ranges have a seed in common."""
    # Half-open ranges meet where each begins before the other ends; an empty one meets none.
    return max(one.start, other.start) < min(one.stop, other.stop)


def purpose_of(mine: range) -> Purpose | None:
    """What an evaluation on these seeds is for, by its seeds alone; None: they are in no range."""
    for purpose, allowed in EVALUATION.items():
        if within(mine, allowed):
            return purpose
    return None


def check_evaluation(purpose: Purpose, mine: range) -> None:
    """Raises ValueError where an evaluation's seeds are not those of what it is for."""
    allowed = EVALUATION[purpose]
    if within(mine, allowed):
        return
    others = purpose_of(mine)
    fix = f"leave --evaluation.seed out, which begins at {FIRST[purpose]:,}"
    if others is not None:
        fix += f", or say what it is for: --evaluation.purpose {others}"
    raise ValueError(
        f"--evaluation.purpose {purpose} with the seeds {said(mine)}: expected seeds within "
        f"{said(allowed)}, the {purpose} range; {fix}"
    )


def check_calibration(mine: range, where: str = "--calibration.seed") -> None:
    """Raises ValueError where a calibration's seeds are others than those that are kept for it."""
    if within(mine, CALIBRATION):
        return
    raise ValueError(
        f"{where}: calibration has the seeds {said(mine)}, expected seeds within "
        f"{said(CALIBRATION)}, the calibration range: what is chosen there must not be reported or "
        "tuned on; leave the seed out"
    )


def check_selection(what: str, mine: range) -> None:
    """Raises ValueError where something is trained or chosen on seeds that are kept for reports."""
    if not meet(mine, REPORT):
        return
    raise ValueError(
        f"{what} has the seeds {said(mine)}, and {said(REPORT)} are kept for reports: nothing may "
        f"be trained or chosen on them; give it seeds below {TRAINING.stop:,}"
    )
