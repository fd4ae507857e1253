"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const PAGE = 4096;
  const STATUS = ["built", "read-only", "pinned", "validated", "in the tree"];
  const E820 = {"usable": "ram", "reserved": "firmware", "ACPI data": "acpi", "ACPI NVS": "acpi"};
  const PLACED = {"kernel": "kernel", "Loaded kernel": "kernel", "brk": "brk", "initrd": "initrd",
                  "Init. ramdisk": "initrd"};

  // -- words ------------------------------------------------------------------------------------
  // Texts from elsewhere only ever become text nodes or attribute values: never markup.

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function draw(parent, tag, attributes, title) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (title !== undefined) element.textContent = title;
    parent.append(element);
    return element;
  }

  const hex = (number) => "0x" + number.toString(16);
  const grouped = (number) => number.toLocaleString("en-US");

  function size(bytes) {
    for (const [power, letter] of [[40, "T"], [30, "G"], [20, "M"], [10, "K"]]) {
      const unit = 2 ** power;
      if (bytes >= unit) return (bytes / unit).toFixed(1).replace(/\.0$/, "") + letter;
    }
    return String(bytes);
  }

  const span = (low, high) => `${hex(low)}–${hex(high)} (${size(high - low)})`;
  const levelName = (level) => (level ? "L" + level : "mixed");
  const scenarioName = (each) => `${each.allocator}, ${each.backend}`;
  const plural = (count, one) => `${grouped(count)} ${one}${count === 1 ? "" : "s"}`;

  function options(select, names, values) {
    select.replaceChildren(...names.map((name, n) => {
      const option = make("option", {value: values ? values[n] : n});
      option.textContent = name;
      return option;
    }));
  }

  function chosen(name) {
    return document.querySelector(`input[name=${name}]:checked`).value;
  }

  // -- CSV --------------------------------------------------------------------------------------

  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "string") return String(value);
    // A spreadsheet would take a text that begins so for a formula.
    const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function download(name, rows) {
    const text = rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
    const link = make("a", {href: URL.createObjectURL(new Blob([text], {type: "text/csv"})),
                            download: name + ".csv"});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // -- what a scenario looks like after a step ----------------------------------------------------

  function stateAfter(scenario, step) {
    const mapped = scenario.premapped.map(([low, high]) => [low, high, 0]);
    const tables = [], aside = [], back = [];
    const status = new Map();
    let switched = false;
    for (const frame of scenario.steps.slice(0, step + 1)) {
      mapped.push(...(frame.map || []));
      for (const [batch, level, low, high, count] of frame.tables || []) {
        tables.push({batch, level, low: low * PAGE, high: high * PAGE, count});
      }
      for (const [batch, level, code] of frame.status || []) {
        status.set(`${batch}/${level}`, code);
        if (level === 0) for (let n = 1; n < 6; n++) status.set(`${batch}/${n}`, code);
      }
      aside.push(...(frame.aside || []));
      back.push(...(frame.back || []));
      switched = switched || Boolean(frame.switched);
    }
    for (const table of tables) {
      let code = status.get(`${table.batch}/${table.level}`) ?? 0;
      if (!table.level) for (let n = 1; n < 6; n++) code = Math.max(code, status.get(`${table.batch}/${n}`) ?? 0);
      table.status = code;
    }
    return {mapped, tables, aside, back, switched};
  }

  // -- memory map -------------------------------------------------------------------------------

  const view = {machine: 0, scenario: 0, step: 0, from: 0, to: 1, lane: 0, item: -1, lanes: []};
  const machine = () => data.machines[view.machine];
  const scenario = () => machine().scenarios[view.scenario];
  const FIRST = 65536;

  function position(address) {
    const end = machine().end;
    return chosen("axis") === "log"
      ? Math.log2(1 + address / FIRST) / Math.log2(1 + end / FIRST)
      : address / end;
  }

  function addressAt(place) {
    const end = machine().end;
    return Math.max(0, Math.round(chosen("axis") === "log"
      ? FIRST * (2 ** (place * Math.log2(1 + end / FIRST)) - 1)
      : place * end));
  }

  // What lies where before the first step. Allocators differ in their brk: what not all of them
  // have is told with their names.
  function placedUnder(scenarios) {
    const items = new Map();
    const add = (each, low, high, item) => {
      const key = `${item.text}/${low}/${high}`;
      if (!items.has(key)) items.set(key, {low, high, ...item, who: []});
      items.get(key).who.push(each.allocator);
    };
    for (const each of scenarios) {
      for (const [name, low, high] of each.placed) {
        add(each, low, high, {colour: PLACED[name] || "placed", text: name, top: name === "brk" ? 5 : 0});
      }
      for (const [low, high] of each.boot) add(each, low, high, {colour: "placed", text: "boot page tables", top: 8});
    }
    return [...items.values()].map((item) =>
      ({...item, text: item.who.length < scenarios.length ? `${item.text} (${item.who.join(", ")})` : item.text}));
  }

  function lanes() {
    const here = machine();
    const found = [{
      title: "Firmware map" + (here.more ? ` (${grouped(here.more)} more entries are not shown)` : ""),
      note: "", tall: 15,
      items: here.e820.map(([low, high, type]) =>
        ({low, high, colour: E820[type] || "other", text: `firmware: ${type}`})),
    }];
    for (const backend of new Set(here.scenarios.map((each) => each.backend))) {
      const items = placedUnder(here.scenarios.filter((each) => each.backend === backend && each.steps.length));
      if (items.length) found.push({title: `Before the first step, ${backend}`, note: "", tall: 15, items});
    }
    here.scenarios.forEach((each, number) => {
      const current = number === view.scenario;
      const state = stateAfter(each, current ? view.step : each.steps.length - 1);
      const count = state.tables.reduce((sum, table) => sum + table.count, 0);
      const items = [];
      for (const [low, high, level] of state.mapped) {
        items.push({low, high, colour: level ? "mapped" : "other", top: 0, tall: 4,
                    text: level ? `mapped by L${level} entries` : "mapped since boot"});
      }
      for (const [low, high] of state.aside) {
        items.push({low, high, colour: "hatched", top: 5, text: "set aside for tables"});
      }
      for (const [low, high] of state.back) {
        items.push({low, high, colour: "hatched", top: 5, text: "set aside for tables, given back unused"});
      }
      for (const table of [...state.tables].sort((a, b) => a.level - b.level)) {
        items.push({
          low: table.low, high: table.high, top: table.level < 2 ? 5 : 11 + table.level,
          colour: chosen("paint") === "level" ? "level" + table.level : "status" + table.status,
          text: `${plural(table.count, levelName(table.level) + " table")}, ${STATUS[table.status]}`,
        });
      }
      const end = each.outcome === "ok" ? "" : `${each.outcome}; `;
      found.push({
        title: scenarioName(each) + (current && view.step < each.steps.length - 1
          ? `: step ${view.step} of ${each.steps.length - 1}` : ""),
        note: end + (count ? `${plural(count, "table")}, ${size(count * PAGE)}` : "no tables"),
        brief: end + (count ? plural(count, "table") : "no tables"),
        tall: 20, items, scenario: number, current,
      });
    });
    return found;
  }

  const canvas = $("canvas");
  const MARGIN = 10, TOP = 40;
  const picture = draw(canvas, "svg", {
    tabindex: 0, role: "application", "aria-label": "Memory map", "aria-describedby": "map-help detail",
  });

  function width() {
    return Math.max(280, canvas.clientWidth);
  }

  function toPixel(address) {
    return MARGIN + (position(address) - view.from) / (view.to - view.from) * (width() - 2 * MARGIN);
  }

  function toAddress(pixel) {
    return addressAt(view.from + (pixel - MARGIN) / (width() - 2 * MARGIN) * (view.to - view.from));
  }

  function ticks() {
    const wide = width(), found = [], taken = [];
    const add = (address, words, strong) => {
      const x = toPixel(address);
      if (x < MARGIN || x > wide - MARGIN || taken.some((other) => Math.abs(other - x) < (strong ? 22 : 42))) return;
      taken.push(x);
      found.push({x, words, strong, address});
    };
    for (const [address, words] of data.lines) if (address < machine().end) add(address, words, true);
    const low = toAddress(MARGIN), high = toAddress(wide - MARGIN);
    const step = 2 ** Math.ceil(Math.log2(Math.max(PAGE, (high - low) / Math.max(3, wide / 110))));
    if (chosen("axis") === "log" && high > 16 * Math.max(low, FIRST)) {
      for (let at = 262144; at < high; at *= 4) if (at >= low) add(at, size(at), false);
    } else {
      for (let at = Math.ceil(low / step) * step; at <= high; at += step) {
        add(at, step < 1048576 ? hex(at) : size(at), false);
      }
    }
    return found;
  }

  function paint() {
    view.lanes = lanes();
    const wide = width();
    const height = TOP + view.lanes.reduce((sum, lane) => sum + lane.tall + 22, 0) + 4;
    picture.replaceChildren();
    picture.setAttribute("viewBox", `0 0 ${wide} ${height}`);
    picture.setAttribute("height", height);
    const pattern = draw(draw(picture, "defs", {}), "pattern", {
      id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)"});
    draw(pattern, "rect", {width: 5, height: 5, fill: "var(--idle)", opacity: .22});
    draw(pattern, "rect", {width: 2, height: 5, fill: "var(--idle)"});
    for (const tick of ticks()) {
      if (tick.strong) draw(picture, "line", {x1: tick.x, x2: tick.x, y1: 22, y2: height, class: "limit"});
      const side = tick.x < 40 ? "start" : tick.x > wide - 44 ? "end" : "middle";
      draw(picture, "text", {x: tick.x, y: 16, "text-anchor": side,
                             class: tick.strong ? "chosen" : "faint"}, tick.words);
    }
    let y = TOP;
    for (const lane of view.lanes) {
      const title = draw(picture, "text", {x: MARGIN, y: y - 4,
                                           class: lane.current ? "chosen" : lane.scenario === undefined ? "faint" : ""}, lane.title);
      const room = wide - 2 * MARGIN - 12 - title.getComputedTextLength();
      const note = draw(picture, "text", {x: wide - MARGIN, y: y - 4, "text-anchor": "end", class: "faint"}, lane.note);
      if (note.getComputedTextLength() > room) note.textContent = lane.brief || "";
      if (note.getComputedTextLength() > room) note.remove();
      lane.y = y;
      if (lane.scenario !== undefined) {
        draw(picture, "rect", {x: MARGIN, y, width: wide - 2 * MARGIN, height: lane.tall, fill: "var(--panel)"});
      }
      paintItems(lane, wide);
      y += lane.tall + 22;
    }
    ring();
    legend();
  }

  function paintItems(lane, wide) {
    const drawn = new Map();
    for (const item of lane.items) {
      const left = Math.max(toPixel(item.low), MARGIN);
      const right = Math.min(toPixel(item.high), wide - MARGIN);
      item.box = null;
      if (right < MARGIN || left > wide - MARGIN) continue;
      const top = item.top || 0;
      const box = {x: Math.min(left, wide - MARGIN - 1.5), y: lane.y + top,
                   width: Math.max(1.5, right - left), height: item.tall || lane.tall - top};
      item.box = box;
      // What falls on the same pixels with the same colour is drawn once.
      const key = `${item.colour}/${top}`, last = drawn.get(key);
      if (last && box.x >= last.x - .75 && box.x + box.width <= last.x + last.width + .75) continue;
      drawn.set(key, box);
      draw(picture, "rect", {...box, fill: item.colour === "hatched" ? "url(#hatch)" : `var(--${item.colour})`});
    }
  }

  function ring() {
    for (const old of picture.querySelectorAll(".ring")) old.remove();
    const item = view.lanes[view.lane]?.items[view.item];
    if (!item?.box) return;
    const {x, y, width: wide, height} = item.box;
    draw(picture, "rect", {x: x - 3, y: y - 3, width: wide + 6, height: height + 6, class: "ring"});
  }

  function legend() {
    const names = new Map([["ram", "RAM"], ["firmware", "reserved by firmware"], ["acpi", "ACPI"], ["other", "other firmware types, mapped since boot"],
                           ["kernel", "kernel"], ["brk", "brk"], ["initrd", "initrd"], ["placed", "placed by the domain builder, boot page tables"],
                           ["mapped", "mapped"], ["hatched", "set aside for tables, not used"]]);
    for (let n = 1; n < 6; n++) names.set("level" + n, `L${n} tables`);
    names.set("level0", "tables of several levels");
    STATUS.forEach((text, n) => names.set("status" + n, `tables ${text}`));
    const used = new Set(view.lanes.flatMap((lane) => lane.items.map((item) => item.colour)));
    $("legend").replaceChildren(...[...names].filter(([name]) => used.has(name)).map(([name, text]) => {
      const mark = document.createElementNS(SVG, "svg");
      mark.setAttribute("aria-hidden", "true");
      draw(mark, "rect", {width: 13, height: 13, fill: name === "hatched" ? "url(#hatch)" : `var(--${name})`});
      return make("li", {}, mark, text);
    }));
  }

  function describe(lane, item) {
    return `${span(item.low, item.high)}: ${item.text}. ${lane.title}.`;
  }

  function laneAt(y) {
    return view.lanes.findIndex((lane) => y >= lane.y - 16 && y < lane.y + lane.tall + 6);
  }

  function pointed(event) {
    const box = picture.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    const number = laneAt(y);
    for (const old of picture.querySelectorAll(".cross")) old.remove();
    draw(picture, "line", {x1: x, x2: x, y1: 22, y2: box.height, class: "cross", "pointer-events": "none"});
    const lane = view.lanes[number];
    let best = null;
    for (const item of lane?.items || []) {
      if (!item.box || x < item.box.x - 3 || x > item.box.x + item.box.width + 3) continue;
      const inside = y >= item.box.y - 2 && y <= item.box.y + item.box.height + 2;
      const score = (inside ? 0 : 1e6) + item.box.width - (item.top || 0) / 100;
      if (!best || score < best.score) best = {item, score};
    }
    $("detail").textContent = best ? describe(lane, best.item) : `${hex(toAddress(x))}: nothing here.`;
    return {lane: number, item: best ? lane.items.indexOf(best.item) : -1};
  }

  function zoom(factor, middle = (view.from + view.to) / 2) {
    const wide = Math.min(1, Math.max(1e-9, (view.to - view.from) * factor));
    const share = (middle - view.from) / (view.to - view.from);
    show(middle - share * wide, middle - share * wide + wide);
  }

  function show(from, to) {
    const wide = Math.min(1, to - from);
    view.from = Math.min(Math.max(0, from), 1 - wide);
    view.to = view.from + wide;
    paint();
  }

  function showRange(low, high) {
    const from = position(low), to = position(high), room = Math.max((to - from) * .05, 1e-9);
    show(from - room, to + room);
  }

  function choose(lane, item) {
    view.lane = lane;
    view.item = item;
    const target = view.lanes[lane]?.items[item];
    if (!target) return;
    const from = position(target.low), to = position(target.high);
    if (from > view.to || to < view.from) {
      const wide = view.to - view.from;
      show((from + to) / 2 - wide / 2, (from + to) / 2 + wide / 2);
    }
    ring();
    $("detail").textContent = describe(view.lanes[lane], target);
  }

  // Along a lane the keys go by address, whatever the order of drawing.
  function along(lane) {
    return lane.items.map((_, n) => n).sort((a, b) =>
      lane.items[a].low - lane.items[b].low || lane.items[a].high - lane.items[b].high);
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const lane = view.lanes[view.lane];
    const order = along(lane), at = order.indexOf(view.item);
    const wide = view.to - view.from;
    const focus = lane.items[view.item];
    const middle = focus ? position((focus.low + focus.high) / 2) : undefined;
    const acts = {
      ArrowRight: () => (event.shiftKey ? show(view.from + wide / 5, view.to + wide / 5)
                                        : choose(view.lane, order[Math.min(at + 1, order.length - 1)])),
      ArrowLeft: () => (event.shiftKey ? show(view.from - wide / 5, view.to - wide / 5)
                                       : choose(view.lane, order[Math.max(at - 1, 0)])),
      ArrowDown: () => step(1), ArrowUp: () => step(-1),
      "+": () => zoom(.5, middle), "=": () => zoom(.5, middle), "-": () => zoom(2, middle),
      "0": () => show(0, 1), Home: () => choose(view.lane, order[0]),
      End: () => choose(view.lane, order[order.length - 1]),
    };
    const step = (by) => {
      const next = Math.min(Math.max(0, view.lane + by), view.lanes.length - 1);
      const first = along(view.lanes[next])[0];
      view.lane = next;
      view.item = -1;
      if (first === undefined) $("detail").textContent = `${view.lanes[next].title}: nothing here.`;
      else choose(next, first);
    };
    if (acts[event.key]) {
      acts[event.key]();
      event.preventDefault();
    }
  }

  let drag = null;
  picture.addEventListener("keydown", key);
  picture.addEventListener("focus", () => { if (view.item < 0) choose(view.lane, along(view.lanes[view.lane])[0]); });
  picture.addEventListener("pointerdown", (event) => {
    drag = {x: event.clientX, from: view.from, to: view.to, moved: false};
    try { picture.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone */ }
  });
  picture.addEventListener("pointermove", (event) => {
    if (drag) {
      const by = (drag.x - event.clientX) / (width() - 2 * MARGIN) * (drag.to - drag.from);
      if (Math.abs(event.clientX - drag.x) > 4) drag.moved = true;
      if (drag.moved) return show(drag.from + by, drag.to + by);
    }
    pointed(event);
  });
  picture.addEventListener("pointerup", (event) => {
    const moved = drag?.moved;
    drag = null;
    if (moved) return;
    const hit = pointed(event);
    if (hit.lane >= 0 && view.lanes[hit.lane].scenario !== undefined) setScenario(view.lanes[hit.lane].scenario);
    if (hit.item >= 0) choose(hit.lane, hit.item);
  });
  picture.addEventListener("pointercancel", () => { drag = null; });
  picture.addEventListener("wheel", (event) => {
    // The plain wheel scrolls the page.
    if (!event.ctrlKey && !event.shiftKey) return;
    const x = event.clientX - picture.getBoundingClientRect().left;
    zoom(event.deltaY + event.deltaX > 0 ? 1.25 : .8, position(toAddress(x)));
    event.preventDefault();
  }, {passive: false});
  $("zoom-in").addEventListener("click", () => zoom(.5));
  $("zoom-out").addEventListener("click", () => zoom(2));
  $("zoom-all").addEventListener("click", () => show(0, 1));
  $("zoom-low").addEventListener("click", () => showRange(0, Math.min(16777216, machine().end)));
  $("zoom-tables").addEventListener("click", () => {
    const state = stateAfter(scenario(), view.step);
    const last = state.tables[state.tables.length - 1];
    if (!last) return;
    const level = state.tables.filter((table) => table.batch === last.batch);
    showRange(Math.min(...level.map((t) => t.low)), Math.max(...level.map((t) => t.high)));
  });
  for (const name of ["axis", "paint"]) {
    for (const input of document.querySelectorAll(`input[name=${name}]`)) {
      input.addEventListener("change", () => (name === "axis" ? show(0, 1) : paint()));
    }
  }
  $("map-csv").addEventListener("click", () => {
    const rows = [["machine", "lane", "start", "end", "bytes", "what"]];
    for (const lane of view.lanes) {
      for (const item of lane.items) {
        rows.push([machine().name, lane.title, hex(item.low), hex(item.high), item.high - item.low, item.text]);
      }
    }
    download(`map-${view.machine + 1}`, rows);
  });

  // -- timeline ---------------------------------------------------------------------------------

  let playing = 0;

  function setScenario(number) {
    view.scenario = number;
    $("scenario").value = String(number);
    setStep(scenario().steps.length - 1);
  }

  function setStep(step) {
    const steps = scenario().steps;
    view.step = Math.min(Math.max(0, step), Math.max(0, steps.length - 1));
    $("slider").max = String(Math.max(0, steps.length - 1));
    $("slider").value = String(view.step);
    const frame = steps[view.step];
    $("place").textContent = `${view.step} of ${Math.max(0, steps.length - 1)}`;
    $("slider").setAttribute("aria-valuetext", frame ? `step ${view.step}: ${frame.title}` : "no steps");
    paint();
    tell(frame);
  }

  function tell(frame) {
    const here = scenario();
    const numbered = here.steps.some((each) => each.seed);
    $("seven").hidden = !numbered;
    [...$("seven").children].forEach((item, n) => {
      if (frame?.seed === n + 1) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    });
    const words = $("step");
    words.replaceChildren();
    if (!frame) {
      words.append(make("p", {class: "bad"}, here.verdict));
      $("state").replaceChildren();
      return;
    }
    const events = frame.events || [0, 0];
    words.append(
      make("h4", {}, (frame.seed ? `Step ${frame.seed} of the design: ` : "") + frame.title),
      make("ul", {}, ...(frame.say || []).map((text) => make("li", {}, text))),
      make("p", {class: "hint"}, `Events ${events[0]} to ${events[1]} of the trace.`));
    if (view.step === here.steps.length - 1 && here.outcome !== "ok") words.append(make("p", {class: "bad"}, here.verdict));
    const state = stateAfter(here, view.step);
    const counts = new Map();
    for (const table of state.tables) {
      const row = counts.get(table.level) || STATUS.map(() => 0);
      row[table.status] += table.count;
      counts.set(table.level, row);
    }
    const exist = frame.exist || 0;
    const share = here.promised ? exist / here.promised : 0;
    const used = STATUS.map((_, n) => n).filter((n) => [...counts.values()].some((row) => row[n]));
    const body = [...counts].sort(([a], [b]) => a - b).map(([level, row]) =>
      make("tr", {}, make("th", {scope: "row", class: "text"}, levelName(level)), ...used.map((n) => make("td", {}, row[n] ? grouped(row[n]) : "–"))));
    $("state").replaceChildren(
      make("h4", {}, `Mapped so far: ${size(exist)} (${(100 * share).toFixed(0)} %)`),
      make("progress", {max: 1, value: share, "aria-label": "Share of the direct map that exists"}),
      make("h4", {}, body.length ? "Tables, and their status" : "No tables yet"),
      ...(body.length ? [make("table", {}, make("thead", {}, make("tr", {}, make("th", {scope: "col", class: "text"}, "level"),
        ...used.map((n) => make("th", {scope: "col"}, STATUS[n])))), make("tbody", {}, ...body))] : []),
      make("p", {class: "hint"}, state.switched ? "The boot tables are obsolete." : "The CPU still uses the root that it booted with."));
  }

  function stop() {
    clearInterval(playing);
    playing = 0;
    $("play").textContent = "Play";
    $("play").setAttribute("aria-pressed", "false");
  }

  $("play").addEventListener("click", () => {
    if (playing) return stop();
    if (view.step >= scenario().steps.length - 1) setStep(0);
    $("play").textContent = "Pause";
    $("play").setAttribute("aria-pressed", "true");
    playing = setInterval(() => {
      if (view.step >= scenario().steps.length - 1) return stop();
      setStep(view.step + 1);
    }, 900);
  });
  $("slider").addEventListener("input", () => { stop(); setStep(Number($("slider").value)); });
  $("back").addEventListener("click", () => { stop(); setStep(view.step - 1); });
  $("forth").addEventListener("click", () => { stop(); setStep(view.step + 1); });
  $("scenario").addEventListener("change", () => { stop(); setScenario(Number($("scenario").value)); });

  // -- tables -----------------------------------------------------------------------------------

  const order = {column: null, up: true};

  function value(figure, number) {
    if (number === null || number === undefined) return "–";
    if (typeof number === "boolean") return number ? "yes" : "no";
    if (typeof number === "string") return number;
    if (figure.unit === "bytes") return size(number);
    if (figure.unit === "address") return hex(number);
    return Number.isInteger(number) && figure.unit !== "ratio" ? grouped(number) : number.toFixed(2);
  }

  const columns = () => data.figures.map((figure, n) => ({...figure, n})).filter((figure) => chosen("columns") === "all" || figure.key);

  function rowsShown() {
    if ($("rows").value !== "all") {
      return machine().scenarios.map((each) => ({machine: machine(), ...each}));
    }
    return data.machines.flatMap((each) => each.scenarios.map((one) => ({machine: each, ...one})));
  }

  function baselineOf(row) {
    return row.machine.scenarios.find((each) => each.allocator === $("baseline").value && each.backend === row.backend);
  }

  function compared(figure, row) {
    const base = baselineOf(row);
    const mine = Number(row.figures[figure.n]), its = Number(base?.figures[figure.n]);
    if (!figure.better || !base || base.allocator === row.allocator || row.figures[figure.n] === null || base.figures[figure.n] === null
        || !Number.isFinite(mine) || !Number.isFinite(its) || mine === its) return null;
    return {better: (mine > its) === (figure.better > 0), more: mine > its, by: mine - its};
  }

  function table() {
    const shown = columns(), many = $("rows").value === "all";
    const names = [...(many ? ["machine"] : []), "allocator", "backend", "verdict"];
    const rows = rowsShown();
    const sorter = (row) => ({machine: row.machine.name, allocator: row.allocator, backend: row.backend, verdict: row.outcome})[order.column]
      ?? row.figures[data.figures.findIndex((figure) => figure.name === order.column)];
    if (order.column) {
      rows.sort((a, b) => {
        const [x, y] = [sorter(a), sorter(b)];
        if (x === null || x === undefined) return 1;
        if (y === null || y === undefined) return -1;
        const result = typeof x === "string" ? x.localeCompare(y) : x - y;
        return order.up ? result : -result;
      });
    }
    const heading = (name, title, figure) => {
      const sort = make("button", {type: "button", "data-column": name}, title + (order.column === name ? (order.up ? " ↑" : " ↓") : ""));
      sort.addEventListener("click", () => {
        order.up = order.column === name ? !order.up : true;
        order.column = name;
        table();
        document.querySelector(`[data-column="${name}"]`).focus();
      });
      const head = make("th", {scope: "col", class: figure ? "" : "text", "aria-sort": order.column === name ? (order.up ? "ascending" : "descending") : "none"}, sort);
      if (figure) {
        head.title = figure.meaning;
        const why = make("button", {type: "button", class: "why", "aria-label": `What is ${title}?`}, "?");
        why.addEventListener("click", () => {
          const wish = {"-1": " Less is better.", "1": " More is better.", "0": ""}[figure.better];
          $("definition").textContent = `${figure.header} (${figure.name}, ${figure.unit}): ${figure.meaning}.${wish}`;
        });
        head.append(why);
      }
      return head;
    };
    $("table").replaceChildren(
      make("caption", {class: "quiet"}, "Figures of every scenario, compared with the baseline"),
      make("thead", {}, make("tr", {}, ...names.map((name) => heading(name, name)), ...shown.map((figure) => heading(figure.name, figure.header, figure)))),
      make("tbody", {}, ...rows.map((row) => {
        const base = row.allocator === $("baseline").value;
        const cells = [...(many ? [row.machine.name] : []), row.allocator + (base ? " (baseline)" : ""), row.backend];
        const fixed = cells.map((text) => make("td", {class: "text"}, text));
        const verdict = make("td", {class: "text " + (row.outcome === "ok" ? "good" : "bad")}, row.outcome);
        return make("tr", base ? {class: "base"} : {}, ...fixed, verdict, ...shown.map((figure) => {
          const found = make("td", {}, value(figure, row.figures[figure.n]));
          const other = compared(figure, row);
          if (other) {
            const by = figure.unit === "yes/no" ? "" : (other.more ? "+" : "−") + value(figure, Math.abs(other.by));
            found.append(make("small", {class: other.better ? "better" : "worse"}, `${by} ${other.better ? "better" : "worse"}`));
          }
          return found;
        }));
      })));
  }

  for (const id of ["rows", "baseline"]) $(id).addEventListener("change", table);
  for (const input of document.querySelectorAll("input[name=columns]")) input.addEventListener("change", table);
  $("figures-csv").addEventListener("click", () => {
    const head = ["machine", "allocator", "backend", "outcome", "verdict", ...data.figures.map((figure) => figure.name), ...data.extra.map(([name]) => name)];
    const rows = rowsShown().map((row) => [row.machine.name, row.spec, row.backend, row.outcome, row.verdict, ...row.figures, ...row.extra]);
    download("figures", [head, ...rows]);
  });
  for (const button of document.querySelectorAll("[data-chart]")) {
    button.setAttribute("aria-label", "CSV of this chart");
    button.addEventListener("click", () => {
      const rows = data.charts[button.dataset.chart];
      const names = Object.keys(rows[0]);
      download(button.dataset.chart, [names, ...rows.map((row) => names.map((name) => row[name]))]);
    });
  }

  // -- words about runs and machines ---------------------------------------------------------------

  function pairs(list, entries) {
    list.replaceChildren(...entries.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  }

  function verdicts() {
    // What ended in the same way on the same machine is told once.
    const groups = new Map();
    let all = 0, bad = 0;
    for (const each of data.machines) {
      for (const one of each.scenarios) {
        all++;
        if (one.outcome === "ok" && !one.findings.length) continue;
        bad++;
        const same = JSON.stringify([each.name, one.verdict, one.findings]);
        if (!groups.has(same)) groups.set(same, {machine: each, one, who: []});
        groups.get(same).who.push(scenarioName(one));
      }
    }
    $("verdict-list").replaceChildren(make("p", {}, `${plural(all - bad, "scenario")} of ${all} came to a good end and broke no rule.`));
    const items = [...groups.values()].map(({machine: each, one, who}) => make("li", {},
      make("b", {}, each.name), ": ", make("span", {class: "bad"}, one.verdict), ` (${who.join("; ")})`,
      ...one.findings.map(([rule, event, address, message]) =>
        make("div", {}, `Rule ${rule}, event ${event}, ${hex(address)}: ${message}`)),
      ...(one.more ? [make("div", {}, `and ${plural(one.more, "more finding")}`)] : [])));
    if (items.length) $("verdict-list").append(make("ul", {class: "verdicts"}, ...items));
    pairs($("evidence"), Object.entries(data.evidence).map(([name, text]) => [name, text === "not" ? "not checked by any judge" : text]));
  }

  function machines() {
    $("machine-list").replaceChildren(...data.machines.map((each) => {
      const list = make("dl");
      pairs(list, [...each.facts, ["Source", each.source || "not told"], ["Kernel release", each.release || "not told"],
        ["Assumed", each.assumed.length ? each.assumed.join("; ") : "nothing"],
        ["Firmware map", each.e820.map(([low, high, type]) => `${hex(low)}–${hex(high)} ${type}`).join("; ")]]);
      for (const one of each.scenarios) {
        const told = data.extra.map(([, title], n) => [title, one.extra[n]]).filter(([, text]) => text !== null);
        if (told.length) list.append(make("dt", {}, scenarioName(one)), make("dd", {}, told.map(([name, text]) => `${name}: ${text}`).join("; ")));
      }
      return make("details", {}, make("summary", {}, each.title === each.name ? each.name : `${each.name}: ${each.title}`), list);
    }));
    pairs($("versions"), [["paravirt-mm", data.version], ...data.plugins.map(([name, origin, role]) => [name, `${role}, ${origin}`])]);
  }

  // -- start --------------------------------------------------------------------------------------

  function setMachine(number) {
    stop();
    view.machine = number;
    Object.assign(view, {from: 0, to: 1, lane: 0, item: -1});
    const list = machine().scenarios;
    options($("scenario"), list.map(scenarioName));
    const numbered = list.findLastIndex((each) => each.steps.some((frame) => frame.seed));
    setScenario(numbered >= 0 ? numbered : list.length - 1);
    table();
  }

  $("machine").addEventListener("change", () => setMachine(Number($("machine").value)));
  $("scheme").addEventListener("click", () => {
    const now = document.documentElement.dataset.scheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.scheme = now === "dark" ? "light" : "dark";
  });
  data.seven.forEach((text, n) => $("seven").append(make("li", {}, make("b", {}, `${n + 1} `), text)));
  if (data.machines.length) {
    options($("machine"), data.machines.map((each) => each.name));
    options($("rows"), ["this machine", "all machines"], ["one", "all"]);
    const allocators = [...new Set(data.machines.flatMap((each) => each.scenarios.map((one) => one.allocator)))];
    options($("baseline"), allocators, allocators);
    verdicts();
    machines();
    const whole = data.machines.findIndex((each) => each.scenarios.every((one) => one.outcome === "ok"));
    $("machine").value = String(Math.max(0, whole));
    setMachine(Math.max(0, whole));
    new ResizeObserver(() => paint()).observe(canvas);
  }
})();
