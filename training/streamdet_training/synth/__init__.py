"""Spoof material: bona fide recordings through vocoders, and sentences through text-to-speech programs."""
