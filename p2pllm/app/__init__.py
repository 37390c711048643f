"""The composition root: a configured node made of the parts below it."""
