"""The paper's experiment in miniature: methods compared at equal network evaluations. Read in this order:

methods.py     who competes, each as settings of the package
plans.py       a run: its settings, its command, its result
stages.py      tuning on seeds of its own, then the reported seeds
results.py     results.jsonl: one line per finished run, also where the run directories are gone
analysis.py    curves, evaluations to a target, paired differences, with their intervals
plots.py       the pictures
page.py        docs/experiment.md

make experiment                    tune, run five seeds, write the page; resumes; BUDGET= evaluations a run, JOBS=
make experiment ARGS=--quick       a toy of the same, in half a minute
"""
