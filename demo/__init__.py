"""A small seeded web whose truth is known, to run the whole job on."""
