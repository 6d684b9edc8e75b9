"""`python -m tools.bench`: what this toolkit does, timed against the libraries that do the same, on the same weights.

Each row first checks that both sides give the same result, then runs them in turn in one process and quotes the ratio
of each neighbouring pair. Beside the times stands the physical limit: the arithmetic over the fastest product or
convolution that this machine does, or the bytes over its fastest copy, whichever takes longer.
"""
