"""Settings of gunicorn under ``conduit run``."""

# Load the application before READY=1 is sent. Without this gunicorn sends it first, and the old
# version is stopped even if the new one cannot be imported.
preload_app = True

workers = 2
graceful_timeout = 30

# Two versions run side by side for a moment, and would want the same socket for commands.
control_socket_disable = True
