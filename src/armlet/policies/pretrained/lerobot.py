"""A policy folder as LeRobot writes it (`config.json` with a `type`, `model.safetensors`, the
processors), with the processors read as data: nothing of LeRobot is imported or run.

Its processors are lists of steps by name. Each step that is known here is understood; one that is
not, or that does what armlet does not, is refused by its name, since leaving it out would give
other actions. Folders from before 0.4 have no processors: their statistics stand among the weights,
under names whose dots became underscores, and what their steps were the kind says.

(LeRobot 0.3.3, 0.4.4 and 0.6.1; `processor/normalize_processor.py`, `relative_action_processor.py`,
`tokenizer_processor.py`, `configs/types.py`.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from armlet.data.files import read_json
from armlet.policies.pretrained.fields import Fields
from armlet.policies.pretrained.files import COPY, Tensors, open_safetensors
from armlet.robot.normalise import NEEDED, Mode, Normaliser

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
BEFORE = "policy_preprocessor.json"
AFTER = "policy_postprocessor.json"
STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
ACTION = "action"
PICTURE = "observation.image"  # how names of cameras begin
# What LeRobot calls the modes of `Normaliser`.
MODES: dict[str, Mode] = {
    "IDENTITY": "identity",
    "MEAN_STD": "mean_std",
    "MIN_MAX": "min_max",
    "QUANTILES": "quantiles",
    "QUANTILE10": "quantile10",
}
EPSILON = 1e-8  # of its normaliser, where a folder says nothing
# Where the statistics of a folder from before 0.4 stand, and how they begin.
OLD = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
# Steps that move or shape tensors, which armlet does on its own.
PLAIN = ("to_batch_processor", "device_processor")
# Steps that end a prompt with a line break.
NEW_LINE = ("pi0_new_line_processor", "smolvla_new_line_processor")
# Fields of a step that are known; another one may change what it does, and is refused.
FIELDS = {
    "rename_observations_processor": ("rename_map",),
    "to_batch_processor": (),
    "device_processor": ("device", "float_dtype"),
    "pi0_new_line_processor": (),
    "smolvla_new_line_processor": (),
    "pi05_prepare_state_tokenizer_processor_step": ("max_state_dim", "task_key"),
    "tokenizer_processor": (
        "max_length",
        "task_key",
        "padding_side",
        "padding",
        "truncation",
        "tokenizer_name",
    ),
    "relative_actions_processor": ("enabled", "exclude_joints", "action_names"),
    "absolute_actions_processor": ("enabled",),
    "normalizer_processor": ("eps", "features", "norm_map", "normalize_observation_keys"),
    "unnormalizer_processor": ("eps", "features", "norm_map"),
}


@dataclass(frozen=True)
class Step:
    """A step of a saved processor."""

    name: str
    config: dict[str, Any]
    state_file: Path | None
    place: str  # file and number, for errors

    @property
    def fields(self) -> Fields:
        """Its config's."""
        return Fields(self.config, self.place)


@dataclass(frozen=True)
class Tokens:
    """How a prompt becomes tokens: `name` is that of a tokenizer on the hub; `padding` the side,
    and `padded` up to where, `max_length` (of `longest`) or the `longest` of a batch."""

    name: str
    longest: int
    padding: str = "right"
    padded: str = "max_length"

    @property
    def one_length(self) -> bool:
        """Whether prompts have one length."""
        return self.padded == "max_length"


@dataclass(frozen=True)
class Relative:
    """Actions that were taught as what they are beyond the state, before normalising: in all
    dimensions but those whose names, `names`, hold one of `exclude`. Without names LeRobot leaves
    out none."""

    exclude: tuple[str, ...]
    names: tuple[str, ...] | None

    def dims(self, count: int) -> tuple[int, ...]:
        """The dimensions that are relative, of `count`."""
        words = [word.lower() for word in self.exclude if word]
        names = self.names or ()
        kept = []
        for index in range(count):
            # Dimensions beyond the names are relative, as in LeRobot.
            name = names[index].lower() if index < len(names) else ""
            if not any(word in name for word in words):
                kept.append(index)
        return tuple(kept)


@dataclass(frozen=True)
class Folder:
    """A policy folder. `before` and `after` are the steps of its processors; None for a folder from
    before 0.4."""

    root: Path
    config: dict[str, Any]
    before: tuple[Step, ...] | None
    after: tuple[Step, ...] | None

    @classmethod
    def read(cls, root: Path) -> Self:
        """Raises FileNotFoundError or ValueError naming the file, field or step that will not
        do."""
        config = read_json(root / CONFIG, fix=COPY)
        for name in ("type", "input_features", "output_features", "normalization_mapping"):
            if name not in config:
                raise ValueError(
                    f"{root / CONFIG} has no {name!r}: it is no policy of LeRobot; {COPY}"
                )
        for name in ("input_features", "output_features", "normalization_mapping"):
            if not isinstance(config[name], dict):
                raise ValueError(
                    f"{root / CONFIG}: {name} is {config[name]!r:.60}, expected an object; {COPY}"
                )
        there = (root / BEFORE).is_file()
        if there != (root / AFTER).is_file():
            missing = root / (AFTER if there else BEFORE)
            raise FileNotFoundError(f"{missing} is missing; {COPY}")
        found = cls(
            root,
            config,
            _steps(root / BEFORE) if there else None,
            _steps(root / AFTER) if there else None,
        )
        if not there and not found._old.keys():
            raise FileNotFoundError(
                f"{root / BEFORE} is missing, and {WEIGHTS} holds no statistics, as folders from "
                f"before LeRobot 0.4 do: how numbers are normalised is said nowhere; {COPY}"
            )
        return found

    @property
    def kind(self) -> str:
        return str(self.config["type"])

    @property
    def files(self) -> tuple[Path, ...]:
        """All that decides a policy's answers."""
        found = [self.root / CONFIG, self.root / WEIGHTS]
        for name, steps in ((BEFORE, self.before), (AFTER, self.after)):
            if steps is None:
                continue
            found.append(self.root / name)
            found += [step.state_file for step in steps if step.state_file]
        return tuple(found)

    @property
    def fields(self) -> Fields:
        """The config's."""
        return Fields(self.config, self.root / CONFIG)

    @cached_property
    def tensors(self) -> Tensors:
        """The network's weights, by the names that they have on disk, without statistics."""
        tensors = open_safetensors(self.root / WEIGHTS)
        for prefix in OLD:
            tensors = tensors.without(prefix)
        return tensors

    @cached_property
    def _old(self) -> Tensors:
        """Statistics among the weights."""
        every = open_safetensors(self.root / WEIGHTS)
        found = Tensors({})
        for prefix in OLD:
            part = every.part(prefix)
            found = found.and_those(Tensors({prefix + name: part[name] for name in part}))
        return found

    # What it looks at

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Name (without `observation.images.`) → (height, width) of its pictures, in the config's
        order."""
        found = {}
        for key, shape in self._shapes("input_features").items():
            if key.startswith(PICTURE):
                found[camera_name(key)] = (shape[1], shape[2])  # (3, h, w)
        return found

    @property
    def camera_keys(self) -> dict[str, str]:
        """The same names → their keys, `observation.images.front`."""
        keys = {}
        for key in self._shapes("input_features"):
            if key.startswith(PICTURE):
                keys[camera_name(key)] = key
        return keys

    def size(self, key: str) -> int:
        """How many numbers a feature has; 0 where there is none."""
        shapes = {**self._shapes("input_features"), **self._shapes("output_features")}
        return shapes[key][0] if key in shapes else 0

    def _shapes(self, field_name: str) -> dict[str, tuple[int, ...]]:
        """Of pictures (3, h, w), of numbers (x,)."""
        found = {}
        features = self.fields.table(field_name)
        for key in features.values:
            feature = features.table(key)
            if key.startswith(PICTURE):
                shape = feature.wholes("shape", count=3)
                if shape[0] != 3:
                    raise feature.wrong("shape", list(shape), "3 channels, rows and columns")
            elif key in (STATE, ENVIRONMENT, ACTION):
                shape = feature.wholes("shape", count=1)
            else:  # of no use to a policy that is known here
                continue
            found[key] = shape
        return found

    # What its processors do

    def steps(self, name: str) -> list[Step]:
        """Its steps of this name, before the network and after."""
        return [step for step in (*(self.before or ()), *(self.after or ())) if step.name == name]

    @property
    def renamed(self) -> dict[str, str]:
        """A key of the robot's → the policy's key that it stands for."""
        renamed: dict[str, str] = {}
        for step in self.steps("rename_observations_processor"):
            names = step.fields.table_or_empty("rename_map")
            for theirs in names.values:
                renamed[theirs] = names.text(theirs)
        return renamed

    @property
    def robots_cameras(self) -> dict[str, str]:
        """The policy's camera → what the robot, or its data set, calls it, by the steps that
        rename."""
        back = {}
        for theirs, ours in self.renamed.items():
            if ours.startswith(PICTURE):
                back[camera_name(ours)] = camera_name(theirs)
        return {name: back.get(name, name) for name in self.cameras}

    @property
    def has_new_line(self) -> bool:
        """Whether a prompt ends with a line break, by a step that adds it."""
        return any(self.steps(name) for name in NEW_LINE)

    @property
    def tokens(self) -> Tokens | None:
        """How its prompt is read; None where no step says so."""
        for step in self.steps("tokenizer_processor"):
            said = step.fields
            if not said.flag("truncation", True):
                raise said.wrong("truncation", False, "true")
            return Tokens(
                name=said.text("tokenizer_name"),
                longest=said.whole("max_length"),
                padding=said.text("padding_side", "right", known=("right", "left")),
                padded=said.text("padding", "max_length", known=("max_length", "longest")),
            )
        return None

    @property
    def relative(self) -> Relative | None:
        """How its actions are relative to the state, where they are. Raises ValueError for steps
        that are no pair, that are there twice, or that stand where LeRobot's do not."""
        on = self._enabled("relative_actions_processor")
        back = self._enabled("absolute_actions_processor")
        if bool(on) != bool(back):
            raise ValueError(
                f"{(on or back)[0].place}: actions are made relative to the state on one side of "
                f"the network only; {COPY}"
            )
        if not on:
            return None
        assert self.before is not None and self.after is not None  # they hold the steps
        # Offsets are what is normalised: in another order they would be of other numbers.
        _check_order(self.before, on[0], ahead_of="normalizer_processor")
        _check_order(self.after, back[0], behind="unnormalizer_processor")
        said = on[0].fields
        return Relative(
            said.texts_or_none("exclude_joints") or (), said.texts_or_none("action_names")
        )

    def _enabled(self, name: str) -> list[Step]:
        """The steps of this name that are on; one is left out where LeRobot leaves it out."""
        found = [step for step in self.steps(name) if step.fields.flag("enabled")]
        if len(found) > 1:
            raise ValueError(
                f"{found[1].place}: {name} is there twice, and the state is taken off once; {COPY}"
            )
        return found

    @property
    def relative_dims(self) -> tuple[int, ...]:
        """The dimensions of its actions that are relative to the state's number of the same index.
        Raises ValueError where the state has no such number."""
        if self.relative is None:
            return ()
        dims = self.relative.dims(self.size(ACTION))
        state = self.size(STATE)
        beyond = [index for index in dims if index >= state]
        if beyond:
            raise ValueError(
                f"{self.root / BEFORE}: actions {', '.join(map(str, beyond))} are relative to the "
                f"state's numbers of the same index, and {STATE} has {state}; {COPY}"
            )
        return dims

    def normaliser(self, key: str) -> Normaliser:
        """How a feature is normalised: `observation.state` (s,), `action` (a,), or a camera's key
        (3,). Statistics that are not there leave it as it is, as in LeRobot. Raises ValueError
        where they are of another robot, or differ before the network and after."""
        dims = self.size(key)
        if not dims:
            raise ValueError(f"{self.root / CONFIG} has no feature {key!r}; {COPY}")
        before = self._statistics(key, "normalizer_processor")
        mode, eps = self._mode(key, "normalizer_processor")
        found = _normaliser(before, mode, eps, key, dims)
        if key != ACTION:
            return found
        after = self._statistics(key, "unnormalizer_processor")
        other_mode, other_eps = self._mode(key, "unnormalizer_processor")
        back = _normaliser(after, other_mode, other_eps, key, dims)
        for name in ("offset", "scale", "shift", "back"):
            if not np.array_equal(getattr(found, name), getattr(back, name)):
                raise ValueError(
                    f"{self.root}: actions are normalised otherwise before the network "
                    f"({BEFORE}) than after it ({AFTER}): {name} {getattr(found, name)} and "
                    f"{getattr(back, name)}; are the statistics of two checkpoints mixed? {COPY}"
                )
        return found

    def _mode(self, key: str, name: str) -> tuple[str, float]:
        """The mode of a feature, as LeRobot calls it, and the small number."""
        kind = "ACTION" if key == ACTION else "VISUAL" if key.startswith(PICTURE) else "STATE"
        if key == ENVIRONMENT:
            kind = "ENV"
        steps = self.steps(name)
        said = self.fields.table("normalization_mapping")
        eps = EPSILON
        if len(steps) > 1:
            raise ValueError(
                f"{steps[1].place}: {name} is there twice, and numbers are normalised once; {COPY}"
            )
        if steps:
            own = steps[0].fields
            said = own.table("norm_map") if "norm_map" in own else said
            eps = own.real("eps", EPSILON, least=0)
            if not _is_normalised(steps[0], key):
                return "IDENTITY", eps
        return said.text(kind, "IDENTITY", known=MODES), eps

    def _statistics(self, key: str, name: str) -> dict[str, np.ndarray]:
        if self.before is None:
            return self._old_statistics(key, name)
        files = [step.state_file for step in self.steps(name) if step.state_file]
        found = {}
        for file in files:
            part = open_safetensors(file).part(f"{key}.")
            for statistic in part:
                # A picture's are (3, 1, 1), one a channel.
                found[statistic] = part.read(statistic).double().numpy().reshape(-1)
        return found

    def _old_statistics(self, key: str, name: str) -> dict[str, np.ndarray]:
        room = "unnormalize_outputs" if name == "unnormalizer_processor" else "normalize_inputs"
        if key == ACTION and name == "normalizer_processor":
            room = "normalize_targets"
        # Dots became underscores, so the key is asked for and not read back.
        prefix = f"{room}.buffer_{key.replace('.', '_')}."
        found = {}
        part = self._old.part(prefix)
        for statistic in part:
            found[statistic] = part.read(statistic).double().numpy().reshape(-1)
        if not found and self._mode(key, name)[0] != "IDENTITY":
            there = ", ".join(sorted(self._old)[:4])
            raise ValueError(
                f"{self.root / WEIGHTS} holds no {prefix}…, the statistics of {key!r}; there are "
                f"{there}. Are they of several data sets? LeRobot's migration script writes them "
                "as processors"
            )
        return found


def says_kind(root: Path, kind: str) -> bool:
    """Whether a folder's config says that it is LeRobot's policy of this kind."""
    try:
        return bool(read_json(root / CONFIG, fix=COPY).get("type") == kind)
    except (FileNotFoundError, ValueError):  # whoever reads it says what is wrong with it
        return False


def camera_name(key: str) -> str:
    """`observation.images.front` → front; `observation.image` → image."""
    return key.removeprefix("observation.images.").removeprefix("observation.")


def _is_normalised(step: Step, key: str) -> bool:
    """Whether a step knows this feature, and was not told to leave it as it is."""
    told = step.config.get("features") is not None
    if told and key not in step.fields.table("features"):
        return False
    only = step.fields.texts_or_none("normalize_observation_keys")
    return only is None or key == ACTION or key in only


def _normaliser(
    statistics: Mapping[str, np.ndarray], mode: str, eps: float, key: str, dims: int
) -> Normaliser:
    ours = MODES[mode]
    if not statistics:  # as LeRobot: a feature without any passes
        ours = "identity"
    missing = [name for name in NEEDED[ours] if name not in statistics]
    if missing:
        raise ValueError(
            f"statistics of {key!r} lack {', '.join(missing)}, which normalisation {mode} needs; "
            "those of data sets before v3.0 have no quantiles (LeRobot has a script that adds them)"
        )
    return Normaliser.from_statistics(
        dict(statistics), ours, what=key, dims=dims, variant="lerobot", epsilon=eps
    )


def _are_names(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(each, str) for each in said)


def _check_order(
    steps: tuple[Step, ...], step: Step, *, ahead_of: str = "", behind: str = ""
) -> None:
    """Raises ValueError where a step is none of these, or does not stand where it does in LeRobot's
    policies."""
    names = [each.name for each in steps]
    place = steps.index(step) if step in steps else None
    right = place is not None and ahead_of not in names[:place] and behind not in names[place:]
    if not right:
        where = f"ahead of {ahead_of}" if ahead_of else f"behind {behind}"
        raise ValueError(
            f"{step.place}: it works on other numbers here than in LeRobot's policies, where it "
            f"stands {where}, on that side of the network; {COPY}"
        )


def _steps(path: Path) -> tuple[Step, ...]:
    """The steps of a saved processor. Raises ValueError naming one that is not known."""
    said = read_json(path, fix=COPY).get("steps")
    if not isinstance(said, list):
        raise ValueError(f"{path}: `steps` is {said!r:.60}, expected a list; {COPY}")
    found = []
    for number, entry in enumerate(said):
        if not isinstance(entry, dict) or not isinstance(entry.get("config", {}), dict):
            raise ValueError(f"{path}: step {number} is {entry!r:.80}, expected an object; {COPY}")
        name = entry.get("registry_name")
        place = f"{path}: step {number} ({name or entry.get('class')})"
        if not isinstance(name, str) or name not in FIELDS:
            raise ValueError(
                f"{place} is not known here, and leaving it out would give other actions; known "
                f"are {', '.join(sorted(FIELDS))}"
            )
        config = entry.get("config", {})
        unknown = sorted(set(config) - set(FIELDS[name]))
        if unknown:
            raise ValueError(
                f"{place} has {', '.join(unknown)}, of which nothing is known here; known are "
                f"{', '.join(FIELDS[name]) or 'none'}"
            )
        if config.get("float_dtype") not in (None, "float32"):
            raise ValueError(
                f"{place}: float_dtype is {config['float_dtype']!r}, and armlet gives a policy its "
                "numbers in single precision; expected null"
            )
        file = entry.get("state_file")
        if file is not None and (not isinstance(file, str) or Path(file).name != file):
            raise ValueError(f"{place}: its state_file is {file!r}, expected a file beside it")
        found.append(Step(name, config, path.parent / file if file else None, place))
    return tuple(found)
