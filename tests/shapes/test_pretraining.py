"""What the packaged pipeline learns from: the list of scenes, their exact velocities, and the labels of words."""

import random

import pytest
import torch

from tempflow_fast.shapes import checker, prompts, world
from tempflow_fast.shapes.lessons import UNKNOWN, describe_words
from tempflow_fast.shapes.muon import orthogonal
from tempflow_fast.shapes.posterior import DECIDED, Posterior
from tempflow_fast.shapes.scenes import Catalogue


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(prompts.all_prompts())


def test_catalogue_holds_every_scene_once(catalogue: Catalogue) -> None:
    assert len(catalogue.scenes) == len({frozenset(scene) for scene in catalogue.scenes}) == 57_984


@pytest.mark.parametrize("task", prompts.TASKS)
def test_listed_scenes_are_those_that_fulfil_the_prompt(catalogue: Catalogue, task: str) -> None:
    rng = random.Random(task)
    entry = rng.choice([entry for entry in prompts.all_prompts() if entry["tag"] == task])
    listed = [catalogue.scenes[row] for row in catalogue.rows(entry).tolist()]
    chosen = rng.sample(listed, min(200, len(listed)))
    assert checker.strict(world.render(chosen), [entry] * len(chosen)).all()
    drawn = {frozenset(world.sample_scene(entry, rng)) for _ in range(200)}
    assert drawn <= {frozenset(scene) for scene in listed}


def test_exact_velocity_is_the_mean_over_scenes() -> None:
    rng = torch.Generator().manual_seed(0)
    latents, rows = torch.randn(9, 5, generator=rng, dtype=torch.float64), torch.tensor([1, 2, 5, 8])
    x, sigma = torch.randn(3, 5, generator=rng, dtype=torch.float64), torch.tensor([0.3, 0.8, 1.0], dtype=torch.float64)
    noise = (x[:, None] - (1 - sigma)[:, None, None] * latents[rows]) / sigma[:, None, None]
    density = torch.distributions.Normal(0, 1).log_prob(noise).sum(2)
    expected = ((noise - latents[rows]) * density.softmax(1)[..., None]).sum(1)
    torch.testing.assert_close(Posterior(latents).velocity(x, sigma, rows), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(Posterior(latents).velocity(x, sigma, torch.arange(9))[2], x[2] - latents.mean(0))
    assert DECIDED < 1


def test_orthogonal_leaves_singular_values_near_one() -> None:
    rng = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 32), (3, 32, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=rng)))
        assert 0.5 < values.min() <= values.max() < 1.5


def test_words_say_what_a_causal_encoder_can_know() -> None:
    by_text = {entry["prompt"]: entry for entry in prompts.all_prompts()}

    def said(text: str) -> dict[int, list[int]]:
        labels = describe_words(by_text[text])
        return {place: row for place, row in enumerate(labels.tolist()) if row[0] != UNKNOWN}

    # kind, colour, count, relation; token 0 starts the text
    assert said("a photo of a red circle and a blue cross") == {6: [0, 1, 1, 0], 10: [3, 3, 1, 0]}
    assert said("a photo of three squares") == {5: [1, 0, 3, 0]}
    assert said("a photo of a circle left of a square") == {
        5: [0, 0, 1, 0], 6: [0, 0, 1, 1], 7: [0, 0, 1, 1], 9: [1, 0, 1, 2],
    }  # fmt: skip


def test_unseen_combinations_are_closed_under_swapping() -> None:
    seen, unseen = prompts.pretraining_prompts(), prompts.unseen_prompts()
    assert sorted(entry["prompt"] for entry in seen + unseen) == sorted(e["prompt"] for e in prompts.all_prompts())
    assert {entry["tag"] for entry in unseen} == set(prompts.BINDING)
    assert all(prompts.opposite(entry) in unseen for entry in unseen)
    binding = [entry for entry in seen if entry["tag"] in prompts.BINDING]
    assert all(prompts.opposite(prompts.opposite(entry)) == entry for entry in binding)


def test_opposite_scenes_are_wrong(catalogue: Catalogue) -> None:
    rng = random.Random(0)
    binding = [entry for entry in prompts.all_prompts() if entry["tag"] in prompts.BINDING]
    entries = rng.choices(binding, k=200)
    images = world.render([world.sample_scene(entry, rng) for entry in entries])
    assert checker.strict(images, entries).all()
    assert not checker.strict(images, [prompts.opposite(entry) for entry in entries]).any()
    with pytest.raises(
        ValueError, match="opposite: entry must be a prompt of position or color_attr, got one of counting"
    ):
        prompts.opposite(next(entry for entry in prompts.all_prompts() if entry["tag"] == "counting"))
