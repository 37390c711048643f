"""The built-in story model: its grammar, its training and its files."""
