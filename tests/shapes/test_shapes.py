"""The miniature GenEval: prompts, renderer and checker agree on thousands of scenes, and nothing else passes."""

import random
from dataclasses import replace

import pytest
import torch

from tempflow_fast.shapes import checker, prompts, world
from tempflow_fast.shapes.world import COLORS, SHAPES, Shape

COLORED = ("colors", "color_attr")


@pytest.fixture(scope="module")
def scenes() -> tuple[list[dict], list[world.Scene]]:
    rng = random.Random(7)
    metadata = prompts.draw(prompts.all_prompts(), 3000, rng)
    return metadata, [world.sample_scene(entry, rng) for entry in metadata]


def accuracy(metadata: list[dict], scenes: list[world.Scene]) -> float:
    return checker.strict(world.render(scenes), metadata).float().mean().item()


@pytest.mark.slow
def test_checker_accepts_what_the_renderer_draws(scenes) -> None:
    metadata, drawn = scenes
    assert accuracy(metadata, drawn) >= 0.995
    texts = [entry["prompt"] for entry in metadata]
    assert checker.reward(world.render(drawn), texts, metadata).mean() >= 0.995


def test_checker_accepts_slightly_impure_images(scenes) -> None:
    metadata, drawn = scenes
    images = world.render(drawn[:1000])
    noisy = images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert checker.strict(noisy.clamp(0, 1), metadata[:1000]).float().mean() >= 0.995


def other(value: str, values, rng: random.Random) -> str:
    return rng.choice([v for v in values if v != value])


def mutations(entry: dict, scene: world.Scene, rng: random.Random) -> dict[str, world.Scene]:
    """Scenes that differ from a correct one by one change, each wrong for this entry."""
    i = rng.randrange(len(scene))

    def with_shape(shape: Shape) -> world.Scene:
        return (*scene[:i], shape, *scene[i + 1 :])

    found = {
        "missing": (*scene[:i], *scene[i + 1 :]),
        "kind": with_shape(replace(scene[i], kind=other(scene[i].kind, SHAPES, rng))),
    }
    corners = [(x, y) for x in range(0, 17, 2) for y in range(0, 17, 2)]
    rng.shuffle(corners)
    extra = (Shape(rng.choice(SHAPES), rng.choice(list(COLORS)), x, y) for x, y in corners)
    room = next((shape for shape in extra if all(map(shape.clear_of, scene))), None)
    if room:
        found["extra"] = (*scene, room)
    if entry["tag"] in COLORED:
        found["color"] = with_shape(replace(scene[i], color=other(scene[i].color, COLORS, rng)))
    if entry["tag"] == "position":
        found["place"] = tuple(replace(shape, x=16 - shape.x, y=16 - shape.y) for shape in scene)
    return found


@pytest.mark.slow
def test_checker_rejects_near_misses(scenes) -> None:
    rng = random.Random(3)
    cases = [
        (entry, kind, wrong)
        for entry, scene in zip(*scenes, strict=True)
        for kind, wrong in mutations(entry, scene, rng).items()
    ]
    passed = checker.strict(world.render([wrong for _, _, wrong in cases]), [entry for entry, _, _ in cases])
    assert {kind for _, kind, _ in cases} == {"missing", "kind", "extra", "color", "place"}
    assert not passed.any(), [(e["prompt"], kind) for (e, kind, _), p in zip(cases, passed, strict=True) if p][:5]


def test_checker_rejects_noise_and_blank_images() -> None:
    rng = torch.Generator().manual_seed(1)
    metadata = prompts.draw(prompts.all_prompts(), 600, random.Random(0))
    uniform = torch.rand(600, 3, 24, 24, generator=rng)
    blobs = torch.nn.functional.interpolate(torch.rand(600, 3, 4, 4, generator=rng), size=24, mode="bilinear")
    blank = torch.full((600, 3, 24, 24), world.BACKGROUND)
    for images in (uniform, blobs, blank, blank + 0.1 * torch.randn(blank.shape, generator=rng)):
        assert not checker.strict(images.clamp(0, 1), metadata).any()


@pytest.mark.parametrize("kind", SHAPES)
def test_checker_rejects_malformed_shapes(kind: str) -> None:
    """Half a shape, a shape squashed by a third, and the mean of two shapes do not count as a shape."""
    entry = {"tag": "single_object", "include": [{"class": kind, "count": 1}], "prompt": f"a photo of a {kind}"}
    whole = world.render([(Shape(kind, "red", 8, 8),)])
    half = whole.clone()
    half[:, :, 8:12] = world.BACKGROUND
    squashed = torch.full_like(whole, world.BACKGROUND)
    squashed[..., 8:16, 8:13] = torch.nn.functional.interpolate(whole[..., 8:16, 8:16], size=(8, 5), mode="area")
    others = [world.render([(Shape(k, "red", 8, 8),)]) for k in SHAPES if k != kind]
    wrong = [half, squashed, *((whole + o) / 2 for o in others)]
    assert not checker.strict(torch.cat(wrong), [entry] * len(wrong)).any()


def test_partial_credit_orders_images_by_how_much_is_right() -> None:
    entry = next(e for e in prompts.all_prompts() if e["tag"] == "color_attr")
    first, second = (Shape(e["class"], e["color"], 8, y) for e, y in zip(entry["include"], (0, 14), strict=True))
    wrong_color = replace(second, color=other(second.color, list(COLORS), random.Random(0)))
    images = world.render([(first, second), (first, wrong_color), (first,), ()])
    rewards = checker.reward(images, [entry["prompt"]] * 4, [entry] * 4)
    assert rewards[0] == 1.0
    assert (rewards.diff() < 0).all()
    assert rewards[-1] == 0.0


def test_checker_names_bad_images() -> None:
    entry = prompts.all_prompts()[0]
    with pytest.raises(ValueError, match=r"checker.read: images must be \[R, 3, 24, 24\], got \[1, 3, 32, 32\]"):
        checker.strict(torch.zeros(1, 3, 32, 32), [entry])
    with pytest.raises(ValueError, match=r"checker.read: images must be finite, got NaN or infinity"):
        checker.strict(torch.full((1, 3, 24, 24), float("nan")), [entry])


def test_held_out_prompts_are_disjoint_and_cover_every_task() -> None:
    train, held = prompts.train_prompts(), prompts.heldout_prompts()
    texts = {entry["prompt"] for entry in train}
    assert not texts & {entry["prompt"] for entry in held}
    assert {entry["tag"] for entry in held} == {entry["tag"] for entry in train} == set(prompts.TASKS)
    assert len(train) + len(held) == len(prompts.all_prompts())
    assert [e["tag"] for e in prompts.draw(held, 12, random.Random(0))].count("position") == 2
