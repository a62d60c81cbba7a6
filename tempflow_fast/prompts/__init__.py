"""Prompts, from a file to the entries of an iteration.

sources    text files, JSONL files and data sets -> entries: a prompt with its metadata
sets       which entries an iteration trains on, and which evaluation uses
"""
