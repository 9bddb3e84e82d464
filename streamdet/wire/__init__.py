"""The protocols, without I/O: bytes in, records out, and back."""
