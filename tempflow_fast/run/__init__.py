"""A training run, and how it survives an interruption.

train         the loop
checks        what is refused before the model is loaded
prepare       settings -> policy
load          model name -> policy
optimizers    the optimizer and its learning rate
average       the moving average of the weights
checkpoint    what a checkpoint holds, how it is written and read
tensors       the tensors of a training state by name, and their digest
numbered      which checkpoints there are, and which are undamaged
evaluations   evaluations with what they depend on
origin        digests of model, prompts and rewards, and the machine
random_state  the state of the random number generators
resume        where a run starts, and which settings may change
directory     the files of a run
lock          one run at a time in a directory
trackers      TensorBoard, Weights & Biases and the like
progress      the budget and the progress bar
signals       Ctrl-C, SIGTERM and the like
report        the tables and the last lines that are printed
"""
