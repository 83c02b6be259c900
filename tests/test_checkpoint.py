"""Policies on disk: kept in half precision they are half as large and answer as their rounded
weights do; a folder is one policy,
whoever is killed, reads meanwhile, or mixes files; what is damaged is named."""

import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import killed_everywhere
from safetensors.torch import load_file, save_file
from tiny import TEXTS, identity, make_policy

from armlet.data.files import FullDiskError
from armlet.data.text import train_tokenizer
from armlet.policies.checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    load_policy,
    load_with_fingerprint,
    policy_fingerprint,
    read_provenance,
    read_tensors,
    save_policy,
)
from armlet.policies.contract import Body
from armlet.policies.routed import Routing
from armlet.policies.vla import VLA
from armlet.robot.observation import Observation
from armlet.training.state import load_state, save_state

SHIPPED = Path(__file__).parents[1] / "checkpoints"
FILES = (CONFIG, WEIGHTS, TOKENIZER)


def observe() -> Observation:
    generator = torch.Generator().manual_seed(0)
    images = {
        name: torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator).numpy()
        for name, size in (("scene", 24), ("wrist", 16))
    }
    return Observation(images, torch.zeros(4).numpy(), "touch the red cube", torch.zeros(4).numpy())


def test_half_precision_halves_the_file_and_nothing_else(tmp_path) -> None:
    policy = make_policy()
    save_policy(policy, tmp_path / "whole")
    save_policy(policy, tmp_path / "half", weights="fp16")
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("whole", "half")]
    assert 0.5 * sizes[0] < sizes[1] < 0.55 * sizes[0]
    read = load_policy(tmp_path / "half")
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    policy.load_state_dict(
        {name: tensor.half().float() for name, tensor in policy.state_dict().items()}
    )
    assert (read.infer(observe()) == policy.infer(observe())).all()


def test_what_half_precision_cannot_hold_is_named_and_nothing_is_written(tmp_path) -> None:
    policy = make_policy()
    save_policy(policy, tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] = 1e6
    with pytest.raises(ValueError, match=r"has weights up to 1e\+06, and fp16 holds 65504 at most"):
        save_policy(policy, tmp_path, weights="fp16")
    assert (tmp_path / WEIGHTS).read_bytes() == before


def variant(number: int) -> VLA:
    """Policies of one network that differ in weights, statistics and words, and say in each of them
    which they are."""
    policy = make_policy(depth=2)
    texts = [*TEXTS, *["zig zag"] * number]
    body = policy.body
    statistics = identity(4)
    statistics.offset[:] = number
    own = Body(body.action_spec, statistics, identity(4), train_tokenizer(texts))
    made = VLA(policy.network, policy.cameras, own).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(number)
    return made


VARIANTS = [variant(number) for number in range(3)]
WORDS = [policy.body.tokenizer.to_str(pretty=False) for policy in VARIANTS]


def which(folder: Path) -> int:
    """The number of the variant in a folder, the same in its weights, statistics and words."""
    policy = load_policy(folder)
    number = int(next(policy.parameters()).view(-1)[0])
    assert all((parameter == number).all() for parameter in policy.parameters())
    assert (policy.body.state.offset == number).all()
    assert policy.body.tokenizer.to_str(pretty=False) == WORDS[number]
    return number


def fingerprint_of(policy: VLA, place: Path) -> str:
    """As armlet 0.1 made it, of a folder as it wrote it."""
    save_file(policy.state_dict(), place)
    content = json.dumps(json.loads(json.dumps(policy.to_json())), sort_keys=True).encode()
    content += place.read_bytes() + policy.body.tokenizer.to_str(pretty=False).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def save_as_before(policy: VLA, folder: Path) -> None:
    """As armlet 0.1 did, without a fingerprint."""
    folder.mkdir()
    save_file(policy.state_dict(), folder / WEIGHTS)
    (folder / TOKENIZER).write_text(policy.body.tokenizer.to_str(pretty=False))
    (folder / CONFIG).write_text(
        json.dumps({"armlet": 1, "policy": policy.to_json(), "provenance": {}}, indent=1)
    )


def test_a_fingerprint_is_of_weights_words_and_network_and_of_nothing_else(tmp_path) -> None:
    wanted = [fingerprint_of(policy, tmp_path / "plain") for policy in VARIANTS]
    assert len(set(wanted)) == 3
    for number, policy in enumerate(VARIANTS):
        save_policy(policy, tmp_path / "new", provenance={"recipe": number})
        assert policy_fingerprint(tmp_path / "new") == wanted[number]
        assert load_with_fingerprint(tmp_path / "new")[1] == wanted[number]
        assert json.loads((tmp_path / "new" / CONFIG).read_text())["fingerprint"] == wanted[number]
        save_as_before(policy, tmp_path / f"old-{number}")
        assert (
            policy_fingerprint(tmp_path / f"old-{number}") == wanted[number]
            and load_with_fingerprint(tmp_path / f"old-{number}")[1] == wanted[number]
            and which(tmp_path / f"old-{number}") == number
        )
    before = [(tmp_path / "new" / name).read_bytes() for name in FILES]
    save_policy(VARIANTS[2], tmp_path / "new", provenance={"recipe": 2})
    assert [(tmp_path / "new" / name).read_bytes() for name in FILES] == before, (
        "the same policy is the same bytes"
    )


@pytest.mark.parametrize("name", ["tabletop-teacher", "aed-teacher"])
def test_shipped_policies_keep_their_fingerprints_when_saved_anew(tmp_path, name: str) -> None:
    content = json.dumps(
        json.loads((SHIPPED / name / CONFIG).read_text())["policy"], sort_keys=True
    ).encode()
    for each in (WEIGHTS, TOKENIZER):
        content += (SHIPPED / name / each).read_bytes()
    wanted = hashlib.sha256(content).hexdigest()[:16]
    assert policy_fingerprint(SHIPPED / name) == wanted
    if "float16" not in {
        str(tensor.dtype)[6:] for tensor in load_file(SHIPPED / name / WEIGHTS).values()
    }:
        save_policy(load_policy(SHIPPED / name), tmp_path)
        assert policy_fingerprint(tmp_path) == wanted


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folders as a save may find them: armlet 0.1's, a new one, and one of a save that was killed
    after its commit."""
    place = tmp_path_factory.mktemp("saved")
    (place / "nothing").mkdir()
    save_as_before(VARIANTS[0], place / "old")
    save_policy(VARIANTS[0], place / "new")
    save_policy(VARIANTS[1], place / "one")
    shutil.copytree(place / "new", place / "killed")
    for name in (WEIGHTS, TOKENIZER):
        shutil.copy(place / "one" / name, place / "killed" / f"{name}.next")
    shutil.copy(place / "one" / CONFIG, place / "killed" / CONFIG)
    return place


@pytest.mark.parametrize("before", ["nothing", "old", "new", "killed"])
def test_killed_at_any_moment_a_folder_is_the_old_policy_or_the_new(
    tmp_path, saved, before: str
) -> None:
    folder, seen = tmp_path / "policy", []

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved / before, folder)
        (folder / "README.md").write_text("mine")

    for _ in killed_everywhere(prepare, lambda: save_policy(VARIANTS[2], folder)):
        if before == "nothing" and not (folder / CONFIG).exists():
            with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
                load_policy(folder)
            seen.append(None)
        else:
            seen.append(which(folder))
        assert (folder / "README.md").read_text() == "mine"
        if len(seen) % 4 == 1:  # what is left is no hindrance
            save_policy(VARIANTS[1], folder)
            assert which(folder) == 1 and {
                path.name for path in folder.iterdir() if ".part" not in path.name
            } == {
                *FILES,
                "README.md",
            }
    old = {"nothing": None, "old": 0, "new": 0, "killed": 1}[before]
    assert seen == [old] * seen.count(old) + [2] * seen.count(2) and {old, 2} == set(seen)
    assert {path.name for path in folder.iterdir()} == {*FILES, "README.md"}


def test_who_reads_while_others_save_never_meets_a_mixture(tmp_path) -> None:
    folder, turns = tmp_path / "policy", 25
    save_policy(VARIANTS[0], folder)
    savers = []
    for first in range(2):
        child = os.fork()
        if child == 0:
            try:
                for turn in range(turns):
                    save_policy(VARIANTS[(turn + first) % 3], folder)
                os._exit(0)
            finally:
                os._exit(1)
        savers.append(child)
    seen = {which(folder)}
    while savers:
        seen.add(which(folder))
        ended, code = os.waitpid(-1, os.WNOHANG)
        if ended:
            assert code == 0
            savers.remove(ended)
    assert seen == {0, 1, 2}
    assert {path.name for path in folder.iterdir()} == set(FILES)


@pytest.mark.parametrize("copied", FILES)
@pytest.mark.parametrize("first", ["old", "new"])
@pytest.mark.parametrize("second", ["old", "new"])
def test_mixtures_are_refused_by_name(tmp_path, copied: str, first: str, second: str) -> None:
    for number, age in enumerate((first, second)):
        (save_policy if age == "new" else save_as_before)(VARIANTS[number], tmp_path / str(number))
    shutil.copy(tmp_path / "0" / copied, tmp_path / "1" / copied)
    if (first, second) == ("old", "old") or (copied == TOKENIZER and second == "old"):
        return  # nothing says which belong together
    with pytest.raises(
        ValueError,
        match=rf"{WEIGHTS if copied != TOKENIZER else TOKENIZER} holds .* mixture of two policies",
    ):
        load_policy(tmp_path / "1")
    with pytest.raises(ValueError, match="mixture of two policies"):
        policy_fingerprint(tmp_path / "1")


def test_a_full_disk_leaves_the_policy_that_was_there(tmp_path, monkeypatch) -> None:
    save_policy(VARIANTS[0], tmp_path)

    def full(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("armlet.policies.checkpoint.save_file", full)
    with pytest.raises(
        FullDiskError, match=r"model\.safetensors.* MB are needed: the disk is full"
    ):
        save_policy(VARIANTS[1], tmp_path)
    assert which(tmp_path) == 0 and {path.name for path in tmp_path.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_models_of_others_are_not_overwritten(tmp_path, name: str) -> None:
    (tmp_path / name).write_text("{}" if name == CONFIG else "somebody's")
    with pytest.raises(FileExistsError, match=rf"{name} is there already"):
        save_policy(VARIANTS[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7681592\n"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "what", ["pointer", "cut short", "empty", "garbage", "missing", "folder", "dangling"]
)
def test_what_is_damaged_is_named(tmp_path, name: str, what: str) -> None:
    save_policy(VARIANTS[0], tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what != "missing":
        path.write_bytes(
            {"pointer": POINTER, "cut short": content[:-9], "empty": b"", "garbage": b"\xff\0 no"}[
                what
            ]
        )
    said = {
        "pointer": "git lfs pull",
        "missing": "is missing",
        "folder": "is a folder",
        "dangling": "link to nothing",
    }
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"{name}.*{said.get(what, '')}"
    ) as caught:
        load_policy(tmp_path)
    assert caught.type in (ValueError, FileNotFoundError)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        policy_fingerprint(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"policy": {}},
        {"policy": {"type": "vla"}},
        {"policy": 3},
        {"policy": {"type": "vla", "network": {}}},
    ],
)
def test_a_config_that_lacks_fields_is_named(tmp_path, change: dict) -> None:
    save_policy(VARIANTS[0], tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_policy(tmp_path)


def old_folder(folder: Path, kind: str) -> dict[str, Any]:
    """A policy as armlet 0.1 saved it, without a fingerprint by which edits would be noticed;
    returns its config."""
    policy = make_policy()
    save_policy(Routing(budget=0.5).build(policy) if kind == "routed" else policy, folder)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    del config["fingerprint"], config["tokenizer"]
    (folder / CONFIG).write_text(json.dumps(config))
    load_policy(folder)
    return config


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """Every place of JSON at which something stands: keys and numbers of lists' first items."""
    items = value.items() if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        items = [(0, value[0])]
    for key, item in items:
        yield (*here, key)
        yield from places(item, (*here, key))


@pytest.mark.parametrize("kind", ["vla", "routed"])
def test_what_is_of_another_type_in_a_config_is_refused_wherever_it_stands(
    kind: str, tmp_path: Path
) -> None:
    config = old_folder(tmp_path, kind)
    for place in places(config["policy"], ("policy",)):
        for odd in ({"odd": "odd"}, [["odd"]], "odd", math.nan):
            edited = copy.deepcopy(config)
            inner = edited
            for key in place[:-1]:
                inner = inner[key]
            # A text where one stands may be another name.
            if isinstance(inner[place[-1]], str) and isinstance(odd, str):
                continue
            inner[place[-1]] = odd
            (tmp_path / CONFIG).write_text(json.dumps(edited))
            with pytest.raises(ValueError, match=r"config\.json|does not fit its config"):
                load_policy(tmp_path)


@pytest.mark.parametrize(
    ("kind", "place", "value", "said"),
    [
        ("vla", ("network", "heads"), ..., "VLANetwork lacks heads"),
        ("vla", ("network", "execute"), ..., "VLANetwork lacks execute"),
        ("vla", ("network", "depth"), True, "VLANetwork.depth is True, expected a whole number"),
        ("vla", ("network", "extra"), 1, "unexpected keyword argument 'extra'"),
        ("vla", ("network", "kept_layers"), [7], "kept_layers is .* expected the numbers of its"),
        ("vla", ("network", "kept_layers"), [3, 1], "kept_layers is "),
        ("vla", ("network", "cameras", "scene"), -24, "cameras is .* expected name → side"),
        ("vla", ("extra",), 1, "extra is no entry of a policy of type 'vla'"),
        ("vla", ("type",), "pi7", "policy type 'pi7' is unknown"),
        ("vla", ("type",), ..., "policy type 'None' is unknown"),
        ("vla", ("action_spec", "names"), "abcd", "ActionSpec.names is 'abcd', expected a list"),
        ("vla", ("action_spec", "gripper"), True, "ActionSpec.grippers is"),
        ("vla", ("action_spec", "gripper_open"), "wide", "ActionSpec.gripper_open is 'wide'"),
        ("vla", ("action_spec", "translation_scale"), -1, "moves the hand by -1 m"),
        ("vla", ("state", "scale"), 2.5, "statistics: scale is 2.5, expected a list"),
        ("vla", ("state", "scale", 0), 0, "statistics: scale is .* expected numbers above 0"),
        ("vla", ("actions", "offset", 0), math.inf, "statistics: offset is"),
        ("vla", ("state_names",), "abcd", "state_names is 'abcd', expected a list of names"),
        ("routed", ("routing", "chooser"), "best", "Routing.chooser is 'best', expected 'learned'"),
        ("routed", ("routing", "threshold"), None, "Calibration.threshold is None"),
        ("routed", ("inner", "extra"), 1, "inner.extra is no entry"),
        ("routed", ("inner", "network", "width"), ..., "VLANetwork lacks width"),
    ],
)
def test_an_edit_of_an_old_config_is_refused_in_words(
    kind: str, place: tuple, value: Any, said: str, tmp_path: Path
) -> None:
    config = old_folder(tmp_path, kind)
    inner = config["policy"]
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said) as caught:
        load_policy(tmp_path)
    assert CONFIG in str(caught.value)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ValueError, match="f is a file, expected a folder"):
        load_policy(tmp_path / "f")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_provenance(tmp_path / "nowhere")


def test_a_training_state_is_read_as_it_was_written_or_named(tmp_path) -> None:
    path = tmp_path / "new" / "state.pt"
    state = {
        "step": 3,
        "learner": {"w": torch.arange(5.0)},
        "optimisers": [{"state": {0: {"step": torch.tensor(3.0)}}}],
    }
    save_state(path, state)
    read = load_state(path)
    assert read["step"] == 3 and torch.equal(read["learner"]["w"], torch.arange(5.0))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"PK\x01\x02") + 3] ^= 255
    for bad in (
        content[:-1],
        content[: len(content) // 2],
        content[:10],
        b"",
        b"\x80\x02garbage",
        POINTER,
        bytes(flipped),
    ):
        path.write_bytes(bad)
        with pytest.raises(
            ValueError,
            match=r"state\.pt.*(delete it to train this stage from its start|git lfs pull)",
        ):
            load_state(path)
    with pytest.raises(FileNotFoundError, match=r"state\.pt is missing"):
        load_state(tmp_path / "state.pt")
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_state(path)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_training_state_runs_no_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Runs()}, "state.pt")
    with pytest.raises(ValueError, match="not a whole training state"):
        load_state(Path("state.pt"))
    assert not Path("ran").exists()


def test_tensors_are_read_or_named(tmp_path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "t")
    assert torch.equal(read_tensors(tmp_path / "t", fix="run it again")["a"], torch.ones(3))
    os.truncate(tmp_path / "t", 20)
    with pytest.raises(
        ValueError, match=r"t \(20 bytes\) is no whole safetensors file.*; run it again"
    ):
        read_tensors(tmp_path / "t", fix="run it again")


def test_what_was_changed_after_it_was_saved_is_not_loaded(tmp_path) -> None:
    save_policy(make_policy(), tmp_path)
    weights, config = tmp_path / WEIGHTS, tmp_path / CONFIG
    whole, described = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        ValueError,
        match=f"`policy` in {CONFIG}, or {WEIGHTS}, was changed after the policy was saved",
    ):
        load_policy(tmp_path)
    weights.write_bytes(whole)
    load_policy(tmp_path)
    changed = json.loads(described)
    changed["policy"]["state"]["scale"][0] *= 2
    config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="was changed after the policy was saved"):
        load_policy(tmp_path)
    config.write_text(described.replace('"armlet": 1', '"armlet": 2'))
    with pytest.raises(
        ValueError, match=r"`armlet` is 2, expected 1: another version of armlet wrote it"
    ):
        load_policy(tmp_path)


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used.*expected cpu"):
        load_policy(tmp_path, device=device)
