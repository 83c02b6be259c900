"""A plan for people, and what came of it: tables. Knows plans; measures nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from armlet.deploy.planning import Choice, Plan, best_of


@dataclass(frozen=True)
class Checked:
    """A student beside what was predicted of it, in milliseconds; `predicted` None: it is not cut
    from this policy, and nothing was predicted."""

    name: str
    runtime: str
    precision: str
    layers: float
    steps: int
    predicted: float | None
    measured: float

    @property
    def error(self) -> float | None:
        """Of the prediction, as a share of what was measured."""
        return None if self.predicted is None else self.predicted / self.measured - 1


def page(plan: Plan) -> str:
    """The whole page, as Markdown."""
    trial = plan.trial
    lines = [
        f"# {plan.policy}: {plan.target_ms:g} ms a decision",
        "",
        f"{plan.layers} layers"
        + (f", {plan.steps} {plan.loop}s" if plan.loop else "")
        + f"; {plan.chunk} actions at a time, {plan.execute} carried out at {plan.hz:g} Hz. Measured "
        f"on {plan.machine['processor']}, {plan.threads} thread{'' if plan.threads == 1 else 's'}, "
        f"{plan.device}: {plan.moments}.",
        "",
        *_ways(plan),
        "",
        f"A cut to {trial.layers} layer{'' if trial.layers == 1 else 's'}, untrained, was timed "
        f"beside: {trial.predicted:.2f} ms predicted, {trial.measured:.2f} measured "
        f"({trial.error:+.0%}).",
        "",
        f"## What reaches {plan.target_ms:g} ms",
        "",
    ]
    found = best_of(plan)
    if found:
        lines += _choices(plan, found)
    else:
        lines.append("Nothing that was looked at.")
    lines += [
        "",
        f"**Below {plan.least_ms:.2f} ms no choice gets**: one layer"
        + (f", one {plan.loop}" if plan.loop and plan.loop != "token" else "")
        + ", the fastest of the runtimes that were measured. What is left is "
        "pictures, words, eyes and head (`armlet profile`).",
        "",
        "Milliseconds follow from shapes; what a choice does to success, training shows. "
        "`ms a second` is milliseconds of thinking a second of motion; with longer "
        "`execute` it falls, and `armlet evaluate … --evaluation.execute` says what that costs.",
    ]
    return "\n".join(lines) + "\n"


def _ways(plan: Plan) -> list[str]:
    lines = [
        "| runtime | precision | as it is, ms | fixed | a layer | a pass of its loop |",
        "|---|---|---|---|---|---|",
    ]
    for way in plan.ways:
        one_pass = way.step + plan.layers * way.step_layer
        lines.append(
            f"| {way.runtime} | {way.precision} | {way.ms(plan.layers, plan.steps):.2f} | "
            f"{way.fixed:.2f} | {way.layer:.3f} | "
            f"{f'{one_pass:.3f}' if plan.loop else '–'} |"
        )
    router = plan.ways[0].router
    if router:
        lines += ["", f"A router, where layers are chosen at every decision: {router:.2f} ms more."]
    return lines


def _choices(plan: Plan, found: Sequence[Choice]) -> list[str]:
    longest = f"ms a second, execute {plan.chunk}"
    lines = [
        "| layers | steps | runtime | precision | ms | ms a second, execute "
        f"{plan.execute} | {longest} | how |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for choice in found:
        whole = choice.ms * plan.hz / plan.chunk
        layers = f"{choice.layers} of {plan.layers}"
        lines.append(
            f"| {layers}{', routed' if choice.routed else ''} | {choice.steps or '–'} | "
            f"{choice.runtime} | {choice.precision} | {choice.ms:.2f} | "
            f"{choice.ms_per_second:.1f} | {whole:.1f} | {how(choice)} |"
        )
    return lines


def how(choice: Choice) -> str:
    """The commands of a choice, in one cell."""
    if not choice.commands:
        return "as it is"
    # A cell of a table ends at a bar.
    return "; ".join(f"`{command}`" for command in choice.commands)


def checked(plan: Plan, found: Sequence[Checked]) -> str:
    """Predicted against measured, as Markdown."""
    lines = [
        "| student | runtime | precision | layers | steps | predicted, ms | measured, ms | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        predicted = "–" if each.predicted is None else f"{each.predicted:.2f}"
        error = "–" if each.error is None else f"{each.error:+.0%}"
        lines.append(
            f"| {each.name} | {each.runtime} | {each.precision} | {each.layers:g} of {plan.layers} | "
            f"{each.steps or '–'} | {predicted} | {each.measured:.2f} | {error} |"
        )
    return "\n".join(lines) + "\n"
