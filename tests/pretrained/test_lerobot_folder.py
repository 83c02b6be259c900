"""A policy folder of LeRobot: its processors read as data, every step understood or refused by its
name, and the layout from before 0.4. Formulas are those of LeRobot's normaliser, written out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from armlet.policies.pretrained.lerobot import Folder, Tokens, camera_name

STATE = "observation.state"
BEFORE = "policy_preprocessor.json"
AFTER = "policy_postprocessor.json"
STATISTICS = {
    "mean": [1.0, -2.0],
    "std": [0.5, 4.0],
    "min": [-1.0, 3.0],
    "max": [3.0, 3.0],  # the second never moved
    "q01": [-0.9, -9.0],
    "q99": [2.5, 8.0],
    "q10": [0.0, -7.0],
    "q90": [2.0, 6.0],
}


def statistics(**keys: dict[str, list[float]]) -> dict[str, torch.Tensor]:
    found = {}
    for key, each in keys.items():
        for name, values in each.items():
            found[f"{key.replace('__', '.')}.{name}"] = torch.tensor(values)
    return found


def step(name: str | None, state: str | None = None, **config: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"registry_name": name, "config": config}
    return said if state is None else {**said, "state_file": state}


def write(
    root: Path,
    *,
    mode: str = "MEAN_STD",
    before: list[dict[str, Any]] | None = None,
    after: list[dict[str, Any]] | None = None,
    state: dict[str, list[float]] | None = None,
    action: dict[str, list[float]] | None = None,
    **config: Any,
) -> Path:
    """A folder whose state and actions have two numbers each; `before` and `after` are steps ahead
    of those that normalise."""
    root.mkdir(exist_ok=True)
    norm = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    said = {
        "type": "act",
        "input_features": {
            "observation.images.top": {"type": "VISUAL", "shape": [3, 48, 64]},
            "observation.image": {"type": "VISUAL", "shape": [3, 32, 32]},
            STATE: {"type": "STATE", "shape": [2]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [2]}},
        "normalization_mapping": norm,
    }
    (root / "config.json").write_text(json.dumps(said | config))
    save_file({"model.weight": torch.ones(2)}, root / "model.safetensors")
    features = {**said["input_features"], **said["output_features"]}
    there = statistics(
        observation__state=STATISTICS if state is None else state,
        action=STATISTICS if action is None else action,
    )
    for name, file, steps, what in (
        (BEFORE, "in.safetensors", before or [], "normalizer_processor"),
        (AFTER, "out.safetensors", after or [], "unnormalizer_processor"),
    ):
        save_file(there, root / file)
        own = step(what, file, eps=1e-8, features=features, norm_map=norm)
        (root / name).write_text(json.dumps({"name": "x", "steps": [*steps, own]}))
    return root


def changed(path: Path, change: Any) -> None:
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def refused(
    root: Path, *expected: str, error: type[Exception] = ValueError, ask: Any = None
) -> None:
    def read() -> None:
        folder = Folder.read(root)
        if ask is not None:
            ask(folder)

    with pytest.raises(error) as raised:
        read()
    said = str(raised.value)
    assert "\n" not in said and len(said) < 900, said
    for each in expected:
        assert each in said, said


# What it says


def test_what_it_looks_at_and_what_is_renamed(tmp_path) -> None:
    rename = {"observation.images.front": "observation.images.top", "observation.pos": STATE}
    root = write(tmp_path, before=[step("rename_observations_processor", rename_map=rename)])
    folder = Folder.read(root)
    assert folder.cameras == {"top": (48, 64), "image": (32, 32)}
    assert folder.camera_keys == {"top": "observation.images.top", "image": "observation.image"}
    assert folder.robots_cameras == {"top": "front", "image": "image"}
    assert folder.renamed == rename and folder.kind == "act"
    assert (folder.size(STATE), folder.size("action"), folder.size("observation.x")) == (2, 2, 0)
    assert camera_name("observation.images.arm.left") == "arm.left"
    assert set(folder.tensors) == {"model.weight"}


@pytest.mark.parametrize(
    ("mode", "first", "second"),
    [
        ("MEAN_STD", "mean", "std"),
        ("MIN_MAX", "min", "max"),
        ("QUANTILES", "q01", "q99"),
        ("QUANTILE10", "q10", "q90"),
        ("IDENTITY", None, None),
    ],
)
def test_every_mode_there_and_back(
    mode: str, first: str | None, second: str | None, tmp_path
) -> None:
    """By LeRobot's formulas, which are no inverses of one another: on the way back the small number
    is left out."""
    folder = Folder.read(write(tmp_path, mode=mode))
    values = np.array([[0.3, 3.0], [-7.0, 40.0]], np.float32)  # the second is outside of the data
    there = folder.normaliser(STATE).apply(values)
    back = folder.normaliser("action").invert(values)
    if first is None or second is None:
        assert np.array_equal(there, values) and np.array_equal(back, values)
        return
    low = np.array(STATISTICS[first], np.float32)
    high = np.array(STATISTICS[second], np.float32)
    if mode == "MEAN_STD":
        expected = (values - low) / (high + np.float32(1e-8))
        inverse = values * high + low
    else:
        width = np.where(high == low, np.float32(1e-8), high - low)
        expected = 2 * (values - low) / width - 1
        inverse = (values + 1) * width / 2 + low
    assert np.allclose(there, expected, rtol=1e-6, atol=1e-6)
    assert np.allclose(back, inverse, rtol=1e-6, atol=1e-6)


def test_what_a_step_was_told_to_leave_alone(tmp_path) -> None:
    """Features that it does not know, those that it is not to normalise, and those without
    statistics pass as they are, as in LeRobot."""
    root = write(tmp_path)
    assert Folder.read(root).normaliser(STATE).offset.any()
    changed(
        root / BEFORE, lambda said: said["steps"][0]["config"].update(normalize_observation_keys=[])
    )
    folder = Folder.read(root)
    assert not folder.normaliser(STATE).offset.any() and folder.normaliser("action").offset.any()
    root = write(tmp_path)
    changed(root / BEFORE, lambda said: said["steps"][0]["config"]["features"].pop(STATE))
    assert not Folder.read(root).normaliser(STATE).offset.any()
    root = write(tmp_path, state={})
    assert not Folder.read(root).normaliser(STATE).offset.any()


def test_the_small_number_and_the_modes_are_the_steps_own(tmp_path) -> None:
    """Not the config's, where the two differ."""
    root = write(tmp_path)
    for name in (BEFORE, AFTER):
        changed(root / name, lambda said: said["steps"][0]["config"].update(eps=0.5))
    assert np.allclose(Folder.read(root).normaliser(STATE).scale, [1.0, 4.5])
    changed(
        root / "config.json", lambda said: said["normalization_mapping"].update(STATE="MIN_MAX")
    )
    assert np.allclose(Folder.read(root).normaliser(STATE).scale, [1.0, 4.5])


def test_how_words_are_read(tmp_path) -> None:
    said = {
        "max_length": 48,
        "task_key": "task",
        "padding_side": "left",
        "padding": "longest",
        "truncation": True,
        "tokenizer_name": "user/words",
    }
    steps = [step("smolvla_new_line_processor"), step("tokenizer_processor", **said)]
    folder = Folder.read(write(tmp_path, before=steps))
    assert folder.has_new_line
    assert folder.tokens == Tokens("user/words", 48, "left", "longest")
    assert not folder.tokens.one_length
    bare = Folder.read(write(tmp_path / "bare"))
    assert bare.tokens is None and not bare.has_new_line
    for change, expected in (
        ({"truncation": False}, "truncation is False"),
        ({"padding": "do_not_pad"}, "padding is 'do_not_pad'"),
        ({"tokenizer_name": None}, "tokenizer_name is None"),
    ):
        root = write(tmp_path / "x", before=[step("tokenizer_processor", **(said | change))])
        refused(root, "step 0 (tokenizer_processor)", expected, ask=lambda folder: folder.tokens)


def test_relative_actions_on_one_side_only(tmp_path) -> None:
    on = step("relative_actions_processor", enabled=True, exclude_joints=["jaw"])
    off = step("relative_actions_processor", enabled=False)
    back = step("absolute_actions_processor", enabled=True)
    assert Folder.read(write(tmp_path)).relative is None
    assert Folder.read(write(tmp_path, before=[off])).relative is None
    root = write(tmp_path, before=[on], after=[back])
    wrong = "stands behind unnormalizer_processor"
    refused(root, wrong, ask=lambda each: each.relative)
    changed(root / AFTER, lambda said: said["steps"].reverse())
    folder = Folder.read(root)
    assert folder.relative is not None and folder.relative.exclude == ("jaw",)
    for sides in ({"before": [on]}, {"after": [back]}, {"before": [off], "after": [back]}):
        refused(
            write(tmp_path, **sides),
            "on one side of the network only",
            ask=lambda each: each.relative,
        )


# What is refused


def test_steps_that_are_not_known(tmp_path) -> None:
    for name in ("my_own_processor", None, ["normalizer_processor"]):
        root = write(tmp_path, before=[step(name)])  # type: ignore[arg-type]
        refused(root, f"{BEFORE}: step 0 (", "is not known here", "would give other actions")
    root = write(tmp_path, after=[{"class": "mine.Step", "config": {}}])
    refused(root, f"{AFTER}: step 0 (mine.Step) is not known here")
    root = write(tmp_path, before=[step("to_batch_processor", squeeze=True)])
    refused(root, "step 0 (to_batch_processor) has squeeze, of which nothing is known here")
    root = write(tmp_path, before=[step("device_processor", device="cuda", float_dtype="float16")])
    refused(root, "float_dtype is 'float16'")
    root = write(tmp_path, before=[step("device_processor", device="cuda", float_dtype=None)])
    assert Folder.read(root).steps("device_processor")
    twice = step("normalizer_processor", "in.safetensors", norm_map={})
    refused(
        write(tmp_path, before=[twice]),
        "is there twice",
        ask=lambda folder: folder.normaliser(STATE),
    )


@pytest.mark.parametrize(
    "steps", [None, {}, [3], [{"registry_name": "to_batch_processor", "config": 3}]]
)
def test_processors_that_are_none(steps: Any, tmp_path) -> None:
    root = write(tmp_path)
    (root / BEFORE).write_text(json.dumps({"steps": steps}))
    refused(root, str(root / BEFORE))


def test_a_state_file_is_beside_its_processor(tmp_path) -> None:
    root = write(tmp_path)
    (root / "in.safetensors").unlink()
    refused(
        root,
        "in.safetensors is missing",
        error=FileNotFoundError,
        ask=lambda folder: folder.normaliser(STATE),
    )
    for file in ("../in.safetensors", "/etc/passwd", 3):
        changed(root / BEFORE, lambda said, to=file: said["steps"][0].update(state_file=to))
        refused(root, f"its state_file is {file!r}, expected a file beside it")


def test_files_that_are_missing_or_none(tmp_path) -> None:
    root = write(tmp_path)
    for name in (AFTER, BEFORE):
        kept = (root / name).read_bytes()
        (root / name).unlink()
        refused(root, f"{name} is missing", error=FileNotFoundError)
        (root / name).write_bytes(kept)
    for name in ("config.json", BEFORE):
        kept = (root / name).read_bytes()
        for wrong in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
            (root / name).write_bytes(wrong)
            refused(root, str(root / name))
        (root / name).write_bytes(kept)
    (root / "config.json").unlink()
    refused(root, "config.json is missing", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalization_mapping": None}, "normalization_mapping is None, expected an object"),
        ({"input_features": []}, "input_features is [], expected an object"),
        ({"output_features": {"action": {}}}, "has no 'output_features.action.shape'"),
        ({"output_features": {"action": {"shape": "x"}}}, "output_features.action.shape is 'x'"),
        ({"output_features": {}}, "has no feature 'action'"),
    ],
)
def test_a_config_that_does_not_hold(change: dict[str, Any], said: str, tmp_path) -> None:
    root = write(tmp_path, **change)
    refused(root, "config.json", said, ask=lambda folder: folder.normaliser("action"))


def test_a_config_of_somebody_else(tmp_path) -> None:
    root = write(tmp_path)
    for name in ("type", "input_features", "output_features", "normalization_mapping"):
        kept = (root / "config.json").read_text()
        changed(root / "config.json", lambda said, gone=name: said.pop(gone))
        refused(root, f"has no {name!r}: it is no policy of LeRobot")
        (root / "config.json").write_text(kept)
    with pytest.raises(ValueError, match=r"has no 'chunk_size'"):
        Folder.read(root).fields.whole("chunk_size")


def test_statistics_of_another_robot(tmp_path) -> None:
    three = {name: [*values, 1.0] for name, values in STATISTICS.items()}
    root = write(tmp_path, state=three)
    refused(root, STATE, "expected (2,)", "another robot", ask=lambda each: each.normaliser(STATE))
    damaged = {**STATISTICS, "std": [float("inf"), 1.0]}  # as before LeRobot was given any
    root = write(tmp_path, state=damaged)
    refused(root, "std of dimension 0 is inf", ask=lambda each: each.normaliser(STATE))
    few = {"mean": [1.0, 2.0], "std": [1.0, 1.0]}
    root = write(tmp_path, mode="QUANTILES", state=few)
    refused(root, "lack q01, q99", "before v3.0", ask=lambda each: each.normaliser(STATE))
    root = write(tmp_path, mode="SOFTMAX")
    refused(
        root, "norm_map.STATE is 'SOFTMAX', expected IDENTITY", ask=lambda f: f.normaliser(STATE)
    )


def test_actions_normalised_otherwise_before_than_after(tmp_path) -> None:
    """The statistics of two checkpoints mixed: it would answer, in numbers of the wrong robot."""
    root = write(tmp_path)
    other = load_file(root / "out.safetensors")
    other["action.std"] = other["action.std"] * 2
    save_file(other, root / "out.safetensors")
    refused(
        root,
        "actions are normalised otherwise before the network",
        "are the statistics of two checkpoints mixed?",
        ask=lambda folder: folder.normaliser("action"),
    )
    # The state is normalised on one side only, so there is nothing to compare.
    assert Folder.read(root).normaliser(STATE).offset.any()


# From before 0.4


def old(root: Path, *, rename: str = "") -> Path:
    """No processors; statistics among the weights, dots of names turned into underscores."""
    write(root)
    weights = {"model.weight": torch.ones(2)}
    for room, key in (
        ("normalize_inputs", "observation_state"),
        ("normalize_targets", "action"),
        ("unnormalize_outputs", "action"),
    ):
        for name in ("mean", "std"):
            value = torch.tensor(STATISTICS[name])
            weights[f"{room}.{rename}buffer_{key}.{name}"] = value.clone()
    for name in (BEFORE, AFTER, "in.safetensors", "out.safetensors"):
        (root / name).unlink()
    save_file(weights, root / "model.safetensors")
    return root


def test_the_layout_from_before_0_4(tmp_path) -> None:
    folder = Folder.read(old(tmp_path))
    assert folder.before is None and folder.after is None
    assert set(folder.tensors) == {"model.weight"}, "statistics are no weights"
    for key in (STATE, "action"):
        found = folder.normaliser(key)
        assert np.allclose(found.offset, STATISTICS["mean"])
        assert np.allclose(found.scale, np.float32(STATISTICS["std"]) + np.float32(1e-8))
    assert folder.tokens is None and folder.robots_cameras == {"top": "top", "image": "image"}


def test_the_layout_from_before_0_4_without_its_statistics(tmp_path) -> None:
    root = old(tmp_path, rename="so100.")  # of one of several data sets
    refused(
        root,
        "holds no normalize_inputs.buffer_observation_state.",
        "normalize_inputs.so100.buffer_observation_state.mean",
        "migration script",
        ask=lambda folder: folder.normaliser(STATE),
    )
    save_file({"model.weight": torch.ones(2)}, root / "model.safetensors")
    refused(root, f"{BEFORE} is missing", "holds no statistics", error=FileNotFoundError)
    two = old(tmp_path / "two")
    weights = load_file(two / "model.safetensors")
    weights["unnormalize_outputs.buffer_action.mean"] += 1
    save_file(weights, two / "model.safetensors")
    refused(two, "normalised otherwise before", ask=lambda folder: folder.normaliser("action"))
