"""Data sets of this project and the checks that every training starts with."""
