"""A composer that writes captioned music with known truth, and renders it."""
