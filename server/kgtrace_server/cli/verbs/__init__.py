"""The verbs: a module each or for a few of one kind, with their arguments and functions.

Whatever is slow to import is imported inside functions, so that ``--help`` and wrong calls answer at once.
"""
