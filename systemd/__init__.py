"""The unit files of `streamdet install-service`, as they lie under systemd/ in the sources."""
