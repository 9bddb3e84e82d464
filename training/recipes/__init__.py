"""Recipes that ship with the package; `streamdet train NAME.toml` finds them by name."""
