"""A student as LeRobot keeps a policy: a `pretrained_model/` folder, which `lerobot-eval
--policy.path=FOLDER` and `lerobot-train` take as it is, once the distribution
`lerobot_policy_armlet` (packages/) is installed beside LeRobot.

    config.json                 entries for both: `type: "armlet"` and LeRobot's fields; and what
                                armlet's own config says (network, statistics, fingerprint)
    model.safetensors           the weights, under armlet's names
    tokenizer.json              the words
    policy_preprocessor.json    LeRobot's steps before and after the policy. They normalise nothing:
    policy_postprocessor.json   a student brings its own statistics, and keeps them
    distill_manifest.json       what the student was made from

So the folder stays a policy of armlet too, and one that `lerobot-train` has fine-tuned and saved is
loaded, evaluated or distilled here like any other. Nothing of LeRobot is imported: what it wants is
files (0.4.4 and 0.6.1: `configs/policies.py`, `processor/pipeline.py`, `policies/factory.py`).

Also here is what a batch of LeRobot's says in armlet's words. Knows no robot and no server.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armlet.data.files import atomic_folder, read_json, write_atomically
from armlet.data.hub import local_folder, refuse_writing
from armlet.policies.checkpoint import (
    CONFIG,
    FIX,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    load_with_fingerprint,
    read_provenance,
    save_policy,
)
from armlet.policies.contract import Backbone
from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.lerobot import ACTION, AFTER, BEFORE, STATE
from armlet.robot.observation import Observation
from armlet.types import Batch

TYPE = "armlet"  # of the policy, as LeRobot's `--policy.type`
TASK = "task"
PADDED = "action_is_pad"
PICTURES = "observation.images."
# What each kind of feature is normalised by: nothing here, see the module's docstring.
LEFT_ALONE = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}
SLACK = 1e-3  # beyond 0 and 1, which resizing may add to a picture


def write_lerobot(place: Path | str, out: Path) -> Path:
    """Write the policy of armlet in `place`, a folder or a name on the hub, as LeRobot keeps one;
    returns `out`. Its weights and its fingerprint are the same.

    Raises ValueError for a checkpoint of another project and what `load_policy` raises,
    FileExistsError where there is something at `out`.
    """
    refuse_writing(out)
    folder = local_folder(place, kind="model")
    if kinds.is_pretrained(folder):
        raise ValueError(
            f"{place} is a checkpoint of another project, not a policy that armlet wrote; one in "
            "LeRobot's layout is run by LeRobot as it is, and its students are what is written here"
        )
    policy, fingerprint = load_with_fingerprint(folder)  # whole, or this says what is wrong
    config = read_json(folder / CONFIG, fix=FIX)
    provenance = config.pop("provenance", {}) or read_provenance(folder)
    with atomic_folder(out) as part:
        for name in (WEIGHTS, TOKENIZER):
            shutil.copyfile(folder / name, part / name)
        write_beside(policy, part, manifest(fingerprint, provenance))
        config = {**lerobot_fields(policy), **config, "provenance": {}}
        write_atomically(part / CONFIG, json.dumps(config, indent=1).encode())
        # What was copied is what was loaded: the folder may have been saved anew in between.
        found = load_with_fingerprint(part)[1]
        if found != fingerprint:
            raise ValueError(f"{folder} was saved anew while it was copied; run the same again")
    return out


def save_lerobot(
    policy: Backbone, folder: Path, fields: Mapping[str, Any], provenance: Mapping[str, Any]
) -> str:
    """Write a policy that is in memory, over one that is there; returns its fingerprint. `fields`:
    the config as LeRobot writes it; `provenance`: what the policy was made from."""
    fingerprint = save_policy(policy, folder, beside=dict(fields))
    write_beside(policy, folder, manifest(fingerprint, provenance))
    return fingerprint


def write_beside(policy: Backbone, folder: Path, said: Mapping[str, Any]) -> None:
    """What is neither config nor weights nor words."""
    for name, content in processors(policy).items():
        write_atomically(folder / name, json.dumps(content, indent=2).encode())
    write_atomically(folder / MANIFEST, json.dumps(said, indent=1).encode())


def manifest(fingerprint: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """`distill_manifest.json`: which policy it is about, and what that was made from."""
    return {
        "version": 1,
        "armlet": importlib.metadata.version("armlet"),
        "fingerprint": fingerprint,
        "provenance": dict(provenance),
    }


# What LeRobot is told


def lerobot_fields(policy: Backbone) -> dict[str, Any]:
    """The entries of a config.json that LeRobot reads; those it has a default for are left out."""
    return {
        "type": TYPE,
        "n_obs_steps": policy.history,
        "input_features": inputs_of(policy),
        "output_features": outputs_of(policy),
        "chunk_size": policy.chunk,
        "n_action_steps": policy.execute,
        # Whichever is there: a student is small, and was not distilled for a device.
        "device": None,
        "push_to_hub": False,
    }


def picture_key(camera: str) -> str:
    """LeRobot's name of a camera. Cameras that keep their whole name have it already."""
    return camera if camera.startswith("observation.") else f"{PICTURES}{camera}"


def inputs_of(policy: Backbone) -> dict[str, Any]:
    """What the policy looks at, as LeRobot's features."""
    found: dict[str, Any] = {}
    for camera, (height, width) in policy.view.cameras.items():
        found[picture_key(camera)] = {"type": "VISUAL", "shape": [3, height, width]}
    dims = len(policy.body.state.offset)
    if dims:
        found[STATE] = {"type": "STATE", "shape": [dims]}
    return found


def outputs_of(policy: Backbone) -> dict[str, Any]:
    """What it answers, as LeRobot's features."""
    return {ACTION: {"type": "ACTION", "shape": [policy.dims]}}


def processors(policy: Backbone) -> dict[str, dict[str, Any]]:
    """File → LeRobot's steps before and after the policy. The normalising ones are there because
    `lerobot-train` and `lerobot-eval` address them by name; they leave everything as it is."""
    features = {**inputs_of(policy), **outputs_of(policy)}

    def step(name: str, **config: Any) -> dict[str, Any]:
        return {"registry_name": name, "config": config}

    before = [
        step("rename_observations_processor", rename_map={}),
        step("to_batch_processor"),
        step("device_processor", device="cpu", float_dtype=None),
        step("normalizer_processor", eps=1e-8, features=features, norm_map=LEFT_ALONE),
    ]
    after = [
        step("unnormalizer_processor", eps=1e-8, features=outputs_of(policy), norm_map=LEFT_ALONE),
        step("device_processor", device="cpu", float_dtype=None),
    ]
    return {
        BEFORE: {"name": Path(BEFORE).stem, "steps": before},
        AFTER: {"name": Path(AFTER).stem, "steps": after},
    }


def action_steps(policy_history: int, chunk: int) -> list[int]:
    """The control steps, from now, whose actions a batch for training must hold: those before that
    the policy looks at (the one before now in any case), then the chunk."""
    return list(range(-max(policy_history - 1, 1), chunk))


# What LeRobot says


def pictures_of(values: Tensor, key: str) -> np.ndarray:
    """LeRobot's pictures (…, 3, h, w), 0 to 1 or uint8 → (…, h, w, 3) uint8, as cameras give them.

    Raises ValueError for numbers beyond: a step before this has normalised them.
    """
    last = values.movedim(-3, -1)
    if last.dtype == torch.uint8:
        return np.ascontiguousarray(last.cpu().numpy())
    if float(last.min()) < -SLACK or float(last.max()) > 1 + SLACK:
        raise ValueError(
            f"{key}: numbers from {float(last.min()):g} to {float(last.max()):g}, expected 0 to 1: a "
            "student normalises pictures itself; leave VISUAL as IDENTITY"
        )
    # To the nearest whole number, as decoders and augmentations leave some between.
    return np.ascontiguousarray((last.float() * 255).round().clamp(0, 255).byte().cpu().numpy())


def seen_of(policy: Backbone, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Camera → the pictures (b, …, h, w, 3) of a batch of LeRobot's. Raises ValueError naming one
    that is missing."""
    found = {}
    for camera in policy.view.cameras:
        key = picture_key(camera)
        if key not in batch:
            there = sorted(name for name in batch if name.startswith("observation.image"))
            raise ValueError(
                f"the policy looks through {key}, and the batch has {', '.join(there) or 'none'}; "
                'rename one: --rename_map=\'{"observation.images.theirs": "' + key + "\"}'"
            )
        found[camera] = pictures_of(batch[key], key)
    return found


def states_of(policy: Backbone, batch: Mapping[str, Any], rows: int) -> np.ndarray:
    """The states (b, …, s) of a batch, in the robot's numbers; (b, 0) for a policy that looks at
    none."""
    if not len(policy.body.state.offset):
        return np.zeros((rows, 0), np.float32)
    if STATE not in batch:
        raise ValueError(f"the policy reads {STATE}, and the batch has none")
    found: np.ndarray = batch[STATE].detach().float().cpu().numpy()
    return found


def tasks_of(batch: Mapping[str, Any], rows: int) -> list[str]:
    """The instructions of a batch's b moments. Raises ValueError where there are none."""
    tasks = batch.get(TASK)
    if isinstance(tasks, str):
        return [tasks] * rows
    if not isinstance(tasks, Sequence) or len(tasks) != rows:
        raise ValueError(
            f"`task` is {tasks!r:.60}, expected the instructions of {rows} moments: the data set, "
            "or the environment (`task_description`), says them"
        )
    return [str(task) for task in tasks]


def rows_in(batch: Mapping[str, Any]) -> int:
    """b: of how many moments a batch is."""
    for name, value in batch.items():
        if name.startswith("observation.") and isinstance(value, Tensor):
            return len(value)
    raise ValueError(f"the batch holds no observation; it has {', '.join(sorted(batch))}")


def training_batch(policy: Backbone, batch: Mapping[str, Any]) -> Batch:
    """A batch of LeRobot's, drawn with `action_steps`, as a batch with targets. What was done before
    an episode began are zeros, as they are for a robot; what comes after its end does not count."""
    rows = rows_in(batch)
    images = seen_of(policy, batch)
    states = states_of(policy, batch, rows)
    tasks = tasks_of(batch, rows)
    history = policy.history
    ahead = len(action_steps(history, policy.chunk)) - policy.chunk
    actions = batch[ACTION].detach().float().cpu().numpy()  # (b, ahead + k, a)
    padded = batch[PADDED].cpu().numpy()  # (b, ahead + k)
    if actions.shape[1:] != (ahead + policy.chunk, policy.dims):
        raise ValueError(
            f"{ACTION} has shape {tuple(actions.shape)}, expected (b, {ahead + policy.chunk}, "
            f"{policy.dims}): {ahead} before now and a chunk of {policy.chunk}"
        )
    before = np.where(padded[:, ahead - 1, None], 0, actions[:, ahead - 1])  # (b, a)
    observations = []
    for row in range(rows):
        observations.append(_observation(images, states, tasks[row], before[row], row, history))
    made = policy.prepare(observations)
    inputs = policy.inputs
    present = states if history == 1 else states[:, -1]  # (b, s)
    targets = inputs.normalised(actions[:, ahead:], present[:, None])
    valid = ~padded[:, ahead:]
    targets[~valid] = 0
    device = policy.device
    told = replace(
        made,
        actions=torch.from_numpy(targets).to(device),
        actions_valid=torch.from_numpy(valid).to(device),
    )
    if history == 1:
        return told
    # Each relative to the state of its own moment.
    earlier = inputs.normalised(actions[:, :ahead], states[:, :-1])
    return replace(
        told,
        earlier_actions=torch.from_numpy(earlier).to(device),
        earlier_valid=torch.from_numpy(~padded[:, :ahead]).to(device),
    )


def _observation(
    images: Mapping[str, np.ndarray],
    states: np.ndarray,
    task: str,
    before: np.ndarray,
    row: int,
    history: int,
) -> Observation:
    """Moment number `row` of a batch, with those before it where several are looked at."""
    if history == 1:
        shown = {camera: each[row] for camera, each in images.items()}
        return Observation(shown, states[row], task, before)
    moments = []
    for step in range(history):
        shown = {camera: each[row, step] for camera, each in images.items()}
        moments.append(Observation(shown, states[row, step], task, before))
    # LeRobot repeats an episode's first observation, as armlet does.
    return replace(moments[-1], past=tuple(moments[:-1]))
