"""What stands in a LIBERO scene, as the expert wants to know it: poses, shapes, what the hand holds,
where a thing can be seized and where it should go.

Knows LIBERO's models and the predicates of its goals; decides nothing but which of several grasps
has room.
"""

from typing import Any

import mujoco
import numpy as np
from scipy.spatial import ConvexHull, QhullError

from armlet.benchmarks.libero import expert
from armlet.benchmarks.libero.expert import Facts, Grasp, Handle, Lever, Place

# Bodies that are the robot, or what everything stands on.
_NO_OBSTACLES = ("robot0", "gripper0", "mount0", "world", "table", "floor")
_PADS = ("gripper0_finger1_pad_collision", "gripper0_finger2_pad_collision")
_DENSE = 1000  # points that are enough of a mesh to stand in a hand's way
_UPRIGHT = np.cos(np.radians(10))
_RIDGE = 0.018  # metres below the top of a knob, to where it is seized
_TOPPLED = np.cos(np.radians(25))


class Scenery:
    """Reads one simulation. `begin` is called when an episode has."""

    def __init__(self, env: Any, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._env = env
        self._model = model
        self._data = data
        robot = env.robots[0]
        self._site = robot.eef_site_id
        self._base = model.body(robot.robot_model.root_body).id
        self.hand_body = model.body(robot.robot_model.eef_name).id
        self._fingers = list(robot._ref_gripper_joint_pos_indexes)
        self._finger_speeds = list(robot._ref_gripper_joint_vel_indexes)
        self._pads = [{model.geom(name).id} | _finger_geoms(model, name) for name in _PADS]
        self._shapes: dict[int, np.ndarray] = {}
        self._planned: dict[str, tuple[Grasp, tuple[np.ndarray, np.ndarray]]] = {}
        self._ceilings: dict[str, float] = {}
        self.goals: list[list[str]] = env.parsed_problem["goal_state"]

    def begin(self) -> None:
        """Forget what was planned for the episode before."""
        self._planned.clear()
        self._ceilings.clear()

    # --- the hand

    @property
    def hand(self) -> np.ndarray:
        """(3,) metres: the point between the fingertips."""
        return self._data.site_xpos[self._site].copy()

    @property
    def turned(self) -> np.ndarray:
        """(3, 3): the rotation of the grip site."""
        return self._data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def fingers(self) -> np.ndarray:
        """(2,) metres: how far each finger is open; the second counts downwards."""
        return self._data.qpos[self._fingers].copy()

    # --- things

    def body(self, name: str) -> int:
        """The number of the body of a thing or a fixture."""
        return int(self._env.obj_body_id[name])

    def position(self, name: str) -> np.ndarray:
        """(3,) metres, of a thing, a fixture, or a region of one."""
        if name in self._env.object_sites_dict:
            return self._data.site_xpos[self._model.site(name).id].copy()
        return self._data.xpos[self.body(name)].copy()

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3)."""
        body = self.body(name)
        return self._data.xpos[body].copy(), self._data.xmat[body].reshape(3, 3).copy()

    def points(self, name: str) -> np.ndarray:
        """(n, 3) metres: corners of the hull of a thing."""
        body = self.body(name)
        if body not in self._shapes:
            position, rotation = self.pose(name)
            cloud = self._whole(body)
            self._shapes[body] = _corners((cloud - position) @ rotation)
        position, rotation = self.pose(name)
        return self._shapes[body] @ rotation.T + position

    def holds(self, name: str) -> bool:
        """Whether both fingers touch a thing."""
        return self._touched(self.body(name))

    def _touched(self, body: int) -> bool:
        """Whether both fingers touch a body, or what hangs from it."""
        bodies = set(_subtree(self._model, body))
        touching = set()
        for contact in self._data.contact:
            pair = (int(contact.geom1), int(contact.geom2))
            of_thing = any(int(self._model.geom_bodyid[geom]) in bodies for geom in pair)
            for finger, geoms in enumerate(self._pads):
                if of_thing and not geoms.isdisjoint(pair):
                    touching.add(finger)
        return len(touching) == 2

    # --- what is asked for

    def things(self) -> list[str]:
        """The names of all that can be moved."""
        return list(self._env.objects_dict)

    def open_goal(self) -> list[str]:
        """The first predicate of the goal that does not hold yet; the last one where all do."""
        for goal in self.goals:
            if not self._env._eval_predicate(goal):
                return goal
        return self.goals[-1]

    # --- what the expert reads

    def facts(self, thing: str) -> Facts:
        """What it reads of the hand and a thing."""
        lowest = float(self.points(thing)[:, 2].min())
        return self._facts(self.holds(thing), self.position(thing), lowest, self._ceilings[thing])

    def _facts(self, held: bool, middle: np.ndarray, lowest: float, ceiling: float) -> Facts:
        left, right = self.fingers
        speeds = self._data.qvel[self._finger_speeds]
        return Facts(
            hand=self.hand,
            turned=self.turned,
            gap=float(left - right),
            at_rest=bool(np.abs(speeds).max() < 0.01),
            held=held,
            middle=middle,
            lowest=lowest,
            ceiling=ceiling,
        )

    def plan(self, thing: str, place: Place) -> Grasp:
        """How to seize a thing: of its grasps the first with room for the hand, chosen when the
        episode begins, and anew where the thing has fallen over."""
        pose = self.pose(thing)
        if thing in self._planned:
            grasp, then = self._planned[thing]
            if pose[1][:, 2] @ then[1][:, 2] > _TOPPLED:
                return grasp.moved(then, pose)
        found = expert.grasps(self.points(thing))
        obstacles = self._obstacles(thing)
        grasp = _roomiest(found, obstacles)
        if thing not in self._ceilings:
            self._ceilings[thing] = self._ceiling(thing, place, obstacles)
        self._planned[thing] = (grasp, pose)
        return grasp

    # --- drawers and knobs

    def moving_part(self, name: str) -> tuple[int, int] | None:
        """The body and the joint of what moves with a region, or of a fixture's only moving part;
        None where nothing does, or several might."""
        if name in self._env.object_sites_dict:
            bodies = [int(self._model.site_bodyid[self._model.site(name).id])]
        else:
            bodies = _subtree(self._model, self.body(name))
        found = []
        for body in bodies:
            first = int(self._model.body_jntadr[body])
            for joint in range(first, first + int(self._model.body_jntnum[body])):
                if self._model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE.value:
                    found.append((body, joint))
        return found[0] if len(found) == 1 else None

    def is_drawer(self, name: str) -> bool:
        part = self.moving_part(name) if name in self._env.object_sites_dict else None
        return part is not None and self._is_slide(part[1])

    def is_knob(self, name: str) -> bool:
        """Whether a fixture has a single hinge, and that one stands upright."""
        part = None if name in self._env.object_sites_dict else self.moving_part(name)
        return (
            part is not None
            and not self._is_slide(part[1])
            and abs(float(self._data.xaxis[part[1]][2])) > _UPRIGHT
        )

    def _is_slide(self, joint: int) -> bool:
        return bool(self._model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE.value)

    def opened(self, name: str) -> float:
        """How far a drawer is open: 0 to 1."""
        part = self.moving_part(name)
        assert part is not None
        at = float(self._data.qpos[self._model.jnt_qposadr[part[1]]])
        return abs(at) / float(np.abs(self._model.jnt_range[part[1]]).max())

    def handle(self, name: str) -> Handle:
        """The bar of a drawer: of its boxes the one that is foremost."""
        part = self.moving_part(name)
        assert part is not None
        body, joint = part
        low, high = self._model.jnt_range[joint]
        # It opens towards the end of its range that is further from 0.
        opens = self._data.xaxis[joint] * (1.0 if abs(high) > abs(low) else -1.0)
        first = int(self._model.body_geomadr[body])
        boxes = []
        for geom in range(first, first + int(self._model.body_geomnum[body])):
            if self._model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX.value:
                boxes.append(geom)
        places = self._data.geom_xpos[boxes]
        return Handle(places[int(np.argmax(places @ opens))].copy(), opens.copy())

    def lever(self, name: str) -> tuple[Lever, float]:
        """The ridge on top of a knob as it stands now, its end nearer to the robot, to be turned
        upwards in its joint's numbers; and the yaw of a hand whose fingers open along it."""
        part = self.moving_part(name)
        assert part is not None
        body, joint = part
        cloud = self._surface(body, 10**9)
        height = cloud[:, 2].max() - _RIDGE
        top = cloud[cloud[:, 2] > height]
        across = expert.grasps(top)[0].yaw
        out = np.array([np.cos(across), np.sin(across), 0.0])
        axis = self._data.xanchor[joint]
        if (self._data.xpos[self._base] - axis) @ out < 0:
            out = -out
        along = (top - axis) @ out
        side = np.cross(self._data.xaxis[joint], out)
        reach = float(along.max()) - 0.008
        end = np.array([*(axis + reach * out)[:2], height])
        thick = float(np.abs((top - axis) @ side)[along > 0].max())
        return Lever(end, out, side, thick), across

    def part_facts(self, name: str) -> Facts:
        """What the expert reads of the hand and a drawer or a knob."""
        part = self.moving_part(name)
        assert part is not None
        return self._facts(self._touched(part[0]), self._data.xpos[part[0]].copy(), 0.0, 0.0)

    def place(self, predicate: list[str]) -> Place:
        """Where the thing of a goal `in` or `on` should come to rest."""
        kind, _, where = predicate
        if where in self._env.object_sites_dict:
            site = self._model.site(where).id
            middle = self._data.site_xpos[site].copy()
            if kind == "in":
                return Place(middle[:2], float(middle[2]) + 0.05, 0.02)
            return Place(middle[:2], float(middle[2] + self._model.site_size[site, 2]) + 0.01, 0.02)
        middle = self.position(where)
        cloud = self._whole(self.body(where))
        under = cloud[np.linalg.norm(cloud[:, :2] - middle[:2], axis=1) < 0.03]
        height = under[:, 2].max() if len(under) else cloud[:, 2].max()
        return Place(middle[:2], float(height) + 0.01, 0.02)

    def _ceiling(self, thing: str, place: Place, obstacles: np.ndarray) -> float:
        """The height that the thing's lowest point must keep on its way."""
        start = self.position(thing)[:2]
        along = place.middle - start
        length = float(np.linalg.norm(along)) + 1e-9
        share = np.clip((obstacles[:, :2] - start) @ along / length**2, 0, 1)
        away = np.linalg.norm(obstacles[:, :2] - start - share[:, None] * along, axis=1)
        near = obstacles[away < 0.10, 2]
        lowest = float(self.points(thing)[:, 2].min())
        return max(lowest + 0.05, place.height + 0.04, float(near.max(initial=-1.0)) + 0.02)

    def _obstacles(self, thing: str) -> np.ndarray:
        """(n, 3): points on all that stands around a thing."""
        own = set(_subtree(self._model, self.body(thing)))
        found = [np.zeros((0, 3))]
        for body in range(1, self._model.nbody):
            name = self._model.body(body).name
            if body not in own and not name.startswith(_NO_OBSTACLES):
                found.append(self._surface(body, _DENSE))
        return np.concatenate(found)

    def _whole(self, body: int) -> np.ndarray:
        """(n, 3): points on the surface of a thing and all its parts."""
        return np.concatenate([self._surface(each, 10**9) for each in _subtree(self._model, body)])

    def _surface(self, body: int, most: int) -> np.ndarray:
        """(n, 3): points on the surface of a body's meshes, about so many at most of each, and of
        the boxes that collide."""
        model = self._model
        found = [np.zeros((0, 3))]
        first = model.body_geomadr[body]
        for geom in range(first, first + model.body_geomnum[body]):
            kind = model.geom_type[geom]
            if kind == mujoco.mjtGeom.mjGEOM_MESH.value:
                mesh = model.geom_dataid[geom]
                start = model.mesh_vertadr[mesh]
                count = model.mesh_vertnum[mesh]
                local = model.mesh_vert[start : start + count][:: max(1, count // most)]
            elif kind == mujoco.mjtGeom.mjGEOM_BOX.value and model.geom_contype[geom]:
                local = _LATTICE * model.geom_size[geom]
            elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER.value and model.geom_contype[geom]:
                local = _LATTICE * model.geom_size[geom][[0, 0, 1]]
            else:
                continue
            rotation = self._data.geom_xmat[geom].reshape(3, 3)
            found.append(local @ rotation.T + self._data.geom_xpos[geom])
        return np.concatenate(found)


def _lattice() -> np.ndarray:
    """(n, 3): points on the surface of a cube from −1 to 1."""
    axis = np.linspace(-1, 1, 7)
    points = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    return points[np.abs(points).max(1) == 1]


_LATTICE = _lattice()


def _corners(cloud: np.ndarray) -> np.ndarray:
    """Those points of (n, 3) that span the hull of all."""
    try:
        return cloud[ConvexHull(cloud).vertices]
    except QhullError:  # all in one plane
        return cloud


def _subtree(model: mujoco.MjModel, body: int) -> list[int]:
    """A body and all that hangs from it."""
    found = [body]
    for each in range(body + 1, model.nbody):  # a body comes after the one it hangs from
        if model.body_parentid[each] in found:
            found.append(each)
    return found


def _finger_geoms(model: mujoco.MjModel, pad: str) -> set[int]:
    """The geoms of the finger that a pad belongs to."""
    body = model.geom_bodyid[model.geom(pad).id]
    bodies = {int(body), int(model.body_parentid[body])}
    return {geom for geom in range(model.ngeom) if int(model.geom_bodyid[geom]) in bodies}


def _roomiest(found: list[Grasp], obstacles: np.ndarray) -> Grasp:
    """The first grasp for which nothing is in the way, or that with the least."""
    best = found[0]
    fewest = len(obstacles) + 1
    for grasp in found:
        inside = _in_the_way(grasp, obstacles)
        if inside < fewest:
            best = grasp
            fewest = inside
        if inside == 0:
            break
    return best


def _in_the_way(grasp: Grasp, obstacles: np.ndarray) -> int:
    """How many points would be inside the hand."""
    c = np.cos(grasp.yaw)
    s = np.sin(grasp.yaw)
    local = obstacles - grasp.point
    opening = np.abs(local[:, 1] * c - local[:, 0] * s)  # along which the fingers open
    across = np.abs(local[:, 0] * c + local[:, 1] * s)
    up = local[:, 2]
    # The open fingers, and the hand that begins 4 cm above their tips; 5 mm of room around both.
    fingers = (opening < 0.060) & (across < 0.016) & (up > -0.008) & (up < 0.04)
    palm = (opening < 0.110) & (across < 0.038) & (up >= 0.035) & (up < 0.20)
    return int((fingers | palm).sum())
