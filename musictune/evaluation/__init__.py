"""From folders of music to scores: which files, which listeners, which checks, in which order."""
