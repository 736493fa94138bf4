"""What the bench commands measure, and the tables they print."""
