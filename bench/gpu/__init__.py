"""Checks and measures on a GPU what nothing else can show: `python -m bench.gpu`, or `make gpu`.

The command builds the package outside of the checkout, checks and measures every body of the ops, the captured rollout
and the iteration, and writes a dated report. Modules are imported late, because the package is built first.
"""

import os
import sys

BUILT = "TEMPFLOW_FAST_BENCH_BUILD"
"""Environment variable: the folder of the package that `build.py` built. It takes precedence over the checkout."""

if os.environ.get(BUILT) and os.environ[BUILT] not in sys.path:
    sys.path.insert(0, os.environ[BUILT])
