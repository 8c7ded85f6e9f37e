"""Concepts: what the directions of hidden layers encode, where in the input they look, and how well they tell it."""
