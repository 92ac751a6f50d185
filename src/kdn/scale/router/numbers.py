"""What a router counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from kdn.scale.router.fleet import Fleet

__all__ = ["RouterNumbers"]


class RouterNumbers:
    """Counters by server. Owns its registry, so two routers in one process do not mix."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            found = Counter(f"kdn_router_{name}", text, ("server",), registry=self.registry)
            for server in fleet.servers:
                found.labels(server)
            return found

        self._requests = counter("requests", "Requests sent to a server.")
        self._tokens = counter("prompt_tokens", "Prompt tokens sent, estimated from characters.")
        self._matched = counter("matched_tokens", "Those believed to be stored at the server.")
        self.retries = counter("retries", "Requests that went on to another server.")
        self.cut = counter("cut_streams", "Streams that ended with their server's death.")
        self._up = Gauge("kdn_router_up", "Does it answer?", ("server",), registry=self.registry)
        self._running = Gauge(
            "kdn_router_running", "Requests without an end.", ("server",), registry=self.registry
        )
        self._slowdown = Gauge(
            "kdn_router_slowdown",
            "Measured prefill time over the model's.",
            ("server",),
            registry=self.registry,
        )

    def sent(self, server: str, num_tokens: int, matched_tokens: int) -> None:
        """A prompt was sent to a server."""
        self._requests.labels(server).inc()
        self._tokens.labels(server).inc(num_tokens)
        self._matched.labels(server).inc(matched_tokens)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        for name, server in self._fleet.servers.items():
            self._up.labels(name).set(server.is_up)
            self._running.labels(name).set(server.num_running)
            self._slowdown.labels(name).set(server.slowdown)
        return generate_latest(self.registry)
