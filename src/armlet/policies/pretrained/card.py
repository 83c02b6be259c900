"""What is known of a checkpoint from its headers and small files alone, before a weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from armlet.policies.precisions import long_name
from armlet.policies.pretrained.files import Tensors
from armlet.robot.normalise import Normaliser

Value = str | int | float | tuple[str, ...]  # of an option, as TOML has it; bool is an int


@dataclass(frozen=True)
class Choice:
    """Something that must be chosen, or may be: the option's name, what there is (in words, where
    it is no list), what is taken where nobody chooses (None: it must be chosen), and why it
    matters."""

    option: str
    values: tuple[str | int | float, ...]
    usual: Value | None
    why: str


@dataclass(frozen=True)
class Work:
    """What a part of a network does for one decision: how many `tokens` (pictures' patches, words,
    actions) go through its parameters at a time, and how often it `runs`."""

    tokens: int
    runs: int = 1


# Of a usual prompt, where none is at hand: OpenVLA's, of an instruction of ten words, has 25 to 30.
PROMPT_TOKENS = 30


@dataclass(frozen=True)
class Card:
    """A checkpoint. `sizes` in words, in the order in which they should be read; `parts`:
    parameters by part of the network; `layers`: how many can be watched, routed and cut; `work`:
    what parts do for one decision, by the names of `parts`: several where they do different things;
    a part that is not there does next to nothing (a table of words). `cameras` are the
    checkpoint's, `called` what the robot calls them, where it is something else. `state` and
    `action`: how numbers are normalised. `remarks`: what should be looked at."""

    kind: str
    root: Path
    sizes: Mapping[str, str]
    cameras: Mapping[str, tuple[int, int] | None]  # (height, width); None: any
    state_dims: int
    action_dims: int
    chunk: int
    execute: int
    steps: int  # of denoising; 0 without any
    layers: int
    parts: Mapping[str, int]
    dtypes: Mapping[str, int]  # tensors by type
    files: tuple[Path, ...]
    state: Normaliser | None = None
    action: Normaliser | None = None
    action_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    remarks: tuple[str, ...] = ()
    words: str = ""  # how an instruction is read, in words
    work: Mapping[str, tuple[Work, ...]] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = field(default=())  # tensors that the network has no use for

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())


def parts_of(tensors: Tensors, rooms: Mapping[str, str]) -> dict[str, int]:
    """Parameters by part; `rooms`: how names begin (`*` stands for anything) → what that part is
    called. Names that begin otherwise are `the rest`; the first beginning that fits counts."""
    found: dict[str, int] = dict.fromkeys(rooms.values(), 0)
    for name, header in tensors.items():
        part = "the rest"
        for beginning, called in rooms.items():
            if fnmatchcase(name, f"{beginning}*"):
                part = called
                break
        found[part] = found.get(part, 0) + header.numel
    return {part: count for part, count in found.items() if count}


def dtypes_of(tensors: Tensors) -> dict[str, int]:
    """How many tensors are of which type."""
    found: dict[str, int] = {}
    for header in tensors.values():
        kind = long_name(header.dtype)
        found[kind] = found.get(kind, 0) + 1
    return found


def relative_remarks(dims: Sequence[int]) -> list[str]:
    """A line on the dimensions of actions that are relative to the state, where there are any."""
    if not dims:
        return []
    shown = ", ".join(map(str, dims))
    return [f"actions {shown} are relative to the state at the chunk's beginning"]
