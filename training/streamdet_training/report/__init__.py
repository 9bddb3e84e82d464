"""The folder that `streamdet evaluate --out` writes: report.md, report.html, scores.csv, report.json, pictures."""
