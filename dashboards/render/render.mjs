// Pictures of the committed dashboards, from a live Prometheus, drawn by Grafana's own components in a headless browser.
//   node render.mjs --prometheus URL [--user NAME --password-file FILE] [--ca FILE] --out DIRECTORY
//                   [--from SECONDS --to SECONDS] [--set VARIABLE=VALUE]... [--mode light|dark] [--only NAME]
// It ends with 1 if a panel of the dashboards Federation or Client shows no data.
import { createServer } from 'node:http';
import http from 'node:http';
import https from 'node:https';
import { mkdirSync, readFileSync, readdirSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

const here = import.meta.dirname ?? new URL('.', import.meta.url).pathname;
const DASHBOARDS = join(process.env.COLDFRAME_REPOSITORY ?? join(here, '..', '..'), 'roles', 'grafana', 'files', 'dashboards');
const WIDTH = 1600;

const { values: options } = parseArgs({
  options: {
    prometheus: { type: 'string' },
    user: { type: 'string', default: '' },
    'password-file': { type: 'string', default: '' },
    ca: { type: 'string', default: '' },
    out: { type: 'string' },
    from: { type: 'string', default: '' },
    to: { type: 'string', default: '' },
    set: { type: 'string', multiple: true, default: [] },
    mode: { type: 'string', default: 'light' },
    only: { type: 'string', default: '' },
    'scrape-interval': { type: 'string', default: '5' },
  },
});
if (!options.prometheus || !options.out) {
  console.error('render: type node render.mjs --prometheus URL --out DIRECTORY');
  process.exit(2);
}

const PAGE = `<!doctype html><meta charset="utf-8"><style>
  body { font-family: Inter, "Helvetica Neue", Arial, sans-serif; margin: 0; }
  .no-data { display: flex; height: 100%; align-items: center; justify-content: center; opacity: 0.6; }
</style><div id="root"></div><script src="/page.js"></script><link rel="stylesheet" href="/page.css">`;

const TYPES = { css: 'text/css', js: 'text/javascript', svg: 'image/svg+xml' };

// The browser speaks to this process alone, which knows the password and the authority.
function proxy(request, response) {
  const url = new URL(options.prometheus.replace(/\/$/, '') + request.url.slice('/prometheus'.length));
  const client = url.protocol === 'https:' ? https : http;
  const auth = options.user ? `${options.user}:${readFileSync(options['password-file'], 'utf8').trim()}` : undefined;
  const ca = options.ca ? readFileSync(options.ca) : undefined;
  client
    .get(url, { auth, ca }, (answer) => {
      response.writeHead(answer.statusCode, { 'content-type': 'application/json' });
      answer.pipe(response);
    })
    .on('error', (error) => {
      response.writeHead(502, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ status: 'error', error: String(error) }));
    });
}

const server = createServer((request, response) => {
  const path = request.url.split('?')[0];
  if (path.startsWith('/prometheus/')) {
    return proxy(request, response);
  }
  const icons = '/public/build/img/';
  const file = path.startsWith(icons)
    ? join(here, 'node_modules/@grafana/ui/dist/public/img', path.slice(icons.length))
    : join(here, 'dist', path.slice(1));
  if (path === '/') {
    response.writeHead(200, { 'content-type': 'text/html' });
    response.end(PAGE);
  } else if (!path.includes('..') && existsSync(file)) {
    response.writeHead(200, { 'content-type': TYPES[path.split('.').pop()] });
    response.end(readFileSync(file));
  } else {
    response.writeHead(404);
    response.end();
  }
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--font-render-hinting=none'],
});
const to = Number(options.to) || Date.now() / 1000;
const from = Number(options.from) || to - 900;
const chosen = Object.fromEntries(options.set.map((pair) => pair.split(/=(.*)/s).slice(0, 2)));
mkdirSync(options.out, { recursive: true });
let failed = false;
for (const file of readdirSync(DASHBOARDS).filter((name) => !options.only || name === `${options.only}.json`)) {
  const dashboard = JSON.parse(readFileSync(join(DASHBOARDS, file), 'utf8'));
  const page = await browser.newPage({ viewport: { width: WIDTH, height: 1000 }, deviceScaleFactor: 1.5 });
  page.on('pageerror', (error) => console.error(`${file}: ${error.stack}`));
  if (process.env.RENDER_DEBUG) {
    page.on('console', (message) => console.error(`${file}: ${message.text()}`));
  }
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const empty = await page.evaluate(
    ([content, set, span, width, mode, interval]) => {
      window.scrapeInterval = interval;
      return window.show(content, set, span, width, mode);
    },
    [dashboard, chosen, { from, to }, WIDTH, options.mode, Number(options['scrape-interval'])]
  );
  await page.waitForFunction((number) => document.querySelectorAll('[data-panel]').length === number,
    dashboard.panels.filter((panel) => panel.type !== 'row').length);
  // What lies outside of the window is not drawn.
  const height = await page.evaluate(() => document.getElementById('root').offsetHeight);
  await page.setViewportSize({ width: WIDTH, height: Math.ceil(height) });
  await page.evaluate(() => document.fonts.ready);
  await page.waitForTimeout(800);
  const picture = join(options.out, file.replace('.json', '.png'));
  await page.locator('#root').screenshot({ path: picture });
  console.log(`${picture}: ${empty.length ? `no data in ${empty.join(', ')}` : 'every panel has data'}`);
  failed ||= empty.length > 0 && ['federation.json', 'client.json'].includes(file);
  await page.close();
}
await browser.close();
server.close();
process.exitCode = failed ? 1 : 0;
