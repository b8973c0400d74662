"""Where staged input comes from: files of `www/HOST/…`, git repositories below `/git/`, redirects, a
server that stalls, one that takes its time, one that never ends, and an S3-compatible store below `/store/`.

Everything that is asked is written down with its headers.
"""

import asyncio
import os
import ssl

import web

# Where each of these sends.
REDIRECTS = {
    "/in/moved.csv": "/in/case.csv",
    "/in/away.csv": "https://other.example.test/in/case.csv",
    "/in/out.csv": "/out/secret.csv",
    "/in/climbs.csv": "/in/../out/secret.csv",
    "/in/plain.csv": "http://data.example.test/in/case.csv",
    "/in/inner.csv": "https://inner.example.test/in/case.csv",
    "/in/round.csv": "/in/round.csv",
}


async def stall(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun")
    await writer.drain()
    await asyncio.sleep(120)


async def slow(writer):
    """Twelve seconds for 2400 bytes."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2400\r\nconnection: close\r\n\r\n")
    for _ in range(24):
        writer.write(b"s" * 100)
        await writer.drain()
        await asyncio.sleep(0.5)


async def endless(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    while not writer.is_closing():
        writer.write(chunk)
        await writer.drain()
        # That waits only while there is too much to send; who tells of the end needs a turn.
        await asyncio.sleep(0)
    return False


def stored(directory, method, target, headers):
    """An answer of the store: status, more header lines, body."""
    if not headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 Credential=LABKEY/"):
        return "403 Forbidden", "", b"<Error><Code>AccessDenied</Code></Error>"
    path = os.path.join(directory, "www", target.lstrip("/"))
    if ".." in target or not os.path.isfile(path):
        return "404 Not Found", "", b"<Error><Code>NoSuchKey</Code></Error>"
    with open(path, "rb") as file:
        data = file.read()
    more = 'etag: "one"\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
    first, _, last = headers.get("range", "").removeprefix("bytes=").partition("-")
    if not first:
        return "200 OK", more, data
    first, last = int(first), min(int(last), len(data) - 1)
    return "206 Partial Content", f"{more}content-range: bytes {first}-{last}/{len(data)}\r\n", data[first : last + 1]


async def request(log, spec, directory, reader, writer):
    first = (await reader.readline()).decode("latin-1").strip()
    if not first:
        return False
    headers, lines = {}, []
    while line := (await reader.readline()).decode("latin-1").strip():
        lines.append(line)
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    method, target = first.split(" ")[:2]
    body = await web.body_of(reader, headers)
    log.write(spec["name"], "request", method=method, target=target, headers=lines)
    host = headers.get("host", "none").split(":")[0].lower()
    path, _, query = target.partition("?")
    if path == "/in/stall":
        return await stall(writer)
    if path == "/in/slow":
        await slow(writer)
        return False
    if path == "/in/endless":
        return await endless(writer)
    status, more, content = "200 OK", "", b""
    if path in REDIRECTS:
        status, more = "302 Found", f"location: {REDIRECTS[path]}\r\n"
    elif path.startswith("/git/"):
        status, kind, content = await web.git(directory, host, path, query, method, headers, body)
        more = f"content-type: {kind}\r\n"
    elif path.startswith("/store/"):
        status, more, content = stored(directory, method, path, headers)
    else:
        status, _, content = web.file_of(directory, host, path)
    head = f"HTTP/1.1 {status}\r\n{more}content-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + (b"" if method == "HEAD" else content))
    await writer.drain()
    return True


def handler(log, spec, directory):
    async def serve(reader, writer):
        log.write(spec["name"], "accept")
        try:
            while await request(log, spec, directory, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ValueError, ssl.SSLError):
            pass
        log.write(spec["name"], "end")
        writer.close()

    return serve
