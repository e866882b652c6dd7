// Node on the socket that was passed; SIGTERM ends it.
const http = require('http');

const server = http.createServer((request, response) => {
  const body = `${process.pid}\n`;
  response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': body.length });
  response.end(body);
});

const passed = process.env.LISTEN_PID === String(process.pid);
server.listen(passed ? { fd: 3 } : { host: '127.0.0.1', port: Number(process.argv[2]) });
process.on('SIGTERM', () => server.close());
