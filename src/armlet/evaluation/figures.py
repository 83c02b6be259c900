"""A report as a table in words and a picture: success against milliseconds. Knows reports (those of
version 1 as `report.read` gives
them); runs nothing."""

from pathlib import Path
from typing import Any

from armlet.data.files import atomic_file

Report = dict[str, Any]
Bars = tuple[list[float], list[list[float]]]
"""Rates, and how far their intervals reach below and above, as `errorbar` takes them."""


def table(report: Report) -> str:
    """Markdown: one row a policy, then its successes task by task, then one sentence a pair; the
    same for further splits, if there are
    any; then how the policies do when they act late."""
    policies = report["policies"]
    lines = [
        *main_lines(policies),
        "",
        *group_lines(policies, "by_task", "task"),
        "",
        *map(sentence, report["pairs"]),
    ]
    if report.get("seeds"):
        lines += ["", *seed_lines(report["seeds"])]
    for split, found in report.get("pairs_by_split", {}).items():
        lines += ["", *split_lines(policies, split), "", *map(sentence, found)]
    if report.get("delayed"):
        lines += [
            "",
            *delayed_lines(report["delayed"]),
            "",
            *map(delayed_sentence, report.get("delayed_pairs", [])),
        ]
    return "\n".join(lines).rstrip("\n") + "\n"


def main_lines(policies: list[dict[str, Any]]) -> list[str]:
    """One row a policy: success, time, computation. Reports of version 1 do not say how often a
    policy was asked."""
    base = policies[0]["latency_ms"]["policy"]["p50"]
    lines = [
        "| policy | success | 95 % interval | steps | p50 ms | speed | ms per second of motion | backbone FLOPs | layers run | parameters |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for policy in policies:
        p50 = policy["latency_ms"]["policy"]["p50"]
        share = policy["flops"]["backbone"] / policies[0]["flops"]["backbone"]
        lines.append(
            f"| {policy['name']} | {rate(policy)} | {number(policy['mean_steps'], 1)} | {p50:.2f} | "
            f"{base / p50:.2f}× | {number(policy.get('ms_per_second_of_motion'), 1)} | {100 * share:.0f} % | "
            f"{100 * policy['keep_ratio']:.0f} % | {policy['params']['total'] / 1e6:.2f} M |"
        )
    return lines


def number(value: float | None, digits: int) -> str:
    """A dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def group_lines(policies: list[dict[str, Any]], field: str, what: str) -> list[str]:
    """Successes of episodes of each policy in each group of the first split: an average can hide
    that one task makes all the
    difference."""
    groups = list(policies[0][field])
    lines = [
        f"| policy, by {what} | " + " | ".join(groups) + " |",
        "|---" * (len(groups) + 1) + "|",
    ]
    for policy in policies:
        cells = [
            f"{policy[field][group]['successes']}/{policy[field][group]['episodes']}"
            for group in groups
        ]
        lines.append(f"| {policy['name']} | " + " | ".join(cells) + " |")
    return lines


def delayed_lines(rows: list[dict[str, Any]]) -> list[str]:
    """How policies do whose actions come late. `time to success`: of the episodes that succeed, and
    over all, a failure counting as
    the limit."""
    lines = [
        "| acting late | computer | rule | steps late | success | 95 % interval | seconds to success | … failures as the limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row.get("seconds_to_success", {})
        lines.append(
            f"| {row['name']} | {row['slower']:g}× slower | {row.get('late', 'skip')} | {row['lag_steps']} | {rate(row)} | "
            f"{number(seconds.get('successes'), 2)} | {number(seconds.get('restricted'), 2)} |"
        )
    return lines


def delayed_sentence(pair: dict[str, Any]) -> str:
    """A comparison of two policies that act late, in words."""
    return f"- {pair['slower']:g}× slower, {pair['late']}: " + sentence(pair).removeprefix("- ")


def split_lines(policies: list[dict[str, Any]], split: str) -> list[str]:
    """How often each policy succeeds in one split."""
    lines = [f"| {split.replace('_', ' ')} | success | 95 % interval |", "|---|---|---|"]
    return lines + [
        f"| {policy['name']} | {rate(policy['by_split'][split])} |" for policy in policies
    ]


def rate(row: dict[str, Any]) -> str:
    """Two cells: successes of episodes, and their interval in %."""
    low, high = row["ci95"]
    share = 100 * row["successes"] / row["episodes"]
    return (
        f"{row['successes']}/{row['episodes']} = {share:.1f} % | {100 * low:.1f}–{100 * high:.1f}"
    )


def seed_lines(seeds: Report) -> list[str]:
    """Students of several seeds taken together: a table, and a sentence a pair."""
    lines = ["| over seeds | seeds | mean success | each |", "|---|---|---|---|"]
    for policy in seeds["policies"]:
        each = ", ".join(f"{100 * rate:.1f}" for rate in policy["each"])
        lines.append(
            f"| {policy['name']} | {policy['seeds']} | {100 * policy['success']:.1f} % | {each} |"
        )
    lines.append("")
    return lines + [seed_sentence(pair) for pair in seeds["pairs"]]


def seed_sentence(pair: dict[str, Any]) -> str:
    """A comparison over seeds in words."""
    low, high = pair["ci95"]
    shown = "shown" if pair["non_inferior_3pp"] else "not shown"
    return (
        f"- over seeds, {pair['a']} − {pair['b']}: {100 * pair['difference']:+.1f} pp (95 % interval of students and episodes "
        f"{100 * low:+.1f} to {100 * high:+.1f}); {pair['a']} ≥ {pair['b']} − 3 pp: {shown} (n = {pair['n']})"
    )


def sentence(pair: dict[str, Any]) -> str:
    """A paired comparison in words."""
    low, high = pair["ci95"]
    shown = "shown" if pair["non_inferior_3pp"] else "not shown"
    return (
        f"- {pair['a']} − {pair['b']}: {100 * pair['difference']:+.1f} pp (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), "
        f"McNemar p = {pair['mcnemar_p']:.3g}; {pair['a']} ≥ {pair['b']} − 3 pp: {shown} (n = {pair['n']})"
    )


def success_against_latency(report: Report, path: Path) -> None:
    """A picture: each policy at (p50 ms, success), with its interval; students of several seeds in
    one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    together = {policy["name"] for policy in (report.get("seeds") or {"policies": []})["policies"]}
    colours: dict[str, str] = {}
    for policy in report["policies"]:
        stem = policy.get("seeds_of") or policy["name"].rpartition("-")[0]
        kind = stem if stem in together else policy["name"]
        label = None if kind in colours else kind
        colour = colours.setdefault(kind, f"C{len(colours)}")
        rates, errors = _success([policy])
        x = policy["latency_ms"]["policy"]["p50"]
        axes.errorbar(
            [x], rates, yerr=errors, fmt="o", capsize=4, markersize=8, label=label, color=colour
        )
    slowest = max(policy["latency_ms"]["policy"]["p50"] for policy in report["policies"])
    lowest = min(policy["ci95"][0] for policy in report["policies"])
    axes.set_xlabel("milliseconds a decision (p50, batch 1, one thread)")
    axes.set_ylabel("success, %")
    axes.set_ylim(max(0, 100 - 1.25 * (100 - 100 * lowest) - 1), 100.5 + 0.1 * (100 - 100 * lowest))
    axes.set_xlim(0, 1.12 * slowest)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    episodes = report["policies"][0]["episodes"]
    axes.set_title(
        f"{report['fingerprint']['benchmark']['benchmark']}: the same {episodes} episodes, 95 % intervals"
    )
    with atomic_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


def success_against_budget(report: Report, path: Path) -> None:
    """A picture of the student with a dial: success, and milliseconds, against the share of the
    backbone's FLOPs that it spends; the
    other policies beside it. Raises ValueError where no policy was run at a budget."""
    from matplotlib.figure import Figure

    at_budgets = sorted(
        (policy for policy in report["policies"] if policy["budget"] is not None),
        key=lambda policy: policy["budget"],
    )
    if not at_budgets:
        raise ValueError(
            "no policy of this report was run at a budget; evaluate a student that has a dial with --evaluation.budgets"
        )
    whole = report["policies"][0]["flops"]["backbone"]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    success, milliseconds = figure.subplots(1, 2)

    def draw(policies: list[dict[str, Any]], label: str, style: str, colour: str) -> None:
        share = [100 * policy["flops"]["backbone"] / whole for policy in policies]
        rates, errors = _success(policies)
        success.errorbar(share, rates, yerr=errors, fmt=style, capsize=3, label=label, color=colour)
        milliseconds.plot(
            share,
            [policy["latency_ms"]["policy"]["p50"] for policy in policies],
            style,
            label=label,
            color=colour,
        )

    draw(at_budgets, "one student, its dial turned", "o-", "C0")
    student = at_budgets[0]["fingerprint"].partition("@")[
        0
    ]  # the same student without a budget of its own is no other policy
    others = [
        policy
        for policy in report["policies"]
        if policy["budget"] is None and policy["fingerprint"] != student
    ]
    for index, policy in enumerate(others):
        draw([policy], policy["name"], "s", f"C{index % 9 + 1}")
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
    policies whose names differ only after an @; the first policy, which
    told them, is drawn across."""
    from matplotlib.figure import Figure

    teacher, *students = report["policies"]
    lines: dict[str, list[dict[str, Any]]] = {}
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


def _success(policies: list[dict[str, Any]]) -> Bars:
    """Success in percent."""
    rates = [100 * policy["successes"] / policy["episodes"] for policy in policies]
    return _bars(
        rates, [(100 * low, 100 * high) for low, high in (policy["ci95"] for policy in policies)]
    )


def _toggles(policies: list[dict[str, Any]]) -> Bars:
    """Toggles in 100 steps; where there is no interval, none is drawn."""
    found = [policy["gripper_toggles"] for policy in policies]
    rates = [toggles["per_100_steps"] for toggles in found]
    return _bars(
        rates,
        [
            toggles["per_100_steps_ci95"] or (rate, rate)
            for toggles, rate in zip(found, rates, strict=True)
        ],
    )


def _bars(rates: list[float], intervals: list[tuple[float, float]]) -> Bars:
    """A bootstrap of few episodes can lie beside the rate; it does not reach to that side."""
    below = [max(rate - low, 0) for rate, (low, _) in zip(rates, intervals, strict=True)]
    above = [max(high - rate, 0) for rate, (_, high) in zip(rates, intervals, strict=True)]
    return rates, [below, above]
