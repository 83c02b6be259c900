"""ACT from LeRobot's folder: the numbers that LeRobot computed, what each mistake would do to them,
the layers, and files that will not do."""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.act import batch_of, compare
from goldens.lerobot_kinds import Fixture
from pretrained.seeded import GOLDEN, checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet.layers import detr, resnet
from armlet.policies.building import rebuild
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.pretrained import act, act_network, kinds, lerobot_body
from armlet.policies.pretrained.act_network import ACT, Sizes
from armlet.policies.pretrained.files import Header, Tensors, match
from armlet.policies.pretrained.lerobot import Folder
from armlet.policies.pretrained.said import read_said
from armlet.policies.routed import Routed, Routing
from armlet.policies.students import FirstK, LayerDrop
from armlet.robot.ensemble import Exponential
from armlet.robot.normalise import Normaliser

VARIANTS = ("plain", "rare")
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("act")
    return {name: checkpoint("act", name, root) for name in VARIANTS}


@pytest.fixture(params=VARIANTS)
def fixture(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Fixture:
    return Fixture.open(folders[request.param])


def loaded(fixture: Fixture) -> ACT:
    policy = fixture.load()
    assert isinstance(policy, ACT)
    return policy


def test_every_number_is_lerobots(fixture: Fixture) -> None:
    lines = list(compare(fixture.folder))
    assert len(lines) > 20
    assert not [str(line) for line in lines if not line.holds]


# --- mistakes, each with a line that must fail and by how much at least


def plain_pictures(patch: Patch) -> None:
    patch.setattr(lerobot_body, "normalised", lambda image, statistics: image)


def bright_pictures(patch: Patch) -> None:
    right = lerobot_body.normalised
    patch.setattr(lerobot_body, "normalised", lambda image, of: right(image * 255, of))


def blue_is_red(patch: Patch) -> None:
    right = lerobot_body.normalised
    patch.setattr(lerobot_body, "normalised", lambda image, of: right(image.flip(-3), of))


def plain_state(patch: Patch) -> None:
    def nothing(folder: Folder) -> Normaliser:
        dims = len(right(folder).offset)
        return Normaliser(np.zeros(dims, np.float32), np.ones(dims, np.float32))

    right = lerobot_body.state_of
    patch.setattr(lerobot_body, "state_of", nothing)


def columns_first(patch: Patch) -> None:
    right = detr.map_positions

    def swapped(rows: int, columns: int, dims: int, device: torch.device) -> Tensor:
        return right(rows, columns, dims, device).roll(dims // 2, -1)

    patch.setattr(act_network, "map_positions", swapped)


def positions_in_values(patch: Patch) -> None:
    def attend(self: detr.EncoderLayer, x: Tensor, positions: Tensor, padded: Tensor | None = None):
        asked = x + positions
        return self.self_attn(asked, asked, asked, key_padding_mask=padded)[0]

    patch.setattr(detr.EncoderLayer, "_attend", attend)


def padding_is_read(patch: Patch) -> None:
    right = detr.EncoderLayer.forward
    patch.setattr(
        detr.EncoderLayer, "forward", lambda self, x, where, padded=None: right(self, x, where)
    )


def newest_most(patch: Patch) -> None:
    right = Exponential.weights
    patch.setattr(Exponential, "weights", lambda self, decided: right(self, decided)[::-1])


def no_last_norm(patch: Patch) -> None:
    patch.setattr(
        ACT, "_last_norm", lambda self: torch.nn.LayerNorm(self.width, elementwise_affine=False)
    )


def small_number_of_another(patch: Patch) -> None:
    right = Normaliser.from_statistics.__func__  # type: ignore[attr-defined]

    def larger(cls: type, *arguments: object, **options: object) -> Normaliser:
        return right(cls, *arguments, **{**options, "epsilon": 1e-6})

    patch.setattr(Normaliser, "from_statistics", classmethod(larger))


def eyes_without_norm(patch: Patch) -> None:
    patch.setattr(resnet.FrozenBatchNorm, "forward", lambda self, x: x)


MISTAKES: dict[str, tuple[Callable[[Patch], None], str, str, float]] = {
    "pictures not normalised": (plain_pictures, "plain", "actions_normalised", 1e-2),
    "pictures 0 to 255": (bright_pictures, "plain", "actions_normalised", 1e-2),
    "red and blue exchanged": (blue_is_red, "plain", "actions_normalised", 1e-2),
    "state not normalised": (plain_state, "plain", "actions_normalised", 1e-2),
    "x before y": (columns_first, "plain", "actions_normalised", 1e-2),
    "positions added to values": (positions_in_values, "plain", "hidden.encoder.0", 1e-2),
    "padded actions are read": (padding_is_read, "plain", "train.mu", 1e-3),
    "the newest counts most": (newest_most, "rare", "sequence.actions", 1e-3),
    "another small number": (small_number_of_another, "rare", "constant_moved.pre.", 100),
    "eyes without normalisation": (eyes_without_norm, "plain", "hidden.encoder.in", 1e-2),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(name: str, folders: dict[str, Path], monkeypatch: Patch) -> None:
    spring, variant, wrong, least = MISTAKES[name]
    spring(monkeypatch)
    lines = [line for line in compare(folders[variant]) if line.name.startswith(wrong)]
    assert lines and max(line.error for line in lines) > least


def test_cameras_have_no_order(folders: dict[str, Path]) -> None:
    """Nothing tells them apart, so that their order cannot be tested by answers."""
    fixture = Fixture.open(folders["plain"])
    policy = loaded(fixture)
    batch = policy.prepare(fixture.observations())
    with torch.no_grad():
        right = policy(batch)
        policy.seen = dict(reversed(policy.seen.items()))
        policy.statistics = policy.statistics.flip(0)
        torch.testing.assert_close(policy(batch), right, atol=1e-5, rtol=0)


# --- layers


def test_one_answers_as_many_do(fixture: Fixture) -> None:
    policy = loaded(fixture)
    seen = fixture.observations()
    with torch.no_grad():
        together = policy(policy.prepare(seen))
        for number, each in enumerate(seen):
            alone = policy(policy.prepare([each]))[0]
            torch.testing.assert_close(alone, together[number], atol=1e-5, rtol=0)


def test_what_is_kept_is_what_runs(fixture: Fixture) -> None:
    policy = loaded(fixture)
    batch = policy.prepare(fixture.observations())
    kept = policy.keep_layers((0, 2)).eval()
    assert kept.layer_numbers == (0, 2)
    assert kept.keep_layers((1,)).layer_numbers == (2,)
    with torch.no_grad():
        state = policy.embed(batch)
        for index in (0, 2):
            state = policy.run_layer(index, state)
        passed = policy.run_layers(policy.embed(batch), batch)
        by_hand = policy.decode(dataclasses.replace(passed, state=state), batch)
        assert torch.equal(kept(batch), by_hand)
    for student in (FirstK(2), LayerDrop(1)):
        assert len(student.build(policy, batch).layers) in (1, 2)


def test_a_fresh_network_computes_what_files_hold(fixture: Fixture) -> None:
    """The positions of what reads the actions."""
    policy = loaded(fixture)
    fresh = rebuild(policy.to_json(), policy.body.tokenizer).state_dict()
    said = json.loads((fixture.folder / "weights.json").read_text())["computed"]
    for name, values in said.items():
        torch.testing.assert_close(fresh[act.NAMES.ours(name)], torch.tensor(values))


def test_it_is_saved_and_answers_the_same(fixture: Fixture, tmp_path: Path) -> None:
    policy = loaded(fixture).keep_layers((0, 1)).eval()
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert again.ensemble == policy.ensemble and again.execute == policy.execute
    for seen in fixture.observations():
        assert np.array_equal(again.infer(seen), policy.infer(seen))
    fresh = rebuild(policy.to_json(), policy.body.tokenizer)
    assert fresh.to_json() == policy.to_json()


def test_a_route_computes_in_training_what_it_computes_when_it_acts(fixture: Fixture) -> None:
    policy = loaded(fixture)
    routed = Routing(hidden=8, initial_keep=0.6).build(policy)
    assert isinstance(routed, Routed)
    torch.manual_seed(0)
    for parameter in routed.router.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    batch = batch_of(policy, fixture)
    deployed = routed(batch).detach()
    trained = routed.run_layers(routed.embed(batch), batch)
    assert 0 < trained.gates.mean() < 1
    assert torch.equal(routed.decode(trained, batch), deployed)
    loss = routed.loss(trained, batch)
    assert loss.shape == (2,)
    loss.sum().backward()
    assert all(each.grad is not None for each in routed.router.parameters())
    first = dataclasses.replace(trained, gates=trained.gates[:1])
    assert routed.signals(["condition"], batch, first)["condition"].shape == (2, policy.width)


def test_the_loss_reaches_all_that_is_trained_and_repeats_at_rest(fixture: Fixture) -> None:
    policy = loaded(fixture)
    batch = batch_of(policy, fixture)
    passed = policy.run_layers(policy.embed(batch), batch)
    assert torch.equal(policy.loss(passed, batch), policy.loss(passed, batch))
    # What acts is never told the actions that it is to learn.
    untold = dataclasses.replace(batch, actions=None, actions_valid=None)
    assert torch.equal(policy(batch), policy(untold))
    policy.train()
    passed = policy.run_layers(policy.embed(batch), batch)
    policy.loss(passed, batch).mean().backward()
    assert not [name for name, each in policy.named_parameters() if each.grad is None]
    # What stands past the end of an episode counts for nothing.
    policy.eval()
    actions, valid = batch.targets()
    other = torch.where(valid[..., None], actions, actions + 5)
    changed = dataclasses.replace(batch, actions=other)
    assert torch.equal(policy.loss(passed, changed), policy.loss(passed, batch))


# --- files


def test_in_half_precision_it_answers_about_the_same(fixture: Fixture, tmp_path: Path) -> None:
    said = tmp_path / "policy.toml"
    said.write_text(f'checkpoint = "{fixture.checkpoint}"\nprecision = "bf16"\n')
    half = fixture.load(said)
    policy = loaded(fixture)
    batch = batch_of(policy, fixture)
    with torch.no_grad():
        found = half.run_layers(half.embed(batch), batch)
        right = policy.run_layers(policy.embed(batch), batch)
        told = half.signals(["condition"], batch, found)["condition"]
        expected = policy.signals(["condition"], batch, right)["condition"]
        torch.testing.assert_close(told, expected, atol=0.1, rtol=0.1)
        assert half.decode(found, batch).dtype == half.loss(found, batch).dtype == torch.float32


def test_the_card_says_what_it_is(fixture: Fixture) -> None:
    card = act.describe(read_said(fixture.checkpoint))
    assert (card.kind, card.layers, card.chunk, card.steps) == ("act", 3, 6, 0)
    assert card.cameras == {"top": (40, 48), "image": (32, 32)}
    assert card.parameters == sum(each.numel for each in Folder.read(card.root).tensors.values())
    assert bool(card.remarks) == (fixture.folder.name == "rare")
    assert kinds.is_pretrained(fixture.checkpoint) and kinds.fingerprint(fixture.checkpoint)


def real(**changed: object) -> Sizes:
    """LeRobot's defaults, with two arms' numbers."""
    sizes = Sizes(
        backbone="resnet18",
        backbone_width=64,
        dilated=False,
        width=512,
        heads=8,
        feedforward=3200,
        activation="relu",
        pre_norm=False,
        encoder_layers=4,
        decoder_layers=1,
        vae=True,
        latent=32,
        vae_layers=4,
        dropout=0.1,
        kl_weight=10.0,
        chunk=100,
        execute=100,
        state=6,
        environment=0,
    )
    return dataclasses.replace(sizes, **changed)  # type: ignore[arg-type]


def headers(name: str) -> tuple[dict, Tensors]:
    said = json.loads(gzip.decompress((GOLDEN / name).read_bytes()))
    found = {}
    for key, shape in said["shapes"].items():
        found[key] = Header(tuple(shape), torch.float32, Path(name), key)
    return said, Tensors(found)


def test_names_and_shapes_at_real_size(folders: dict[str, Path]) -> None:
    _, tensors = headers("act/full_keys.json.gz")
    body = loaded(Fixture.open(folders["plain"])).body
    names = tuple(map(str, range(6)))
    ends = (9.0,) * 6
    low = tuple(-x for x in ends)
    spec = dataclasses.replace(body.action_spec, names=names, low=low, high=ends)
    six = Normaliser(np.zeros(6, np.float32), np.ones(6, np.float32))
    body = dataclasses.replace(body, action_spec=spec, state=six, actions=six)
    three = Normaliser(np.zeros(3, np.float32), np.ones(3, np.float32))
    described = {
        "type": "pretrained.act",
        "network": {
            **dataclasses.asdict(real()),
            "cameras": {"a": [480, 640], "b": [480, 640]},
            "pictures": {"a": three.to_json(), "b": three.to_json()},
        },
        **body.to_json(),
    }
    network = rebuild(described, body.tokenizer, empty=True)
    own = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    found = match(own, tensors, act.NAMES)
    assert len(found.matched) == len(tensors) == 234
    assert network.vision_tokens == 2 * 15 * 20
    own["encoder_norm.weight"] = (512,)
    with pytest.raises(ValueError, match=r"missing encoder_norm\.weight"):
        match(own, tensors, act.NAMES)


def changed(fixture: Fixture, root: Path, **entries: object) -> Path:
    """A copy of the checkpoint whose config says something else."""
    folder = root / "checkpoint"
    folder.mkdir()
    for path in fixture.checkpoint.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(said | entries))
    return folder


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"n_obs_steps": 2}, "n_obs_steps is 2, expected 1"),
        ({"n_action_steps": 9}, "9 actions of a chunk are carried out, and it has 6"),
        ({"feedforward_activation": "glu"}, "feedforward_activation is 'glu', expected relu, gelu"),
        ({"vision_backbone": "vit"}, "vision_backbone is 'vit', expected resnet18"),
        ({"n_encoder_layers": 2}, "unexpected model.encoder.layers.2"),
        ({"dim_model": 30}, "tensors differ"),
        ({"pre_norm": True}, "missing encoder_norm.bias"),
        ({"use_peft": True}, "its weights are those of an adapter"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    entries: dict, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    fixture = Fixture.open(folders["plain"])
    folder = changed(fixture, tmp_path, **entries)
    with pytest.raises(ValueError, match=said):
        fixture.load(folder)


def test_statistics_and_tensors_that_will_not_do(folders: dict[str, Path], tmp_path: Path) -> None:
    fixture = Fixture.open(folders["plain"])
    folder = changed(fixture, tmp_path)
    weights = load_file(folder / "model.safetensors")
    file = folder / "model.safetensors"
    file.unlink()
    weights["model.action_head.bias"] = weights["model.action_head.bias"] * float("nan")
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"action_head\.bias holds NaN"):
        fixture.load(folder)
    said = folder / "policy.toml"
    said.write_text("[options]\nsteps = 3\n")
    with pytest.raises(ValueError, match="steps, which has no effect here"):
        fixture.load(folder)
    said.write_text('[cameras]\nleft = "front"\n')
    with pytest.raises(ValueError, match="names left, and the checkpoint looks through top, image"):
        fixture.load(folder)
    weights["model.action_head.bias"] = torch.zeros(3)
    file.unlink()
    save_file(weights, file)
    said.write_text('execute = 2\n[cameras]\ntop = "front"\n')
    policy = fixture.load(folder)
    assert list(policy.view.cameras) == ["front", "image"] and policy.execute == 2
