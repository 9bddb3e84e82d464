"""Turns a training run into a bundle: merge, ONNX, precision, parity, calibration, thresholds (extra `export`)."""

import streamdet  # noqa: F401 - before onnxruntime, whose telemetry it switches off
