"""Search over the weights of the closed forms of a finished run, and what it is confirmed by."""
