"""The page of a published policy: a model card, and its results as the hub keeps them.

The card's head is for the hub (`library_name`, `pipeline_tag: robotics`, `base_model`, tags); its
text is for people: what it is, what it needs, how it was measured beside its teacher. Results go
into `.eval_results/` (https://huggingface.co/docs/hub/eval-results) where the benchmark has a data
set on the hub, and into the card in any case. Knows reports; asks no server.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump

from armlet.data.hub import is_name
from armlet.deploy.publishing import Contents
from armlet.evaluation.figures import main_lines, sentence
from armlet.lineage import shortened_to
from armlet.robot.spec import ActionSpec

TASK = "robotics"  # the hub's pipeline tag
Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What of a report is about one policy: its row, its teacher's, the pair of both where it was
    tested, and the whole report's fingerprint. `benchmark`: its name; `on_hub`: the data set that
    stands for it on the hub, and the task there; empty where there is none."""

    student: Row
    teacher: Row
    pair: dict[str, Any] | None
    benchmark: str
    splits: tuple[str, ...]
    on_hub: str = ""
    task: str = "default"


@dataclass(frozen=True)
class Card:
    """What a card says beside what the folder does. `base_model`: the teacher's name on the hub;
    `text`: the publisher's own paragraphs, in Markdown."""

    repo: str
    contents: Contents
    robot: Mapping[str, Any]
    results: Results | None = None
    base_model: str = ""
    license: str = ""
    tags: tuple[str, ...] = ()
    text: str = ""
    datasets: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def results_of(report: dict[str, Any], fingerprint: str, *, where: str) -> Results:
    """The rows of a report (`evaluation.report.read`) that are about a policy and its teacher.
    Raises ValueError where no row is about this policy, by its fingerprint: success is nothing that
    a name alone vouches for."""
    rows = report["policies"]
    mine = [row for row in rows if row.get("fingerprint") == fingerprint]
    if not mine:
        there = ", ".join(f"{row['name']} {row.get('fingerprint', '?')}" for row in rows)
        raise ValueError(
            f"{where} is about other policies than {fingerprint}: {there}; evaluate this one "
            "(--policies FOLDER), and give that report"
        )
    student = mine[0]
    teacher = rows[0]
    pair = None
    for each in report["pairs"]:
        if {each["a"], each["b"]} == {student["name"], teacher["name"]}:
            pair = each
    world = report["fingerprint"].get("benchmark", {})
    name = world.get("benchmark", "") if isinstance(world, dict) else str(world)
    return Results(student, teacher, pair, name, tuple(student.get("by_split", {})))


def base_of(provenance: Mapping[str, Any]) -> str:
    """The teacher's name on the hub, `user/name`, where it was read from there; else empty."""
    return _on_hub(provenance.get("recipe", {}).get("teacher"))


def datasets_of(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """The data set's name on the hub, where it was read from there."""
    found = _on_hub(provenance.get("recipe", {}).get("episodes"))
    return (found,) if found else ()


def _on_hub(place: Any) -> str:
    if not isinstance(place, str) or not is_name(place):
        return ""
    return "/".join(place.removeprefix("hf:").partition("@")[0].split("/")[:2])


def render(card: Card) -> str:
    """The card as README.md."""
    parts = [
        f"---\n{_head(card)}\n---",
        f"# {card.repo.partition('/')[2]}",
        _what(card),
        card.text.strip(),
        _how(card),
        _robot(card.robot),
        _measured(card),
        _made(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(card: Card) -> str:
    said = card.contents.said
    how = [str(said[field]) for field in ("runtime", "precision") if field in said]
    head = ModelCardData(
        library_name=card.contents.library,
        pipeline_tag=TASK,
        base_model=card.base_model or None,
        datasets=list(card.datasets) or None,
        license=card.license or None,
        tags=["armlet", TASK, "distillation", card.contents.kind, *how, *card.tags],
        model_name=card.repo.partition("/")[2],
        eval_results=_index(card) or None,
        **card.extra,
    )
    return head.to_yaml()


def _index(card: Card) -> list[EvalResult]:
    """The results as the card's head has them, for benchmarks that are no data set of the hub."""
    results = card.results
    if results is None:
        return []
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=results.benchmark or "own",
            dataset_name=results.benchmark or "the publisher's own world",
            metric_type="success_rate",
            metric_name="success, %",
            metric_value=round(100 * _rate(results.student), 2),
        )
    ]


def evaluation_file(results: Results, *, source: str, date: str) -> bytes:
    """`.eval_results/NAME.yaml`: the success of the first split, in %. `source`: the address of the
    report; `date`: of the evaluation, ISO 8601, or empty."""
    row = results.student
    low, high = row["ci95"]
    notes = (
        f"{row['successes']} of {row['episodes']} episodes, 95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f} %; the teacher, in the same episodes: {results.teacher['successes']}; "
        f"split {', '.join(results.splits) or 'seen'}"
    )
    entry: dict[str, Any] = {
        "dataset": {"id": results.on_hub, "task_id": results.task},
        "value": round(100 * _rate(row), 2),
        "source": {"url": source, "name": "armlet's report"},
        "notes": notes,
    }
    if date:
        entry["date"] = date
    return yaml_dump([entry]).encode()


def _rate(row: Row) -> float:
    return float(row["successes"] / row["episodes"])


def _what(card: Card) -> str:
    contents = card.contents
    teacher = f" from [{card.base_model}](https://huggingface.co/{card.base_model})" * bool(
        card.base_model
    )
    recipe = contents.provenance.get("recipe", {}).get("name", "")
    by = f" by the recipe `{recipe}`" if recipe else ""
    if contents.layout == "exported":
        runtime = contents.said.get("runtime", "")
        precision = contents.said.get("precision", "")
        return (
            f"A robot policy that armlet distilled{teacher}{by} "
            f"and exported: {runtime}, {precision}. A robot needs numpy and the runtime, no PyTorch."
        )
    return (
        f"A robot policy (`{contents.kind}`) that armlet "
        f"distilled{teacher}{by}.{_shortened(card)} Fingerprint `{contents.fingerprint}`."
    )


def _shortened(card: Card) -> str:
    """What was changed of it since, untrained."""
    found = shortened_to(card.contents.provenance, card.repo)
    parts = []
    if "steps" in found:
        parts.append(f"it decides in {found['steps']} denoising step{'s' * (found['steps'] != 1)}")
    if "execute" in found:
        parts.append(f"it looks again after {found['execute']} actions")
    return f" Changed since, untrained: {', '.join(parts)}." if parts else ""


def _how(card: Card) -> str:
    name = card.repo
    lines = ["## Use", "", "```bash"]
    if card.contents.layout == "lerobot":
        lines += [
            "pip install lerobot lerobot_policy_armlet",
            f"lerobot-eval --policy.path={name} --env.type=armlet --eval.n_episodes=50",
            "```",
            "",
            'The same folder is a policy of armlet: `armlet.load_policy("hf:' + name + '")`.',
        ]
        return "\n".join(lines)
    if card.contents.layout == "exported":
        lines += [
            f"hf download {name} --local-dir policy",
            "pip install -r policy/requirements.txt",
        ]
        return "\n".join([*lines, "```"])
    lines += ["pip install armlet", "```", "", "```python", "from armlet import load_policy", ""]
    return "\n".join([*lines, f'policy = load_policy("hf:{name}")', "```"])


def _robot(robot: Mapping[str, Any]) -> str:
    if "action" not in robot:
        return ""
    spec = ActionSpec.from_json(robot["action"])
    cameras = robot["observation"]["cameras"]
    seen = ", ".join(
        f"{name} ({each['height']} × {each['width']})" for name, each in cameras.items()
    )
    state = ", ".join(robot["observation"].get("state_names") or ()) or "as its data set has it"
    scale = spec.translation_scale
    moves = "" if scale is None else f", a command of 1 moves {scale:g} m"
    return "\n".join(
        [
            "## The robot it was made for",
            "",
            f"- actions: {', '.join(spec.names)} ({spec.mode}, {spec.control_hz:g} Hz, rotation "
            f"{spec.rotation}{moves})",
            f"- cameras: {seen}",
            f"- state: {state}",
            "",
            "Another robot, or another meaning of these numbers, is refused when armlet loads it. "
            "There is no safety layer in the policy.",
        ]
    )


def _measured(card: Card) -> str:
    results = card.results
    if results is None:
        return "## Results\n\nNo evaluation was published with it."
    rows = [results.teacher]
    if results.student is not results.teacher:
        rows.append(results.student)
    lines = [f"## Results on {results.benchmark or 'its world'}", "", *main_lines(rows)]
    if results.pair is not None:
        lines += ["", sentence(results.pair)]
    lines += [
        "",
        "Policies met the same worlds; intervals are Wilson's, pairs are tested by McNemar's test. "
        "The whole report: [evaluation/report.json](evaluation/report.json).",
    ]
    return "\n".join(lines)


def _made(card: Card) -> str:
    lines = []
    for what in ("data", "teacher"):
        value = card.contents.provenance.get("question", {}).get(what)
        if isinstance(value, str):
            lines.append(f"- fingerprint of the {what}: `{value}`")
    return "\n".join(["## Made from", "", *lines]) if lines else ""
