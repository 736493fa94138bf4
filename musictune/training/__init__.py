"""Training: tuning a base on clips, classifiers, and the making of base models."""
