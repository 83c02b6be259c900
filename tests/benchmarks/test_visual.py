"""A visual copy looks like what it is a copy of: rays see the texture of a mesh where it is, in
every pose, and plain colours where nobody asked for more."""

import mujoco
import numpy as np
import pytest

from armlet.benchmarks.rendering import EglCamera, RayCamera, probe_egl
from armlet.benchmarks.visual import VisualCopy, _texture

RED = (255, 0, 0)
BLUE = (0, 0, 255)


def plate() -> tuple[mujoco.MjSpec, mujoco.MjModel]:
    """A plate of 20 by 20 cm that can turn, red where its x is below 0 and blue above, seen from
    above; and a box of collisions, which nobody should see."""
    spec = mujoco.MjSpec()
    texture = spec.add_texture()
    texture.name = "halves"
    texture.type = mujoco.mjtTexture.mjTEXTURE_2D
    texture.width = 2
    texture.height = 1
    texture.nchannel = 3
    texture.data = np.array([*RED, *BLUE], np.uint8).tobytes()
    material = spec.add_material()
    material.name = "halves"
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "halves"
    mesh = spec.add_mesh()
    mesh.name = "plate"
    corners = [(x, y, z) for z in (0, 0.02) for y in (-0.1, 0.1) for x in (-0.1, 0.1)]
    # Off its middle, so that the compiler moves it.
    mesh.uservert = (np.array(corners) + [0.05, 0.0, 0.0]).ravel()
    faces = [
        (0, 2, 1), (1, 2, 3), (4, 5, 6), (5, 7, 6), (0, 1, 4), (1, 5, 4),
        (2, 6, 3), (3, 6, 7), (0, 4, 2), (2, 4, 6), (1, 3, 5), (3, 7, 5),
    ]  # fmt: skip
    mesh.userface = np.array(faces).ravel()
    mesh.usertexcoord = np.array([((x + 0.1) / 0.2, 0.5) for x, _, _ in corners]).ravel()
    mesh.userfacetexcoord = mesh.userface
    body = spec.worldbody.add_body()
    body.name = "plate"
    body.add_freejoint()
    geom = body.add_geom()
    geom.type = mujoco.mjtGeom.mjGEOM_MESH
    geom.meshname = "plate"
    geom.material = "halves"
    geom.pos = [-0.05, 0, 0]
    hidden = body.add_geom()
    hidden.type = mujoco.mjtGeom.mjGEOM_BOX
    hidden.size = [0.12, 0.12, 0.05]
    hidden.group = 3
    camera = spec.worldbody.add_camera()
    camera.name = "above"
    camera.pos = [0, 0, 0.5]
    light = spec.worldbody.add_light()
    light.pos = [0, 0, 2]
    return spec, spec.compile()


def half_colours(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean colour (3,) of the plate's left and right half in a picture from above."""
    side = len(image)
    rows = slice(side * 2 // 5, side * 3 // 5)
    left = image[rows, side * 2 // 5 : side * 9 // 20].reshape(-1, 3).mean(0)
    right = image[rows, side * 11 // 20 : side * 3 // 5].reshape(-1, 3).mean(0)
    return left, right


def picture(camera: type, *, turned: bool, textured: bool) -> np.ndarray:
    spec, model = plate()
    data = mujoco.MjData(model)
    if turned:  # by half a turn about the vertical
        data.qpos[3:7] = [0, 0, 0, 1]
    copy = VisualCopy(spec, model, flat=camera is RayCamera, textured=textured)
    state = copy.follow(model, data)
    if camera is RayCamera:
        return RayCamera(copy.model, "above", 64, paint=copy.paint).render(state)
    return EglCamera(copy.model, "above", 64).render(state)


@pytest.mark.parametrize("camera", [RayCamera, EglCamera])
@pytest.mark.parametrize("turned", [False, True])
def test_a_texture_is_seen_where_it_is(camera: type, turned: bool) -> None:
    if camera is EglCamera and not probe_egl():
        pytest.skip("EGL does not work on this machine")
    left, right = half_colours(picture(camera, turned=turned, textured=True))
    red, blue = (right, left) if turned else (left, right)
    assert red[0] > 3 * red[2] and blue[2] > 3 * blue[0]


def test_a_large_face_has_its_texture_all_over() -> None:
    image = picture(RayCamera, turned=False, textured=True).astype(float)
    # The picture is 41 cm wide, and the plate, 48 cm below, 20: two triangles.
    metres = (np.arange(64) + 0.5) / 64 * 0.41 - 0.205
    rows = np.abs(metres) < 0.085
    red = image[rows][:, (metres > -0.085) & (metres < -0.02)]
    blue = image[rows][:, (metres > 0.02) & (metres < 0.085)]
    assert (red[..., 0] > red[..., 2]).all()
    assert (blue[..., 2] > blue[..., 0]).all()


def test_without_being_asked_rays_see_one_colour() -> None:
    left, right = half_colours(picture(RayCamera, turned=False, textured=False))
    assert left == pytest.approx(right, abs=2) and left[0] == pytest.approx(left[2], abs=2)


def test_collisions_are_left_out_and_the_copy_is_of_the_same_bodies() -> None:
    spec, model = plate()
    copy = VisualCopy(spec, model, flat=True)
    assert copy.model.ngeom == 1 < model.ngeom and copy.model.nbody == model.nbody
    spec, model = plate()
    assert VisualCopy(spec, model, flat=True, hidden=frozenset({0})).model.ngeom == 1


def test_a_fine_pattern_is_seen_as_its_mean() -> None:
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><texture name="fine" type="2d" builtin="checker" width="512" height="512" '
        'rgb1="1 1 1" rgb2="0 0 0"/></asset></mujoco>'
    )
    pixels = model.tex_data.reshape(512, 512, 3)
    pixels[:] = 0
    pixels[:, ::2] = 200  # columns in turn
    pixels[:, 256:] //= 2
    places = np.random.default_rng(0).random((500, 2))
    seen = _texture(model, 0, places)
    wanted = np.where(places[:, 0] < 0.5, 100, 50) / 255
    assert seen == pytest.approx(np.repeat(wanted[:, None], 3, 1))
