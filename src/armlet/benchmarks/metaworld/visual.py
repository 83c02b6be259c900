"""A visual copy of a MuJoCo model that is cheap to look at. Physics run on the original; the copy
follows its poses.

What is changed in the copy: meshes of many faces are decimated, what only collides is left out,
sites are hidden except those named as markers, which become spheres (a ray caster sees no sites),
lights cast no shadows, nothing mirrors, and cameras that hang upside down are turned upright. Knows
MuJoCo; knows no benchmark.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

FACES = 400  # of a decimated mesh; meshes of up to twice as many are left alone
_HIDDEN_GROUP = 3  # MuJoCo's viewers do not draw geoms of this group and above: collision shapes
_MARKER = "armlet-marker-"


@dataclass(frozen=True)
class Marker:
    """A sphere drawn where a site is: colour with opacity, and radius in metres."""

    rgba: tuple[float, float, float, float]
    radius: float


class VisualCopy:
    """The copy and its state. `path` is the file `original` was compiled from.

    `markers`: site name → how it is drawn. `flat` gives every geom one plain colour, the mean of
    its texture, for cameras that know no materials; it leaves textures as they are otherwise. `fov`
    narrows a camera (degrees).
    """

    def __init__(
        self,
        path: str,
        original: mujoco.MjModel,
        *,
        markers: Mapping[str, Marker],
        fov: Mapping[str, float],
        flat: bool,
    ) -> None:
        spec = mujoco.MjSpec.from_file(path)
        _decimate(spec, original)
        _leave_out_collisions(spec)
        _add_markers(spec, markers)
        self.model = spec.compile()
        # The camera's clipping planes are multiples of the extent, which the compiler measures
        # anew: without the collision geoms it would be another.
        self.model.stat.extent = original.stat.extent
        self.model.stat.center = original.stat.center
        self.data = mujoco.MjData(self.model)
        self._markers = {name: self.model.geom(_MARKER + name).id for name in markers}
        # `follow` copies poses by index, so the joints and bodies must be the same, in the same
        # order.
        if (self.model.nq, self.model.nbody) != (original.nq, original.nbody):
            raise RuntimeError(
                f"the visual copy of {path} has other joints or bodies than the model that runs"
            )
        # Sites are aids of the simulation, such as the goal; shadows and reflections cost a second
        # and a third rendering of everything.
        self.model.site_rgba[:, 3] = 0
        self.model.light_castshadow[:] = 0
        self.model.mat_reflectance[:] = 0
        _turn_upright(self.model)
        for camera, degrees in fov.items():
            self.model.cam_fovy[self.model.camera(camera).id] = degrees
        if flat:
            _flatten(self.model)

    def follow(
        self, model: mujoco.MjModel, data: mujoco.MjData, places: Mapping[str, np.ndarray]
    ) -> mujoco.MjData:
        """Take the poses of the running simulation; `places` is where each marker is (world frame,
        metres)."""
        self.model.body_pos[:] = model.body_pos
        self.model.body_quat[:] = model.body_quat
        self.data.qpos[:] = data.qpos
        self.data.mocap_pos[:] = data.mocap_pos
        self.data.mocap_quat[:] = data.mocap_quat
        for name, place in places.items():
            self.model.geom_pos[self._markers[name]] = place
        # What of mj_forward places geoms, cameras and lights; contacts and forces nobody sees.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return self.data


def _decimate(spec: mujoco.MjSpec, original: mujoco.MjModel) -> None:
    import fast_simplification

    for mesh in spec.meshes:
        index = original.mesh(mesh.name).id
        if original.mesh_facenum[index] <= 2 * FACES:  # little to win
            continue
        vertices, faces = _weld(*_mesh(original, index))
        vertices, faces = fast_simplification.simplify(vertices, faces, target_count=FACES)
        # Given by its numbers from here on; they are scaled and placed already.
        mesh.file = ""
        mesh.scale = [1, 1, 1]
        mesh.refpos = [0, 0, 0]
        mesh.refquat = [1, 0, 0, 0]
        mesh.uservert = vertices.astype(float).ravel()
        mesh.userface = faces.astype(np.int32).ravel()


def _mesh(model: mujoco.MjModel, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (v, 3) and faces (f, 3) as they were before the compiler moved the mesh to its
    centre of mass."""
    first = model.mesh_vertadr[index]
    count = model.mesh_vertnum[index]
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[index])
    centred = model.mesh_vert[first : first + count]  # (v, 3)
    vertices = centred @ rotation.reshape(3, 3).T + model.mesh_pos[index]
    first = model.mesh_faceadr[index]
    count = model.mesh_facenum[index]
    return vertices.astype(np.float32), model.mesh_face[first : first + count]


def _weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same surface with vertices that coincide made one, which decimation needs to see
    neighbours."""
    kept, index = np.unique(vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[faces].astype(np.int32)
    # A triangle two of whose corners have become one is a line.
    a, b, c = faces.T
    return kept, faces[(a != b) & (b != c) & (c != a)]


def _leave_out_collisions(spec: mujoco.MjSpec) -> None:
    for geom in list(spec.geoms):
        if geom.group >= _HIDDEN_GROUP:
            geom.delete()
    # The compiler refuses moving bodies without mass, and some had theirs from those geoms. The
    # copy is never simulated, so any mass will do.
    spec.compiler.boundmass = spec.compiler.boundinertia = 1e-6


def _add_markers(spec: mujoco.MjSpec, markers: Mapping[str, Marker]) -> None:
    for name, marker in markers.items():
        geom = spec.worldbody.add_geom()
        geom.name = _MARKER + name
        geom.type = mujoco.mjtGeom.mjGEOM_SPHERE
        geom.size = [marker.radius, 0, 0]
        geom.rgba = marker.rgba
        geom.contype = geom.conaffinity = 0
        geom.pos = [0, 0, -5]  # not the world's own origin, where the compiler would nail it down


def _turn_upright(model: mujoco.MjModel) -> None:
    """Roll by half a turn each camera that stands in the world and whose upper side looks down."""
    half_turn = np.array([0.0, 0.0, 0.0, 1.0])
    for camera in np.flatnonzero(model.cam_bodyid == 0):
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, model.cam_quat[camera])
        # The z part of the camera's up axis, its second column.
        if rotation.reshape(3, 3)[2, 1] < -1e-6:
            turned = np.zeros(4)
            mujoco.mju_mulQuat(turned, model.cam_quat[camera], half_turn)
            model.cam_quat[camera] = turned


def _flatten(model: mujoco.MjModel) -> None:
    """Materials and textures become one colour per geom: material × mean texture, or × the geom's
    own colour."""
    default = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
    for geom in np.flatnonzero(model.geom_matid >= 0):
        material = model.geom_matid[geom]
        # A geom's colour wins over its material's, unless it is the one that MuJoCo gives to those
        # of which nothing is said.
        if np.array_equal(model.geom_rgba[geom], default):
            colour = model.mat_rgba[material].copy()
        else:
            colour = model.geom_rgba[geom].copy()
        texture = model.mat_texid[material].max()
        if texture >= 0:
            colour[:3] *= _mean_colour(model, texture)
        model.geom_rgba[geom] = colour
        model.geom_matid[geom] = -1
    # A ray caster would take it for solid; rays pass what has no opacity.
    glass = model.geom_rgba[:, 3] < 0.5
    model.geom_rgba[glass, 3] = 0


def _mean_colour(model: mujoco.MjModel, texture: int) -> np.ndarray:
    first = model.tex_adr[texture]
    channels = model.tex_nchannel[texture]
    count = model.tex_height[texture] * model.tex_width[texture] * channels
    return model.tex_data[first : first + count].reshape(-1, channels)[:, :3].mean(0) / 255
