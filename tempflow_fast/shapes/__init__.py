"""Shapes: a miniature GenEval on which the whole method runs in minutes on a CPU.

A world of coloured shapes (`world`), prompts of the six GenEval task types about it (`prompts`), an exact rule-based
checker (`checker`), and a small Stable Diffusion 3 pipeline that draws this world (`pipeline/`, made by `pretrain`).
"""

from pathlib import Path


def pipeline_path() -> Path:
    """The directory of the packaged pipeline, in the layout that `StableDiffusion3Pipeline.from_pretrained` loads."""
    return Path(__file__).parent / "pipeline"
