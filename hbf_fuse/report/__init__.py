"""Turns finished runs into what people read."""
