"""A WSGI application on waitress, on the socket that was passed."""

import waitress
from app import listener, wsgi

waitress.serve(wsgi, sockets=[listener()])
