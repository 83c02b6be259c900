"""What stands on the table: a layout drawn from a seed, and the MuJoCo model that it describes.

World frame, metres: +x away from the robot's operator, +y left, +z up, table top at z = 0. The hand
can reach x ≤ `REACH`; what lies beyond needs a tool. This file knows no task rule, no words and no
expert.
"""

from dataclasses import dataclass, field
from typing import Literal

import mujoco
import numpy as np

Shape = Literal["cube", "cylinder"]
Kind = Literal["object", "plate", "box", "drawer", "rake"]

REACH = 0.14
# Where the tool centre can be sent.
LOW = np.array([-0.24, -0.22, 0.006])
HIGH = np.array([REACH, 0.22, 0.24])
OBJECT_HALF = 0.02  # half a cube's side, a cylinder's radius and half its height
DRAWER_TRAVEL = 0.12  # from closed to open
HANDLE_FORWARD = 0.03  # how far the handle stands in front of its drawer's closed front
RAKE_GRIP = -0.06  # where to hold the rake, along its own x axis
RAKE_BAR = 0.11  # where its crossbar is
RAKE_HEIGHT = 0.055  # of its handle above the table: an object passes below
RAKE_DROP = 0.030  # from the handle down to the middle of the crossbar

# So much that nothing that lies or pushes on it changes its speed.
BELT_MASS = 200.0  # kg
BELT_DRIVE = 20_000.0  # N·s/m

OBJECT_COLOURS = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.70, 0.20),
    "blue": (0.10, 0.25, 0.90),
    "yellow": (0.92, 0.82, 0.10),
    "purple": (0.55, 0.15, 0.70),
}
PLACE_COLOURS = {
    "white": (0.97, 0.97, 0.97),
    "black": (0.08, 0.08, 0.08),
    "orange": (1.0, 0.50, 0.05),
}
SHAPES: tuple[Shape, ...] = ("cube", "cylinder")
# Never on the table in a `seen` scene.
HELD_OUT: set[tuple[str, Shape]] = {("green", "cylinder"), ("purple", "cube")}
# Colours of the table: of seen scenes, and of `unseen_scenes`.
TABLES = ((0.78, 0.68, 0.55), (0.70, 0.72, 0.74), (0.60, 0.52, 0.45))
UNSEEN_TABLES = ((0.45, 0.60, 0.50), (0.85, 0.78, 0.82))


@dataclass(frozen=True)
class Thing:
    """One movable or fixed thing. `name` is also its body's name; `opening` is a drawer's starting
    position."""

    name: str
    kind: Kind
    colour: tuple[float, float, float]
    position: tuple[float, float]
    shape: Shape = "cube"
    yaw: float = 0.0
    opening: float = 0.0


@dataclass(frozen=True)
class Look:
    """Lighting, table and camera: what makes a scene look the way it does."""

    table: tuple[float, float, float] = TABLES[0]
    light: tuple[float, float, float] = (0.3, 0.25, 0.9)
    ambient: float = 0.45
    camera_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Layout:
    """Everything that stands on the table, and how it looks. `belt`: how fast all of it is carried
    along y, in m/s; 0 is a table."""

    things: tuple[Thing, ...]
    hand: tuple[float, float, float]
    look: Look = field(default_factory=Look)
    belt: float = 0.0


def draw_look(rng: np.random.Generator, *, unseen: bool) -> Look:
    """A seen scene varies a little; an unseen one has another table, light from elsewhere and a
    moved camera."""
    if unseen:
        side = rng.choice([-1.0, 1.0])
        return Look(
            table=UNSEEN_TABLES[rng.integers(len(UNSEEN_TABLES))],
            light=(-0.5, 0.6 * side, 0.6),
            ambient=float(rng.uniform(0.3, 0.4)),
            # Metres, and six times as far as in seen scenes.
            camera_shift=tuple(rng.uniform(-0.035, 0.035, 3)),
        )
    return Look(
        table=TABLES[rng.integers(len(TABLES))],
        light=(float(rng.uniform(0.1, 0.5)), float(rng.uniform(-0.1, 0.4)), 0.9),
        ambient=float(rng.uniform(0.42, 0.55)),
        camera_shift=tuple(rng.uniform(-0.006, 0.006, 3)),
    )


def spread(
    rng: np.random.Generator,
    count: int,
    low: tuple[float, float],
    high: tuple[float, float],
    gap: float,
) -> list[tuple[float, float]]:
    """`count` points in a rectangle, each at least `gap` from every other (rejection; restarts when
    stuck)."""
    while True:
        points: list[np.ndarray] = []
        for _ in range(200):
            point = rng.uniform(low, high)
            distances = [np.linalg.norm(point - other) for other in points]
            if not distances or min(distances) >= gap:
                points.append(point)
            if len(points) == count:
                return [(float(x), float(y)) for x, y in points]


def draw_objects(rng: np.random.Generator, count: int, *, unseen: bool) -> list[tuple[str, Shape]]:
    """`count` (colour, shape) pairs of different colours; with `unseen` the first is a held-out
    pair."""
    # Different colours, so that the colour alone says which thing is meant.
    colours = list(OBJECT_COLOURS)
    rng.shuffle(colours)
    if unseen:
        first = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
        colours.remove(first[0])
        colours.insert(0, first[0])
    chosen: list[tuple[str, Shape]] = []
    for index, colour in enumerate(colours[:count]):
        # The first thing of a list is the one that is meant.
        allowed = _shapes(colour, held_out=unseen and index == 0)
        chosen.append((colour, allowed[rng.integers(len(allowed))]))
    return chosen


def draw_twins(rng: np.random.Generator, count: int, *, unseen: bool) -> list[tuple[str, Shape]]:
    """`count` (colour, shape) pairs, at least three, of which the first and the last are of one
    colour and differ in their shape, so that naming the first takes its shape; the others are of
    other colours. With `unseen` the first is a held-out pair; all others are pairs that seen scenes
    have, and so is the first without it."""
    if unseen:
        firsts = sorted(HELD_OUT)
    else:
        # Of colours that are seen in both shapes: the twin must be a pair that is seen, too.
        firsts = []
        for each in OBJECT_COLOURS:
            if not _shapes(each, held_out=True):
                firsts += [(each, shape) for shape in SHAPES]
    colour, shape = firsts[rng.integers(len(firsts))]
    twin = next(other for other in SHAPES if other != shape)
    others = [other for other in OBJECT_COLOURS if other != colour]
    rng.shuffle(others)
    between: list[tuple[str, Shape]] = []
    for other in others[: count - 2]:
        allowed = _shapes(other, held_out=False)
        between.append((other, allowed[rng.integers(len(allowed))]))
    return [(colour, shape), *between, (colour, twin)]


def _shapes(colour: str, *, held_out: bool) -> list[Shape]:
    """The shapes that are never seen in this colour, or those that are."""
    return [shape for shape in SHAPES if ((colour, shape) in HELD_OUT) == held_out]


def build_model(layout: Layout) -> mujoco.MjModel:
    """The MuJoCo model of a layout, with cameras `scene` and `wrist`."""
    return mujoco.MjModel.from_xml_string(scene_xml(layout))


def _rgba(colour: tuple[float, float, float]) -> str:
    return f"{colour[0]:.3f} {colour[1]:.3f} {colour[2]:.3f} 1"


def _look_at(eye: np.ndarray, target: np.ndarray) -> str:
    """The axes of a camera, as MJCF has them: its x (right) and its y (up), which is as much up as
    it can be."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    return " ".join(f"{value:.6f}" for value in (*right, *up))


def scene_xml(layout: Layout) -> str:
    """MJCF text of a layout."""
    # A backslash at the end of a line of MJCF takes the line end away: the text stays, to the byte,
    # the one that older results were made with.
    eye = np.array([-0.36, 0.0, 0.80]) + layout.look.camera_shift
    fixed = [thing for thing in layout.things if thing.kind in ("plate", "box")]
    loose = [thing for thing in layout.things if thing not in fixed]
    # Without a belt in the order of the layout: bodies' numbers, and so the bits of a simulation,
    # hang on it.
    if layout.belt:
        table = _belt_xml(layout, fixed)
        drive = f'<velocity joint="belt" kv="{BELT_DRIVE}"/>'
        bodies = "".join(_THING_XML[thing.kind](thing) for thing in loose)
    else:
        table = _table_xml(layout)
        drive = ""
        bodies = "".join(_THING_XML[thing.kind](thing) for thing in layout.things)
    return f"""<mujoco>
<option timestep="0.005" integrator="implicitfast" cone="elliptic" impratio="10"/>
<worldbody>
<light pos="0 0 2" dir="-.2 -.2 -1"/>
{table}
<camera name="scene" pos="{eye[0]:.6f} {eye[1]:.6f} {eye[2]:.6f}" \
xyaxes="{_look_at(eye, np.array([0.035, 0, 0]))}" fovy="31"/>
{_HAND_XML}
{bodies}
</worldbody>
<actuator>
<position joint="x" kp="1200" kv="55"/>\
<position joint="y" kp="1200" kv="55"/>\
<position joint="z" kp="1200" kv="55"/>
<position joint="left" kp="300" kv="6" forcerange="-8 8"/>\
<position joint="right" kp="300" kv="6" forcerange="-8 8"/>{drive}
</actuator>
</mujoco>"""


def _table_xml(layout: Layout) -> str:
    rgba = _rgba(layout.look.table)
    return f'<geom name="table" type="plane" size="1 1 .1" rgba="{rgba}" friction="1"/>'


def _belt_xml(layout: Layout, fixed: list[Thing]) -> str:
    """Where the table's top would be, a slab that looks like it and moves along y; what a table has
    fixed to it is fixed to the slab. It is wider than the cameras see and longer than it travels,
    so a picture shows only that things move. The table below it holds nothing: an object that stood
    on both would be held back by it."""
    rgba = _rgba(layout.look.table)
    riders = "".join(_THING_XML[thing.kind](thing) for thing in fixed)
    return f"""<geom name="table" type="plane" size="1 1 .1" pos="0 0 -.05" rgba="{rgba}" \
friction="1"/>
<body name="belt" pos="0 0 0" gravcomp="1"><joint name="belt" type="slide" axis="0 1 0"/>
<geom type="box" size="1 1.5 .01" pos="0 0 -.01" rgba="{rgba}" friction="1" mass="{BELT_MASS}"/>
{riders}</body>"""


# Two fingers and a palm that nothing touches (contype 0), moved along x, y and z by three slides:
# an arm that never reaches its own limits. gravcomp: it does not fall.
_FINGER = (
    '<geom type="box" size=".012 .006 .04" rgba=".6 .6 .65 1" mass=".05" friction="2" condim="4"/>'
)
_HAND_XML = f"""<body name="hand" pos="0 0 0" gravcomp="1">
<joint name="x" type="slide" axis="1 0 0"/>\
<joint name="y" type="slide" axis="0 1 0"/>\
<joint name="z" type="slide" axis="0 0 1"/>
<geom type="box" size=".016 .055 .012" pos="0 0 .086" rgba=".3 .3 .35 1" mass=".6" contype="0" \
conaffinity="0"/>
<site name="tcp" pos="0 0 0"/>
<camera name="wrist" pos="-.085 0 .060" xyaxes="0 -1 0 .66 0 .75" fovy="80"/>
<body name="left_finger" pos="0 .006 .032" gravcomp="1">\
<joint name="left" type="slide" axis="0 1 0" range="0 .034"/>{_FINGER}</body>
<body name="right_finger" pos="0 -.006 .032" gravcomp="1">\
<joint name="right" type="slide" axis="0 -1 0" range="0 .034"/>{_FINGER}</body>
</body>"""


def _object_xml(thing: Thing) -> str:
    half = OBJECT_HALF
    # Sizes in MJCF are half sides, or a radius and half a height.
    size = f"{half} {half} {half}" if thing.shape == "cube" else f"{half} {half}"
    kind = "box" if thing.shape == "cube" else "cylinder"
    x, y = thing.position
    return (
        f'<body name="{thing.name}" pos="{x:.6f} {y:.6f} {half + 0.0005}" '
        f'euler="0 0 {np.degrees(thing.yaw):.4f}"><freejoint/>'
        f'<geom type="{kind}" size="{size}" rgba="{_rgba(thing.colour)}" mass=".05" '
        'friction="1.2 .01 .001" condim="4"/></body>'
    )


def _plate_xml(thing: Thing) -> str:
    x, y = thing.position
    return (
        f'<body name="{thing.name}" pos="{x:.6f} {y:.6f} .004">'
        f'<geom type="cylinder" size=".045 .004" rgba="{_rgba(thing.colour)}"/></body>'
    )


def _box_xml(thing: Thing) -> str:
    x, y = thing.position
    rgba = _rgba(thing.colour)
    walls = ""
    for size, position in (  # half a wall's sides, and where its middle is
        (".045 .004 .012", "0 .041 .012"),
        (".045 .004 .012", "0 -.041 .012"),
        (".004 .041 .012", ".041 0 .012"),
        (".004 .041 .012", "-.041 0 .012"),
    ):
        walls += f'<geom type="box" size="{size}" pos="{position}" rgba="{rgba}"/>'
    base = f'<geom type="box" size=".041 .041 .002" pos="0 0 .002" rgba="{rgba}"/>'
    return f'<body name="{thing.name}" pos="{x:.6f} {y:.6f} 0">{base}{walls}</body>'


def _drawer_xml(thing: Thing) -> str:
    """A drawer that slides along x inside a fixed cabinet; its handle is a post that the fingers
    can close on."""
    x, y = thing.position
    rgba = _rgba(thing.colour)
    # Its bottom and the rod of its handle touch nothing (contype 0): fingers shall find the post.
    forward = HANDLE_FORWARD
    return f"""<body name="{thing.name}_cabinet" pos="{x:.6f} {y:.6f} 0">
<geom type="box" size=".07 .060 .004" pos=".07 0 .056" rgba=".45 .40 .36 1"/>
<geom type="box" size=".07 .003 .026" pos=".07 .057 .026" rgba=".45 .40 .36 1"/>
<geom type="box" size=".07 .003 .026" pos=".07 -.057 .026" rgba=".45 .40 .36 1"/>
<body name="{thing.name}" pos="0 0 .025">\
<joint name="{thing.name}_slide" type="slide" axis="-1 0 0" range="0 {DRAWER_TRAVEL}" damping="3" \
frictionloss=".4"/>
<geom type="box" size=".005 .050 .021" pos="0 0 0" rgba=".75 .72 .68 1" mass=".1"/>
<geom type="box" size=".06 .048 .003" pos=".06 0 -.018" rgba=".75 .72 .68 1" mass=".1" contype="0" \
conaffinity="0"/>
<geom type="box" size="{forward / 2} .005 .005" pos="{-forward / 2} 0 .0" rgba="{rgba}" mass=".02" \
contype="0" conaffinity="0"/>
<geom type="box" size=".009 .012 .022" pos="{-forward} 0 .012" rgba="{rgba}" mass=".03" \
friction="2" condim="4"/>
</body></body>"""


def _rake_xml(thing: Thing) -> str:
    """A handle on two legs; the far leg is the wide crossbar that pulls. Objects fit below the
    handle."""
    x, y = thing.position
    rgba = _rgba(thing.colour)
    turned = f"0 0 {np.degrees(thing.yaw):.4f}"
    return f"""<body name="{thing.name}" pos="{x:.6f} {y:.6f} {RAKE_HEIGHT + 0.0005}" \
euler="{turned}"><freejoint/>
<geom type="box" size=".105 .009 .009" rgba="{rgba}" mass=".03" friction="2" condim="4"/>
<geom type="box" size=".006 .05 .024" pos="{RAKE_BAR} 0 {-RAKE_DROP}" rgba="{rgba}" mass=".012" \
friction=".6" condim="4"/>
<geom type="box" size=".006 .03 .023" pos="-.099 0 {-RAKE_DROP - 0.001}" rgba="{rgba}" mass=".008" \
friction=".6" condim="4"/>
</body>"""


_THING_XML = {
    "object": _object_xml,
    "plate": _plate_xml,
    "box": _box_xml,
    "drawer": _drawer_xml,
    "rake": _rake_xml,
}
