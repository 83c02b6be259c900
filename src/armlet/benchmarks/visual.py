"""A visual copy of a MuJoCo model that is cheap to look at. Physics run on the original; the copy
follows its poses.

What is changed in the copy: meshes of many faces are decimated, what only collides is left out,
sites are hidden except those named as markers, which become spheres (a ray caster sees no sites),
lights cast no shadows, nothing mirrors, and cameras that hang upside down are turned upright. Knows
MuJoCo; knows no benchmark.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from scipy.spatial import cKDTree

from armlet.benchmarks.rendering import Paint

FACES = 400  # of a decimated mesh; meshes of up to twice as many are left alone
SPACING = 0.02  # metres between points of a large face at which rays see its texture
MOST_PARTS = 64  # of a side of such a face
FINEST = 128  # blocks a side of a texture that rays see
# MuJoCo's viewers do not draw geoms of these groups, nor of higher ones, of which there are none:
# collision shapes.
COLLISIONS = frozenset({3, 4, 5})
_MARKER = "armlet-marker-"


@dataclass(frozen=True)
class Marker:
    """A sphere drawn where a site is: colour with opacity, and radius in metres."""

    rgba: tuple[float, float, float, float]
    radius: float


class VisualCopy:
    """The copy and its state. `spec` is what `original` was compiled from, and is used up.

    `markers`: site name → how it is drawn. `flat` gives every geom one plain colour, the mean of
    its texture, for cameras that know no materials; it leaves textures as they are otherwise. `fov`
    narrows a camera (degrees). `hidden`: groups of geoms that are not to be seen. `textured`: a
    decimated mesh keeps its texture, and `paint` says of each flat one what its surface looks like;
    otherwise it loses it.
    """

    def __init__(
        self,
        spec: mujoco.MjSpec,
        original: mujoco.MjModel,
        *,
        flat: bool,
        markers: Mapping[str, Marker] | None = None,
        fov: Mapping[str, float] | None = None,
        hidden: Collection[int] = COLLISIONS,
        textured: bool = False,
    ) -> None:
        markers = markers or {}
        _decimate(spec, original, textured=textured)
        _leave_out(spec, hidden)
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
                f"the visual copy of {spec.modelname!r} has other joints or bodies than the model "
                "that runs"
            )
        # Sites are aids of the simulation, such as the goal; shadows and reflections cost a second
        # and a third rendering of everything.
        self.model.site_rgba[:, 3] = 0
        self.model.light_castshadow[:] = 0
        self.model.mat_reflectance[:] = 0
        _turn_upright(self.model)
        for camera, degrees in (fov or {}).items():
            self.model.cam_fovy[self.model.camera(camera).id] = degrees
        self.paint: dict[int, Paint] = {}
        if flat and textured:
            self.paint = _painted(self.model, original)
        if flat:
            _flatten(self.model)

    def follow(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        places: Mapping[str, np.ndarray] | None = None,
    ) -> mujoco.MjData:
        """Take the poses of the running simulation; `places` is where each marker is (world frame,
        metres)."""
        self.model.body_pos[:] = model.body_pos
        self.model.body_quat[:] = model.body_quat
        self.data.qpos[:] = data.qpos
        self.data.mocap_pos[:] = data.mocap_pos
        self.data.mocap_quat[:] = data.mocap_quat
        for name, place in (places or {}).items():
            self.model.geom_pos[self._markers[name]] = place
        # What of mj_forward places geoms, cameras and lights; contacts and forces nobody sees.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return self.data


def _decimate(spec: mujoco.MjSpec, original: mujoco.MjModel, *, textured: bool) -> None:
    for mesh in spec.meshes:
        index = original.mesh(mesh.name).id
        if original.mesh_facenum[index] <= 2 * FACES:  # little to win
            continue
        import fast_simplification  # of an extra

        whole = _mesh(original, index)
        vertices, faces = _weld(*whole)
        vertices, faces = fast_simplification.simplify(vertices, faces, target_count=FACES)
        # Given by its numbers from here on; they are scaled and placed already.
        mesh.file = ""
        mesh.scale = [1, 1, 1]
        mesh.refpos = [0, 0, 0]
        mesh.refquat = [1, 0, 0, 0]
        mesh.uservert = vertices.astype(float).ravel()
        mesh.userface = faces.astype(np.int32).ravel()
        if textured and original.mesh_texcoordadr[index] >= 0:
            nearest = cKDTree(whole[0]).query(vertices)[1]
            mesh.usertexcoord = _texture_places(original, index)[nearest].ravel()
            mesh.userfacetexcoord = mesh.userface


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


def _texture_places(model: mujoco.MjModel, index: int) -> np.ndarray:
    """(v, 2): where in its texture each vertex of a mesh is. One that lies on a seam has several
    places there, of which this is one."""
    first = model.mesh_texcoordadr[index]
    places = model.mesh_texcoord[first : first + model.mesh_texcoordnum[index]]
    first = model.mesh_faceadr[index]
    count = model.mesh_facenum[index]
    of_vertex = np.zeros((model.mesh_vertnum[index], 2))
    corners = model.mesh_face[first : first + count].ravel()
    of_vertex[corners] = places[model.mesh_facetexcoord[first : first + count].ravel()]
    return of_vertex


def _leave_out(spec: mujoco.MjSpec, hidden: Collection[int]) -> None:
    for geom in list(spec.geoms):
        if geom.group in hidden:
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


def _painted(copy: mujoco.MjModel, original: mujoco.MjModel) -> dict[int, Paint]:
    """What the surface of each geom looks like that is a mesh with a texture, by geom of the copy."""
    found = {}
    for geom in np.flatnonzero(copy.geom_matid >= 0):
        texture = copy.mat_texid[copy.geom_matid[geom]].max()
        shape = copy.geom_dataid[geom]
        if texture < 0 or copy.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH.value:
            continue
        whole = original.mesh(copy.mesh(shape).name).id
        if original.mesh_texcoordadr[whole] < 0:
            continue
        points, places = _surface(original, whole)
        places = places * copy.mat_texrepeat[copy.geom_matid[geom]]
        colours = _texture(copy, texture, places) * copy.mat_rgba[copy.geom_matid[geom], :3]
        # Into the frame of the copy's geom, whose compiler moved the decimated mesh elsewhere.
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, copy.mesh_quat[shape])
        points = (points - copy.mesh_pos[shape]) @ rotation.reshape(3, 3)
        found[int(geom)] = Paint(cKDTree(points), colours)
    return found


def _surface(model: mujoco.MjModel, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) of a mesh, as `_mesh` gives them, and where in its texture they are (n, 2): the
    middles of its faces, and near their corners; of faces that are large, all over."""
    vertices, faces = _mesh(model, index)
    first = model.mesh_texcoordadr[index]
    places = model.mesh_texcoord[first : first + model.mesh_texcoordnum[index]]
    first = model.mesh_faceadr[index]
    corners = model.mesh_facetexcoord[first : first + model.mesh_facenum[index]]
    edges = vertices[faces] - vertices[np.roll(faces, 1, axis=1)]  # (f, 3, 3)
    longest = np.linalg.norm(edges, axis=2).max(1)
    parts = np.clip(np.ceil(longest / SPACING), 1, MOST_PARTS).astype(int)  # (f,)
    points = []
    where = []
    for count in np.unique(parts):
        alike = parts == count
        weights = _over_a_face(int(count))
        points.append(np.einsum("wc,fcx->wfx", weights, vertices[faces[alike]]).reshape(-1, 3))
        where.append(np.einsum("wc,fcx->wfx", weights, places[corners[alike]]).reshape(-1, 2))
    return np.concatenate(points), np.concatenate(where)


def _over_a_face(parts: int) -> np.ndarray:
    """(n, 3): how much of each corner is in points of a triangle whose sides are cut into so many
    parts. Not on the corners themselves, where faces of different colours may meet."""
    if parts == 1:
        return np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / [[3], [6], [6], [6]]
    first, second = np.meshgrid(np.arange(parts), np.arange(parts))
    inside = first + second < parts
    two = (np.stack([first[inside], second[inside]], 1) + 1 / 3) / parts  # (n, 2)
    return np.c_[two, 1 - two.sum(1)]


def _texture(model: mujoco.MjModel, texture: int, places: np.ndarray) -> np.ndarray:
    """(n, 3): the colours, 0 to 1, of a texture at `places` (n, 2), which repeats beyond 0 to 1.

    Of a fine texture the means of its blocks: a ray meets a single point, and of a fine pattern
    that would be noise, where OpenGL shows the mean.
    """
    height = model.tex_height[texture]
    width = model.tex_width[texture]
    first = model.tex_adr[texture]
    channels = model.tex_nchannel[texture]
    pixels = model.tex_data[first : first + height * width * channels]
    pixels = pixels.reshape(height, width, channels)[..., :3]
    down = -(-height // FINEST)  # pixels a block
    right = -(-width // FINEST)
    rows = height // down
    columns = width // right
    whole = pixels[: rows * down, : columns * right]  # what is left over at the edges is left out
    blocks = whole.reshape(rows, down, columns, right, 3).mean((1, 3)) / 255  # (rows, columns, 3)
    column = np.floor(places[:, 0] * columns).astype(int) % columns
    row = np.floor(places[:, 1] * rows).astype(int) % rows
    return blocks[row, column]


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
