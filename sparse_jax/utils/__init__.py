"""Files, errors, progress and the host: what every package uses."""
