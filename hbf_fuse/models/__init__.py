"""Which model is taken, and where real ones come from."""
