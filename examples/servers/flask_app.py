"""An application on Flask."""

import flask
from app import body

app = flask.Flask("app")
app.add_url_rule("/", view_func=lambda: flask.Response(body(), content_type="text/plain"))
