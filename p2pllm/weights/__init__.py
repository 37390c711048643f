"""Where parameters come from: hub ids, folders, the built-in model."""
