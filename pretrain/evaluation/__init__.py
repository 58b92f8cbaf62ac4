"""What a model can do on sets of its own: one file for each measure."""
