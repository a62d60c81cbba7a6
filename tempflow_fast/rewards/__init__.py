"""Rewards: one file each, found by name, summed with weights. Read `base` first, then `jpeg`, the shortest reward.

Rewards:

    jpeg, shapes                         need no model: compressed size; the exact judge of coloured shapes
    clip, pickscore, hpsv2, aesthetic    computed from CLIP embeddings (`clip_model`)
    hpsv3, imagereward                   other models of human preference
    ocr, geneval                         rendered text; objects, their number, colours and positions
    remote, flow_grpo_server             clients for rewards that a server computes

Plumbing:

    base          the protocol of a reward, its scores and its error
    registry      a user's description -> a reward
    weighted      several rewards, summed with weights
    checked       one reward on one batch: its scores, or an error that names the sample
    isolated      one call of a reward, which cannot change the run
    background    scoring in a thread while the next images are decoded
    frames        image rewards on some frames of a video
    cache         scores of images that were scored before
    deadline      calls with a time limit
    sources       the source images of prompts
    pixels, resize    images -> inputs of image models; Pillow's resizing on any device
    weights       published weights as tensors
    wire, http, timed     the protocol of remote rewards, one exchange of it, and its limits
    server, connection    the server, and what it lets in
"""

from __future__ import annotations

from .background import BackgroundScorer
from .base import Reward, RewardError, Scores
from .registry import REWARDS, code_in, get_reward
from .sources import source_images
from .weighted import WeightedReward

__all__ = [
    "REWARDS",
    "BackgroundScorer",
    "Reward",
    "RewardError",
    "Scores",
    "WeightedReward",
    "code_in",
    "get_reward",
    "source_images",
]
