"""The step table against the formulas of the papers and the constants of the public scripts."""

from __future__ import annotations

import math

import pytest
import torch

from tempflow_fast import linear_sigmas, step_table


def diffusers_sigmas(num_steps: int, shift: float) -> list[float]:
    """FlowMatchEulerDiscreteScheduler: the smallest level is shifted when it is built, and again with the schedule."""
    lowest = shift * 1e-3 / (1 + (shift - 1) * 1e-3)
    levels = torch.linspace(1, lowest, num_steps, dtype=torch.float64)
    return [*(shift * levels / (1 + (shift - 1) * levels)).tolist(), 0.0]


def flux_sigmas(num_steps: int, num_tokens: int) -> list[float]:
    """FLUX.1-dev: linear levels, shifted by exp(mu) with mu linear in the number of tokens."""
    mu = 0.5 + (1.15 - 0.5) * (num_tokens - 256) / (4096 - 256)
    return linear_sigmas(num_steps, math.exp(mu))


def qwen_sigmas(num_steps: int, num_tokens: int) -> list[float]:
    """Qwen-Image: as FLUX, with another line, and stretched so that the last level is 0.02."""
    mu = 0.5 + (0.9 - 0.5) * (num_tokens - 256) / (8192 - 256)
    levels = linear_sigmas(num_steps, math.exp(mu))[:-1]
    return [1 - (1 - level) * (1 - 0.02) / (1 - levels[-1]) for level in levels] + [0.0]


SD3_STDS = [0.7000, 0.7430, 0.5362, 0.4459, 0.3918, 0.3528, 0.3191, 0.2820, 0.2254, 0.0063]
PLAIN_STDS = [0.9000, 0.8486, 0.5613, 0.4244, 0.3355, 0.2685, 0.2123, 0.1606, 0.1065, 0.0009]


@pytest.mark.parametrize(("shift", "noise_level", "stds"), [(3.0, 0.7, SD3_STDS), (1.0, 0.9, PLAIN_STDS)])
def test_flow_sde_stds_of_public_settings(shift, noise_level, stds):
    table = step_table(diffusers_sigmas(10, shift), "flow_sde", noise_level)
    torch.testing.assert_close(table.s, torch.tensor(stds, dtype=torch.float64), rtol=0, atol=6e-5)


@pytest.mark.parametrize(
    ("sigmas", "noise_level", "constant"),
    [
        (diffusers_sigmas(10, 3.0), 0.7, 2.2522),  # hard-coded as 2.25 for SD3.5-M
        (flux_sigmas(10, 4096), 0.9, 1.7260),  # hard-coded as 1.73 for FLUX.1-dev, right at 1024 px only
        (flux_sigmas(10, 1024), 0.9, 1.9291),
        (qwen_sigmas(10, 1024), 1.2, 1.5329),  # hard-coded as 1.53 for Qwen-Image, right at 512 px and this noise only
    ],
)
def test_noise_weight_reproduces_the_constants_of_the_public_scripts(sigmas, noise_level, constant):
    table = step_table(sigmas, noise_level=noise_level)
    assert table.branch_steps == tuple(range(9))
    torch.testing.assert_close(
        table.noise_weight[:9] / table.s[:9], torch.full((9,), constant).double(), rtol=0, atol=6e-5
    )
    assert table.noise_weight[:9].mean().item() == pytest.approx(1, abs=1e-12)
    assert table.noise_weight[9] == 0


def flow_sde(x, v, sigma, sigma_next, sigma_1, level):
    s = level * math.sqrt(sigma / (1 - (sigma_1 if sigma == 1 else sigma)))
    dt = sigma_next - sigma
    mean = x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, s * math.sqrt(-dt)


def dance_sde(x, v, sigma, sigma_next, sigma_1, level):
    dt = sigma_next - sigma
    score = -(x - (1 - sigma) * (x - sigma * v)) / sigma**2
    return x + v * dt - 0.5 * level**2 * score * dt, level * math.sqrt(-dt)


def cps(x, v, sigma, sigma_next, sigma_1, level):
    std = sigma_next * math.sin(level * math.pi / 2)
    x0, x1 = x - sigma * v, x + (1 - sigma) * v
    return (1 - sigma_next) * x0 + math.sqrt(sigma_next**2 - std**2) * x1, std


def ode(x, v, sigma, sigma_next, sigma_1, level):
    return x + (sigma_next - sigma) * v, 0.0


@pytest.mark.parametrize("step_of", [flow_sde, dance_sde, cps, ode], ids=lambda step: step.__name__)
@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_every_row_is_the_formula_of_its_paper(step_of, num_steps):
    sigmas = linear_sigmas(num_steps, shift=3.0)
    branch_steps = () if num_steps == 1 else None
    table = step_table(sigmas, step_of.__name__, 0.6, branch_steps)
    for i in range(num_steps):
        mean, std = step_of(0.3, -1.7, sigmas[i], sigmas[i + 1], sigmas[1], 0.6)
        assert (table.a[i] * 0.3 + table.b[i] * -1.7).item() == pytest.approx(mean, abs=1e-13)
        assert table.s[i].item() == pytest.approx(std, abs=1e-13)
        assert table.dt[i].item() == pytest.approx(sigmas[i + 1] - sigmas[i], abs=1e-15)


JUST_BELOW = 1 - 2**-24  # the float32 before 1


@pytest.mark.parametrize("num_steps", [2, 10, 40])
@pytest.mark.parametrize("first", [JUST_BELOW, 1 - 2**-21, 1 - 1e-5, 1 - 2**-11, 1 - 1e-3])
def test_a_first_level_just_below_1_has_the_noise_of_1(first, num_steps):
    """Schedules in float32 round 1 down, such as that of SD3 with shift 1.18; others begin at 0.999."""
    sigmas = linear_sigmas(num_steps, 1.18)
    table, exact = step_table([first, *sigmas[1:]]), step_table(sigmas)
    for name in ("a", "b", "s", "noise_weight"):
        torch.testing.assert_close(getattr(table, name), getattr(exact, name), rtol=0.05, atol=1e-3, msg=name)


def test_levels_of_float32_schedules_have_the_noise_of_exact_ones():
    """Many shifts, computed in float32 as diffusers does; some round the first level to less than 1."""
    rounded_down = 0
    for shift in torch.arange(1, 12, 0.01, dtype=torch.float64).tolist():
        level = torch.linspace(1, 0.001, 10)
        levels = shift * level / (1 + (shift - 1) * level)
        rounded_down += bool(levels[0] < 1)
        assert step_table([*levels.tolist(), 0.0]).s.max() < 1.4, shift
    assert rounded_down > 10


def test_a_later_level_just_below_1_is_no_exception():
    table = step_table([1, JUST_BELOW, 0.9, 0.5, 0.0])
    torch.testing.assert_close(table.s[1], step_table([1, 0.9, 0.5, 0.0]).s[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "cps"])
@pytest.mark.parametrize(
    "sigmas",
    [
        [1, JUST_BELOW, 0.5, 0.0], [1, 0.5, 0.5 - 2**-50, 0.1, 0.0], [1, 0.5, 1e-9, 1e-12, 0.0],
        [1, 0.5, 1e-300, 5e-324], [1, 5e-324], [1, 0.0], [0.5, 0.4], [1e-8, 1e-9, 0.0],
        [1 - i * 2**-53 for i in range(6)],
    ],
    ids=str,
)  # fmt: skip
def test_extreme_levels_give_finite_rows(sampler, sigmas):
    table = step_table(sigmas, sampler, 0.7, branch_steps=())
    assert table.coefficients().isfinite().all()
    assert (table.a.abs() <= 1.3).all()
    assert (table.s <= 1.4).all()
    for step in range(table.num_steps):
        assert (step in table.silent_steps) == (table.s[step] < 2**-60)


def test_levels_that_float32_puts_outside_of_0_to_1_are_0_and_1():
    table = step_table([1 + 2**-23, 0.5, -1e-9])
    assert (table.sigma[0], table.sigma_next[1]) == (1, 0)
    with pytest.raises(ValueError, match="strictly falling"):
        step_table([1 + 1e-5, 0.5, 0.0])


def test_linear_sigmas_are_shifted_once():
    assert linear_sigmas(4) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert linear_sigmas(4, shift=3.0) == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_coefficients_are_float64_and_made_once():
    table = step_table(linear_sigmas(5))
    rows = table.coefficients("cpu")
    assert rows.shape == (5, 5)
    assert rows.dtype == torch.float64
    assert rows is table.coefficients(torch.device("cpu"))
    torch.testing.assert_close(rows[:, 3], table.s, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0, float("nan"), 0.0]}, "sigmas must be finite"),
        ({"sigmas": [1.0, 0.5, 0.5, 0.0]}, "sigmas must be strictly falling"),
        ({"sigmas": [1.2, 0.5, 0.0]}, "sigmas must be strictly falling"),
        ({"sigmas": [1.0]}, "sigmas must be a list of 2 to"),
        ({"sampler": "ddpm"}, "sampler must be one of flow_sde, dance_sde, cps, ode, got 'ddpm'"),
        ({"noise_level": float("inf")}, "noise_level must be finite"),
        ({"noise_level": -0.1}, "noise_level must be finite"),
        ({"noise_level": 1e200}, "noise_level must be small enough for float32, got 1e"),
        ({"noise_level": 1e30, "sampler": "dance_sde"}, "noise_level must be small enough for float32, got 1e"),
        ({"noise_level": 10**400}, "noise_level must be finite, got 1000"),
        ({"noise_level": 1e-30}, "branch_steps must be steps where sampler 'flow_sde' adds noise, got"),
        ({"noise_level": 2.0, "sampler": "cps"}, "noise_level must be at most 1 for sampler 'cps', got 2"),
        ({"sigmas": torch.tensor([1, 0.5j])}, "sigmas must be a list of levels"),
        ({"sigmas": torch.tensor([1.0, 0.5]).to_sparse()}, "sigmas must be a list of levels"),
        ({"sigmas": torch.empty(3, device="meta")}, "sigmas must be a list of levels"),
        ({"sigmas": [1.0, None]}, "sigmas must be a list of levels"),
        ({"sigmas": [10**400, 0]}, "sigmas must be a list of levels"),
        ({"sigmas": ["a", "b"]}, "sigmas must be a list of levels"),
        ({"noise_level": "0.7"}, "noise_level must be a number, got '0.7'"),
        ({"branch_steps": [0.5]}, "branch_steps must be an integer, got 0.5"),
        ({"sigmas": None}, "sigmas must be a list of levels, got None"),
        ({"noise_level": 0.0}, "branch_steps must be steps where sampler 'flow_sde' adds noise"),
        ({"branch_steps": [4]}, r"branch_steps must be distinct and in 0..3, got \[4\]"),
        ({"branch_steps": [1, 1]}, "branch_steps must be distinct"),
        ({"sampler": "ode", "branch_steps": [0]}, r"branch_steps must be steps where sampler 'ode' .*, got \[0\]"),
        ({"sampler": "cps", "branch_steps": [3]}, r"branch_steps must be steps where sampler 'cps' .*, got \[3\]"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match="step_table: " + message):
        step_table(**{"sigmas": linear_sigmas(4), **arguments})


def test_linear_sigmas_errors():
    with pytest.raises(ValueError, match="linear_sigmas: num_steps must be at least 1, got 0"):
        linear_sigmas(0)
    with pytest.raises(ValueError, match=r"linear_sigmas: shift must be positive, got 0\.0"):
        linear_sigmas(4, 0.0)
    for num_steps in (2.5, None, "4"):
        with pytest.raises(ValueError, match="linear_sigmas: num_steps must be an integer, got"):
            linear_sigmas(num_steps)
    with pytest.raises(ValueError, match="linear_sigmas: num_steps must be at most 65535, got 65536"):
        linear_sigmas(65536)
    for shift in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="linear_sigmas: shift must be finite"):
            linear_sigmas(4, shift)
