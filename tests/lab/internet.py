"""The internet of the laboratory: every server of a test, in one process, in a network namespace whose
loopback has all public addresses (`tests/src/lab.rs` makes it).

Usage: internet.py DIRECTORY NAME. Reads `NAME.json` there, a list of servers, writes one JSON line for
everything it hears to `heard.jsonl`, says `ready` on standard output and ends when standard input does.
The services of the laboratory's host are started by the same program.
"""

import asyncio
import json
import os
import ssl
import struct
import sys
import time

import dns
import inputs
import web

SOL_LINGER = struct.pack("ii", 1, 0)
HEARD_BYTES_MAX = 1 << 16


class Log:
    """What was heard, in order."""

    def __init__(self, path):
        self.file = open(path, "a", buffering=1, encoding="utf-8")
        self.connections = 0

    def write(self, on, what, **more):
        self.file.write(json.dumps({"at": time.time(), "on": on, "what": what, **more}) + "\n")

    def connection(self):
        self.connections += 1
        return self.connections


class Connection:
    """One accepted connection and what it said."""

    def __init__(self, log, spec, reader, writer):
        self.log, self.spec, self.reader, self.writer = log, spec, reader, writer
        self.on, self.number = spec["name"], log.connection()
        self.heard, self.count = b"", 0
        log.write(self.on, "accept", connection=self.number, peer=writer.get_extra_info("peername")[0])

    async def read(self):
        data = await self.reader.read(1 << 16)
        self.count += len(data)
        if data and len(self.heard) < HEARD_BYTES_MAX:
            self.heard += data
            if not self.spec.get("quiet"):
                self.log.write(self.on, "bytes", connection=self.number, text=data.decode("latin-1"))
        return data

    def end(self, how):
        self.log.write(self.on, "end", connection=self.number, how=how, count=self.count)

    def reset(self):
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, SOL_LINGER)
        self.writer.transport.abort()


async def record(c):
    """Writes down what comes; says `answer`, if it has one, after the first bytes."""
    answered = False
    while await c.read():
        if "answer" in c.spec and not answered:
            answered = True
            c.writer.write(c.spec["answer"].encode("latin-1"))


async def echo(c):
    while data := await c.read():
        c.writer.write(data)
        await c.writer.drain()


async def first(c):
    """Speaks before it has heard anything, as ssh and mail servers do."""
    c.writer.write(c.spec["banner"].encode())
    await echo(c)


async def hole(c):
    """Accepts and never reads, until the other side is gone."""
    c.writer.transport.pause_reading()
    await asyncio.sleep(c.spec.get("seconds", 60))


async def reset(c):
    """Reads once, if it is to, and resets."""
    if c.spec.get("after_bytes"):
        await c.read()
        c.writer.write(b"partial")
        await c.writer.drain()
        await asyncio.sleep(0.05)
    c.reset()


async def slow(c):
    """One byte every 50 ms, as many as it is told."""
    await c.read()
    for _ in range(c.spec["bytes"]):
        c.writer.write(b".")
        await c.writer.drain()
        await asyncio.sleep(0.05)


async def half(c):
    """Answers only after the other side has ended its half."""
    while await c.read():
        pass
    c.writer.write(b"after the end: %d bytes" % c.count)


async def flood(c):
    """Sends as many bytes as it is asked for in decimal."""
    wanted = int((await c.read()).split()[0])
    while wanted > 0:
        c.writer.write(b"x" * min(wanted, 1 << 16))
        await c.writer.drain()
        wanted -= 1 << 16


async def psql(c):
    """As much of a PostgreSQL server as one query needs; `N` to the wish for TLS."""

    def message(kind, body):
        return kind + struct.pack("!i", len(body) + 4) + body

    async def exactly(count):
        data = await c.reader.readexactly(count)
        c.count += count
        return data

    while True:
        body = await exactly(struct.unpack("!i", await exactly(4))[0] - 4)
        if struct.unpack("!i", body[:4])[0] == 196608:
            break
        c.writer.write(b"N")
    c.log.write(c.on, "startup", connection=c.number, text=body[4:].decode("latin-1"))
    ready = message(b"Z", b"I")
    c.writer.write(message(b"R", struct.pack("!i", 0)) + message(b"S", b"server_version\x0015.0\0") + ready)
    while (kind := await exactly(1)) == b"Q":
        query = await exactly(struct.unpack("!i", await exactly(4))[0] - 4)
        c.log.write(c.on, "query", connection=c.number, text=query.rstrip(b"\0").decode())
        column = b"answer\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)
        row = struct.pack("!hi", 1, 8) + b"from lab"
        c.writer.write(message(b"T", struct.pack("!h", 1) + column) + message(b"D", row))
        c.writer.write(message(b"C", b"SELECT 1\0") + ready)


async def connect(c):
    """An HTTP proxy for CONNECT: looks names up in `names`, and refuses the targets of `refuse`."""
    head = await c.reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n")[0].decode("latin-1").split(" ")
    c.log.write(c.on, "asked", connection=c.number, method=method, target=target, head=head.decode("latin-1"))
    if method != "CONNECT" or target in c.spec.get("refuse", ()):
        c.writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        return
    host, _, port = target.rpartition(":")
    host = c.spec.get("names", {}).get(host, host.strip("[]"))
    reader, writer = await asyncio.open_connection(host, int(port))
    c.writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def copy(source, target):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        target.write_eof()

    try:
        await asyncio.gather(copy(c.reader, writer), copy(reader, c.writer))
    finally:
        writer.close()


class Datagrams(asyncio.DatagramProtocol):
    """Gives every datagram back, as something with QUIC would in its way."""

    def __init__(self, log, on):
        self.log, self.on = log, on

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.log.write(self.on, "datagram", count=len(data))
        self.transport.sendto(data, peer)


KINDS = {
    f.__name__: f for f in (record, echo, first, hole, reset, slow, half, flood, psql, connect)
}


def handler(log, spec):
    act = KINDS[spec["kind"]]

    async def serve(reader, writer):
        connection = Connection(log, spec, reader, writer)
        how = "end"
        try:
            await act(connection)
        except ConnectionError:
            how = "reset"
        except asyncio.IncompleteReadError:
            pass
        connection.end(how)
        try:
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, OSError, ssl.SSLError):
            pass

    return serve


async def start(log, spec, directory):
    """Starts one server of `servers.json`; `tls` names who it is when it must have a certificate."""
    kind, address, port = spec["kind"], spec["address"], spec["port"]
    context = web.context(log, spec, directory) if spec.get("tls") else None
    if kind == "dns":
        return await dns.start(log, spec, directory)
    if kind == "datagrams":
        made = asyncio.get_running_loop().create_datagram_endpoint
        return await made(lambda: Datagrams(log, spec["name"]), local_addr=(address, port))
    if kind == "http":
        serve = web.handler(log, spec, directory)
    elif kind == "inputs":
        serve = inputs.handler(log, spec, directory)
    elif kind == "websocket":
        return await web.websocket(log, spec, context)
    elif kind == "grpc":
        return web.grpc(log, spec, directory)
    elif kind == "ssh":
        return await web.ssh(log, spec, directory)
    else:
        serve = handler(log, spec)
    return await asyncio.start_server(serve, address, port, ssl=context, backlog=4096)


async def main(directory, name):
    log = Log(os.path.join(directory, "heard.jsonl"))
    with open(os.path.join(directory, name + ".json"), encoding="utf-8") as file:
        specs = json.load(file)
    held = [await start(log, spec, directory) for spec in specs]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for one in held:
        if hasattr(one, "terminate"):
            one.terminate()
    # Connections may be open: nobody waits for them.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
