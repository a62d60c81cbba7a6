"""The tables of docs/gpu.md: registers as the compilers said, floors as the other columns give them."""

from __future__ import annotations

import json
import re

from support import ROOT

PAGE = (ROOT / "docs/gpu.md").read_text()

# What is launched -> the kernel in CUDA C++ and the one in Triton.
KERNELS = {
    "guided_velocity": ("guided_velocity_kernel", "guided_kernel"),
    "euler_step": ("euler_step_kernel", "euler_kernel"),
    "branch_step": ("branch_step_kernel", "branch_kernel"),
    "initial_noise": ("initial_noise_kernel", "initial_noise_kernel"),
    "log_prob": ("log_prob_kernel", "squares_kernel"),
    "log_prob_backward": ("log_prob_backward_kernel", "backward_kernel"),
    "policy_loss": ("loss_sums_kernel", "products_kernel"),
    "policy_loss, 2nd launch": ("loss_gradient_kernel", "loss_kernel"),
    "branch_step and log_prob, 2nd": ("log_density_kernel", "finish_kernel"),
}
# TB/s and T instructions/s of docs/gpu.md; the example's latent elements.
CARDS = {"A100": (2.04, 19.5), "H100": (3.35, 29.7), "H200": (4.8, 29.7)}
ELEMENTS, K = 24 * 65_536, 6


def register_table() -> list[str]:
    """The lines of the table, from what is committed beside the kernels."""
    cuda = json.loads((ROOT / "csrc/cuda/registers.json").read_text())["kernels"]
    triton = json.loads((ROOT / "kernels/registers.json").read_text())["registers"]
    targets = ("sm_80", "sm_90", "sm_100", "gfx942")

    def of_cuda(kernel: str, target: str) -> str:
        names = (f"{kernel} fp32", f"{kernel} bf16", kernel)
        return " / ".join(str(cuda[target][name]["registers"]) for name in names if name in cuda[target])

    def of_triton(kernel: str, target: str) -> str:
        found = [triton[kernel][dtype][target] for dtype in ("float32", "bfloat16") if dtype in triton[kernel]]
        return " / ".join(map(str, dict.fromkeys(found) if kernel == "finish_kernel" else found))

    lines = ["| launch | CUDA sm_80 | sm_90 | sm_100 | Triton sm_80 | sm_90 | sm_100 | gfx942 |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for launch, (kernel, twin) in KERNELS.items():
        cells = [of_cuda(kernel, target) for target in targets[:3]] + [of_triton(twin, target) for target in targets]
        lines.append(f"| {launch} | {' | '.join(cells)} |")
    return lines


def test_the_register_table_is_that_of_the_compilers():
    assert "\n".join(register_table()) in PAGE, "docs/gpu.md wants:\n" + "\n".join(register_table())


def number(formula: str) -> float:
    """The value of "13 K + 130" or "(5 + K) e + 4" in the example."""
    formula = re.sub(r"(?<=[\d)]) (?=[Ke])", " * ", formula.replace(" (fp32)", ""))
    return float(eval(formula, {"e": 2, "K": K}))  # our own page


def test_the_floors_follow_from_bytes_and_instructions():
    header = "| op | bytes | K = 6, bf16 | MB | instructions, CUDA | Triton | A100 | H100 | H200 | bound by |"
    rows = PAGE.partition(header)[2].strip().partition("\n\n")[0].splitlines()[1:]
    assert len(rows) == 8
    for row in rows:
        name, formula, moved, megabytes, *counts, a100, h100, h200, _ = map(str.strip, row.split("|")[1:-1])
        assert number(formula) == float(moved), name
        assert float(megabytes) == round(float(moved) * ELEMENTS / 1e6, 1), name
        instructions = min(map(number, counts))
        for told, (memory, issue) in zip((a100, h100, h200), CARDS.values(), strict=True):
            floor = max(float(moved) / memory, instructions / issue) * ELEMENTS / 1e6
            assert told == (f"{floor:.1f} us" if floor < 10 else f"{floor:.0f} us"), name
