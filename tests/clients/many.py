"""Many connections at once, each with checked data going round and round. Arguments: address, port, directory with USER.key
files, connections for each user, user...

Reads commands from stdin, answers with a line each:
  flow      wait until data has come back on every connection that was sent after now
  new N     open N more connections and leave them to it
  joined    wait for those of `new`
  finish    end all connections, which have to have lost nothing
"""

import asyncio
import os
import sys

import asyncssh

address, port, keys, each = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
users = sys.argv[5:]
CHUNK = 8 << 10
# So many logins at a time as the server lets be (auth.max_startups).
logins = asyncio.Semaphore(8)


def connect(user):
    return asyncssh.connect(
        address, port, username=user, known_hosts=None, config=None, agent_path=None,
        client_keys=[os.path.join(keys, user + ".key")], connect_timeout=120, login_timeout=120)


class Transfer:
    def __init__(self, user):
        self.user, self.rounds, self.stop = user, 0, asyncio.Event()

    async def begin(self):
        async with logins:
            self.connection = await connect(self.user)
            self.process = await self.connection.create_process("cat", encoding=None)
            await self.round()
        self.task = asyncio.create_task(self.run())

    async def round(self):
        data = os.urandom(CHUNK)
        self.process.stdin.write(data)
        back = await self.process.stdout.readexactly(CHUNK)
        assert back == data, f"{self.user}: something else came back in round {self.rounds}"
        self.rounds += 1

    async def run(self):
        while not self.stop.is_set():
            await self.round()
            try:
                await asyncio.wait_for(self.stop.wait(), 0.25)
            except asyncio.TimeoutError:
                pass

    async def flow(self):
        before = self.rounds
        while self.rounds < before + 2:
            if self.task.done():
                self.task.result()
                raise RuntimeError("ended")
            await asyncio.sleep(0.05)

    async def finish(self):
        self.stop.set()
        await self.task
        self.process.stdin.write_eof()
        rest = await self.process.stdout.read()
        await self.process.wait_closed()
        assert (rest, self.process.exit_status) == (b"", 0), (self.user, rest, self.process.exit_status)
        self.connection.close()
        await self.connection.wait_closed()


async def newcomer(user, number):
    async with logins:
        connection = await connect(user)
    async with connection:
        done = await connection.run(f"echo {number}; hostname")
        assert (done.stdout, done.exit_status) == (f"{number}\n{user}\n", 0), done


async def main():
    transfers = [Transfer(user) for user in users for _ in range(each)]
    await asyncio.gather(*(transfer.begin() for transfer in transfers))
    new = []
    print("ready", flush=True)
    while line := (await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)).split():
        if line[0] == "flow":
            await asyncio.gather(*(transfer.flow() for transfer in transfers))
        elif line[0] == "new":
            new += [asyncio.create_task(newcomer(users[i % len(users)], i)) for i in range(int(line[1]))]
        elif line[0] == "joined":
            await asyncio.gather(*new)
            new = []
        elif line[0] == "finish":
            await asyncio.gather(*(transfer.finish() for transfer in transfers))
        print(line[0], flush=True)


asyncio.run(main())
