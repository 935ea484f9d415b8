"""What a person would call the device that a browser runs on: coarse, and from a closed set of words."""

from typing import Final

from service.core.request.headers import Headers

MAX_READ: Final = 512  # bytes of a User-Agent header
UNKNOWN: Final = "An unknown device"
# the first that a User-Agent contains: most of them also claim to be the ones further down
_BROWSERS: Final = (
    (b"Edg", "Edge"),
    (b"OPR/", "Opera"),
    (b"SamsungBrowser/", "Samsung Internet"),
    (b"Firefox/", "Firefox"),
    (b"FxiOS/", "Firefox"),
    (b"CriOS/", "Chrome"),
    (b"Chrome/", "Chrome"),
    (b"Safari/", "Safari"),
)
_SYSTEMS: Final = (
    (b"iPhone", "iPhone"),
    (b"iPad", "iPad"),
    (b"Android", "Android"),
    (b"CrOS", "ChromeOS"),
    (b"Windows", "Windows"),
    (b"Macintosh", "macOS"),
    (b"Linux", "Linux"),
)


def device_of(user_agent: bytes) -> str:
    """Return the browser and the system that a User-Agent header names, such as "Firefox on Windows"."""
    read = user_agent[:MAX_READ]
    browser = next((name for mark, name in _BROWSERS if mark in read), "")
    system = next((name for mark, name in _SYSTEMS if mark in read), "")
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or UNKNOWN


def device_in(headers: Headers) -> str:
    """Return the device that the headers of a request name."""
    return device_of(next((value for name, value in headers if name == b"user-agent"), b""))
