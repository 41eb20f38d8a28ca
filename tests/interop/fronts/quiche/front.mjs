// A QUIC server on Cloudflare's quiche in front of an MQTT broker: relays the first bidirectional stream of each
// connection to a TCP connection. Options, commands and events are those of every foreign front, see
// ../../foreign_front.py. quiche does no I/O of its own; this is its example server, reduced to what MQTT needs.

import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';

const quiche = createRequire(new URL('../../../../.interop/quiche/', import.meta.url))('@matrixai/quic-linux-x64');

const STREAM = 0;
const CID_SIZE = 20;
const WINDOW = 1024 * 1024;
const READ_SIZE = 64 * 1024;
const IDLE_TIMEOUT = 3_600_000; // milliseconds; the client's counts

const { values: options } = parseArgs({
  options: {
    listen: { type: 'string' },
    broker: { type: 'string' },
    cert: { type: 'string' },
    key: { type: 'string' },
    'client-ca': { type: 'string' },
    alpn: { type: 'string', default: 'mqtt' },
    retry: { type: 'boolean', default: false },
    'early-data': { type: 'boolean', default: false },
  },
});

const address = (text) => {
  const [host, port] = text.split(':');
  return { host, port: Number(port) };
};
const local = address(options.listen);
const broker = address(options.broker);
const tell = (event, fields = {}) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);

const clientCa = options['client-ca'] === undefined ? undefined : readFileSync(options['client-ca']);
const config = quiche.Config.withBoringSslCtx(clientCa !== undefined, false, clientCa, [readFileSync(options.key)], [
  readFileSync(options.cert),
]);
config.setApplicationProtos([options.alpn]);
config.setMaxIdleTimeout(IDLE_TIMEOUT);
config.setInitialMaxData(4 * WINDOW);
config.setInitialMaxStreamDataBidiRemote(WINDOW);
config.setInitialMaxStreamsBidi(10);
config.setActiveConnectionIdLimit(8);
if (options['early-data']) config.enableEarlyData();

const socket = createSocket('udp4');
const sessions = new Map(); // by each of our connection identifiers, in hex
const out = Buffer.alloc(quiche.MAX_DATAGRAM_SIZE);

class Session {
  #connection;
  #broker = null;
  #brokerTakesMore = true;
  #pending = []; // from the broker, not yet taken by quiche
  #ended = false; // the broker's side, or by a command
  #timer;
  #told = false;
  #early = false; // bytes of the stream came with the first flight

  constructor(cid, clientsCid, originalCid, peer) {
    this.#connection = quiche.Connection.accept(cid, originalCid, local, peer, config);
    this.#answerTo(cid);
    this.#answerTo(clientsCid); // until the client has heard of ours
  }

  receive(datagram, peer) {
    try {
      this.#connection.recv(datagram, { from: peer, to: local });
    } catch {
      // quiche closes the connection where that is due; `flush` tells why.
    }
    this.#early ||= this.#connection.isInEarlyData() && this.#connection.streamReadable(STREAM);
    this.#handshake();
    this.#fromClient();
    this.#toClient();
    this.flush();
  }

  flush() {
    const connection = this.#connection;
    for (let sent = connection.send(out); sent !== null; sent = connection.send(out)) {
      const [size, { to }] = sent;
      socket.send(Buffer.from(out.subarray(0, size)), to.port, to.host);
    }
    this.#paths();
    clearTimeout(this.#timer);
    if (connection.isClosed()) {
      this.#release();
      return;
    }
    const wait = connection.timeout();
    if (wait !== null) {
      this.#timer = setTimeout(() => {
        connection.onTimeout();
        this.#toClient(); // what was lost leaves room
        this.flush();
      }, wait);
    }
  }

  obey(command, code) {
    if (command === 'close') {
      this.#connection.close(true, code, Buffer.alloc(0));
    } else if (command === 'fin') {
      this.#ended = true;
      this.#toClient();
    } else if (command === 'reset') {
      this.#connection.streamShutdown(STREAM, quiche.Shutdown.Write, code);
    } else {
      throw new Error(`unknown command ${command}`);
    }
    this.flush();
  }

  #answerTo(cid) {
    sessions.set(Buffer.from(cid).toString('hex'), this);
  }

  #handshake() {
    const connection = this.#connection;
    if (this.#told || !connection.isEstablished()) return;
    this.#told = true;
    const path = connection.pathStats().find(({ active }) => active);
    tell('connected', {
      peer: `${path.peerHost.host}:${path.peerHost.port}`,
      alpn: Buffer.from(connection.applicationProto()).toString(),
      resumed: connection.isResumed(),
      early_data: this.#early,
      client_certificate: connection.peerCertChain() !== null,
    });
    // Spare connection identifiers: without them the client cannot move to another address.
    while (connection.sourceCidsLeft() > 0) {
      const cid = randomBytes(CID_SIZE);
      connection.newSourceCid(cid, BigInt(`0x${randomBytes(16).toString('hex')}`), false);
      this.#answerTo(cid);
    }
  }

  #fromClient() {
    const connection = this.#connection;
    if (!connection.isEstablished() && !connection.isInEarlyData()) return;
    if (this.#broker === null && connection.streamReadable(STREAM)) this.#dial();
    const buffer = Buffer.alloc(READ_SIZE);
    while (this.#brokerTakesMore && connection.streamReadable(STREAM)) {
      let received;
      try {
        received = connection.streamRecv(STREAM, buffer);
      } catch {
        this.#broker.destroy(); // the client reset the stream
        return;
      }
      if (received === null) return;
      const [size, fin] = received;
      this.#brokerTakesMore = this.#broker.write(Buffer.from(buffer.subarray(0, size)));
      if (fin) this.#broker.end();
    }
  }

  #dial() {
    this.#broker = connect(broker);
    this.#broker.on('data', (data) => {
      this.#pending.push(data);
      this.#toClient();
      this.flush();
    });
    this.#broker.on('drain', () => {
      this.#brokerTakesMore = true;
      this.#fromClient();
      this.flush();
    });
    this.#broker.on('error', () => {}); // 'close' follows
    this.#broker.on('close', () => {
      this.#ended = true;
      this.#toClient();
      this.flush();
    });
  }

  #toClient() {
    const connection = this.#connection;
    if (this.#broker === null || connection.isClosed()) return;
    try {
      while (this.#pending.length > 0) {
        const taken = connection.streamSend(STREAM, this.#pending[0], false) ?? 0;
        if (taken < this.#pending[0].length) {
          this.#pending[0] = this.#pending[0].subarray(taken);
          break;
        }
        this.#pending.shift();
      }
      if (this.#ended && this.#pending.length === 0) connection.streamSend(STREAM, Buffer.alloc(0), true);
    } catch {
      this.#broker.destroy(); // the client wants no more of it
    }
    if (this.#pending.length > 0) this.#broker.pause();
    else this.#broker.resume();
  }

  #paths() {
    for (let event = this.#connection.pathEventNext(); event !== null; event = this.#connection.pathEventNext()) {
      if (event.type === 'PeerMigrated') tell('moved', { peer: `${event.new.host}:${event.new.port}` });
    }
    for (let cid = this.#connection.retiredScidNext(); cid !== null; cid = this.#connection.retiredScidNext()) {
      sessions.delete(Buffer.from(cid).toString('hex'));
    }
  }

  #release() {
    for (const [cid, session] of sessions) if (session === this) sessions.delete(cid);
    this.#broker?.destroy();
    const [error, byPeer] = [this.#connection.peerError(), this.#connection.peerError() !== null];
    const { isApp = false, errorCode = null } = error ?? this.#connection.localError() ?? {};
    tell('closed', { by_peer: byPeer, application: isApp, code: errorCode });
  }
}

// The token of a Retry proves that whoever sends it back has seen it at this address (RFC 9000 section 8.1.2).
const secret = randomBytes(32);
const sign = (originalCid, peer) =>
  createHmac('sha256', secret).update(`${peer.host}:${peer.port}:`).update(originalCid).digest();
const makeToken = (originalCid, peer) => Buffer.concat([sign(originalCid, peer), originalCid]);
const readToken = (token, peer) => {
  const originalCid = token.subarray(32);
  return token.length > 32 && timingSafeEqual(sign(originalCid, peer), token.subarray(0, 32)) ? originalCid : null;
};

function accept(header, peer) {
  if (header.ty !== quiche.Type.Initial) return null;
  const send = (size) => socket.send(Buffer.from(out.subarray(0, size)), peer.port, peer.host);
  if (!quiche.versionIsSupported(header.version)) {
    send(quiche.negotiateVersion(header.scid, header.dcid, out));
    return null;
  }
  if (!options.retry) return new Session(randomBytes(CID_SIZE), header.dcid, undefined, peer);
  const token = Buffer.from(header.token);
  if (token.length === 0) {
    const cid = randomBytes(CID_SIZE);
    send(quiche.retry(header.scid, header.dcid, cid, makeToken(header.dcid, peer), header.version, out));
    return null;
  }
  const originalCid = readToken(token, peer);
  return originalCid === null ? null : new Session(header.dcid, header.dcid, originalCid, peer);
}

socket.on('message', (datagram, { address: host, port }) => {
  const peer = { host, port };
  let header;
  try {
    header = quiche.Header.fromSlice(datagram, CID_SIZE);
  } catch {
    return; // not QUIC
  }
  const session = sessions.get(Buffer.from(header.dcid).toString('hex')) ?? accept(header, peer);
  session?.receive(datagram, peer);
});

// SIGTERM and the end of the input end it as EMQX's listener does: CONNECTION_CLOSE 0.
function stop() {
  for (const session of new Set(sessions.values())) session.obey('close', 0);
  socket.close(() => process.exit());
}

socket.bind(local.port, local.host, () => {
  tell('listening');
  const commands = createInterface({ input: process.stdin });
  commands.on('line', (line) => {
    const [command, code] = line.split(' ');
    for (const session of new Set(sessions.values())) session.obey(command, Number(code ?? 0));
  });
  commands.on('close', stop);
  process.on('SIGTERM', stop);
});
