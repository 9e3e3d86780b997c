"""What a model would do with its weights in a tier, by arithmetic alone: no clock, no mount."""
