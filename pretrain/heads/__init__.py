"""Further losses: modules that read a step and return sums and counts."""
