"""Constrained answers: whether they keep to their schemas, and what that costs."""
