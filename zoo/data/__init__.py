"""Structures that ship with the package; `README.md` in this folder says how each was made."""
