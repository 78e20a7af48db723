"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { runs, tokens, targets } = data;
const PAGE = 50;
const NAMES = {
  target_name: "target", prompt_length: "length", p_star: "p_star accuracy",
  drop: "drop, %", prompt_f1: "F1", margin: "least margin", learning_rate: "learning rate",
};
const TEXTS = new Set(["target_name", "model", "task", "init", "constraint", "optimizer", "keep"]);
const DIGITS = { accuracy: 3, drop: 1, prompt_f1: 2 };

// --- helpers -------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function drawing(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const number = (value, digits) =>
  value == null ? "–" : digits === undefined ? String(value) : value.toFixed(digits);
const signed = (value, digits) => (value > 0 ? "+" : "") + number(value, digits).replace("-", "−");

// These characters stand in for white space; other control characters get one in common.
const MARKS = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };
function visible(text) {
  const parts = text.split(/([\x00-\x20])/).filter((part) => part !== "");
  return parts.map((part) =>
    part.length === 1 && part <= " " ? element("i", {}, MARKS[part] ?? "␀") : part);
}

// --- a prompt ------------------------------------------------------------------------------------

// All margins from this one on have the fullest color.
const margins = runs.flatMap((run) => (run.far ? marginsOf(run) : [])).sort((a, b) => a - b);
const fullMargin = margins[Math.floor(0.95 * (margins.length - 1))] || 1;

function marginsOf(run) {
  const k = run.near.length / run.ids.length;
  return k < 2 ? [] : run.ids.map((_, i) => run.far[i * k + 1] - run.far[i * k]);
}

function promptView(run) {
  const target = targets[run.target];
  const aimed = target.ids.length > 0;
  const view = element("div", { class: "prompt", "data-id": run.id });
  view.append(
    element("blockquote", {}, aimed ? `“${target.text}”` : "p_star, the best prompt without a target"),
    description(run, aimed), strip(run, target), legend(run, aimed), facts(run));
  return view;
}

function description(run, aimed) {
  const said = element("p", { class: "what" }, "On ", element("b", {}, run.task), ": accuracy ",
    element("b", {}, number(run.accuracy, 3)));
  if (run.p_star !== undefined) {
    said.append(` where p_star has ${number(run.p_star, 3)}, a ${run.drop < 0 ? "gain" : "drop"} of `,
      element("b", {}, `${number(Math.abs(run.drop), 1)} %`));
  }
  if (aimed) said.append(". Reads as its target with F1 ", element("b", {}, number(run.prompt_f1, 2)));
  said.append(`. ${run.model}, ${aimed ? held(run) : ""}seed ${run.seed}, ` +
    `${run.prompt_length} tokens`);
  if (run.diverged !== null) said.append(`; diverged at step ${run.diverged}`);
  said.append(".");
  return said;
}

function held(run) {
  if (run.constraint === "cell") return "kept in its cells, ";
  const found = run.gamma_found ? ` (found while tuning: ${run.gamma_found})` : "";
  return `gamma ${run.gamma}${found}, `;
}

function strip(run, target) {
  const own = run.far ? marginsOf(run) : [];
  const list = element("ol", { class: "strip", "aria-label": "tokens of the prompt" });
  run.ids.forEach((read, i) => {
    const aim = target.ids[i];
    const differs = aim !== undefined && aim !== read;
    const share = own.length ? Math.min(1, Math.max(0, own[i] / fullMargin)) : 0;
    const label = (aim === undefined ? "" : `target ${JSON.stringify(tokens[aim])}, `) +
      `reads as ${JSON.stringify(tokens[read])}` +
      (own.length ? `, margin ${own[i].toPrecision(3)}` : "");
    const button = element("button", {
      type: "button", class: "token", "aria-label": label, tabindex: i ? -1 : 0,
      style: `--margin-share: ${share.toFixed(3)}`,
    });
    if (aim !== undefined) button.append(element("span", { class: "target" }, ...visible(tokens[aim])));
    button.append(element("span", { class: differs ? "read differs" : "read" }, ...visible(tokens[read])));
    if (showOthers.checked) {
      for (const ids of run.others ?? []) {
        const same = ids[i] === (aim ?? read);
        button.append(element("span", { class: same ? "other" : "other differs" },
          ...visible(tokens[ids[i]])));
      }
    }
    const show = () => showCard(button, run, i, aim);
    button.addEventListener("mouseenter", show);
    button.addEventListener("focus", show);
    button.addEventListener("click", show);
    button.addEventListener("mouseleave", () => document.activeElement !== button && hideCard());
    button.addEventListener("blur", hideCard);
    list.append(element("li", {}, button));
  });
  list.addEventListener("keydown", moveAlong);
  return list;
}

function moveAlong(event) {
  const buttons = [...event.currentTarget.querySelectorAll(".token")];
  const here = buttons.indexOf(document.activeElement);
  const to = {
    ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1,
    Home: 0, End: buttons.length - 1,
  }[event.key];
  if (!buttons[to]) return;
  event.preventDefault();
  buttons[here].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
}

function legend(run, aimed) {
  const said = element("p", { class: "legend" });
  if (aimed) said.append(element("span", {}, "Above: the target."));
  said.append(element("span", {}, aimed ? "Below: the nearest token." : "The nearest tokens."));
  if (showOthers.checked) {
    said.append(element("span", {}, `Under it: the nearest token by ${data.metrics.slice(1).join(", by ")}.`));
  }
  if (run.far) {
    said.append(element("span", {}, "Margin to the runner-up: 0", element("span", { class: "scale" }),
      `${fullMargin.toPrecision(2)} or more`));
  }
  return said;
}

// --- the nearest tokens --------------------------------------------------------------------------

const card = document.getElementById("card");

function showCard(button, run, i, aim) {
  hideCard();
  const k = run.far ? run.near.length / run.ids.length : 0;
  if (!k) return;
  const near = run.near.slice(i * k, (i + 1) * k);
  const far = run.far.slice(i * k, (i + 1) * k);
  const most = Math.max(...far);
  const rows = near.map((token, j) => element("tr", { class: token === aim ? "aimed" : null },
    element("td", { class: "name" }, ...visible(tokens[token])),
    element("td", { class: "number" }, far[j].toPrecision(3)),
    element("td", { class: "bar" },
      element("div", { style: `width: ${(100 * far[j] / (most || 1)).toFixed(1)}%` }))));
  card.replaceChildren(
    element("p", {}, `The ${k} nearest tokens and their squared distances`),
    element("table", {}, element("tbody", {}, ...rows)));
  card.hidden = false;
  button.setAttribute("aria-describedby", "card");
  const at = button.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - card.offsetWidth - 8));
  const below = at.bottom + 8;
  const fits = below + card.offsetHeight < innerHeight || at.top < card.offsetHeight + 16;
  card.style.left = `${left + scrollX}px`;
  card.style.top = `${(fits ? below : at.top - card.offsetHeight - 8) + scrollY}px`;
}

function hideCard() {
  card.hidden = true;
  for (const button of document.querySelectorAll("[aria-describedby=card]")) {
    button.removeAttribute("aria-describedby");
  }
}

document.addEventListener("keydown", (event) => event.key === "Escape" && hideCard());

// --- the curve and the command -------------------------------------------------------------------

function facts(run) {
  const repeat = `${data.commands[run.command]} --only=${run.id}`;
  const copy = element("button", { type: "button", class: "noprint" }, "Copy");
  const words = repeat.split(/ (?=--)/);
  const code = element("pre", {}, ...words.flatMap((word, i) => [i ? " " : "", element("span", {}, word)]));
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(repeat);
      copy.textContent = "Copied";
    } catch {  // some browsers do not let pages from a disk write to the clipboard
      getSelection().selectAllChildren(code);
    }
  });
  return element("div", { class: "facts" },
    element("div", {}, element("h3", {}, "Training curve, on dev"), curve(run)),
    element("div", {}, element("h3", {}, "The command that repeats this run"), code, copy));
}

function curve(run) {
  const [width, height, left, right, top, bottom] = [420, 190, 30, 92, 10, 26];
  const last = run.curve.at(-1)[0];
  const x = (step) => left + (width - left - right) * step / last;
  const y = (share) => height - bottom - (height - top - bottom) * share;
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.append(drawing("title", {}, "accuracy and prompt F1 along training"));
  for (const share of [0, 0.5, 1]) {
    svg.append(
      drawing("line", { x1: left, x2: width - right, y1: y(share), y2: y(share), stroke: "var(--rule)" }),
      drawing("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end", fill: "var(--quiet)" }, String(share)));
  }
  for (const [step] of run.curve) {
    svg.append(drawing("text", {
      x: x(step), y: height - 8, "text-anchor": "middle", fill: "var(--quiet)",
    }, String(step)));
  }
  const series = [[1, "accuracy", "var(--accent)"], [2, "prompt F1", "var(--wayward)"]];
  const ends = [];
  for (const [column, name, color] of series) {
    const points = run.curve.filter((point) => point[column] !== null);
    if (!points.length) continue;
    const places = points.map((point) => `${x(point[0])},${y(point[column])}`);
    svg.append(drawing("polyline", {
      points: places.join(" "), fill: "none", stroke: color, "stroke-width": 2,
    }));
    for (const point of points) {
      svg.append(drawing("circle", { cx: x(point[0]), cy: y(point[column]), r: 3, fill: color }));
    }
    ends.push([y(points.at(-1)[column]) + 4, `${name} ${number(points.at(-1)[column], 2)}`, color]);
  }
  ends.sort((a, b) => a[0] - b[0]);
  ends.forEach(([at, text, color], i) => {
    const place = i && at - ends[i - 1][0] < 14 ? ends[i - 1][0] + 14 : at;
    ends[i][0] = place;
    svg.append(drawing("text", { x: width - right + 8, y: place, fill: color }, text));
  });
  return svg;
}

// --- the prompt at the top -----------------------------------------------------------------------

const hero = document.getElementById("hero");
const othersLabel = document.getElementById("others");
const showOthers = othersLabel.querySelector("input");
let heroAt = data.hero;

function showHero() {
  hideCard();
  hero.replaceChildren(promptView(runs[heroAt]));
}

function turn(by) {
  heroAt = (heroAt + by + runs.length) % runs.length;
  showHero();
}

document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
if (data.metrics.length > 1 && runs.some((run) => run.others)) {
  othersLabel.hidden = false;
  othersLabel.querySelector("span").textContent = `show the nearest tokens by ${data.metrics.slice(1).join(" and ")}, too`;
  showOthers.addEventListener("change", () => { showHero(); showRows(); });
}

// --- the table of runs ---------------------------------------------------------------------------

const head = document.querySelector("#runs thead");
const body = document.querySelector("#runs tbody");
const find = document.getElementById("find");
const reading = document.getElementById("reading");
const selects = [];
const state = { sort: null, down: false, page: 0, open: null };

const haystacks = runs.map((run) =>
  [run.id, run.target_name, run.task, run.model, run.init, targets[run.target].text, run.text]
    .join("\n").toLowerCase());

function makeFilters() {
  for (const name of ["model", "task", "set", "init"]) {
    const values = [...new Set(runs.map((run) => run[name]))].sort();
    if (values.length < 2) continue;
    const select = element("select", { name, onchange: filter },
      element("option", { value: "" }, "all"),
      ...values.map((value) => element("option", { value }, value)));
    selects.push(select);
    document.getElementById("filters").append(element("label", {}, name, select));
  }
  find.addEventListener("input", filter);
  reading.addEventListener("change", filter);
}

function filter() {
  state.page = 0;
  showRows();
}

function chosen() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  runs.forEach((run, i) => {
    if (!words.every((word) => haystacks[i].includes(word))) return;
    if (!selects.every((select) => !select.value || run[select.name] === select.value)) return;
    const kind = run.prompt_f1 == null ? "p_star" : run.prompt_f1 >= F1_THRESHOLD ? "yes" : "no";
    if (reading.value && reading.value !== kind) return;
    found.push(run);
  });
  if (state.sort) found.sort(byColumn);
  return found;
}

// Missing values come last in both orders.
function byColumn(first, second) {
  const [a, b] = [first[state.sort], second[state.sort]];
  if (a == null || b == null) return (a == null) - (b == null);
  const order = TEXTS.has(state.sort) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return state.down ? -order : order;
}

function makeHead() {
  head.replaceChildren(element("tr", {}, ...data.columns.map((name) => {
    const button = element("button", { type: "button" }, NAMES[name] ?? name.replace("_", " "));
    const cell = element("th", {
      scope: "col", class: TEXTS.has(name) ? null : "number", "data-name": name,
    }, button);
    button.addEventListener("click", () => {
      state.down = state.sort === name && !state.down;
      state.sort = name;
      state.page = 0;
      for (const other of head.querySelectorAll("th")) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      showRows();
    });
    return cell;
  })));
}

function cells(run) {
  return data.columns.map((name) => {
    const value = run[name];
    if (name === "target_name") {
      const open = String(state.open === run.id);
      const button = element("button", { type: "button", class: "open", "aria-expanded": open }, value);
      button.addEventListener("click", () => {
        state.open = state.open === run.id ? null : run.id;
        showRows();
        body.querySelector(`tr[data-id="${run.id}"] button`)?.focus();
      });
      return element("td", {}, button);
    }
    if (TEXTS.has(name)) return element("td", {}, value);
    const text = ["margin", "distance"].includes(name) && value != null
      ? Number(value.toPrecision(3)).toString()
      : (name === "drop" ? signed : number)(value, DIGITS[name]);
    return element("td", { class: "number" }, text);
  });
}

function showRows() {
  hideCard();
  const found = chosen();
  const first = state.page * PAGE;
  const page = found.slice(first, first + PAGE);
  body.replaceChildren(...page.flatMap((run) => {
    const row = element("tr", { "data-id": run.id }, ...cells(run));
    if (state.open !== run.id) return [row];
    const cell = element("td", { colspan: data.columns.length }, promptView(run));
    return [row, element("tr", { class: "detail" }, cell)];
  }));
  document.getElementById("shown").textContent = found.length
    ? `${first + 1} to ${first + page.length} of ${found.length} runs`
    : "no run matches";
  document.getElementById("back").disabled = first === 0;
  document.getElementById("on").disabled = first + PAGE >= found.length;
}

document.getElementById("back").addEventListener("click", () => { state.page -= 1; showRows(); });
document.getElementById("on").addEventListener("click", () => { state.page += 1; showRows(); });
addEventListener("beforeprint", () => {
  for (const table of document.querySelectorAll("details")) table.open = true;
});

makeFilters();
makeHead();
showHero();
showRows();
