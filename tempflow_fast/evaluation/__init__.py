"""Judging a policy: the same held-out prompts and the same noise every time.

sample       noise -> images by the ODE
measures     images -> named scores
evaluate     a policy -> an Evaluation; result: what one holds, and its file
directory    scores kept as they come, so that an evaluation resumes where it stopped
intervals, compare    means with 95 % intervals, and differences between two evaluations
report, sheets, curves    Markdown, contact sheets, plots
"""
