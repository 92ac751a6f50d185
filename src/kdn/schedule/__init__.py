"""Integers only: who waits, who is next, who goes in."""

from __future__ import annotations

from kdn.schedule.policy import POLICIES, Fcfs, Policy, Priority
from kdn.schedule.queue import Decision, WaitingRoom

__all__ = ["POLICIES", "Decision", "Fcfs", "Policy", "Priority", "WaitingRoom"]
