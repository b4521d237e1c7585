"""Shared by all parts of `lab`; imports nothing else of the project."""
