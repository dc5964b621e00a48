"""Bridges: a sparse model beside a frozen dense one, joined at every sublayer."""
