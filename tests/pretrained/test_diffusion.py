"""Diffusion Policy from LeRobot's folder: the numbers that LeRobot and diffusers computed, what each
mistake would do to them, the layers, and files that will not do."""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.diffusion import batch_of, compare
from goldens.lerobot_kinds import Fixture
from pretrained.seeded import GOLDEN, checkpoint
from safetensors.torch import load_file
from torch import Tensor

from armlet.layers.schedule import Schedule
from armlet.layers.unet import ToldBlock
from armlet.policies.building import rebuild
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.pretrained import diffusion, diffusion_network, kinds, lerobot_body
from armlet.policies.pretrained.diffusion_network import DiffusionPolicy, Eye, Sizes
from armlet.policies.pretrained.files import Header, Tensors, match
from armlet.policies.pretrained.lerobot import Folder
from armlet.policies.pretrained.said import Said, read_said
from armlet.policies.routed import Routed, Routing
from armlet.policies.students import FirstK, LayerDrop
from armlet.robot.normalise import Normaliser

VARIANTS = ("plain", "rare")
LAYERS = {"plain": 7, "rare": 5}
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("diffusion")
    return {name: checkpoint("diffusion", name, root) for name in VARIANTS}


@pytest.fixture(params=VARIANTS)
def fixture(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Fixture:
    return Fixture.open(folders[request.param])


def loaded(fixture: Fixture) -> DiffusionPolicy:
    policy = fixture.load()
    assert isinstance(policy, DiffusionPolicy)
    return policy


def test_every_number_is_lerobots(fixture: Fixture) -> None:
    lines = list(compare(fixture.folder))
    assert len(lines) > 20
    assert not [str(line) for line in lines if not line.holds]


@pytest.mark.parametrize("name", ["ddpm10", "ddim10", "ddim1"])
def test_steps_are_those_of_diffusers(name: str) -> None:
    """From what a network said in each step, the actions that diffusers made of it."""
    golden = load_file(GOLDEN / "diffusion" / "schedules.safetensors")
    steps = int(name[4:])
    kind = name[:4].upper()
    schedule = Schedule(100, "squaredcos_cap_v2", 1e-4, 0.02, "epsilon", 1.0, kind, steps)  # type: ignore[arg-type]
    assert list(schedule.timesteps) == golden[f"{name}.timesteps"].tolist()
    actions = golden["noise"]
    for index, said in enumerate(golden[f"{name}.model_output"]):
        noise = golden["ddpm_step_noise"][index] if index < steps - 1 else None
        actions = schedule.step(said, index, actions, noise)
    torch.testing.assert_close(actions, golden[f"{name}.horizon_normalised"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_a_network_that_knows_finds_the_actions(betas: str, prediction: str, kind: str) -> None:
    """Whatever the curve: who says the noise that is in the sample, or the actions, is led there; and
    without any noise left the level of the last step is nobody's."""
    schedule = Schedule(50, betas, 1e-3, 0.02, prediction, None, kind, 10)  # type: ignore[arg-type]
    assert schedule.kept[0] > schedule.kept[-1] > 0
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(2, 4, 3, generator=generator)
    first = schedule.timesteps[0]
    noise = torch.randn(2, 4, 3, generator=generator)
    sample = schedule.noisy(actions, noise, torch.full((2,), first))
    for index, level in enumerate(schedule.timesteps):
        kept = float(schedule.kept[level])
        said = actions
        if prediction == "epsilon":
            said = (sample - kept**0.5 * actions) / (1 - kept) ** 0.5
        sample = schedule.step(said, index, sample, torch.randn(2, 4, 3, generator=generator))
        if kind == "DDIM" and level:  # as much of the same noise as the next level has
            following = torch.full((2,), schedule.timesteps[index + 1])
            expected = schedule.noisy(actions, noise, following)
            torch.testing.assert_close(sample, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(sample, actions, atol=1e-3, rtol=0)


# --- mistakes, each with a line that must fail and by how much at least


def plain_pictures(patch: Patch) -> None:
    patch.setattr(lerobot_body, "normalised", lambda image, statistics: image)


def blue_is_red(patch: Patch) -> None:
    right = lerobot_body.normalised
    patch.setattr(lerobot_body, "normalised", lambda image, of: right(image.flip(-3), of))


def cameras_exchanged(patch: Patch) -> None:
    right = DiffusionPolicy.see
    patch.setattr(DiffusionPolicy, "see", lambda self, batch: right(self, batch)[::-1])


def plain_state(patch: Patch) -> None:
    def nothing(folder: Folder) -> Normaliser:
        dims = len(right(folder).offset)
        return Normaliser(np.zeros(dims, np.float32), np.ones(dims, np.float32))

    right = lerobot_body.state_of
    patch.setattr(lerobot_body, "state_of", nothing)


def newest_first(patch: Patch) -> None:
    right = DiffusionPolicy.observe

    def reversed_moments(self: DiffusionPolicy, batch: object) -> Tensor:
        return right(self, batch).unflatten(1, (self.history, -1)).flip(1).flatten(1)  # type: ignore[arg-type]

    patch.setattr(DiffusionPolicy, "observe", reversed_moments)


def from_the_first(patch: Patch) -> None:
    def decode(self: DiffusionPolicy, run: object, batch: object) -> Tensor:
        return self.denoise(run)[:, : self.chunk]  # type: ignore[arg-type]

    patch.setattr(DiffusionPolicy, "decode", decode)


def another_schedule(**changes: object) -> Callable[[Patch], None]:
    def spring(patch: Patch) -> None:
        def other(folder: Folder, said: Said) -> Schedule:
            return dataclasses.replace(right(folder, said), **changes)

        right = diffusion.schedule_of
        patch.setattr(diffusion, "schedule_of", other)

    return spring


def no_noise_between(patch: Patch) -> None:
    right = Schedule.step
    patch.setattr(
        Schedule, "step", lambda self, said, index, x, noise: right(self, said, index, x, None)
    )


def top_left(patch: Patch) -> None:
    def cropped(self: Eye, image: Tensor) -> Tensor:
        height, width = self.sizes.crop or image.shape[-2:]
        return image[..., :height, :width]

    patch.setattr(Eye, "cropped", cropped)


def statistics_of_the_batch(patch: Patch) -> None:
    right = Eye.forward

    def forward(self: Eye, image: Tensor) -> Tensor:
        self.backbone.train()
        return right(self, image)

    patch.setattr(Eye, "forward", forward)


def as_many_groups_at_the_end(patch: Patch) -> None:
    patch.setattr(diffusion_network, "LAST_GROUPS", 4)


def unscaled(patch: Patch) -> None:
    def forward(self: ToldBlock, x: Tensor, told: Tensor) -> Tensor:
        shift = self.cond_encoder(told).unsqueeze(-1).chunk(1 + self.scales, 1)[-1]
        return self.conv2(self.conv1(x) + shift) + self.residual_conv(x)

    patch.setattr(ToldBlock, "forward", forward)


MISTAKES: dict[str, tuple[Callable[[Patch], None], str, str, float]] = {
    "pictures not normalised": (plain_pictures, "plain", "global_cond", 1e-3),
    "red and blue exchanged": (blue_is_red, "plain", "global_cond", 1e-3),
    "cameras exchanged": (cameras_exchanged, "plain", "global_cond", 1e-2),
    "state not normalised": (plain_state, "plain", "own.model_output[0]", 1e-3),
    "observations in the reverse order": (newest_first, "plain", "own.model_output[0]", 1e-3),
    "actions cut from 0": (from_the_first, "plain", "own.actions_normalised", 0.5),
    "no clipping": (another_schedule(clip=None), "plain", "own.horizon_normalised", 2.0),
    "linear betas": (another_schedule(betas="linear"), "plain", "own.horizon_normalised", 0.1),
    "epsilon and sample confused": (
        another_schedule(prediction="sample"),
        "plain",
        "own.horizon_normalised",
        0.5,
    ),
    "no noise between the steps": (no_noise_between, "plain", "own.horizon_normalised", 0.1),
    "DDIM's steps": (another_schedule(kind="DDIM"), "plain", "own.horizon_normalised", 0.1),
    "cropped top left": (top_left, "rare", "global_cond", 1e-3),
    "statistics of the batch": (statistics_of_the_batch, "plain", "global_cond", 1e-3),
    "groups of the last as of the others": (
        as_many_groups_at_the_end,
        "plain",
        "own.model_output[0]",
        1e-2,
    ),
    "told without a scale": (unscaled, "plain", "hidden.first_step.down.0", 1e-2),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(name: str, folders: dict[str, Path], monkeypatch: Patch) -> None:
    spring, variant, wrong, least = MISTAKES[name]
    spring(monkeypatch)
    lines = [line for line in compare(folders[variant]) if line.name.startswith(wrong)]
    assert lines and max(line.error for line in lines) > least


# --- layers


def test_one_answers_as_many_do_and_always_the_same(fixture: Fixture) -> None:
    policy = loaded(fixture)
    seen = fixture.observations()
    again = loaded(fixture)
    with torch.no_grad():
        together = policy(policy.prepare(seen))
        for number, each in enumerate(seen):
            alone = policy(policy.prepare([each]))[0]
            torch.testing.assert_close(alone, together[number], atol=1e-5, rtol=0)
            assert np.array_equal(policy.infer(each), again.infer(each))
    assert together.shape == (2, policy.chunk, 3)


def test_what_is_kept_is_what_runs(fixture: Fixture) -> None:
    policy = loaded(fixture)
    batch = policy.prepare(fixture.observations())
    chosen = (0, 2, 3)
    kept = policy.keep_layers(chosen).eval()
    assert kept.layer_numbers == chosen
    assert kept.keep_layers((1,)).layer_numbers == (2,)
    with torch.no_grad():
        passed = policy.run_layers(policy.embed(batch), batch)
        state = policy.embed(batch)
        for index in range(len(policy.layers)):
            step = policy.run_layer if index in chosen else policy.skip_layer
            state = step(index, state)
        gates = torch.zeros_like(passed.gates)
        gates[:, list(chosen)] = 1
        by_hand = dataclasses.replace(passed, state=state, gates=gates)
        assert torch.equal(kept(batch), policy.decode(by_hand, batch))
    for student in (FirstK(2), LayerDrop(1)):
        assert len(student.build(policy, batch).layers) in (1, 2)


def test_a_skipped_layer_does_not_run(fixture: Fixture, monkeypatch: Patch) -> None:
    """Of one who acts, in none of the steps."""
    policy = loaded(fixture)
    torch.manual_seed(0)  # of the rest of the router
    routed = Routing(hidden=8, initial_keep=0.6).build(policy)
    assert isinstance(routed, Routed)
    torch.nn.init.normal_(
        routed.router.leave.weight, std=3.0, generator=torch.Generator().manual_seed(2)
    )
    ran: list[int] = []
    for index, layer in enumerate(routed.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    decision = routed.decide(fixture.observations()[0])
    assert 0 < sum(decision.gates) < len(routed.layers)
    steps = policy.schedule.steps
    assert [ran.count(index) for index in range(len(routed.layers))] == [
        steps * gate for gate in decision.gates
    ]
    only = policy.keep_layers(tuple(np.flatnonzero(decision.gates).tolist())).eval()
    assert np.array_equal(only.infer(fixture.observations()[0]), decision.actions)


def test_a_route_computes_in_training_what_it_computes_when_it_acts(fixture: Fixture) -> None:
    policy = loaded(fixture)
    routed = Routing(hidden=8, initial_keep=0.6).build(policy)
    assert isinstance(routed, Routed)
    torch.manual_seed(1)
    torch.nn.init.normal_(routed.router.leave.weight, std=3.0)
    batch = batch_of(policy, fixture)
    deployed = routed(batch).detach()
    trained = routed.run_layers(routed.embed(batch), batch, watch=True)
    assert 0 < trained.gates.mean() < 1
    assert torch.equal(routed.decode(trained, batch), deployed)
    loss = routed.loss(trained, batch)
    loss.sum().backward()
    assert routed.router.leave.weight.grad is not None
    # What a probe reads has one width and one length after every layer.
    shapes = {tuple(routed.features(state).hidden.shape) for state in trained.states}
    tokens = policy.vision_tokens + policy.sizes.horizon
    assert shapes == {(2, tokens, policy.width)}
    assert policy.features(trained.start).vision.sum() == 2 * policy.vision_tokens


def test_the_loss_reaches_all_that_is_trained_and_repeats_at_rest(fixture: Fixture) -> None:
    policy = loaded(fixture)
    batch = batch_of(policy, fixture)
    passed = policy.run_layers(policy.embed(batch), batch)
    assert torch.equal(policy.loss(passed, batch), policy.loss(passed, batch))
    actions, valid = batch.targets()
    other = torch.where(valid[..., None], actions, actions + 5)
    changed = dataclasses.replace(batch, actions=other)
    assert torch.equal(policy.loss(passed, changed), policy.loss(passed, batch))
    horizon, _ = policy.horizon(batch)
    last = int(valid[1].sum()) - 1
    assert torch.equal(horizon[1, -1], actions[1, last]), "the last action is repeated"
    policy.train()
    passed = policy.run_layers(policy.embed(batch), batch)
    policy.loss(passed, batch).mean().backward()
    assert not [name for name, each in policy.named_parameters() if each.grad is None]
    alone = dataclasses.replace(batch, earlier_actions=None)
    with pytest.raises(ValueError, match="lacks the actions of the moments before"):
        policy.loss(passed, alone)


def test_pictures_are_cropped_anywhere_only_while_it_is_trained(folders: dict[str, Path]) -> None:
    policy = loaded(Fixture.open(folders["rare"]))
    eye = policy.vision[0]
    assert isinstance(eye, Eye)
    image = torch.arange(36 * 36.0).view(1, 1, 36, 36)
    assert {float(eye.cropped(image)[0, 0, 0, 0]) for _ in range(20)} == {2 * 36 + 2.0}
    eye.train()
    places = {float(eye.cropped(image)[0, 0, 0, 0]) for _ in range(200)}
    assert len(places) == 4 * 5 and max(places) == 3 * 36 + 4
    with pytest.raises(ValueError, match="are cropped to"):
        eye.cropped(image[..., :20])


def test_what_is_frozen_keeps_its_statistics(folders: dict[str, Path]) -> None:
    """While heads are fitted on it, or the rest of it is trained."""
    policy = loaded(Fixture.open(folders["plain"]))
    batch = policy.prepare(Fixture.open(folders["plain"]).observations())
    before = {name: value.clone() for name, value in policy.vision.state_dict().items()}
    expected = policy.observe(batch)
    for frozen in (policy.vision, policy):
        frozen.requires_grad_(False)
        policy.train()
        assert policy.training == (frozen is policy.vision)
        assert torch.equal(policy.observe(batch), expected)
    for name, value in policy.vision.state_dict().items():
        assert torch.equal(value, before[name]), name
    policy.requires_grad_(True)
    policy.train()
    assert not torch.equal(policy.observe(batch), expected)


def test_a_fresh_network_computes_what_files_hold(fixture: Fixture) -> None:
    """Where on a map its numbers lie."""
    policy = loaded(fixture)
    fresh = rebuild(policy.to_json(), policy.body.tokenizer).state_dict()
    said = json.loads((fixture.folder / "weights.json").read_text())["computed"]
    for name, values in said.items():
        ours = diffusion.names_of(policy.sizes).ours(name)
        torch.testing.assert_close(fresh[ours], torch.tensor(values))


def test_it_is_saved_and_answers_the_same(fixture: Fixture, tmp_path: Path) -> None:
    policy = loaded(fixture).keep_layers((0, 3)).eval()
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert again.history == policy.history and again.execute == policy.execute
    for seen in fixture.observations():
        assert np.array_equal(again.infer(seen), policy.infer(seen))
    fresh = rebuild(policy.to_json(), policy.body.tokenizer)
    assert fresh.to_json() == policy.to_json()


def test_costs_are_multiplications(fixture: Fixture) -> None:
    policy = loaded(fixture)
    for layer, cost in zip(policy.layers, policy.layer_costs().tolist(), strict=True):
        weights = sum(each.numel() for each in layer.parameters())
        assert weights < cost < weights * policy.sizes.horizon


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


def test_the_card_says_what_it_is(fixture: Fixture, tmp_path: Path) -> None:
    card = diffusion.describe(read_said(fixture.checkpoint))
    assert (card.kind, card.steps, card.execute) == ("diffusion", 5, 4)
    assert card.layers == len(loaded(fixture).layers) == LAYERS[fixture.folder.name]
    assert card.parameters == sum(each.numel for each in Folder.read(card.root).tensors.values())
    assert kinds.is_pretrained(fixture.checkpoint)
    before = kinds.fingerprint(fixture.checkpoint)
    said = tmp_path / "policy.toml"
    text = f'checkpoint = "{fixture.checkpoint}"\n[options]\n'
    said.write_text(text + 'steps = 2\nscheduler = "DDIM"\nseed = 3\n')
    policy = fixture.load(said)
    assert isinstance(policy, DiffusionPolicy)
    assert (policy.schedule.kind, policy.schedule.steps, policy.seed) == ("DDIM", 2, 3)
    assert not torch.equal(policy.noise, loaded(fixture).noise)
    assert kinds.fingerprint(said) != before
    for wrong, expected in (
        ("steps = 21", "21 denoising steps, expected 1 to 20"),
        ('scheduler = "Euler"', "scheduler is 'Euler', expected 'DDPM' or 'DDIM'"),
        ("guidance = 1.5", "guidance, which has no effect here"),
    ):
        said.write_text(text + wrong)
        with pytest.raises(ValueError, match=expected):
            fixture.load(said)


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
        ({"n_action_steps": 8}, "8 actions are carried out, and the horizon of 8 has 7"),
        ({"horizon": 10}, "horizon is 10, expected a multiple of 4"),
        ({"beta_schedule": "sigmoid"}, "betas of the noise schedule is 'sigmoid', expected linear"),
        ({"prediction_type": "v_prediction"}, "prediction of the noise schedule"),
        ({"use_group_norm": True}, "num_batches_tracked"),
        ({"use_separate_rgb_encoder_per_camera": False}, "tensors differ"),
        ({"crop_shape": [30, 30]}, "pos_grid has shape|pool.pos_grid"),
        ({"down_dims": [8, 16]}, "tensors differ"),
        ({"use_film_scale_modulation": False}, "cond_encoder.1.bias has shape"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    entries: dict, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    fixture = Fixture.open(folders["plain"])
    folder = changed(fixture, tmp_path, **entries)
    with pytest.raises(ValueError, match=said):
        fixture.load(folder)


REAL = Sizes(
    backbone="resnet18",
    backbone_width=64,
    group_norm=False,
    keypoints=32,
    separate=True,
    resize=None,
    crop=None,
    crops_at_random=True,
    moments=2,
    horizon=64,
    execute=32,
    widths=(512, 1024, 2048),
    kernel=5,
    groups=8,
    step_width=128,
    scales=True,
    masks=False,
    state=6,
    environment=0,
)
OLD = dataclasses.replace(
    REAL, group_norm=True, separate=False, crop=(84, 84), horizon=16, execute=8
)


@pytest.mark.parametrize(
    ("name", "sizes", "count"),
    [("full_keys", REAL, 398), ("full_keys_044_defaults", OLD, 213)],
)
def test_names_and_shapes_at_real_size(
    name: str, sizes: Sizes, count: int, folders: dict[str, Path]
) -> None:
    said = json.loads(gzip.decompress((GOLDEN / "diffusion" / f"{name}.json.gz").read_bytes()))
    tensors = {}
    for key, shape in said["shapes"].items():
        tensors[key] = Header(tuple(shape), torch.float32, Path(name), key)
    body = loaded(Fixture.open(folders["plain"])).body
    ends = (9.0,) * 6
    spec = dataclasses.replace(
        body.action_spec, names=tuple("abcdef"), low=tuple(-x for x in ends), high=ends
    )
    six = Normaliser(np.zeros(6, np.float32), np.ones(6, np.float32))
    three = Normaliser(np.zeros(3, np.float32), np.ones(3, np.float32))
    body = dataclasses.replace(body, action_spec=spec, state=six, actions=six)
    schedule = Schedule(100, "squaredcos_cap_v2", 1e-4, 0.02, "epsilon", 1.0, "DDPM", 100)
    described = {
        "type": "pretrained.diffusion",
        "network": {
            **dataclasses.asdict(sizes),
            "schedule": dataclasses.asdict(schedule),
            "seed": 0,
            "cameras": {"a": [480, 640], "b": [480, 640]},
            "pictures": {"a": three.to_json(), "b": three.to_json()},
        },
        **body.to_json(),
    }
    network = rebuild(described, body.tokenizer, empty=True)
    own = {each: tuple(tensor.shape) for each, tensor in network.state_dict().items()}
    found = match(own, Tensors(tensors), diffusion.names_of(sizes))
    assert len(found.matched) == len(tensors) == count
