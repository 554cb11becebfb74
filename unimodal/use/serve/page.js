"use strict";
const at = (id) => document.getElementById(id);
let offers = [], recorder = null, dropped = null;

const make = (name, text, attributes = {}) => {
  const found = document.createElement(name);
  if (text !== undefined) found.textContent = text;
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  return found;
};

const headers = () => (at("token").value ? { Authorization: "Bearer " + at("token").value } : {});

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw new Error("the server cannot be reached");
  }
  const said = await answer.json().catch(() => ({ error: "the answer cannot be read" }));
  if (answer.status === 401) at("token-line").hidden = false;
  if (!answer.ok) throw new Error(said.error || "error " + answer.status);
  return said;
}

async function begin() {
  try {
    const said = await call("/v1/tasks");
    at("model").textContent = said.model;
    offers = [];
    for (const [task, answers] of Object.entries(said.tasks))
      for (const { gives, reads, names } of answers)
        if (!reads.includes("+") && (gives !== "embedding" || !said.search)) offers.push({ task, gives, reads, names, says: `${task}: ${gives} of ${reads}` });
    if (said.search) offers.unshift({ search: true, reads: "anything", says: "search: by a picture, words, or both" });
    at("task").replaceChildren(...offers.map((offer, i) => make("option", offer.says, { value: i })));
    show();
  } catch (error) {
    tell(error);
  }
}

function show() {
  const offer = offers[at("task").value] || {};
  const file = offer.reads !== "text";
  at("text-line").hidden = file && !offer.search;
  at("file-line").hidden = !file;
  at("classes-line").hidden = !offer.names;
  at("steps-line").hidden = offer.gives !== "continuation";
  at("file-name").textContent = { image: "Picture", sound: "Sound" }[offer.reads] || "Picture or sound";
  at("file").accept = { image: "image/*", sound: "audio/*" }[offer.reads] || "image/*,audio/*";
  at("record").hidden = !(offer.reads === "sound" && navigator.mediaDevices && window.MediaRecorder);
  at("text").placeholder = offer.gives === "masked words" ? "a text with [MASK] in it" : "";
}

const chosen = () => dropped || at("file").files[0] || null;

function preview() {
  const file = chosen();
  if (!file) return at("preview").replaceChildren();
  const url = URL.createObjectURL(file);
  const shown = file.type.startsWith("audio/") ? make("audio", "", { controls: "", src: url }) : make("img", undefined, { alt: "what will be asked about", src: url });
  at("preview").replaceChildren(shown, make("p", file.name, { class: "hint" }));
}

async function ask(event) {
  event.preventDefault();
  const offer = offers[at("task").value];
  if (!offer) return begin();
  const file = at("file-line").hidden ? null : chosen();
  const text = at("text-line").hidden ? "" : at("text").value;
  if (!file && !text.trim()) return tell(new Error(offer.reads === "text" ? "write a text first" : "choose a file first"));
  const extra = {};
  if (!offer.search) Object.assign(extra, { task: offer.task, gives: offer.gives });
  if (!at("classes-line").hidden) extra.classes = at("classes").value;
  if (!at("steps-line").hidden) extra.steps = at("steps").value;
  if (offer.search) extra.top = "12";
  let options;
  if (file) {
    const body = new FormData();
    for (const [key, value] of Object.entries(extra)) body.append(key, value);
    if (text.trim()) body.append("text", text);
    body.append("file", file);
    options = { method: "POST", body };
  } else {
    options = { method: "POST", body: JSON.stringify({ text, ...extra }), headers: { "Content-Type": "application/json" } };
  }
  at("send").disabled = true;
  at("answer").setAttribute("aria-busy", "true");
  at("answer").replaceChildren(make("p", "…", { class: "hint" }));
  try {
    render(await call(offer.search ? "/v1/search" : "/v1/predict", options));
  } catch (error) {
    tell(error);
  } finally {
    at("send").disabled = false;
    at("answer").removeAttribute("aria-busy");
  }
}

function ranks(caption, values) {
  const table = make("table");
  table.append(make("caption", caption, { hidden: "" }));
  for (const [name, chance] of Object.entries(values)) {
    const row = make("tr"), bar = make("td", undefined, { class: "bar" });
    bar.append(make("meter", undefined, { min: 0, max: 1, value: chance, "aria-label": name }));
    row.append(make("th", name, { scope: "row" }), bar, make("td", (100 * chance).toFixed(1) + " %", { class: "number" }));
    table.append(row);
  }
  return table;
}

function render(said) {
  const parts = [];
  if (said.results) parts.push(found(said.results));
  else if (said.classes) parts.push(ranks("classes", said.classes));
  else if (said.masked) {
    parts.push(make("pre", said.text));
    said.masked.forEach((values, i) => parts.push(make("h3", "[MASK] " + (i + 1)), ranks("words", values)));
  } else if (said.embedding) parts.push(make("p", `${said.embedding.length} numbers`), make("pre", said.embedding.slice(0, 8).map((x) => x.toFixed(3)).join(", ") + ", …"));
  else if (said.picture) parts.push(make("img", undefined, { src: said.picture, alt: "the picture that was made", class: "made" }), make("p"), make("a", "Save the picture", { href: said.picture, download: "picture.png" }));
  else parts.push(make("pre", said.transcript ?? said.continuation ?? said.caption ?? JSON.stringify(said, null, 1)));
  at("answer").replaceChildren(...parts);
}

function found(rows) {
  const list = make("ol", undefined, { class: "found" });
  for (const row of rows) {
    const item = make("li"), name = row.id.split("/").pop(), url = "/v1/items/" + row.row;
    if (/\.(png|jpe?g|webp|gif|bmp)$/i.test(name)) item.append(picture(url, name));
    else if (/\.(wav|mp3|flac|ogg|opus)$/i.test(name)) item.append(make("audio", undefined, { controls: "", src: url }));
    item.append(make("div", `${name} · ${row.score.toFixed(3)}`));
    list.append(item);
  }
  return list;
}

function picture(url, name) {
  const image = make("img", undefined, { alt: name });
  fetch(url, { headers: headers() }).then((a) => (a.ok ? a.blob() : null)).then((b) => b && (image.src = URL.createObjectURL(b)));
  return image;
}

function tell(error) {
  at("answer").replaceChildren(make("p", error.message, { class: "error" }));
}

async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true }), chunks = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => chunks.push(event.data);
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      at("record").textContent = "Record";
      dropped = await toWav(new Blob(chunks));
      preview();
    };
    recorder.start();
    at("record").textContent = "Stop";
  } catch {
    tell(new Error("the microphone may not be used"));
  }
}

// What browsers record is in containers that few libraries read; 16 bits at 16 kHz everybody reads.
async function toWav(blob) {
  const rate = 16000, whole = await new AudioContext().decodeAudioData(await blob.arrayBuffer());
  const offline = new OfflineAudioContext(1, Math.ceil(whole.duration * rate), rate), source = offline.createBufferSource();
  source.buffer = whole;
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0), view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (place, text) => [...text].forEach((c, i) => view.setUint8(place + i, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new File([view], "recording.wav", { type: "audio/wav" });
}

at("task").addEventListener("change", show);
at("token").addEventListener("change", begin);
at("file").addEventListener("change", () => { dropped = null; preview(); });
at("record").addEventListener("click", record);
at("ask").addEventListener("submit", ask);
for (const kind of ["dragover", "dragleave", "drop"])
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) { dropped = event.dataTransfer.files[0]; preview(); }
  });
begin();
