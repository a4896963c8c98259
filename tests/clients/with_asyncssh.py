"""The basics over asyncssh. Arguments: address, port, user, private key."""

import asyncio
import os
import sys
import tempfile

import asyncssh

address, port, user, key_file = sys.argv[1:]


async def echo(reader, writer):
    writer.write(await reader.read())
    writer.close()


async def main():
    # Not the files of whoever runs this.
    options = {"known_hosts": None, "config": None, "agent_path": None, "client_keys": [key_file]}
    async with asyncssh.connect(address, int(port), username=user, **options) as connection:
        done = await connection.run("cat; echo error >&2; exit 42", input="from here\n")
        assert (done.stdout, done.stderr, done.exit_status) == ("from here\n", "error\n", 42), done

        killed = await connection.run("kill -TERM $$")
        assert killed.exit_signal[0] == "TERM", killed

        terminal = await connection.run("stty size", term_type="xterm", term_size=(100, 30))
        assert terminal.stdout.strip() == "30 100", terminal

        with tempfile.TemporaryDirectory() as directory:
            mine, back = os.path.join(directory, "mine"), os.path.join(directory, "back")
            data = os.urandom(3 << 20)
            with open(mine, "wb") as file:
                file.write(data)
            async with connection.start_sftp_client() as sftp:
                await sftp.put(mine, "file")
                await sftp.get("file", back)
                assert (await sftp.stat("file")).size == len(data)
            with open(back, "rb") as file:
                assert file.read() == data

        async with connection.create_process("nc -l -p 7002 -e cat") as server:
            while True:
                try:
                    reader, writer = await connection.open_connection("localhost", 7002)
                    break
                except asyncssh.ChannelOpenError:
                    assert server.exit_status is None, "the listener ended"
            writer.write(b"through the tunnel")
            writer.write_eof()
            assert await reader.read() == b"through the tunnel"

        # And the other way round: something in the container reaches a server of ours.
        ours = await asyncio.start_server(echo, "127.0.0.1", 0)
        listener = await connection.forward_remote_port("", 0, "127.0.0.1", ours.sockets[0].getsockname()[1])
        answer = await connection.run(f"echo out and back | nc 127.0.0.1 {listener.get_port()}")
        assert answer.stdout == "out and back\n", answer
        ours.close()


asyncio.run(main())
