"""Answers from an index: bounds first, then exact influences, until the answer is proved."""
