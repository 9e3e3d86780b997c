"""The files that the mounts of this folder serve."""

SIZE = 3_000_001
MANY = 1200
EVERY_BYTE = [b"a" + bytes([byte]) + b"z" for byte in range(1, 256) if byte != ord("/")]
LONGEST = b"n" * 255
