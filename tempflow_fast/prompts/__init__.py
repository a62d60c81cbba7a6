"""Prompts: sources (from files and data sets to entries) and sets (which entries train and which are held out)."""
