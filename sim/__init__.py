"""A virtual world of time, network and machines that drives the real core."""
