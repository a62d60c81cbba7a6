"""Checks of the dependencies, without a network: `make audit`. What it can tell is in docs/security.md.

lock.txt           the versions that the tests run with, with the digests of their wheels
advisories.json    known advisories of these packages
check              compares both with what is installed and with what pyproject.toml allows
refresh            writes both files again; needs a network
"""
