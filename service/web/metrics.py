"""The metrics: the service's counts, in the terms of Prometheus."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.gate.wiring import Wiring


def create_registry(in_force: Callable[[], Wiring]) -> CollectorRegistry:
    """Return what collects the metrics of the service and of its process."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(in_force))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class ServiceCollector(Collector):
    """Reads the service's counts when they are asked for, so that counting costs the hot path an addition."""

    def __init__(self, in_force: Callable[[], Wiring]) -> None:
        self._in_force = in_force

    @property
    def _wiring(self) -> Wiring:
        return self._in_force()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; every label is of a closed set, or an issuer of the configuration."""
        telemetry = self._wiring.telemetry
        decisions = {(gate, "allowed"): count for gate, count in telemetry.allowed.items()} | telemetry.refused
        yield _counter("decisions", "Decisions by gate and outcome", decisions.items(), "gate", "outcome")
        yield _counter(
            "websocket_refused",
            "WebSockets of Prefect's API refused for want of a credential: task runs are being lost",
            telemetry.websockets_refused.items(),
            "endpoint",
        )
        yield _counter(
            "websockets",
            "Relayed WebSockets, by what became of them",
            telemetry.websockets.items(),
            "endpoint",
            "outcome",
        )
        yield GaugeMetricFamily(
            "forward_auth_websockets_open", "Relayed WebSockets that are open", value=telemetry.websockets_open
        )
        yield _counter(
            "websocket_events_dropped",
            "Events of clients without a credential that nobody vouched for",
            telemetry.events_dropped.items(),
            "reason",
        )
        yield _counter("sign_ins", "Signing in and out, by outcome", telemetry.sign_ins.items(), "outcome")
        yield _counter(
            "token_requests", "Machines' requests for a token, by outcome", telemetry.token_requests.items(), "outcome"
        )
        reloads = {outcome: telemetry.reloads[outcome] for outcome in ("done", "refused")}
        yield _counter("reloads", "Readings of the configuration anew", reloads.items(), "outcome")
        yield GaugeMetricFamily(
            "forward_auth_provider_refuses_client",
            "1 while the provider does not take this service as its client",
            value=1 if self._wiring.provider_fault else 0,
        )
        yield GaugeMetricFamily(
            "forward_auth_config_broken",
            "1 while the configuration is not the one in force",
            value=1 if telemetry.config_problem else 0,
        )
        yield CounterMetricFamily(
            "forward_auth_unknown_routes",
            "Calls of routes that the table does not know",
            value=telemetry.unknown_routes,
        )
        yield CounterMetricFamily(
            "forward_auth_log_suppressed", "Refusals that were not logged one by one", value=telemetry.suppressed
        )
        yield CounterMetricFamily(
            "forward_auth_guesses_refused",
            "Passwords that were not looked at, after too many wrong ones from where they came",
            value=telemetry.guesses_refused,
        )
        yield from self._issuers()
        yield from self._clients()
        yield from self._users()

    def _issuers(self) -> Iterator[Any]:
        fetches = CounterMetricFamily("forward_auth_jwks_fetches", "Fetches of an issuer's keys", labels=["issuer"])
        failures = CounterMetricFamily("forward_auth_jwks_failures", "Fetches that failed", labels=["issuer"])
        keys = GaugeMetricFamily("forward_auth_jwks_keys", "Usable keys of an issuer", labels=["issuer"])
        age = GaugeMetricFamily(
            "forward_auth_jwks_age_seconds", "Time since an issuer's keys were last fetched", labels=["issuer"]
        )
        for url, issuer in self._wiring.issuers.items():
            fetches.add_metric([url], issuer.keys.fetches)
            failures.add_metric([url], issuer.keys.failures)
            keys.add_metric([url], issuer.key_count if issuer.warm else 0)
            if issuer.keys.age is not None:
                age.add_metric([url], issuer.keys.age)
        yield from (fetches, failures, keys, age)

    def _clients(self) -> Iterator[Any]:
        state = self._wiring.state
        grants = {key: count for key, count in state.client_tokens.outcomes.items() if key[0] in self._wiring.clients}
        yield _counter("client_grants", "Issuers asked about clients, by outcome", grants.items(), "issuer", "outcome")
        asked = {key: count for key, count in state.introspections.outcomes.items() if key[0] in self._wiring.issuers}
        yield _counter("introspections", "Issuers asked about opaque tokens", asked.items(), "issuer", "outcome")

    def _users(self) -> Iterator[Any]:
        users, passwords = self._wiring.users, self._wiring.passwords
        if users is not None and passwords is not None:
            yield GaugeMetricFamily("forward_auth_users", "Users in force", value=len(users.users.hashes))
            yield GaugeMetricFamily(
                "forward_auth_users_file_broken",
                "1 while the users file is not the one in force",
                value=1 if users.problem else 0,
            )
            yield GaugeMetricFamily(
                "forward_auth_hashing", "Passwords being hashed or waiting", value=passwords.waiting
            )


def _counter(
    name: str, text: str, counts: Iterable[tuple[str | tuple[str, ...], int]], *labels: str
) -> CounterMetricFamily:
    """Return one counter, from the value of its label, or the values of its labels, with the count of each."""
    family = CounterMetricFamily(f"forward_auth_{name}", text, labels=labels)
    for key, count in counts:
        family.add_metric([key] if isinstance(key, str) else list(key), count)
    return family
