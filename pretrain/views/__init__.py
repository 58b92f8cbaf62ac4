"""Changes of a batch before it is encoded, drawn anew in each step."""
