"""Everything that only a GPU can show, in one command: `python -m bench.gpu`, or `make gpu`.

It builds the package beside the checkout, checks every body of the ops, the captured rollout and the iteration,
measures them, and writes a dated report. Modules are imported late, because the package is built first.
"""

import os
import sys

BUILT = "TEMPFLOW_FAST_BENCH_BUILD"
"""Environment variable: the folder of the package as `build.py` built it, which comes before the checkout."""

if os.environ.get(BUILT) and os.environ[BUILT] not in sys.path:
    sys.path.insert(0, os.environ[BUILT])
