// Bundle the page: node build.mjs
import { build } from 'esbuild';

await build({
  entryPoints: ['page.tsx'],
  bundle: true,
  outfile: 'dist/page.js',
  format: 'iife',
  jsx: 'automatic',
  minify: true,
  define: { 'process.env.NODE_ENV': '"production"', global: 'globalThis' },
  loader: { '.svg': 'dataurl', '.woff2': 'dataurl', '.woff': 'dataurl', '.ttf': 'empty' },
  logLevel: 'error',
});
