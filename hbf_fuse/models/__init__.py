"""Which model is used, and where real ones come from."""
