"""pairmill: image-text datasets from lists of URLs, and contrastive models from the datasets."""

__version__ = "0.1.0"
