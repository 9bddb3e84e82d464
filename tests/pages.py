"""Pages of a daemon's HTTP endpoint, as tests read them."""

import urllib.error
import urllib.request


def get(address: str, path: str, timeout_s: float, token: str | None = None) -> tuple[int, str]:
    """GET a page of `host:port`, with a token where one is asked for: status and body."""
    request = urllib.request.Request(f"http://{address}{path}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def sample(metrics: tuple[int, str], name: str) -> float:
    """Return the sample of this name and labels on the page /metrics; 0 where there is none yet."""
    status, page = metrics
    assert status == 200, page
    rows = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return float(dict(rows).get(name, 0))
