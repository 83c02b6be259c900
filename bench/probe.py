"""What the heads that read every layer lose by their narrow graph: probe error on tabletop, beside
a full-width GATConv and no graph.

    python bench/probe.py [--out docs/machinery/probe.json]      needs torch_geometric (make bench
    installs it) and collected episodes

Heads on the frozen teacher, the same batches in the same order, each at several seeds: `ours`, as
the recipes have them; `geometric`, with nodes as wide as the backbone, whose messages are those of
PyTorch Geometric's GATConv over the graph of the eight highest affinities, its edge weights given
as edge features, pooled once as published, and pooled as ours are; `no graph`, ours pooled at once.
Reported is the mean squared error of the action on episodes that no head has seen, over the layers,
in units of normalised actions.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy import stats
from torch import Tensor, nn

from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import draw, load_frames
from armlet.data.pictures import Pictures
from armlet.layers.graph import Edges, ProbeHeads
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Policy
from armlet.progress import Progress
from armlet.recipe import Probe
from armlet.recipes.bases import PROBE
from armlet.training import losses
from armlet.training.supervision import make_heads
from armlet.training.trainer import make_batches

KINDS = ("ours", "geometric, pooled once", "geometric", "no graph")


@dataclasses.dataclass
class Arguments:
    episodes: Path = Path("out/tabletop/episodes")
    teacher: Path = Path("checkpoints/tabletop-teacher")
    out: Path = Path("docs/machinery/probe.json")
    steps: int = 300
    batch: int = 16
    seeds: int = 3
    held_out: int = 2000  # frames, of the last tenth of the episodes
    learning_rate: float = 1e-3


class Geometric(nn.Module):
    """`layers.graph.GraphAttention` by torch_geometric: a GATConv a layer, four heads averaged,
    edge weights as its edge features."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv

        self.convolutions = nn.ModuleList(
            GATConv(width, width, heads=heads, concat=False, edge_dim=1, add_self_loops=False)
            for _ in range(layers)
        )

    def forward(
        self, nodes: Tensor, edges: Edges, affinity: Tensor, pick: Tensor | None = None
    ) -> Tensor:
        layers, rows, _ = nodes.shape
        kept = affinity.shape[-1]
        assert pick is None and bool(
            torch.isfinite(affinity).all()
        )  # every sample has more real tokens than neighbours
        receiver = torch.arange(rows).repeat_interleave(kept)
        weight = affinity.softmax(dim=-1).flatten(1)[..., None]  # (l, m * e, 1)
        out = []
        for layer, convolve in enumerate(self.convolutions):
            sender = edges.sender.view(layers, rows, kept)[layer].flatten() - layer * rows
            out.append(convolve(nodes[layer], torch.stack([sender, receiver]), weight[layer]))
        return torch.stack(out)


def make(kind: str, teacher: Policy) -> ProbeHeads:
    """Heads as the recipes have them, but for what the kind says."""
    probe: Probe = PROBE
    if kind == "no graph":
        probe = dataclasses.replace(PROBE, graph_layers=0)
    if kind.startswith("geometric"):
        queries = 1 if kind == "geometric, pooled once" else PROBE.queries
        probe = dataclasses.replace(PROBE, graph_width=teacher.width, queries=queries)
    heads = make_heads(teacher, probe)
    if kind.startswith("geometric"):
        layers = len(teacher.layers)
        heads.semantic.attention = nn.ModuleList(
            Geometric(layers, teacher.width, probe.heads) for _ in range(probe.graph_layers)
        )
    return heads


def main(arguments: Arguments) -> None:
    teacher = load_policy(arguments.teacher)
    frames = load_frames(EpisodeDataset(arguments.episodes), teacher.view, Pictures())
    batches = make_batches(teacher, frames)
    first = int(
        frames.starts[len(frames.starts) * 9 // 10]
    )  # the last tenth of the episodes is held out
    held_out = np.linspace(first, len(batches) - 1, arguments.held_out).astype(np.int64)
    layers = len(teacher.layers)

    def see(rows: np.ndarray) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        batch = batches.batch(rows)
        expert, valid = batch.targets()
        with torch.no_grad():
            run = teacher.run_layers(teacher.embed(batch), batch, watch=True)
        layers = [teacher.features(state) for state in run.states]
        return [layer.hidden for layer in layers], layers[0].mask, expert, valid

    kinds = list(KINDS)
    errors: dict[str, list[float]] = {kind: [] for kind in kinds}
    per_layer: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    progress = Progress("probe heads", total=arguments.seeds * arguments.steps)
    parameters = {}
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        heads = {kind: make(kind, teacher) for kind in kinds}
        parameters = {
            kind: sum(p.numel() for p in head.parameters()) // layers
            for kind, head in heads.items()
        }
        optimisers = {
            kind: torch.optim.AdamW(head.parameters(), lr=arguments.learning_rate)
            for kind, head in heads.items()
        }
        for step in range(arguments.steps):
            inputs, mask, expert, valid = see(draw(first, arguments.batch, step, seed))
            factor = min(1.0, (step + 1) / 50) * max(
                0.02, 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
            )
            for kind, head in heads.items():
                _, actions = head(inputs, mask)
                loss = torch.stack(
                    [losses.action_mse(said, expert, valid) for said in actions.unbind(1)]
                ).mean()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimisers[kind].param_groups[0]["lr"] = arguments.learning_rate * factor
                optimisers[kind].step()
                optimisers[kind].zero_grad(set_to_none=True)
            progress.advance()
        found: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        for rows in np.array_split(held_out, max(1, len(held_out) // 64)):
            inputs, mask, expert, valid = see(rows)
            with torch.no_grad():
                for kind, head in heads.items():
                    _, actions = head(inputs, mask)
                    found[kind].append(
                        torch.stack(
                            [losses.action_mse(a, expert, valid) for a in actions.unbind(1)], dim=1
                        )
                    )
        for kind in kinds:
            by_layer = torch.cat(found[kind]).mean(dim=0)
            errors[kind].append(float(by_layer.mean()))
            per_layer[kind].append([round(float(value), 5) for value in by_layer])
    progress.close()
    result = {
        "steps": arguments.steps,
        "batch": arguments.batch,
        "held_out_frames": len(held_out),
        "parameters_a_layer": parameters,
        "error": {kind: float(np.mean(values)) for kind, values in errors.items()},
        "each": errors,
        "per_layer": {
            kind: np.mean(values, axis=0).round(5).tolist() for kind, values in per_layer.items()
        },
        "differences": {
            f"ours - {kind}": difference(errors["ours"], errors[kind]) for kind in kinds[1:]
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def difference(ours: list[float], theirs: list[float]) -> dict[str, float | list[float]]:
    """The mean difference over seeds and its 95 % interval (Student's t, paired by seed)."""
    delta = np.subtract(ours, theirs)
    mean = float(delta.mean())
    if len(delta) < 2:
        return {"mean": mean}
    half = float(stats.t.ppf(0.975, len(delta) - 1) * delta.std(ddof=1) / math.sqrt(len(delta)))
    return {"mean": mean, "interval": [mean - half, mean + half]}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
