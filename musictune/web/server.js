// Asks the server, and tells apart what can be tried again from what cannot.

export class Problem extends Error {
  // status 0: no answer at all.
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options, seconds) {
  let answer;
  try {
    answer = await fetch(path, { ...options, signal: AbortSignal.timeout(seconds * 1000) });
  } catch {
    throw new Problem(0, "The server does not answer. Is “musictune listen” still running?");
  }
  if (answer.ok) return answer;
  let detail = `The server answered ${answer.status}.`;
  try {
    detail = (await answer.json()).detail || detail;
  } catch {
    // Not JSON: the number has to do.
  }
  throw new Problem(answer.status, detail);
}

export async function look(path, query) {
  const answer = await ask(`${path}?${new URLSearchParams(query)}`, {}, 20);
  return answer.json();
}

export async function send(path, body) {
  const headers = { "content-type": "application/json" };
  const answer = await ask(path, { method: "POST", headers, body: JSON.stringify(body) }, 20);
  return answer.json();
}

export async function sound(path) {
  const answer = await ask(path, {}, 120);
  return answer.arrayBuffer();
}

// What outlives a reload. A browser may refuse to keep things; then it lasts until the page closes.
export function kept(storage) {
  const memory = new Map();
  return {
    get(key) {
      try {
        return JSON.parse(storage().getItem(`musictune.${key}`));
      } catch {
        return memory.get(key) ?? null;
      }
    },
    set(key, value) {
      memory.set(key, value);
      try {
        if (value === null) storage().removeItem(`musictune.${key}`);
        else storage().setItem(`musictune.${key}`, JSON.stringify(value));
      } catch {
        // The copy in memory stays.
      }
    },
  };
}
