"""Whom a student learns from: the teacher itself or, where none of its weights are needed, what
`probe` kept of it. So a student that starts from nothing is distilled from the traces alone. A
teacher behind a socket is only ever known by what it answered.

Knows recipes by their fields, none by name.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from armlet.data import hub
from armlet.data.episodes import EpisodeDataset
from armlet.policies.acting import behind_socket, socket_policy
from armlet.policies.checkpoint import load_with_fingerprint, policy_fingerprint
from armlet.policies.contract import Backbone
from armlet.policies.facts import FACTS, TeacherFacts
from armlet.policies.pretrained.said import Said
from armlet.policies.remote.policy import SocketPolicy
from armlet.recipe import Recipe, at_hand
from armlet.robot.client.address import address_of
from armlet.robot.client.line import ServerError
from armlet.robot.spec import RobotSpec
from armlet.training.black_box import facts_of, facts_of_server, of_black_box


@dataclass(frozen=True)
class Met:
    """A teacher, met: the recipe as it can be distilled from it; what is known of it; the network
    that students are built from; and who labels in rounds what a student meets, where that is
    another: a teacher behind a socket."""

    recipe: Recipe
    facts: TeacherFacts
    network: Backbone
    server: SocketPolicy | None = None

    @property
    def labels(self) -> Backbone | SocketPolicy:
        return self.server or self.network


def meet_teacher(
    recipe: Recipe, data: EpisodeDataset, device: str, known: Callable[[], RobotSpec]
) -> Met:
    """What is known of the teacher, and the policy that students are built from: the teacher or,
    where none of its weights are needed, a stand-in without any. `known`: see `load_policy`.

    Raises FileNotFoundError naming the teacher's folder where it is not there and is needed, and
    ValueError where the recipe needs more of a teacher behind a socket than its actions.
    """
    said = behind_socket(recipe.teacher)
    if said is not None:
        return _meet_server(recipe, data, said, device, known)
    why = recipe.why_teacher_is_needed
    there = _is_there(recipe.teacher)
    if not why:
        facts = _known(recipe, device, known, there=there)
        return Met(recipe, facts, facts.stand_in())
    if not there:
        raise FileNotFoundError(
            f"{recipe.teacher} is not there, and {recipe.name} needs the weights of its teacher: "
            f"{why}. Give the teacher's folder with `--teacher`"
        )
    teacher, fingerprint = load_with_fingerprint(recipe.teacher, device=device, known=known)
    return Met(recipe, TeacherFacts.of(teacher, fingerprint), teacher)


def _meet_server(
    recipe: Recipe, data: EpisodeDataset, said: Said, device: str, known: Callable[[], RobotSpec]
) -> Met:
    """Where the server does not answer, and nothing is asked of it any more, what `probe` kept is
    enough."""
    recipe = of_black_box(recipe, address_of(said.checkpoint))
    kept = TeacherFacts.read(recipe.traces) if _is_kept(recipe.traces) else None
    optional = kept is not None and kept.black_box and not recipe.rounds
    server = None
    try:
        # Called once where it may as well be away: nobody should wait for a minute to learn that.
        server = socket_policy(said, known, retries=0 if optional else None)
    except ServerError as error:
        if not optional:
            raise
        sys.stderr.write(
            f"{recipe.name}: {error}; what `probe` kept of the teacher in {recipe.traces} is used\n"
        )
    if server is not None:
        facts = facts_of_server(recipe, data, server)
    else:
        assert kept is not None  # looked at above
        facts = facts_of(
            recipe,
            data,
            kept.body.action_spec,
            kept.body.state_names,
            chunk=kept.chunk,
            execute=kept.execute,
            fingerprint=kept.fingerprint,
        )
    return Met(recipe, facts, facts.stand_in(), server)


def fetched(recipe: Recipe) -> Recipe:
    """The recipe with a teacher on the hub at hand, under the name of one commit; where it cannot be
    had and is not needed, under its own. Raises what `recipe.at_hand` does."""
    try:
        return at_hand(recipe, reads=("teacher",))
    except OSError:  # no network, no such repository, no leave to read it
        if recipe.why_teacher_is_needed or not _is_kept(recipe.traces):
            raise
        return recipe


def _is_kept(traces: Path) -> bool:
    """Whether `probe` has kept what a student must know of the teacher, beside these traces."""
    return (traces / FACTS).is_file()


def _is_there(teacher: Path) -> bool:
    """Whether the teacher's folder is there; on the hub, whether it was fetched."""
    if hub.is_name(teacher):  # `fetched` pins the commit of what it fetched
        return hub.parse(teacher).is_pinned
    return teacher.exists()


def _known(
    recipe: Recipe, device: str, known: Callable[[], RobotSpec], *, there: bool
) -> TeacherFacts:
    """Of the teacher in its folder, where it is there: it may be another than the one that `probe`
    met, and what is wrong with that is said where the traces are opened."""
    kept = TeacherFacts.read(recipe.traces) if _is_kept(recipe.traces) else None
    if not there:
        if kept is None:
            raise FileNotFoundError(
                f"{recipe.teacher} is not there, and neither is {recipe.traces / FACTS}, in which "
                "`armlet probe` keeps what a student must know of its teacher. Give the teacher's "
                "folder with `--teacher`, or run `armlet probe` where it is"
            )
        sys.stderr.write(
            f"{recipe.name}: {recipe.teacher} is not there; what `probe` kept of the teacher in "
            f"{recipe.traces} is used\n"
        )
        return kept
    # It is there: it is asked itself, unless what was kept is of just this one, which is quicker.
    if kept is not None and kept.fingerprint == policy_fingerprint(recipe.teacher):
        return kept
    return TeacherFacts.of(*load_with_fingerprint(recipe.teacher, device=device, known=known))
