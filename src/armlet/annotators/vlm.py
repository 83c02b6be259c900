"""A vision-language model names what is acted on, and which way: any server that speaks the OpenAI
chat API with pictures.

Phases come from `phase_rules` and stand in the question, which keeps the wording of the answers
stable. About every operating segment one question is asked, with key frames spread over it, because
one frame cannot tell pulling from pushing; its answer, (element, direction), holds for the whole
segment (VLA-AD, arXiv 2605.16241). An answer is taken only if it is JSON in the vocabulary;
otherwise the model is told what was wrong and asked again, a few times.

Every answer is kept on disk under a hash of the model, the words and the pictures, so no question
is paid for twice. Nothing is asked before somebody has confirmed what it costs. Knows no particular
model or server.
"""

import base64
import functools
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from armlet import limits
from armlet.annotators import (
    DESCRIPTION_BYTES,
    DIRECTIONS,
    PHASES,
    AnnotationError,
    Annotator,
    Cost,
    LabelError,
    Labels,
    NotConfirmedError,
    describe,
    element_name,
    encode_text,
    stretches,
)
from armlet.annotators.phase_rules import PhaseRules
from armlet.data.episodes import EpisodeFrames
from armlet.data.files import write_atomically
from armlet.limits import MOST

ALLOWED = DIRECTIONS[1:]  # without "none": something is being operated
SYSTEM = (
    "You annotate recordings of a robot arm. You get a few frames of one short stretch of a "
    "recording, in order of time, what the robot was told to do, and the phase it is in. Answer "
    "with one JSON object and nothing else."
)
QUESTION = """The robot was told: "{task}"
Phase: {phase}. It lasts {seconds:.1f} s; the {frames} frames below are spread evenly over {over}.
Which thing does the robot move or act on, and in which direction does that thing move?
Answer with {keys}:
"element": the name of the thing, one to six words, such as "red drawer"
"direction": exactly one of {directions}{words}"""
OWN_WORDS = """
"description": one short sentence that says what the robot does in these frames"""
TRANSIENT = (408, 409, 429)  # and everything from 500 on
CHARACTERS = 3  # at least so many in a token of English: the estimate is to be too high, if wrong


class ServerError(RuntimeError):
    """The server refuses what is asked as such, so asking it about anything else is of no use."""


@dataclass(frozen=True)
class Vlm(Annotator):
    """`model` at `base_url`, an OpenAI-compatible chat server (vLLM, llama.cpp, Ollama, OpenAI …).
    Not for models that refuse `max_tokens` or a `temperature`, as OpenAI's reasoning models do.
    """

    looks: ClassVar[bool] = True
    model: str
    """The model, by the name that its server knows."""
    base_url: str
    """Where the server is, with its /v1."""
    cache: Path
    """A folder that keeps the answers: nothing is asked twice."""
    rules: PhaseRules = field(default_factory=PhaseRules)
    """Who says the phases, which stand in the question."""
    camera: str = "scene"
    """Whose pictures are shown."""
    frames: int = 5
    """Pictures of each segment."""
    span: float = 2.0
    """A segment that lasts fewer seconds is shown with what is before and behind it, as far as the
    instruction goes: in a few steps nothing is seen to move."""
    enlarge: int = 1
    """How many times a picture is enlarged."""
    own_words: bool = False
    """Whether the model writes the description as well."""
    temperature: float = 0.0
    """Of its answers; 0: the likeliest."""
    answer_tokens: int = 200
    """Of an answer, at most."""
    repeats: int = 2
    """How often it is told that its answer will not do."""
    json_mode: bool = True
    """Ask the server for JSON, which nearly all of them know."""
    key_file: Path | None = None
    """A file that holds the server's key, where it wants one."""
    concurrency: int = 8
    """Episodes at the same time."""
    timeout: float = 60.0
    """Seconds that an answer may take."""
    retries: int = 5
    """How often a server that is busy, failing or gone is tried again, after ever longer pauses."""
    price_in: float = 0.0
    """Dollars per million tokens that are shown."""
    price_out: float = 0.0
    """Dollars per million tokens that are answered."""
    patch: int = 28
    """Pixels a side of what makes one token of a picture."""
    most: float = 10.0
    """Dollars that it may cost at most, by the estimate."""
    yes: bool = False
    """Somebody agreed to what it costs, and nobody is asked."""

    def __post_init__(self) -> None:
        # Everything else is the server's to refuse, which knows its limits.
        least = {
            "frames": 1,
            "enlarge": 1,
            "repeats": 0,
            "concurrency": 1,
            "retries": 0,
            "patch": 1,
        }
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"Vlm.{name} is {getattr(self, name)}; expected {number} or more")
        limits.check(self, span=(0, MOST), most=(0, MOST))

    def fingerprint(self) -> dict[str, Any]:
        decides = (
            "model",
            "camera",
            "frames",
            "span",
            "enlarge",
            "own_words",
            "temperature",
            "answer_tokens",
            "repeats",
            "json_mode",
        )
        # Not the server's address, keys or prices: the same model answers the same anywhere.
        return {
            "rules": self.rules.fingerprint(),
            "words": [SYSTEM, QUESTION, OWN_WORDS, *ALLOWED],
            **{name: getattr(self, name) for name in decides},
        }

    def agreed(self, cost: Cost) -> bool:
        if not self.yes:
            return False
        if cost.price > self.most:
            raise NotConfirmedError(
                f"nothing was asked: {cost}, which is more than the ${self.most:.2f} that were "
                "agreed to (`most`); raise it, or annotate fewer episodes"
            )
        sys.stderr.write(f"{cost}; agreed to beforehand\n")
        return True

    def confirmed(self) -> "Vlm":
        return replace(self, yes=True)

    def estimate(
        self, episodes: Iterable[EpisodeFrames], sizes: dict[str, tuple[int, int]], fps: float
    ) -> Cost:
        """Every question asked once. What the cache holds already costs nothing; asking again,
        where an answer will not do, costs more."""
        if self.camera not in sizes:
            raise LabelError(
                f"the episodes have no camera {self.camera!r}; they have {', '.join(sorted(sizes))}"
            )
        height, width = sizes[self.camera]
        # Tokens of a picture: one a patch, and a mark before and behind, as Qwen's models have it.
        high = math.ceil(height * self.enlarge / self.patch)
        wide = math.ceil(width * self.enlarge / self.patch)
        picture = high * wide + 2
        questions = frames = letters = 0
        for episode in episodes:
            for start, stop in self._segments(self.rules.annotate(episode, fps), episode):
                questions += 1
                frames += len(self._shown(episode, start, stop, fps))
                letters += len(SYSTEM) + len(self._words(episode, start, stop, fps))
        tokens_in = frames * picture + letters // CHARACTERS
        tokens_out = questions * self.answer_tokens
        price = (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
        return Cost(questions, frames, tokens_in, tokens_out, price)

    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        """Raises AnnotationError naming the segments without an answer, NotConfirmedError where one
        would have to be asked for and nobody agreed, ServerError where the server will not have any
        of it."""
        labels = self.rules.annotate(episode, fps)
        phases = [PHASES[phase] for phase in labels.phase]
        directions = ["none"] * len(labels)
        elements = [""] * len(labels)
        descriptions = list(map(describe, phases))
        # All segments are asked about before one without an answer is told: the next run then finds
        # the others in the cache.
        problems = []
        for start, stop in self._segments(labels, episode):
            try:
                element, direction, words = self._answer(self._messages(episode, start, stop, fps))
            except _NoAnswerError as error:
                problems.append((start, stop, str(error)))
                continue
            span = slice(start, stop)
            steps = stop - start
            directions[span] = [direction] * steps
            elements[span] = [element] * steps
            descriptions[span] = [words] * steps
        if problems:
            raise AnnotationError(problems)
        return Labels.named(phases, directions, elements, descriptions)

    def _segments(self, labels: Labels, episode: EpisodeFrames) -> list[tuple[int, int]]:
        """The operating stretches, cut where the robot is told something else."""
        operating = PHASES.index("operating")
        moments = []
        for frame, phase in enumerate(labels.phase.tolist()):
            moments.append((phase, episode.told(frame)))
        found = []
        for start, stop in stretches(moments):
            if labels.phase[start] == operating:
                found.append((start, stop))
        return found

    def _window(self, episode: EpisodeFrames, start: int, stop: int, fps: float) -> tuple[int, int]:
        """The stretch from which key frames of a segment are: itself, or `span` seconds around it,
        without frames in which the robot was told something else."""
        missing = math.ceil(self.span * fps) - (stop - start)
        if missing <= 0:
            return start, stop
        told = episode.told(start)
        first = start
        while first > 0 and episode.told(first - 1) == told:
            first -= 1
        last = stop
        while last < len(episode.state) and episode.told(last) == told:
            last += 1
        # As much before as behind; what one side has not is taken from the other.
        before = min(start - first, max(missing // 2, missing - (last - stop)))
        behind = min(last - stop, missing - before)
        return start - before, stop + behind

    def _shown(self, episode: EpisodeFrames, start: int, stop: int, fps: float) -> list[int]:
        """The steps of a segment's key frames: all of them, if there are few."""
        first, last = self._window(episode, start, stop, fps)
        # A set, as a stretch shorter than `frames` would show some of its steps twice.
        return sorted(set(np.linspace(first, last - 1, self.frames).round().astype(int).tolist()))

    def _words(self, episode: EpisodeFrames, start: int, stop: int, fps: float) -> str:
        first, last = self._window(episode, start, stop, fps)
        over = "it"
        if (first, last) != (start, stop):
            over = (
                f"{(last - first) / fps:.1f} s, of which it is the part from "
                f"{(start - first) / fps:.1f} to {(stop - first) / fps:.1f} s"
            )
        return QUESTION.format(
            task=episode.told(start),
            phase="operating",
            seconds=(stop - start) / fps,
            frames=len(self._shown(episode, start, stop, fps)),
            over=over,
            keys="these three keys" if self.own_words else "these two keys",
            directions=", ".join(ALLOWED),
            words=OWN_WORDS if self.own_words else "",
        )

    def _messages(
        self, episode: EpisodeFrames, start: int, stop: int, fps: float
    ) -> list[dict[str, Any]]:
        if self.camera not in episode.images:
            raise LabelError(
                f"the episode has no camera {self.camera!r}; it has "
                f"{', '.join(sorted(episode.images)) or 'none'}"
            )
        pictures = episode.images[self.camera][
            self._shown(episode, start, stop, fps)
        ]  # (frames, h, w, 3)
        shown = []
        for picture in pictures:
            url = data_url(picture, self.enlarge)
            shown.append({"type": "image_url", "image_url": {"url": url}})
        words = {"type": "text", "text": self._words(episode, start, stop, fps)}
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": [words, *shown]}]

    def _answer(self, messages: list[dict[str, Any]]) -> tuple[str, str, str]:
        """(element, direction, description) from the cache or the server. Raises _NoAnswerError."""
        # The key is that of the first question: what it is told of its mistakes is not part of it.
        path = self.cache / f"{self._key(messages)}.json"
        kept = self._kept(path)
        if kept is not None:
            return kept
        if not self.yes:
            raise NotConfirmedError(
                f"a question to {self.model} at {self.base_url} was not asked, because nobody "
                "confirmed what it costs"
            )
        wrong = ""
        for _ in range(self.repeats + 1):
            text, usage = self._ask(messages)
            try:
                answer = self._parse(text)
            except LabelError as error:
                wrong = str(error)
                told = (
                    f"That will not do: {wrong}. Answer again, with the JSON object and nothing "
                    "else."
                )
                messages = [
                    *messages,
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": told},
                ]
            else:
                bought = {"model": self.model, "answer": text, "usage": usage}
                write_atomically(path, json.dumps(bought).encode())
                return answer
        raise _NoAnswerError(f"{self.repeats + 1} answers would not do; the last: {wrong}")

    def _kept(self, path: Path) -> tuple[str, str, str] | None:
        """The answer in a file of the cache; None where there is none, or where it is damaged: that
        costs asking again."""
        try:
            return self._parse(json.loads(path.read_text())["answer"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _key(self, messages: list[dict[str, Any]]) -> str:
        asked = [self.model, self.temperature, self.answer_tokens, self.json_mode, messages]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _ask(self, messages: list[dict[str, Any]]) -> tuple[str, dict[str, int]]:
        """One question to the server, whose own library retries with growing pauses what may
        pass."""
        openai = _library()
        client = _client(self.base_url, self._secret(), self.timeout, self.retries)
        wanted = {"response_format": {"type": "json_object"}} if self.json_mode else {}
        try:
            made = client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=self.temperature,
                max_tokens=self.answer_tokens,
                **wanted,
            )
        except openai.APIStatusError as error:
            what = f"{self.base_url} answered {error.status_code}: {str(error.message)[:200]}"
            # What the library has retried in vain; every other refusal would come again.
            if error.status_code in TRANSIENT or error.status_code >= 500:
                raise _NoAnswerError(f"after {self.retries + 1} tries, {what}") from error
            raise ServerError(
                f"{what}; check the server, the model's name ({self.model!r}) and the key"
            ) from error
        except openai.APIConnectionError as error:  # among them the ones that took too long
            raise _NoAnswerError(
                f"after {self.retries + 1} tries, no answer from {self.base_url}: {error}"
            ) from error
        except (openai.APIError, json.JSONDecodeError) as error:
            raise _NoAnswerError(f"{self.base_url} does not speak the chat API: {error}") from error
        # Servers of other makes leave out what the library's types promise.
        choices = getattr(made, "choices", None)
        text = (choices[0].message.content if choices else None) or ""
        usage = getattr(made, "usage", None)
        if not usage:
            return text, {}
        return text, {"in": usage.prompt_tokens, "out": usage.completion_tokens}

    def _secret(self) -> str:
        # The library insists on a key, also for servers that want none.
        return self.key_file.read_text().strip() if self.key_file else "none"

    def _parse(self, text: str) -> tuple[str, str, str]:
        """(element, direction, description). Raises LabelError saying what is wrong with an
        answer."""
        # Many models wrap JSON so, whatever they are told.
        inside = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
        try:
            answer = json.loads(inside.group(1) if inside else text)
        except (ValueError, RecursionError) as error:  # the latter of brackets without end
            raise LabelError(f"{text[:80]!r} is not JSON ({error})") from error
        keys = {"element", "direction"}
        if self.own_words:
            keys.add("description")
        # Nothing more than was asked for, either: a model that adds a field has not understood.
        is_complete = isinstance(answer, dict) and answer.keys() == keys
        if not is_complete or not all(isinstance(value, str) for value in answer.values()):
            raise LabelError(
                f"{text[:80]!r} is no JSON object of the texts {', '.join(sorted(keys))}"
            )
        direction = answer["direction"].strip().lower()
        element = element_name(answer["element"])
        if direction not in ALLOWED:
            raise LabelError(f"{direction!r} is no direction; it is one of {', '.join(ALLOWED)}")
        if not self.own_words:
            return element, direction, describe("operating", direction, element)
        words = " ".join(answer["description"].split())
        if not words:
            raise LabelError("the description is empty")
        encode_text(words, DESCRIPTION_BYTES, "description")
        return element, direction, words


class _NoAnswerError(Exception):
    """One segment has no answer; others may still get one."""


def confirm_on_terminal(cost: Cost) -> bool:
    """Show what it costs and ask; no without a terminal."""
    sys.stderr.write(f"{cost}\n")
    # In a batch job nobody can answer, and nobody's money is spent.
    if not sys.stdin.isatty():
        return False
    sys.stderr.write("Ask? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def data_url(picture: np.ndarray, enlarge: int = 1) -> str:
    """(h, w, 3) uint8 as a PNG in a URL, each pixel `enlarge` pixels a side."""
    file = io.BytesIO()
    # Repeated, not interpolated: a model is shown the pixels that there are. PNG loses none.
    Image.fromarray(picture.repeat(enlarge, 0).repeat(enlarge, 1)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _library() -> Any:
    try:
        import openai
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "annotating with a model needs the package 'openai': pip install -e '.[vlm]'"
        ) from None
    return openai


@functools.cache
def _client(base_url: str, key: str, timeout: float, retries: int) -> Any:
    """Connections that a process's threads share. Pauses between retries double up to eight
    seconds, or are what the server asks for."""
    return _library().OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)
