// The basics over Node's ssh2. Arguments: where ssh2 is, address, port, user, private key.
'use strict';

const assert = require('assert');
const crypto = require('crypto');
const fs = require('fs');
const os = require('os');
const path = require('path');

const [, , modules, host, port, username, keyFile] = process.argv;
const { Client } = require(path.join(modules, 'ssh2'));

const call = (object, method, ...args) =>
  new Promise((resolve, reject) =>
    object[method](...args, (error, result) => (error ? reject(error) : resolve(result))));

const collect = async (stream) => {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts).toString();
};

async function main() {
  const client = new Client();
  const ready = new Promise((resolve, reject) => client.on('ready', resolve).on('error', reject));
  client.connect({ host, port: Number(port), username, privateKey: fs.readFileSync(keyFile) });
  await ready;

  const channel = await call(client, 'exec', 'cat; echo error >&2; exit 42');
  const status = new Promise((resolve) => channel.on('exit', resolve));
  const errors = collect(channel.stderr);
  channel.end('from here\n');
  assert.strictEqual(await collect(channel), 'from here\n');
  assert.strictEqual(await errors, 'error\n');
  assert.strictEqual(await status, 42);

  const shell = await call(client, 'shell', { rows: 30, cols: 100, term: 'xterm' });
  shell.end('stty size; exit\n');
  assert.match(await collect(shell), /30 100/);

  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'ssh2-'));
  try {
    const data = crypto.randomBytes(3 << 20);
    const [mine, back] = ['mine', 'back'].map((name) => path.join(directory, name));
    fs.writeFileSync(mine, data);
    const sftp = await call(client, 'sftp');
    await call(sftp, 'fastPut', mine, 'file');
    assert.strictEqual((await call(sftp, 'stat', 'file')).size, data.length);
    await call(sftp, 'fastGet', 'file', back);
    assert.ok(fs.readFileSync(back).equals(data));
    sftp.end();
  } finally {
    fs.rmSync(directory, { recursive: true });
  }

  const server = await call(client, 'exec', 'nc -l -p 7003 -e cat');
  let ended = false;
  server.on('exit', () => { ended = true; });
  let tunnel;
  while (!tunnel) {
    assert.ok(!ended, 'the listener ended');
    tunnel = await call(client, 'forwardOut', '127.0.0.1', 1, 'localhost', 7003).catch(() => undefined);
  }
  tunnel.end('through the tunnel');
  assert.strictEqual(await collect(tunnel), 'through the tunnel');
  client.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
