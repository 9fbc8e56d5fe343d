// The page's own script: tables that sort and filter, figures of Chart.js whose points say what is behind them.
// Every text from rows comes as data, and reaches the page as text alone (textContent, canvas).
(() => {
'use strict';

const make = (name, attributes = {}, text = '') => {
  const element = document.createElement(name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  element.textContent = text;
  return element;
};

// ---- tables: a body of rows, or one body per layer with its heading first

const dataRows = body => Array.from(body.rows).filter(row => !row.matches('.layer, .stages'));

const valueOf = (row, column) => {
  const cell = row.cells[column];
  if (!cell || cell.colSpan > 1) return null;
  const text = (cell.dataset.value ?? cell.textContent).trim();
  if (text === '' || text === '-') return null;
  return /^-?[\d.]+(e[-+]?\d+)?x?$/.test(text) ? parseFloat(text) : text.toLowerCase();
};

// What has no value comes last in both directions.
const compare = (a, b, sign) => {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === 'number' ? -1 : 1;
  return a < b ? -sign : a > b ? sign : 0;
};

const makeSortable = table => {
  const heads = Array.from(table.tHead.rows[0].cells);
  const bodies = Array.from(table.tBodies);
  const orders = bodies.map(dataRows);
  const sort = (column, direction) => {
    const sign = direction === 'descending' ? -1 : 1;
    const sorted = bodies.map((body, at) => {
      const rows = orders[at].slice();
      if (direction) rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column), sign));
      const stages = Array.from(body.rows).find(row => row.matches('.stages')) ?? null;
      rows.forEach(row => body.insertBefore(row, stages));
      return {body, key: direction && rows.length ? valueOf(rows[0], column) : null};
    });
    if (direction) sorted.sort((a, b) => compare(a.key, b.key, sign));
    sorted.forEach(({body}) => table.appendChild(body));
  };
  heads.forEach((head, column) => {
    const button = make('button', {type: 'button', class: 'sort'}, head.textContent);
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const next = {ascending: 'descending', descending: ''}[head.getAttribute('aria-sort')] ?? 'ascending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      if (next) head.setAttribute('aria-sort', next);
      sort(column, next);
    });
  });
};

const makeFilter = table => {
  const bodies = Array.from(table.tBodies);
  let rows = null;
  const field = make('input', {type: 'search', placeholder: 'words that a row has'});
  const label = make('label', {}, 'filter ');
  const count = make('output');
  const line = make('p', {class: 'filter'});
  label.append(field);
  line.append(label, count);
  (table.closest('.wide') ?? table).before(line);
  field.addEventListener('input', () => {
    rows ??= bodies.flatMap(body => {
      // Not the command that repeats the layer: it names every schedule.
      const parts = Array.from(body.querySelector(':scope > tr.layer > th')?.childNodes ?? []);
      const heading = parts.filter(part => part.nodeName !== 'CODE').map(part => part.textContent).join(' ');
      return dataRows(body).map(row => ({row, text: `${heading} ${row.textContent}`.toLowerCase()}));
    });
    const words = field.value.toLowerCase().split(/\s+/).filter(word => word);
    rows.forEach(({row, text}) => { row.hidden = !words.every(word => text.includes(word)); });
    bodies.forEach(body => { body.hidden = !dataRows(body).some(row => !row.hidden); });
    count.textContent = words.length ? `${rows.filter(({row}) => !row.hidden).length} of ${rows.length} rows` : '';
  });
};

document.querySelectorAll('table.sortable').forEach(table => {
  const rows = Array.from(table.tBodies).reduce((sum, body) => sum + dataRows(body).length, 0);
  if (rows > 1) makeSortable(table);
  if (rows >= 12 && !table.parentElement.closest('td')) makeFilter(table);
});

// ---- links into what is folded

const unfold = () => {
  const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = place?.closest('details'); at; at = at.parentElement.closest('details')) at.open = true;
  place?.scrollIntoView();
};
window.addEventListener('hashchange', unfold);

// ---- figures

const data = document.getElementById('figure-data');
const content = data && window.Chart ? JSON.parse(data.textContent) : null;
const factsOf = point => {
  const places = point.facts ?? [];
  return Array.from({length: places.length / 2}, (_, i) => [content.texts[places[2 * i]], content.texts[places[2 * i + 1]]]);
};

// Shapes by gnuplot's numbers, so that a schedule looks the same in images: + x *, then open and filled
// square, circle, triangle, triangle down, diamond, pentagon.
const outline = (context, shape, x, y, r) => {
  const polygon = (corners, first, radius = r) => {
    for (let i = 0; i < corners; ++i) {
      const angle = first + 2 * Math.PI * i / corners;
      context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
    }
    context.closePath();
  };
  const strokes = angles => angles.forEach(angle => {
    context.moveTo(x - r * Math.cos(angle), y - r * Math.sin(angle));
    context.lineTo(x + r * Math.cos(angle), y + r * Math.sin(angle));
  });
  const upright = [0, Math.PI / 2], slanted = [Math.PI / 4, -Math.PI / 4];
  context.beginPath();
  if (shape === 1) strokes(upright);
  else if (shape === 2) strokes(slanted);
  else if (shape === 3) strokes([...upright, ...slanted]);
  else if (shape <= 5) polygon(4, Math.PI / 4, 1.2 * r);
  else if (shape <= 7) context.arc(x, y, r, 0, 2 * Math.PI);
  else if (shape <= 9) polygon(3, -Math.PI / 2, 1.2 * r);
  else if (shape <= 11) polygon(3, Math.PI / 2, 1.2 * r);
  else if (shape <= 13) polygon(4, 0, 1.2 * r);
  else polygon(5, -Math.PI / 2, 1.1 * r);
};

const drawMarker = (context, series, x, y, r) => {
  if (!series.shape) return;
  context.save();
  context.setLineDash([]);
  outline(context, series.shape, x, y, r);
  const open = series.shape < 4 || series.shape % 2 === 0;
  if (open && series.shape >= 4) { context.fillStyle = '#fff'; context.fill(); }
  context.strokeStyle = context.fillStyle = series.colour;
  context.lineWidth = open ? 1.8 : 1;
  if (open) context.stroke(); else context.fill();
  context.restore();
};

const dashes = {'-1': [2, 3], 0: [], 1: [7, 4], 2: [10, 3, 2, 3], 3: [3, 5]};
const dashOf = series => dashes[series.dash < 0 ? -1 : series.dash % 4];

// A tag beside its point, where no other one stands; without room the point alone says what it is.
const drawTags = (chart, series) => {
  const context = chart.ctx, area = chart.chartArea, taken = [];
  context.save();
  context.font = '11px system-ui, sans-serif';
  context.textBaseline = 'middle';
  const points = chart.data.datasets.flatMap((set, s) => !chart.isDatasetVisible(s) ? [] :
    chart.getDatasetMeta(s).data.map((element, i) => ({element, set, tag: set.data[i].tag})));
  points.filter(point => point.set.series.shape).forEach(({element: {x, y}}) => taken.push([x - 6, y - 6, x + 6, y + 6]));
  points.filter(point => point.tag).forEach(({element: {x, y}, set, tag}) => {
    const width = context.measureText(tag).width;
    for (const [left, middle] of [[9, 0], [9, -13], [9, 13], [-9 - width, 0], [-9 - width, -13], [-9 - width, 13],
                                  [-width / 2, -15], [-width / 2, 15], [9, -26], [9, 26]]) {
      const box = [x + left, y + middle - 6, x + left + width, y + middle + 6];
      if (box[0] < area.left || box[2] > area.right || box[1] < area.top || box[3] > area.bottom ||
          taken.some(other => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1])) continue;
      taken.push(box);
      context.fillStyle = set.series.colour;
      context.fillText(tag, box[0], y + middle);
      break;
    }
  });
  context.restore();
};

const markers = {
  id: 'markers',
  afterDatasetDraw(chart, {index, meta}) {
    const {series} = chart.data.datasets[index];
    const active = chart.getActiveElements().filter(one => one.datasetIndex === index).map(one => one.index);
    meta.data.forEach((element, i) => drawMarker(chart.ctx, series, element.x, element.y, active.includes(i) ? 7 : 4.5));
  },
  afterDatasetsDraw(chart) { if (chart.options.hasTags) drawTags(chart); },
};

const shortened = (text, most) => text.length <= most ? text :
  `${text.slice(0, Math.ceil(most * 0.55) - 1)}\u2026${text.slice(text.length - Math.floor(most * 0.45))}`;

const numberText = value => {
  if (value === 0) return '0';
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(3).replace(/\.?0+e\+?/, 'e') : String(Number(value.toPrecision(4)));
};

// Lines at 1 to 9 of each decade; named are those that have room.
const logTicks = (low, high) => {
  const ticks = [];
  for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); ++decade) {
    for (let digit = 1; digit <= 9; ++digit) {
      const value = Number(`${digit}e${decade}`);
      if (value >= low && value <= high) ticks.push({value, digit});
    }
  }
  const decades = Math.log10(high / low);
  const named = decades > 2.2 ? [1] : decades > 1 ? [1, 2, 5] : decades > 0.4 ? [1, 2, 3, 5, 7] : [1, 2, 3, 4, 5, 6, 7, 8, 9];
  const labelled = ticks.filter(tick => named.includes(tick.digit));
  return labelled.length < 2 ? null : decades > 5 ? labelled.map(tick => ({...tick, label: numberText(tick.value)})) :
    ticks.map(tick => ({...tick, label: named.includes(tick.digit) ? numberText(tick.value) : ''}));
};

const axis = (values, log, label) => {
  const low = Math.min(...values), high = Math.max(...values);
  const room = log ? Math.max(1.06, Math.pow(high / low, 0.05)) : 0;
  return {
    type: log ? 'logarithmic' : 'linear',
    min: log ? low / room : undefined,
    max: log ? high * room : undefined,
    suggestedMin: low,
    suggestedMax: high,
    title: {display: label !== '', text: label},
    grace: log ? undefined : '5%',
    grid: {color: '#e4e4e4'},
    ticks: {autoSkip: !log, autoSkipPadding: 12, maxRotation: 0, callback(value, index, ticks) { return ticks[index].label ?? numberText(value); }},
    afterBuildTicks(scale) { if (log) scale.ticks = logTicks(scale.min, scale.max) ?? scale.ticks; },
  };
};

const scalesOf = panel => {
  const all = key => panel.series.flatMap(series => series[key]);
  const x = axis(all('x'), panel.log_x, panel.x_label);
  const counts = [...new Set(all('x'))].sort((a, b) => a - b);
  if (panel.x_names.length) {
    Object.assign(x, {min: -0.5, max: panel.x_names.length - 0.5});
    Object.assign(x.ticks, {autoSkip: false, minRotation: panel.x_names.length > 8 ? 30 : 0, maxRotation: 50});
    x.afterBuildTicks = scale => {
      scale.ticks = panel.x_names.map((name, value) => ({value, label: shortened(name, panel.x_names.length > 6 ? 26 : 38)}));
    };
  } else if (counts.every(Number.isInteger) && counts.length <= 16) {
    x.ticks.autoSkip = true;
    x.afterBuildTicks = scale => { scale.ticks = counts.map(value => ({value, label: String(value)})); };
  }
  return {x, y: axis(all('y'), panel.log_y, panel.y_label)};
};

const wrapped = (text, most = 62) => text.split(' ').reduce((lines, word) => {
  const last = lines[lines.length - 1];
  if (last !== undefined && last.length + word.length < most) lines[lines.length - 1] = `${last} ${word}`;
  else lines.push(...(word.match(new RegExp(`.{1,${most}}`, 'gu')) ?? ['']));
  return lines;
}, []);

// Shown on a click or by Enter, not while the pointer passes.
const kLong = ['again', 'run', 'revision', 'reason'];

const tooltip = {
  displayColors: false,
  filter: (item, index) => index === 0,
  callbacks: {
    title: items => items.length ? wrapped(items[0].dataset.label || items[0].raw.tag || '') : [],
    label: item => factsOf(item.raw).filter(([name]) => !kLong.includes(name))
      .flatMap(([name, text]) => wrapped(`${name}: ${text}`)),
    footer: () => 'a click shows the whole row below',
  },
};

const datasetOf = series => ({
  label: series.label,
  series,
  data: series.x.map((x, i) => ({x, y: series.y[i], tag: series.tags[i], facts: series.facts[i]})),
  borderColor: series.colour,
  borderDash: dashOf(series),
  borderWidth: 2,
  showLine: series.line,
  pointRadius: 0,
  pointHoverRadius: 0,
  pointHitRadius: series.shape ? 12 : 0,
});

const makeChart = (canvas, panel, hidden) => {
  const chart = new window.Chart(canvas, {
    type: 'line',
    data: {datasets: panel.series.map(datasetOf)},
    plugins: [markers],
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      parsing: false,
      hasTags: panel.series.some(series => series.tags.length),
      layout: {padding: 6},
      interaction: {mode: 'nearest', intersect: true},
      plugins: {legend: {display: false}, tooltip},
      scales: scalesOf(panel),
    },
  });
  panel.series.forEach((series, s) => { if (hidden.has(series.label)) chart.setDatasetVisibility(s, false); });
  return chart;
};

// The whole row behind a point, below the figure.
const showBehind = (place, set, index) => {
  place.replaceChildren();
  if (!set) return;
  const list = make('dl');
  factsOf(set.data[index]).forEach(([name, text]) => {
    const value = make('dd');
    value.append(name === 'again' ? make('code', {}, text) : text);
    list.append(make('dt', {}, name), value);
  });
  const close = make('button', {type: 'button'}, 'close');
  close.addEventListener('click', () => place.replaceChildren());
  place.append(make('b', {}, set.label || set.data[index].tag || 'point'), list, close);
};

// Arrow keys walk through the points: along a series, and from one to the next.
const makeWalkable = (plot, chartOf, behind) => {
  let at = null;
  plot.addEventListener('keydown', event => {
    const chart = chartOf();
    const sets = chart.data.datasets.map((set, s) => ({set, s}))
      .filter(({set, s}) => set.series.shape && chart.isDatasetVisible(s) && set.data.length);
    const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
    if (event.key === 'Escape') {
      at = null;
      chart.setActiveElements([]);
      chart.tooltip.setActiveElements([], {x: 0, y: 0});
      chart.update();
      behind.replaceChildren();
    }
    if (event.key === 'Enter' && at) showBehind(behind, chart.data.datasets[at.s], at.i);
    if (!step || !sets.length) return;
    event.preventDefault();
    const now = at ? sets.findIndex(({s}) => s === at.s) : -1;
    const next = sets[now < 0 ? 0 : (now + step[0] + sets.length) % sets.length];
    const last = next.set.data.length - 1;
    at = {s: next.s, i: Math.max(0, Math.min(last, now < 0 ? 0 : at.i + step[1]))};
    const active = [{datasetIndex: at.s, index: at.i}];
    const {x, y} = chart.getDatasetMeta(at.s).data[at.i];
    chart.setActiveElements(active);
    chart.tooltip.setActiveElements(active, {x, y});
    chart.update();
    showBehind(behind, chart.data.datasets[at.s], at.i);
  });
};

const drawn = [];  // how to draw each figure's charts, those that are there already included

const makeFigure = (figure, panels) => {
  const hidden = new Set();
  const charts = panels.map(() => null);
  const behind = make('div', {class: 'behind', 'aria-live': 'polite'});
  const grid = make('div', {class: 'panels'});
  if (figure.dataset.columns === '1') figure.classList.add('one');
  const canvases = panels.map((panel, p) => {
    const canvas = make('canvas');
    const plot = make('div', {class: 'plot', tabindex: '0', role: 'group',
      'aria-label': `${panel.title || panel.y_label}: arrow keys walk through the points`});
    const whole = make('div', {class: 'panel'});
    plot.append(canvas);
    if (panel.title) whole.append(make('h4', {}, panel.title));
    whole.append(plot);
    grid.append(whole);
    canvas.addEventListener('click', event => {
      const [hit] = charts[p].getElementsAtEventForMode(event, 'nearest', {intersect: true}, false);
      if (hit) showBehind(behind, charts[p].data.datasets[hit.datasetIndex], hit.index);
    });
    makeWalkable(plot, () => { draw(); return charts[p]; }, behind);
    return canvas;
  });
  const draw = () => panels.forEach((panel, p) => { charts[p] ??= makeChart(canvases[p], panel, hidden); });
  const legend = make('div', {class: 'legend', role: 'group', 'aria-label': 'show and hide lines'});
  const named = new Map(panels.flatMap(panel => panel.series).filter(series => series.label).map(series => [series.label, series]));
  named.forEach((series, label) => {
    const button = make('button', {type: 'button', 'aria-pressed': 'true'});
    const sample = make('canvas', {width: 56, height: 28, style: 'width:28px;height:14px', 'aria-hidden': 'true'});
    const context = sample.getContext('2d');
    context.scale(2, 2);
    if (series.line) {
      context.strokeStyle = series.colour;
      context.lineWidth = 2;
      context.setLineDash(dashOf(series));
      context.beginPath();
      context.moveTo(0, 7);
      context.lineTo(28, 7);
      context.stroke();
    }
    drawMarker(context, series, 14, 7, 4.5);
    button.append(sample, label);
    button.addEventListener('click', () => {
      if (!hidden.delete(label)) hidden.add(label);
      button.setAttribute('aria-pressed', String(!hidden.has(label)));
      charts.forEach((chart, p) => {
        if (!chart) return;
        panels[p].series.forEach((one, s) => { if (one.label === label) chart.setDatasetVisibility(s, !hidden.has(label)); });
        chart.update();
      });
    });
    legend.append(button);
  });
  figure.append(legend, grid, behind);
  drawn.push({figure, draw, charts});
};

if (content) {
  content.figures.forEach(({panels}, f) => makeFigure(document.getElementById(`figure-${f + 1}`), panels));
  // A page of many figures draws those that come near.
  const near = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(({target}) => {
    near.unobserve(target);
    drawn.find(({figure}) => figure === target).draw();
  }), {rootMargin: '600px'});
  drawn.forEach(({figure}) => near.observe(figure));
}

// ---- paper: everything drawn, unfolded, and as wide as a sheet

let folded = [];
window.addEventListener('beforeprint', () => {
  folded = Array.from(document.querySelectorAll('details:not([open])'));
  folded.forEach(one => { one.open = true; });
  drawn.forEach(({figure, draw, charts}) => {
    draw();
    charts.forEach(chart => chart.resize(figure.dataset.columns === '1' || charts.length === 1 ? 690 : 335, 240));
  });
});
window.addEventListener('afterprint', () => {
  folded.forEach(one => { one.open = false; });
  drawn.forEach(({charts}) => charts.forEach(chart => chart.resize()));
});

unfold();
})();
