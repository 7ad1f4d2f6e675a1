"""moto's server, answering one request at a time, and keeping what it was told.

It looks whether an object exists and then puts it, on as many threads as there are requests: of several that put an
object if there is none, more than one would succeed now and then, which no S3 does.

It has all of its state in memory. So each request that may change something is written to a journal beside this script
before it has an effect, and a server that starts where there is a journal does all of it again before it listens: it may
be killed at any moment, and returns with what it had. As with any server, a request that got no answer took effect or not.
"""

import datetime
import io
import json
import pathlib
import struct
import sys
import threading

import moto.s3.models
import moto.server

LOCK = threading.Lock()
JOURNAL = pathlib.Path(__file__).with_name("moto.journal")
LENGTHS = struct.Struct(">QQ")
run_simple = moto.server.run_simple


class Now:
    """When the change happens that is being done, or was done before the server was killed, and which one it is."""

    number = 0
    time = None


def utcnow():
    return Now.time or datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


# An upload is found by the same id when it is begun again.
begin_upload = moto.s3.models.FakeMultipart.__init__


def begin_numbered_upload(upload, *args, **kwargs):
    begin_upload(upload, *args, **kwargs)
    upload.id = f"upload-{Now.number}"


moto.s3.models.utcnow = utcnow
moto.s3.models.FakeMultipart.__init__ = begin_numbered_upload


def answered(app, environ, start_response, body):
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    answer = app(environ, start_response)
    try:
        return [b"".join(answer)]
    finally:
        if hasattr(answer, "close"):
            answer.close()


def changed(app, environ, start_response, body, time):
    Now.number, Now.time = Now.number + 1, time
    try:
        return answered(app, environ, start_response, body)
    finally:
        Now.time = None


def journaled(journal, environ, body):
    time = utcnow()
    texts = {name: value for name, value in environ.items() if isinstance(value, str)}
    head = json.dumps([time.isoformat(), texts]).encode()
    journal.write(LENGTHS.pack(len(head), len(body)) + head + body)
    journal.flush()
    return time


def entries(journal):
    """What was written whole, and where it ends: the last entry may have been cut by a kill."""
    end = journal.tell()
    while len(lengths := journal.read(LENGTHS.size)) == LENGTHS.size:
        of_head, of_body = LENGTHS.unpack(lengths)
        head, body = journal.read(of_head), journal.read(of_body)
        if len(head) + len(body) < of_head + of_body:
            break
        end = journal.tell()
        time, texts = json.loads(head)
        yield datetime.datetime.fromisoformat(time), texts, body
    journal.seek(end)
    journal.truncate()


def replay(app, journal):
    for time, texts, body in entries(journal):
        environ = {
            **texts,
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        changed(app, environ, lambda *_: None, body, time)
    print(f"{Now.number} requests done again", file=sys.stderr)


def one_at_a_time(app, journal):
    def call(environ, start_response):
        # A client that is slow to send keeps nobody waiting.
        body = environ["wsgi.input"]
        if environ.get("wsgi.input_terminated"):
            content = body.read()
        else:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            content = body.read(length)
            if len(content) < length:
                # Its sender is gone.
                start_response("400 Bad Request", [])
                return []
        with LOCK:
            if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
                return answered(app, environ, start_response, content)
            time = journaled(journal, environ, content)
            return changed(app, environ, start_response, content, time)

    return call


def run(host, port, app, **options):
    JOURNAL.touch()
    with JOURNAL.open("r+b") as journal:
        replay(app, journal)
        run_simple(host, port, one_at_a_time(app, journal), **options)


moto.server.run_simple = run
moto.server.main()
