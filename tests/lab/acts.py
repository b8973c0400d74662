"""Acts on the network, made by crafted bytes: in a jail, and from a plain process as their control.

The program is followed by `run(ACTS)`, where ACTS is a list of objects, each with `act` and its
arguments. Prints one JSON line for each act. Needs nothing but Python, and knows nothing of who refuses
what.
"""

import errno
import json
import socket
import ssl
import struct
import threading
import time

LINGER_ZERO = struct.pack("ii", 1, 0)


def name_of(error):
    if isinstance(error, TimeoutError):
        return "ETIMEDOUT"
    if isinstance(error, socket.gaierror):
        return {socket.EAI_NONAME: "EAI_NONAME", socket.EAI_AGAIN: "EAI_AGAIN",
                socket.EAI_FAIL: "EAI_FAIL"}.get(error.errno, f"EAI {error.errno}")
    return errno.errorcode.get(error.errno, str(error))


def dial(host, port, timeout=5.0, bind=None):
    """Connects by whatever the C library makes of `host`, as most programs do."""
    last = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout)
        try:
            if bind:
                connection.bind(tuple(bind))
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            last = error
    raise last


def hear(connection, limit, timeout, until=()):
    """What comes, and how it ended: `end`, `reset`, `open` after the timeout, `enough`."""
    heard, deadline = b"", time.monotonic() + timeout
    while len(heard) < limit and not any(word in heard for word in until):
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = connection.recv(min(1 << 16, limit - len(heard)))
        except TimeoutError:
            return heard, "open"
        except OSError:
            return heard, "reset"
        if not data:
            return heard, "end"
        heard += data
    return heard, "enough"


def send_pieces(connection, pieces, pause):
    """Whether all of it could be sent."""
    try:
        for piece in pieces:
            connection.sendall(piece)
            if pause:
                time.sleep(pause)
    except OSError as error:
        return name_of(error)
    return None


def talk(host, port, send=(), pause=0, hold=2.0, limit=1 << 20, until=(), finish=False, bind=None,
         linger=None, timeout=5.0, times=1):
    """Connects, sends every piece with a pause after it, and says what came back and how it ended.

    Hears until one of the words of `until` came, the other side ended, or `hold` seconds are over.
    """
    pieces = [piece.encode("latin-1") * times for piece in ([send] if isinstance(send, str) else send)]
    try:
        connection = dial(host, port, timeout, bind)
    except ConnectionResetError:
        # Connected and reset, before this process looked: the error of the socket tells of both.
        return {"text": "", "count": 0, "how": "reset", "send": None}
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        refused = send_pieces(connection, pieces, pause)
        if finish and not refused:
            connection.shutdown(socket.SHUT_WR)
        words = [word.encode("latin-1") for word in ([until] if isinstance(until, str) else until)]
        heard, how = hear(connection, limit, hold, words)
        if linger:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    return {"text": heard[:4096].decode("latin-1"), "count": len(heard), "how": how, "send": refused}


def connect(host, port, timeout=5.0, bind=None):
    """Only connects; and how soon the other side is heard of, if it resets at once."""
    connection = dial(host, port, timeout, bind)
    with connection:
        return {"text": ":".join(map(str, connection.getpeername()[:2]))}


def tls(host, port, name=None, send=None, hold=3.0, alpn=None):
    """A TLS handshake by OpenSSL, with the certificate checked, then one exchange."""
    context = ssl.create_default_context()
    if name is None:
        context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    with dial(host, port) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=name) as secure:
                if send:
                    secure.sendall(send.encode("latin-1"))
                heard, how = hear(secure, 1 << 16, hold) if send else (b"", "enough")
                return {"text": heard.decode("latin-1"), "how": how, "alpn": secure.selected_alpn_protocol()}
        except ssl.SSLCertVerificationError as error:
            return {"error": "certificate", "text": str(error)}
        except (ssl.SSLError, ConnectionError) as error:
            return {"error": "handshake", "text": str(error)}


def vector(width, data):
    return len(data).to_bytes(width, "big") + data


def hello_message(names, pad):
    """A ClientHello of TLS 1.2 and 1.3 with one server_name extension for each list of names."""
    def extension(kind, data):
        return struct.pack("!H", kind) + vector(2, data)

    extensions = b""
    for group in names:
        entries = b"".join(b"\0" + vector(2, name.encode("latin-1")) for name in group)
        extensions += extension(0, vector(2, entries))
    extensions += extension(10, vector(2, b"\0\x1d\0\x17")) + extension(11, b"\1\0")
    extensions += extension(13, vector(2, bytes.fromhex("040308040401050308050501")))
    extensions += extension(43, vector(1, b"\3\4\3\3"))
    extensions += extension(51, vector(2, b"\0\x1d" + vector(2, b"\x42" * 32)))
    if pad:
        extensions += extension(21, b"\0" * pad)
    body = b"\3\3" + b"\x24" * 32 + vector(1, b"\x11" * 32)
    body += vector(2, bytes.fromhex("13011302c02bc02f")) + vector(1, b"\0") + vector(2, extensions)
    return b"\1" + vector(3, body)


def records(message, size):
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + vector(2, part) for part in parts)


def hello(host, port, names=(), pad=0, record=16384, piece=None, pause=0.0, then=None, hold=1.0,
          limit=5):
    """Sends a crafted ClientHello: `names` is a list of server_name extensions, each a list of names.

    `record` is how much of it goes into one TLS record, `piece` how much into one segment; `then` is
    the `names` of a second ClientHello right after it.
    """
    data = records(hello_message(names, pad), record)
    if then is not None:
        data += records(hello_message(then, 0), record)
    piece = piece or len(data)
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    with dial(host, port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        refused = send_pieces(connection, pieces, pause)
        heard, how = hear(connection, limit, hold)
    return {"sent": len(data), "count": len(heard), "how": how, "send": refused}


def udp(host, port, send="probe", hold=1.0, bind=None):
    """One datagram on a connected socket, and the answer or the error that comes back."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as socket_:
        socket_.settimeout(hold)
        if bind:
            socket_.bind(tuple(bind))
        socket_.connect((host, port))
        socket_.send(send.encode("latin-1"))
        return {"text": socket_.recv(65535).decode("latin-1")}


TYPES = {"A": 1, "NS": 2, "CNAME": 5, "NULL": 10, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28,
         "SRV": 33, "SVCB": 64, "HTTPS": 65, "AXFR": 252, "ANY": 255}
CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def question(name, kind):
    labels = b"".join(vector(1, label.encode("latin-1")) for label in name.split(".") if label)
    head = struct.pack("!HHHHHH", 0x4242, 0x0100, 1, 0, 0, 1)
    edns = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    return head + labels + b"\0" + struct.pack("!HH", TYPES[kind], 1) + edns


def skip_name(packet, at):
    while packet[at]:
        if packet[at] >= 0xC0:
            return at + 2
        at += 1 + packet[at]
    return at + 1


def reading(packet):
    """Code, addresses and extended error of an answer."""
    _, flags, asked, answers, authorities, more = struct.unpack("!HHHHHH", packet[:12])
    at, addresses, extended = 12, [], None
    for _ in range(asked):
        at = skip_name(packet, at) + 4
    for _ in range(answers + authorities + more):
        at = skip_name(packet, at)
        kind, _, ttl, length = struct.unpack("!HHIH", packet[at : at + 10])
        data = packet[at + 10 : at + 10 + length]
        at += 10 + length
        if kind in (1, 28):
            family = socket.AF_INET if kind == 1 else socket.AF_INET6
            addresses.append([socket.inet_ntop(family, data), ttl])
        while kind == 41 and len(data) >= 4:
            code, size = struct.unpack("!HH", data[:4])
            if code == 15:
                extended = [struct.unpack("!H", data[4:6])[0], data[6 : 4 + size].decode()]
            data = data[4 + size :]
    return {"code": CODES.get(flags & 15, flags & 15), "addresses": addresses, "extended": extended}


def resolver(name, kind="A", server="198.18.0.1", transport="udp", hold=2.0):
    """Asks a resolver directly."""
    packet = question(name, kind)
    if transport == "udp":
        answer = udp(server, 53, packet.decode("latin-1"), hold)["text"].encode("latin-1")
    else:
        with dial(server, 53) as connection:
            connection.sendall(vector(2, packet))
            answer, _ = hear(connection, 65537, hold, [packet[:2]])
            answer = answer[2:]
    return reading(answer) if len(answer) >= 12 else {"error": "no answer"}


def lookup(name):
    """What the C library makes of a name."""
    found = socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)
    return {"text": sorted({address[0] for *_, address in found})}


def lookups(names):
    """How many of these names have addresses."""
    found = 0
    for name in names:
        try:
            socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)
            found += 1
        except OSError:
            pass
    return {"count": found}


def raw_datagram(host, port, send="raw"):
    """A UDP datagram whose header is made by hand, past everything that looks at sockets' ports."""
    data = send.encode("latin-1")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        raw.sendto(struct.pack("!HHHH", 40_000, port, 8 + len(data), 0) + data, (host, 0))
    return {}


def open_socket(family, type, protocol=0):
    socket.socket(family, type, protocol).close()
    return {}


# What no protocol that names hosts begins with: nobody waits for more of it.
WORD = "\0ping"


def hold_open(host, port, count, seconds=0.0, send=WORD):
    """As many connections at once, all echoing; how many are still heard from at the end."""
    made, failed = [], 0
    for _ in range(count):
        try:
            made.append(dial(host, port))
        except OSError:
            failed += 1
    time.sleep(seconds)
    alive = 0
    for connection in made:
        try:
            connection.sendall(send.encode())
        except OSError:
            pass
    for connection in made:
        heard, _ = hear(connection, len(send), 5.0)
        alive += heard == send.encode()
        connection.close()
    return {"made": len(made), "failed": failed, "alive": alive}


def many(host, port, count, threads=8, send=WORD):
    """`count` connections one after the other in each of some threads; how many echoed."""
    good, lock = [0, {}], threading.Lock()
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

    def work(share):
        for _ in range(share):
            why = None
            for _ in range(200):
                try:
                    with socket.socket(address[0], socket.SOCK_STREAM) as connection:
                        connection.settimeout(10)
                        connection.connect(address[4])
                        connection.sendall(send.encode())
                        heard = connection.recv(64)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                        why = None if heard == send.encode() else "short"
                except OSError as error:
                    why = name_of(error)
                if why is None:
                    break
                # Over a budget: wait, as a program that is told to retry does.
                time.sleep(0.05)
                with lock:
                    good[1][why] = good[1].get(why, 0) + 1
            with lock:
                good[0] += why is None

    workers = [threading.Thread(target=work, args=(count // threads,)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"count": good[0], "retried": good[1]}


def impostor(bind, host, port, reuse=False, kind="tcp"):
    """Listens on a more specific address than the broker does, then goes there by itself."""
    family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
    type_ = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, type_) as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(tuple(bind))
        if kind == "tcp":
            mine.listen(8)
        mine.settimeout(0.5)
        theirs = talk(host, port, hold=0.5) if kind == "tcp" else None
        try:
            fooled = mine.accept()[1][0] if kind == "tcp" else None
        except TimeoutError:
            fooled = None
    return {"fooled": fooled, "theirs": theirs}


def sleep(seconds):
    time.sleep(seconds)
    return {}


def say(text):
    print(text, flush=True)
    return {}


ACTS = {f.__name__: f for f in (talk, connect, tls, hello, udp, raw_datagram, resolver, lookup, lookups,
                                open_socket, hold_open, many, impostor, sleep, say)}


def attempt(act):
    began = time.monotonic()
    try:
        got = ACTS[act.pop("act")](**act)
    except OSError as error:
        got = {"error": name_of(error)}
    got["ms"] = round((time.monotonic() - began) * 1000)
    return got


def run(acts):
    for act in acts:
        print(json.dumps(attempt(act)), flush=True)
