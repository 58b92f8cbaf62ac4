"""Lists of URLs and captions become pairs; pairs become raw shards of pictures."""
