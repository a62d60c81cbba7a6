"""Seconds of training to a strict accuracy: the paper's structure run eagerly, and what this package adds to it.

paper_step.py  an iteration of `bench/paper.py` with the arguments of `grpo_step`
page.py        docs/time-to-reward.md

The runs are those of `bench/experiment/plans.py`; arms take turns on one core, seed by seed. The noise level is the one
that `make experiment` has chosen for TempFlow-GRPO, and so is the learning rate but for arms with fewer branch steps.

make time-to-reward                     runs what is left; ARGS="--target 0.7" for another target
make time-to-reward ARGS=--quick        a toy of the same
"""
