"""What people say to the robot: templates with paraphrases, and wordings kept apart for generalisation.

`seen` wordings are drawn while data is collected; `unseen` wordings only when generalisation is measured.
This file knows no physics.
"""

import numpy as np

SEEN: dict[str, tuple[str, ...]] = {
    "touch": ("touch the {object}", "reach for the {object}", "move the hand to the {object}"),
    "push": ("push the {object} to the {side}", "slide the {object} to the {side}", "shove the {object} {side}"),
    "place": (
        "put the {object} {relation} the {target}",
        "place the {object} {relation} the {target}",
        "move the {object} {relation} the {target}",
    ),
    "stack": (
        "stack the {object} on the {target}",
        "put the {object} on top of the {target}",
        "place the {object} on the {target}",
    ),
    "open": ("open the {object}", "pull the {object} open", "pull out the {object}"),
    "close": ("close the {object}", "push the {object} shut", "shut the {object}"),
    "rake": (
        "use the rake to pull the {object} closer",
        "pull the {object} closer with the rake",
        "bring the {object} nearer using the rake",
    ),
}
UNSEEN: dict[str, tuple[str, ...]] = {
    "touch": ("please go and touch the {object}", "the {object} : reach it"),
    "push": ("could you push the {object} over to the {side}", "to the {side} , push the {object}"),
    "place": ("{relation} the {target} , put the {object}", "take the {object} and put it {relation} the {target}"),
    "stack": ("on top of the {target} , stack the {object}", "take the {object} and stack it on the {target}"),
    "open": ("please open the {object} for me", "the {object} should be open"),
    "close": ("please close the {object} for me", "the {object} should be closed"),
    "rake": ("take the rake and bring the {object} closer", "the {object} is too far , use the rake to pull it"),
}


def say(skill: str, words: dict[str, str], rng: np.random.Generator, *, unseen: bool) -> str:
    """One wording of a skill, filled with the words of this episode."""
    wordings = (UNSEEN if unseen else SEEN)[skill]
    return wordings[rng.integers(len(wordings))].format(**words)
