"""How much an iteration teaches, measured: the meter of settings.

- `measure`: settings -> a report; `gradients`: one iteration -> one gradient per branch step
- `contained`: settings that need no iterations of their own; `store`: the iterations in a directory
- `estimates`: gradients, made short by `grpo/sketch.py` -> signal, variance and errors
- `choose`: signal and cost -> which steps to use; `report`: the tables and the plot
"""
