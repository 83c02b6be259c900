"""What people say to the robot in each of Meta-World's fifty tasks, which ships no words of its
own.

`seen` wordings are drawn while data is collected; `unseen` wordings only when generalisation is
measured. The goal that a task marks with a sphere is "the blue ball". This file knows no physics.
"""

import numpy as np

# Task: (seen wordings, the first the plainest), (unseen wordings). A comma stands between blanks,
# as in the tabletop's.
WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "assembly-v3": (
        (
            "put the ring on the peg",
            "place the wrench's ring over the peg",
            "slide the ring onto the peg",
        ),
        ("fit the peg through the ring", "please assemble the ring and the peg"),
    ),
    "basketball-v3": (
        ("put the ball in the hoop", "drop the basketball into the hoop", "score a basket"),
        ("the ball belongs in the hoop", "please dunk the basketball"),
    ),
    "bin-picking-v3": (
        (
            "move the block to the other bin",
            "put the block into the empty bin",
            "take the block across to the other bin",
        ),
        ("the other bin should hold the block", "please change the block's bin"),
    ),
    "box-close-v3": (
        ("close the box with its lid", "put the lid on the box", "cover the box with the lid"),
        ("the box needs its lid", "please shut the box"),
    ),
    "button-press-topdown-v3": (
        ("press the button from above", "push the button down", "press down on the red button"),
        ("the button should be pressed from the top", "please go and press the button down"),
    ),
    "button-press-topdown-wall-v3": (
        (
            "press the button behind the wall from above",
            "push the button down past the wall",
            "press down behind the wall",
        ),
        ("from over the wall , press the button", "please press the button that the wall hides"),
    ),
    "button-press-v3": (
        (
            "press the button in front",
            "push the button in",
            "press the red button on the side of the box",
        ),
        ("the button in front should be pressed", "please push in the button"),
    ),
    "button-press-wall-v3": (
        (
            "press the button behind the wall",
            "push in the button past the wall",
            "go around the wall and press the button",
        ),
        ("around the wall , press the button", "please push in the button that the wall hides"),
    ),
    "coffee-button-v3": (
        (
            "press the button of the coffee machine",
            "start the coffee machine",
            "push the coffee machine's button",
        ),
        ("make some coffee", "please switch on the coffee machine"),
    ),
    "coffee-pull-v3": (
        (
            "pull the mug to the blue ball",
            "take the mug away from the coffee machine",
            "move the mug from the machine to the ball",
        ),
        ("the mug should stand at the blue ball", "please bring the mug out from the machine"),
    ),
    "coffee-push-v3": (
        (
            "push the mug under the coffee machine",
            "put the mug in the coffee machine",
            "move the mug to the machine",
        ),
        ("the mug should stand under the machine", "please get the mug ready for coffee"),
    ),
    "dial-turn-v3": (
        ("turn the dial", "rotate the dial", "twist the dial around"),
        ("the dial should be turned", "please give the dial a turn"),
    ),
    "disassemble-v3": (
        ("take the ring off the peg", "lift the ring from the peg", "remove the ring from the peg"),
        ("the peg should be free of the ring", "please disassemble the ring and the peg"),
    ),
    "door-close-v3": (
        ("close the door of the safe", "push the safe's door shut", "shut the door"),
        ("the door should be closed", "please close the safe for me"),
    ),
    "door-lock-v3": (
        ("lock the door", "turn the lock to lock the door", "rotate the lock down"),
        ("the door should be locked", "please lock the door for me"),
    ),
    "door-open-v3": (
        ("open the door of the safe", "pull the safe's door open", "open the door"),
        ("the door should be open", "please open the safe for me"),
    ),
    "door-unlock-v3": (
        ("unlock the door", "turn the lock to unlock the door", "rotate the lock to the side"),
        ("the door should be unlocked", "please unlock the door for me"),
    ),
    "drawer-close-v3": (
        ("close the drawer", "push the drawer shut", "shut the green drawer"),
        ("the drawer should be closed", "please close the drawer for me"),
    ),
    "drawer-open-v3": (
        ("open the drawer", "pull the drawer open", "pull out the green drawer"),
        ("the drawer should be open", "please open the drawer for me"),
    ),
    "faucet-close-v3": (
        ("close the faucet", "turn the faucet to the left", "shut the faucet off"),
        ("the faucet should be closed", "please turn off the faucet"),
    ),
    "faucet-open-v3": (
        ("open the faucet", "turn the faucet to the right", "let the faucet run"),
        ("the faucet should be open", "please turn on the faucet"),
    ),
    "hammer-v3": (
        (
            "hammer the nail in",
            "hit the nail with the hammer",
            "take the hammer and drive the nail in",
        ),
        ("the nail should be hammered in", "please use the hammer on the nail"),
    ),
    "hand-insert-v3": (
        (
            "put the hand into the hole",
            "insert the gripper in the hole",
            "reach down to the blue ball in the hole",
        ),
        ("the gripper belongs in the hole", "please lower the hand into the hole"),
    ),
    "handle-press-side-v3": (
        (
            "press the handle on the side down",
            "push the side handle down",
            "press the red handle at the side",
        ),
        ("the side handle should be down", "please lower the handle on the side"),
    ),
    "handle-press-v3": (
        ("press the handle down", "push down the handle", "press the red handle"),
        ("the handle should be down", "please lower the handle"),
    ),
    "handle-pull-side-v3": (
        (
            "pull the handle on the side up",
            "lift the side handle",
            "pull up the red handle at the side",
        ),
        ("the side handle should be up", "please raise the handle on the side"),
    ),
    "handle-pull-v3": (
        ("pull the handle up", "lift the handle", "pull up the red handle"),
        ("the handle should be up", "please raise the handle"),
    ),
    "lever-pull-v3": (
        ("pull the lever up", "turn the lever upwards", "lift the lever"),
        ("the lever should point up", "please raise the lever"),
    ),
    "peg-insert-side-v3": (
        (
            "insert the peg into the hole in the side",
            "put the peg in the box from the side",
            "push the peg into the hole",
        ),
        ("the peg belongs in the hole", "please fit the peg into the box"),
    ),
    "peg-unplug-side-v3": (
        ("unplug the peg", "pull the peg out of the hole", "pull out the plug to the side"),
        ("the hole should be empty of the peg", "please take the plug out"),
    ),
    "pick-out-of-hole-v3": (
        (
            "take the puck out of the hole",
            "lift the puck from the hole to the blue ball",
            "pick the puck out of the hole",
        ),
        ("the hole should be empty of the puck", "please get the puck out of there"),
    ),
    "pick-place-v3": (
        (
            "pick up the puck and take it to the blue ball",
            "lift the puck to the blue ball",
            "grasp the puck and hold it at the ball",
        ),
        ("the puck should be held where the blue ball is", "please carry the puck to the ball"),
    ),
    "pick-place-wall-v3": (
        (
            "take the puck over the wall to the blue ball",
            "lift the puck over the wall",
            "carry the puck past the wall to the ball",
        ),
        ("over the wall , bring the puck to the blue ball", "please get the puck behind the wall"),
    ),
    "plate-slide-back-side-v3": (
        (
            "slide the plate out of the net to the side",
            "pull the plate sideways to the blue ball",
            "slide the plate back to the side",
        ),
        ("the plate should leave the net sideways", "please get the plate out at the side"),
    ),
    "plate-slide-back-v3": (
        (
            "slide the plate back out of the net",
            "pull the plate back to the blue ball",
            "slide the plate towards the robot",
        ),
        ("the plate should leave the net", "please bring the plate back"),
    ),
    "plate-slide-side-v3": (
        (
            "slide the plate sideways into the net",
            "push the plate to the side into the net",
            "slide the plate into the net at the side",
        ),
        ("the net at the side should hold the plate", "please get the plate in there sideways"),
    ),
    "plate-slide-v3": (
        (
            "slide the plate into the net",
            "push the plate forward into the net",
            "slide the plate to the net",
        ),
        ("the net should hold the plate", "please shoot the plate into the net"),
    ),
    "push-back-v3": (
        (
            "push the puck back to the blue ball",
            "pull the puck towards the robot to the ball",
            "move the puck back to the ball",
        ),
        ("the puck should be back at the blue ball", "please bring the puck back"),
    ),
    "push-v3": (
        (
            "push the puck to the blue ball",
            "slide the puck to the blue ball",
            "move the puck over the table to the ball",
        ),
        ("the puck should lie at the blue ball", "please shove the puck to the ball"),
    ),
    "push-wall-v3": (
        (
            "push the puck around the wall to the blue ball",
            "slide the puck past the wall",
            "move the puck around the wall to the ball",
        ),
        (
            "around the wall , push the puck to the blue ball",
            "please shove the puck behind the wall",
        ),
    ),
    "reach-v3": (
        ("reach the blue ball", "move the hand to the blue ball", "touch the blue ball"),
        ("the hand should be at the blue ball", "please go to the ball"),
    ),
    "reach-wall-v3": (
        (
            "reach over the wall to the blue ball",
            "move the hand past the wall to the ball",
            "reach the blue ball behind the wall",
        ),
        ("over the wall , go to the blue ball", "please get the hand behind the wall to the ball"),
    ),
    "shelf-place-v3": (
        (
            "put the block on the shelf",
            "place the block on the shelf at the blue ball",
            "lift the block onto the shelf",
        ),
        ("the shelf should hold the block", "please shelve the block"),
    ),
    "soccer-v3": (
        ("push the ball into the goal", "kick the ball into the goal", "score a goal"),
        ("the goal should hold the ball", "please shoot the soccer ball"),
    ),
    "stick-pull-v3": (
        (
            "pull the thermos to the blue ball with the stick",
            "use the stick to pull the thermos",
            "hook the stick in and pull",
        ),
        (
            "the thermos should come to the ball , use the stick",
            "please take the stick and bring the thermos",
        ),
    ),
    "stick-push-v3": (
        (
            "push the thermos to the blue ball with the stick",
            "use the stick to push the thermos",
            "take the stick and push",
        ),
        (
            "the thermos should go to the ball , use the stick",
            "please shove the thermos with the stick",
        ),
    ),
    "sweep-into-v3": (
        (
            "sweep the block into the hole",
            "push the block into the hole",
            "move the block over the table into the hole",
        ),
        ("the hole should hold the block", "please sweep the block down there"),
    ),
    "sweep-v3": (
        (
            "sweep the block off the table",
            "sweep the block over the edge",
            "push the block off the edge of the table",
        ),
        ("the table should be free of the block", "please wipe the block away"),
    ),
    "window-close-v3": (
        ("close the window", "slide the window shut", "push the window closed"),
        ("the window should be closed", "please close the window for me"),
    ),
    "window-open-v3": (
        ("open the window", "slide the window open", "push the window to the side to open it"),
        ("the window should be open", "please open the window for me"),
    ),
}

# The thing that each task is about, in its own words: what its hand goes to first.
THINGS: dict[str, str] = {
    "assembly-v3": "ring",
    "basketball-v3": "ball",
    "bin-picking-v3": "block",
    "box-close-v3": "lid",
    "button-press-topdown-v3": "button",
    "button-press-topdown-wall-v3": "button",
    "button-press-v3": "button",
    "button-press-wall-v3": "button",
    "coffee-button-v3": "coffee machine",
    "coffee-pull-v3": "mug",
    "coffee-push-v3": "mug",
    "dial-turn-v3": "dial",
    "disassemble-v3": "ring",
    "door-close-v3": "door",
    "door-lock-v3": "lock",
    "door-open-v3": "door",
    "door-unlock-v3": "lock",
    "drawer-close-v3": "drawer",
    "drawer-open-v3": "drawer",
    "faucet-close-v3": "faucet",
    "faucet-open-v3": "faucet",
    "hammer-v3": "hammer",
    "hand-insert-v3": "hole",
    "handle-press-side-v3": "handle",
    "handle-press-v3": "handle",
    "handle-pull-side-v3": "handle",
    "handle-pull-v3": "handle",
    "lever-pull-v3": "lever",
    "peg-insert-side-v3": "peg",
    "peg-unplug-side-v3": "peg",
    "pick-out-of-hole-v3": "puck",
    "pick-place-v3": "puck",
    "pick-place-wall-v3": "puck",
    "plate-slide-back-side-v3": "plate",
    "plate-slide-back-v3": "plate",
    "plate-slide-side-v3": "plate",
    "plate-slide-v3": "plate",
    "push-back-v3": "puck",
    "push-v3": "puck",
    "push-wall-v3": "puck",
    "reach-v3": "blue ball",
    "reach-wall-v3": "blue ball",
    "shelf-place-v3": "block",
    "soccer-v3": "ball",
    "stick-pull-v3": "stick",
    "stick-push-v3": "stick",
    "sweep-into-v3": "block",
    "sweep-v3": "block",
    "window-close-v3": "window",
    "window-open-v3": "window",
}


def say(task: str, rng: np.random.Generator, *, unseen: bool) -> str:
    """One wording of a task."""
    wordings = WORDINGS[task][1 if unseen else 0]
    return wordings[rng.integers(len(wordings))]
