"""The training and test programs of the three projects; see `train` and `test`."""
