"""The annotator contract: a teacher that answers in words. Its labels are rows of the trace store,
one a frame.

A label is a phase and a direction, each one of a closed vocabulary, the name of the thing acted on
(the element), and the words that a student is told (the description). `store` keeps them and reads
them again.

An annotator sees an episode and nothing of the simulator, the expert or the policy that made it,
but for `truth`, which says what a model that errs nowhere would.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from armlet.data.episodes import EpisodeFrames
from armlet.robot.spec import ActionSpec

# Rows of a store hold places in these lists: what is new goes to the end. The phases are VLA-AD's
# (arXiv 2605.16241); "none" is the direction of a phase that has none.
PHASES = (
    "idle", "approaching", "grasping", "transporting", "holding", "placing", "operating", "regrasping", "completed",
)  # fmt: skip
DIRECTIONS = (
    "none", "push", "pull", "left", "right", "up", "down", "lift", "lower", "open", "close", "rotate",
)  # fmt: skip
# Of UTF-8, in a row of the store.
ELEMENT_BYTES = 64
DESCRIPTION_BYTES = 256


class LabelError(ValueError):
    """Labels that are no labels, or belong to other episodes."""


class AnnotationError(LabelError):
    """What an annotator could not say about one episode. `segments`: (first step, step after the
    last, what was wrong)."""

    def __init__(self, segments: Sequence[tuple[int, int, str]]) -> None:
        self.segments = tuple(segments)
        lines = []
        for start, stop, what in segments:
            lines.append(f"steps {start} to {stop - 1}: {what}")
        super().__init__("; ".join(lines))


class NotConfirmedError(RuntimeError):
    """An annotator would have spent money, and nobody said that it may."""


def describe(phase: str, direction: str = "none", element: str = "") -> str:
    """The words a student is told about a moment, unless an annotator gave its own: `operating:
    pull the red drawer`."""
    what = f" the {element}" if element else ""
    return f"{phase}{what}" if direction == "none" else f"{phase}: {direction}{what}"


def element_name(text: str) -> str:
    """The name of a thing as labels keep it: lower case, single spaces, no article. Raises
    LabelError where it is no name.

    Letters of any script, digits, spaces, hyphens and apostrophes; at most six words and
    `ELEMENT_BYTES` bytes.
    """
    # (?=.): "the" alone is a name without a thing, and stays as it is, to be seen in an error.
    name = re.sub(r"^(the|a|an) (?=.)", "", " ".join(text.lower().split()))
    # isalnum counts letters of every script.
    strange = [letter for letter in name if not (letter.isalnum() or letter in " -'")]
    if not name or strange or len(name.split()) > 6:
        raise LabelError(
            f"{text!r} is no name of a thing; expected one to six words of letters, digits, "
            "hyphens and apostrophes"
        )
    encode_text(name, ELEMENT_BYTES, "element")
    return name


@dataclass(frozen=True)
class Labels:
    """What an annotator says about T frames: `phase` (T,) into PHASES and `direction` (T,) into
    DIRECTIONS, int64; `element`, T names (empty: none is meant), and `description`, T texts. Raises
    LabelError where they do not fit one another."""

    phase: np.ndarray
    direction: np.ndarray
    element: tuple[str, ...]
    description: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {
            "phase": len(self.phase),
            "direction": len(self.direction),
            "element": len(self.element),
            "description": len(self.description),
        }
        if len(set(lengths.values())) != 1:
            raise LabelError(
                f"labels of one episode must have one entry a frame in every field, found {lengths}"
            )
        for name, values, words in (
            ("phase", self.phase, PHASES),
            ("direction", self.direction, DIRECTIONS),
        ):
            if len(values) and not (values.min() >= 0 and values.max() < len(words)):
                raise LabelError(
                    f"{name} is a number from 0 to {len(words) - 1}, found {values.min()} to "
                    f"{values.max()}"
                )
        for name, texts, room in (
            ("element", self.element, ELEMENT_BYTES),
            ("description", self.description, DESCRIPTION_BYTES),
        ):
            for text in set(texts):  # a few, however many frames there are
                encode_text(text, room, name)
        # Two spellings of one thing would be two elements to whoever learns to tell them apart.
        for name in set(self.element) - {""}:
            if element_name(name) != name:
                raise LabelError(
                    f"the element {name!r} is not as labels keep it: {element_name(name)!r}"
                )

    @staticmethod
    def named(
        phases: Sequence[str],
        directions: Sequence[str] | None = None,
        elements: Sequence[str] | None = None,
        descriptions: Sequence[str] | None = None,
    ) -> "Labels":
        """Labels from words, one a frame. Without `descriptions` they are what `describe` makes of
        the rest."""
        if directions is None:
            directions = ["none"] * len(phases)
        if elements is None:
            elements = [""] * len(phases)
        if descriptions is None:
            descriptions = [
                describe(*words) for words in zip(phases, directions, elements, strict=True)
            ]
        return Labels(
            _numbers(phases, PHASES),
            _numbers(directions, DIRECTIONS),
            tuple(elements),
            tuple(descriptions),
        )

    def __len__(self) -> int:
        return len(self.phase)

    def words(self, frame: int) -> tuple[str, str, str, str]:
        """Phase, direction, element and description of one frame."""
        return (
            PHASES[self.phase[frame]],
            DIRECTIONS[self.direction[frame]],
            self.element[frame],
            self.description[frame],
        )

    def elements(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The names that occur, in order of the alphabet, and which of them each frame has: (T,)
        int64."""
        names = tuple(sorted(set(self.element)))
        return names, np.array(list(map(names.index, self.element)), np.int64)

    def segments(self) -> list[tuple[int, int]]:
        """(first frame, frame after the last) of every stretch in which nothing changes."""
        return stretches(list(map(self.words, range(len(self)))))

    def part(self, start: int, stop: int) -> "Labels":
        """The labels of some frames that follow one another."""
        return Labels(
            self.phase[start:stop],
            self.direction[start:stop],
            self.element[start:stop],
            self.description[start:stop],
        )


def _numbers(words: Sequence[str], known: tuple[str, ...]) -> np.ndarray:
    strange = sorted(set(words) - set(known))
    if strange:
        raise LabelError(f"{strange[0]!r} is not in the vocabulary: {', '.join(known)}")
    return np.array(list(map(known.index, words)), np.int64)


def stretches(values: Sequence[Any]) -> list[tuple[int, int]]:
    """(first, after the last) of every run of equal values."""
    # Not numpy: values may be tuples of words.
    found = []
    start = 0
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] != values[at - 1]:
            found.append((start, at))
            start = at
    return found


@dataclass(frozen=True)
class Cost:
    """What annotating costs if every question is asked once: questions, pictures, tokens, and the
    price in dollars."""

    questions: int
    frames: int  # pictures, of all questions together
    tokens_in: int
    tokens_out: int
    price: float

    def __str__(self) -> str:
        return (
            f"{self.questions} questions with {self.frames} pictures: about "
            f"{self.tokens_in / 1e6:.3g} M tokens to the model and at most "
            f"{self.tokens_out / 1e6:.3g} M from it, about ${self.price:.2f}"
        )


@dataclass(frozen=True)
class Annotator(ABC):
    """Subclasses are frozen dataclasses whose fields are everything that changes an answer, and how
    to reach who answers.

    `looks`: whether it wants the pictures of an episode; decoding them takes far longer than a rule
    does.
    """

    looks: ClassVar[bool] = False

    @property
    def concurrency(self) -> int:
        """How many episodes it takes at the same time."""
        return 1

    def suited(self, robot: ActionSpec) -> "Annotator":
        """The annotator with what it must know of the robot; most know it, or need not."""
        return self

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON of everything that changes its answers."""

    @abstractmethod
    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        """Labels of an episode's T frames; `episode.images` is empty for one that does not look.
        Raises AnnotationError naming the segments it has no answer for."""

    def estimate(
        self, episodes: Iterable[EpisodeFrames], sizes: dict[str, tuple[int, int]], fps: float
    ) -> Cost | None:
        """What annotating these episodes, given without pictures, would cost; None where it costs
        nothing. `sizes` camera → (height, width)."""
        return None

    def agreed(self, cost: Cost) -> bool:
        """Whether whoever set it up has agreed to such a cost beforehand, so that nobody need be
        asked. Raises NotConfirmedError where they set a bound, and it is above that."""
        return False

    def confirmed(self) -> "Annotator":
        """This annotator, with leave to spend what it estimated."""
        return self


def annotator_fingerprint(annotator: Annotator) -> str:
    """A hash of what decides an annotator's answers."""
    # The class is in it: two annotators may have the same options.
    value = {"annotator": type(annotator).__name__, **annotator.fingerprint()}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def encode_text(text: str, room: int, name: str) -> bytes:
    """UTF-8 of a text that fits a row's `room` bytes. Raises LabelError where it does not: a text
    is never cut."""
    content = text.encode()
    # Rows are padded with zero bytes, so a text may have none of its own.
    if len(content) > room or "\0" in text:
        raise LabelError(
            f"the {name} {text[:60]!r} has {len(content)} bytes; {room} at most fit in a row, "
            "none of them zero"
        )
    return content
