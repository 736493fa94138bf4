"""The listening page: blind votes on pairs of clips, and ratings of single ones."""
