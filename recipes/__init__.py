"""The recipes that ship with pairmill, as YAML."""
