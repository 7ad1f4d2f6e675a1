"""moto's server, answering one request at a time.

It looks whether an object exists and then puts it, on as many threads as there are requests: of several that put an
object if there is none, more than one would succeed now and then, which no S3 does.
"""

import io
import threading

import moto.server

LOCK = threading.Lock()
run_simple = moto.server.run_simple


def one_at_a_time(app):
    def call(environ, start_response):
        # A client that is slow to send keeps nobody waiting.
        body = environ["wsgi.input"]
        if environ.get("wsgi.input_terminated"):
            content = body.read()
        else:
            content = body.read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(content)
        environ["CONTENT_LENGTH"] = str(len(content))
        with LOCK:
            answer = app(environ, start_response)
            try:
                return [b"".join(answer)]
            finally:
                if hasattr(answer, "close"):
                    answer.close()

    return call


def run(host, port, app, **options):
    run_simple(host, port, one_at_a_time(app), **options)


moto.server.run_simple = run
moto.server.main()
