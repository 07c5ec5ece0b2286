"""Torchmetrics of the systems, each beside the pure functions that it is made of."""
