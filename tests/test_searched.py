"""The search of layers as `distil` does it: on held-out frames, against stored answers, once."""

import dataclasses
import shutil

import pytest
from tiny import tiny_recipe

from armlet import collect, distil, probe, recipes, teach
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.data.splits import parts, rows_of
from armlet.data.traces import TraceStore
from armlet.policies import layer_search
from armlet.policies.checkpoint import load_policy, read_provenance
from armlet.policies.layer_search import LayerSearch, search
from armlet.recipe import Recipe
from armlet.training.trainer import make_batches


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    made = dataclasses.replace(
        tiny_recipe(tmp_path_factory.mktemp("searched")),
        probe=None,
        stages=recipes.make("layer_search_tabletop").stages,
    )
    for verb in (collect, teach, probe):
        verb.main(made)
    return made


def test_layers_are_searched_once_and_what_was_found_lies_beside_the_weights(
    recipe: Recipe, tmp_path, monkeypatch
) -> None:
    short = dataclasses.replace(
        recipes.make("layer_search_tabletop").stages[0], steps=2, batch_size=8, compile=False
    )
    searching = dataclasses.replace(
        recipe,
        out=tmp_path,
        shared=recipe.out,
        stages=(short,),
        student=LayerSearch(2),
    )
    made = load_policy(distil.main(searching))
    found = read_provenance(searching.student_folder)["search"]
    assert list(made.kept_layers) == found["best"][0]["layers"] and found["scored"] == 6
    # By hand: on the frames of the held-out episodes, against what `probe` stored.
    data = EpisodeDataset(recipe.episodes)
    held_out = parts(data, recipe.split, recipe.held_out).held_out
    teacher = load_policy(recipe.teacher)
    batches = make_batches(teacher, load_frames(data, teacher.view, recipe.pictures))
    batch = batches.batch(rows_of(data.starts, held_out))
    taught = TraceStore(recipe.traces).read(batch.keys, ["actions"])["actions"].float()
    assert found["frames"] == len(batch)
    best = search(teacher, dataclasses.replace(batch, taught=taught), 2).best
    assert found["best"][0] == {
        "layers": list(best[0].layers),
        "error": pytest.approx(best[0].error, rel=1e-4),
    }
    # Trained otherwise it is a new student, of the layers that were found before.
    monkeypatch.setattr(layer_search, "errors_of", None)
    other = dataclasses.replace(searching, stages=(dataclasses.replace(short, learning_rate=1e-4),))
    shutil.rmtree(searching.student_folder)
    distil.main(other)
    assert read_provenance(searching.student_folder)["search"] == found
    monkeypatch.undo()
    # Of other frames everything is scored anew, and what was there stays beside.
    shutil.rmtree(searching.student_folder)
    student = LayerSearch(2, frames=9)
    distil.main(dataclasses.replace(searching, held_out=0.3, student=student))
    assert read_provenance(searching.student_folder)["search"]["frames"] == 9 != found["frames"]
    assert [each.name for each in tmp_path.glob("search.before-*")]
    with pytest.raises(ValueError, match=r"chosen by the teacher's \['actions'\], which `traced`"):
        dataclasses.replace(searching, traced=("condition",), stages=())
