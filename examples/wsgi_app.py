r"""A WSGI application on gunicorn, restarted without losing a request.

Start it, and start the same line again to replace it:

    conduit run --control ./takeover.sock --listen 127.0.0.1:8000 -- \
        gunicorn --config gunicorn.conf.py wsgi_app:app
"""

import os
from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer every request with the number of this process."""
    body = b"%d\n" % os.getpid()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
