"""What the processes of `started` have imported when they begin; nothing is computed, so that a fork is safe."""

import diffusers.pipelines.stable_diffusion_3  # noqa: F401
import matplotlib.pyplot  # noqa: F401

import tempflow_fast.run.prepare
import tempflow_fast.run.report
import tempflow_fast.run.trackers
import tempflow_fast.run.train
import tempflow_fast.shapes.prompts  # noqa: F401
