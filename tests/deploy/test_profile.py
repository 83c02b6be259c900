"""Where the milliseconds of a decision go: the clock shared out against closed forms, operations
against those that are counted elsewhere, and a policy that answers as it does without timers."""

import json
import time

import numpy as np
import pytest
import torch
from strangers import Expert, Writer, make
from test_measure import observations
from tiny import make_policy

from armlet.deploy import profile_page
from armlet.deploy.meter import Meter, Watch
from armlet.deploy.operations import count
from armlet.deploy.profiling import Setting, profile
from armlet.evaluation.measure import compute
from armlet.machine import Machine, Product
from armlet.policies.contract import Backbone, Policy
from armlet.policies.routed import Routed, Routing

SETTING = Setting("place", "fingerprint", "moments", calls=8, threads=1)


def routed() -> Routed:
    policy = Routing(use_previous_action=False).build(make_policy()).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
        policy.router.leave.bias.zero_()
    return policy


def policies() -> dict[str, Backbone]:
    return {
        "ours": make_policy(),
        "routed": routed(),
        "writer": make(Writer),
        "expert": make(Expert),
    }


@pytest.fixture(params=["ours", "routed", "writer", "expert"])
def policy(request: pytest.FixtureRequest) -> Backbone:
    return policies()[request.param]


def test_a_part_owns_what_passes_while_nothing_inside_it_runs() -> None:
    now = 0.0
    meter = Meter(lambda: now)
    meter.enter(("decide", ""))
    for floor, own, inner in (("embed", 2.0, 5.0), ("decode", 1.0, 7.0), ("embed", 4.0, 0.5)):
        now += 10  # of nobody but the decision itself
        meter.enter((floor, ""))
        now += own
        meter.enter((floor, "part"))
        now += inner
        meter.leave()
        meter.leave()
    now += 3
    meter.leave()
    now += 100  # no decision runs
    assert dict(meter.own) == {
        ("decide", ""): 33.0,
        ("embed", ""): 6.0,
        ("embed", "part"): 5.5,
        ("decode", ""): 1.0,
        ("decode", "part"): 7.0,
    }
    assert meter.runs[("embed", "")] == 2 and meter.runs[("decide", "")] == 1


def test_a_part_that_fails_is_closed() -> None:
    meter = Meter(lambda: 0.0)

    def fails() -> None:
        raise ValueError

    meter.enter(("decide", ""))
    with pytest.raises(ValueError):  # noqa: PT011 - its own
        meter.wraps(("embed", ""), fails)()
    assert meter.current == ("decide", "")


def test_a_watched_policy_answers_as_it_does_unwatched_and_is_left_as_it_was(
    policy: Backbone,
) -> None:
    moments = observations(3)
    wanted = [policy.decide(seen) for seen in moments]
    watch = Watch(policy, moments[0])
    for seen, plain in zip(moments, wanted, strict=True):
        found, _ = watch.decide(seen, time.perf_counter)
        assert np.array_equal(found.actions, plain.actions) and found.gates == plain.gates
    for module in (policy, watch.network):
        assert not {"embed", "run_layer", "decode", "prepare"} & set(module.__dict__)
    for module in policy.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_parts_sum_to_the_whole_and_every_floor_has_its_part(policy: Backbone) -> None:
    found = profile(policy, observations(4), SETTING)
    assert abs(found.residual_ms) < 1e-9 * found.timed_ms
    assert {part.layer for part in found.parts if part.kind == "layer"} == set(range(4))
    assert {"pictures", "words", "eyes", "layer", "decode", "out"} <= {p.kind for p in found.parts}
    assert ("router" in {part.kind for part in found.parts}) == isinstance(policy, Routed)
    assert found.of_kind("layer") == pytest.approx(
        sum(part.ms for part in found.parts if part.kind == "layer")
    )


def test_operations_of_the_parts_are_those_of_the_whole(policy: Backbone) -> None:
    moments = observations(3)
    counted = count(Watch(policy, moments[0]), moments)
    total = sum(work.flops for work in counted.works.values())
    expected = sum(compute(policy, [seen])["total"] for seen in moments)
    assert total == pytest.approx(expected)
    # The same operations, counted by another mode from shapes.
    products = 0
    for work in counted.works.values():
        products += sum(each.flops * often for each, often in work.products.items())
    assert products == total


def test_a_layer_reads_its_weights_once() -> None:
    policy = make_policy()
    counted = count(Watch(policy, observations(1)[0]), observations(1))
    for index, layer in enumerate(policy.layers):
        bytes_of = sum(each.nbytes for each in layer.parameters())
        assert counted.works[("layer", str(index))].fetched == bytes_of
    # Of the table of words no more than what is said.
    said = int(policy.prepare(observations(1)).text_mask.sum())
    assert counted.works[("embed", "words")].fetched == said * policy.words.weight.shape[1] * 4


def test_a_routed_policy_is_charged_for_the_layers_that_run() -> None:
    policy = routed()
    moments = observations(8)
    gates = np.array([policy.decide(seen).gates for seen in moments])
    assert 0 < gates.mean() < 1
    counted = count(Watch(policy, moments[0]), moments)
    for index in range(4):
        assert counted.runs[("layer", str(index))] == gates[:, index].sum()


def test_time_is_charged_to_the_part_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    slow = {"layer": policy.layers[2], "eyes": policy.vision["wrist"], "decode": policy.head}
    for kind, module in slow.items():
        plain = module.forward

        def later(*given: object, plain=plain, **named: object) -> object:
            time.sleep(0.05)
            return plain(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(module, "forward", later)
            parts = profile(policy, observations(2), SETTING).parts
        longest = max(parts, key=lambda part: part.ms)
        assert longest.kind == kind and longest.ms > 45
        assert longest.name in ("layer 2", "vision.wrist", "head")


def test_words_are_told_apart_from_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    from armlet.robot.reading import own

    plain = own.encode
    monkeypatch.setattr(
        own, "encode", lambda *given, **named: time.sleep(0.05) or plain(*given, **named)
    )
    found = profile(policy, observations(2), SETTING)
    assert found.of_kind("words") > 45 > found.of_kind("pictures")


def test_what_cannot_be_looked_into_has_its_whole_alone() -> None:
    class Shut(Policy):
        execute = 1

        def __init__(self) -> None:
            self.inner = make_policy()

        @property
        def robot(self):
            return self.inner.robot

        def infer(self, observation):
            return self.inner.infer(observation)

    found = profile(Shut(), observations(2), SETTING)
    assert found.parts == () and found.whole_ms > 0 and found.layers == 0
    assert "Nobody can look into it" in profile_page.table(found)


def test_the_page_the_picture_and_the_file(tmp_path) -> None:
    found = profile(make_policy(), observations(2), SETTING)
    page = profile_page.table(found)
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    told = {row[0].strip(): row for row in rows}
    ours = next(part for part in found.parts if part.name == "layer 3")
    assert float(told["· layer 3"][1]) == pytest.approx(ours.ms, abs=1e-3)
    assert float(told["**sum**"][1]) == pytest.approx(found.timed_ms, abs=1e-3)
    profile_page.draw(found, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes()[:4] == b"\x89PNG"
    said = json.loads(json.dumps(found.to_json()))
    assert said["version"] == 1 and len(said["parts"]) == len(found.parts)


def test_too_few_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="--calls 3: expected at least 4"):
        profile(make_policy(), observations(1), Setting("p", "f", "m", calls=3, threads=1))


def test_a_product_takes_as_long_as_its_operations_at_the_best_speed() -> None:
    """At a large square, where the machine is at its best, the limit by shape is the limit by
    speed."""
    machine = Machine.measured()
    square = Product(768, 768, 768)
    assert square.flops == 2 * 768**3
    by_speed = machine.seconds(square.flops, 0)
    assert 0.3 < machine.product_seconds(square) / by_speed < 3
    assert machine.product_seconds(square) == machine.product_seconds(square), "measured once"
    several = Product(8, 16, 8, count=5)
    assert several.flops == 5 * 2 * 8 * 16 * 8 and machine.product_seconds(several) > 0
