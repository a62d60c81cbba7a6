from __future__ import annotations

import pytest
import torch

from tempflow_fast.grpo.sketch import CHUNK, Sketch, _signs


def gradients(num=2, size=20_000):
    return torch.randn(num, size, generator=torch.Generator().manual_seed(0))


def test_a_short_gradient_is_kept_as_it_is():
    parts = [torch.randn(3, 4), torch.randn(5)]
    whole = torch.cat([part.flatten() for part in parts])
    assert torch.equal(Sketch(17, 100)(parts), whole)
    assert torch.equal(Sketch(17)(parts), whole)


def test_inner_products_are_kept_within_the_stated_error():
    first, other = gradients()
    second, size = first + other, 4096
    sketch = Sketch(len(first), size)
    error = (sketch([first]) @ sketch([second]) - first @ second).abs()
    assert error < 4 * (2 / size) ** 0.5 * first.norm() * second.norm()


def test_inner_products_are_unbiased_over_positions():
    """Pieces of one long gradient are sketched with different signs, so the mean of their errors shows a bias."""
    first, second = gradients().view(2, 200, 100)
    second = second + first
    errors = []
    for piece in range(200):
        before = torch.zeros(piece * 100)
        sketch = Sketch(20_000, 50)
        errors.append(sketch([before, first[piece]]) @ sketch([before, second[piece]]) - first[piece] @ second[piece])
    errors = torch.stack(errors)
    assert errors.mean().abs() < 4 * errors.std() / len(errors) ** 0.5
    assert errors.std() > 0


def test_the_division_into_parts_does_not_matter():
    whole = gradients(1)[0]
    sketch = Sketch(len(whole), 512)
    parts = sketch(whole.split(7_777))
    torch.testing.assert_close(parts, sketch([whole]), atol=1e-4, rtol=0)


def test_signs_are_a_function_of_the_position():
    assert torch.equal(_signs(0, 1000)[300:700], _signs(300, 400))
    signs = _signs(CHUNK, 1 << 16)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 4 / 256
    assert (signs[:-1] * signs[1:]).mean().abs() < 4 / 256


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"Sketch: size must be >= 1 or None, got {size}"):
        Sketch(10, size)
