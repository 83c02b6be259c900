"""A report as a table in words and as pictures: success against milliseconds, budget or noise. Knows
reports (those of version 1 as `report.read` gives them); runs nothing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from armlet.data.files import atomic_file
from armlet.evaluation import listens, speeds
from armlet.evaluation.speeds import runtime_of, several_runtimes
from armlet.measuring import EAGER

Report = dict[str, Any]
Row = dict[str, Any]  # of one policy
# Rates, and how far their intervals reach [below, above] them, as `errorbar` takes them. All in %,
# or toggles in 100 steps.
Bars = tuple[list[float], list[list[float]]]
MOST_COLUMNS = 12  # of groups; more would be a table that nobody can read
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")  # one a runtime, or else a colour
# Okabe and Ito (2008), without their yellow, which white hides: black is the teacher's.
COLOURS = ("#000000", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")


def table(report: Report) -> str:
    """Markdown: one row a policy, then its successes task by task, then one verdict a recipe; the
    same for further splits, if there are any; then how the policies do when they act late."""
    policies = report["policies"]
    parts = [
        main_lines(policies, report.get("refused", [])),
        group_lines(policies, "by_task", "task"),
        first_split_sentences(report),
    ]
    # Older reports lack these sections, and most evaluations leave one or the other empty.
    if report.get("seeds"):
        # Where there are verdicts, they are of seeds already.
        pairs = [] if report.get("verdicts") else report["seeds"]["pairs"]
        parts.append(seed_lines({**report["seeds"], "pairs": pairs}))
    for split, found in report.get("pairs_by_split", {}).items():
        parts.append(split_lines(policies, split))
        said = report.get("verdicts_by_split", {}).get(split)
        if said is None:  # a report of before verdicts were of every split
            parts.append(list(map(sentence, speeds.told(policies, found))))
        else:
            where = split.replace("_", " ")
            parts.append([f"- On {where}: {verdict['sentence']}" for verdict in said])
    if report.get("delayed"):
        parts.append(delayed_lines(report["delayed"]))
        parts.append(list(map(delayed_sentence, report.get("delayed_pairs", []))))
    if report.get("listens"):
        left_out = [listens.LeftOut(**each) for each in report.get("listens_left_out", [])]
        parts.append(listens.table(report["listens"], left_out).splitlines())
    lines: list[str] = []
    for part in parts:
        # An empty line between parts: Markdown would take the next table for more of this one.
        lines += ["", *part] if lines else part
    return "\n".join(lines).rstrip("\n") + "\n"


def first_split_sentences(report: Report) -> list[str]:
    """What the report is about: a verdict a recipe, and of several runtimes the pairs in which the
    first policy is not. Reports before version 4 have a sentence a pair."""
    told = speeds.told(report["policies"], report["pairs"])
    verdicts = report.get("verdicts", [])
    if not verdicts:
        return list(map(sentence, told))
    lines = [f"- {verdict['sentence']}" for verdict in verdicts]
    if several_runtimes(report["policies"]):
        first = report["policies"][0]["name"]
        lines += [sentence(pair) for pair in told if pair["b"] != first]
    return lines


def main_lines(policies: list[Row], refused: Sequence[Row] = ()) -> list[str]:
    """One row a policy: success, time, computation; of several runtimes, which, and more of speed.
    `refused`: what was asked for and could not be exported. Reports of version 1 do not say how
    often a policy was asked."""
    if several_runtimes(policies) or refused:
        return runtime_lines(policies, refused)
    # Speed and FLOPs are relative to the first policy: the teacher.
    base = policies[0]["latency_ms"]["policy"]["p50"]
    titles = [
        "policy",
        "success",
        interval_title(policies),
        "steps",
        *looks_titles(policies),
        "p50 ms",
        "speed",
        "ms per second of motion",
        "backbone FLOPs",
        "layers run",
        "parameters",
    ]
    lines = [markdown_row(titles), "|---" * len(titles) + "|"]
    for policy in policies:
        p50 = policy["latency_ms"]["policy"]["p50"]
        cells = [
            policy["name"],
            rate(policy),  # two cells
            number(policy["mean_steps"], 1),
            *looks(policy),
            f"{p50:.2f}",
            f"{base / p50:.2f}×",
            number(policy.get("ms_per_second_of_motion"), 1),
            of_teacher(policy, policies),
            percent(policy["keep_ratio"]),
            millions(policy["params"]["total"]),
        ]
        lines.append(markdown_row(cells))
    return lines + device_lines(policies)


def runtime_lines(policies: list[Row], refused: Sequence[Row]) -> list[str]:
    """One row a policy and runtime. Speed is said three times: against the teacher in the same
    runtime, which is what the student itself is worth; against the eager teacher, in which there is
    what the runtime gives to anybody; and of a second in which the arm moves."""
    # A teacher behind a server is run in no runtime that anybody knows.
    whole = "eager teacher" if policies[0]["runtime"] == EAGER else policies[0]["name"]
    titles = [
        "policy",
        "runtime",
        "success",
        interval_title(policies),
        "steps",
        *looks_titles(policies),
        "p50 ms",
        "× teacher, same runtime",
        f"× {whole}",
        "ms per second of motion",
        "× teacher, same runtime, of motion",
        f"× {whole}, of motion",
        "backbone FLOPs",
        "layers run",
        "parameters",
    ]
    lines = [markdown_row(titles), "|---" * len(titles) + "|"]
    for policy in policies:
        times = speeds.speed(policy, policies)
        cells = [
            policy["name"],
            runtime_of(policy),
            rate(policy),  # two cells
            number(policy["mean_steps"], 1),
            *looks(policy),
            f"{speeds.p50(policy):.2f}",
            multiple(times["teacher_in_runtime"]),
            multiple(times["teacher"]),
            number(policy.get("ms_per_second_of_motion"), 1),
            multiple(times["motion_in_runtime"]),
            multiple(times["motion"]),
            of_teacher(policy, policies),
            percent(policy["keep_ratio"]),
            millions(policy["params"]["total"]),
        ]
        lines.append(markdown_row(cells))
    for row in refused:
        cells = [row["name"], runtime_of(row), "not run: see below"]
        cells += ["–"] * (len(titles) - len(cells))
        lines.append(markdown_row(cells))
    if refused:
        lines.append("")
    for row in refused:
        lines.append(f"- {refusal(row)}")
    return lines + device_lines(policies)


def counts_looks(policies: list[Row]) -> bool:
    """Whether a report says how often policies looked; those before version 4 do not."""
    return "looks_per_episode" in policies[0]


def interval_title(policies: list[Row]) -> str:
    """The interval's name. Of before version 4 it is Wilson's in some and as today in others."""
    if not counts_looks(policies):
        return "95 % interval"
    return "95 % interval (Clopper–Pearson beyond 5–95 %, else Wilson)"


def looks_titles(policies: list[Row]) -> list[str]:
    """How long an episode is, and how often a policy looks, in words."""
    if not counts_looks(policies):
        return []
    return ["seconds", "looks", "looks a second"]


def looks(policy: Row) -> list[str]:
    """Three cells: seconds of an episode that succeeds, decisions in an episode, and in a second in
    which the arm moves."""
    if not counts_looks([policy]):
        return []
    return [
        number(policy["seconds_to_success"]["successes"], 2),
        number(policy["looks_per_episode"], 1),
        number(policy["decisions_per_second"], 2),
    ]


def refusal(row: Row) -> str:
    """Why a row is not there, in one line."""
    # A reason may have lines of its own, which would end the list that it stands in.
    return f"{row['name']} was not run: {' '.join(row['why'].split())}"


def device_lines(policies: list[Row]) -> list[str]:
    """Whose milliseconds have a network in them."""
    lines = []
    for policy in policies:
        device = policy["latency_ms"].get("device", "")
        if "network included" in device:
            lines += ["", f"{policy['name']} is {device} in its milliseconds."]
    return lines


def multiple(value: float | None) -> str:
    """How many times; a dash where nobody can say."""
    return "–" if value is None else f"{value:.2f}×"


def of_teacher(policy: Row, policies: list[Row]) -> str:
    """A policy's operations as a share of the first's; a dash where either is not known."""
    whole = policies[0]["flops"]["backbone"]
    mine = policy["flops"]["backbone"]
    return percent(None if whole is None or mine is None else mine / whole)


def percent(share: float | None) -> str:
    """A share as %; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.0f} %"


def millions(count: int | None) -> str:
    """A number of parameters; a dash where nobody knows it."""
    return "–" if count is None else f"{count / 1e6:.2f} M"


def markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, digits: int) -> str:
    """A dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def group_lines(policies: list[Row], field: str, what: str) -> list[str]:
    """Successes of episodes of each policy in each group of the first split: an average can hide
    that one task makes all the difference. A row a policy, or of many groups a row a group."""
    groups = list(policies[0][field])
    names = [policy["name"] for policy in policies]
    heads = [f"policy, by {what}", *groups]
    rows = []
    for policy in policies:
        tallies = [policy[field][group] for group in groups]
        cells = [f"{tally['successes']}/{tally['episodes']}" for tally in tallies]
        rows.append([policy["name"], *cells])
    if len(groups) > MOST_COLUMNS:
        of_groups = zip(*(row[1:] for row in rows), strict=True)
        rows = [[group, *cells] for group, cells in zip(groups, of_groups, strict=True)]
        heads = [what, *names]
    ruler = "|---" * len(heads) + "|"
    return [markdown_row(heads), ruler, *map(markdown_row, rows)]


def delayed_lines(rows: list[Row]) -> list[str]:
    """How policies do whose actions come late. `time to success`: of the episodes that succeed, and
    over all, a failure counting as the limit."""
    lines = [
        "| acting late | computer | rule | steps late | success | 95 % interval "
        "| seconds to success | … failures as the limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        # Reports of version 1 say neither the rule, which was always `skip`, nor the seconds.
        seconds = row.get("seconds_to_success", {})
        cells = [
            row["name"],
            f"{row['slower']:g}× slower",
            row.get("late", "skip"),
            str(row["lag_steps"]),
            rate(row),  # two cells
            number(seconds.get("successes"), 2),
            number(seconds.get("restricted"), 2),
        ]
        lines.append(markdown_row(cells))
    return lines


def delayed_sentence(pair: dict[str, Any]) -> str:
    """A comparison of two policies that act late, in words."""
    said = f"- {pair['slower']:g}× slower, {pair['late']}: " + sentence(pair).removeprefix("- ")
    seconds = pair.get("seconds")  # from version 4 on
    if seconds is None:
        return said
    low, high = seconds["ci95"]
    found = f"{seconds['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"{said.rstrip('.')}; seconds to success, failures as the limit: {found}"


def split_lines(policies: list[Row], split: str) -> list[str]:
    """How often each policy succeeds in one split."""
    lines = [f"| {split.replace('_', ' ')} | success | 95 % interval |", "|---|---|---|"]
    for policy in policies:
        lines.append(markdown_row([policy["name"], rate(policy["by_split"][split])]))
    return lines


def rate(row: Row) -> str:
    """Two cells: successes of episodes, and their interval in %."""
    low, high = row["ci95"]
    share = 100 * row["successes"] / row["episodes"]
    return (
        f"{row['successes']}/{row['episodes']} = {share:.1f} % | {100 * low:.1f}–{100 * high:.1f}"
    )


def seed_lines(seeds: Report) -> list[str]:
    """Students of several seeds taken together: a table, and a sentence a pair."""
    # Before version 4 a recipe had no interval of its own.
    whole = "ci95" in seeds["policies"][0]
    titles = ["over seeds", "seeds", "mean success", "each"]
    if whole:
        titles[3:] = ["95 % interval, of seeds and episodes", "sd over seeds, points", "each"]
    lines = [markdown_row(titles), "|---" * len(titles) + "|"]
    for policy in seeds["policies"]:
        cells = [policy["name"], str(policy["seeds"]), f"{100 * policy['success']:.1f} %"]
        if whole:
            low, high = policy["ci95"]
            spread = policy["sd"]
            cells.append(f"{100 * low:.1f}–{100 * high:.1f}")
            cells.append(number(None if spread is None else 100 * spread, 1))
        cells.append(", ".join(f"{100 * rate:.1f}" for rate in policy["each"]))
        lines.append(markdown_row(cells))
    lines.append("")
    return lines + list(map(seed_sentence, seeds["pairs"]))


def seed_sentence(pair: dict[str, Any]) -> str:
    """A comparison over seeds in words."""
    low, high = pair["ci95"]
    shown = "shown" if pair["non_inferior_3pp"] else "not shown"
    # pp: percentage points. "Not shown" and never "worse": an interval that holds −3 pp is no proof.
    return (
        f"- over seeds, {pair['a']} − {pair['b']}: {100 * pair['difference']:+.1f} pp "
        f"(95 % interval of students and episodes {100 * low:+.1f} to {100 * high:+.1f}); "
        f"{pair['a']} ≥ {pair['b']} − 3 pp: {shown} (n = {pair['n']})"
    )


def sentence(pair: dict[str, Any]) -> str:
    """A paired comparison in words."""
    low, high = pair["ci95"]
    shown = "shown" if pair["non_inferior_3pp"] else "not shown"
    return (
        f"- {pair['a']} − {pair['b']}: {100 * pair['difference']:+.1f} pp "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f}), "
        f"McNemar p = {pair['mcnemar_p']:.3g}; "
        f"{pair['a']} ≥ {pair['b']} − 3 pp: {shown} (n = {pair['n']})"
    )


def success_against_latency(report: Report, path: Path) -> None:
    """A picture: each policy at what it computes and its success, with its interval. Milliseconds
    of a second of motion where every row says them, else of a decision. Seeds of one recipe are
    faint, around their mean; a policy in several runtimes is one colour, and a mark each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    policies = report["policies"]
    several = several_runtimes(policies)
    marks: dict[str, str] = {}  # runtime, or where there is one: colour → matplotlib's mark
    colours: dict[str, str] = {}
    for (kind, runtime), rows in _kinds(report).items():
        label = None if kind in colours else kind  # one entry of the legend a colour
        colour = colours.setdefault(kind, COLOURS[len(colours) % len(COLOURS)])
        mark = marks.setdefault(runtime if several else kind, MARKS[len(marks) % len(MARKS)])
        style: dict[str, Any] = {"fmt": mark, "color": colour, "capsize": 4}
        at = [speeds.computing(row, policies) for row in rows]
        rates, errors = _success(rows)
        if len(rows) == 1:
            axes.errorbar(at, rates, yerr=errors, markersize=8, label=label, **style)
            continue
        # How far seeds are apart says more than the interval of each, which is of episodes alone.
        axes.errorbar(at, rates, markersize=5, alpha=0.35, **style)
        mean = [sum(at) / len(at)], [sum(rates) / len(rates)]
        label = None if label is None else f"{label}, {len(rows)} seeds"
        axes.errorbar(*mean, markersize=9, label=label, markeredgecolor="black", **style)
    motion = speeds.counts_motion(policies)
    what = "of computing per second of motion" if motion else "a decision (p50)"
    axes.set_xlabel(f"milliseconds {what}, batch 1, one thread")
    axes.set_ylabel("success, %")
    # A little room around the lowest interval: rates near 100 % would else lie on one line.
    room = 100 - 100 * min(policy["ci95"][0] for policy in policies)
    axes.set_ylim(max(0, 100 - 1.25 * room - 1), 100.5 + 0.1 * room)
    axes.set_xlim(0, 1.12 * max(speeds.computing(policy, policies) for policy in policies))
    for runtime, mark in marks.items():
        if several:
            axes.plot([], [], mark, color="grey", label=runtime)  # for the legend alone
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    benchmark = report["fingerprint"]["benchmark"]["benchmark"]
    axes.set_title(f"{benchmark}: the same {policies[0]['episodes']} episodes, 95 % intervals")
    with atomic_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


def _kinds(report: Report) -> dict[tuple[str, str], list[Row]]:
    """Rows by what has one colour, and by runtime: the seeds of a recipe are together."""
    together = called_together(report)
    found: dict[tuple[str, str], list[Row]] = {}
    for row in report["policies"]:
        own = row.get("exported_from") or row["name"]
        kind = together.get(row["name"], together.get(own, own))
        found.setdefault((kind, runtime_of(row)), []).append(row)
    return found


def called_together(report: Report) -> dict[str, str]:
    """Of each student that is one of several seeds, its name → what they are called together."""
    together = {row["name"] for row in (report.get("seeds") or {}).get("policies", [])}
    found = {}
    for policy in report["policies"]:
        # A student that does not say how it was made is taken by its name (outcomes.seeds_of).
        numbered = re.fullmatch(r"(.+)-\d+", policy["name"])
        stem: str = policy.get("seeds_of") or (numbered[1] if numbered else "")
        if stem in together:
            found[policy["name"]] = stem
    return found


def largest_flops(policies: list[Row]) -> float:
    """Of a decision's backbone: the teacher's or, where nobody knows those, the most of all."""
    known = [policy["flops"]["backbone"] for policy in policies]
    if known[0] is not None:
        return float(known[0])
    return float(max(each for each in known if each is not None))


def success_against_budget(report: Report, path: Path) -> None:
    """A picture of the student with a dial: success, and milliseconds, against the share of the
    backbone's FLOPs that it spends; the other policies beside it. Raises ValueError where no policy
    was run at a budget."""
    from matplotlib.figure import Figure

    at_budgets = [policy for policy in report["policies"] if policy["budget"] is not None]
    at_budgets.sort(key=lambda policy: policy["budget"])
    if not at_budgets:
        raise ValueError(
            "no policy of this report was run at a budget; evaluate a student that has a dial with "
            "--evaluation.budgets"
        )
    whole = largest_flops(report["policies"])
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    success, milliseconds = figure.subplots(1, 2)

    def draw(policies: list[Row], label: str, style: str, colour: str) -> None:
        share = []
        p50 = []
        for policy in policies:
            if policy["flops"]["backbone"] is None:  # behind a socket: nobody knows
                return
            # What was spent and not the budget asked for: a router may spend less.
            share.append(100 * policy["flops"]["backbone"] / whole)
            p50.append(policy["latency_ms"]["policy"]["p50"])
        rates, errors = _success(policies)
        success.errorbar(share, rates, yerr=errors, fmt=style, capsize=3, label=label, color=colour)
        milliseconds.plot(share, p50, style, label=label, color=colour)

    draw(at_budgets, "one student, its dial turned", "o-", "C0")
    # A fingerprint at a budget ends in @ and the budget. The same student at its own budget is no
    # other policy, and is left out.
    student = at_budgets[0]["fingerprint"].partition("@")[0]
    others = []
    for policy in report["policies"]:
        if policy["budget"] is None and policy["fingerprint"] != student:
            others.append(policy)
    for index, policy in enumerate(others):
        draw([policy], policy["name"], "s", f"C{index % 9 + 1}")  # C0 is the student's
    success.set_ylabel("success, %")
    milliseconds.set_ylabel("milliseconds a decision (p50, batch 1, one thread)")
    milliseconds.set_ylim(bottom=0)
    for axes in (success, milliseconds):
        axes.set_xlabel("share of the backbone's FLOPs, %")
        axes.set_xlim(0, 105)
        axes.grid(alpha=0.3)
    success.legend(loc="lower right")
    figure.suptitle(f"the same {at_budgets[0]['episodes']} episodes, 95 % intervals")
    with atomic_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


def success_against_noise(report: Report, path: Path) -> None:
    """A picture of students that were told some of their teacher's gripper commands the wrong way
    round: success, and how often their gripper toggles, against the share of these. A line joins
    policies whose names differ only after an @; the first policy, their teacher, is drawn
    across."""
    from matplotlib.figure import Figure

    teacher, *students = report["policies"]
    lines: dict[str, list[Row]] = {}
    for policy in students:
        if policy["gripper_noise"] is not None:
            lines.setdefault(policy["name"].partition("@")[0], []).append(policy)
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    success, toggles = figure.subplots(1, 2)
    for index, (name, policies) in enumerate(lines.items()):
        policies.sort(key=lambda policy: policy["gripper_noise"])
        style: dict[str, Any] = {"fmt": "o-", "capsize": 3, "color": f"C{index}"}
        aside = 0.3 * (index - (len(lines) - 1) / 2)  # so that no interval hides another
        share = [100 * policy["gripper_noise"] + aside for policy in policies]
        rates, errors = _success(policies)
        success.errorbar(share, rates, yerr=errors, label=name, **style)
        # None of a policy whose gripper was not counted: then the line would have a hole.
        if all(policy["gripper_toggles"] for policy in policies):
            rates, errors = _toggles(policies)
            toggles.errorbar(share, rates, yerr=errors, **style)
    grey: dict[str, Any] = {"color": "grey", "linestyle": "--"}
    success.axhline(100 * teacher["successes"] / teacher["episodes"], label=teacher["name"], **grey)
    success.set_ylabel("success, %")
    if teacher["gripper_toggles"]:
        toggles.axhline(teacher["gripper_toggles"]["per_100_steps"], **grey)
    toggles.set_ylabel("gripper toggles in 100 steps")
    toggles.set_ylim(bottom=0)
    for axes in (success, toggles):
        axes.set_xlabel("gripper labels flipped, %")
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.suptitle(
        f"the same {teacher['episodes']} episodes; 95 % intervals are of episodes, not of trainings"
    )
    with atomic_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


def _success(policies: list[Row]) -> Bars:
    """Success in percent."""
    rates = []
    intervals = []
    for policy in policies:
        low, high = policy["ci95"]  # shares
        rates.append(100 * policy["successes"] / policy["episodes"])
        intervals.append((100 * low, 100 * high))
    return _bars(rates, intervals)


def _toggles(policies: list[Row]) -> Bars:
    """Toggles in 100 steps; where there is no interval, none is drawn."""
    rates = []
    intervals = []
    for policy in policies:
        toggles = policy["gripper_toggles"]
        rate = toggles["per_100_steps"]
        rates.append(rate)
        # None: of a single episode nothing can be drawn again (stats.ratio_ci95).
        intervals.append(toggles["per_100_steps_ci95"] or (rate, rate))
    return _bars(rates, intervals)


def _bars(rates: list[float], intervals: list[tuple[float, float]]) -> Bars:
    """Intervals as `errorbar` takes them: distances from the rate, not ends."""
    below = []
    above = []
    for rate, (low, high) in zip(rates, intervals, strict=True):
        # A bootstrap of few episodes can lie beside the rate, and errorbar refuses less than 0.
        below.append(max(rate - low, 0))
        above.append(max(high - rate, 0))
    return rates, [below, above]
