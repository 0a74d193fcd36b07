// Hover shows the values of all curves at a step; legends and the switch choose what is shown.
"use strict";
(() => {
  const values = JSON.parse(document.getElementById("values").textContent);
  const tip = document.getElementById("tip");
  const section = document.getElementById("curves");
  const axis = () => (section && section.classList.contains("show-time") ? "time" : "epochs");
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // The x coordinates of a path's points: `M x y`, then relative `l dx dy`.
  const xs = path => {
    let x = 0;
    const out = [];
    for (const [, command, dx] of path.getAttribute("d").matchAll(/([Ml])(-?\d+) -?\d+/g)) {
      x = command === "M" ? +dx : x + +dx;
      out.push(x);
    }
    return out;
  };
  const cache = new Map();
  const pointsOf = figure => {
    const key = figure.id + axis();
    if (!cache.has(key)) {
      const lines = values.charts[figure.id].filter(p => p.axis === axis()).map(p => ({
        ...p, xs: xs(figure.querySelector(`.by-${p.axis} [data-line="${p.line}"]`)) }));
      cache.set(key, lines);
    }
    return cache.get(key);
  };
  const nearest = (sorted, x) => {
    let low = 0, high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - sorted[low - 1] < sorted[low] - x ? low - 1 : low;
  };

  const place = (x, y) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), left = x + 16 + box.width > innerWidth - 8 ? x - 16 - box.width : x + 16;
    tip.style.left = Math.max(8, Math.min(left, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(8, Math.min(y - box.height / 2, innerHeight - box.height - 8)) + "px";
  };
  const cause = mark => {
    const node = make("div", "cause");
    const [title, detail] = values.marks[mark.dataset.mark];
    node.append(make("div", "", title), make("div", "head", detail));
    return node;
  };
  const show = (figure, share, x, y, marks) => {
    const picture = figure.querySelector(`.by-${axis()}`), rows = [];
    let head = "";
    for (const line of pointsOf(figure)) {
      const group = [...figure.querySelectorAll("[data-group]")].find(g => g.dataset.group === line.group);
      if ((group && group.classList.contains("off")) || !line.xs.length) continue;
      const i = nearest(line.xs, share * 10000);
      if (Math.abs(line.xs[i] - share * 10000) > 700) continue;
      const row = make("div", "row");
      row.append(make("i", `swatch c${line.color}`), make("span", "", line.label), make("b", "", line.values[i]));
      rows.push(row);
      if (!head) head = `step ${line.steps[i].toLocaleString("en")}`;
    }
    const low = +picture.dataset.low, at = low + share * (+picture.dataset.high - low);
    const unit = picture.querySelector(".x-title").textContent;
    tip.replaceChildren(make("div", "head", `${head ? head + " · " : ""}${unit} ${at.toPrecision(3)}`), ...rows, ...marks.map(cause));
    place(x, y);
  };

  const crosses = share => {
    for (const figure of document.querySelectorAll(".chart .plot")) {
      let cross = figure.querySelector(".cross");
      if (share === null) { if (cross) cross.remove(); continue; }
      if (!cross) figure.append(cross = make("div", "cross"));
      cross.style.cssText = `--epochs:${100 * share}%;--time:${100 * share}%`;
    }
  };
  const showFocused = mark => {
    if (!mark.matches(".mark:focus-visible")) return false;
    const plot = mark.closest(".plot"), at = mark.getBoundingClientRect(), box = plot.getBoundingClientRect();
    const x = at.left + at.width / 2;
    show(plot.closest(".chart"), (x - box.left) / box.width, x, at.top + 60, [mark]);
    return true;
  };
  const hide = () => { tip.hidden = true; crosses(null); };
  for (const figure of document.querySelectorAll(".chart[data-chart]")) {
    const plot = figure.querySelector(".plot");
    const move = event => {
      const box = plot.getBoundingClientRect(), share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const near = [...plot.querySelectorAll(".mark")].filter(mark => {
        const at = mark.getBoundingClientRect();
        return Math.abs(at.left + at.width / 2 - event.clientX) < 8;
      });
      crosses(share);
      show(figure, share, event.clientX, event.clientY, near);
    };
    plot.addEventListener("pointermove", move);
    plot.addEventListener("pointerdown", move);
    plot.addEventListener("pointerleave", hide);
    for (const mark of plot.querySelectorAll(".mark")) {
      mark.addEventListener("focus", () => showFocused(mark));
      mark.addEventListener("blur", hide);
    }
  }
  // A focused mark may just have been scrolled into view.
  addEventListener("scroll", () => { if (!showFocused(document.activeElement)) hide(); }, { passive: true });
  addEventListener("keydown", event => { if (event.key === "Escape") hide(); });

  for (const button of document.querySelectorAll("[data-toggles]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true", scope = button.closest(".chart") || section;
      button.setAttribute("aria-pressed", on);
      for (const node of scope.querySelectorAll("[data-group]")) {
        if (node.dataset.group === button.dataset.toggles) node.classList.toggle("off", !on);
      }
    });
  }
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => {
      section.classList.toggle("show-time", button.dataset.axis === "time");
      section.classList.toggle("show-epochs", button.dataset.axis !== "time");
      for (const other of document.querySelectorAll("[data-axis]")) other.setAttribute("aria-pressed", other === button);
    });
  }
})();
