"""Checks and measures on a GPU what nothing else can show: `python -m bench.gpu`, or `make gpu`.

Modules that use the package are imported late, because a stage builds it first, outside of the checkout.

__main__.py    the command: a process for each stage; wheels.py what an environment lacks; card.py which card
stage.py       one stage: build.py, then its checks, with a time limit and a report (results.py, report.py, children.py)
stages.py      stage name -> its checks; plan.py their sizes, models.py their networks
kernels.py     the ops against the reference (parity.py), the CUDA kernels without torch (harness.py)
checks.py      tiny networks; learning.py a run of the shapes
op_figures.py  ops by graph replay (timing.py) next to their floors (roofline.py)
calls.py       large networks; iteration.py whole iterations; work.py what both time
predictions.py what was expected, next to what was measured
page.py        the tables of docs/gpu.md; aot.py that of docs/gpu-kernels.md: no GPU is needed
"""

import os
import sys

BUILT = "TEMPFLOW_FAST_BENCH_BUILD"
"""Environment variable: the folder of the package that `build.py` built. It takes precedence over the checkout."""

if os.environ.get(BUILT) and os.environ[BUILT] not in sys.path:
    sys.path.insert(0, os.environ[BUILT])
