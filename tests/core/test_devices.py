"""What a User-Agent header says, and nothing that it does not."""

import pytest

from service.core.request.devices import UNKNOWN, device_in, device_of

AGENTS = {
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0": "Firefox on Linux",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36 "
    "Edg/140.0.0.0": "Edge on Windows",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Safari/605.1.15": "Safari on macOS",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 "
    "Safari/537.36": "Chrome on macOS",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/140.0.0.0 "
    "Mobile/15E148 Safari/604.1": "Chrome on iPhone",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile "
    "Safari/537.36": "Chrome on Android",
    "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 "
    "Safari/537.36": "Chrome on ChromeOS",
    "curl/8.5.0": UNKNOWN,
    "": UNKNOWN,
    "<script>alert(1)</script> Windows": "Windows",
    "x" * 600 + "Firefox/1 Windows": UNKNOWN,
}


@pytest.mark.parametrize(("agent", "device"), AGENTS.items())
def test_a_device_is_named_in_our_own_words(agent: str, device: str) -> None:
    assert device_of(agent.encode()) == device
    assert device_in([(b"host", b"x"), (b"user-agent", agent.encode())]) == device


def test_without_a_header_the_device_is_unknown() -> None:
    assert device_in([(b"host", b"Windows Firefox/")]) == UNKNOWN
