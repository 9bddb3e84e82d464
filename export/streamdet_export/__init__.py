"""Turns a training run into a bundle: merge, ONNX, precision, parity, calibration, thresholds (extra `export`)."""
