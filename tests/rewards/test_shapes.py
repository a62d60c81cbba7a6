"""The rewards of the packaged world: what they cannot judge is refused, since it would score 0 for ever."""

from __future__ import annotations

import pytest
import torch

from tempflow_fast.rewards import RewardError, get_reward


@pytest.mark.filterwarnings("ignore:reward .* failed")
@pytest.mark.parametrize("name", ["shapes", "shapes_strict"])
@pytest.mark.parametrize(
    ("include", "words"),
    [
        ([{"class": "Circle", "count": 1}], r"class must be one of circle, .* got 'Circle' \(did you mean circle"),
        ([{"class": "cow", "count": 1}], "class must be one of circle, cross, square, triangle, got 'cow'"),
        ([{"class": "circle", "count": 1, "color": "orange"}], "color must be one of blue, .* got 'orange'"),
        ([{"class": "circle", "count": 9}], "a count, an integer from 1 to 5"),
        ([{"class": "circle", "count": 2}, {"class": "cross", "count": 1}], "include must be one shape and its number"),
        ([], "metadata must be an entry with objects to include"),
    ],
)
def test_metadata_of_another_world_are_refused(name, include, words):
    with pytest.raises(RewardError, match=f'reward "{name}" failed on sample 0 .*{words}'):
        get_reward(name)(torch.zeros(1, 3, 24, 24), ["p"], [{"include": include}])
