"""`python -m tempflow_fast` is the command `tempflow-fast`, and like it imports nothing from the working directory."""

import sys

if __name__ == "__main__":
    # Python puts the working directory first in the import path: a file torch.py there would run instead of torch.
    if not getattr(sys.flags, "safe_path", False):  # since Python 3.11, -P
        del sys.path[0]
    from .cli import main

    sys.exit(main())
