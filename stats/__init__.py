"""What happened to every row: the funnel, the report, one pair's story."""
