"""The authors' released files."""
