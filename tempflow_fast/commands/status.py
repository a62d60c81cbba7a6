"""Exit statuses."""

BAD_ARGUMENT = 2
INTERRUPTED = 130
"""After Ctrl-C, as in shells."""
