"""GenEval's detector and colour namer: the real classes with random weights, their arithmetic on scripted outputs."""

import copy
from types import SimpleNamespace

import pytest
import torch
from support import tiny_rewards
from support.image_processors import pil_processor
from support.tiny_rewards import as_pil, photographs
from torch import nn

from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.clip_model import ClipModel
from tempflow_fast.rewards.geneval.colors import ColorNamer, cut_out
from tempflow_fast.rewards.geneval.detector import Detector
from tempflow_fast.rewards.geneval.judge import Detection, judged
from tempflow_fast.rewards.geneval.names import COLORS, OBJECTS
from tempflow_fast.rewards.pixels import clip_pixels

pytest.importorskip("scipy", reason="the geneval extra is not installed")


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> dict[str, str]:
    """Where a tiny detector and a tiny CLIP lie, as settings of the reward."""
    directory = tmp_path_factory.mktemp("geneval")
    tiny_rewards.detector(directory / "detector")
    tiny_rewards.clip_model(directory / "clip")
    return {"detector": str(directory / "detector"), "clip": str(directory / "clip")}


class ScriptedNetwork(nn.Module):
    """Stands in for the weights alone: says of every image that there are the given (kind, probability, box) in it."""

    dtype = torch.float32

    def __init__(self, *objects: tuple[str, float, tuple[int, int, int, int]], grid: int = 16) -> None:
        super().__init__()
        classes = torch.full((len(objects), len(OBJECTS) + 1), -30.0)
        masks = torch.full((len(objects), grid, grid), -9.0)
        for query, (kind, probability, (left, top, right, bottom)) in enumerate(objects):
            classes[query, OBJECTS.index(kind)] = torch.tensor(probability).logit()
            classes[query, -1] = 0.0
            masks[query, top:bottom, left:right] = 9.0
        self.classes, self.masks, self.seen = classes, masks, []

    def forward(self, pixel_values):
        self.seen.append(pixel_values)
        rows = len(pixel_values)
        return SimpleNamespace(
            class_queries_logits=self.classes.expand(rows, -1, -1),
            masks_queries_logits=self.masks.expand(rows, -1, -1, -1),
        )


def scripted(detector: Detector, *objects) -> Detector:
    copied = copy.copy(detector)
    copied.network = ScriptedNetwork(*objects)
    return copied


def test_pixels_of_the_detector_are_the_librarys_and_padded_where_they_must_be(homes):
    detector = Detector(homes["detector"], shorter_side=64)
    for height, width in ((48, 48), (96, 128), (50, 80)):
        images = photographs(2, height, width)
        pixels, (inner_height, inner_width) = detector.pixels(images)
        processor = pil_processor("Mask2Former", size={"height": inner_height, "width": inner_width}, size_divisor=1)
        expected = processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
        assert (pixels[..., :inner_height, :inner_width] - expected).abs().max() < 1e-5
        assert min(inner_height, inner_width) == 64
        assert not pixels[..., inner_height:, :].any()
        assert not pixels[..., inner_width:].any()
        assert all(side % 32 == 0 for side in pixels.shape[-2:])
    assert detector.pixels(photographs(1, 20, 600))[1] == (44, 1333)  # the longer side has the last word


def test_what_the_network_says_becomes_objects_of_the_image(homes):
    """A 64 x 128 image is seen as 64 x 128 pixels and 16 x 16 cells of 4 x 8, edges between cells half way."""
    detector = scripted(
        Detector(homes["detector"], shorter_side=64),
        ("cow", 0.95, (2, 4, 8, 12)),
        ("bus", 0.5, (10, 0, 14, 16)),
        ("dog", 0.29, (0, 0, 16, 16)),  # below the threshold
        ("cat", 0.9, (5, 5, 5, 5)),  # nowhere
    )
    (found,) = detector(photographs(1, 64, 128))
    assert [one.kind for one in found] == ["cow", "bus"]
    assert [one.box for one in found] == [(16, 16, 64, 48), (80, 0, 112, 64)]
    assert 0.98 < found[0].mask.sum() / (48 * 32) <= 1  # its corners are round
    assert 0.9 < found[0].score < 0.95  # by the mean mask probability within the mask
    (doubled,) = detector(photographs(1, 128, 256))
    assert doubled[0].box == (32, 32, 128, 96)


def test_one_query_may_be_two_classes_and_surplus_labels_are_no_objects(homes):
    detector = scripted(Detector(homes["detector"], shorter_side=64), ("cow", 0.5, (0, 0, 16, 16)))
    detector.network.classes = torch.full((1, 134), -30.0)
    detector.network.classes[0, [19, 5, 100]] = torch.tensor([0.4, 0.3, 0.3]).log() + 30 - 30
    (found,) = detector(photographs(1, 64, 64))
    assert [one.kind for one in found] == ["cow"]
    detector.network.classes[0, [19, 5, 100]] = torch.tensor([0.45, 0.45, 0.1]).log()
    (found,) = detector(photographs(1, 64, 64))
    assert sorted(one.kind for one in found) == ["bus", "cow"]


def test_scripted_detections_through_detector_and_rules(homes):
    detector = scripted(
        Detector(homes["detector"], shorter_side=64), ("cow", 0.95, (0, 4, 5, 12)), ("bus", 0.95, (10, 4, 15, 12))
    )
    (found,) = detector(photographs(1, 64, 64))
    include = [{"class": "bus", "count": 1}, {"class": "cow", "count": 1, "position": ["left of", 0]}]
    assert judged(found, {"tag": "position", "include": include}, lambda *_: [], False).correct
    include[1]["position"] = ["right of", 0]
    assert not judged(found, {"tag": "position", "include": include}, lambda *_: [], False).correct


def test_an_object_is_cut_out_on_grey():
    image = photographs(1, 20, 20)[0]
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[4:8, 3:9] = True
    mask[4, 3] = False
    piece = cut_out(image, Detection("cow", 0.9, (3, 4, 9, 8), mask))
    assert piece.shape == (1, 3, 4, 6)
    assert torch.allclose(piece[0, :, 0, 0], torch.full((3,), 0x99 / 255))
    assert torch.equal(piece[0, :, 1:, :], image[:, 5:8, 3:9])
    assert torch.equal(cut_out(image, Detection("cow", 0.9, (3, 4, 9, 8)))[0], image[:, 4:8, 3:9])


def test_the_colour_is_the_one_whose_sentences_lie_nearest(homes):
    clip = ClipModel(homes["clip"])
    name_colors = ColorNamer(clip)
    image = photographs(1, 40, 40)[0]
    objects = [Detection("cow", 0.9, (left, 0, left + 20, 30)) for left in (0, 10, 20)]
    names = name_colors(image, objects, "cow")
    for found, name in zip(objects, names, strict=True):
        seen = clip.image_embeddings(clip_pixels(cut_out(image, found), 32))[0]
        texts = [["a photo of a {} cow", "a photo of a {}-colored cow", "a photo of a {} object"]] * len(COLORS)
        near = []
        for color, sentences in zip(COLORS, texts, strict=True):
            rows = clip.text_embeddings([sentence.format(color) for sentence in sentences], "cpu").mean(0)
            near.append(float(seen @ rows / rows.norm()))
        assert name == COLORS[max(range(len(COLORS)), key=near.__getitem__)]
    assert name_colors(image, [], "cow") == []


def test_the_real_classes_score_images_in_every_form_and_detect_them_once(homes):
    images = photographs(3, 48, 64)
    metadata = [
        {"tag": "counting", "include": [{"class": "cow", "count": 2}]},
        {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]},
        {
            "tag": "position",
            "include": [{"class": "car", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
        },
    ]
    settings = {**homes, "shorter_side": 64, "batch_size": 2}
    reward = get_reward({name: settings for name in ("geneval", "geneval_strict", "geneval_partial")})
    with pytest.raises(ValueError, match=r"geneval: .*'sofa'"):
        reward.check_prompts([""], [{"tag": "single_object", "include": [{"class": "sofa", "count": 1}]}])
    detector = reward.rewards["geneval"]._eyes.detector
    calls = []
    hook = detector.network.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    scores = reward.score(images, [""] * 3, metadata)
    assert len(calls) == 2  # batches of at most two images; three forms of the reward
    reward.score(1 - images, [""] * 3, metadata)
    assert len(calls) == 4
    hook.remove()
    assert all(set(scores.parts[name].tolist()) <= {0.0, 1.0} for name in ("geneval", "geneval_strict"))
    partial = scores.parts["geneval_partial"]
    assert ((partial >= 0) & (partial <= 1)).all()
    verdicts = reward.rewards["geneval_strict"].verdicts(images, metadata)
    assert [verdict.correct for verdict in verdicts] == scores.parts["geneval_strict"].bool().tolist()
    assert reward.range == (0.0, 3.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_real_classes_in_half_precision(homes, dtype):
    settings = {**homes, "shorter_side": 64, "dtype": dtype}
    reward = get_reward({"geneval": settings})
    eyes = reward.rewards["geneval"]._eyes
    assert {eyes.detector.network.dtype, eyes.name_colors.clip.dtype} == {getattr(torch, dtype)}
    entry = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    assert reward(photographs(2, 48, 64), [""] * 2, [entry] * 2).isfinite().all()
    whole = Detector(homes["detector"], shorter_side=64)
    pixels, _ = whole.pixels(photographs(1, 48, 64))
    expected = whole.network(pixel_values=pixels).class_queries_logits
    got = eyes.detector.network(pixel_values=pixels.to(eyes.detector.network.dtype)).class_queries_logits
    difference = (got - expected).abs().amax(-1)  # a pixel that rounding takes out of a mask changes one query's much
    assert 0 < difference.median() < 0.1 * expected.abs().max()


def test_a_detector_of_other_classes_is_refused(homes, tmp_path):
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(
        homes["detector"], num_labels=5, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model must be one of COCO's 80 classes, got 5 classes"):
        Detector(str(tmp_path))
