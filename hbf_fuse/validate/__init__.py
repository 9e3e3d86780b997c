"""Results that others published, computed by the code that users call."""
