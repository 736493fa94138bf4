"""The commands: one file and one typed function each, thin over the library."""
