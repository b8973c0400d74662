"""Web servers of the laboratory, and the two that come with a library or a program of their own: gRPC
and ssh.

`http` serves files of `www/HOST/…`, git repositories below `www/HOST/git/…`, and writes down every
request with its Host lines as they came. It honours CONNECT by saying so, which no test may reach.
"""

import asyncio
import mimetypes
import os
import ssl
import urllib.parse

BODY_BYTES_MAX = 8 << 20


def context(log, spec, directory):
    """A TLS server's side, which writes down the name that each client asked for."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(os.path.join(directory, "server.pem"), os.path.join(directory, "server.key"))
    if "alpn" in spec:
        made.set_alpn_protocols(spec["alpn"])

    def asked(_socket, name, _context):
        log.write(spec["name"], "sni", name=name)

    made.sni_callback = asked
    return made


async def body_of(reader, headers):
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while (size := int((await reader.readline()).split(b";")[0], 16)) > 0:
            body += await reader.readexactly(size)
            await reader.readline()
        while (await reader.readline()).strip():
            pass
        return body
    return await reader.readexactly(min(int(headers.get("content-length", "0")), BODY_BYTES_MAX))


async def git(directory, host, path, query, method, headers, body):
    """`git http-backend` as a CGI program."""
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "GIT_PROJECT_ROOT": os.path.join(directory, "www", host, "git"),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "PATH_INFO": path.removeprefix("/git"),
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
        "REMOTE_USER": "lab",
        "REMOTE_ADDR": "192.0.2.1",
        "CONTENT_TYPE": headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
        "HTTP_GIT_PROTOCOL": headers.get("git-protocol", ""),
    }
    pipe = asyncio.subprocess.PIPE
    backend = await asyncio.create_subprocess_exec(
        "git", "http-backend", stdin=pipe, stdout=pipe, env=environment
    )
    out, _ = await backend.communicate(body)
    head, _, content = out.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    status = next((line[8:] for line in lines if line.startswith("Status: ")), "200 OK")
    kind = next((line[14:] for line in lines if line.startswith("Content-Type: ")), "text/plain")
    return status, kind, content


def file_of(directory, host, path):
    path = urllib.parse.unquote(path)
    full = os.path.join(directory, "www", host, path.lstrip("/"))
    if os.path.isdir(full):
        full = os.path.join(full, "index.html")
    if ".." in path or not os.path.isfile(full):
        return "404 Not Found", "text/plain", b"not here\n"
    with open(full, "rb") as file:
        return "200 OK", mimetypes.guess_type(full)[0] or "application/json", file.read()


async def request(log, spec, directory, number, reader, writer):
    """One request and its answer; false when there is none."""
    first = (await reader.readline()).decode("latin-1").strip()
    if not first:
        return False
    headers, hosts, lines = {}, [], []
    while line := (await reader.readline()).decode("latin-1").strip():
        lines.append(line)
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
        if name.lower() == "host":
            hosts.append(value.strip())
    method, _, target = first.partition(" ")
    target = target.rsplit(" ", 1)[0]
    body = await body_of(reader, headers)
    log.write(spec["name"], "request", connection=number, method=method, target=target, hosts=hosts,
              headers=lines, body=body[:4096].decode("latin-1"))
    if method == "CONNECT":
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\ntunnelled")
        return True
    host = (hosts or ["none"])[0].split(":")[0].lower()
    path, _, query = urllib.parse.urlsplit(target)[2], 0, urllib.parse.urlsplit(target)[3]
    if path.startswith("/git/"):
        status, kind, content = await git(directory, host, path, query, method, headers, body)
    elif path == "/ok":
        status, kind, content = "200 OK", "text/plain", f"ok from {spec['name']}\n".encode()
    elif path == "/big":
        status, kind, content = "200 OK", "text/plain", b"x" * int(query)
    else:
        status, kind, content = file_of(directory, host, path)
    close = "close" in headers.get("connection", "").lower()
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n"
    writer.write((head + ("connection: close\r\n" if close else "") + "\r\n").encode())
    writer.write(b"" if method == "HEAD" else content)
    await writer.drain()
    return not close


def handler(log, spec, directory):
    async def serve(reader, writer):
        number = log.connection()
        log.write(spec["name"], "accept", connection=number, peer=writer.get_extra_info("peername")[0])
        try:
            while await request(log, spec, directory, number, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ValueError, ssl.SSLError):
            pass
        log.write(spec["name"], "end", connection=number)
        writer.close()

    return serve


async def websocket(log, spec, tls):
    import websockets

    async def echo(socket, *_):
        log.write(spec["name"], "accept")
        async for message in socket:
            log.write(spec["name"], "message", text=str(message)[:200])
            await socket.send(message)

    return await websockets.serve(echo, spec["address"], spec["port"], ssl=tls)


def grpc(log, spec, directory):
    from concurrent.futures import ThreadPoolExecutor

    import grpc as library

    def one(request, _context):
        log.write(spec["name"], "call", text=request.decode())
        return b"echo " + request

    def many(request, _context):
        for turn in range(int(request)):
            yield b"part %d" % turn

    methods = {
        "One": library.unary_unary_rpc_method_handler(one),
        "Many": library.unary_stream_rpc_method_handler(many),
    }
    server = library.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((library.method_handlers_generic_handler("lab.Lab", methods),))

    def read(name):
        with open(os.path.join(directory, name), "rb") as file:
            return file.read()

    credentials = library.ssl_server_credentials([(read("server.key"), read("server.pem"))])
    assert server.add_secure_port(f"{spec['address']}:{spec['port']}", credentials)
    server.start()
    return server


async def ssh(_log, spec, directory):
    """Dropbear, which takes the key of `ssh/` for the user whose home `/etc/passwd` names."""
    at = f"{spec['address']}:{spec['port']}"
    key = os.path.join(directory, "ssh", "host.key")
    return await asyncio.create_subprocess_exec(
        "dropbear", "-F", "-E", "-s", "-j", "-k", "-r", key, "-p", at, "-P", "",
        stderr=open(os.path.join(directory, "ssh", "log"), "wb"), stdin=asyncio.subprocess.DEVNULL,
    )
