// Shows a dashboard with the components that Grafana itself is made of (@grafana/ui), and heat maps, for which it has
// none: one page, one picture.
import {
  type DataFrame,
  FieldType,
  type GrafanaTheme2,
  ThemeContext,
  VizOrientation,
  createTheme,
  dateTime,
  getDisplayProcessor,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
} from '@grafana/data';
import {
  BarGauge,
  BigValue,
  GlobalStyles,
  Icon,
  InlineField,
  Input,
  LinkButton,
  PanelChrome,
  TimeSeries,
  type UPlotConfigBuilder,
  VizRepeater,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { interpolateBlues, interpolateOranges } from 'd3-scale-chromatic';
import { useLayoutEffect, useRef, useState } from 'react';
import { createRoot } from 'react-dom/client';

import { type Mark, type Span, type Values, framesOf, marksOf, resolve } from './data';

const COLUMN = 24;
const ROW = 38; // Grafana's grid: 30 px and a gap of 8
const GAP = 8;

// Options that Grafana's time series panel has unless a dashboard says otherwise.
const PLAIN = {
  drawStyle: 'line',
  lineInterpolation: 'linear',
  lineWidth: 1,
  fillOpacity: 0,
  gradientMode: 'none',
  showPoints: 'auto',
  pointSize: 5,
  axisPlacement: 'auto',
  axisColorMode: 'text',
  axisGridShow: true,
  scaleDistribution: { type: 'linear' },
  barAlignment: 0,
  stacking: { mode: 'none', group: 'A' },
  thresholdsStyle: { mode: 'off' },
  hideFrom: { tooltip: false, viz: false, legend: false },
  spanNulls: false,
  insertNulls: false,
};

function Marks({ builder, marks }: { builder: UPlotConfigBuilder; marks: Mark[] }) {
  // Like Grafana's own annotations: a dashed line at the time, a bar on the axis as long as it lasted.
  useLayoutEffect(() => {
    builder.addHook('draw', (plot: any) => {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.rect(bbox.left, bbox.top - 1, bbox.width, bbox.height + 12);
      ctx.clip();
      for (const mark of marks) {
        const left = plot.valToPos(mark.time, 'x', true);
        const right = plot.valToPos(mark.end, 'x', true);
        ctx.strokeStyle = ctx.fillStyle = mark.color;
        ctx.lineWidth = 1.5 * devicePixelRatio;
        ctx.setLineDash([5 * devicePixelRatio, 5 * devicePixelRatio]);
        ctx.beginPath();
        ctx.moveTo(left, bbox.top);
        ctx.lineTo(left, bbox.top + bbox.height);
        ctx.stroke();
        ctx.setLineDash([]);
        ctx.fillRect(left, bbox.top + bbox.height, Math.max(right - left, 4 * devicePixelRatio), 5 * devicePixelRatio);
      }
      ctx.restore();
    });
  }, [builder, marks]);
  return null;
}

interface Content {
  panel: any;
  frames: DataFrame[];
  marks: Mark[];
  span: Span;
  width: number;
  height: number;
  theme: GrafanaTheme2;
}

function Curves({ panel, frames, marks, span, width, height }: Content) {
  for (const frame of frames) {
    for (const field of frame.fields) {
      field.config.custom = { ...PLAIN, ...field.config.custom };
    }
  }
  const range = { from: dateTime(span.from * 1000), to: dateTime(span.to * 1000) };
  return (
    <TimeSeries
      frames={frames}
      structureRev={1}
      width={width}
      height={height}
      timeRange={{ ...range, raw: range }}
      timeZone="browser"
      legend={panel.options.legend}
      options={panel.options}
    >
      {(builder: UPlotConfigBuilder) => <Marks builder={builder} marks={marks} />}
    </TimeSeries>
  );
}

function displayValues({ panel, frames, theme }: Content, sparkline: boolean) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: { ...panel.options.reduceOptions, values: false },
    replaceVariables: (text: string) => text,
    theme,
    data: frames,
    sparkline,
    timeZone: 'browser',
  });
}

function Figures(content: Content) {
  const { panel, width, height, theme } = content;
  const values = displayValues(content, panel.options.graphMode !== 'none');
  return (
    <VizRepeater
      getValues={() => values}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, width, height, count, alignmentFactors }: any) => (
        <BigValue
          value={value.display}
          text={panel.options.text}
          count={count}
          sparkline={value.sparkline}
          colorMode={panel.options.colorMode}
          graphMode={panel.options.graphMode}
          justifyMode={panel.options.justifyMode}
          textMode={panel.options.textMode}
          alignmentFactors={alignmentFactors}
          wideLayout={panel.options.wideLayout}
          width={width}
          height={height}
          theme={theme}
        />
      )}
      width={width}
      height={height}
      source={content.frames}
      itemSpacing={3}
      renderCounter={0}
      autoGrid
      orientation={VizOrientation.Auto}
    />
  );
}

function Bars(content: Content) {
  const { panel, width, height, theme } = content;
  const values = displayValues(content, false);
  return (
    <VizRepeater
      getValues={() => values}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, width, height, orientation, alignmentFactors }: any) => (
        <BarGauge
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          orientation={orientation}
          displayMode={panel.options.displayMode}
          valueDisplayMode={panel.options.valueMode}
          namePlacement={panel.options.namePlacement}
          text={panel.options.text}
          showUnfilled={panel.options.showUnfilled}
          alignmentFactors={alignmentFactors}
          width={width}
          height={height}
          theme={theme}
        />
      )}
      width={width}
      height={height}
      source={content.frames}
      itemSpacing={10}
      renderCounter={0}
      minVizHeight={panel.options.minVizHeight}
      maxVizHeight={panel.options.maxVizHeight}
      orientation={panel.options.orientation}
    />
  );
}

function Rows({ panel, frames, width, height }: Content) {
  return (
    <TableNG
      data={frames[0]}
      width={width}
      height={height}
      sortBy={panel.options.sortBy}
      cellHeight={panel.options.cellHeight}
      fieldConfig={panel.fieldConfig}
      enableVirtualization={false}
    />
  );
}

const SCHEMES: Record<string, (share: number) => string> = { Blues: interpolateBlues, Oranges: interpolateOranges };

// Grafana publishes no component for heat maps: this draws what its panel would, a row per series.
function Heat({ panel, frames, span, width, height, theme }: Content) {
  const place = useRef<HTMLCanvasElement>(null);
  const [left, bottom] = [74, 46];
  useLayoutEffect(() => {
    const plot = place.current!.getContext('2d')!;
    const rows = frames.map((frame) => frame.fields[1]);
    const times = frames[0].fields[0].values as number[];
    const { scheme, max } = panel.options.color;
    const most = max ?? Math.max(...rows.flatMap((row) => row.values.filter((value) => value !== null)), 1e-9);
    const [wide, high] = [width - left - 8, height - bottom];
    const tall = high / rows.length;
    const x = (time: number) => left + (wide * (time / 1000 - span.from)) / (span.to - span.from);
    plot.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    plot.clearRect(0, 0, width, height);
    rows.forEach((row, line) =>
      row.values.forEach((value: number | null, column: number) => {
        if (value !== null) {
          plot.fillStyle = SCHEMES[scheme](Math.min(1, value / most));
          const end = times[column + 1] ?? times[column] + (times[1] - times[0]);
          plot.fillRect(x(times[column]), line * tall, x(end) - x(times[column]) + 0.5, tall + 0.5);
        }
      })
    );
    plot.font = `12px ${theme.typography.fontFamily}`;
    plot.fillStyle = theme.colors.text.primary;
    plot.textAlign = 'right';
    plot.textBaseline = 'middle';
    let step = 1;
    while (step < rows.length / 3 && (height - 15) / (rows.length / step) < 10) {
      step *= 2; // as Grafana does: half of the names go until they fit
    }
    rows.forEach((row, line) => line % step === 0 && plot.fillText(row.config.displayNameFromDS ?? '', left - 6, (line + 0.5) * tall));
    plot.textAlign = 'center';
    for (let place = 1; place < 6; place++) {
      const time = span.from + ((span.to - span.from) * place) / 6;
      plot.fillText(dateTime(time * 1000).format('HH:mm:ss'), x(time * 1000), high + 12);
    }
    const scale = Math.min(220, wide / 2);
    for (let share = 0; share < scale; share++) {
      plot.fillStyle = SCHEMES[scheme](share / scale);
      plot.fillRect(left + share, high + 28, 1.5, 8);
    }
    plot.fillStyle = theme.colors.text.primary;
    const shown = getDisplayProcessor({ field: { config: { ...panel.fieldConfig.defaults, decimals: undefined }, type: FieldType.number }, theme });
    const words = (value: number) => { const { text, suffix } = shown(value); return text + (suffix ?? ''); };
    plot.textAlign = 'left';
    plot.fillText(words(most), left + scale + 8, high + 32);
    plot.textAlign = 'right';
    plot.fillText(words(0), left - 6, high + 32);
  });
  return <canvas ref={place} width={width * devicePixelRatio} height={height * devicePixelRatio} style={{ width, height }} />;
}

const KINDS: Record<string, (content: Content) => JSX.Element> = {
  timeseries: Curves,
  stat: Figures,
  bargauge: Bars,
  heatmap: Heat,
  table: Rows,
};

function empty(frames: DataFrame[]): boolean {
  return !frames.some((frame) => frame.fields.some((field) => field.type === 'number' && field.values.some((v) => v !== null)));
}

function Panel(content: Omit<Content, 'width' | 'height'> & { width: number; height: number }) {
  const Kind = KINDS[content.panel.type];
  return (
    <PanelChrome
      title={content.panel.title}
      description={content.panel.description}
      width={content.width}
      height={content.height}
    >
      {(width, height) =>
        empty(content.frames) ? <div className="no-data">No data</div> : <Kind {...content} width={width} height={height} />
      }
    </PanelChrome>
  );
}

interface Shown {
  dashboard: any;
  texts: Values;
  marks: Mark[];
  frames: Map<number, DataFrame[]>;
  span: Span;
  width: number;
  theme: GrafanaTheme2;
}

function Page({ dashboard, texts, marks, frames, span, width, theme }: Shown) {
  const cell = (width - GAP * 2 + GAP) / COLUMN;
  const shown = dashboard.templating.list.filter((item: any) => item.type === 'query' && item.hide !== 2);
  const bottom = Math.max(...dashboard.panels.map((panel: any) => panel.gridPos.y + panel.gridPos.h));
  const time = (seconds: number) => dateTime(seconds * 1000).format('YYYY-MM-DD HH:mm:ss');
  return (
    <div style={{ width, padding: GAP }}>
      <div style={{ display: 'flex', alignItems: 'center', gap: 12, marginBottom: 4 }}>
        <h3 style={{ margin: '0 8px 0 4px', whiteSpace: 'nowrap' }}>{dashboard.title}</h3>
        {shown.map((item: any) => (
          <InlineField key={item.name} label={item.label} transparent={false} style={{ margin: 0 }}>
            <Input readOnly value={texts[item.name]} width={Math.max(14, Math.ceil(texts[item.name].length) + 5)} suffix={<Icon name="angle-down" />} />
          </InlineField>
        ))}
        <div style={{ flexGrow: 1 }} />
        <LinkButton variant="secondary" fill="outline" icon="clock-nine" size="sm">
          {time(span.from)} to {time(span.to)}
        </LinkButton>
      </div>
      <div style={{ position: 'relative', height: bottom * ROW }}>
        {dashboard.panels.map((panel: any) => {
          const { x, y, w, h } = panel.gridPos;
          const place = { position: 'absolute' as const, left: x * cell, top: y * ROW };
          if (panel.type === 'row') {
            return (
              <div key={panel.id} style={{ ...place, top: y * ROW + 6, fontWeight: 500, fontSize: 16 }}>
                <Icon name="angle-down" /> {panel.title}
              </div>
            );
          }
          return (
            <div key={panel.id} style={place} data-panel={panel.title}>
              <Panel
                panel={panel}
                frames={frames.get(panel.id)!}
                marks={marks}
                span={span}
                theme={theme}
                width={Math.round(w * cell - GAP)}
                height={h * ROW - GAP}
              />
            </div>
          );
        })}
      </div>
    </div>
  );
}

function Themed(shown: Shown) {
  const [ready, setReady] = useState(false);
  useLayoutEffect(() => setReady(true), []);
  return (
    <ThemeContext.Provider value={shown.theme}>
      <GlobalStyles isExtensionSidebarOpen={false} />
      {ready && <Page {...shown} />}
    </ThemeContext.Provider>
  );
}

// Called by render.mjs; resolves to the titles of the panels that show no data.
(window as any).show = async (dashboard: any, chosen: Values, span: Span, width: number, mode: 'light' | 'dark') => {
  const theme = createTheme({ colors: { mode } });
  const { values, texts } = await resolve(dashboard, chosen, span.to);
  const marks = await marksOf(dashboard, values, span);
  const panels = dashboard.panels.filter((panel: any) => panel.type !== 'row');
  const frames = new Map<number, DataFrame[]>();
  for (const panel of panels) {
    frames.set(panel.id, await framesOf(panel, values, span, (panel.gridPos.w * width) / COLUMN, theme));
  }
  document.body.style.background = theme.colors.background.canvas;
  createRoot(document.getElementById('root')!).render(
    <Themed {...{ dashboard, texts, marks, frames, span, width, theme }} />
  );
  return panels.filter((panel: any) => empty(frames.get(panel.id)!)).map((panel: any) => panel.title);
};
