"""Questions and answers, defined once: `questions` and `answers`, with examples for the documentation."""
