"""What `armlet inspect` says of a checkpoint of another project: what is warned of, where a
decision's time goes, what it writes; and that it reads no weight for it."""

import json
import os
import re
import resource
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvla_tiny
import pytest
import torch
from every_kind import MAKE
from openvla_tiny import KEY
from torch.utils.flop_counter import FlopCounterMode

from armlet import inspect
from armlet.machine import Machine
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.policies.pretrained import kinds, page
from armlet.policies.pretrained.card import PROMPT_TOKENS, Card, Choice, Work, parts_of
from armlet.policies.pretrained.files import Header, Tensors
from armlet.policies.pretrained.said import Said, read_said
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation

MACHINE = Machine(flops=1e12, bandwidth=1e30, threads=1)  # reading weights costs nothing
PROMPTS_AS_LONG_AS_THEY_ARE = ("openvla_hf", "prismatic_openvla", "openvla_oft", "cogact")


@pytest.fixture(params=list(MAKE))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The `policy.toml` of a checkpoint of each kind."""
    return MAKE[request.param](tmp_path)


def described(place: Path) -> tuple[Said, Card]:
    said, kind = kinds.find(place)
    return said, kind.describe(said)


def card(**changed: object) -> Card:
    """Of nothing that there is."""
    empty = Card(
        kind="act",
        root=Path("somewhere"),
        sizes={},
        cameras={},
        state_dims=0,
        action_dims=2,
        chunk=1,
        execute=1,
        steps=0,
        layers=1,
        parts={"layers": 1000},
        dtypes={"float32": 1},
        files=(),
    )
    return replace(empty, **changed)


# Where time goes


def multiplications(policy: Backbone) -> int:
    """What matrices and convolutions multiply and add for a decision, counted by torch while it
    decides; attention between tokens is not among it."""
    rng = np.random.default_rng(0)
    images = {}
    for name, (height, width) in policy.view.cameras.items():
        images[name] = rng.integers(0, 255, (height, width, 3), np.uint8)
    state = np.zeros(len(policy.body.state.offset), np.float32)
    seen = Observation(images, state, "pick up the cup", np.zeros(policy.dims, np.float32))
    policy.requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # of which nothing is counted
    try:
        with FlopCounterMode(display=False) as counter:
            policy.infer(seen)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for kind, count in counts.items() if "attention" not in str(kind))


def test_work_is_what_is_multiplied(place: Path) -> None:
    _, found = described(place)
    assert set(found.work) <= set(found.parts)
    told = sum(page.seconds(found, MACHINE).values()) * MACHINE.flops
    # Biases and tables of positions count as if they were multiplied. How long a prompt is, is known
    # where it is filled up.
    most = 1.14 if found.kind in PROMPTS_AS_LONG_AS_THEY_ARE else 1.05
    assert 0.98 < told / multiplications(load_policy(place)) < most


def test_what_openvla_multiplies(tmp_path: Path) -> None:
    _, found = described(openvla_tiny.toml(tmp_path, unnorm_key=KEY))
    parts = found.parts
    patches = (224 // 14) ** 2
    eyes = 2 * patches * (parts["image towers"] + parts["projector"])
    # The prompt once, then six words one by one; a word is scored seven times.
    language = 2 * parts["layers"] * (patches + PROMPT_TOKENS + 6) + 2 * parts["word scores"] * 7
    told = sum(page.seconds(found, MACHINE).values()) * MACHINE.flops
    assert told == pytest.approx(eyes + language)


def test_one_token_waits_for_memory() -> None:
    made = card(work={"layers": (Work(500), Work(1, 6))})
    machine = Machine(flops=1e6, bandwidth=1e5, threads=2)
    # 500 tokens: 2 · 1000 · 500 / 1e6; one: its 4000 bytes take longer than its multiplications.
    assert page.seconds(made, machine) == {"layers": pytest.approx(1.0 + 6 * 0.04)}
    assert "500 tokens, then 1 token 6 times" in page.page(made, machine)
    assert "1.24e+03 ms a decision on this machine" in page.page(made, machine)
    assert "decision's time" not in page.page(card(), machine)


def test_parts_are_told_apart_by_what_stands_in_the_middle(tmp_path: Path) -> None:
    headers = {}
    for name, size in (("layers.0.a.w", 2), ("layers.10.b.w", 3), ("norm.w", 5)):
        headers[name] = Header((size,), torch.float32, tmp_path, name)
    rooms = {"layers.*.a.": "a", "layers.": "others"}
    assert parts_of(Tensors(headers), rooms) == {"a": 2, "others": 3, "the rest": 5}


# What is written


def test_what_is_written_is_read_back(place: Path) -> None:
    said, found = described(place)
    written = said.checkpoint / "policy.toml"
    text = page.toml(found, said, checkpoint=".")
    written.write_text(text)
    again = read_said(written)
    assert (again.kind, again.options, again.cameras) == (found.kind, {}, {})
    assert again.checkpoint.samefile(said.checkpoint)
    # As somebody says it who takes all guesses as they are: cameras are known by these names.
    written.write_text(text.replace("\n#? ", "\n"))
    again = read_said(written)
    assert set(again.cameras) == set(found.cameras)
    again.check_cameras(list(found.cameras))
    # And all that is usual, said: the same as nothing.
    usual = {each.option: each.usual for each in found.choices if each.usual is not None}
    lines = []
    for name in usual:
        (line,) = re.findall(rf"^# ({name} = .*)$", text, re.MULTILINE)
        lines.append(line)
    options = tomllib.loads("\n".join(lines))
    for name, value in options.items():
        expected = usual[name]
        assert value == (list(expected) if isinstance(expected, tuple) else expected)
        assert type(value) in (list, type(expected))
    _, kind = kinds.find(place)
    told = kind.describe(replace(said, options={**options, **said.options}))
    assert (told.chunk, told.steps, told.parts, told.work) == (
        found.chunk,
        found.steps,
        found.parts,
        found.work,
    )


def test_a_camera_has_two_names(place: Path) -> None:
    """The checkpoint's, by which `[cameras]` knows it, and the robot's."""
    _, before = described(place)
    lines = [f'"{name}" = "camera {number}"' for number, name in enumerate(before.cameras)]
    place.write_text("\n".join([place.read_text(), "[cameras]", *lines]))
    said, found = described(place)
    assert found.cameras == before.cameras
    text = page.toml(found, said, checkpoint=".").splitlines()
    assert [line.removeprefix("#? ") for line in text if '= "camera ' in line] == lines


def test_options_as_toml_has_them() -> None:
    choices = (
        Choice("steps", (1, 10), 10, "of denoising:\nhow long it takes"),
        Choice("use_ema", (False, True), False, "which"),
        Choice("guidance", (), 1.5, "how far"),
        Choice("missing", ("a", "b"), (), "cameras"),
        Choice("key", ("8", "true"), None, "whose"),
        Choice("heads", (), None, "of which nobody knows"),
    )
    made = card(choices=choices)
    lines = page.toml(made, Said(Path(), Path()), checkpoint=".").splitlines()
    begin = lines.index("[options]")
    assert lines[begin + 1 : lines.index("", begin)] == [
        "# of denoising: how long it takes: 1, 10",
        "# steps = 10",
        "# which: false, true",
        "# use_ema = false",
        "# how far",
        "# guidance = 1.5",
        "# cameras: a, b",
        "# missing = []",
        "# whose: 8, true",
        '#? key = "8"',
        "# of which nobody knows",
        '#? heads = ""',
    ]
    shown = page.page(made)
    assert "use_ema (false unless said otherwise): false, true; which" in shown
    assert "missing (none unless said otherwise)" in shown
    assert "heads (must be said): of which nobody knows" in shown


@pytest.mark.parametrize("name", ["prismatic_openvla", "openvla_oft in words"])
def test_what_nobody_knows_is_refused_until_it_is_said(name: str, tmp_path: Path) -> None:
    said, kind = kinds.find(MAKE[name](tmp_path))
    bare = replace(said, options={}, tokenizer=None)
    empty = {}
    for each in kind.describe(bare).choices:
        if each.usual is None and not each.values:
            empty[each.option] = ""
    assert empty
    for option in empty:
        with pytest.raises(ValueError, match=rf"{option} is ''"):
            kind.load(replace(said, options={**said.options, option: ""}), None)


# What is warned of


def normaliser(low: list[float], high: list[float]) -> Normaliser:
    """−1 … 1 are these."""
    ends = np.array([low, high], np.float32)
    return Normaliser(ends.mean(0), (ends[1] - ends[0]) / 2)


def test_a_dimension_that_never_moved() -> None:
    made = card(action=normaliser([-1, 0.5], [1, 0.5]))
    (line,) = page.warnings(made)
    assert line.startswith("action: dimensions 1 never moved")
    assert line in page.page(made)
    assert page.warnings(card(action=normaliser([-1, 0.499], [1, 0.501]))) == []


@pytest.mark.parametrize("far", [1e5, float("inf"), float("nan")])
def test_a_range_that_no_robot_has(far: float) -> None:
    made = card(state=Normaliser(np.zeros(2, np.float32), np.array([1, far], np.float32)))
    (line,) = page.warnings(made)
    assert line.startswith("state: dimensions 1 have statistics beyond 10000")
    assert page.warnings(card(state=normaliser([-1, -1000], [1, 1000]))) == []


def moves(count: int = 200) -> np.ndarray:
    """Actions (N, 2) of an arm that moves within ±1 of where it is."""
    return np.random.default_rng(0).uniform(-1, 1, (count, 2))


def test_episodes_of_the_same_robot_go_with_it() -> None:
    none = np.zeros((200, 0))
    assert page.against(card(action=normaliser([-1, -1], [1, 1])), moves(), none) == []
    (line,) = page.against(card(action_dims=3), moves(), none)
    assert line == "action: the episodes have 2 numbers and the checkpoint 3"
    (line,) = page.against(card(), moves(), np.zeros((200, 4)))
    assert line == "state: the episodes have 4 numbers and the checkpoint 0"


def test_episodes_of_another_unit() -> None:
    none = np.zeros((200, 0))
    radians = card(action=normaliser([0.5, -1], [1.5, 1]))
    degrees = np.rad2deg(moves() * 0.5 + 1)
    (line,) = page.against(radians, degrees, none)
    assert "dimensions 0, 1 of the episodes are far" in line and "another unit" in line
    metres = card(action=normaliser([-100, -100], [100, 100]))  # millimetres, as it was taught
    (line,) = page.against(metres, moves(), none)
    assert "under 0.04 of the width" in line and "another unit" in line


def test_moves_where_it_has_places() -> None:
    none = np.zeros((200, 0))
    places = card(action=normaliser([280, 80], [320, 120]))
    found = page.against(places, moves(), none)
    assert "dimensions 0 of the episodes are far" in found[0]
    assert all("moves where it has places" in line for line in found)


# What is read


def test_no_weight_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Tensors.read

    def guarded(self: Tensors, name: str) -> torch.Tensor:
        """Statistics of LeRobot's are tensors, too, in files of their own."""
        assert "processor" in self[name].file.name, f"{name} is read"
        return read(self, name)

    monkeypatch.setattr(Tensors, "read", guarded)
    for part in (place, read_said(place).checkpoint):
        assert kinds.is_pretrained(part)
    text = inspect.main(str(place))
    assert "a checkpoint of kind" in text and " ms a decision on this machine" in text


NAMES_OF_TYPES = {"torch.bfloat16": "BF16", "torch.float32": "F32"}


def write_empty(path: Path, tensors: Tensors) -> None:
    """A safetensors file of these names and shapes whose numbers take no place on the disk."""
    entries = {}
    end = 0
    for name, header in tensors.items():
        begin = end
        end += header.nbytes
        entries[name] = {
            "dtype": NAMES_OF_TYPES[str(header.dtype)],
            "shape": list(header.shape),
            "data_offsets": [begin, end],
        }
    content = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
    os.truncate(path, 8 + len(content) + end)


def test_fifteen_gigabytes_are_looked_at_in_a_moment(tmp_path: Path) -> None:
    """openvla-7b by its names and shapes."""
    folder = openvla_tiny.copied(tmp_path / "c")
    for path in folder.glob("model*"):
        path.unlink()
    whole = openvla_tiny.real_size(openvla_tiny.FIXTURE.parent / "full_keys.txt")
    write_empty(folder / "model.safetensors", whole)
    assert (folder / "model.safetensors").stat().st_size > 15e9
    llama = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "pad_token_id": 32000,
        "vocab_size": 32064,
    }
    openvla_tiny.change(folder / "config.json", text_config=llama, pad_token_id=32000)
    kinds.find(folder)  # what must be imported is
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()  # whatever else the machine does
    assert kinds.is_pretrained(folder)
    said, kind = kinds.find(folder)
    found = kind.describe(said)
    assert time.process_time() - begun < 2
    text = inspect.main(str(folder))
    # In kB; what the machine's speed is measured with has 67 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert found.layers == 32 and sum(whole[name].numel for name in found.unused) < 5e7
    assert "7.5 B parameters" in text and "15.1 GB in" in text
    # 2 · 6.48 B · 286 tokens of the layers are most of it.
    told = sum(page.seconds(found, MACHINE).values()) * MACHINE.flops
    assert 3.7e12 < 2 * found.parts["layers"] * 286 < told < 4.5e12


# The command


def test_what_is_said_of_the_file_that_is_written(tmp_path: Path) -> None:
    folder = openvla_tiny.copied(tmp_path / "c")
    text = inspect.main(str(folder), out=tmp_path / "said")
    file = tmp_path / "said" / "policy.toml"
    assert f"{file}: its lines behind #? are guesses (2), for somebody who knows the policy" in text
    assert text.endswith(f"--teacher {file}") and not (folder / "policy.toml").exists()
    assert read_said(file).checkpoint == folder
    file.write_text(file.read_text().replace("# execute", "execute"))
    assert f"{file}: it is there already and was not written" in inspect.main(
        str(folder), out=tmp_path / "said"
    )
    with pytest.raises(ValueError, match=r"--out would have no effect.*is a policy\.toml already"):
        inspect.main(str(file), out=tmp_path)


def test_a_file_in_which_nothing_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    assert inspect._write_description(path, "a = 1\n", "all of it") == f"{path}: all of it"


@pytest.mark.parametrize("place", ["ws://box:8000", "ws:/box:8000", "wss://box"])
def test_a_server_is_not_inspected(place: str) -> None:
    with pytest.raises(ValueError, match=r"wss?://box:\d+: a server is not inspected"):
        inspect.main(place)


def test_a_folder_that_is_said_to_be_a_policy(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    with pytest.raises(ValueError, match=r"is no policy: .*leave out --policy for a data set"):
        inspect.main(str(tmp_path), policy=True)
