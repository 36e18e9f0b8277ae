// From the dashboard's JSON and a live Prometheus to Grafana's data frames: variables, queries, transformations, overrides.
import {
  type DataFrame,
  type Field,
  FieldType,
  FieldConfigOptionsRegistry,
  type GrafanaTheme2,
  applyFieldOverrides,
  cacheFieldDisplayNames,
  createDataFrame,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

export type Values = Record<string, string>;
export interface Span {
  from: number; // seconds
  to: number;
}
export interface Mark {
  time: number; // milliseconds
  end: number;
  color: string;
}
interface Series {
  metric: Record<string, string>;
  value?: [number, string];
  values?: Array<[number, string]>;
}

// What the driver learnt from the command line.
declare const window: { scrapeInterval: number } & Window;

const FUNDAMENTAL = ['unit', 'min', 'max', 'decimals', 'color', 'mappings', 'thresholds', 'links', 'noValue', 'displayName'];

// The options that overrides may set: Grafana's own, and every option that a kind of panel adds.
function registry(panel: any): FieldConfigOptionsRegistry {
  const names = new Set<string>(Object.keys(panel.fieldConfig.defaults.custom ?? {}));
  for (const override of panel.fieldConfig.overrides) {
    for (const { id } of override.properties) {
      if (id.startsWith('custom.')) {
        names.add(id.slice('custom.'.length));
      }
    }
  }
  const item = (id: string, path: string, isCustom: boolean): any => ({
    id,
    path,
    isCustom,
    name: path,
    editor: () => null,
    override: () => null,
    process: (value: unknown) => value,
    shouldApply: () => true,
  });
  const made = new FieldConfigOptionsRegistry(() => [
    ...FUNDAMENTAL.map((name) => item(name, name, false)),
    ...[...names].map((name) => item(`custom.${name}`, name, true)),
  ]);
  return made;
}

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map(
    (transformation: any) => ({ id: transformation.id, name: transformation.name, transformation: () => transformation }) as any
  )
);

async function ask(path: string, parameters: Record<string, string | number>): Promise<Series[]> {
  const body = new URLSearchParams(Object.entries(parameters).map(([key, value]) => [key, String(value)]));
  const answer = await (await fetch(`/prometheus/api/v1/${path}?${body}`)).json();
  if (answer.status !== 'success') {
    throw new Error(`${answer.error}: ${parameters.query}`);
  }
  return answer.data.result;
}

export function interpolate(text: string, values: Values): string {
  return text.replace(/\$\{(\w+)(?::\w+)?\}|\$(\w+)/g, (all, braced, plain) => values[braced ?? plain] ?? all);
}

// Every variable takes the value chosen, else the first on offer, as Grafana does when it opens a dashboard.
export async function resolve(dashboard: any, chosen: Values, at: number): Promise<{ values: Values; texts: Values }> {
  const values: Values = {};
  const texts: Values = {};
  for (const variable of dashboard.templating.list.filter((item: any) => item.type === 'query')) {
    const query = interpolate(variable.query.query, values);
    const labels = /^label_values\((?:(.+),\s*)?(\w+)\)$/.exec(query);
    let offered: Array<{ value: string; text: string }>;
    if (labels) {
      const series = await ask('query', { query: labels[1] ?? `{${labels[2]}!=""}`, time: at });
      const found = [...new Set(series.map((item) => item.metric[labels[2]]).filter(Boolean))].sort(new Intl.Collator('en', { numeric: true }).compare);
      offered = found.map((value) => ({ value, text: value }));
    } else {
      const pattern = new RegExp(variable.regex.slice(1, -1));
      const series = await ask('query', { query: query.slice('query_result('.length, -1), time: at });
      offered = series.flatMap(({ metric, value }) => {
        const shown = Object.keys(metric).sort().map((key) => `${key}="${metric[key]}"`);
        const match = pattern.exec(`{${shown.join(',')}} ${value![1]} ${value![0] * 1000}`);
        return match ? [{ value: match.groups?.value ?? match[1], text: match.groups?.text ?? match[1] }] : [];
      });
    }
    const taken = offered.find((option) => option.value === chosen[variable.name]) ?? offered[0];
    values[variable.name] = taken?.value ?? '';
    texts[variable.name] = taken?.text ?? 'none';
  }
  return { values, texts };
}

function legend(format: string | undefined, metric: Record<string, string>): string {
  if (format) {
    return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? '').trim();
  }
  return Object.entries(metric).map(([key, value]) => `${key}="${value}"`).join(', ');
}

function timeField(times: number[]): Field {
  return { name: 'Time', type: FieldType.time, values: times.map((time) => time * 1000), config: {} };
}

function tabular(series: Series[], refId: string, alone: boolean): DataFrame {
  const labels = [...new Set(series.flatMap((item) => Object.keys(item.metric)))].sort();
  return createDataFrame({
    refId,
    fields: [
      timeField(series.map((item) => item.value![0])),
      ...labels.map((label) => ({
        name: label,
        type: FieldType.string,
        config: {},
        values: series.map((item) => item.metric[label] ?? ''),
      })),
      {
        name: alone ? 'Value' : `Value #${refId}`,
        type: FieldType.number,
        config: {},
        values: series.map((item) => Number(item.value![1])),
      },
    ],
  });
}

function overTime(item: Series, target: any, span: Span, step: number): DataFrame {
  const points = new Map((item.values ?? [item.value!]).map(([time, value]) => [time, Number(value)]));
  const times: number[] = [];
  if (item.values) {
    for (let time = span.from; time <= span.to; time += step) {
      times.push(time);
    }
  } else {
    times.push(item.value![0]);
  }
  return createDataFrame({
    refId: target.refId,
    fields: [
      timeField(times),
      {
        name: 'Value',
        type: FieldType.number,
        labels: item.metric,
        config: { displayNameFromDS: legend(target.legendFormat, item.metric) },
        values: times.map((time) => points.get(time) ?? null),
      },
    ],
  });
}

// One step for all points of a range, not below the scrape interval, about one per pixel: Grafana's way.
function stepOf(span: Span, width: number): number {
  return Math.max(window.scrapeInterval, Math.ceil((span.to - span.from) / width / 5) * 5);
}

function withIntervals(values: Values, step: number): Values {
  const rate = Math.max(step + window.scrapeInterval, 4 * window.scrapeInterval);
  return { ...values, __rate_interval: `${rate}s` };
}

// Grafana aligns a range to its step, so that a refresh does not move the points.
function aligned(span: Span, step: number): Span {
  return { from: Math.floor(span.from / step) * step, to: Math.floor(span.to / step) * step };
}

export async function framesOf(
  panel: any,
  values: Values,
  span: Span,
  width: number,
  theme: GrafanaTheme2
): Promise<DataFrame[]> {
  const step = stepOf(span, width);
  const range = aligned(span, step);
  const frames: DataFrame[] = [];
  for (const target of panel.targets) {
    const query = interpolate(target.expr, withIntervals(values, step));
    const series = target.instant
      ? await ask('query', { query, time: span.to })
      : await ask('query_range', { query, start: range.from, end: range.to, step });
    if (target.format === 'table') {
      frames.push(tabular(series, target.refId, panel.targets.length === 1));
    } else {
      frames.push(...series.map((item) => overTime(item, target, range, step)));
    }
  }
  const transformed = panel.transformations?.length
    ? await lastValueFrom(transformDataFrame(panel.transformations, frames))
    : frames;
  const ready = applyFieldOverrides({
    data: transformed,
    fieldConfig: panel.fieldConfig,
    replaceVariables: (text) => interpolate(text, values),
    theme,
    timeZone: 'browser',
    fieldConfigRegistry: registry(panel),
  });
  cacheFieldDisplayNames(ready);
  return ready;
}

// Times at which an annotation's expression is above zero; what follows within a step belongs together.
export async function marksOf(dashboard: any, values: Values, span: Span): Promise<Mark[]> {
  const step = stepOf(span, 1000);
  const range = aligned(span, step);
  const marks: Mark[] = [];
  for (const annotation of dashboard.annotations.list) {
    const query = interpolate(annotation.expr, withIntervals(values, step));
    for (const { values: points } of await ask('query_range', { query, start: range.from, end: range.to, step })) {
      let last: Mark | undefined;
      for (const [time] of (points ?? []).filter(([, value]) => Number(value) > 0)) {
        if (last && time * 1000 - last.end <= step * 1000) {
          last.end = time * 1000;
        } else {
          last = { time: time * 1000, end: time * 1000, color: annotation.iconColor };
          marks.push(last);
        }
      }
    }
  }
  return marks;
}
