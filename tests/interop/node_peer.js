'use strict';
// The other process of test_node.py: `node node_peer.js TASK [PORT]`, with an IPC channel.
const net = require('net');

const tasks = {
  // Answer on every socket that comes, and serve one connection of every server.
  take() {
    process.on('message', (message, handle) => {
      if (handle instanceof net.Socket) {
        handle.end(`${message} is a socket`);
      } else if (handle instanceof net.Server) {
        handle.once('connection', (socket) => {
          handle.close();
          socket.end(`${message} is a server`);
        });
      } else {
        process.send({ plain: message });
      }
    });
  },

  // Connect, and send the connection, and then a message without one.
  giveSocket(port) {
    const socket = net.connect(Number(port), '127.0.0.1', () => {
      process.send('a connection', socket);
      process.send('and nothing');
    });
  },

  // Listen, and send the listener.
  giveServer() {
    const server = net.createServer();
    server.listen(0, '127.0.0.1', () => {
      process.send(server.address().port, server, () => server.close());
    });
  },
};

// Until the channel is closed.
process.on('disconnect', () => {});
tasks[process.argv[2]](...process.argv.slice(3));
