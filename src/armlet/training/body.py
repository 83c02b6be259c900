"""What a policy must know of a robot and its data, measured on these: how a network is shown state
and actions, and the words. Whoever begins with no teacher's makes one: `teach`, and students of a
teacher behind a socket.
"""

import numpy as np

from armlet.data.episodes import EpisodeDataset
from armlet.data.text import train_tokenizer
from armlet.policies.contract import Body
from armlet.recipe import Recipe
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec

STATE = "observation.state"
ACTION = "action"


def body_of(
    recipe: Recipe, data: EpisodeDataset, spec: ActionSpec, state_names: tuple[str, ...]
) -> Body:
    """The body for these episodes, by their statistics; the same for the same data and recipe."""
    view = recipe.pictures.view(data.cameras, whose=str(data.root))
    return Body(
        action_spec=spec,
        state=state_normaliser(data),
        actions=Normaliser.of_actions(data.measured(ACTION), recipe.normalise_actions, spec),
        tokenizer=train_tokenizer(sorted(data.tasks)),  # sorted: their order says nothing
        state_names=state_names,
        fit=view.fit,
    )


def state_normaliser(data: EpisodeDataset) -> Normaliser:
    """Mean 0 and deviation 1, over all rows."""
    dims = len(data.state_names)
    if not dims:  # a robot without a state, or a recipe that reads none
        return Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))
    return Normaliser.from_statistics(data.measured(STATE), "mean_std", what=STATE, dims=dims)
