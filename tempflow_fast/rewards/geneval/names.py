"""The words of GenEval for photographs: its object classes, in the order of COCO's detectors, and its colours."""

from __future__ import annotations

OBJECTS = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)
SYNONYMS = {
    "mouse": "computer mouse",
    "keyboard": "computer keyboard",
    "remote": "tv remote",
    "remote control": "tv remote",
    "television": "tv",
    "tv monitor": "tv",
    "tvmonitor": "tv",
    "sofa": "couch",
    "aeroplane": "airplane",
    "plane": "airplane",
    "motorbike": "motorcycle",
    "bike": "bicycle",
    "table": "dining table",
    "plant": "potted plant",
    "fridge": "refrigerator",
    "doughnut": "donut",
    "hair dryer": "hair drier",
    "phone": "cell phone",
}
"""Words of COCO itself, of PASCAL VOC and of people -> the class that they mean, for hints."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
