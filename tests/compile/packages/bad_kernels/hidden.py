"""Loaded by a name that no import statement shows."""
