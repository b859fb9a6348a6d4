"""Data sets and transforms of this project, and the checks that every training starts with."""
