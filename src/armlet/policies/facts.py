"""What a student must know of its teacher, kept beside the traces: with it a student that takes
none of the teacher's weights is made, and taught from the traces, where the teacher itself is not.

`probe` writes it as `teacher.json` in the trace store's folder. Knows policies by their contract;
knows no recipe.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from armlet.data.files import read_json, write_atomically
from armlet.policies.building import rebuild
from armlet.policies.contract import Backbone, Body
from armlet.robot.fit import View

FACTS = "teacher.json"
VERSION = 1  # of the file, as its entry `armlet`


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher without its weights. `fingerprint` says which one: it is that of its folder."""

    fingerprint: str
    body: Body  # its robot, how it normalises, its words
    cameras: dict[str, tuple[int, int]]  # name → (height, width) of its pictures in pixels
    chunk: int  # actions that it decides at a time
    execute: int  # of these, how many it carries out before it looks again
    layers: int
    width: int  # of a token
    condition_width: int | None  # of the feature that conditions its action head
    vision_tokens: int  # of all cameras
    text_tokens: int  # of the longest instruction it takes
    network: dict[str, Any]  # as `Policy.to_json` describes it
    black_box: bool = False  # it answers behind a socket, and `network` is a stand-in of our own

    @classmethod
    def of(cls, policy: Backbone, fingerprint: str) -> Self:
        """What is to be known of a policy whose folder has this fingerprint."""
        return cls(
            fingerprint=fingerprint,
            body=policy.body,
            cameras=dict(policy.view.cameras),
            chunk=policy.chunk,
            execute=policy.execute,
            layers=len(policy.layers),
            width=policy.width,
            condition_width=policy.condition_width,
            vision_tokens=policy.vision_tokens,
            text_tokens=policy.text_tokens,
            network=json.loads(json.dumps(policy.to_json())),  # lists for tuples, as when read
        )

    @property
    def view(self) -> View:
        """How the teacher sees the pictures of a data set."""
        return View(dict(self.cameras), self.body.fit)

    def stand_in(self) -> Backbone:
        """A network of the teacher's shape, for its robot and with its words, and without weights (its
        parameters are on the meta device): what a student is made from that takes none of them
        (`Student.needs_teacher`). It can be asked about and cut, and answers nothing."""
        return rebuild(self.network, self.body.tokenizer, empty=True).eval()

    def write(self, folder: Path) -> None:
        """Whole or not at all, in place of what another teacher left there."""
        kept: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        kept["body"] = self.body.to_json()
        kept["tokenizer"] = json.loads(self.body.tokenizer.to_str())
        said = json.dumps({"armlet": VERSION, **kept}, indent=1)
        write_atomically(folder / FACTS, said.encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `write` left in a folder. Raises FileNotFoundError, or ValueError naming the
        file."""
        path = folder / FACTS
        fix = f"run `armlet probe` again, which writes it anew, or copy {FACTS} again"
        found = read_json(path, fix=fix)
        version = found.pop("armlet", None)
        if version != VERSION:
            raise ValueError(
                f"{path}: `armlet` is {version!r}, expected {VERSION}: another version of armlet "
                f"wrote it; {fix}"
            )
        try:
            tokenizer = Tokenizer.from_str(json.dumps(found.pop("tokenizer")))
            body = Body.from_json(found.pop("body"), tokenizer)
            cameras = {name: _size(each) for name, each in found.pop("cameras").items()}
            return cls(body=body, cameras=cameras, **found)
        except Exception as error:  # the tokenizers' library raises nothing more special
            raise ValueError(
                f"{path} does not describe a teacher ({type(error).__name__}: {error}); {fix}"
            ) from error


def _size(said: int | list[int]) -> tuple[int, int]:
    """(height, width) in pixels; one number is the side of a square, as it was kept before."""
    if isinstance(said, int):
        return said, said
    height, width = said
    return height, width
