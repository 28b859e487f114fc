"""Singular values of every matrix of a checkpoint, streamed; which matrices stand out of the noise."""
