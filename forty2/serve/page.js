// Asks every model the same and shows the replies side by side. What a model writes is shown as text only.
"use strict";

const find = (id) => document.getElementById(id);
const columns = new Map(); // the elements of each model's reply, by its id
let asking = null; // controller of the requests under way; null: there are none

function element(tag, kind, parent) {
  const made = document.createElement(tag);
  made.className = kind;
  parent.append(made);
  return made;
}

function addColumn(id) {
  const card = element("section", "reply", find("replies"));
  const head = element("header", "", card);
  element("h2", "", head).textContent = id;
  const state = element("span", "state", head);
  const thought = element("div", "thought", card);
  const text = element("div", "text", card);
  columns.set(id, { card, state, thought, text });
}

function showSystem() {
  const words = find("system").value.trim().replace(/\s+/g, " ");
  find("said").textContent = words === "" ? "none" : words.length > 80 ? words.slice(0, 79) + "…" : words;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const lines = waiting.split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function ask(id, request, signal) {
  const { card, state, thought, text } = columns.get(id);
  card.setAttribute("aria-busy", "true");
  state.textContent = "waiting";
  thought.textContent = text.textContent = "";
  let ended = "the reply broke off";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...request, model: id, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let tokens = null;
    let reason = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) tokens = event.usage.completion_tokens;
      for (const choice of event.choices) {
        state.textContent = "writing";
        thought.append(choice.delta.reasoning ?? "");
        text.append(choice.delta.content ?? "");
        reason = choice.finish_reason ?? reason;
      }
    }
    if (reason !== null && tokens !== null) {
      ended = `${tokens} ${tokens === 1 ? "token" : "tokens"}` + (reason === "length" ? ", cut at the limit" : "");
    }
  } catch (error) {
    ended = error.name === "AbortError" ? "stopped" : `failed: ${error.message}`;
  }
  state.textContent = ended;
  card.removeAttribute("aria-busy");
}

async function askAll(event) {
  event.preventDefault();
  if (asking !== null) return;
  asking = new AbortController();
  find("ask").disabled = true;
  find("stop").disabled = false;
  const system = find("system").value;
  const messages = system.trim() === "" ? [] : [{ role: "system", content: system }];
  messages.push({ role: "user", content: find("prompt").value });
  const request = {
    messages,
    seed: find("seed").valueAsNumber,
    temperature: find("temperature").valueAsNumber,
    max_tokens: find("tokens").valueAsNumber,
  };
  await Promise.all([...columns.keys()].map((id) => ask(id, request, asking.signal)));
  asking = null;
  find("ask").disabled = false;
  find("stop").disabled = true;
}

async function begin() {
  find("form").addEventListener("submit", askAll);
  find("stop").addEventListener("click", () => asking?.abort());
  find("system").addEventListener("input", showSystem);
  find("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
  });
  try {
    const run = await (await fetch("run")).json();
    find("name").textContent = run.name;
    document.title = `${run.name} · forty2`;
    find("system").value = run.system ?? "";
    find("tokens").max = run.most_tokens;
    showSystem();
    run.models.forEach(addColumn);
  } catch (error) {
    find("failed").textContent = `The server does not answer: ${error.message}. Start it again, then load this page again.`;
    find("failed").hidden = false;
  }
}

begin();
