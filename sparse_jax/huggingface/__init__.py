"""Hugging Face directories of dense models, read without their libraries."""
