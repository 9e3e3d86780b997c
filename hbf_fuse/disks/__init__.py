"""Real disks and files as tiers: measured, fitted, and held against a mount of the fit."""
