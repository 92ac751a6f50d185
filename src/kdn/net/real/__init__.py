"""The same queues and senders over real sockets: a user-space router, a sender, a reflector.

May be imported by `l4s`, `rtc` and `bench`.  Start reading at `router.py`.
"""

from kdn.net.real.namespaces import Namespaces, namespaces_work
from kdn.net.real.reflector import Reflector
from kdn.net.real.router import Router
from kdn.net.real.sender import Sender

__all__ = ["Namespaces", "Reflector", "Router", "Sender", "namespaces_work"]
