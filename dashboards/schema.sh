#!/usr/bin/env bash
# Make dashboards/dashboard.schema.json again, of the TypeScript types that Grafana publishes (@grafana/schema, Apache-2.0).
#   dashboards/schema.sh       needs node and npm; the tests read the committed file and need neither
set -euo pipefail
cd "$(dirname "$0")"
schema=12.4.3    # the newest whose types hold the classic dashboard, which is what Grafana provisions from files
generator=2.4.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$work" --legacy-peer-deps \
  "@grafana/schema@$schema" "ts-json-schema-generator@$generator" >&2
# The generator skips declarations of packages: give it a copy that is none.
cp "$work/node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen.d.ts" "$work/dashboard.ts"
(cd "$work" && node_modules/.bin/ts-json-schema-generator --path dashboard.ts --type Dashboard --no-type-check) >"$work/schema.json"
python3 - "$work/schema.json" "$schema" "$generator" >dashboard.schema.json <<'PY'
import json
import sys

path, schema, generator = sys.argv[1:]
content = json.load(open(path, encoding="utf-8"))
content["$comment"] = (
    f"Made by dashboards/schema.sh with ts-json-schema-generator {generator} of @grafana/schema {schema}, "
    "Copyright Grafana Labs, licensed under Apache-2.0."
)
known = content["definitions"]
# Prometheus' annotations and the interval variable bear these, which the published types leave to the datasource and the editor.
for name in ("expr", "step", "titleFormat", "textFormat", "tagKeys"):
    known["AnnotationQuery"]["properties"].setdefault(name, {"type": "string"})
for name, kind in (("auto", "boolean"), ("auto_min", "string"), ("auto_count", "number"), ("definition", "string")):
    known["VariableModel"]["properties"].setdefault(name, {"type": kind})
print(json.dumps(content, indent=1, sort_keys=True))
PY
