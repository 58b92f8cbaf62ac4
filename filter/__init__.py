"""Columns about pairs, and the rules over them that decide which pairs stay."""
