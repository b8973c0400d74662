"""The upstream resolver of the laboratory: answers from `zone.json`, which is read again for every
question, and writes down every question.

The zone is `{name: {"A": [...], "AAAA": [...], "CNAME": name, "TXT": [...]}}`. A list of lists gives
another answer to each question: the first to the first, the last to all that follow.
"""

import asyncio
import ipaddress
import json
import os
import struct

TYPES = {1: "A", 5: "CNAME", 16: "TXT", 28: "AAAA", 65: "HTTPS", 12: "PTR", 255: "ANY"}


class Zone:
    def __init__(self, path):
        self.path, self.asked = path, {}

    def records(self, name, kind):
        """Owner, type and data of every record, CNAMEs first; None if the name does not exist."""
        with open(self.path, encoding="utf-8") as file:
            zone = json.load(file)
        found, owner = [], name
        for _ in range(8):
            entry = zone.get(owner)
            if entry is None:
                return found or None
            if "CNAME" not in entry:
                break
            found.append((owner, "CNAME", entry["CNAME"]))
            owner = entry["CNAME"]
        values = entry.get(kind, [])
        if values and isinstance(values[0], list):
            turn = self.asked.get((owner, kind), 0)
            self.asked[(owner, kind)] = turn + 1
            values = values[min(turn, len(values) - 1)]
        return found + [(owner, kind, value) for value in values]


def name_at(packet, at):
    labels = []
    while packet[at]:
        length = packet[at]
        labels.append(packet[at + 1 : at + 1 + length].decode("latin-1"))
        at += 1 + length
    return ".".join(labels), at + 1


def wire_name(name):
    parts = [bytes([len(label)]) + label.encode("latin-1") for label in name.split(".") if label]
    return b"".join(parts) + b"\0"


def data_of(kind, value):
    if kind in ("A", "AAAA"):
        return ipaddress.ip_address(value).packed
    if kind == "CNAME":
        return wire_name(value)
    text = value.encode()
    return bytes([len(text)]) + text


def answer(zone, packet, log, on, transport):
    number, flags = struct.unpack("!HH", packet[:4])
    name, at = name_at(packet, 12)
    kind_number = struct.unpack("!H", packet[at : at + 2])[0]
    kind = TYPES.get(kind_number, str(kind_number))
    log.write(on, "question", name=name, kind=kind, transport=transport)
    records = zone.records(name.lower().rstrip("."), kind)
    body = b""
    for owner, this, value in records or []:
        code = next(code for code, known in TYPES.items() if known == this)
        data = data_of(this, value)
        body += wire_name(owner) + struct.pack("!HHIH", code, 1, 0, len(data)) + data
    rcode = 3 if records is None else 0
    head = struct.pack("!HHHHHH", number, 0x8180 | (flags & 0x100) | rcode, 1, len(records or []), 0, 0)
    return head + packet[12 : at + 4] + body


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, reply):
        self.reply = reply

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.transport.sendto(self.reply(data, "udp"), peer)


async def start(log, spec, directory):
    zone = Zone(os.path.join(directory, "zone.json"))

    def reply(packet, transport):
        return answer(zone, packet, log, spec["name"], transport)

    async def stream(reader, writer):
        try:
            while True:
                length = struct.unpack("!H", await reader.readexactly(2))[0]
                data = reply(await reader.readexactly(length), "tcp")
                writer.write(struct.pack("!H", len(data)) + data)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    loop = asyncio.get_running_loop()
    at = (spec["address"], spec["port"])
    datagrams = await loop.create_datagram_endpoint(lambda: Datagrams(reply), local_addr=at)
    return datagrams, await asyncio.start_server(stream, *at)
