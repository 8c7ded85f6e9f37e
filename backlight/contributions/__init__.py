"""CODEC: what hidden units contribute to an output, decomposed into modes, controlled, and mapped to the input."""
