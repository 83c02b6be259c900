"""CogACT's run folders: from words and patches to the chunk against what the original answered, the
traps, a checkpoint of real size by its names, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cogact_run import GOLDEN, NAME, Modules, averaged, modules, said_of, say, write_run
from PIL import Image
from torch import Tensor

from armlet.policies.building import rebuild
from armlet.policies.checkpoint import load_policy, policy_fingerprint, save_policy
from armlet.policies.contract import Backbone
from armlet.policies.pretrained import cogact, kinds
from armlet.policies.pretrained.cogact_network import GRIPPER, CogACT
from armlet.policies.pretrained.files import Header, Tensors, match
from armlet.policies.pretrained.openvla_folders import RunFolder
from armlet.policies.routed import Routed, Routing
from armlet.policies.students import FirstK
from armlet.robot.observation import Observation
from armlet.robot.outputs import decided
from armlet.robot.reading.llama import EMPTY, PROMPT, LlamaPrompt
from armlet.training.learner import Learner
from armlet.types import Batch

INSTRUCTION = "pick up the black bowl"
FEATURE = 1e-4
ACTION = 5e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "arrays.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("cogact") / "run")


def policy_of(run: Path, options: str = "") -> CogACT:
    policy = kinds.load(say(run, f'unnorm_key = "bridge_orig"\n{options}'))
    assert isinstance(policy, CogACT)
    return policy


def seen(instruction: str = INSTRUCTION, picture: np.ndarray | None = None) -> Observation:
    if picture is None:
        picture = np.asarray(Image.open(GOLDEN / "case0.png").convert("RGB"))
    nothing = np.zeros(7, np.float32)
    return Observation({"image": picture}, np.zeros(0, np.float32), instruction, nothing)


def told(policy: CogACT, golden: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """The cognition feature (d,) and the sample (k, a) of the golden patches and noise."""
    patches = torch.from_numpy(golden["case0__projected_patches"])[None]
    policy.pictures = lambda batch, between=None: patches  # type: ignore[method-assign]
    policy.head.noise[0] = torch.from_numpy(golden["case0__noise"])[0]
    batch = policy.prepare([seen()])
    with torch.no_grad():
        passed = policy.run_layers(policy.embed(batch), batch)
        return policy.signals(["condition"], batch, passed)["condition"][0], policy.decode(
            passed, batch
        )[0]


def furthest(found: Tensor | np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max())


# --- against the original


def test_words_and_pixels(run: Path, golden: dict[str, np.ndarray]) -> None:
    policy = policy_of(run)
    batch = policy.prepare([seen()])
    np.testing.assert_array_equal(batch.text, golden["case0__input_ids"])
    pixels = policy.vision.pixels(batch.images["image"])
    for name, values in zip(("dino", "siglip"), pixels, strict=True):
        expected = golden[f"case0__pixel_values_{name}_every16th"]
        assert furthest(values[0, :, ::16, ::16], expected) < 1e-5
    # Constants rounded to bf16, as folders of transformers have them, are another policy's.
    policy.vision.means = policy.vision.means.bfloat16().float()
    policy.vision.stds = policy.vision.stds.bfloat16().float()
    rounded = policy.vision.pixels(batch.images["image"])[0][0, :, ::16, ::16]
    assert furthest(rounded, golden["case0__pixel_values_dino_every16th"]) > 1e-3


def test_from_patches_to_the_chunk(run: Path, golden: dict[str, np.ndarray]) -> None:
    policy = policy_of(run)
    feature, raw = told(policy, golden)
    assert furthest(feature, golden["case0__cognition"]) < FEATURE
    assert furthest(raw, golden["case0__raw_sample"]) < ACTION
    assert furthest(decided(raw.numpy(), GRIPPER), golden["case0__normalized_action"]) < ACTION
    assert furthest(policy.infer(seen()), golden["case0__action"]) < ACTION
    plain = policy_of(run, "guidance = 1.0")
    told(plain, golden)
    assert furthest(plain.infer(seen()), golden["case0__action_cfg1"]) < ACTION
    fewer = policy_of(run, "steps = 5")
    told(fewer, golden)
    assert furthest(fewer.infer(seen()), golden["case0__action_ddim5"]) < ACTION


@pytest.mark.parametrize(
    ("options", "size"), [("rms_norm_eps = 1e-6", 2.7e-2), ("rms_norm_eps = 1e-5", 0.0)]
)
def test_trap_of_eps(run: Path, golden: dict[str, np.ndarray], options: str, size: float) -> None:
    feature, _ = told(policy_of(run, options), golden)
    assert furthest(feature, golden["case0__cognition"]) == pytest.approx(size, rel=0.06, abs=1e-5)


def test_trap_of_the_end_token(
    run: Path, golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(run)
    whole = LlamaPrompt.encode
    monkeypatch.setattr(LlamaPrompt, "encode", lambda self, text: whole(self, text)[:-1])
    feature, raw = told(policy, golden)
    assert furthest(feature, golden["case0__cognition"]) == pytest.approx(1.9, rel=0.06)
    assert furthest(raw, golden["case0__raw_sample"]) == pytest.approx(2.2e-1, rel=0.06)


def test_both_last_tokens_are_always_there(run: Path) -> None:
    words = policy_of(run).inputs.words
    assert isinstance(words, LlamaPrompt)
    empty = words.tokenizer.token_to_id(EMPTY)
    for text in ("go", "go ", "Put the RED mug on the plate"):
        assert words.encode(text)[-2:] == [empty, 2]
        plain = words.tokenizer.encode(PROMPT.format(text.lower())).ids
        assert words.encode(text)[:-2] == plain


def test_trap_of_averaged_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", change=averaged)
    plain = policy_of(folder)
    assert "averaged weights" in capfd.readouterr().err
    told_so = policy_of(folder, "use_ema = false")
    other = policy_of(folder, "use_ema = true")
    assert not capfd.readouterr().err
    assert torch.equal(
        plain.head.net.x_embedder.linear.weight, told_so.head.net.x_embedder.linear.weight
    )
    torch.testing.assert_close(
        other.head.net.x_embedder.linear.weight, 0.9 * plain.head.net.x_embedder.linear.weight
    )
    card = cogact.describe(said_of(folder))
    assert [choice.usual for choice in card.choices if choice.option == "use_ema"] == [False]
    assert any("averaged" in line for line in card.remarks)
    assert policy_fingerprint(say(folder)) != policy_fingerprint(say(folder, "use_ema = true"))


# --- what is decided


def test_gripper_and_clip() -> None:
    sampled = np.zeros((3, 7), np.float32)
    sampled[:, 0] = (-1.5, 0.3, 2.0)
    sampled[:, 6] = (0.49, 0.5, 1.7)
    found = decided(sampled, GRIPPER)
    np.testing.assert_array_equal(found[:, 0], np.float32([-1, 0.3, 1]))
    np.testing.assert_array_equal(found[:, 6], [0, 1, 1])
    assert sampled[2, 6] == np.float32(1.7), "what was sampled stays"
    sampled[0, 6] = np.nan
    assert np.isnan(decided(sampled, GRIPPER)[0, 6])


def test_statistics_of_each_data_set(run: Path) -> None:
    every = json.loads((GOLDEN / "dataset_statistics.json").read_text())
    assert len(every) == 2
    for key, found in every.items():
        policy = kinds.load(say(run, f'unnorm_key = "{key}"'))
        sampled = np.linspace(-1, 1, 7, dtype=np.float32)[None]
        low, high = np.array(found["action"]["q01"]), np.array(found["action"]["q99"])
        expected = 0.5 * (sampled[0] + 1) * (high - low) + low
        expected[6] = 1.0
        np.testing.assert_allclose(policy.denormalise(sampled)[0], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"(?s)2 data sets.*unnorm_key.*bridge_orig"):
        kinds.load(say(run, ""))
    with pytest.raises(ValueError, match="did you mean 'bridge_orig'"):
        kinds.load(say(run, 'unnorm_key = "bridge"'))


def test_a_batch_answers_as_each_alone(run: Path) -> None:
    policy = policy_of(run)
    rng = np.random.default_rng(0)
    looks = []
    for text in ("go", "put the red mug on the plate", "open"):
        looks.append(seen(text, rng.integers(0, 255, (40, 60, 3), np.uint8)))
    with torch.no_grad():
        together = policy(policy.prepare(looks))
        for row, look in enumerate(looks):
            alone = policy(policy.prepare([look]))[0]
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


# --- students


def batch_of(policy: Backbone, rows: int = 3) -> Batch:
    rng = np.random.default_rng(1)
    looks = []
    for number in range(rows):
        picture = rng.integers(0, 255, (30, 30, 3), np.uint8)
        looks.append(seen(f"go to {'the red dot ' * number}", picture))
    batch = policy.prepare(looks)
    actions = torch.rand(rows, 16, 7) * 2 - 1
    batch_fields = {**vars(batch), "actions": actions, "actions_valid": torch.ones(rows, 16).bool()}
    return Batch(**batch_fields)


def test_cut_and_routed_students_are_saved_and_answer_to_the_bit(run: Path, tmp_path: Path) -> None:
    teacher = policy_of(run, "guidance = 2.0\nseed = 3")
    routed = Routing(budget=0.5, initial_keep=0.5).build(teacher).eval()
    for number, student in enumerate((teacher, FirstK(1).build(teacher), routed)):
        save_policy(student, tmp_path / str(number))
        again = load_policy(tmp_path / str(number))
        np.testing.assert_array_equal(again.infer(seen()), student.infer(seen()))
        assert again.robot == student.robot
    assert len(FirstK(1).build(teacher).layers) == 1


def test_training_is_deployment_to_the_bit_and_skipped_layers_do_not_run(run: Path) -> None:
    torch.manual_seed(0)
    policy = Routing(budget=0.5).build(policy_of(run)).eval()
    assert isinstance(policy, Routed)
    torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
    torch.nn.init.zeros_(policy.router.leave.bias)
    routes = set()
    for number in range(4):
        batch = policy.prepare(
            [seen("go " * (number + 1), np.full((9, 9, 3), 60 * number, np.uint8))]
        )
        trained = policy.run_layers(policy.embed(batch), batch)
        with torch.no_grad():
            deployed = policy.run_layers(policy.embed(batch), batch)
            assert torch.equal(policy.decode(trained, batch), policy.decode(deployed, batch))
        routes.add(deployed.plan)
        if 0 in deployed.plan:
            wanted = policy.decode(deployed, batch)
            skipped = policy.layers[deployed.plan.index(0)]
            kept = {name: tensor.clone() for name, tensor in skipped.state_dict().items()}
            with torch.no_grad():
                for parameter in skipped.parameters():
                    parameter.fill_(torch.nan)
                again = policy.run_layers(policy.embed(batch), batch)
                assert torch.equal(policy.decode(again, batch), wanted)
            skipped.load_state_dict(kept)
    assert any(0 in route for route in routes)


def test_every_part_learns(run: Path) -> None:
    policy = policy_of(run).train()
    learner = Learner(policy).train()
    trace = learner(batch_of(policy), ["imitation", "condition", "actions"])
    assert trace["imitation"].shape == (3,) and trace["condition"].shape == (3, 64)
    (trace["imitation"].mean() + trace["actions"].square().mean()).backward()
    for name, parameter in policy.named_parameters():
        if name == "words.weight":  # words that nobody said
            continue
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_in_half_precision_the_action_model_stays_whole(run: Path) -> None:
    policy = kinds.load(say(run, more='precision = "bf16"'))
    assert policy.words.weight.dtype == torch.bfloat16
    assert {each.dtype for each in policy.head.parameters()} == {torch.float32}
    assert policy.rotary.inv_freq.dtype == torch.float32  # the original's bf16 rounds it, too
    near = policy_of(run).infer(seen())
    assert np.abs(policy.infer(seen())[:, :6] - near[:, :6]).max() < 0.1


# --- a checkpoint of real size


def real(action_model: str, *, ema: bool = False) -> Tensors:
    """Headers of a checkpoint of real size, of `["model"]`."""
    headers = {}
    said = json.loads((GOLDEN / "full_keys.json").read_text())
    wanted = ["vision_backbone", "projector", "llm_backbone", f"action_model {action_model}"]
    if ema:
        wanted.append(f"ema_diffusion {action_model}")
    for entry in wanted:
        module = entry.split()[0]
        for name, (shape, count) in said[entry].items():
            for number in range(count):
                whole = f"{module}.{name.replace('.N.', f'.{number}.')}"
                headers[whole] = Header(tuple(shape), torch.float32, Path("real.pt"), whole)
    return Tensors(headers)


@pytest.mark.parametrize("kind", ["DiT-S", "DiT-B", "DiT-L"])
def test_every_name_of_real_size_has_a_place(run: Path, kind: str) -> None:
    tensors = real(kind, ema=kind == "DiT-B")
    assert len(tensors) == {"DiT-S": 1044, "DiT-B": 1202, "DiT-L": 1188}[kind]
    options = cogact.Options()
    folder = RunFolder(Path("."), {"action_model_type": kind}, Path("real.pt"), {})
    vars(folder)["tensors"] = tensors
    head = cogact._head(tensors.part("action_model.net."), options, folder)
    sizes = folder.sizes(32000)
    assert (sizes.llama.heads, sizes.llama.depth, sizes.llama.vocabulary) == (32, 32, 32000)
    assert head["heads"] == {"DiT-S": 4, "DiT-B": 12, "DiT-L": 16}[kind]
    whole = cogact.Run(said_of(run), options, folder, cogact._modules(folder), head)
    tiny = policy_of(run)
    network = {**tiny.to_json()["network"], "sizes": sizes.to_json(), "head": head}
    described = {**tiny.to_json(), "network": network}
    empty = rebuild(described, tiny.body.tokenizer, empty=True)
    own = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    found = match(own, tensors, whole.names)
    assert len(found.matched) == len(own)
    # All that is left out is what nobody reads: the last blocks, norms and pooling of the towers,
    # scores of words, the history that was never told, and averages.
    allowed = ("blocks.23.", "blocks.26.", ".norm.", "attn_pool", "lm_head", "history", "ema_")
    assert all(any(word in name for word in allowed) for name in found.unused)


# --- what is said of one


def test_card(run: Path) -> None:
    card = cogact.describe(said_of(run, ""))
    assert card.kind == "cogact" and card.layers == 2 and card.chunk == 16 and card.steps == 10
    # Scores of words and a history that nobody is told are in the file, and not in the network.
    assert card.parameters == sum(each.numel() for each in policy_of(run).parameters())
    assert {choice.option for choice in card.choices} >= {"unnorm_key", "steps", "guidance"}
    assert card.action is None
    assert cogact.describe(said_of(run)).action is not None
    for name in ("checkpoints", "config.json", "dataset_statistics.json"):
        assert any(name in str(path) for path in card.files)


def test_several_checkpoints(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    later = NAME.replace("000001", "000002")
    found = modules()
    found["action_model"]["net.final_layer.linear.bias"] += 1
    torch.save({"model": found}, folder / "checkpoints" / later)
    with pytest.raises(ValueError, match=r"2 checkpoints.*`weights`"):
        policy_of(folder)
    first, second = (policy_of(folder, f'weights = "{name}"') for name in (NAME, later))
    assert not np.array_equal(first.infer(seen()), second.infer(seen()))
    card = cogact.describe(said_of(folder))
    assert [choice.values for choice in card.choices if choice.option == "weights"] == [
        (NAME, later)
    ]


# --- what is refused


def _without(module: str) -> Callable[[Modules], None]:
    return lambda found: found.pop(module)


def _another(found: Modules) -> None:
    found["proprio_projector"] = {"fc1.weight": torch.zeros(2, 2)}


def _lacking(found: Modules) -> None:
    del found["action_model"]["net.blocks.1.mlp.fc1.bias"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("vision_backbone"), "has no `vision_backbone`.*timm's pretrained"),
        (_without("action_model"), r"has no action_model in \['model'\]"),
        (_another, "proprio_projector.*nothing is known"),
        (_lacking, r"missing head\.net\.blocks\.1\.mlp\.fc1\.bias"),
    ],
)
def test_files_that_are_not_whole(
    tmp_path: Path, change: Callable[[Modules], None], said: str
) -> None:
    folder = write_run(tmp_path / "run", change=change)
    with pytest.raises(ValueError, match=said):
        policy_of(folder)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = folder / "checkpoints" / NAME
    whole = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for content, said in ((whole[:-1000], "cut short"), (pointer, "Git LFS"), (b"", "")):
        path.write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){NAME}.*{said}"):
            policy_of(folder)
    torch.save({"model": Path("x")}, path)  # a class, which would be made by running its code
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        policy_of(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"action_model_type": None}, "action_model_type is None.*DiT-S, DiT-B, DiT-L"),
        ({"future_action_window_size": 7}, "future_action_window_size is 7.*expected 15"),
        ({"past_action_window_size": 1}, "past_action_window_size is 1"),
        ({"vla": {"base_vlm": "prism-siglip-224px+7b"}}, "base_vlm is 'prism-siglip-224px"),
    ],
)
def test_configs_of_something_else(tmp_path: Path, config: dict, said: str) -> None:
    folder = write_run(tmp_path / "run", config=config)
    with pytest.raises(ValueError, match=said):
        policy_of(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("use_ema = true", "use_ema asks for an averaged action model.*has none"),
        ('sampler = "ddpm"\nsteps = 5', "ddpm takes all 100"),
        ("steps = 101", "expected 1 to 100"),
        ("guidance = -1", "guidance is -1"),
        ("dropout = 2", "dropout is 2"),
        ("seed = -1", "seed is -1"),
        ('use_ema = "yes"', "use_ema is 'yes'"),
        ('action_model_type = "DiT-XL"', "action_model_type is 'DiT-XL'"),
        ("layers = 3", "has no effect"),
        ("llm_heads = 7", "cannot have 7 heads"),
    ],
)
def test_options_without_sense(run: Path, options: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){said}"):
        policy_of(run, options)


def test_an_action_model_of_published_size_is_known_by_its_shapes(run: Path) -> None:
    options = cogact.Options()
    path = Path("x.pt")
    assert cogact._type(12, 768, options, {}, path) == "DiT-B"
    assert cogact._type(3, 48, options, {"action_model_type": "DiT-S"}, path) == "DiT-S"
    with pytest.raises(ValueError, match="as DiT-L, and action_model_type says 'DiT-S'"):
        cogact._type(24, 1024, options, {"action_model_type": "DiT-S"}, path)


def test_statistics_of_another_robot(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", statistics={"x": {"action": {"q01": [0.0], "q99": [1.0]}}})
    with pytest.raises(ValueError, match="actions of 1 numbers, and the action model makes 7"):
        kinds.load(say(folder, ""))


def test_more_actions_than_a_chunk_has(run: Path) -> None:
    with pytest.raises(ValueError, match=r"execute is 17.*16"):
        kinds.load(say(run, more="execute = 17"))
    assert kinds.load(say(run, more="execute = 4")).execute == 4


def test_noise_is_by_the_seed_that_is_said(run: Path) -> None:
    first, other = policy_of(run, "seed = 1"), policy_of(run, "seed = 2")
    assert not np.array_equal(first.infer(seen()), other.infer(seen()))
    np.testing.assert_array_equal(first.infer(seen()), policy_of(run, "seed = 1").infer(seen()))


def test_ddpm_answers_repeatably(run: Path) -> None:
    policy = policy_of(run, 'sampler = "ddpm"')
    np.testing.assert_array_equal(policy.infer(seen()), policy.infer(seen()))
    assert len(policy.head.visited) == 100
