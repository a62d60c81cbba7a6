"""Rewards by name, their weighted sums, their failures, their cache, and their thread."""

import json
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tempflow_fast.processes import MINUTES
from tempflow_fast.rewards import REWARDS, BackgroundScorer, RewardError, Scores, WeightedReward, get_reward
from tempflow_fast.rewards.base import FinalError, declared, range_of
from tempflow_fast.rewards.cache import CachedReward
from tempflow_fast.rewards.weighted import TIMEOUT
from tempflow_fast.shapes import world
from tempflow_fast.shapes.world import Shape

HERE = __name__
TEXTS = [f"prompt {row}" for row in range(8)]
TRIPLED = {"reward": f"{HERE}:Scaled", "scale": 3}
NO_METADATA: list[dict] = [{} for _ in TEXTS]


def images(num: int = 8) -> Tensor:
    """Image r is r/8 everywhere."""
    return (torch.arange(num) / 8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


def level(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    return images.mean((1, 2, 3))


@declared(0.0, 2.0)
def doubled(images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float]:
    return (2 * images.mean((1, 2, 3))).tolist()


class Scaled:
    """A reward with a setting and a memory of its calls."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.calls = scale, []

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        self.calls.append(len(images))
        return self.scale * level(images, prompts, metadata)


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        (f"{HERE}:level", {f"{HERE}:level": 1.0}),
        (f"{HERE}:level=0.5, {HERE}:doubled=-2", {f"{HERE}:level": 0.5, f"{HERE}:doubled": -2.0}),
        (
            {f"{HERE}:level": 0.25, "mine": {"reward": f"{HERE}:Scaled", "scale": 3}},
            {f"{HERE}:level": 0.25, "mine": 1.0},
        ),
        (json.dumps({"mine": {**TRIPLED, "weight": 2}}), {"mine": 2.0}),
        (level, {"level": 1.0}),
        ({"shown": {"reward": level, "weight": 3}}, {"shown": 3.0}),
    ],
)
def test_every_form_of_a_reward_is_scored_by_its_weights(spec, weights):
    reward = get_reward(spec)
    assert reward.weights == weights
    scores = reward.score(images(), TEXTS, NO_METADATA)
    factors = {f"{HERE}:level": 1.0, f"{HERE}:doubled": 2.0, "mine": 3.0, "level": 1.0, "shown": 1.0}
    expected = torch.arange(8, dtype=torch.float64) / 8
    for name, part in scores.parts.items():
        assert torch.equal(part, factors[name] * expected)
    total = sum(weights[name] * factors[name] for name in weights) * expected
    assert torch.allclose(scores.total, total, atol=1e-12)
    assert torch.equal(reward(images(), TEXTS, NO_METADATA), scores.total)
    assert get_reward(reward) is reward


def test_the_same_name_and_settings_are_loaded_once():
    spec = {"mine": {"reward": f"{HERE}:Scaled", "scale": 7}}
    assert get_reward(spec).rewards["mine"] is get_reward(spec).rewards["mine"]
    other = get_reward({"mine": {"reward": f"{HERE}:Scaled", "scale": 8}})
    assert other.rewards["mine"] is not get_reward(spec).rewards["mine"]


def test_the_range_of_a_sum_counts_the_sign_of_weights():
    assert get_reward(f"{HERE}:doubled=-0.5,shapes=3").range == (-1.0, 3.0)
    assert range_of(level) == (-float("inf"), float("inf"))


def test_a_reward_of_weight_zero_is_scored_and_of_no_consequence():
    reward = get_reward(f"{HERE}:level=0,{HERE}:doubled=1")
    scores = reward.score(images(), TEXTS, NO_METADATA)
    assert torch.equal(scores.total, scores.parts[f"{HERE}:doubled"])
    assert torch.equal(scores.parts[f"{HERE}:level"], torch.arange(8, dtype=torch.float64) / 8)
    assert reward.range == (0.0, 2.0)


def test_advantages_can_be_summed_reward_by_reward():
    scores = Scores({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0, 100.0])}, {"a": 1.0, "b": 0.5})
    centred = scores.weighted_sum(lambda part: (part - part.mean()) / part.std(correction=0))
    assert torch.equal(centred, torch.tensor([-1.5, 1.5]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shaeps", r'one of aesthetic, .* got "shaeps" \(did you mean "shapes"\?\)'),
        ("no.such.module:thing", "cannot load"),
        (f"{HERE}:nothing", "cannot load"),
        (f"{HERE}:TEXTS", "must be a reward or its class"),
        ("shapes=much", "weight of shapes must be a number"),
        ("shapes=inf", "weight of shapes must be finite, got inf"),
        ("shapes=0", "one of the weights must differ from 0"),
        ("shapes,shapes", "with each name once"),
        ("{shapes", "must be JSON"),
        ({}, "one of the weights must differ from 0"),
        (3, "must be a name, a mapping or a callable, got 3"),
        ({"shapes": {"device": "cpu"}}, "must be given no settings, got device"),
        ({"mine": {"reward": f"{HERE}:Scaled", "sclae": 1}}, "cannot make reward .* unexpected keyword"),
        ({"shapes": {"cache": 0}}, "num_entries must be >= 1"),
        ({"shapes": {"cache": "many"}}, "num_entries must be an integer, got 'many'"),
        ({"shapes": {"timeout": 0}}, "timeout of shapes must be positive or None, got 0.0"),
        ({"shapes": {"timeout": "soon"}}, "timeout of shapes must be a number, got 'soon'"),
    ],
)
def test_a_wrong_reward_is_refused_with_a_sentence(spec, message):
    with pytest.raises(ValueError, match=message):
        get_reward(spec)


def test_every_registered_reward_can_be_imported():
    from tempflow_fast.rewards.registry import _imported

    assert all(callable(_imported(name)) for name in REWARDS)


def test_wrong_arguments_of_a_call_are_named():
    reward = get_reward(level)
    with pytest.raises(ValueError, match=r"images must be \[R, 3, H, W\] with R >= 1, got \[8, 4, 4\]"):
        reward(images()[:, 0], TEXTS, NO_METADATA)
    with pytest.raises(ValueError, match="metadata must have 8 entries like images, got 7"):
        reward(images(), TEXTS, NO_METADATA[:7])


def failing_on(row: int, failure):
    """A reward that fails wherever image `row` is among its images."""

    def reward(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        scores = level(images, prompts, metadata)
        found = [i for i, prompt in enumerate(prompts) if prompt == TEXTS[row]]
        return failure(scores, found[0]) if found else scores

    return reward


def raises(scores: Tensor, i: int) -> Tensor:
    raise KeyError("no such thing")


@pytest.mark.filterwarnings('ignore:reward "mine" failed')
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (raises, "KeyError: 'no such thing'"),
        (lambda scores, i: scores.index_fill(0, torch.tensor([i]), float("nan")), "must be finite .* got nan"),
        (lambda scores, i: scores.index_fill(0, torch.tensor([i]), float("inf")), "must be finite .* got inf"),
    ],
)
def test_a_failure_names_the_reward_and_the_sample_and_is_no_score(failure, reason):
    reward = WeightedReward({"fine": level, "mine": failing_on(5, failure)}, {"fine": 1, "mine": 1})
    message = rf'reward "mine" failed on sample 5 \(prompt \'prompt 5\'\): .*{reason}'
    with pytest.raises(RewardError, match=message) as caught:
        reward(images(), TEXTS, NO_METADATA)
    assert (caught.value.name, caught.value.sample) == ("mine", 5)


def test_a_wrong_number_of_scores_and_scores_out_of_range_are_failures():
    with pytest.raises(RewardError, match=r"scores must be \[8\], one per image, got \[7\]"):
        get_reward({"x": {"reward": f"{HERE}:one_less"}})(images(), TEXTS, NO_METADATA)
    with pytest.raises(RewardError, match=r'doubled" failed on sample 3 .* in 0.0..2.0, got 2.25'):
        get_reward(f"{HERE}:doubled")(images() * 3, TEXTS, NO_METADATA)


def one_less(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    return level(images, prompts, metadata)[1:]


def test_a_batch_that_is_too_large_is_scored_in_halves():
    def small_batches_only(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if len(images) > 3:
            raise MemoryError("too many")
        return level(images, prompts, metadata)

    with pytest.warns(
        UserWarning, match='"small_batches_only" failed on . images and tries halves: MemoryError'
    ) as told:
        scores = get_reward(small_batches_only)(images(), TEXTS, NO_METADATA)
    assert torch.equal(scores, torch.arange(8, dtype=torch.float64) / 8)
    assert [str(entry.message).split("failed on ")[1][0] for entry in told] == ["8", "4", "4"]


def test_a_reward_that_cannot_be_hashed_has_one_memory_for_all_its_descriptions():
    @dataclass
    class Counting:
        calls: int = 0

        def __call__(self, images, prompts, metadata):
            self.calls += 1
            return images.mean((1, 2, 3))

    reward = Counting()
    for _ in range(2):
        get_reward({"mine": {"reward": reward, "cache": 9}})(images(3), ["a"] * 3, NO_METADATA[:3])
    assert reward.calls == 1


def test_the_cache_scores_equal_images_once_and_forgets_the_oldest():
    inner = Scaled()
    cached = CachedReward(inner, 4)
    twice = torch.cat([images(2), images(2)])
    assert cached(twice, ["a"] * 4, NO_METADATA[:4]).tolist() == [0, 0.125, 0, 0.125]
    assert inner.calls == [2]
    cached(images(2), ["b", "a"], NO_METADATA[:2])  # another prompt is another sample
    cached(images(2), ["a", "a"], [{}, {"tag": "x"}])  # and so is other metadata
    assert inner.calls == [2, 1, 1]
    cached(images(8)[4:], ["a"] * 4, NO_METADATA[:4])  # pushes the others out
    assert cached(images(1), ["a"], NO_METADATA[:1]).tolist() == [0]
    assert inner.calls == [2, 1, 1, 4, 1]
    assert CachedReward(doubled, 1).range == (0.0, 2.0)


def test_the_cache_counts_a_failed_sample_among_all_images():
    def final(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if TEXTS[6] in prompts:
            raise FinalError(prompts.index(TEXTS[6]), "for good")
        return level(images, prompts, metadata)

    cached = CachedReward(final, 8)
    cached(images()[:4], TEXTS[:4], NO_METADATA[:4])
    with pytest.raises(RewardError, match=r"sample 6 \(prompt 'prompt 6'\): for good"):
        get_reward({"mine": {"reward": cached}})(images(), TEXTS, NO_METADATA)


def test_a_module_beside_the_user_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def ones(images, prompts, metadata):\n    return [1] * len(images)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert get_reward("my_own_rewards:ones")(images(), TEXTS, NO_METADATA).tolist() == [1] * 8


def test_shapes_is_a_reward_like_any_other():
    entry = {"include": [{"class": "circle", "count": 1}]}
    drawn = world.render([(Shape("circle", "red", 8, 8),), (Shape("cross", "red", 8, 8),)])
    scores = get_reward("shapes=1,shapes_strict=2").score(drawn, ["a circle"] * 2, [entry] * 2)
    assert scores.parts["shapes_strict"].tolist() == [1, 0]
    assert scores.parts["shapes"][0] == 1 > scores.parts["shapes"][1]


def slow(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    time.sleep(0.1)
    return level(images, prompts, metadata)


def scored_beside(reward: WeightedReward, ends: list[int], pause: float = 0.0) -> Scores:
    """The scores of pieces that end at `ends`, each handed over after a pause."""
    with BackgroundScorer(reward) as scorer:
        for start, end in zip([0, *ends], ends, strict=False):
            scorer.submit(images()[start:end], TEXTS[start:end], NO_METADATA[start:end])
            time.sleep(pause)  # the work that makes the next piece
        return scorer.collect()


def test_pieces_are_scored_beside_the_caller_and_come_back_in_order():
    reward, start = get_reward(slow), time.perf_counter()
    scores = scored_beside(reward, [3, 5, 8], pause=0.1)
    assert time.perf_counter() - start < 0.55  # 0.6 one after the other
    assert torch.equal(scores.total, reward(images(), TEXTS, NO_METADATA))


def test_a_failure_beside_the_caller_counts_samples_over_all_pieces():
    reward = WeightedReward({"mine": failing_on(6, raises)}, {"mine": 1})
    with pytest.raises(RewardError, match='reward "mine" failed on sample 6'):
        scored_beside(reward, [4, 6, 7])


def test_a_piece_that_failed_stops_the_next_one():
    handed_over: list[str] = []

    def fails_at_once(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        handed_over.extend(prompts)
        raise KeyError("no such thing")

    with pytest.raises(RewardError, match="sample 0"):
        scored_beside(WeightedReward({"mine": fails_at_once}, {"mine": 1}), [1, 2, 3, 4, 5, 6, 7, 8], pause=0.1)
    assert len(handed_over) < 4


@pytest.fixture
def stuck():
    """A reward that hangs as soon as it sees the third text."""
    release = threading.Event()

    def stuck(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if TEXTS[2] in prompts:
            release.wait(30)
        return level(images, prompts, metadata)

    yield stuck
    release.set()


def test_time_running_out_is_a_failure_that_names_the_reward_and_the_piece(stuck):
    spec = {"fine": {"reward": level}, "mine": {"reward": stuck, "timeout": 0.2}}
    message = r'reward "mine" failed on sample {} \(prompt .prompt {}.\): no result within 0.2 s, the first of 2 images'
    with pytest.raises(RewardError, match=message.format(2, 2)):
        scored_beside(get_reward(spec), [2, 4])
    with pytest.raises(RewardError, match=message.format(0, 1)):
        get_reward(spec)(images()[1:3], TEXTS[1:3], NO_METADATA[1:3])
    assert get_reward(spec)(images()[:2], TEXTS[:2], NO_METADATA[:2]).tolist() == [0, 0.25], "the others go on"


def test_a_reward_that_hangs_does_not_hold_up_the_end_of_python():
    code = """
import threading, torch
from tempflow_fast.rewards import get_reward
reward = get_reward({"mine": {"reward": lambda *call: threading.Event().wait(), "timeout": 0.1}})
try: reward(torch.zeros(1, 3, 2, 2), ["x"], [{}])
except RuntimeError as error: print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "no result within 0.1 s" in shown.stdout


def test_every_reward_has_a_time_out_below_the_patience_of_processes():
    assert get_reward("shapes=1,jpeg_compressibility=1").timeouts == dict.fromkeys(
        ("shapes", "jpeg_compressibility"), TIMEOUT
    )
    assert 0 < TIMEOUT < 60 * MINUTES
    assert get_reward('{"shapes": {"timeout": null}}').timeouts == {"shapes": None}


def test_a_reward_is_called_without_gradients_in_whichever_thread():
    def recorded(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        assert not (images * parameter).requires_grad
        return level(images, prompts, metadata)

    parameter = torch.ones(1, requires_grad=True)
    assert get_reward(recorded)(images(2), TEXTS[:2], NO_METADATA[:2]).tolist() == [0, 0.125]


def test_a_described_cache_is_one_however_often_it_is_described():
    inner = Scaled()
    for _ in range(2):
        get_reward({"mine": {"reward": inner, "cache": 10}})(images(), TEXTS, NO_METADATA)
    assert inner.calls == [8]
    named = {"mine": {"reward": f"{HERE}:Scaled", "scale": 11, "cache": 10}}
    for _ in range(2):
        get_reward(json.dumps(named))(images(), TEXTS, NO_METADATA)
    assert get_reward(named).rewards["mine"].reward.calls == [8]


def test_no_library_of_a_reward_is_loaded_before_it_is_asked_for():
    code = (
        "import sys, tempflow_fast.rewards; print({'transformers', 'PIL', 'onnxruntime', 'rapidocr'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_no_warning_on_a_healthy_reward():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_reward(level)(images(), TEXTS, NO_METADATA)
