"""The kernel that every published system is written in: what is compared, with what target, by what loss."""
