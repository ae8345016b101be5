// The stage of labeler/pages/click_page.py: a photo with masks over it, on which a person clicks and drags boxes.
// Runs once, when the page is there. `props.value` is a scene (labeler/scene.py); `trigger` tells Python what was done:
// 'clicked' {x, y, outside}, 'boxed' {x0, y0, x1, y1}, 'dropped' {token, name}, 'refused' {reason, name}, 'undone', 'turned' {by},
// 'poked'; and which scene the person saw: its 'photo_id' and 'version'. Frame: pixels of the photo.
const DRAG_PX = 6;
const root = document.createElement("div");
root.className = "stage";
root.innerHTML = `
  <div class="frame" hidden><img class="photo" draggable="false" alt=""><img class="layer" draggable="false" alt="">
    <div class="marks"></div><div class="rubber" hidden></div></div>
  <div class="empty"><p class="words"></p><p class="hint"></p></div>
  <div class="tip" hidden></div><input type="file" accept="image/*,.tif,.tiff" hidden>`;
const find = (name) => root.querySelector("." + name);
const frame = find("frame"), photo = find("photo"), layer = find("layer"), marks = find("marks"), rubber = find("rubber");
const tip = find("tip"), chooser = root.querySelector("input");
const photos = new Map();
let scene = {}, numbers = null, press = null;

// gradio's client misses an answer where its stream ends while an event is sent; any further event makes it look again.
let poking = null;
function poke() {
  trigger("poked", {});
}
function tell(name, data) {
  trigger(name, { ...data, photo_id: scene.photo_id, version: scene.version });
  clearInterval(poking);
  poking = setInterval(poke, 1000);
}

function place(node, x, y) {
  node.style.left = (100 * x) / scene.size[0] + "%";
  node.style.top = (100 * y) / scene.size[1] + "%";
}

function add_mark(name, x, y) {
  const mark = document.createElement("div");
  mark.className = "mark " + name;
  place(mark, x, y);
  marks.append(mark);
  return mark;
}

function add_box(node, [x0, y0, x1, y1]) {
  place(node, x0, y0);
  node.style.width = (100 * (x1 - x0)) / scene.size[0] + "%";
  node.style.height = (100 * (y1 - y0)) / scene.size[1] + "%";
}

function fit() {
  if (!scene.size) return;
  const [width, height] = scene.size;
  const room = [root.clientWidth, Math.max(320, window.innerHeight - 140)];
  const scale = Math.min(room[0] / width, room[1] / height, 4);
  frame.style.width = Math.round(width * scale) + "px";
  frame.style.height = Math.round(height * scale) + "px";
}

async function read_numbers(source) {
  numbers = null;
  if (!source) return;
  const picture = new Image(), version = scene.version;
  picture.src = source;
  await picture.decode();
  if (version !== scene.version) return; // Another scene came meanwhile.
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  numbers = { width: canvas.width, height: canvas.height, data: context.getImageData(0, 0, canvas.width, canvas.height).data };
}

function draw() {
  if (!element.contains(root)) element.replaceChildren(root);
  clearInterval(poking);
  if ((props.value || {}).photo_id !== scene.photo_id) press = null; // It was meant for the photo of before.
  scene = props.value || {};
  if (scene.photo) {
    photos.clear();
    photos.set(scene.photo_id, scene.photo);
  }
  const source = photos.get(scene.photo_id);
  frame.hidden = !source;
  find("empty").hidden = Boolean(source);
  find("words").textContent = scene.message || "";
  find("words").classList.toggle("error", Boolean(scene.failed));
  find("hint").textContent = scene.can_drop ? "Drop a photo here, or click to choose one." : "";
  root.classList.toggle("inviting", !source && Boolean(scene.can_drop));
  root.dataset.version = scene.version || "";
  root.dataset.size = scene.size || "";
  if (!source) return;
  if (photo.src !== source) photo.src = source;
  layer.hidden = !scene.layer;
  if (scene.layer) layer.src = scene.layer;
  marks.replaceChildren();
  rubber.hidden = true;
  tip.hidden = true;
  for (const [x, y, label] of scene.points || []) add_mark(label ? "inside" : "outside", x, y);
  if (scene.corner) add_mark("corner", ...scene.corner);
  if (scene.box) add_box(add_mark("box", 0, 0), scene.box);
  read_numbers(scene.numbers);
  fit();
}

function to_photo(event) {
  const area = frame.getBoundingClientRect();
  const inside = (value, from, length) => Math.min(Math.max((value - from) / length, 0), 1);
  return [
    inside(event.clientX, area.left, area.width) * scene.size[0],
    inside(event.clientY, area.top, area.height) * scene.size[1],
  ];
}

function is_far(event) {
  return press && Math.hypot(event.clientX - press.event.clientX, event.clientY - press.event.clientY) > DRAG_PX;
}

function show_tip(event) {
  if (!numbers || !scene.tips) return;
  const [x, y] = to_photo(event);
  const column = Math.min(Math.floor((x / scene.size[0]) * numbers.width), numbers.width - 1);
  const row = Math.min(Math.floor((y / scene.size[1]) * numbers.height), numbers.height - 1);
  const at = 4 * (row * numbers.width + column);
  const number = numbers.data[at] + 256 * numbers.data[at + 1];
  tip.hidden = number === 0;
  if (number === 0) return;
  tip.textContent = scene.tips[number - 1];
  const area = root.getBoundingClientRect();
  tip.style.left = event.clientX - area.left + 14 + "px";
  tip.style.top = event.clientY - area.top + 14 + "px";
}

frame.addEventListener("pointerdown", (event) => {
  if ((event.button !== 0 && event.button !== 2) || !event.isPrimary) return; // Of a mouse left and right; of fingers the first.
  press = { event, at: to_photo(event) };
  frame.setPointerCapture(event.pointerId);
});
frame.addEventListener("pointermove", (event) => {
  if (!press) return show_tip(event);
  tip.hidden = true;
  if (!scene.can_box || !is_far(event)) return;
  const [[x0, y0], [x1, y1]] = [press.at, to_photo(event)];
  add_box(rubber, [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)]);
  rubber.hidden = false;
});
frame.addEventListener("pointerup", (event) => {
  if (!press) return;
  const [[x0, y0], [x1, y1]] = [press.at, to_photo(event)];
  const was_dragged = is_far(event);
  press = null;
  if (was_dragged && scene.can_box) return tell("boxed", { x0, y0, x1, y1 });
  if (was_dragged) return;
  add_mark("pending", x1, y1);
  tell("clicked", { x: x1, y: y1, outside: event.shiftKey || event.button === 2 });
});
frame.addEventListener("pointercancel", () => ((press = null), (rubber.hidden = true)));
frame.addEventListener("pointerleave", () => (tip.hidden = true));
frame.addEventListener("contextmenu", (event) => event.preventDefault());
window.addEventListener("resize", fit);
document.addEventListener("keydown", (event) => {
  const is_typing = event.target.matches("input:not([type=radio]), textarea, select");
  if (is_typing) return;
  const moves_radio = event.target.matches("input[type=radio]");
  if (scene.can_turn && !moves_radio && !event.repeat && (event.key === "ArrowRight" || event.key === "ArrowLeft")) tell("turned", { by: event.key === "ArrowRight" ? 1 : -1 });
  if (event.key === "z" && !event.repeat && (event.ctrlKey || event.metaKey)) tell("undone", {});
});

let sending = 0;
async function send(file) {
  if (!file || !scene.can_drop) return;
  const mine = ++sending; // Of several the last one is meant.
  find("words").classList.remove("error");
  find("words").textContent = "Sending " + file.name + " ...";
  try {
    const answer = await fetch(new URL("photo", window.location.href), { method: "POST", body: file });
    const text = await answer.text();
    if (mine !== sending) return;
    if (answer.ok) tell("dropped", { token: text, name: file.name });
    else tell("refused", { reason: text, name: file.name });
  } catch (error) {
    if (mine === sending) tell("refused", { reason: "it could not be sent (" + error.message + ")", name: file.name });
  }
}

// Beside the stage a browser would open the file in this tab.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
window.addEventListener("beforeunload", (event) => scene.is_unsaved && event.preventDefault());
root.addEventListener("drop", (event) => {
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
find("empty").addEventListener("click", () => scene.can_drop && chooser.click());
chooser.addEventListener("change", () => {
  send(chooser.files[0]);
  chooser.value = "";
});
document.addEventListener("click", (event) => {
  if (event.target.closest("#choose-file")) chooser.click();
  if (event.detail && event.target.matches("input[type=radio]")) event.target.blur(); // Chosen by mouse: arrows turn pages again.
  if (event.target.closest("button, label")) setTimeout(poke, 1000);
});
new ResizeObserver(fit).observe(root);
element.replaceChildren(root);
watch("value", draw);
draw();
