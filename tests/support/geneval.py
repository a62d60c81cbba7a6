"""Detections from a few words, and GenEval's verdict on them."""

import pytest

from support import ROOT
from tempflow_fast.rewards.geneval.judge import Detection, judged

OFFICIAL = ROOT.parent / "shared" / "data"
"""Where GenEval's own files may be, next to the checkout: the package ships none of them."""
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="GenEval's own files are not next to the checkout")
OFFSETS = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}

SINGLE = {"tag": "single_object", "include": [{"class": "cow", "count": 1}]}
TWO = {"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "bus", "count": 1}]}
THREE = {
    "tag": "counting",
    "include": [{"class": "cow", "count": 3}],
    "exclude": [{"class": "cow", "count": 4}],
}
RED = {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}]}
LEFT = {
    "tag": "position",
    "include": [{"class": "bus", "count": 1}, {"class": "cow", "count": 1, "position": ["left of", 0]}],
}
RED_BLUE = {
    "tag": "color_attr",
    "include": [{"class": "cow", "count": 1, "color": "red"}, {"class": "bus", "count": 1, "color": "blue"}],
}
MANY = {"tag": "two_object", "include": [{"class": "cow", "count": 2}, {"class": "bus", "count": 1}]}


def seen(*objects: str) -> tuple[list[Detection], list[str]]:
    """Detections "kind score left,top color", each a box of 10 by 10 pixels, and their colours; hot_dog is hot dog."""
    detections, colors = [], []
    for text in objects:
        kind, score, corner, color = (text.split() + ["0.95", "0,0", "brown"][len(text.split()) - 1 :])[:4]
        left, top = (float(value) for value in corner.split(","))
        detections.append(Detection(kind.replace("_", " "), float(score), (left, top, left + 10, top + 10)))
        colors.append(color)
    return detections, colors


def verdict(metadata: dict, *objects: str, exact: bool = False):
    detections, colors = seen(*objects)
    names = {id(found): color for found, color in zip(detections, colors, strict=True)}
    return judged(detections, metadata, lambda found, kind: [names[id(one)] for one in found], exact)
