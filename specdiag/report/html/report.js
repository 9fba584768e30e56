(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const make = (name, attributes, parent) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(node);
    return node;
  };
  // writes an axis label, smaller or cut where it is longer than `room`; returns the middle nearest to `wanted`
  const centred = (node, label, wanted, room) => {
    const space = room - 8;
    node.textContent = label;
    let length = node.getComputedTextLength();
    if (length > space) {
      node.style.fontSize = Math.max(9, Math.floor((11.5 * space) / length)) + "px";
      length = node.getComputedTextLength();
    }
    for (let end = label.length; length > space && end > 4; length = node.getComputedTextLength()) {
      end -= 1;
      node.textContent = label.slice(0, end) + "…";
    }
    return Math.min(Math.max(wanted, 4 + length / 2), room - 4 - length / 2);
  };
  const html = (name, properties, parent) => {
    const node = Object.assign(document.createElement(name), properties);
    if (parent) parent.appendChild(node);
    return node;
  };

  /* ---- theme, settings, tables ---- */

  const themes = ["", "dark", "light"], names = ["as the system", "dark", "light"];
  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const next = (themes.indexOf(document.documentElement.dataset.theme || "") + 1) % 3;
    if (themes[next]) document.documentElement.dataset.theme = themes[next];
    else delete document.documentElement.dataset.theme;
    theme.textContent = "Colours: " + names[next];
  });

  const dialog = document.getElementById("dialog"), content = document.getElementById("dialog-content");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-settings]");
    if (!link || !dialog.showModal) return;
    event.preventDefault();
    content.replaceChildren(...document.getElementById(link.dataset.settings).cloneNode(true).childNodes);
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });

  const key = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.v;
    return value === undefined ? cell.textContent.trim() : value === "" ? NaN : Number(value);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") {
      if (Number.isNaN(a)) return Number.isNaN(b) ? 0 : 1;
      return Number.isNaN(b) ? -1 : a - b;
    }
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const rising = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row, place) => ({ row, place, value: key(row, column) }));
        const last = (entry) => typeof entry.value === "number" && Number.isNaN(entry.value);
        rows.sort((a, b) => {
          if (last(a) || last(b)) return last(a) - last(b) || a.place - b.place;
          return (rising ? 1 : -1) * compare(a.value, b.value) || a.place - b.place;
        });
        table.tBodies[0].append(...rows.map((entry) => entry.row));
      });
    });
  }
  for (const input of document.querySelectorAll("input.filter")) {
    const body = document.getElementById(input.dataset.table).tBodies[0];
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }

  /* ---- numbers and ticks ---- */

  const format = (value) => {
    if (value === null || value === undefined) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) return value.toExponential(3).replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(5)));
  };
  const tickText = (value, step) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
    let digits = step > 0 ? 0 : 3;
    while (step > 0 && digits < 8 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits += 1;
    return Number(value.toFixed(digits)).toString();
  };
  const linearTicks = (low, high, count) => {
    const raw = (high - low) / Math.max(1, count);
    if (!(raw > 0)) return [{ at: low, text: format(low) }];
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) || 10);
    const ticks = [];
    for (let index = Math.ceil(low / step - 1e-9); index * step <= high + 1e-9 * step; index += 1) {
      ticks.push({ at: index * step, text: tickText(index * step, step) });
    }
    return ticks;
  };
  const logTicks = (low, high, count) => {
    const decades = Math.log10(high / low);
    if (decades < 0.7) return linearTicks(low, high, count).filter((tick) => tick.at > 0);
    const factors = decades < 2 ? [1, 2, 5] : decades < 3.5 ? [1, 3] : [1];
    const every = Math.max(1, Math.ceil(decades / count));
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of factors) {
        const at = factor * 10 ** power;
        if (at >= low * 0.999 && at <= high * 1.001 && (every === 1 || (factor === 1 && power % every === 0))) {
          ticks.push({ at, text: tickText(at, 0) });
        }
      }
    }
    return ticks;
  };
  const ticksOf = (axis, low, high, count) => {
    const from = Math.min(low, high), to = Math.max(low, high);
    if (axis.ticks) {
      const inside = axis.ticks.filter(([at]) => at >= from && at <= to).map(([at, text]) => ({ at, text }));
      const every = Math.max(1, Math.ceil(inside.length / Math.max(2, 2.5 * count)));
      return inside.filter((_, index) => index % every === 0);
    }
    return axis.log ? logTicks(from, to, count) : linearTicks(from, to, count);
  };
  /* black is the colour of the ink, whichever that is */
  const ink = (colour) => {
    const part = (at) => parseInt(colour.slice(at, at + 2), 16);
    return 0.3 * part(1) + 0.59 * part(3) + 0.11 * part(5) < 40 ? "var(--ink)" : colour;
  };

  /* ---- one chart ---- */

  let serial = 0;

  class Chart {
    constructor(place, spec) {
      this.spec = spec;
      this.hidden = new Set();
      this.clip = "clip" + (serial += 1);
      this.home = { x: spec.x.limits.slice(), y: spec.y.limits.slice() };
      this.view = { x: spec.x.limits.slice(), y: spec.y.limits.slice() };
      const figure = html("figure", { className: "chart" }, place);
      const caption = html("figcaption", {}, figure);
      html("span", { textContent: spec.title }, caption);
      const tools = html("span", {}, caption);
      const tool = (text, label, act) => {
        const button = html("button", { className: "tool", textContent: text, title: label, type: "button" }, tools);
        button.setAttribute("aria-label", label);
        button.addEventListener("click", act);
      };
      tool("+", "zoom in", () => this.zoom(0.6));
      tool("−", "zoom out", () => this.zoom(1 / 0.6));
      tool("⟲", "show all", () => this.reset());
      this.svg = make("svg", { role: "img", tabindex: "0", "aria-label": spec.title || spec.y.label }, figure);
      this.tip = html("div", { className: "tip", hidden: true }, figure);
      this.figure = figure;
      this.legend(figure);
      this.scaleOf(figure);
      if (spec.unknown.length) {
        html("p", { className: "note", textContent: "Not shown here: " + spec.unknown.join(", ") + "." }, figure);
      }
      this.listen();
      new ResizeObserver(() => this.draw()).observe(figure);
    }

    legend(figure) {
      const seen = new Map();
      for (const mark of this.spec.marks) {
        if (mark.label && !seen.has(mark.label) && mark.type !== "text") seen.set(mark.label, mark);
      }
      if (!seen.size) return;
      const list = html("ul", { className: "legend" }, figure);
      for (const [label, mark] of seen) {
        const button = html("button", { type: "button" }, html("li", {}, list));
        button.setAttribute("aria-pressed", "true");
        const line = html("i", {}, button);
        const colour = ink(mark.colour || "#888888");
        if (mark.type === "points" || mark.drawn === false) {
          line.className = "dot";
          line.style.background = colour;
        }
        line.style.borderTopColor = colour;
        line.style.borderTopStyle = mark.dash ? "dashed" : "solid";
        line.style.opacity = Math.max(0.3, mark.alpha === undefined ? 1 : mark.alpha);
        html("span", { textContent: label }, button);
        button.addEventListener("click", () => {
          const shown = this.hidden.has(label);
          if (shown) this.hidden.delete(label);
          else this.hidden.add(label);
          button.setAttribute("aria-pressed", String(shown));
          this.draw();
        });
      }
    }

    scaleOf(figure) {
      const image = this.spec.marks.find((mark) => mark.type === "image");
      if (!image) return;
      const ramp = html("div", { className: "ramp" }, figure);
      ramp.style.background = "linear-gradient(to right," + image.ramp.join(",") + ")";
      const ends = html("div", { className: "ends" }, figure);
      for (const text of [format(image.low), image.unit || "", format(image.high)]) {
        html("span", { textContent: text }, ends);
      }
      if (image.averaged > 1) {
        const text = `Each cell is the mean of ${image.averaged} x ${image.averaged} values.`;
        html("p", { className: "note", textContent: text }, figure);
      }
    }

    /* position of a value on the page, and back */
    at(name, value) {
      const axis = this.spec[name], [low, high] = this.view[name];
      const t = axis.log ? Math.log10 : Number;
      const share = axis.log && value <= 0 ? -1e4 : (t(value) - t(low)) / (t(high) - t(low));
      const { left, top, width, height } = this.box;
      return name === "x" ? left + share * width : top + (1 - share) * height;
    }

    value(name, place) {
      const axis = this.spec[name], [low, high] = this.view[name];
      const { left, top, width, height } = this.box;
      const share = name === "x" ? (place - left) / width : 1 - (place - top) / height;
      if (!axis.log) return low + share * (high - low);
      return 10 ** (Math.log10(low) + share * (Math.log10(high) - Math.log10(low)));
    }

    zoom(factor, px, py) {
      const { left, top, width, height } = this.box;
      const centre = { x: px === undefined ? left + width / 2 : px, y: py === undefined ? top + height / 2 : py };
      for (const [name, start, length] of [["x", left, width], ["y", top, height]]) {
        const near = centre[name] - (centre[name] - start) * factor;
        const far = near + length * factor;
        const ends = name === "x" ? [near, far] : [far, near];
        this.view[name] = ends.map((place) => this.value(name, place));
      }
      this.draw();
    }

    shift(dx, dy) {
      const { left, top, width, height } = this.box;
      const x = [left + dx * width, left + (1 + dx) * width].map((place) => this.value("x", place));
      const y = [top + (1 + dy) * height, top + dy * height].map((place) => this.value("y", place));
      this.view = { x, y };
      this.draw();
    }

    reset() {
      this.view = { x: this.home.x.slice(), y: this.home.y.slice() };
      this.draw();
    }

    draw() {
      const width = Math.max(240, Math.round(this.figure.clientWidth - 24));
      const height = Math.round(Math.min(420, Math.max(240, 0.66 * width)));
      const { spec, svg, view } = this;
      const yTicks = ticksOf(spec.y, ...view.y, height / 50);
      const widest = Math.max(2, ...yTicks.map((tick) => tick.text.length));
      const left = Math.min(0.45 * width, 30 + 7 * widest), right = 12, top = 10;
      const room = width - left - right;
      let xTicks = ticksOf(spec.x, ...view.x, room / 70);
      const longest = Math.max(1, ...xTicks.map((tick) => tick.text.length));
      const turned = spec.x.ticks && longest * 7 * xTicks.length > room;
      const bottom = (turned ? Math.min(110, 18 + 5 * longest) : 22) + 20;
      this.box = { left, top, width: room, height: height - top - bottom };
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.replaceChildren();
      const { box } = this;
      const clip = make("clipPath", { id: this.clip }, make("defs", {}, svg));
      make("rect", { x: box.left, y: box.top, width: box.width, height: box.height }, clip);
      for (const tick of xTicks) {
        const x = this.at("x", tick.at);
        make("line", { class: "grid", x1: x, x2: x, y1: box.top, y2: box.top + box.height }, svg);
        const y = box.top + box.height + 15;
        const look = turned
          ? { x, y: y - 4, "text-anchor": "end", transform: `rotate(-40 ${x} ${y - 4})` }
          : { x, y, "text-anchor": "middle" };
        make("text", look, svg).textContent = turned && tick.text.length > 18 ? tick.text.slice(0, 17) + "…" : tick.text;
      }
      for (const tick of yTicks) {
        const y = this.at("y", tick.at);
        make("line", { class: "grid", x1: box.left, x2: box.left + box.width, y1: y, y2: y }, svg);
        make("text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, svg).textContent = tick.text;
      }
      const group = make("g", { class: "marks", "clip-path": `url(#${this.clip})` }, svg);
      this.points = [];
      this.boxes = [];
      for (const mark of spec.marks) {
        if (!this.hidden.has(mark.label)) this.mark(mark, group);
      }
      make("rect", { class: "frame", x: box.left, y: box.top, width: box.width, height: box.height }, svg);
      const middle = box.top + box.height / 2;
      const below = { class: "label", y: height - 5, "text-anchor": "middle" };
      const under = make("text", below, svg);
      under.setAttribute("x", centred(under, spec.x.label, box.left + box.width / 2, width));
      const beside = make("text", { class: "label", "text-anchor": "middle" }, svg);
      const y = centred(beside, spec.y.label, middle, height);
      for (const [name, value] of Object.entries({ x: 12, y, transform: `rotate(-90 12 ${y})` })) {
        beside.setAttribute(name, value);
      }
      this.over = make("g", { "pointer-events": "none" }, svg);
    }

    path(xs, ys, step) {
      let path = "", pen = "M", before = null;
      xs.forEach((x, index) => {
        const y = ys[index];
        if (x === null || y === null) {
          pen = "M";
          before = null;
          return;
        }
        const px = this.at("x", x).toFixed(2), py = this.at("y", y).toFixed(2);
        if (before && step === "post") path += `L${px} ${before[1]}`;
        if (before && step === "pre") path += `L${before[0]} ${py}`;
        if (before && step === "mid") {
          const half = ((Number(before[0]) + Number(px)) / 2).toFixed(2);
          path += `L${half} ${before[1]}L${half} ${py}`;
        }
        path += `${pen}${px} ${py}`;
        pen = "L";
        before = [px, py];
      });
      return path;
    }

    mark(mark, group) {
      const colour = mark.colour ? ink(mark.colour) : "var(--ink)";
      const stroke = (attributes) => {
        const node = make("path", { fill: "none", "stroke-width": mark.width || 1.5, ...attributes }, group);
        node.style.stroke = colour;
        node.style.opacity = mark.alpha === undefined ? 1 : mark.alpha;
        if (mark.dash) node.setAttribute("stroke-dasharray", mark.dash);
        return node;
      };
      const dot = (x, y, radius, fill) => {
        const node = make("circle", { cx: x, cy: y, r: radius }, group);
        node.style.fill = fill;
        node.style.opacity = mark.alpha === undefined ? 1 : mark.alpha;
      };
      if (mark.type === "line" || mark.type === "points") {
        if (mark.type === "line" && mark.drawn) stroke({ d: this.path(mark.x, mark.y, mark.step) });
        mark.x.forEach((x, index) => {
          const y = mark.y[index];
          if (x === null || y === null) return;
          const px = this.at("x", x), py = this.at("y", y);
          const own = mark.colours ? ink(mark.colours[index]) : colour;
          if (mark.type === "points" || mark.marker) dot(px, py, mark.radius || 3, own);
          this.points.push({ px, py, x, y, mark });
        });
      } else if (mark.type === "hline" || mark.type === "vline") {
        const { left, top, width, height } = this.box;
        const name = mark.type === "hline" ? "y" : "x", place = this.at(name, mark.at);
        stroke({ d: name === "y" ? `M${left} ${place}h${width}` : `M${place} ${top}v${height}` });
      } else if (mark.type === "segments") {
        stroke({ d: mark.lines.map(([xs, ys]) => this.path(xs, ys, "")).join("") });
      } else if (mark.type === "area") {
        const shape = mark.rings.map(([xs, ys]) => this.path(xs, ys, "") + (mark.filled === false ? "" : "Z")).join("");
        const node = make("path", { d: shape, "fill-rule": "evenodd" }, group);
        node.style.fill = mark.filled === false ? "none" : colour;
        node.style.stroke = mark.filled === false ? colour : "none";
        node.style.opacity = mark.alpha;
      } else if (mark.type === "bar") {
        const [x0, y0, x1, y1] = mark.box;
        const xs = [this.at("x", x0), this.at("x", x1)].sort((a, b) => a - b);
        const ys = [this.at("y", y0), this.at("y", y1)].sort((a, b) => a - b);
        const size = { x: xs[0], y: ys[0], width: Math.max(0.5, xs[1] - xs[0]), height: Math.max(0.5, ys[1] - ys[0]) };
        const node = make("rect", size, group);
        node.style[mark.filled ? "fill" : "stroke"] = colour;
        if (!mark.filled) node.style.fill = "none";
        node.style.opacity = mark.alpha;
        this.boxes.push({ ...size, mark });
      } else if (mark.type === "image") {
        this.image(mark, group);
      } else if (mark.type === "text") {
        const { left, top, width, height } = this.box;
        const x = mark.inside ? this.at("x", mark.x) : left + mark.x * width;
        const y = mark.inside ? this.at("y", mark.y) : top + (1 - mark.y) * height;
        const anchor = { left: "start", center: "middle", right: "end" }[mark.align] || "start";
        const node = make("text", { x, y, "text-anchor": anchor }, group);
        node.textContent = mark.text;
        node.style.fill = colour;
      }
    }

    image(mark, group) {
      const rows = mark.values.length, columns = rows ? mark.values[0].length : 0;
      if (!mark.picture && rows && columns) {
        const canvas = html("canvas", { width: columns, height: rows });
        const pen = canvas.getContext("2d");
        mark.shades.forEach((line, row) => line.forEach((shade, column) => {
          if (shade === null) return;
          const place = Math.round(Math.min(1, Math.max(0, shade)) * (mark.ramp.length - 1));
          pen.fillStyle = mark.ramp[place];
          pen.fillRect(column, row, 1, 1);
        }));
        mark.picture = canvas.toDataURL();
      }
      const [x0, x1, y0, y1] = mark.extent;
      const xs = [this.at("x", x0), this.at("x", x1)], ys = [this.at("y", y0), this.at("y", y1)];
      const [left, top] = [Math.min(...xs), Math.min(...ys)];
      const width = Math.abs(xs[1] - xs[0]), height = Math.abs(ys[1] - ys[0]);
      const flip = `translate(${xs[0] < xs[1] ? left : left + width} ${ys[0] < ys[1] ? top : top + height}) ` +
        `scale(${xs[0] < xs[1] ? 1 : -1} ${ys[0] < ys[1] ? 1 : -1})`;
      const node = make("image", { width, height, href: mark.picture || "", preserveAspectRatio: "none", transform: flip }, group);
      node.style.imageRendering = "pixelated";
      this.boxes.push({ x: left, y: top, width, height, mark });
    }

    /* ---- what a reader does ---- */

    listen() {
      const { svg } = this;
      let start = null, frame = null;
      const place = (event) => {
        const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
        return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      };
      svg.addEventListener("pointerdown", (event) => {
        this.hover(...place(event));
        if (event.pointerType === "touch" || event.button !== 0) return;
        start = place(event);
        svg.setPointerCapture(event.pointerId);
      });
      svg.addEventListener("pointermove", (event) => {
        const [x, y] = place(event);
        if (!start) {
          this.hover(x, y);
          return;
        }
        if (!frame) frame = make("rect", { class: "frame", "stroke-dasharray": "4 3" }, this.over);
        const size = { x: Math.min(x, start[0]), y: Math.min(y, start[1]), width: Math.abs(x - start[0]), height: Math.abs(y - start[1]) };
        for (const name in size) frame.setAttribute(name, size[name]);
      });
      svg.addEventListener("pointerup", (event) => {
        const begin = start, [x, y] = place(event);
        start = null;
        if (frame) frame.remove();
        frame = null;
        if (!begin || Math.abs(x - begin[0]) < 8 || Math.abs(y - begin[1]) < 8) return;
        const sides = (name, a, b) => {
          const ends = [this.value(name, a), this.value(name, b)].sort((p, q) => p - q);
          return this.view[name][0] > this.view[name][1] ? ends.reverse() : ends;
        };
        this.view = { x: sides("x", begin[0], x), y: sides("y", begin[1], y) };
        this.draw();
      });
      svg.addEventListener("pointerleave", () => {
        this.tip.hidden = true;
        if (this.over) this.over.replaceChildren();
      });
      svg.addEventListener("dblclick", () => this.reset());
      svg.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? 0.8 : 1.25, ...place(event));
      }, { passive: false });
      svg.addEventListener("keydown", (event) => {
        const acts = {
          "+": () => this.zoom(0.6), "=": () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6), 0: () => this.reset(),
          ArrowLeft: () => this.shift(-0.2, 0), ArrowRight: () => this.shift(0.2, 0),
          ArrowUp: () => this.shift(0, -0.2), ArrowDown: () => this.shift(0, 0.2),
        };
        if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        acts[event.key]();
      });
    }

    hover(x, y) {
      this.over.replaceChildren();
      let best = null, distance = 32 ** 2;
      for (const point of this.points) {
        const away = (point.px - x) ** 2 + (point.py - y) ** 2;
        if (away < distance) [best, distance] = [point, away];
      }
      let text = best ? this.pointText(best) : null;
      if (best) make("circle", { class: "frame", cx: best.px, cy: best.py, r: 6 }, this.over);
      else {
        const inside = this.boxes.filter((box) =>
          x >= box.x && x <= box.x + box.width && y >= box.y && y <= box.y + box.height);
        if (inside.length) text = this.boxText(inside[inside.length - 1], x, y);
      }
      this.tip.hidden = text === null;
      if (text === null) return;
      this.tip.textContent = text;
      const scale = this.svg.clientWidth / this.svg.viewBox.baseVal.width;
      const px = (best ? best.px : x) * scale + this.svg.offsetLeft, py = (best ? best.py : y) * scale + this.svg.offsetTop;
      const room = this.figure.clientWidth - this.tip.offsetWidth - 4;
      this.tip.style.left = Math.max(4, Math.min(room, px + 12)) + "px";
      this.tip.style.top = Math.max(0, py - this.tip.offsetHeight - 10) + "px";
    }

    name(axis, value) {
      const own = (this.spec[axis].ticks || []).find(([at]) => at === value);
      return own ? own[1] : format(value);
    }

    pointText(point) {
      const head = `${this.spec.x.label || "x"}: ${this.name("x", point.x)}`;
      if (point.mark.type !== "line") {
        return [point.mark.label, head, `${this.spec.y.label || "y"}: ${this.name("y", point.y)}`].filter(Boolean).join("\n");
      }
      const rows = this.points.filter((other) => other.mark.type === "line" && other.x === point.x && other.mark.label);
      if (!rows.includes(point)) rows.push(point);
      const shown = rows.slice(0, 12).map((row) => `${row.mark.label || this.spec.y.label || "y"}: ${this.name("y", row.y)}`);
      return [head, ...new Set(shown)].join("\n");
    }

    boxText(box, x, y) {
      const { mark } = box;
      if (mark.type === "bar") {
        const [x0, y0, x1, y1] = mark.box;
        const upright = Math.abs(this.at("y", y0) - this.at("y", this.spec.y.log ? y0 : 0)) < 1 || y0 === 0;
        const span = upright ? [x0, x1] : [y0, y1], size = upright ? y1 : x1;
        const along = upright ? "x" : "y", across = upright ? "y" : "x";
        const middle = (span[0] + span[1]) / 2;
        const own = (this.spec[along].ticks || []).find(([at]) => at >= span[0] && at <= span[1]);
        const where = own ? own[1] : `${format(span[0])} to ${format(span[1])}`;
        const title = this.spec[along].label || (Number.isFinite(middle) ? "at" : "");
        return [mark.label, `${title}: ${where}`, `${this.spec[across].label || "value"}: ${format(size)}`].filter(Boolean).join("\n");
      }
      const [x0, x1, y0, y1] = mark.extent, rows = mark.values.length, columns = mark.values[0].length;
      const column = Math.min(columns - 1, Math.max(0, Math.floor(((this.value("x", x) - x0) / (x1 - x0)) * columns)));
      const row = Math.min(rows - 1, Math.max(0, Math.floor(((this.value("y", y) - y0) / (y1 - y0)) * rows)));
      const centre = { x: x0 + ((column + 0.5) * (x1 - x0)) / columns, y: y0 + ((row + 0.5) * (y1 - y0)) / rows };
      return `${this.spec.x.label || "column"}: ${this.name("x", centre.x)}\n${this.spec.y.label || "row"}: ${this.name("y", centre.y)}\n${mark.unit || "value"}: ${format(mark.values[row][column])}`;
    }
  }

  for (const place of document.querySelectorAll(".charts")) {
    for (const spec of data.figures[place.dataset.figure]) new Chart(place, spec);
  }
  document.documentElement.dataset.ready = "yes";
})();
