"""Prompts, from a file to the entries of an iteration.

sources      a name of a file or a data set -> entries
entries      what an entry is, and what every source is checked for
files        texts, JSON and tables -> rows
data_sets    data sets of Hugging Face's library -> rows
sets         which entries an iteration trains on, and which evaluation uses
"""
