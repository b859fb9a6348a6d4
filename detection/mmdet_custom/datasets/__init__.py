"""Data sets of this project and the checks that every run starts with."""
