"""Parts of the lane and map metrics: distances, matching, average precision (numpy, scipy)."""
