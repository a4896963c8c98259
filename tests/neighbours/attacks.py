# Attempts of one session on the containers of another, and on the host's network. Prints one line for each that has
# succeeded as far as can be seen here; whether a datagram has arrived is for its receivers to say: each has the name of the
# attempt in it.
#
# Usage: attacks.py inside|wire GATEWAY HOST OWN VICTIM-SESSION VICTIM-SERVICE
#
# `inside` is what programs in a session can do. `wire` is for somebody who has its network interface for himself, which no
# program in a session has: packets of every form, with every source.

import fcntl
import socket
import struct
import sys
import time

HOW, GATEWAY, HOST, OWN, SESSION, SERVICE = sys.argv[1:]
VICTIMS = [SESSION, SERVICE]
# Where the victims and the host listen, for connections and for datagrams.
PORT = 99
IP_FREEBIND = 15
ETH_P_ALL, ETH_P_IP, ETH_P_ARP = 3, 0x0800, 0x0806
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFHWADDR, IFF_PROMISC = 0x8913, 0x8914, 0x8927, 0x100


def attempt(name):
    def run(function):
        try:
            reached = function()
        except OSError:
            return
        if reached:
            print(name, flush=True)

    return run


def connect(address):
    with socket.create_connection((address, PORT), timeout=3) as stream:
        return stream.recv(100)


def datagram(name, to, source=None):
    """Sends a datagram, perhaps with an address that is not ours: binding to one is nobody's privilege."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if source:
            udp.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
            udp.bind((source, 0))
        # What is forged is dropped without a word; what is refused is answered.
        for _ in range(3):
            try:
                udp.sendto(f"attack {name}".encode(), (to, PORT))
            except OSError:
                pass
            time.sleep(0.02)


def inside():
    for victim in VICTIMS:
        attempt(f"connect {victim}")(lambda: connect(victim))
        datagram(f"datagram {victim}", victim)
    for name in ["front", "shop"]:
        attempt(f"name {name}")(lambda: socket.gethostbyname(name))
    datagram("forged by a session", SERVICE, source=SESSION)
    datagram("forged by the gateway", SERVICE, source=GATEWAY)
    for address in ["255.255.255.255", ".".join(SERVICE.split(".")[:3]) + ".255", "224.0.0.1"]:
        datagram(f"broadcast {address}", address)
    for address in [GATEWAY, HOST, "127.0.0.1"]:
        attempt(f"connect host {address}")(lambda: connect(address))
    for address in [GATEWAY, HOST]:
        datagram(f"host {address}", address)
        datagram(f"host {address} forged", address, source="127.0.0.1")
    attempt("packet socket")(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
    for protocol in [socket.IPPROTO_ICMP, socket.IPPROTO_UDP, socket.IPPROTO_RAW]:
        attempt(f"raw socket {protocol}")(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
    attempt("promiscuous mode")(promiscuous_mode)


def promiscuous_mode():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"eth0", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"eth0", flags | IFF_PROMISC))
        return True


def checksum(data):
    words = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def udp_packet(source, to, payload):
    udp = struct.pack("!4H", 4444, PORT, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0)
    header += socket.inet_aton(source) + socket.inet_aton(to)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + udp


def neighbours(interface):
    """The hardware addresses of this end and of the other one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        own = fcntl.ioctl(any_socket, SIOCGIFHWADDR, struct.pack("256s", interface))[18:24]
    for line in open("/proc/net/arp").readlines()[1:]:
        fields = line.split()
        if fields[0] == GATEWAY:
            return own, bytes.fromhex(fields[3].replace(":", ""))
    raise SystemExit("the gateway is no neighbour")


def wire():
    own, gateway = neighbours(b"eth0")
    everybody = b"\xff" * 6
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    listener.bind(("eth0", 0))
    index = socket.if_nametoindex("eth0")
    membership = struct.pack("IHH8s", index, PACKET_MR_PROMISC, 0, b"")
    listener.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)

    def frame(to, kind, content):
        listener.send(to + own + struct.pack("!H", kind) + content)

    # Whoever believes it sends us what is for somebody else.
    for address in [*VICTIMS, GATEWAY]:
        for target in [address, GATEWAY, *VICTIMS]:
            claim = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, 2) + own + socket.inet_aton(address)
            frame(everybody, ETH_P_ARP, claim + gateway + socket.inet_aton(target))
    for name, source, to in [
        ("forged by a session", SESSION, SERVICE),
        ("forged by a service", SERVICE, SESSION),
        ("forged by the gateway", GATEWAY, SERVICE),
        ("own address", OWN, SERVICE),
        ("to everybody", OWN, "255.255.255.255"),
        ("host", OWN, GATEWAY),
        ("host forged by loopback", "127.0.0.1", GATEWAY),
        ("host loopback", OWN, "127.0.0.1"),
        ("host loopback forged", SESSION, "127.0.0.1"),
        ("host address", OWN, HOST),
    ]:
        for to_mac in [gateway, everybody]:
            frame(to_mac, ETH_P_IP, udp_packet(source, to, f"attack wire {name}".encode()))
    # The victims talk all the time. What we are sure to hear is ourselves.
    heard, ends = set(), time.monotonic() + 2
    listener.settimeout(0.1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        while time.monotonic() < ends:
            udp.sendto(b"own words", (HOST, 9))
            try:
                data = listener.recv(65536)
            except TimeoutError:
                continue
            heard.update(word for word in ["own words", "secret"] if word.encode() in data)
    print("\n".join(f"heard {word}" for word in sorted(heard)))


{"inside": inside, "wire": wire}[HOW]()
