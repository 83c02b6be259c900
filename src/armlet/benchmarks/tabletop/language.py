"""What people say to the robot: templates with paraphrases, and wordings kept apart for
generalisation.

`SEEN` wordings are drawn while data is collected, the others only when generalisation is measured:
those in `UNSEEN` bring new words and are often longer than any seen one, so a network meets
embeddings that nothing has trained; those in `KNOWN_WORDS` say it anew in words that occur among
the seen wordings of some task, in no more of them than the longest. This file knows no physics.
"""

import numpy as np

# Skill → templates. What stands in braces are the words of an episode: `object`, `side`, `target`,
# and `relation` ("on" a plate, "into" a box).
SEEN: dict[str, tuple[str, ...]] = {
    "touch": ("touch the {object}", "reach for the {object}", "move the hand to the {object}"),
    "push": (
        "push the {object} to the {side}",
        "slide the {object} to the {side}",
        "shove the {object} {side}",
    ),
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
    "place": (
        "{relation} the {target} , put the {object}",
        "take the {object} and put it {relation} the {target}",
    ),
    "stack": (
        "on top of the {target} , stack the {object}",
        "take the {object} and stack it on the {target}",
    ),
    "open": ("please open the {object} for me", "the {object} should be open"),
    "close": ("please close the {object} for me", "the {object} should be closed"),
    "rake": (
        "take the rake and bring the {object} closer",
        "the {object} is too far , use the rake to pull it",
    ),
}


KNOWN_WORDS: dict[str, tuple[str, ...]] = {
    "touch": (
        "put the hand on the {object}",
        "reach the {object} with the hand",
        "bring the hand to the {object}",
    ),
    "push": (
        "move the {object} to the {side}",
        "slide the {object} {side}",
        "use the hand to push the {object} {side}",
    ),
    "place": (
        "bring the {object} {relation} the {target}",
        "{relation} the {target} put the {object}",
        "{relation} the {target} place the {object}",
    ),
    "stack": (
        "move the {object} on top of the {target}",
        "on top of the {target} place the {object}",
        "bring the {object} on top of the {target}",
    ),
    "open": (
        "slide the {object} open",
        "slide out the {object}",
        "use the hand to open the {object}",
    ),
    "close": (
        "slide the {object} shut",
        "push to close the {object}",
        "use the hand to shut the {object}",
    ),
    "rake": (
        "use the rake to bring the {object} nearer",
        "with the rake pull the {object} closer",
        "move the {object} closer using the rake",
    ),
}
WORDINGS = {"unseen_wordings": UNSEEN, "known_words": KNOWN_WORDS}
"""By split; every other one speaks as was seen."""


def say(skill: str, words: dict[str, str], rng: np.random.Generator, *, split: str) -> str:
    """One of a split's wordings of a skill, filled with the words of this episode."""
    wordings = WORDINGS.get(split, SEEN)[skill]
    return wordings[rng.integers(len(wordings))].format(**words)
