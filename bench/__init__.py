"""Timings of the ops against PyTorch; every figure is gated by the correctness test of what it measures."""
