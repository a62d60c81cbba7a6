"""The plots of a run and of an evaluation."""

from __future__ import annotations

import pytest
from PIL import Image
from support.evaluations import made_up

from tempflow_fast.evaluation import curves


@pytest.fixture
def figures(monkeypatch):
    """Path -> the figure that was drawn for it."""
    found, real = {}, curves._save

    def noting(path, figure):
        found[path] = figure
        real(path, figure)

    monkeypatch.setattr(curves, "_save", noting)
    return found


def metrics(**more: float) -> list[dict[str, float]]:
    plain = {"reward_mean": 0.5, "reward_std": 0.1, "group_std": 0.1, "kl": 0.0, "log_ratio_rms": 0.01, "loss": 1.0}
    return [{"iteration": i, **plain, "image_saturation": 0.1 * i, **more} for i in range(1, 4)]


def panels(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_visible()]


def test_signs_of_hacking_are_side_by_side(tmp_path, figures):
    rows = metrics(reward_jpeg=1.0, reward_shapes=0.5, kl=0.1, image_diversity=0.2)
    curves.hacking_signs(tmp_path / "s.png", rows, {"jpeg": 2.0, "shapes": 0.0})
    assert panels(figures[tmp_path / "s.png"]) == [
        "reward that is trained on",
        "jpeg, trained on",
        "shapes, held out",
        "KL to the starting policy",
        "spread of the log-ratios",
        "spread of rewards in a group",
        "diversity within a seed group",
        "saturation",
    ]
    raw, smooth = figures[tmp_path / "s.png"].axes[7].lines
    assert raw.get_ydata() == pytest.approx([0.1, 0.2, 0.3])
    assert smooth.get_ydata() == pytest.approx([0.1, 0.15, 0.2])
    with Image.open(tmp_path / "s.png") as image:
        assert min(image.size) > 300


def test_a_kl_that_was_not_measured_is_not_drawn_as_zero(tmp_path, figures):
    curves.hacking_signs(tmp_path / "s.png", metrics(), {"jpeg": 1.0})
    assert "KL to the starting policy" not in panels(figures[tmp_path / "s.png"])


def test_a_run_that_changed_its_method_draws_what_each_part_has(tmp_path, figures):
    rows = [*metrics(image_diversity=0.2)[:2], {**metrics()[2], "image_contrast": 0.5}]
    curves.hacking_signs(tmp_path / "s.png", rows, {"jpeg": 1.0})
    drawn = {axes.get_title(): axes.lines[0] for axes in figures[tmp_path / "s.png"].axes if axes.get_visible()}
    assert list(drawn["diversity within a seed group"].get_xdata()) == [1, 2]
    assert list(drawn["contrast"].get_xdata()) == [3]


def test_histograms_share_their_bins(tmp_path, figures):
    both = {"a": made_up([0.0, 0.0, 1.0]), "b": made_up([0.0, 3.0, 3.0])}
    curves.reward_histograms(tmp_path / "h.png", both)
    (axes,) = figures[tmp_path / "h.png"].axes
    edges = [[round(patch.get_x(), 6) for patch in bars] for bars in axes.containers]
    assert edges[0] == edges[1]
    heights = [sum(patch.get_height() for patch in bars) for bars in axes.containers]
    assert heights == [3, 3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_scores_by_task_and_iteration(tmp_path, figures):
    evaluations = {0: made_up([0.0, 1.0, 0.0, 0.5], "aabb"), 50: made_up([1.0, 1.0, 0.5, 0.5], "aabb")}
    curves.score_curve(tmp_path / "s.png", evaluations)
    (axes,) = figures[tmp_path / "s.png"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {"a": [[0, 0.5], [50, 1]], "b": [[0, 0.25], [50, 0.5]], "overall": [[0, 0.375], [50, 0.75]]}
    assert len(axes.collections) == 1, "the interval of all tasks"
    with Image.open(tmp_path / "s.png") as image:
        assert min(image.size) > 300
