"""`python -m tempflow_fast` is the command `tempflow-fast`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
