"""One module a library; each runs in that library's own environment."""
