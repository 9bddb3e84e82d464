"""Fine-tunes wav2vec2 to tell bona fide from spoof, and measures how well it does (extra `training`)."""
