"""CUDA graphs of a rollout's network calls.

capture    captures a segment of fixed shape, and finds what forbids it
replay     keeps captured segments and replays them
"""
