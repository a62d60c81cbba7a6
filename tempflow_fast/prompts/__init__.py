"""Prompts: sources (files and data sets -> entries), sets (which of them train and which are held out)."""
