"""What the package is worth in seconds and bytes, next to what it replaces.

baselines.py   the ops in PyTorch, as public scripts write them and as one writes them with care
paper.py       an iteration in the structure of the paper's scripts
networks.py    transformers of three sizes, and their iterations
merged_distance.py   a rollout with merged weights next to one with the adapter
op_cases.py    every op next to its baselines
clocks.py      where the seconds of an iteration go
conftest.py    how all of it is timed; no figure without its tests
test_*.py      the figures, one pytest-benchmark each
goals.py       what was hoped for, held against the figures
page.py        figures -> docs/benchmarks.md, plots.py -> its pictures, machine.py where they come from
tails.py       what cheap tails keep of full ones, by branch step; equal_signal.py seconds at equal signal
gathers.py     all-gathers of sharded weights in three structures; gather_law.py the same on paper for large models
experiment/    methods at equal network evaluations, and time_to_reward/ seconds to a strict accuracy
gpu/           the same question for a card: `make gpu`
"""
