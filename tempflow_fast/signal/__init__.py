"""How much an iteration teaches, measured: the meter of settings.

- `measure`: settings -> a report; `gradients`: one iteration -> one gradient per branch step
- `sketch`: long gradients made short; `estimates`: gradients -> signal, variance and errors
- `choose`: signal and cost -> which steps to use; `report`: the tables and the plot
"""
