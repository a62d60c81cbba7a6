"""Triton twins of the ops, for GPUs; imported only where Triton is."""
