"""Writes an index: encoding in parts, by one or many workers; the gate that every generation passes."""
