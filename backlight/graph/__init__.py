"""Concept graphs: how the concepts of one layer make those of the next, and these the decision."""
