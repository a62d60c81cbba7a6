"""Scoring a policy: the same held-out prompts and the same noise every time.

sample       noise -> images by the ODE
measures     images -> named scores
evaluate     a policy -> an Evaluation
result       what an Evaluation holds, and its file
directory    scores saved as they arrive, so that an evaluation resumes where it stopped
intervals    means with 95 % intervals
compare      differences between two evaluations
report       Markdown and JSON
sheets       contact sheets
curves       plots
"""
