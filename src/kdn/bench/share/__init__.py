"""Siblings share what they have read: the pairs' tasks, the arms, and what each costs."""
