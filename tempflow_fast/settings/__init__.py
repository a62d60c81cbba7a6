"""Every setting, declared once.

iteration    `GRPOConfig`, the settings of one iteration
methods      named sets of these: TempFlow-GRPO, its ablations and its relatives
run          all other settings, and `TrainConfig`, which holds them all
recipes      named settings of a whole run
usages       steps and guidance of published models
families     settings for a model that no recipe names
check        that every value is of the type of its field
read         settings from JSON, with errors that name the file
fields       what a field says about its setting: help text, and whether a run may change it
"""
