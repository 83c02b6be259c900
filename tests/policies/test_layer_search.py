"""The search of layers, against networks that are really cut, all sets by hand, and a walk backwards
written out."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from strangers import Expert, Writer, make
from tiny import make_frames, make_policy

from armlet.policies import layer_search
from armlet.policies.contract import Backbone
from armlet.policies.layer_search import LayerSearch, Scored, Scores, answers, errors_of, search
from armlet.policies.students import Fresh, Kept, Whole
from armlet.policies.two_tower import TwoTower, TwoTowerNetwork
from armlet.training.trainer import make_batches
from armlet.types import Batch

FRAMES = make_frames()
TOWERS = TwoTowerNetwork(
    width=32,
    heads=2,
    vision_layers=1,
    text_layers=1,
    fusion_layers=4,
    patch=8,
    chunk=3,
    execute=3,
)


def two_towers() -> TwoTower:
    torch.manual_seed(0)
    return TOWERS.build(make_policy().body, {"scene": 24, "wrist": 16}).eval()


NETWORKS = {
    "vla": make_policy,
    "expert": lambda: make(Expert),
    "writer": lambda: make(Writer),
    "two_towers": two_towers,
}


@torch.no_grad()
def sample_of(teacher: Backbone, rows: int = 20) -> Batch:
    batch = make_batches(teacher, FRAMES).batch(np.arange(rows))
    return replace(batch, taught=teacher(batch))


@torch.no_grad()
def by_hand(teacher: Backbone, sample: Batch, kept: tuple[int, ...]) -> float:
    """The network really cut, step by step of each frame."""
    actions = teacher.keep_layers(kept)(sample)
    gaps = []
    for row in range(len(sample)):
        for step in range(teacher.chunk):
            if sample.actions_valid[row, step]:
                gap = actions[row, step] - sample.taught[row, step]
                gaps.append(float(gap.abs().mean()))
    return float(np.mean(gaps))


@pytest.mark.parametrize("kind", NETWORKS)
def test_all_sets_are_tried_and_the_nearest_is_first(kind: str) -> None:
    teacher = NETWORKS[kind]()
    sample = sample_of(teacher)
    assert not sample.actions_valid.all(), "some steps are past the end of their episode"
    expected = {
        each: by_hand(teacher, sample, each) for each in itertools.combinations(range(4), 2)
    }
    found = search(teacher, sample, 2)
    assert (found.scored, found.frames, found.of, found.beam) == (6, 20, 4, None)
    assert [each.layers for each in found.best] == sorted(expected, key=expected.get)
    for each in found.best:
        assert each.error == pytest.approx(expected[each.layers], rel=1e-5)
    student = LayerSearch(2).build(teacher, sample)
    assert student.layer_numbers == min(expected, key=expected.get)


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_a_set_answers_as_the_network_cut_to_it(kind: str) -> None:
    """To the bit, in whatever order the sets come: what they share was run once."""
    teacher = NETWORKS[kind]()
    sample = sample_of(teacher)
    sets = [(0, 1), (0, 1, 3), (0, 2), (3,), (1, 2), (0, 1, 2, 3)]
    for kept, found in zip(sets, answers(teacher, sample, sets), strict=True):
        assert torch.equal(found, teacher.keep_layers(kept)(sample)), kept


def test_what_sets_have_in_common_runs_once(monkeypatch) -> None:
    teacher = make_policy()
    sample = sample_of(teacher, 4)
    ran = []
    run_layer = teacher.run_layer
    monkeypatch.setattr(
        teacher, "run_layer", lambda index, state: ran.append(index) or run_layer(index, state)
    )
    errors_of(teacher, sample, [(0, 1, 2), (0, 1, 3), (0, 2, 3)])
    assert ran == [0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("beam", [1, 2])
def test_many_sets_are_reached_by_leaving_out_one_layer_after_the_other(beam: int) -> None:
    teacher = make_policy(depth=6)
    sample = sample_of(teacher)
    best = [tuple(range(6))]
    tried = 0
    while len(best[0]) > 3:
        candidates = {tuple(i for i in each if i != out) for each in best[:beam] for out in each}
        scores = {each: by_hand(teacher, sample, each) for each in candidates}
        tried += len(scores)
        best = sorted(scores, key=scores.get)
    found = search(teacher, sample, 3, exhaustive=19, beam=beam)  # of 20 sets
    assert [each.layers for each in found.best] == best
    assert (found.scored, found.beam) == (tried, beam)
    assert search(teacher, sample, 3, exhaustive=20).beam is None


def test_frames_are_taken_in_parts_and_padding_counts_nothing(monkeypatch) -> None:
    teacher = make_policy()
    sample = sample_of(teacher)
    sets = list(itertools.combinations(range(4), 2))

    def errors(batch: Batch) -> list[float]:
        return [each.error for each in errors_of(teacher, batch, sets)]

    whole = errors(sample)
    monkeypatch.setattr(layer_search, "ROWS", 7)
    np.testing.assert_allclose(errors(sample), whole, rtol=1e-5)
    # What stands past the end of an episode has no say.
    beyond = torch.where(sample.actions_valid[..., None], sample.taught, 9.0)
    other = replace(sample, taught=beyond)
    np.testing.assert_allclose(errors(other), whole, rtol=1e-5)


def test_the_stored_answers_are_the_ones_compared_with() -> None:
    teacher = make_policy()
    sample = sample_of(teacher)
    target = teacher.keep_layers((1, 3))(sample).detach()
    found = search(teacher, replace(sample, taught=target), 2)
    assert found.best[0].layers == (1, 3) and found.best[0].error < 1e-6
    # Where nobody has stored any, the teacher is asked.
    asked = search(teacher, replace(sample, taught=None), 2)
    assert asked.best == search(teacher, sample, 2).best


def test_a_killed_search_goes_on_and_scores_nothing_twice(tmp_path, monkeypatch) -> None:
    teacher = make_policy()
    sample = sample_of(teacher)
    monkeypatch.setattr(layer_search, "GROUP", 2)
    whole = search(teacher, sample, 2)
    scored = []

    def killed(teacher, sample, sets):
        if len(scored) == 2:
            raise ConnectionAbortedError
        scored.append(sets)
        return errors_of(teacher, sample, sets)

    monkeypatch.setattr(layer_search, "errors_of", killed)
    path = tmp_path / "scores.jsonl"
    with pytest.raises(ConnectionAbortedError):
        search(teacher, sample, 2, scores=Scores(path))
    assert len(path.read_text().splitlines()) == 4
    path.write_text(path.read_text() + '{"layers": [1,')  # the kill cut a line short
    scored.clear()
    assert search(teacher, sample, 2, scores=Scores(path)) == whole
    assert scored == [[(1, 3), (2, 3)]]
    again = search(teacher, sample, 2, scores=Scores(path))
    assert again == whole and len(scored) == 1


def test_a_network_that_falls_apart_is_last(monkeypatch) -> None:
    teacher = make_policy()
    sample = sample_of(teacher)
    decode = teacher.decode

    def broken(run, batch):
        actions = decode(run, batch)
        return actions * float("nan") if run.plan == (1, 1, 0, 0) else actions

    monkeypatch.setattr(teacher, "decode", broken)
    found = search(teacher, sample, 2)
    assert found.best[-1].layers == (0, 1)
    json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_what_was_found_is_a_student_and_a_line_of_json(monkeypatch) -> None:
    teacher = make_policy()
    sample = sample_of(teacher)
    monkeypatch.setattr(layer_search, "SHOWN", 3)
    student, said = LayerSearch(2).choose(teacher, sample)
    assert student == Kept(tuple(said["best"][0]["layers"])) and len(said["best"]) == 3
    assert (said["scored"], said["of"], said["frames"]) == (6, 4, 20)
    fresh = Fresh(LayerSearch(2))
    assert fresh.needs_teacher and len(fresh.build(teacher, sample).layers) == 2


def test_all_layers_are_the_teacher() -> None:
    teacher = make_policy()
    sample = sample_of(teacher)
    found = search(teacher, sample, 4)
    assert found.best[0].layers == (0, 1, 2, 3) and found.best[0].error == 0
    with torch.no_grad():
        assert torch.equal(Whole().build(teacher)(sample), teacher(sample))


def test_what_cannot_be_had_is_refused() -> None:
    teacher = make_policy()
    with pytest.raises(ValueError, match="sample batch"):
        LayerSearch(2).build(teacher)
    with pytest.raises(ValueError, match="9 layers are to be kept, and the teacher has 4"):
        LayerSearch(9).build(teacher, sample_of(teacher))
    with pytest.raises(ValueError, match="beam"):
        LayerSearch(2, beam=0)


def test_a_leads_interval_is_of_episodes() -> None:
    """As many frames in episodes that answer alike say no more than one frame of each would; the
    interval is Student's of the episodes' means where all are as long."""
    rng = np.random.default_rng(0)
    sample = sample_of(make_policy(), 12)
    means = rng.normal(1, 0.3, (3, 6))  # sets by episodes of two frames
    keys = torch.tensor([[row // 2, row % 2] for row in range(12)])
    valid = torch.ones(12, sample.taught.shape[1], dtype=torch.bool)
    sample = replace(sample, keys=keys, actions_valid=valid)
    per_episode = 2 * valid.shape[1]
    sets = [(0,), (1,), (2,)]
    scored = []
    for layers, row in zip(sets, means, strict=True):
        scored.append(Scored(layers, float(row.mean()), tuple(per_episode * row)))
    scored.sort(key=lambda each: each.error)
    leads = layer_search._leads(scored, sample)
    for lead, other in zip(leads, scored[1:], strict=True):
        gaps = (np.array(other.sums) - scored[0].sums) / per_episode
        wanted = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
        assert (lead.low, lead.high) == pytest.approx((wanted.low, wanted.high))
        assert lead.difference == pytest.approx(other.error - scored[0].error)


def test_a_search_says_how_sure_its_first_place_is() -> None:
    teacher = make_policy()
    sample = sample_of(teacher)
    found = search(teacher, sample, 2)
    keys = sample.keys[:, 0].unique()
    assert found.episodes == len(keys) > 1
    assert found.lead.layers == found.best[1].layers
    apart = found.best[1].error - found.best[0].error
    assert found.lead.difference == pytest.approx(apart, abs=1e-6)  # of errors in single precision
    assert found.lead.low < found.lead.difference < found.lead.high
    for each in found.best:
        steps = sample.actions_valid.sum()
        assert sum(each.sums) / float(steps) == pytest.approx(each.error)
    assert 1 <= found.within_noise <= 6
    target = teacher.keep_layers((1, 3))(sample).detach()
    sure = search(teacher, replace(sample, taught=target), 2)
    assert sure.within_noise == 1 and sure.lead.low > 0
    one = replace(sample, keys=torch.zeros_like(sample.keys))
    alone = search(teacher, one, 2)
    assert (alone.episodes, alone.lead, alone.within_noise) == (1, None, None)
    assert set(found.to_json()["best"][0]) == {"layers", "error"}
