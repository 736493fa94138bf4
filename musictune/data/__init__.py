"""Audio files to captioned clips and codec tokens."""
