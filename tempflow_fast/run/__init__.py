"""A training run and how it survives.

train         the loop
prepare       settings -> policy; load: a model by name
optimizers, average    how the weights move, and their moving average
checkpoint, random_state    what a checkpoint holds, how it is written and read
resume        where a run starts, and which settings may change
directory     the files of a run
trackers, progress, report    what it logs, shows and says at its end
"""
