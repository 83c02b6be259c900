"""Cameras for MuJoCo models: a ray caster that needs no graphics library, and EGL where a probe
finds it working.

Pixels of the two differ, so a benchmark names its renderer in its fingerprint and never mixes them.
This file knows MuJoCo models and cameras; it knows no benchmark.
"""

import functools
import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mujoco
import numpy as np

if TYPE_CHECKING:  # a quarter of a second, for what few scenes have
    from scipy.spatial import cKDTree

_FAR = 10.0  # metres; a ray that meets nothing nearer sees the background
_PROBE = """
from mujoco.egl import GLContext
import mujoco
context = GLContext(64, 64); context.make_current()
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 2"/><geom type="box" size=".3 .3 .3"/></worldbody></mujoco>')
render = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
print('works')
"""


@dataclass(frozen=True)
class Paint:
    """What the surface of a geom looks like: a point of it has the colour of the nearest of
    `points` (geom frame), `colours` (n, 3), 0 to 1."""

    points: "cKDTree"
    colours: np.ndarray


class Camera(Protocol):
    """Renders one camera of one model."""

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """The (size, size, 3) uint8 picture of the present state."""
        ...


@functools.cache
def probe_egl() -> bool:
    """Whether off-screen EGL rendering works here. Asked in a subprocess: a broken driver aborts
    its process."""
    # 60 s: a driver that hangs does not answer at all.
    answer = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False
    )
    return answer.returncode == 0 and "works" in answer.stdout


def resolve_renderer(renderer: str) -> str:
    """`ray` or `egl`; `auto` takes EGL where it works."""
    if renderer == "auto":
        return "egl" if probe_egl() else "ray"
    if renderer == "egl" and not probe_egl():
        raise RuntimeError(
            "renderer 'egl' was asked for, but EGL does not work on this machine; use 'ray' or "
            "'auto'"
        )
    if renderer not in ("ray", "egl"):
        raise ValueError(f"renderer must be 'ray', 'egl' or 'auto', found {renderer!r}")
    return renderer


def make_camera(
    model: mujoco.MjModel,
    name: str,
    size: int,
    renderer: str = "ray",
    paint: Mapping[int, Paint] | None = None,
) -> Camera:
    """A camera by name. `renderer` must be resolved: `ray` or `egl`. `paint`: of geoms that rays
    should not see in one colour; EGL has their textures."""
    if renderer == "ray":
        return RayCamera(model, name, size, paint=paint)
    return EglCamera(model, name, size)


class RayCamera:
    """One ray per pixel through `mj_multiRay`, shaded by surface normals from the gradients of the
    hit points.

    `light` is the direction to the light (world frame, any length) and `ambient` the share of light
    that does not depend on it; both are ours because MuJoCo's lights belong to its OpenGL renderer.
    `paint`: geom → its surface, of those that are not of one colour.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        name: str,
        size: int,
        *,
        light: tuple[float, float, float] = (0.3, 0.25, 0.9),
        ambient: float = 0.45,
        background: float = 0.15,
        paint: Mapping[int, Paint] | None = None,
    ) -> None:
        self._paint = paint or {}
        self._model = model
        self._camera = model.camera(name).id
        self._size = size
        self._light = np.asarray(light) / np.linalg.norm(light)
        self._ambient = ambient
        self._background = background
        # (geoms, 3): a plain colour each, for rays know no textures.
        self._palette = model.geom_rgba[:, :3].copy()
        for geom, material in enumerate(model.geom_matid):
            if material >= 0:
                self._palette[geom] = model.mat_rgba[material, :3]
        # A pinhole camera: it looks along −z, x is right and y up; the picture reaches from −1 to 1
        # at the focal length, and rays go through the middles of pixels.
        focal = 1 / np.tan(np.radians(model.cam_fovy[self._camera]) / 2)
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        right, up = np.meshgrid(axis, -axis)
        rays = np.stack([right / focal, up / focal, -np.ones_like(right)], -1).reshape(-1, 3)
        self._rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)  # (h·w, 3), camera frame
        self._geom = np.zeros(size * size, np.int32)
        self._distance = np.zeros(size * size)

    def render(self, data: mujoco.MjData) -> np.ndarray:
        rotation = data.cam_xmat[self._camera].reshape(3, 3)
        rays = self._rays @ rotation.T
        origin = data.cam_xpos[self._camera].copy()
        # Into `_geom` (h·w,), −1 where nothing is met, and `_distance` (h·w,). All groups of geoms,
        # fixed ones too (1), and no body left out (−1).
        mujoco.mj_multiRay(
            self._model, data, origin, rays.ravel(), None, 1, -1,
            self._geom, self._distance, len(rays), _FAR,
        )  # fmt: skip
        points = (rays * self._distance[:, None]).reshape(self._size, self._size, 3)
        # (h, w, 3) → normals (h·w, 3): neighbouring points span the surface. Edges of things come
        # out wrong by a pixel, which a normal from the geom's shape would cost far more to avoid.
        along_x = np.gradient(points, axis=1)
        along_y = np.gradient(points, axis=0)
        normals = np.cross(along_x, along_y).reshape(-1, 3)
        lengths = np.sqrt(np.einsum("pc,pc->p", normals, normals)) + 1e-12
        # Lambert's cosine; its absolute value, as the gradients do not say which side is outside.
        shade = self._ambient + (1 - self._ambient) * np.abs(normals @ self._light) / lengths
        hit = self._geom >= 0
        surface = self._palette[self._geom]  # (h·w, 3)
        for geom in self._paint:
            there = np.flatnonzero(self._geom == geom)
            met = origin + rays[there] * self._distance[there, None]
            surface[there] = self._painted(data, geom, met)
        colours = np.where(hit[:, None], surface * shade[:, None], self._background)
        return (np.clip(colours, 0, 1) * 255).astype(np.uint8).reshape(self._size, self._size, 3)

    def _painted(self, data: mujoco.MjData, geom: int, met: np.ndarray) -> np.ndarray:
        """Colours (n, 3) of points `met` (n, 3), world frame, of a painted geom's surface."""
        rotation = data.geom_xmat[geom].reshape(3, 3)
        paint = self._paint[geom]
        _, nearest = paint.points.query((met - data.geom_xpos[geom]) @ rotation)
        return paint.colours[nearest]


class EglCamera:
    """MuJoCo's own renderer on an off-screen EGL context, shadows and multisampling off."""

    def __init__(self, model: mujoco.MjModel, name: str, size: int) -> None:
        from mujoco.egl import GLContext

        # Read when the context is made: later is too late.
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        self._model = model
        self._gl = GLContext(size, size)
        # Also at exit, when it is too late for its own __del__.
        weakref.finalize(self, self._gl.free)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(name).id
        self._options = mujoco.MjvOption()
        self._pixels = np.zeros((size, size, 3), np.uint8)

    def render(self, data: mujoco.MjData) -> np.ndarray:
        # A thread has one current context, and another camera may have been it since.
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, everything, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._context)
        # OpenGL's rows begin at the bottom.
        return self._pixels[::-1].copy()
