"""The basics over paramiko. Arguments: address, port, user, private key, RSA key, another key that is not the user's."""

import os
import socket
import sys

import paramiko

address, port, user, key_file, rsa_file, wrong_file = sys.argv[1:]


def connect(key_file, **options):
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect(address, int(port), user, key_filename=key_file, allow_agent=False, look_for_keys=False, **options)
    return client


client = connect(key_file)

stdin, stdout, stderr = client.exec_command("cat; echo error >&2; exit 42")
stdin.write("from here\n")
stdin.channel.shutdown_write()
assert stdout.read() == b"from here\n"
assert stderr.read() == b"error\n"
assert stdout.channel.recv_exit_status() == 42

channel = client.invoke_shell(term="xterm", width=100, height=30)
channel.sendall(b"stty size; exit 3\n")
shown = b""
while data := channel.recv(4096):
    shown += data
assert b"30 100" in shown, shown
assert channel.recv_exit_status() == 3

data = os.urandom(3 << 20)
sftp = client.open_sftp()
with sftp.open("file", "wb") as file:
    file.write(data)
assert sftp.stat("file").st_size == len(data)
with sftp.open("file") as file:
    file.prefetch()
    assert file.read() == data
sftp.rename("file", "other")
assert "other" in sftp.listdir()
sftp.remove("other")

server = client.get_transport().open_session()
server.exec_command("nc -l -p 7001 -e cat")
while True:
    try:
        forward = client.get_transport().open_channel("direct-tcpip", ("127.0.0.1", 7001), ("127.0.0.1", 1))
        break
    except paramiko.ChannelException:
        assert not server.exit_status_ready(), "the listener ended"
forward.sendall(b"through the tunnel")
forward.shutdown_write()
answer = b""
while data := forward.recv(4096):
    answer += data
assert answer == b"through the tunnel", answer
client.close()

# Of several keys it tries one after the other, here a wrong one first. The transport is one that asks for the
# authentication service once (docs/russh.md).
several = {"transport_factory": paramiko.ServiceRequestingTransport}
connect([wrong_file, key_file], **several).close()

# RSA keys sign with SHA-2 only.
connect(rsa_file).close()
try:
    connect(rsa_file, disabled_algorithms={"pubkeys": ["rsa-sha2-512", "rsa-sha2-256"]})
except paramiko.SSHException as error:
    print("with SHA-1:", error)
else:
    sys.exit("a signature with SHA-1 was accepted")
