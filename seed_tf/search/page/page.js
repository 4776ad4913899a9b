"use strict";

const K = 24;
const $ = (id) => document.getElementById(id);
let maxUpload = Infinity;
let latest = 0; // an answer that comes late must not replace a newer one
let preview = null;

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw new Error(content.error || `The server answered ${answer.status}.`);
  }
  return content;
}

function card(image) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  const picture = document.createElement("img");
  const caption = document.createElement("span");
  const name = document.createElement("span");
  link.href = `/?image=${image.number}`;
  link.dataset.number = image.number;
  link.title = image.path;
  picture.src = image.thumbnail;
  picture.alt = image.path;
  picture.loading = "lazy";
  caption.className = "caption";
  name.className = "name";
  name.textContent = image.path;
  caption.append(name);
  if (image.similarity !== undefined) {
    const similarity = document.createElement("span");
    similarity.className = "similarity";
    similarity.textContent = image.similarity.toFixed(3);
    caption.append(similarity);
  }
  link.append(picture, caption);
  item.append(link);
  return item;
}

function showQuery(source, name, milliseconds) {
  $("query").hidden = !source;
  if (!source) return;
  $("query-image").src = source;
  $("query-image").alt = `Query: ${name}`;
  $("query-name").textContent = name;
  const times = Object.entries(milliseconds);
  $("times").textContent = times
    .map(([what, value]) => `${what} ${value.toFixed(1)} ms`).join(" · ");
}

// Runs one request and shows what it gives, or why it failed.
async function show(heading, request) {
  const mine = ++latest;
  $("error").hidden = true;
  $("grid").ariaBusy = "true";
  try {
    const { images, query } = await request();
    if (mine !== latest) return;
    showQuery(...query);
    $("heading").textContent = heading;
    $("grid").replaceChildren(...images.map(card));
    document.title = query.length ? `${query[1]} · Image search`
      : "Image search";
  } catch (error) {
    if (mine !== latest) return;
    $("error").textContent = error.message;
    $("error").hidden = false;
  } finally {
    if (mine === latest) $("grid").ariaBusy = "false";
  }
}

const random = () => show("Pick a picture", async () => {
  const { images } = await ask(`/api/random?count=${K}`);
  return { images, query: [] };
});

const neighbours = (number) => show("Nearest neighbours", async () => {
  const found = await ask(`/api/neighbours/${number}?k=${K}`);
  const { thumbnail, path } = found.query;
  return {
    images: found.neighbours, query: [thumbnail, path, found.milliseconds],
  };
});

const upload = (file) => show("Nearest neighbours", async () => {
  if (file.size > maxUpload) {
    throw new Error(`The picture is too large: ${(file.size / 1e6).toFixed(1)}`
      + ` MB. Expected at most ${(maxUpload / 1e6).toFixed(1)} MB.`);
  }
  const found = await ask(`/api/search?k=${K}`, { method: "POST", body: file });
  if (preview) URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(file);
  history.pushState(null, "", "/");
  const name = file.name || "Pasted picture";
  return { images: found.neighbours, query: [preview, name,
    found.milliseconds] };
});

// The page that the address names.
function visit() {
  const number = new URLSearchParams(location.search).get("image");
  return number === null ? random() : neighbours(encodeURIComponent(number));
}

function go(address) {
  history.pushState(null, "", address);
  window.scrollTo(0, 0);
  visit().then(() => $("heading").focus({ preventScroll: true }));
}

function bring(files, none) {
  const [file] = files;
  if (file) upload(file);
  else if (none) show("", () => Promise.reject(new Error(none)));
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("#grid a, #home");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
window.addEventListener("popstate", visit);
$("shuffle").addEventListener("click", () => go("/"));
$("file").addEventListener("change", (event) => {
  bring(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => bring(
  event.clipboardData.files, "There is no picture to paste."));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") {
      bring(event.dataTransfer.files, "Only image files can be dropped here.");
    }
  });
}

ask("/api/info").then((info) => {
  maxUpload = info.max_upload;
  const encoder = info.encoder.split("/").slice(-2).join("/");
  $("info").textContent = `${info.count.toLocaleString("en")} images · `
    + `encoder ${encoder} (${info.output}, ${info.dim} wide) · `
    + `${info.search} search`;
  $("info").title = `${info.encoder}, fingerprint ${info.fingerprint}`;
}).catch((error) => { $("info").textContent = error.message; });
visit();
