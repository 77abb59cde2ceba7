"""What can be asked and answered, defined once: `questions` and `answers`, with examples for the documentation."""
