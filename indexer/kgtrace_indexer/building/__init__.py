"""Writes an index: encoding in parts, by one or many workers; joining; the gate that every generation passes."""
