"""CUDA graphs: capture (records a segment of fixed shape), replay (keeps recorded segments and runs them)."""
