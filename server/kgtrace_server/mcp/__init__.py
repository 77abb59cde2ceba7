"""An index for assistants, by the Model Context Protocol: its tools, and their answers as short text."""
