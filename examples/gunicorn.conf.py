"""Settings of gunicorn under ``conduit run``."""

# Load the application before READY=1 is said. Without this gunicorn says it first, so that the
# old version is let go although the new one cannot be imported.
preload_app = True

workers = 2
graceful_timeout = 30

# Two versions run side by side for a moment, and would want the same socket for commands.
control_socket_disable = True
