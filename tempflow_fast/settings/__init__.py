"""Every setting, once: iteration (`GRPOConfig`), run (all others, `TrainConfig`), recipes (named settings)."""
